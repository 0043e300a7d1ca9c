#pragma once
// Softmax attention as it was first written down (Vaswani et al., 2017, section 3.2.1): scores of all pairs, their
// softmax, the product with the values. The probabilities are an array of the caller, quadratic in the length; that is
// the point of this operator, which the others are compared with. flash_attention computes the same without them.

#include <cstdint>
#include <span>

#include "loglinear/attention.hpp"
#include "loglinear/error.hpp"

namespace loglinear {

// Elements of `probabilities` below: the sum over the sequences of H * q_count * k_count. Throws Error as
// standard_attention_forward does, and when that overflows.
std::int64_t standard_attention_elements(std::span<const AttentionSequence> sequences, const AttentionShape& shape);

// out[t, h] = sum over visible s of  p[h, t, s] * v[s, g],   p[h, t, s] = softmax_s(scale * q[t, h] . k[s, g])
//
//   q, k, v, out    as in flash_attention_forward
//   probabilities   written: for each sequence in turn (H, q_count, k_count), dense; 0 where the query does not see the
//                   key. standard_attention_elements of them
//
// Decoding on a cache of keys and values is a sequence with q_count = 1. T is float or double, sums are in T. Time
// O(T^2), memory O(threads) beyond the arguments. Same bits for any number of threads; each sequence bit-equal to a
// separate call. What a query does not see cannot reach it, not even as NaN. Throws Error on what
// flash_attention_forward throws on.
template <class T>
void standard_attention_forward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                                std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                                std::int64_t v_stride, T* out, std::int64_t out_stride, T* probabilities,
                                int threads = 0);

// probabilities are forward's. dq, dk, dv are written for the sequences' rows (keys' rows of different sequences must
// not overlap: in order of k_begin). Memory O(T) a thread beyond the arguments. Same bits for any number of threads.
template <class T>
void standard_attention_backward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                                 std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                                 std::int64_t v_stride, const T* probabilities, const T* dout, std::int64_t dout_stride,
                                 T* dq, std::int64_t dq_stride, T* dk, std::int64_t dk_stride, T* dv,
                                 std::int64_t dv_stride, int threads = 0);

}  // namespace loglinear
