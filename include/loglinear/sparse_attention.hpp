#pragma once
// Softmax attention over a fixed part of the pairs: a sliding window (Beltagy et al., 2020, arXiv 2004.05150), or a
// window and every stride-th token before (the strided pattern of Child et al., 2019, arXiv 1904.10509).

#include <cstdint>
#include <span>

#include "loglinear/attention.hpp"
#include "loglinear/error.hpp"

namespace loglinear {

// The token at position t sees the token at s <= t when  t - s < window,  or when stride > 0 and  (t - s) mod stride =
// 0. Child et al. take both about the root of the length.
struct SparsePattern {
  std::int64_t window = 0;  // at least 1: a token sees itself
  std::int64_t stride = 0;  // 0: the window only
};

// How many keys the token at `position` sees. Throws Error on a pattern out of range or a negative position.
std::int64_t sparse_attention_keys(const SparsePattern& pattern, std::int64_t position);

// out[t, h] = sum over s that t sees of  softmax_s(scale * q[t, h] . k[s, g]) * v[s, g]
//
// Everything as in flash_attention_forward, log_sums included, which may be null; decoding on a cache of keys and
// values is a sequence with q_count < k_count, whose queries are the last positions. shape.window must be 0 and
// shape.causal true: the pattern says what is seen. Time proportional to the pairs seen, memory O(q_count) beyond the
// arguments; equal to masked dense attention up to rounding.
template <class T>
void sparse_attention_forward(std::span<const AttentionSequence> sequences, const AttentionShape& shape,
                              const SparsePattern& pattern, const T* q, std::int64_t q_stride, const T* k,
                              std::int64_t k_stride, const T* v, std::int64_t v_stride, T* out, std::int64_t out_stride,
                              T* log_sums, int threads = 0);

// As flash_attention_backward.
template <class T>
void sparse_attention_backward(std::span<const AttentionSequence> sequences, const AttentionShape& shape,
                               const SparsePattern& pattern, const T* q, std::int64_t q_stride, const T* k,
                               std::int64_t k_stride, const T* v, std::int64_t v_stride, const T* out,
                               std::int64_t out_stride, const T* log_sums, const T* dout, std::int64_t dout_stride,
                               T* dq, std::int64_t dq_stride, T* dk, std::int64_t dk_stride, T* dv,
                               std::int64_t dv_stride, int threads = 0);

}  // namespace loglinear
