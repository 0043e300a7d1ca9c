#include "loglinear/rms_norm.hpp"

#include <cmath>
#include <vector>

#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

template <class T>
void check(const char* where, NormGate gate, std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x,
           std::int64_t x_stride, const T* z, std::int64_t z_stride, const T* weight, double eps) {
  check_sizes(where, {rows, heads, width});
  if (width < 1) fail(where, "width is {}, need at least 1", width);
  if (!(eps > 0)) fail(where, "eps is {}, need a positive number", eps);
  check_rows(where, "x", rows, heads * width, x, x_stride);
  if (gate != NormGate::none) check_rows(where, "z", rows, heads * width, z, z_stride);
  if (rows > 0 && heads > 0) check_array(where, "weight", width, weight);
}

template <class T>
T inverse_rms(std::int64_t width, const T* u, double eps) {
  return T(1) / std::sqrt(vec::dot(width, u, u) / static_cast<T>(width) + static_cast<T>(eps));
}

// The gradient of u -> u * r(u) * weight with r = inverse_rms, from s = dy * weight (overwritten with the result), and
// what it adds to dweight.
template <class T>
void norm_backward(std::int64_t width, const T* u, T r, const T* dy, const T* weight, T* s, T* dweight) {
  vec::add_product(width, r, dy, u, dweight);
  vec::scaled_product(width, T(1), dy, weight, s);
  vec::combine(width, r, s, -r * r * r * vec::dot(width, s, u) / static_cast<T>(width), u, s);
}

}  // namespace

template <class T>
void rms_norm_forward(NormGate gate, std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x,
                      std::int64_t x_stride, const T* z, std::int64_t z_stride, const T* weight, double eps, T* y,
                      std::int64_t y_stride, int threads) {
  const TimedOperator timed("rms_norm");
  constexpr const char* where = "rms_norm.forward";
  check(where, gate, rows, heads, width, x, x_stride, z, z_stride, weight, eps);
  check_rows(where, "y", rows, heads * width, y, y_stride);
  for_row_blocks(rows, heads * width, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> row(static_cast<std::size_t>(width));
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t h = 0; h < heads; ++h) {
        const T* u = x + n * x_stride + h * width;
        const T* gates = gate == NormGate::none ? nullptr : z + n * z_stride + h * width;
        T* out = y + n * y_stride + h * width;
        if (gate == NormGate::before) {
          vec::silu_product(width, gates, u, row.data());
          u = row.data();
        }
        vec::scaled_product(width, inverse_rms(width, u, eps), u, weight, out);
        if (gate == NormGate::after) vec::silu_product(width, gates, out, out);
      }
  });
}

template <class T>
void rms_norm_backward(NormGate gate, std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x,
                       std::int64_t x_stride, const T* z, std::int64_t z_stride, const T* weight, double eps,
                       const T* dy, std::int64_t dy_stride, T dx_beta, T* dx, std::int64_t dx_stride, T* dz,
                       std::int64_t dz_stride, T* dweight, int threads) {
  const TimedOperator timed("rms_norm");
  constexpr const char* where = "rms_norm.backward";
  check(where, gate, rows, heads, width, x, x_stride, z, z_stride, weight, eps);
  check_rows(where, "dy", rows, heads * width, dy, dy_stride);
  check_rows(where, "dx", rows, heads * width, dx, dx_stride);
  if (gate != NormGate::none) check_rows(where, "dz", rows, heads * width, dz, dz_stride);
  if (rows > 0 && heads > 0) check_array(where, "dweight", width, dweight);
  if (!(dx_beta == 0 || dx_beta == 1)) fail(where, "dx_beta is {}, need 0 or 1", dx_beta);
  add_row_sums(rows, width, dweight, threads, [&](std::int64_t begin, std::int64_t end, T* part) {
    std::vector<T> scratch(static_cast<std::size_t>(3 * width));
    T *gated = scratch.data(), *ds = gated + width, *du = ds + width;
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t h = 0; h < heads; ++h) {
        const T* u = x + n * x_stride + h * width;
        const T* dout = dy + n * dy_stride + h * width;
        const T* gates = gate == NormGate::none ? nullptr : z + n * z_stride + h * width;
        T* dgates = gate == NormGate::none ? nullptr : dz + n * dz_stride + h * width;
        const T* s = u;  // what is normalised
        if (gate == NormGate::before) {
          vec::silu_product(width, gates, u, gated);
          s = gated;
        }
        const T r = inverse_rms(width, s, eps);
        if (gate == NormGate::after) {
          // y = silu(z) * m with m = norm(x) * weight: dz is complete, and dm goes on.
          vec::scaled_product(width, r, u, weight, gated);
          vec::silu_product_backward(width, gates, gated, dout, dgates, ds);
          dout = ds;
        }
        norm_backward(width, s, r, dout, weight, du, part);
        if (gate == NormGate::before) vec::silu_product_backward(width, gates, u, du, dgates, du);
        T* to = dx + n * dx_stride + h * width;
        if (dx_beta == 0)
          std::copy_n(du, width, to);
        else
          vec::add_scaled(width, T(1), du, to);
      }
  });
}

#define LOGLINEAR_RMS_NORM(T)                                                                                          \
  template void rms_norm_forward(NormGate, std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, const T*, \
                                 std::int64_t, const T*, double, T*, std::int64_t, int);                               \
  template void rms_norm_backward(NormGate, std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t,          \
                                  const T*, std::int64_t, const T*, double, const T*, std::int64_t, T, T*,             \
                                  std::int64_t, T*, std::int64_t, T*, int);
LOGLINEAR_RMS_NORM(float)
LOGLINEAR_RMS_NORM(double)
#undef LOGLINEAR_RMS_NORM

}  // namespace loglinear
