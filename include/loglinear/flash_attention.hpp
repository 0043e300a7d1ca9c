#pragma once
// Softmax attention (Vaswani et al., 2017) in tiles with an online softmax (Dao et al., 2022, arXiv 2205.14135): no
// T x T array anywhere. For the Transformer baseline and hybrid layers. docs/algorithm.md, section 9.

#include <cstdint>
#include <span>

#include "loglinear/attention.hpp"
#include "loglinear/error.hpp"

namespace loglinear {

// out[t, h] = sum over visible s of  softmax_s(scale * q[t, h] . k[s, g]) * v[s, g]
//
//   q          (.., H * K)   rows q_stride elements apart
//   k          (.., G * K)   rows k_stride elements apart
//   v          (.., G * V)   rows v_stride elements apart
//   out        (.., H * V)   rows out_stride elements apart; written for the sequences' rows
//   log_sums   (.., H)       written: log of the sum of exp(scale * q . k), which backward needs; or null. Row r of q
//                            is row r here
//
// T is float or double, sums are in T. Queries' rows of different sequences must not overlap (keys may). Time
// O(T^2), memory O(threads) beyond the arguments. Same bits for any number of threads; each sequence bit-equal to a
// separate call, and to the same sequence read in pieces against its cache. Throws Error on sizes < 1, G not dividing
// H, a negative offset, count, window or scale, k_count < q_count, a row stride below the row, overlapping query rows
// (sequences must be listed in order of q_begin), or a null array that has elements.
template <class T>
void flash_attention_forward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                             std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                             std::int64_t v_stride, T* out, std::int64_t out_stride, T* log_sums, int threads = 0);

// Recomputes the probabilities from q, k and log_sums. out and log_sums are forward's. dq, dk, dv are written for the
// sequences' rows (keys' rows of different sequences must not overlap here either: in order of k_begin). Same bits for
// any number of threads.
template <class T>
void flash_attention_backward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                              std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                              std::int64_t v_stride, const T* out, std::int64_t out_stride, const T* log_sums,
                              const T* dout, std::int64_t dout_stride, T* dq, std::int64_t dq_stride, T* dk,
                              std::int64_t dk_stride, T* dv, std::int64_t dv_stride, int threads = 0);

}  // namespace loglinear
