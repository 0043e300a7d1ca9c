// The kernels of quasi-linear attention: docs/algorithm.md, section 9.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/quasi_linear/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "base/exp-inl.h"
#include "base/matrix-inl.h"
#include "base/pool.hpp"
#include "base/vector_math.hpp"
#include "ops/quasi_linear/cpu.hpp"

HWY_BEFORE_NAMESPACE();
namespace loglinear::quasi_linear {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using loglinear::HWY_NAMESPACE::exp_or_nan;
using loglinear::HWY_NAMESPACE::Lanes;
using loglinear::HWY_NAMESPACE::product;
using loglinear::HWY_NAMESPACE::transpose;

constexpr std::int64_t kTile = 64;  // rows

template <class T>
Matrix<T> scratch(std::int64_t rows, std::int64_t width) {
  return Pool<T>::take(static_cast<std::size_t>(std::max<std::int64_t>(1, rows * row_stride(width))));
}

// y = phi(x) of a row; y has room for whole vectors and columns beyond the row are not read by anybody.
template <class T>
void feature_row(Feature feature, std::int64_t n, const T* x, T* y) {
  if (feature == Feature::silu) return vec::silu(n, x, y);
  const Lanes<T> d;
  const auto one = hn::Set(d, T(1));
  std::copy_n(x, n, y);
  std::fill(y + n, y + padded(n), T(0));
  for (std::int64_t i = 0; i < n; i += static_cast<std::int64_t>(hn::Lanes(d))) {
    const auto at = hn::LoadU(d, y + i);
    hn::StoreU(hn::IfThenElse(hn::Ge(at, one), at, exp_or_nan(d, hn::Sub(at, one))), d, y + i);
  }
}

// dx = dy * phi'(x); of the shifted ELU phi is its own derivative below 1.
template <class T>
void feature_backward(Feature feature, std::int64_t n, const T* x, const T* phi, const T* dy, T* dx) {
  if (feature == Feature::silu) return vec::silu_backward(n, x, dy, dx);
  for (std::int64_t i = 0; i < n; ++i) dx[i] = x[i] >= T(1) ? dy[i] : dy[i] * phi[i];
}

// A tile of rows as the second operand of a product: itself where its rows are whole vectors, else a copy.
template <class T>
struct Operand {
  const T* data;
  std::int64_t stride;

  Operand(Rows<const T> from, std::int64_t first, std::int64_t count, std::int64_t width, T* copy)
      : data(from[first]), stride(from.stride) {
    if (width % kPad == 0) return;
    for (std::int64_t r = 0; r < count; ++r) std::copy_n(from[first + r], width, copy + r * row_stride(width));
    data = copy, stride = row_stride(width);
  }
};

// A tile of rows that a product writes: in place where rows are whole vectors, else by a copy.
template <class T>
struct Result {
  Rows<T> rows;
  std::int64_t first, count, width;
  T* data;
  std::int64_t stride;

  Result(Rows<T> to, std::int64_t first_row, std::int64_t rows_count, std::int64_t columns, T* copy)
      : rows(to), first(first_row), count(rows_count), width(columns), data(to[first_row]), stride(to.stride) {
    if (width % kPad != 0) data = copy, stride = row_stride(width);
  }
  void store() const {
    if (width % kPad != 0)
      for (std::int64_t r = 0; r < count; ++r) std::copy_n(data + r * stride, width, rows[first + r]);
  }
};

template <class T>
void features(Feature feature, Rows<const T> from, std::int64_t first, std::int64_t count, std::int64_t width, T* to) {
  for (std::int64_t r = 0; r < count; ++r) feature_row(feature, width, from[first + r], to + r * row_stride(width));
}

template <class T>
void add(const Inputs<T>& in, Sum sum, T sign, std::int64_t z_stride, std::int64_t begin, std::int64_t count, T* z) {
  const std::int64_t K = in.K, V = in.V;
  const Matrix<T> phi_memory = scratch<T>(kTile, K), values_memory = scratch<T>(kTile, V);
  T *const phi = phi_memory.get(), *const copy = values_memory.get();
  for (std::int64_t first = begin; first < begin + count; first += kTile) {
    const std::int64_t rows = std::min(kTile, begin + count - first);
    features(in.feature, sum == Sum::query_gradient ? in.q : in.k, first, rows, K, phi);
    const Rows<const T> other = sum == Sum::query_gradient ? in.dout : in.v;
    if (sum == Sum::state) {
      const Operand<T> b(other, first, rows, V, copy);
      product<T>(K, V, rows, phi, 1, row_stride(K), b.data, b.stride, z, z_stride, {.alpha = sign, .beta = T(1)});
    } else {
      product<T>(V, K, rows, other[first], 1, other.stride, phi, row_stride(K), z, z_stride,
                 {.alpha = sign, .beta = T(1)});
    }
  }
}

template <class T>
void read(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const T* z, Rows<T> out) {
  const std::int64_t K = in.K, V = in.V;
  const Matrix<T> q_memory = scratch<T>(kTile, K), key_memory = scratch<T>(1, K), out_memory = scratch<T>(kTile, V);
  T *const q = q_memory.get(), *const key = key_memory.get();
  for (std::int64_t first = begin; first < begin + count; first += kTile) {
    const std::int64_t rows = std::min(kTile, begin + count - first);
    features(in.feature, in.q, first, rows, K, q);
    const Result<T> to(out, first, rows, V, out_memory.get());
    product<T>(rows, V, K, q, row_stride(K), 1, z, row_stride(V), to.data, to.stride);
    for (std::int64_t r = 0; candidates && r < rows; ++r) {
      feature_row(in.feature, K, in.k[first + r], key);
      vec::add_scaled(V, vec::dot(K, q + r * row_stride(K), key), in.v[first + r], to.data + r * to.stride);
    }
    to.store();
  }
}

template <class T>
void backward(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const T* z, const T* w,
              const T* w_transposed, Rows<T> dq, Rows<T> dk, Rows<T> dv) {
  const std::int64_t K = in.K, V = in.V, k_row = row_stride(K), v_row = row_stride(V);
  const Matrix<T> keys_memory = scratch<T>(4 * kTile, K), values_memory = scratch<T>(kTile, V);
  T *const q = keys_memory.get(), *const k = q + kTile * k_row;
  T *const dphi_q = k + kTile * k_row, *const dphi_k = dphi_q + kTile * k_row;
  for (std::int64_t first = begin; first < begin + count; first += kTile) {
    const std::int64_t rows = std::min(kTile, begin + count - first);
    features(in.feature, in.q, first, rows, K, q);
    features(in.feature, in.k, first, rows, K, k);
    product<T>(rows, K, V, in.dout[first], in.dout.stride, 1, z, k_row, dphi_q, k_row);
    if (candidates) {
      for (std::int64_t r = 0; r < rows; ++r) {
        const T *const d = in.dout[first + r], *const qr = q + r * k_row, *const kr = k + r * k_row;
        const T dweight = vec::dot(V, d, in.v[first + r]);
        vec::add_scaled(K, dweight, kr, dphi_q + r * k_row);
        vec::scale(K, dweight, qr, dphi_k + r * k_row);
        vec::scale(V, vec::dot(K, qr, kr), d, dv[first + r]);
      }
    } else {
      product<T>(rows, K, V, in.v[first], in.v.stride, 1, w, k_row, dphi_k, k_row);
      const Result<T> to(dv, first, rows, V, values_memory.get());
      product<T>(rows, V, K, k, k_row, 1, w_transposed, v_row, to.data, to.stride);
      to.store();
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      feature_backward(in.feature, K, in.q[first + r], q + r * k_row, dphi_q + r * k_row, dq[first + r]);
      feature_backward(in.feature, K, in.k[first + r], k + r * k_row, dphi_k + r * k_row, dk[first + r]);
    }
  }
}

}  // namespace

// One function for each type and kernel: what Highway exports is no template.
#define LOGLINEAR_QUASI_LINEAR(T, suffix)                                                                          \
  void add_##suffix(const Inputs<T>& in, Sum sum, T sign, std::int64_t z_stride, std::int64_t begin,               \
                    std::int64_t count, T* z) {                                                                    \
    add(in, sum, sign, z_stride, begin, count, z);                                                                 \
  }                                                                                                                \
  void read_##suffix(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const T* z,     \
                     Rows<T> out) {                                                                                \
    read(in, candidates, begin, count, z, out);                                                                    \
  }                                                                                                                \
  void backward_##suffix(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const T* z, \
                         const T* w, const T* w_transposed, Rows<T> dq, Rows<T> dk, Rows<T> dv) {                  \
    backward(in, candidates, begin, count, z, w, w_transposed, dq, dk, dv);                                        \
  }                                                                                                                \
  void transpose_##suffix(std::int64_t rows, std::int64_t columns, const T* from, T* to) {                         \
    transpose<T>(rows, columns, from, row_stride(columns), to, row_stride(rows));                                  \
  }
LOGLINEAR_QUASI_LINEAR(float, f32)
LOGLINEAR_QUASI_LINEAR(double, f64)
#undef LOGLINEAR_QUASI_LINEAR

}  // namespace HWY_NAMESPACE
}  // namespace loglinear::quasi_linear
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace loglinear::quasi_linear {

#define LOGLINEAR_QUASI_LINEAR(T, suffix)                                                                            \
  HWY_EXPORT(add_##suffix);                                                                                          \
  HWY_EXPORT(read_##suffix);                                                                                         \
  HWY_EXPORT(backward_##suffix);                                                                                     \
  HWY_EXPORT(transpose_##suffix);                                                                                    \
  template <>                                                                                                        \
  void add_rows(const Inputs<T>& in, Sum sum, T sign, std::int64_t z_stride, std::int64_t begin, std::int64_t count, \
                T* z) {                                                                                              \
    HWY_DYNAMIC_DISPATCH(add_##suffix)(in, sum, sign, z_stride, begin, count, z);                                    \
  }                                                                                                                  \
  template <>                                                                                                        \
  void read_rows(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const T* z,           \
                 Rows<T> out) {                                                                                      \
    HWY_DYNAMIC_DISPATCH(read_##suffix)(in, candidates, begin, count, z, out);                                       \
  }                                                                                                                  \
  template <>                                                                                                        \
  void backward_rows(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const T* z,       \
                     const T* w, const T* w_transposed, Rows<T> dq, Rows<T> dk, Rows<T> dv) {                        \
    HWY_DYNAMIC_DISPATCH(backward_##suffix)(in, candidates, begin, count, z, w, w_transposed, dq, dk, dv);           \
  }                                                                                                                  \
  template <>                                                                                                        \
  void transpose_matrix(std::int64_t rows, std::int64_t columns, const T* from, T* to) {                             \
    HWY_DYNAMIC_DISPATCH(transpose_##suffix)(rows, columns, from, to);                                               \
  }
LOGLINEAR_QUASI_LINEAR(float, f32)
LOGLINEAR_QUASI_LINEAR(double, f64)
#undef LOGLINEAR_QUASI_LINEAR

void trim_scratch() {
  constexpr std::size_t kKeepBytes = std::size_t{16} << 20;
  Pool<float>::trim(kKeepBytes);
  Pool<double>::trim(kKeepBytes);
}

}  // namespace loglinear::quasi_linear
#endif
