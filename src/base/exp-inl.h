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

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#endif
