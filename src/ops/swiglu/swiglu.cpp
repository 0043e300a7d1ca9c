#include "loglinear/swiglu.hpp"

#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {

template <class T>
void swiglu_forward(std::int64_t rows, std::int64_t width, const T* gate, std::int64_t gate_stride, const T* up,
                    std::int64_t up_stride, T* out, std::int64_t out_stride, int threads) {
  const TimedOperator timed("swiglu");
  constexpr const char* where = "swiglu.forward";
  check_sizes(where, {rows, width});
  check_rows(where, "gate", rows, width, gate, gate_stride);
  check_rows(where, "up", rows, width, up, up_stride);
  check_rows(where, "out", rows, width, out, out_stride);
  for_row_blocks(rows, width, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      vec::silu_product(width, gate + n * gate_stride, up + n * up_stride, out + n * out_stride);
  });
}

template <class T>
void swiglu_backward(std::int64_t rows, std::int64_t width, const T* gate, std::int64_t gate_stride, const T* up,
                     std::int64_t up_stride, const T* dout, std::int64_t dout_stride, T* dgate,
                     std::int64_t dgate_stride, T* dup, std::int64_t dup_stride, int threads) {
  const TimedOperator timed("swiglu");
  constexpr const char* where = "swiglu.backward";
  check_sizes(where, {rows, width});
  check_rows(where, "gate", rows, width, gate, gate_stride);
  check_rows(where, "up", rows, width, up, up_stride);
  check_rows(where, "dout", rows, width, dout, dout_stride);
  check_rows(where, "dgate", rows, width, dgate, dgate_stride);
  check_rows(where, "dup", rows, width, dup, dup_stride);
  for_row_blocks(rows, width, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      vec::silu_product_backward(width, gate + n * gate_stride, up + n * up_stride, dout + n * dout_stride,
                                 dgate + n * dgate_stride, dup + n * dup_stride);
  });
}

#define LOGLINEAR_SWIGLU(T)                                                                                           \
  template void swiglu_forward(std::int64_t, std::int64_t, const T*, std::int64_t, const T*, std::int64_t, T*,        \
                               std::int64_t, int);                                                                    \
  template void swiglu_backward(std::int64_t, std::int64_t, const T*, std::int64_t, const T*, std::int64_t, const T*, \
                                std::int64_t, T*, std::int64_t, T*, std::int64_t, int);
LOGLINEAR_SWIGLU(float)
LOGLINEAR_SWIGLU(double)
#undef LOGLINEAR_SWIGLU

}  // namespace loglinear
