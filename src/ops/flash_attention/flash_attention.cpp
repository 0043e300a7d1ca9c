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
  const auto in = attention::checked_inputs(where, sequences, shape, false, q, q_stride, k, k_stride, v, v_stride,
                                            "out", static_cast<const T*>(out), out_stride);
  const std::int64_t H = shape.heads, G = shape.kv_heads;
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
  const auto in = attention::checked_inputs(where, sequences, shape, true, q, q_stride, k, k_stride, v, v_stride, "out",
                                            out, out_stride);
  const std::int64_t H = shape.heads, q_rows = attention::extent(sequences).begin;
  check_rows(where, "log_sums", q_rows, H, log_sums, H);
  check_rows(where, "dout", q_rows, H * shape.value_width, dout, dout_stride);
  attention::check_gradients<T>(where, sequences, shape, dq, dq_stride, dk, dk_stride, dv, dv_stride);

  const attention::Adjoint<T> all{out, dout, log_sums, out_stride, dout_stride, H,
                                  dq,  dk,   dv,       dq_stride,  dk_stride,   dv_stride};
  std::vector<attention::StripAdjoint<T>> strips;
  for (const AttentionSequence& seq : sequences)
    for (std::int64_t group = 0; group < shape.kv_heads && seq.k_count > 0; ++group) {
      const auto strip = attention::strip_of(in, seq, shape, group, attention::lags_of(shape));
      strips.push_back({strip, attention::adjoint_of(all, strip, group)});
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
