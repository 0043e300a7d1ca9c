// The kernels of quasi-linear attention: docs/algorithm.md, section 12.

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

constexpr std::int64_t kSumTile = 64, kReadTile = 32;  // rows

// From row to row of matrices with `heads` heads side by side: a product reads and writes whole vectors, and those of
// the last head still belong to its row.
constexpr std::int64_t heads_stride(std::int64_t heads, std::int64_t width) {
  return row_stride((heads - 1) * width + padded(width));
}

template <class T>
Matrix<T> scratch(std::int64_t rows, std::int64_t stride) {
  return Pool<T>::take(static_cast<std::size_t>(std::max<std::int64_t>(1, rows * stride)));
}

template <class T>
using Vector = hn::Vec<Lanes<T>>;

template <Feature kFeature, class T>
HWY_INLINE Vector<T> phi_of(Vector<T> x) {
  const Lanes<T> d;
  const auto one = hn::Set(d, T(1));
  if constexpr (kFeature == Feature::shifted_elu)
    return hn::IfThenElse(hn::Ge(x, one), x, exp_or_nan(d, hn::Sub(x, one)));
  else
    return hn::Div(x, hn::Add(one, exp_or_nan(d, hn::Neg(x))));
}

// And its derivative, from the same exponential.
template <Feature kFeature, class T>
HWY_INLINE Vector<T> phi_and_slope_of(Vector<T> x, Vector<T>& slope) {
  const Lanes<T> d;
  const auto one = hn::Set(d, T(1));
  if constexpr (kFeature == Feature::shifted_elu) {
    const auto value = phi_of<kFeature, T>(x);
    slope = hn::IfThenElse(hn::Ge(x, one), one, value);
    return value;
  } else {
    // sigmoid(x), and 1 - sigmoid(x) = e sigmoid(x), which takes an e that is finite: beyond the bound phi' is 0 to any
    // precision that matters.
    const auto e = exp_or_nan(d, hn::Min(hn::Neg(x), hn::Set(d, static_cast<T>(sizeof(T) == 4 ? 80 : 700))));
    const auto s = hn::Div(one, hn::Add(one, e));
    slope = hn::Mul(s, hn::MulAdd(x, hn::Mul(e, s), one));
    return hn::Mul(x, s);
  }
}

// y = phi(x) of a row and, unless null, slope = phi'(x). Both have room for whole vectors, beyond the row they mean
// nothing.
template <Feature kFeature, class T>
HWY_INLINE void phi_row(std::int64_t n, const T* x, T* y, T* slope) {
  const Lanes<T> d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t i = 0; i < n; i += lanes) {
    const T* from = x + i;
    if (i + lanes > n) {
      std::copy_n(from, n - i, y + i);
      std::fill(y + n, y + i + lanes, T(0));
      from = y + i;
    }
    const auto at = hn::LoadU(d, from);
    if (!slope) {
      hn::StoreU(phi_of<kFeature, T>(at), d, y + i);
      continue;
    }
    Vector<T> derivative;
    hn::StoreU(phi_and_slope_of<kFeature, T>(at, derivative), d, y + i);
    hn::StoreU(derivative, d, slope + i);
  }
}

template <class T>
void feature_row(Feature feature, std::int64_t n, const T* x, T* y, T* slope = nullptr) {
  feature == Feature::silu ? phi_row<Feature::silu>(n, x, y, slope) : phi_row<Feature::shifted_elu>(n, x, y, slope);
}

// A tile of rows with all their heads to scratch memory, where rows are not a power of two apart: those would fall into
// the same few sets of a cache.
template <class T>
void load(Rows<const T> from, std::int64_t first, std::int64_t count, std::int64_t width, T* to, std::int64_t row) {
  for (std::int64_t r = 0; r < count; ++r) std::copy_n(from[first + r], width, to + r * row);
}

template <class T>
void features(Feature feature, Rows<const T> from, std::int64_t first, std::int64_t count, std::int64_t width, T* to,
              std::int64_t row, T* slopes = nullptr) {
  for (std::int64_t r = 0; r < count; ++r)
    feature_row(feature, width, from[first + r], to + r * row, slopes ? slopes + r * row : nullptr);
}

template <class T>
void add(const Inputs<T>& in, Sum sum, T sign, std::int64_t begin, std::int64_t count, const Matrices<T>& z) {
  const std::int64_t H = in.heads, K = in.K, V = in.V, k_row = heads_stride(H, K), v_row = heads_stride(H, V);
  const Matrix<T> phi_memory = scratch<T>(kSumTile, k_row), values_memory = scratch<T>(kSumTile, v_row);
  T *const phi = phi_memory.get(), *const values = values_memory.get();
  for (std::int64_t first = begin; first < begin + count; first += kSumTile) {
    const std::int64_t rows = std::min(kSumTile, begin + count - first);
    features(in.feature, sum == Sum::query_gradient ? in.q : in.k, first, rows, H * K, phi, k_row);
    load(sum == Sum::query_gradient ? in.dout : in.v, first, rows, H * V, values, v_row);
    for (std::int64_t h = 0; h < H; ++h) {
      const T *const a = phi + h * K, *const b = values + h * V;
      if (sum == Sum::state)
        product<T>(K, V, rows, a, 1, k_row, b, v_row, z.of(h), z.stride, {.alpha = sign, .beta = T(1)});
      else
        product<T>(V, K, rows, b, 1, v_row, a, k_row, z.of(h), z.stride, {.alpha = sign, .beta = T(1)});
    }
  }
}

// Heads in ascending order below: a product may write a vector beyond its columns, where the next head's come.
template <class T>
void read(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const Matrices<T>& z,
          Rows<T> out) {
  const std::int64_t H = in.heads, K = in.K, V = in.V, k_row = heads_stride(H, K), v_row = heads_stride(H, V);
  const Matrix<T> keys_memory = scratch<T>(kReadTile + 1, k_row), out_memory = scratch<T>(kReadTile, v_row);
  T *const q = keys_memory.get(), *const key = q + kReadTile * k_row, *const result = out_memory.get();
  for (std::int64_t first = begin; first < begin + count; first += kReadTile) {
    const std::int64_t rows = std::min(kReadTile, begin + count - first);
    features(in.feature, in.q, first, rows, H * K, q, k_row);
    for (std::int64_t h = 0; h < H; ++h)
      product<T>(rows, V, K, q + h * K, k_row, 1, z.of(h), z.stride, result + h * V, v_row);
    for (std::int64_t r = 0; r < rows; ++r) {
      T* const to = result + r * v_row;
      if (candidates) {
        feature_row(in.feature, H * K, in.k[first + r], key);
        for (std::int64_t h = 0; h < H; ++h)
          vec::add_scaled(V, vec::dot(K, q + r * k_row + h * K, key + h * K), in.v[first + r] + h * V, to + h * V);
      }
      std::copy_n(to, H * V, out[first + r]);
    }
  }
}

template <class T>
void backward(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const Matrices<T>& z,
              const Matrices<T>& w, const Matrices<T>& w_transposed, Rows<T> dq, Rows<T> dk, Rows<T> dv) {
  const std::int64_t H = in.heads, K = in.K, V = in.V, k_row = heads_stride(H, K), v_row = heads_stride(H, V);
  const Matrix<T> keys_memory = scratch<T>(6 * kReadTile, k_row), values_memory = scratch<T>(3 * kReadTile, v_row);
  T *const q = keys_memory.get(), *const k = q + kReadTile * k_row;
  T *const dphi_q = k + kReadTile * k_row, *const dphi_k = dphi_q + kReadTile * k_row;
  T *const q_slopes = dphi_k + kReadTile * k_row, *const k_slopes = q_slopes + kReadTile * k_row;
  T *const v = values_memory.get(), *const dout = v + kReadTile * v_row, *const dvalues = dout + kReadTile * v_row;
  for (std::int64_t first = begin; first < begin + count; first += kReadTile) {
    const std::int64_t rows = std::min(kReadTile, begin + count - first);
    features(in.feature, in.q, first, rows, H * K, q, k_row, q_slopes);
    features(in.feature, in.k, first, rows, H * K, k, k_row, k_slopes);
    load(in.v, first, rows, H * V, v, v_row);
    load(in.dout, first, rows, H * V, dout, v_row);
    for (std::int64_t h = 0; h < H; ++h) {
      const std::int64_t a = h * K, c = h * V;
      product<T>(rows, K, V, dout + c, v_row, 1, z.of(h), z.stride, dphi_q + a, k_row);
      if (!candidates) {
        product<T>(rows, K, V, v + c, v_row, 1, w.of(h), w.stride, dphi_k + a, k_row);
        product<T>(rows, V, K, k + a, k_row, 1, w_transposed.of(h), w_transposed.stride, dvalues + c, v_row);
        continue;
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        const T *const d = dout + r * v_row + c, *const qr = q + r * k_row + a, *const kr = k + r * k_row + a;
        const T dweight = vec::dot(V, d, v + r * v_row + c);
        vec::add_scaled(K, dweight, kr, dphi_q + r * k_row + a);
        vec::scale(K, dweight, qr, dphi_k + r * k_row + a);
        vec::scale(V, vec::dot(K, qr, kr), d, dvalues + r * v_row + c);
      }
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      vec::scaled_product(H * K, T(1), dphi_q + r * k_row, q_slopes + r * k_row, dq[first + r]);
      vec::scaled_product(H * K, T(1), dphi_k + r * k_row, k_slopes + r * k_row, dk[first + r]);
      std::copy_n(dvalues + r * v_row, H * V, dv[first + r]);
    }
  }
}

}  // namespace

// One function for each type and kernel: what Highway exports is no template.
#define LOGLINEAR_QUASI_LINEAR(T, suffix)                                                                         \
  void add_##suffix(const Inputs<T>& in, Sum sum, T sign, std::int64_t begin, std::int64_t count,                 \
                    const Matrices<T>& z) {                                                                       \
    add(in, sum, sign, begin, count, z);                                                                          \
  }                                                                                                               \
  void read_##suffix(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count,                \
                     const Matrices<T>& z, Rows<T> out) {                                                         \
    read(in, candidates, begin, count, z, out);                                                                   \
  }                                                                                                               \
  void backward_##suffix(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count,            \
                         const Matrices<T>& z, const Matrices<T>& w, const Matrices<T>& w_transposed, Rows<T> dq, \
                         Rows<T> dk, Rows<T> dv) {                                                                \
    backward(in, candidates, begin, count, z, w, w_transposed, dq, dk, dv);                                       \
  }                                                                                                               \
  void transpose_##suffix(std::int64_t rows, std::int64_t columns, const T* from, T* to) {                        \
    transpose<T>(rows, columns, from, row_stride(columns), to, row_stride(rows));                                 \
  }
LOGLINEAR_QUASI_LINEAR(float, f32)
LOGLINEAR_QUASI_LINEAR(double, f64)
#undef LOGLINEAR_QUASI_LINEAR

}  // namespace HWY_NAMESPACE
}  // namespace loglinear::quasi_linear
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace loglinear::quasi_linear {

#define LOGLINEAR_QUASI_LINEAR(T, suffix)                                                                             \
  HWY_EXPORT(add_##suffix);                                                                                           \
  HWY_EXPORT(read_##suffix);                                                                                          \
  HWY_EXPORT(backward_##suffix);                                                                                      \
  HWY_EXPORT(transpose_##suffix);                                                                                     \
  template <>                                                                                                         \
  void add_rows(const Inputs<T>& in, Sum sum, T sign, std::int64_t begin, std::int64_t count, const Matrices<T>& z) { \
    HWY_DYNAMIC_DISPATCH(add_##suffix)(in, sum, sign, begin, count, z);                                               \
  }                                                                                                                   \
  template <>                                                                                                         \
  void read_rows(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const Matrices<T>& z,  \
                 Rows<T> out) {                                                                                       \
    HWY_DYNAMIC_DISPATCH(read_##suffix)(in, candidates, begin, count, z, out);                                        \
  }                                                                                                                   \
  template <>                                                                                                         \
  void backward_rows(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count,                    \
                     const Matrices<T>& z, const Matrices<T>& w, const Matrices<T>& w_transposed, Rows<T> dq,         \
                     Rows<T> dk, Rows<T> dv) {                                                                        \
    HWY_DYNAMIC_DISPATCH(backward_##suffix)(in, candidates, begin, count, z, w, w_transposed, dq, dk, dv);            \
  }                                                                                                                   \
  template <>                                                                                                         \
  void transpose_matrix(std::int64_t rows, std::int64_t columns, const T* from, T* to) {                              \
    HWY_DYNAMIC_DISPATCH(transpose_##suffix)(rows, columns, from, to);                                                \
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
