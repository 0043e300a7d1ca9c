#include "loglinear/standard_attention.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "base/attention.hpp"
#include "base/op_timer.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

using attention::Lags;
using attention::Range;

// Where the probabilities of each sequence begin; one more at the end.
std::vector<std::int64_t> offsets(const char* where, std::span<const AttentionSequence> sequences,
                                  const AttentionShape& shape) {
  std::vector<std::int64_t> at{0};
  for (const AttentionSequence& s : sequences) {
    const std::int64_t n = check_sizes(where, {shape.heads, s.q_count, s.k_count});
    if (n > std::numeric_limits<std::int64_t>::max() / 16 - at.back()) fail(where, "sizes overflow");
    at.push_back(at.back() + n);
  }
  return at;
}

Range visible(const AttentionSequence& seq, const Lags& lags, std::int64_t query) {
  const std::int64_t position = seq.k_count - seq.q_count + query;
  return {std::max<std::int64_t>(0, position - lags.high), std::min(seq.k_count, position - lags.low + 1)};
}

}  // namespace

std::int64_t standard_attention_elements(std::span<const AttentionSequence> sequences, const AttentionShape& shape) {
  constexpr const char* where = "standard_attention.elements";
  attention::check(where, sequences, shape, false);
  return offsets(where, sequences, shape).back();
}

template <class T>
void standard_attention_forward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                                std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                                std::int64_t v_stride, T* out, std::int64_t out_stride, T* probabilities, int threads) {
  const TimedOperator timed("standard_attention");
  constexpr const char* where = "standard_attention.forward";
  attention::check(where, sequences, shape, false);
  const std::int64_t H = shape.heads, G = shape.kv_heads, K = shape.key_width, V = shape.value_width;
  const auto [q_rows, k_rows] = attention::extent(sequences);
  check_rows(where, "q", q_rows, H * K, q, q_stride);
  check_rows(where, "k", k_rows, G * K, k, k_stride);
  check_rows(where, "v", k_rows, G * V, v, v_stride);
  check_rows(where, "out", q_rows, H * V, out, out_stride);
  const std::vector<std::int64_t> at = offsets(where, sequences, shape);
  check_array(where, "probabilities", at.back(), probabilities);
  const T scale = static_cast<T>(attention::scale_of(shape));
  const Lags lags = attention::lags_of(shape);
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const AttentionSequence& seq = sequences[s];
    parallel_for(H * seq.q_count, threads, [&](std::int64_t item) {
      const std::int64_t h = item / seq.q_count, i = item % seq.q_count, group = h / (H / G);
      const Range seen = visible(seq, lags, i);
      T* row = probabilities + at[s] + item * seq.k_count;
      const T* query = q + (seq.q_begin + i) * q_stride + h * K;
      T* to = out + (seq.q_begin + i) * out_stride + h * V;
      std::fill_n(row, seq.k_count, T(0));
      std::fill_n(to, V, T(0));
      for (std::int64_t j = seen.begin; j < seen.end; ++j)
        row[j] = scale * vec::dot(K, query, k + (seq.k_begin + j) * k_stride + group * K);
      const std::int64_t n = seen.end - seen.begin;
      const T sum = vec::exp_sum(n, row + seen.begin, vec::max(n, row + seen.begin), row + seen.begin);
      vec::scale(n, 1 / sum, row + seen.begin, row + seen.begin);
      for (std::int64_t j = seen.begin; j < seen.end; ++j)
        vec::add_scaled(V, row[j], v + (seq.k_begin + j) * v_stride + group * V, to);
    });
  }
}

template <class T>
void standard_attention_backward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                                 std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                                 std::int64_t v_stride, const T* probabilities, const T* dout, std::int64_t dout_stride,
                                 T* dq, std::int64_t dq_stride, T* dk, std::int64_t dk_stride, T* dv,
                                 std::int64_t dv_stride, int threads) {
  const TimedOperator timed("standard_attention");
  constexpr const char* where = "standard_attention.backward";
  attention::check(where, sequences, shape, true);
  const std::int64_t H = shape.heads, G = shape.kv_heads, K = shape.key_width, V = shape.value_width;
  const auto [q_rows, k_rows] = attention::extent(sequences);
  check_rows(where, "q", q_rows, H * K, q, q_stride);
  check_rows(where, "k", k_rows, G * K, k, k_stride);
  check_rows(where, "v", k_rows, G * V, v, v_stride);
  check_rows(where, "dout", q_rows, H * V, dout, dout_stride);
  check_rows(where, "dq", q_rows, H * K, dq, dq_stride);
  check_rows(where, "dk", k_rows, G * K, dk, dk_stride);
  check_rows(where, "dv", k_rows, G * V, dv, dv_stride);
  const std::vector<std::int64_t> at = offsets(where, sequences, shape);
  check_array(where, "probabilities", at.back(), probabilities);
  const T scale = static_cast<T>(attention::scale_of(shape));
  const Lags lags = attention::lags_of(shape);
  parallel_for(static_cast<std::int64_t>(sequences.size()) * G, threads, [&](std::int64_t item) {
    const std::size_t s = static_cast<std::size_t>(item / G);
    const std::int64_t group = item % G;
    const AttentionSequence& seq = sequences[s];
    for (std::int64_t j = 0; j < seq.k_count; ++j) {
      std::fill_n(dk + (seq.k_begin + j) * dk_stride + group * K, K, T(0));
      std::fill_n(dv + (seq.k_begin + j) * dv_stride + group * V, V, T(0));
    }
    std::vector<T> dscores(static_cast<std::size_t>(seq.k_count));
    for (std::int64_t h = group * (H / G); h < (group + 1) * (H / G); ++h)
      for (std::int64_t i = 0; i < seq.q_count; ++i) {
        const Range seen = visible(seq, lags, i);
        const T* row = probabilities + at[s] + (h * seq.q_count + i) * seq.k_count;
        const std::int64_t n = seq.q_begin + i;
        const T* query = q + n * q_stride + h * K;
        const T* dto = dout + n * dout_stride + h * V;
        T* dquery = dq + n * dq_stride + h * K;
        std::fill_n(dquery, K, T(0));
        T mean = 0;
        for (std::int64_t j = seen.begin; j < seen.end; ++j) {
          dscores[j] = vec::dot(V, dto, v + (seq.k_begin + j) * v_stride + group * V);
          mean += row[j] * dscores[j];
        }
        for (std::int64_t j = seen.begin; j < seen.end; ++j) {
          const T dscore = scale * row[j] * (dscores[j] - mean);
          vec::add_scaled(K, dscore, k + (seq.k_begin + j) * k_stride + group * K, dquery);
          vec::add_scaled(K, dscore, query, dk + (seq.k_begin + j) * dk_stride + group * K);
          vec::add_scaled(V, row[j], dto, dv + (seq.k_begin + j) * dv_stride + group * V);
        }
      }
  });
}

#define LOGLINEAR_STANDARD_ATTENTION(T)                                                                             \
  template void standard_attention_forward(std::span<const AttentionSequence>, const AttentionShape&, const T*,     \
                                           std::int64_t, const T*, std::int64_t, const T*, std::int64_t, T*,        \
                                           std::int64_t, T*, int);                                                  \
  template void standard_attention_backward(std::span<const AttentionSequence>, const AttentionShape&, const T*,    \
                                            std::int64_t, const T*, std::int64_t, const T*, std::int64_t, const T*, \
                                            const T*, std::int64_t, T*, std::int64_t, T*, std::int64_t, T*,         \
                                            std::int64_t, int);
LOGLINEAR_STANDARD_ATTENTION(float)
LOGLINEAR_STANDARD_ATTENTION(double)
#undef LOGLINEAR_STANDARD_ATTENTION

}  // namespace loglinear
