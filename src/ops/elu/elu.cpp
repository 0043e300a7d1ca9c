#include "loglinear/elu.hpp"

#include <cmath>

#include "base/op_timer.hpp"
#include "base/rows.hpp"

namespace loglinear {

template <class T>
void elu_plus_one_forward(std::int64_t rows, std::int64_t width, const T* x, std::int64_t x_stride, T* y,
                          std::int64_t y_stride, int threads) {
  const TimedOperator timed("elu");
  constexpr const char* where = "elu_plus_one.forward";
  check_sizes(where, {rows, width});
  check_rows(where, "x", rows, width, x, x_stride);
  check_rows(where, "y", rows, width, y, y_stride);
  for_row_blocks(rows, width, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t c = 0; c < width; ++c) {
        const T u = x[n * x_stride + c];
        y[n * y_stride + c] = u > T{0} ? u + T{1} : std::exp(u);
      }
  });
}

template <class T>
void elu_plus_one_backward(std::int64_t rows, std::int64_t width, const T* y, std::int64_t y_stride, const T* dy,
                           std::int64_t dy_stride, T* dx, std::int64_t dx_stride, int threads) {
  const TimedOperator timed("elu");
  constexpr const char* where = "elu_plus_one.backward";
  check_sizes(where, {rows, width});
  check_rows(where, "y", rows, width, y, y_stride);
  check_rows(where, "dy", rows, width, dy, dy_stride);
  check_rows(where, "dx", rows, width, dx, dx_stride);
  for_row_blocks(rows, width, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t c = 0; c < width; ++c) {
        const T slope = y[n * y_stride + c];
        // A NaN is not above 1 and multiplies.
        dx[n * dx_stride + c] = dy[n * dy_stride + c] * (slope > T{1} ? T{1} : slope);
      }
  });
}

#define LOGLINEAR_ELU(T)                                                                                              \
  template void elu_plus_one_forward(std::int64_t, std::int64_t, const T*, std::int64_t, T*, std::int64_t, int);      \
  template void elu_plus_one_backward(std::int64_t, std::int64_t, const T*, std::int64_t, const T*, std::int64_t, T*, \
                                      std::int64_t, int);
LOGLINEAR_ELU(float)
LOGLINEAR_ELU(double)
#undef LOGLINEAR_ELU

}  // namespace loglinear
