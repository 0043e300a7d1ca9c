#include "loglinear/l2_norm.hpp"

#include <cmath>

#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

constexpr double kEps = 1e-6;

template <class T>
void check(const char* where, std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x,
           std::int64_t x_stride, const char* name, const T* out, std::int64_t out_stride) {
  check_sizes(where, {rows, heads, width});
  if (width < 1) fail(where, "width is {}, need at least 1", width);
  check_rows(where, "x", rows, heads * width, x, x_stride);
  check_rows(where, name, rows, heads * width, out, out_stride);
}

template <class T>
T inverse_length(std::int64_t width, const T* x) {
  return T(1) / std::sqrt(vec::dot(width, x, x) + static_cast<T>(kEps));
}

}  // namespace

template <class T>
void l2_norm_forward(std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x, std::int64_t x_stride,
                     T scale, T* y, std::int64_t y_stride, int threads) {
  const TimedOperator timed("l2_norm");
  check("l2_norm.forward", rows, heads, width, x, x_stride, "y", y, y_stride);
  for_row_blocks(rows, heads * width, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t h = 0; h < heads; ++h) {
        const T* from = x + n * x_stride + h * width;
        T* to = y + n * y_stride + h * width;
        vec::scale(width, scale * inverse_length(width, from), from, to);
      }
  });
}

template <class T>
void l2_norm_backward(std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x, std::int64_t x_stride,
                      T scale, const T* dy, std::int64_t dy_stride, T* dx, std::int64_t dx_stride, int threads) {
  const TimedOperator timed("l2_norm");
  constexpr const char* where = "l2_norm.backward";
  check(where, rows, heads, width, x, x_stride, "dx", dx, dx_stride);
  check_rows(where, "dy", rows, heads * width, dy, dy_stride);
  for_row_blocks(rows, heads * width, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t h = 0; h < heads; ++h) {
        const T* from = x + n * x_stride + h * width;
        const T* dout = dy + n * dy_stride + h * width;
        T* to = dx + n * dx_stride + h * width;
        const T r = inverse_length(width, from);
        vec::combine(width, scale * r, dout, -scale * r * r * r * vec::dot(width, from, dout), from, to);
      }
  });
}

#define LOGLINEAR_L2_NORM(T)                                                                                           \
  template void l2_norm_forward(std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, T, T*, std::int64_t, \
                                int);                                                                                  \
  template void l2_norm_backward(std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, T, const T*,        \
                                 std::int64_t, T*, std::int64_t, int);
LOGLINEAR_L2_NORM(float)
LOGLINEAR_L2_NORM(double)
#undef LOGLINEAR_L2_NORM

}  // namespace loglinear
