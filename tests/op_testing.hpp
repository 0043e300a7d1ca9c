#pragma once
// What the tests of the operators share: arrays with guarded padding, comparison that NaN fails, derivatives by central
// differences, and the same call with 1 to 4 threads.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/random.hpp"
#include "loglinear/error.hpp"
#include "sanitized.hpp"

namespace loglinear::testing {

// (rows, width) with `padding` elements after every row. Everything starts as NaN, so that what an operator forgets to
// write, or reads without right, shows.
template <class T>
struct Grid {
  std::int64_t rows = 0, width = 0, stride = 0;
  std::vector<T> data;

  Grid() = default;
  Grid(std::int64_t rows_, std::int64_t width_, std::int64_t padding = 0)
      : rows(rows_),
        width(width_),
        stride(width_ + padding),
        data(static_cast<std::size_t>(rows * stride), std::numeric_limits<T>::quiet_NaN()) {}

  T* ptr() { return data.empty() ? nullptr : data.data(); }
  const T* ptr() const { return data.empty() ? nullptr : data.data(); }
  T& operator()(std::int64_t r, std::int64_t c) { return data[static_cast<std::size_t>(r * stride + c)]; }
  T operator()(std::int64_t r, std::int64_t c) const { return data[static_cast<std::size_t>(r * stride + c)]; }

  Grid& fill(double value) {
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < width; ++c) (*this)(r, c) = static_cast<T>(value);
    return *this;
  }
  // Uniform in [low, high): the same numbers for every T, up to rounding to float.
  Grid& fill(Random& random, double low = -1, double high = 1) {
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < width; ++c)
        (*this)(r, c) = static_cast<T>(static_cast<float>(low + (high - low) * random.uniform()));
    return *this;
  }
  bool padding_untouched() const {
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = width; c < stride; ++c)
        if (!std::isnan((*this)(r, c))) return false;
    return true;
  }
};

template <class To, class T>
Grid<To> converted(const Grid<T>& from) {
  Grid<To> to(from.rows, from.width, from.stride - from.width);
  for (std::size_t i = 0; i < from.data.size(); ++i) to.data[i] = static_cast<To>(from.data[i]);
  return to;
}

// |got - want| <= bound * (1 + |want|) everywhere, and the padding as it was.
template <class A, class B>
void expect_close(const Grid<A>& got, const Grid<B>& want, double bound, const std::string& what) {
  ASSERT_EQ(got.rows, want.rows) << what;
  ASSERT_EQ(got.width, want.width) << what;
  for (std::int64_t r = 0; r < got.rows; ++r)
    for (std::int64_t c = 0; c < got.width; ++c) {
      const double x = static_cast<double>(got(r, c)), y = static_cast<double>(want(r, c));
      if (!(std::abs(x - y) <= bound * (1 + std::abs(y)))) {
        ADD_FAILURE() << what << " (" << r << ", " << c << "): got " << x << ", want " << y;
        return;
      }
    }
  EXPECT_TRUE(got.padding_untouched()) << what << ": wrote between rows";
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
bool same_row_bits(const Grid<T>& a, const Grid<T>& b, std::int64_t row) {
  return std::memcmp(&a.data[static_cast<std::size_t>(row * a.stride)],
                     &b.data[static_cast<std::size_t>(row * b.stride)],
                     static_cast<std::size_t>(a.width) * sizeof(T)) == 0;
}

// gradient against central differences of `loss` in the elements of x: all, or about `samples` of them.
inline void expect_gradient(Grid<double>& x, const Grid<double>& gradient, const std::function<double()>& loss,
                            const std::string& what, double bound = 2e-7, std::int64_t samples = 80) {
  ASSERT_EQ(x.rows, gradient.rows) << what;
  ASSERT_EQ(x.width, gradient.width) << what;
  if (kSanitized) samples = std::min<std::int64_t>(samples, 5);  // the passes are the same for any element
  const std::int64_t n = x.rows * x.width, step = std::max<std::int64_t>(1, n / samples);
  for (std::int64_t i = 0; i < n; i += step) {
    double& at = x(i / x.width, i % x.width);
    const double before = at, h = 1e-4;
    // Fourth order: (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h.
    double f[4];
    const double moves[4] = {h, -h, 2 * h, -2 * h};
    for (int m = 0; m < 4; ++m) {
      at = before + moves[m];
      f[m] = loss();
    }
    at = before;
    const double want = (8 * (f[0] - f[1]) - (f[2] - f[3])) / (12 * h), got = gradient(i / x.width, i % x.width);
    if (!(std::abs(got - want) <= bound * (1 + std::abs(want)))) {
      ADD_FAILURE() << what << " (" << i / x.width << ", " << i % x.width << "): got " << got << ", differences say "
                    << want;
      return;
    }
  }
}

// sum of weights * values: turns an output into a loss whose gradient in the output is `weights`.
inline double weighted_sum(const Grid<double>& weights, const Grid<double>& values) {
  double sum = 0;
  for (std::int64_t r = 0; r < values.rows; ++r)
    for (std::int64_t c = 0; c < values.width; ++c) sum += weights(r, c) * values(r, c);
  return sum;
}

// call(threads) returns everything it wrote; it must be the same bits for 1 to 4 threads.
template <class Call>
void expect_same_for_threads(const Call& call) {
  const auto one = call(1);
  for (int threads = 2; threads <= 4; ++threads) {
    const auto more = call(threads);
    ASSERT_EQ(one.size(), more.size());
    for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(same_bits(one[i], more[i])) << i << ", " << threads;
  }
}

template <class Call>
void expect_error(const Call& call, const std::string& part) {
  try {
    call();
    ADD_FAILURE() << "no error, expected one with '" << part << "'";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  }
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double silu(double x) { return x * sigmoid(x); }
inline double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

// Accuracy that T can reach for sums of moderate length.
template <class T>
constexpr double kBound = sizeof(T) == 4 ? 3e-6 : 1e-13;

using Floats = ::testing::Types<float, double>;

}  // namespace loglinear::testing
