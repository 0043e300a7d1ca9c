#include "loglinear/flash_attention.hpp"

#include <algorithm>
#include <vector>

#include "base/attention.hpp"
#include "base/op_timer.hpp"

namespace loglinear {
template <class T>
void flash_attention_forward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                             std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                             std::int64_t v_stride, T* out, std::int64_t out_stride, T* log_sums, int threads) {
  const TimedOperator timed("flash_attention");
  constexpr const char* where = "flash_attention.forward";
  attention::check(where, sequences, shape, false);
  const std::int64_t H = shape.heads, G = shape.kv_heads, K = shape.key_width, V = shape.value_width;
  const auto [q_rows, k_rows] = attention::extent(sequences);
  check_rows(where, "q", q_rows, H * K, q, q_stride);
  check_rows(where, "k", k_rows, G * K, k, k_stride);
  check_rows(where, "v", k_rows, G * V, v, v_stride);
  check_rows(where, "out", q_rows, H * V, out, out_stride);

  const attention::Inputs<T> in{q, k, v, q_stride, k_stride, v_stride};
  std::vector<attention::StripForward<T>> strips;
  for (const AttentionSequence& seq : sequences) {
    if (seq.q_count == 0) continue;
    attention::Online<T> online;
    online.out = out + seq.q_begin * out_stride, online.out_stride = out_stride;
    online.log_sums = log_sums ? log_sums + seq.q_begin * H : nullptr, online.stat_stride = H;
    strips.push_back({attention::strip_of(in, seq, shape, 0, attention::lags_of(shape)), online});
  }
  attention::forward<T>(strips, G, threads);
}

template <class T>
void flash_attention_backward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                              std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                              std::int64_t v_stride, const T* out, std::int64_t out_stride, const T* log_sums,
                              const T* dout, std::int64_t dout_stride, T* dq, std::int64_t dq_stride, T* dk,
                              std::int64_t dk_stride, T* dv, std::int64_t dv_stride, int threads) {
  const TimedOperator timed("flash_attention");
  constexpr const char* where = "flash_attention.backward";
  attention::check(where, sequences, shape, true);
  const std::int64_t H = shape.heads, G = shape.kv_heads, R = H / G, K = shape.key_width, V = shape.value_width;
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

  const attention::Inputs<T> in{q, k, v, q_stride, k_stride, v_stride};
  std::vector<attention::StripAdjoint<T>> strips;
  for (const AttentionSequence& seq : sequences) {
    if (seq.k_count == 0) continue;
    for (std::int64_t group = 0; group < G; ++group) {
      attention::Adjoint<T> a;
      if (seq.q_count > 0) {
        a.out = out + seq.q_begin * out_stride + group * R * V, a.out_stride = out_stride;
        a.dout = dout + seq.q_begin * dout_stride + group * R * V, a.dout_stride = dout_stride;
        a.log_sums = log_sums + seq.q_begin * H + group * R, a.stat_stride = H;
        a.dq = dq + seq.q_begin * dq_stride + group * R * K, a.dq_stride = dq_stride;
      }
      a.dk = dk + seq.k_begin * dk_stride + group * K, a.dk_stride = dk_stride;
      a.dv = dv + seq.k_begin * dv_stride + group * V, a.dv_stride = dv_stride;
      strips.push_back({attention::strip_of(in, seq, shape, group, attention::lags_of(shape)), a});
    }
  }
  attention::backward<T>(strips, threads);
}

#define LOGLINEAR_FLASH_ATTENTION(T)                                                                             \
  template void flash_attention_forward(std::span<const AttentionSequence>, const AttentionShape&, const T*,     \
                                        std::int64_t, const T*, std::int64_t, const T*, std::int64_t, T*,        \
                                        std::int64_t, T*, int);                                                  \
  template void flash_attention_backward(std::span<const AttentionSequence>, const AttentionShape&, const T*,    \
                                         std::int64_t, const T*, std::int64_t, const T*, std::int64_t, const T*, \
                                         std::int64_t, const T*, const T*, std::int64_t, T*, std::int64_t, T*,   \
                                         std::int64_t, T*, std::int64_t, int);
LOGLINEAR_FLASH_ATTENTION(float)
LOGLINEAR_FLASH_ATTENTION(double)
#undef LOGLINEAR_FLASH_ATTENTION

}  // namespace loglinear
