// The exponential of every kernel. Included once per instruction set, hence the toggled guard.

#if defined(LOGLINEAR_BASE_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOGLINEAR_BASE_EXP_INL_H_
#undef LOGLINEAR_BASE_EXP_INL_H_
#else
#define LOGLINEAR_BASE_EXP_INL_H_
#endif

#include <hwy/highway.h>
// Below highway.h: it must follow the instruction set.
#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace loglinear {
namespace HWY_NAMESPACE {

// exp(x); a NaN stays one. Highway's own converts x to an integer before it looks: of a NaN it makes 0, by a conversion
// that is undefined, and far above the range it makes nonsense. Within [low, high] nothing changes; exp(low) is 0,
// exp(high) infinite.
template <class D, class V>
HWY_INLINE V exp_or_nan(D d, V x) {
  using T = hwy::HWY_NAMESPACE::TFromD<D>;
  namespace hn = hwy::HWY_NAMESPACE;
  const V low = hn::Set(d, static_cast<T>(sizeof(T) == 4 ? -110 : -1010));
  const V high = hn::Set(d, static_cast<T>(sizeof(T) == 4 ? 89 : 710));
  const auto number = hn::Eq(x, x);
  const V bounded = hn::IfThenElseZero(number, hn::Min(hn::Max(x, low), high));
  return hn::IfThenElse(number, hn::Exp(d, bounded), x);
}

// The exponential that attention wants: base 2 in float32, whose scores are scaled by log2(e) once for all keys; base e
// in float64, where that factor's rounding would show.
template <class T>
inline constexpr double kScorePerNatural = sizeof(T) == 4 ? 1.4426950408889634 : 1;

// 2^x for x <= 127, to 1.1e-7 of itself and 1 for 0; below -126 it is 0, of a NaN a NaN. x is n + f with n whole and
// |f|
// <= 1/2: adding 1.5 * 2^23 rounds to a whole number and leaves it, with the bias of the exponent, in the low bits. The
// polynomial of 2^f is the one of degree 5 with the least relative error among those that are 1 at 0 (Remez).
template <class D, hwy::EnableIf<sizeof(hwy::HWY_NAMESPACE::TFromD<D>) == 4>* = nullptr>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> score_exp(D d, hwy::HWY_NAMESPACE::Vec<D> x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToUnsigned<D> bits;
  const auto shift = hn::Set(d, 12582912.0f + 127.0f);
  const auto whole = hn::Add(x, shift);
  const auto f = hn::Sub(x, hn::Sub(whole, shift));
  auto p = hn::MulAdd(f, hn::Set(d, 0x1.5bba14p-10f), hn::Set(d, 0x1.3cea88p-7f));
  p = hn::MulAdd(f, p, hn::Set(d, 0x1.c6b752p-5f));
  p = hn::MulAdd(f, p, hn::Set(d, 0x1.ebf9bcp-3f));
  p = hn::MulAdd(f, p, hn::Set(d, 0x1.62e42ap-1f));
  p = hn::MulAdd(f, p, hn::Set(d, 1.0f));
  const auto power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(bits, whole)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Mul(p, power));
}

template <class D, hwy::EnableIf<sizeof(hwy::HWY_NAMESPACE::TFromD<D>) == 8>* = nullptr>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> score_exp(D d, hwy::HWY_NAMESPACE::Vec<D> x) {
  return exp_or_nan(d, x);
}

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#endif
