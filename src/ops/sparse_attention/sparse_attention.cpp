#include "loglinear/sparse_attention.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "base/attention.hpp"
#include "base/op_timer.hpp"

namespace loglinear {
namespace {

void check_pattern(const char* where, const SparsePattern& pattern) {
  if (pattern.window < 1) fail(where, "window is {}, need at least 1", pattern.window);
  if (pattern.stride < 0) fail(where, "stride is {}, need at least 0", pattern.stride);
}

void check_pattern(const char* where, const AttentionShape& shape, const SparsePattern& pattern) {
  check_pattern(where, pattern);
  if (shape.window != 0 || !shape.causal)
    fail(where, "shape has a window or is not causal: the pattern says what is seen");
}

// The pairs in two parts that share none: those within the window, and those further apart whose distance is a multiple
// of the stride. The second is dense causal attention within each class of positions a stride apart.
attention::Lags near_lags(const SparsePattern& pattern) { return {0, pattern.window - 1}; }
attention::Lags far_lags(const SparsePattern& pattern) { return {pattern.window, attention::Lags::kUnbounded}; }

// Classes of a sequence that hold a pair of the second part.
std::int64_t classes(const SparsePattern& pattern, const AttentionSequence& seq) {
  if (pattern.stride == 0) return 0;
  const std::int64_t least = (pattern.window + pattern.stride - 1) / pattern.stride * pattern.stride;  // distance
  return std::clamp<std::int64_t>(seq.k_count - least, 0, pattern.stride);
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
  const auto in = attention::checked_inputs(where, sequences, shape, false, q, q_stride, k, k_stride, v, v_stride,
                                            "out", static_cast<const T*>(out), out_stride);
  check_pattern(where, shape, pattern);
  const std::int64_t H = shape.heads, G = shape.kv_heads;
  // Of the far part each query keeps its statistics, and in `out` the undivided sum, for the near part to go on from.
  std::int64_t far_rows = 0;
  for (const AttentionSequence& seq : sequences)
    if (classes(pattern, seq) > 0 && seq.q_count > 0) far_rows = std::max(far_rows, seq.q_begin + seq.q_count);
  // Queries of no class have seen nothing.
  std::vector<T> peak(static_cast<std::size_t>(far_rows * H), -std::numeric_limits<T>::infinity()), weight(peak.size());
  std::vector<attention::StripForward<T>> near, far;
  const auto add = [&](auto& strips, const attention::Strip<T>& strip) -> attention::Online<T>& {
    attention::Online<T> online;
    const std::int64_t stat = strip.q_row * H;
    online.out = out + strip.q_row * out_stride, online.out_stride = out_stride * strip.step;
    online.stat_stride = H * strip.step;
    if (log_sums) online.log_sums = log_sums + stat;
    if (!peak.empty()) online.peak = peak.data() + stat, online.weight = weight.data() + stat;
    strips.push_back({strip, online});
    return strips.back().online;
  };
  for (const AttentionSequence& seq : sequences) {
    if (seq.q_count == 0) continue;
    for (std::int64_t residue = 0; residue < classes(pattern, seq); ++residue) {
      const auto strip = attention::strip_of(in, seq, shape, 0, far_lags(pattern), pattern.stride, residue);
      if (strip.q_count > 0) add(far, strip).finish = false;
    }
    add(near, attention::strip_of(in, seq, shape, 0, near_lags(pattern))).resume = classes(pattern, seq) > 0;
  }
  attention::forward<T>(far, G, threads);
  attention::forward<T>(near, G, threads);
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
  const auto in = attention::checked_inputs(where, sequences, shape, true, q, q_stride, k, k_stride, v, v_stride, "out",
                                            out, out_stride);
  check_pattern(where, shape, pattern);
  const std::int64_t H = shape.heads, G = shape.kv_heads, q_rows = attention::extent(sequences).begin;
  check_rows(where, "log_sums", q_rows, H, log_sums, H);
  check_rows(where, "dout", q_rows, H * shape.value_width, dout, dout_stride);
  attention::check_gradients<T>(where, sequences, shape, dq, dq_stride, dk, dk_stride, dv, dv_stride);
  const attention::Adjoint<T> all{out, dout, log_sums, out_stride, dout_stride, H,
                                  dq,  dk,   dv,       dq_stride,  dk_stride,   dv_stride};
  std::vector<attention::StripAdjoint<T>> near, far;
  const auto add = [&](auto& strips, const attention::Strip<T>& strip, std::int64_t group) {
    if (strip.k_count == 0) return;
    strips.push_back({strip, attention::adjoint_of(all, strip, group)});
    strips.back().adjoint.add = &strips == &far;
  };
  for (const AttentionSequence& seq : sequences)
    for (std::int64_t group = 0; group < G; ++group) {
      add(near, attention::strip_of(in, seq, shape, group, near_lags(pattern)), group);
      for (std::int64_t residue = 0; residue < classes(pattern, seq); ++residue)
        add(far, attention::strip_of(in, seq, shape, group, far_lags(pattern), pattern.stride, residue), group);
    }
  attention::backward<T>(near, threads);
  attention::backward<T>(far, threads);
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
