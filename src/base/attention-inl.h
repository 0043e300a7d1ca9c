// What kernels of softmax attention share. Included once per instruction set, hence the toggled guard.

#if defined(LOGLINEAR_BASE_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOGLINEAR_BASE_ATTENTION_INL_H_
#undef LOGLINEAR_BASE_ATTENTION_INL_H_
#else
#define LOGLINEAR_BASE_ATTENTION_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "base/attention.hpp"
#include "base/matrix-inl.h"
#include "base/padding.hpp"
#include "base/pool.hpp"

HWY_BEFORE_NAMESPACE();
namespace loglinear::attention::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using loglinear::Epilogue;
using loglinear::HWY_NAMESPACE::Lanes;
using loglinear::HWY_NAMESPACE::product;
using loglinear::HWY_NAMESPACE::transpose;

// Hands out pieces of one allocation.
template <class T>
class Scratch {
 public:
  explicit Scratch(std::int64_t n)
      : memory_(Pool<T>::take(static_cast<std::size_t>(n + 32 * kPad))), next_(memory_.get()) {}
  T* take(std::int64_t n) {
    T* const at = next_;
    next_ += padded(n);
    return at;
  }

 private:
  Matrix<T> memory_;
  T* next_;
};

// to (count, ld) = rows `stride` apart, and zeros up to a whole vector.
template <class T>
HWY_INLINE void copy_rows(std::int64_t count, std::int64_t width, const T* from, std::int64_t stride, T* to,
                          std::int64_t ld) {
  for (std::int64_t r = 0; r < count; ++r) {
    std::memcpy(to + r * ld, from + r * stride, static_cast<std::size_t>(width) * sizeof(T));
    if (const std::int64_t end = padded(width); end > width)
      std::memset(to + r * ld + width, 0, static_cast<std::size_t>(end - width) * sizeof(T));
  }
}

template <class T>
HWY_INLINE void scale_row(std::int64_t width, T factor, const T* from, T* to) {
  for (std::int64_t c = 0; c < width; ++c) to[c] = factor * from[c];
}

// rows (count, ld) with zeros up to a whole vector.
template <class T>
HWY_NOINLINE bool all_finite(std::int64_t count, std::int64_t width, const T* rows, std::int64_t ld) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);  // of x - x: 0 for a number, NaN for the rest
  for (std::int64_t r = 0; r < count; ++r)
    for (std::int64_t c = 0; c < width; c += N) {
      const auto x = hn::LoadU(d, rows + r * ld + c);
      sum = hn::Add(sum, hn::Sub(x, x));
    }
  return hn::AllTrue(d, hn::Eq(sum, hn::Zero(d)));
}

// C (M, N) += A B, row m of A counting only in range(m): where B holds a NaN or infinity that a row must not see, which
// zeros in A would not keep out. The bits of the whole product otherwise.
template <class T, class RangeOf>
HWY_NOINLINE void add_product_within(std::int64_t M, std::int64_t N, const T* a, std::int64_t a_row, std::int64_t a_col,
                                     const T* b, std::int64_t ldb, T* c, std::int64_t ldc, const RangeOf& range) {
  for (std::int64_t m = 0; m < M; ++m)
    if (const Range r = range(m); !r.empty())
      product<T>(1, N, r.end - r.begin, a + m * a_row + r.begin * a_col, a_row, a_col, b + r.begin * ldb, ldb,
                 c + m * ldc, ldc, {.beta = T(1)});
}

}  // namespace loglinear::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
