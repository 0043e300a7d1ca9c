#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/vector_math.cpp"
#include <hwy/foreach_target.h>  // includes this file once more for every instruction set
#include <hwy/highway.h>

#include <cstring>
#include <limits>

#include "base/cpu_features.hpp"
#include "base/exp-inl.h"
#include "base/vector_math.hpp"

#ifndef LOGLINEAR_VECTOR_MATH_TABLE
#define LOGLINEAR_VECTOR_MATH_TABLE
namespace loglinear::vec {

// The functions of one instruction set.
template <class T>
struct Table {
  void (*sigmoid)(std::int64_t, const T*, T*);
  void (*softplus)(std::int64_t, const T*, T*);
  void (*softplus_backward)(std::int64_t, const T*, const T*, T*);
  void (*silu)(std::int64_t, const T*, T*);
  void (*silu_backward)(std::int64_t, const T*, const T*, T*);
  void (*silu_product)(std::int64_t, const T*, const T*, T*);
  void (*silu_product_backward)(std::int64_t, const T*, const T*, const T*, T*, T*);
  T (*max)(std::int64_t, const T*);
  T (*exp_sum)(std::int64_t, const T*, T, T*);
  T (*dot)(std::int64_t, const T*, const T*);
  void (*add_scaled)(std::int64_t, T, const T*, T*);
  void (*scale)(std::int64_t, T, const T*, T*);
  void (*combine)(std::int64_t, T, const T*, T, const T*, T*);
  void (*add_product)(std::int64_t, T, const T*, const T*, T*);
  void (*add_products)(std::int64_t, std::int64_t, const T* const*, const T* const*, T*);
  void (*scaled_product)(std::int64_t, T, const T*, const T*, T*);
  void (*adamw)(std::int64_t, const AdamW<T>&, const T*, T*, T*, T*);
  void (*add_tile_product)(std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, std::int64_t, const T*,
                           std::int64_t, T*, std::int64_t);
};

}  // namespace loglinear::vec
#endif

HWY_BEFORE_NAMESPACE();
namespace loglinear::vec::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using loglinear::HWY_NAMESPACE::exp_or_nan;

// The last n < Lanes(d) elements, the other lanes filled with `fill`: nothing beyond the array is touched.
template <class D, class T>
HWY_ATTR hn::Vec<D> load_tail(D d, const T* p, std::size_t n, T fill = 0) {
  HWY_ALIGN T lanes[hn::MaxLanes(d)];
  for (std::size_t i = n; i < hn::Lanes(d); ++i) lanes[i] = fill;
  std::memcpy(lanes, p, n * sizeof(T));
  return hn::Load(d, lanes);
}

template <class D, class T>
HWY_ATTR void store_tail(hn::Vec<D> v, D d, T* p, std::size_t n) {
  HWY_ALIGN T lanes[hn::MaxLanes(d)];
  hn::Store(v, d, lanes);
  std::memcpy(p, lanes, n * sizeof(T));
}

// y = f(in...) element by element.
template <class F, class T, class... In>
HWY_ATTR void map(const F& f, std::int64_t count, T* y, const In*... in) {
  const hn::ScalableTag<T> d;
  const std::size_t n = static_cast<std::size_t>(count), lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(f(d, hn::LoadU(d, in + i)...), d, y + i);
  if (i < n) store_tail(f(d, load_tail(d, in + i, n - i)...), d, y + i, n - i);
}

template <class D>
HWY_ATTR hn::TFromD<D> sum_lanes(D d, hn::Vec<D> v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

// sigmoid(x), and sigmoid(-x) without cancellation, from the exponential of -|x| alone.
template <class D, class V = hn::Vec<D>>
HWY_ATTR HWY_INLINE V sigmoid_both(D d, V x, V& complement) {
  const V e = exp_or_nan(d, hn::Neg(hn::Abs(x)));
  const V one = hn::Set(d, hn::TFromD<D>(1));
  const V large = hn::Div(one, hn::Add(one, e)), small = hn::Mul(e, large);
  const auto negative = hn::Lt(x, hn::Zero(d));
  complement = hn::IfThenElse(negative, large, small);
  return hn::IfThenElse(negative, small, large);
}

template <class D, class V = hn::Vec<D>>
HWY_ATTR HWY_INLINE V silu_slope(D d, V x, V& value) {
  V complement;
  const V s = sigmoid_both(d, x, complement);
  value = hn::Mul(x, s);
  return hn::MulAdd(value, complement, s);  // s + x s (1 - s)
}

struct Sigmoid {
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V x) const {
    V complement;
    return sigmoid_both(d, x, complement);
  }
};

struct Softplus {
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V x) const {
    const V e = exp_or_nan(d, hn::Neg(hn::Abs(x)));
    const V y = hn::Add(hn::Max(x, hn::Zero(d)), hn::Log1p(d, e));
    // True for y only when x is a number up to 20; NaN passes through.
    return hn::IfThenElse(hn::Le(x, hn::Set(d, hn::TFromD<D>(20))), y, x);
  }
};

struct SoftplusBackward {
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V x, V dy) const {
    V complement;
    const V s = sigmoid_both(d, x, complement);
    return hn::Mul(dy, hn::IfThenElse(hn::Gt(x, hn::Set(d, hn::TFromD<D>(20))), hn::Set(d, hn::TFromD<D>(1)), s));
  }
};

struct Silu {
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V x) const {
    V complement;
    return hn::Mul(x, sigmoid_both(d, x, complement));
  }
};

struct SiluBackward {
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V x, V dy) const {
    V value;
    return hn::Mul(dy, silu_slope(d, x, value));
  }
};

struct SiluProduct {
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V x, V m) const {
    V complement;
    return hn::Mul(hn::Mul(x, sigmoid_both(d, x, complement)), m);
  }
};

template <class T>
struct Scale {
  T s;
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V x) const {
    return hn::Mul(hn::Set(d, s), x);
  }
};

template <class T>
struct Combine {
  T s, r;
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V a, V b) const {
    return hn::MulAdd(hn::Set(d, s), a, hn::Mul(hn::Set(d, r), b));
  }
};

template <class T>
struct AddProduct {
  T s;
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V a, V b, V y) const {
    return hn::MulAdd(hn::Mul(hn::Set(d, s), a), b, y);
  }
};

template <class T>
struct AddScaled {
  T s;
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V x, V y) const {
    return hn::MulAdd(hn::Set(d, s), x, y);
  }
};

template <class T>
struct ScaledProduct {
  T s;
  template <class D, class V>
  HWY_ATTR HWY_INLINE V operator()(D d, V a, V b) const {
    return hn::Mul(hn::Mul(hn::Set(d, s), a), b);
  }
};

template <class T>
HWY_ATTR void sigmoid(std::int64_t n, const T* x, T* y) {
  map(Sigmoid(), n, y, x);
}

template <class T>
HWY_ATTR void softplus(std::int64_t n, const T* x, T* y) {
  map(Softplus(), n, y, x);
}

template <class T>
HWY_ATTR void softplus_backward(std::int64_t n, const T* x, const T* dy, T* dx) {
  map(SoftplusBackward(), n, dx, x, dy);
}

template <class T>
HWY_ATTR void silu(std::int64_t n, const T* x, T* y) {
  map(Silu(), n, y, x);
}

template <class T>
HWY_ATTR void silu_backward(std::int64_t n, const T* x, const T* dy, T* dx) {
  map(SiluBackward(), n, dx, x, dy);
}

template <class T>
HWY_ATTR void silu_product(std::int64_t n, const T* x, const T* m, T* y) {
  map(SiluProduct(), n, y, x, m);
}

template <class T>
HWY_ATTR void silu_product_backward(std::int64_t count, const T* x, const T* m, const T* dy, T* dx, T* dm) {
  const hn::ScalableTag<T> d;
  const std::size_t n = static_cast<std::size_t>(count), lanes = hn::Lanes(d);
  for (std::size_t i = 0; i < n; i += lanes) {
    const bool full = i + lanes <= n;
    const auto vx = full ? hn::LoadU(d, x + i) : load_tail(d, x + i, n - i);
    const auto vm = full ? hn::LoadU(d, m + i) : load_tail(d, m + i, n - i);
    const auto vdy = full ? hn::LoadU(d, dy + i) : load_tail(d, dy + i, n - i);
    hn::Vec<decltype(d)> value;
    const auto vdx = hn::Mul(hn::Mul(vdy, vm), silu_slope(d, vx, value));
    const auto vdm = hn::Mul(vdy, value);
    if (full) {
      hn::StoreU(vdx, d, dx + i);
      hn::StoreU(vdm, d, dm + i);
    } else {
      store_tail(vdx, d, dx + i, n - i);
      store_tail(vdm, d, dm + i, n - i);
    }
  }
}

template <class T>
HWY_ATTR T max(std::int64_t count, const T* x) {
  const hn::ScalableTag<T> d;
  const std::size_t n = static_cast<std::size_t>(count), lanes = hn::Lanes(d);
  const T lowest = -std::numeric_limits<T>::infinity();
  auto m = hn::Set(d, lowest);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) m = hn::Max(m, hn::LoadU(d, x + i));
  if (i < n) m = hn::Max(m, load_tail(d, x + i, n - i, lowest));
  return hn::GetLane(hn::MaxOfLanes(d, m));
}

template <class T>
HWY_ATTR T exp_sum(std::int64_t count, const T* x, T shift, T* y) {
  const hn::ScalableTag<T> d;
  const std::size_t n = static_cast<std::size_t>(count), lanes = hn::Lanes(d);
  const auto vshift = hn::Set(d, shift);
  auto sum = hn::Zero(d);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto e = exp_or_nan(d, hn::Sub(hn::LoadU(d, x + i), vshift));
    if (y) hn::StoreU(e, d, y + i);
    sum = hn::Add(sum, e);
  }
  if (i < n) {
    const T lowest = -std::numeric_limits<T>::infinity();
    const auto valid = hn::FirstN(d, n - i);
    const auto e = hn::IfThenElseZero(valid, exp_or_nan(d, hn::Sub(load_tail(d, x + i, n - i, lowest), vshift)));
    if (y) store_tail(e, d, y + i, n - i);
    sum = hn::Add(sum, e);
  }
  return sum_lanes(d, sum);
}

template <class T>
HWY_ATTR T dot(std::int64_t count, const T* a, const T* b) {
  const hn::ScalableTag<T> d;
  const std::size_t n = static_cast<std::size_t>(count), lanes = hn::Lanes(d);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  std::size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    s0 = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), s0);
    s1 = hn::MulAdd(hn::LoadU(d, a + i + lanes), hn::LoadU(d, b + i + lanes), s1);
    s2 = hn::MulAdd(hn::LoadU(d, a + i + 2 * lanes), hn::LoadU(d, b + i + 2 * lanes), s2);
    s3 = hn::MulAdd(hn::LoadU(d, a + i + 3 * lanes), hn::LoadU(d, b + i + 3 * lanes), s3);
  }
  for (; i + lanes <= n; i += lanes) s0 = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), s0);
  if (i < n) s1 = hn::MulAdd(load_tail(d, a + i, n - i), load_tail(d, b + i, n - i), s1);
  return sum_lanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
}

template <class T>
HWY_ATTR void add_scaled(std::int64_t n, T s, const T* x, T* y) {
  map(AddScaled<T>{s}, n, y, x, static_cast<const T*>(y));
}

template <class T>
HWY_ATTR void scale(std::int64_t n, T s, const T* x, T* y) {
  map(Scale<T>{s}, n, y, x);
}

template <class T>
HWY_ATTR void combine(std::int64_t n, T s, const T* a, T r, const T* b, T* y) {
  map(Combine<T>{s, r}, n, y, a, b);
}

template <class T>
HWY_ATTR void add_product(std::int64_t n, T s, const T* a, const T* b, T* y) {
  map(AddProduct<T>{s}, n, y, a, b, static_cast<const T*>(y));
}

template <class T>
HWY_ATTR void add_products(std::int64_t length, std::int64_t count, const T* const* a, const T* const* b, T* y) {
  const hn::ScalableTag<T> d;
  const std::size_t n = static_cast<std::size_t>(length), lanes = hn::Lanes(d);
  for (std::size_t i = 0; i < n; i += lanes) {
    const bool full = i + lanes <= n;
    auto sum = full ? hn::LoadU(d, y + i) : load_tail(d, y + i, n - i);
    for (std::int64_t j = 0; j < count; ++j) {
      if (!b[j]) continue;
      const auto va = full ? hn::LoadU(d, a[j] + i) : load_tail(d, a[j] + i, n - i);
      const auto vb = full ? hn::LoadU(d, b[j] + i) : load_tail(d, b[j] + i, n - i);
      sum = hn::MulAdd(va, vb, sum);
    }
    if (full)
      hn::StoreU(sum, d, y + i);
    else
      store_tail(sum, d, y + i, n - i);
  }
}

template <class T>
HWY_ATTR void scaled_product(std::int64_t n, T s, const T* a, const T* b, T* y) {
  map(ScaledProduct<T>{s}, n, y, a, b);
}

template <class T>
HWY_ATTR void adamw(std::int64_t count, const AdamW<T>& rates, const T* grad, T* value, T* m, T* v) {
  const hn::ScalableTag<T> d;
  const std::size_t n = static_cast<std::size_t>(count), lanes = hn::Lanes(d);
  const auto scale = hn::Set(d, rates.grad_scale), beta1 = hn::Set(d, rates.beta1), beta2 = hn::Set(d, rates.beta2);
  const auto rest1 = hn::Set(d, rates.one_minus_beta1), rest2 = hn::Set(d, rates.one_minus_beta2);
  const auto keep = hn::Set(d, rates.keep), rate = hn::Set(d, rates.rate), eps = hn::Set(d, rates.eps);
  const auto correction = hn::Set(d, rates.v_correction);
  for (std::size_t i = 0; i < n; i += lanes) {
    const bool full = i + lanes <= n;
    const auto g = hn::Mul(scale, full ? hn::LoadU(d, grad + i) : load_tail(d, grad + i, n - i));
    auto value_i = full ? hn::LoadU(d, value + i) : load_tail(d, value + i, n - i);
    auto m_i = full ? hn::LoadU(d, m + i) : load_tail(d, m + i, n - i);
    auto v_i = full ? hn::LoadU(d, v + i) : load_tail(d, v + i, n - i);
    m_i = hn::MulAdd(beta1, m_i, hn::Mul(rest1, g));
    v_i = hn::MulAdd(beta2, v_i, hn::Mul(rest2, hn::Mul(g, g)));
    const auto step = hn::Div(hn::Mul(rate, m_i), hn::Add(hn::Sqrt(hn::Mul(v_i, correction)), eps));
    value_i = hn::Sub(hn::Mul(keep, value_i), step);
    if (full) {
      hn::StoreU(value_i, d, value + i);
      hn::StoreU(m_i, d, m + i);
      hn::StoreU(v_i, d, v + i);
    } else {
      store_tail(value_i, d, value + i, n - i);
      store_tail(m_i, d, m + i, n - i);
      store_tail(v_i, d, v + i, n - i);
    }
  }
}

// R rows and C vectors of c kept in registers over the whole of K.
template <int R, int C, class T>
HWY_ATTR void tile_block(std::int64_t K, const T* a, std::int64_t a_row, std::int64_t a_column, const T* b,
                         std::int64_t ldb, T* c, std::int64_t ldc) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  V sum[R][C];
  HWY_UNROLL(8) for (int r = 0; r < R; ++r) {
    HWY_UNROLL(8) for (int j = 0; j < C; ++j) sum[r][j] = hn::LoadU(d, c + r * ldc + j * lanes);
  }
  for (std::int64_t k = 0; k < K; ++k) {
    V row[C];
    HWY_UNROLL(8) for (int j = 0; j < C; ++j) row[j] = hn::LoadU(d, b + k * ldb + j * lanes);
    HWY_UNROLL(8) for (int r = 0; r < R; ++r) {
      const V x = hn::Set(d, a[r * a_row + k * a_column]);
      HWY_UNROLL(8) for (int j = 0; j < C; ++j) sum[r][j] = hn::MulAdd(x, row[j], sum[r][j]);
    }
  }
  HWY_UNROLL(8) for (int r = 0; r < R; ++r) {
    HWY_UNROLL(8) for (int j = 0; j < C; ++j) hn::StoreU(sum[r][j], d, c + r * ldc + j * lanes);
  }
}

// The last n < Lanes columns of R rows.
template <int R, class T>
HWY_ATTR void tile_tail(std::size_t n, std::int64_t K, const T* a, std::int64_t a_row, std::int64_t a_column,
                        const T* b, std::int64_t ldb, T* c, std::int64_t ldc) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  V sum[R];
  for (int r = 0; r < R; ++r) sum[r] = load_tail(d, c + r * ldc, n);
  for (std::int64_t k = 0; k < K; ++k) {
    const V row = load_tail(d, b + k * ldb, n);
    for (int r = 0; r < R; ++r) sum[r] = hn::MulAdd(hn::Set(d, a[r * a_row + k * a_column]), row, sum[r]);
  }
  for (int r = 0; r < R; ++r) store_tail(sum[r], d, c + r * ldc, n);
}

template <int R, class T>
HWY_ATTR void tile_rows(std::int64_t N, std::int64_t K, const T* a, std::int64_t a_row, std::int64_t a_column,
                        const T* b, std::int64_t ldb, T* c, std::int64_t ldc) {
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  std::int64_t j = 0;
  for (; j + 2 * lanes <= N; j += 2 * lanes) tile_block<R, 2>(K, a, a_row, a_column, b + j, ldb, c + j, ldc);
  for (; j + lanes <= N; j += lanes) tile_block<R, 1>(K, a, a_row, a_column, b + j, ldb, c + j, ldc);
  if (j < N) tile_tail<R>(static_cast<std::size_t>(N - j), K, a, a_row, a_column, b + j, ldb, c + j, ldc);
}

template <class T>
HWY_ATTR void add_tile_product(std::int64_t M, std::int64_t N, std::int64_t K, const T* a, std::int64_t a_row,
                               std::int64_t a_column, const T* b, std::int64_t ldb, T* c, std::int64_t ldc) {
  std::int64_t m = 0;
  for (; m + 6 <= M; m += 6) tile_rows<6>(N, K, a + m * a_row, a_row, a_column, b, ldb, c + m * ldc, ldc);
  for (; m + 2 <= M; m += 2) tile_rows<2>(N, K, a + m * a_row, a_row, a_column, b, ldb, c + m * ldc, ldc);
  for (; m < M; ++m) tile_rows<1>(N, K, a + m * a_row, a_row, a_column, b, ldb, c + m * ldc, ldc);
}

template <class T>
constexpr Table<T> kTable = {sigmoid<T>,
                             softplus<T>,
                             softplus_backward<T>,
                             silu<T>,
                             silu_backward<T>,
                             silu_product<T>,
                             silu_product_backward<T>,
                             max<T>,
                             exp_sum<T>,
                             dot<T>,
                             add_scaled<T>,
                             scale<T>,
                             combine<T>,
                             add_product<T>,
                             add_products<T>,
                             scaled_product<T>,
                             adamw<T>,
                             add_tile_product<T>};

}  // namespace

const Table<float>& table_f32() { return kTable<float>; }
const Table<double>& table_f64() { return kTable<double>; }

}  // namespace loglinear::vec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace loglinear::vec {

HWY_EXPORT(table_f32);
HWY_EXPORT(table_f64);

namespace {

template <class T>
const Table<T>& table() {
  static const bool applied = (apply_instruction_set_from_environment(), true);
  static_cast<void>(applied);
  if constexpr (sizeof(T) == sizeof(float))
    return HWY_DYNAMIC_DISPATCH(table_f32)();
  else
    return HWY_DYNAMIC_DISPATCH(table_f64)();
}

}  // namespace

template <class T>
void sigmoid(std::int64_t n, const T* x, T* y) {
  table<T>().sigmoid(n, x, y);
}

template <class T>
void softplus(std::int64_t n, const T* x, T* y) {
  table<T>().softplus(n, x, y);
}

template <class T>
void softplus_backward(std::int64_t n, const T* x, const T* dy, T* dx) {
  table<T>().softplus_backward(n, x, dy, dx);
}

template <class T>
void silu(std::int64_t n, const T* x, T* y) {
  table<T>().silu(n, x, y);
}

template <class T>
void silu_backward(std::int64_t n, const T* x, const T* dy, T* dx) {
  table<T>().silu_backward(n, x, dy, dx);
}

template <class T>
void silu_product(std::int64_t n, const T* x, const T* m, T* y) {
  table<T>().silu_product(n, x, m, y);
}

template <class T>
void silu_product_backward(std::int64_t n, const T* x, const T* m, const T* dy, T* dx, T* dm) {
  table<T>().silu_product_backward(n, x, m, dy, dx, dm);
}

template <class T>
T max(std::int64_t n, const T* x) {
  return table<T>().max(n, x);
}

template <class T>
T exp_sum(std::int64_t n, const T* x, T shift, T* y) {
  return table<T>().exp_sum(n, x, shift, y);
}

template <class T>
T dot(std::int64_t n, const T* a, const T* b) {
  return table<T>().dot(n, a, b);
}

template <class T>
void add_scaled(std::int64_t n, T s, const T* x, T* y) {
  table<T>().add_scaled(n, s, x, y);
}

template <class T>
void scale(std::int64_t n, T s, const T* x, T* y) {
  table<T>().scale(n, s, x, y);
}

template <class T>
void combine(std::int64_t n, T s, const T* a, T r, const T* b, T* y) {
  table<T>().combine(n, s, a, r, b, y);
}

template <class T>
void add_product(std::int64_t n, T s, const T* a, const T* b, T* y) {
  table<T>().add_product(n, s, a, b, y);
}

template <class T>
void add_products(std::int64_t n, std::int64_t count, const T* const* a, const T* const* b, T* y) {
  table<T>().add_products(n, count, a, b, y);
}

template <class T>
void scaled_product(std::int64_t n, T s, const T* a, const T* b, T* y) {
  table<T>().scaled_product(n, s, a, b, y);
}

template <class T>
void adamw(std::int64_t n, const AdamW<T>& rates, const T* grad, T* value, T* m, T* v) {
  table<T>().adamw(n, rates, grad, value, m, v);
}

template <class T>
void add_tile_product(std::int64_t M, std::int64_t N, std::int64_t K, const T* a, std::int64_t a_row,
                      std::int64_t a_column, const T* b, std::int64_t ldb, T* c, std::int64_t ldc) {
  table<T>().add_tile_product(M, N, K, a, a_row, a_column, b, ldb, c, ldc);
}

#define LOGLINEAR_VECTOR_MATH(T)                                                                                 \
  template void sigmoid(std::int64_t, const T*, T*);                                                             \
  template void softplus(std::int64_t, const T*, T*);                                                            \
  template void softplus_backward(std::int64_t, const T*, const T*, T*);                                         \
  template void silu(std::int64_t, const T*, T*);                                                                \
  template void silu_backward(std::int64_t, const T*, const T*, T*);                                             \
  template void silu_product(std::int64_t, const T*, const T*, T*);                                              \
  template void silu_product_backward(std::int64_t, const T*, const T*, const T*, T*, T*);                       \
  template T max(std::int64_t, const T*);                                                                        \
  template T exp_sum(std::int64_t, const T*, T, T*);                                                             \
  template T dot(std::int64_t, const T*, const T*);                                                              \
  template void add_scaled(std::int64_t, T, const T*, T*);                                                       \
  template void scale(std::int64_t, T, const T*, T*);                                                            \
  template void combine(std::int64_t, T, const T*, T, const T*, T*);                                             \
  template void add_product(std::int64_t, T, const T*, const T*, T*);                                            \
  template void add_products(std::int64_t, std::int64_t, const T* const*, const T* const*, T*);                  \
  template void scaled_product(std::int64_t, T, const T*, const T*, T*);                                         \
  template void adamw(std::int64_t, const AdamW<T>&, const T*, T*, T*, T*);                                      \
  template void add_tile_product(std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, std::int64_t, \
                                 const T*, std::int64_t, T*, std::int64_t);
LOGLINEAR_VECTOR_MATH(float)
LOGLINEAR_VECTOR_MATH(double)
#undef LOGLINEAR_VECTOR_MATH

}  // namespace loglinear::vec
#endif
