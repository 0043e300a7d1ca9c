#pragma once
// One piece of work of standard attention each, compiled for every instruction set.

#include "base/attention.hpp"

namespace loglinear::standard_attention {

// The rows of probabilities and gradients worked on at once, and the tile of keys.
inline constexpr std::int64_t kRows = 96, kKeys = 192;

// One head of one sequence. Strip's q, k, v are those of the head (heads = 1).
template <class T>
struct Head {
  attention::Strip<T> strip;
  T* probabilities = nullptr;  // (q_count, k_count)
  T* out = nullptr;
  std::int64_t out_stride = 0;
  const T* dout = nullptr;
  std::int64_t dout_stride = 0;
  T* means = nullptr;  // (q_count): sum over keys of probability * its gradient
  T* dq = nullptr;
  std::int64_t dq_stride = 0;
};

// Probabilities and output of queries [first, last), at most kRows.
template <class T>
void forward(const Head<T>& head, std::int64_t first, std::int64_t last);

// means and dq of queries [first, last), at most kRows.
template <class T>
void backward_queries(const Head<T>& head, std::int64_t first, std::int64_t last);

// dk and dv (rows of the keys' first, strides apart) of keys [first, last), at most kKeys, summed over the heads of a
// group; means are there.
template <class T>
void backward_keys(std::span<const Head<T>> heads, std::int64_t first, std::int64_t last, T* dk, std::int64_t dk_stride,
                   T* dv, std::int64_t dv_stride);

}  // namespace loglinear::standard_attention
