#include "loglinear/bias.hpp"

#include "base/op_timer.hpp"
#include "base/rows.hpp"

namespace loglinear {

template <class T>
void bias_forward(std::int64_t rows, std::int64_t width, const T* bias, T* y, std::int64_t y_stride, int threads) {
  const TimedOperator timed("bias");
  constexpr const char* where = "bias.forward";
  check_sizes(where, {rows, width});
  check_rows(where, "y", rows, width, y, y_stride);
  if (rows > 0) check_array(where, "bias", width, bias);
  for_row_blocks(rows, width, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t c = 0; c < width; ++c) y[n * y_stride + c] += bias[c];
  });
}

template <class T>
void bias_backward(std::int64_t rows, std::int64_t width, const T* dy, std::int64_t dy_stride, T* dbias, int threads) {
  const TimedOperator timed("bias");
  constexpr const char* where = "bias.backward";
  check_sizes(where, {rows, width});
  check_rows(where, "dy", rows, width, dy, dy_stride);
  if (rows > 0) check_array(where, "dbias", width, dbias);
  add_row_sums(rows, width, dbias, threads, [&](std::int64_t begin, std::int64_t end, T* part) {
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t c = 0; c < width; ++c) part[c] += dy[n * dy_stride + c];
  });
}

#define LOGLINEAR_BIAS(T)                                                                  \
  template void bias_forward(std::int64_t, std::int64_t, const T*, T*, std::int64_t, int); \
  template void bias_backward(std::int64_t, std::int64_t, const T*, std::int64_t, T*, int);
LOGLINEAR_BIAS(float)
LOGLINEAR_BIAS(double)
#undef LOGLINEAR_BIAS

}  // namespace loglinear
