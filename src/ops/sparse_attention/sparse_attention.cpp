#include "loglinear/sparse_attention.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/attention.hpp"
#include "base/op_timer.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

void check_pattern(const char* where, const SparsePattern& pattern) {
  if (pattern.window < 1) fail(where, "window is {}, need at least 1", pattern.window);
  if (pattern.stride < 0) fail(where, "stride is {}, need at least 0", pattern.stride);
}

void check(const char* where, std::span<const AttentionSequence> sequences, const AttentionShape& shape,
           const SparsePattern& pattern, bool separate_keys) {
  attention::check(where, sequences, shape, separate_keys);
  check_pattern(where, pattern);
  if (shape.window != 0 || !shape.causal)
    fail(where, "shape has a window or is not causal: the pattern says what is seen");
}

// The keys that the token at `position` sees, oldest first.
std::vector<std::int64_t> visible(const SparsePattern& pattern, std::int64_t position) {
  std::vector<std::int64_t> keys;
  if (pattern.stride > 0)
    for (std::int64_t s = position % pattern.stride; s <= position - pattern.window; s += pattern.stride)
      keys.push_back(s);
  for (std::int64_t s = std::max<std::int64_t>(0, position - pattern.window + 1); s <= position; ++s) keys.push_back(s);
  return keys;
}

}  // namespace

std::int64_t sparse_attention_keys(const SparsePattern& pattern, std::int64_t position) {
  constexpr const char* where = "sparse_attention.keys";
  check_pattern(where, pattern);
  if (position < 0) fail(where, "position is {}, need at least 0", position);
  const std::int64_t near = std::min(pattern.window, position + 1);
  if (pattern.stride == 0 || position < pattern.window) return near;
  // Multiples of the stride in [window, position].
  return near + position / pattern.stride - (pattern.window - 1) / pattern.stride;
}

template <class T>
void sparse_attention_forward(std::span<const AttentionSequence> sequences, const AttentionShape& shape,
                              const SparsePattern& pattern, const T* q, std::int64_t q_stride, const T* k,
                              std::int64_t k_stride, const T* v, std::int64_t v_stride, T* out, std::int64_t out_stride,
                              T* log_sums, int threads) {
  const TimedOperator timed("sparse_attention");
  constexpr const char* where = "sparse_attention.forward";
  check(where, sequences, shape, pattern, false);
  const std::int64_t H = shape.heads, G = shape.kv_heads, K = shape.key_width, V = shape.value_width;
  const auto [q_rows, k_rows] = attention::extent(sequences);
  check_rows(where, "q", q_rows, H * K, q, q_stride);
  check_rows(where, "k", k_rows, G * K, k, k_stride);
  check_rows(where, "v", k_rows, G * V, v, v_stride);
  check_rows(where, "out", q_rows, H * V, out, out_stride);
  const T scale = static_cast<T>(attention::scale_of(shape));
  for (const AttentionSequence& seq : sequences)
    parallel_for(seq.q_count, threads, [&](std::int64_t i) {
      const std::vector<std::int64_t> keys = visible(pattern, seq.k_count - seq.q_count + i);
      std::vector<T> row(keys.size());
      for (std::int64_t h = 0; h < H; ++h) {
        const std::int64_t group = h / (H / G), n = static_cast<std::int64_t>(keys.size());
        for (std::size_t j = 0; j < keys.size(); ++j)
          row[j] = scale * vec::dot(K, q + (seq.q_begin + i) * q_stride + h * K,
                                    k + (seq.k_begin + keys[j]) * k_stride + group * K);
        const T peak = vec::max(n, row.data()), sum = vec::exp_sum(n, row.data(), peak, row.data());
        T* to = out + (seq.q_begin + i) * out_stride + h * V;
        std::fill_n(to, V, T(0));
        for (std::size_t j = 0; j < keys.size(); ++j)
          vec::add_scaled(V, row[j] / sum, v + (seq.k_begin + keys[j]) * v_stride + group * V, to);
        if (log_sums) log_sums[(seq.q_begin + i) * H + h] = peak + std::log(sum);
      }
    });
}

template <class T>
void sparse_attention_backward(std::span<const AttentionSequence> sequences, const AttentionShape& shape,
                               const SparsePattern& pattern, const T* q, std::int64_t q_stride, const T* k,
                               std::int64_t k_stride, const T* v, std::int64_t v_stride, const T* out,
                               std::int64_t out_stride, const T* log_sums, const T* dout, std::int64_t dout_stride,
                               T* dq, std::int64_t dq_stride, T* dk, std::int64_t dk_stride, T* dv,
                               std::int64_t dv_stride, int threads) {
  const TimedOperator timed("sparse_attention");
  constexpr const char* where = "sparse_attention.backward";
  check(where, sequences, shape, pattern, true);
  const std::int64_t H = shape.heads, G = shape.kv_heads, K = shape.key_width, V = shape.value_width;
  const auto [q_rows, k_rows] = attention::extent(sequences);
  check_rows(where, "q", q_rows, H * K, q, q_stride);
  check_rows(where, "k", k_rows, G * K, k, k_stride);
  check_rows(where, "v", k_rows, G * V, v, v_stride);
  check_rows(where, "out", q_rows, H * V, out, out_stride);
  check_rows(where, "log_sums", q_rows, H, log_sums, H);
  check_rows(where, "dout", q_rows, H * V, dout, dout_stride);
  check_rows(where, "dq", q_rows, H * K, dq, dq_stride);
  check_rows(where, "dk", k_rows, G * K, dk, dk_stride);
  check_rows(where, "dv", k_rows, G * V, dv, dv_stride);
  const T scale = static_cast<T>(attention::scale_of(shape));
  parallel_for(static_cast<std::int64_t>(sequences.size()) * G, threads, [&](std::int64_t item) {
    const AttentionSequence& seq = sequences[static_cast<std::size_t>(item / G)];
    const std::int64_t group = item % G;
    for (std::int64_t j = 0; j < seq.k_count; ++j) {
      std::fill_n(dk + (seq.k_begin + j) * dk_stride + group * K, K, T(0));
      std::fill_n(dv + (seq.k_begin + j) * dv_stride + group * V, V, T(0));
    }
    for (std::int64_t i = 0; i < seq.q_count; ++i) {
      const std::vector<std::int64_t> keys = visible(pattern, seq.k_count - seq.q_count + i);
      const std::int64_t n = seq.q_begin + i;
      for (std::int64_t h = group * (H / G); h < (group + 1) * (H / G); ++h) {
        const T* query = q + n * q_stride + h * K;
        const T* dto = dout + n * dout_stride + h * V;
        T* dquery = dq + n * dq_stride + h * K;
        const T mean = vec::dot(V, dto, out + n * out_stride + h * V);
        std::fill_n(dquery, K, T(0));
        for (const std::int64_t s : keys) {
          const std::int64_t at = seq.k_begin + s;
          const T* key = k + at * k_stride + group * K;
          const T p = std::exp(scale * vec::dot(K, query, key) - log_sums[n * H + h]);
          const T dscore = scale * p * (vec::dot(V, dto, v + at * v_stride + group * V) - mean);
          vec::add_scaled(K, dscore, key, dquery);
          vec::add_scaled(K, dscore, query, dk + at * dk_stride + group * K);
          vec::add_scaled(V, p, dto, dv + at * dv_stride + group * V);
        }
      }
    }
  });
}

#define LOGLINEAR_SPARSE_ATTENTION(T)                                                                           \
  template void sparse_attention_forward(std::span<const AttentionSequence>, const AttentionShape&,             \
                                         const SparsePattern&, const T*, std::int64_t, const T*, std::int64_t,  \
                                         const T*, std::int64_t, T*, std::int64_t, T*, int);                    \
  template void sparse_attention_backward(std::span<const AttentionSequence>, const AttentionShape&,            \
                                          const SparsePattern&, const T*, std::int64_t, const T*, std::int64_t, \
                                          const T*, std::int64_t, const T*, std::int64_t, const T*, const T*,   \
                                          std::int64_t, T*, std::int64_t, T*, std::int64_t, T*, std::int64_t, int);
LOGLINEAR_SPARSE_ATTENTION(float)
LOGLINEAR_SPARSE_ATTENTION(double)
#undef LOGLINEAR_SPARSE_ATTENTION

}  // namespace loglinear
