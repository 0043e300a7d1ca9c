#include "loglinear/rotary.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

using Lengths = std::vector<std::int64_t>;

template <class T>
Grid<T> turned(Rotation rotation, const Lengths& cu, const Lengths& positions, std::int64_t heads, std::int64_t width,
               const Grid<T>& x, int threads = 0) {
  Grid<T> y(x.rows, x.width, 3);
  rotary<T>(rotation, cu, positions, heads, width, 10000.0, x.ptr(), x.stride, y.ptr(), y.stride, threads);
  return y;
}

template <class T>
Grid<T> random_rows(std::int64_t rows, std::int64_t width, std::uint64_t stream) {
  Random random(14, stream);
  Grid<T> x(rows, width, 1);
  return x.fill(random);
}

template <class T>
class Rotary : public ::testing::Test {};
TYPED_TEST_SUITE(Rotary, Floats);

TYPED_TEST(Rotary, definition) {
  using T = TypeParam;
  const Lengths cu = {0, 3, 3, 20}, positions = {5, 0, 100000};
  for (std::int64_t width : {2, 6, 64}) {
    const Grid<T> x = random_rows<T>(20, 2 * width, 1);
    Grid<double> want(20, 2 * width);
    for (std::int64_t n = 0; n < 20; ++n) {
      const double position = n < 3 ? 5.0 + static_cast<double>(n) : 100000.0 + static_cast<double>(n) - 3;
      for (std::int64_t h = 0; h < 2; ++h)
        for (std::int64_t i = 0; i < width / 2; ++i) {
          const double angle = position * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(width));
          const double a = x(n, h * width + i), b = x(n, h * width + width / 2 + i);
          want(n, h * width + i) = a * std::cos(angle) - b * std::sin(angle);
          want(n, h * width + width / 2 + i) = b * std::cos(angle) + a * std::sin(angle);
        }
    }
    expect_close(turned(Rotation::forward, cu, positions, 2, width, x), want, sizeof(T) == 4 ? 1e-6 : 1e-10, "y");
    // The inverse undoes it, and is the gradient because a rotation is orthogonal.
    expect_close(
        turned(Rotation::inverse, cu, positions, 2, width, turned(Rotation::forward, cu, positions, 2, width, x)), x,
        sizeof(T) == 4 ? 1e-6 : 1e-13, "back");
  }
}

TEST(Rotary, gradient) {
  const Lengths cu = {0, 6};
  Grid<double> x = random_rows<double>(6, 8, 2);
  const Grid<double> dy = random_rows<double>(6, 8, 3);
  expect_gradient(
      x, turned(Rotation::inverse, cu, {}, 2, 4, dy),
      [&] { return weighted_sum(dy, turned(Rotation::forward, cu, {}, 2, 4, x)); }, "dx");
}

TYPED_TEST(Rotary, pieces_threads_in_place_and_empty) {
  using T = TypeParam;
  Grid<T> x = random_rows<T>(1200, 16, 4);
  const Lengths cu = {0, 1200};
  const Grid<T> whole = turned(Rotation::forward, cu, {}, 2, 8, x);
  const Lengths pieces = {0, 7, 1200}, starts = {0, 7};
  EXPECT_TRUE(same_bits(turned(Rotation::forward, pieces, starts, 2, 8, x).data, whole.data));
  expect_same_for_threads(
      [&](int t) { return std::vector<std::vector<T>>{turned(Rotation::forward, cu, {}, 2, 8, x, t).data}; });
  const T before = x(5, 0);
  x(5, 0) = std::numeric_limits<T>::quiet_NaN();
  const Grid<T> dirty = turned(Rotation::forward, cu, {}, 2, 8, x);
  for (std::int64_t n = 0; n < 1200; ++n) EXPECT_EQ(same_row_bits(dirty, whole, n), n != 5);
  x(5, 0) = before;
  rotary<T>(Rotation::forward, cu, {}, 2, 8, 10000.0, x.ptr(), x.stride, x.ptr(), x.stride);
  for (std::int64_t n = 0; n < 1200; ++n) EXPECT_TRUE(same_row_bits(x, whole, n));
  rotary<T>(Rotation::forward, Lengths{0, 0}, {}, 2, 8, 10000.0, nullptr, 0, nullptr, 0);
}

TEST(Rotary, errors) {
  float x[16] = {};
  const auto call = [&](const Lengths& cu, const Lengths& positions, std::int64_t width, double theta) {
    return [=, &x] { rotary<float>(Rotation::forward, cu, positions, 1, width, theta, x, 4, x, 4); };
  };
  expect_error(call({0, 2}, {}, 3, 10), "even");
  expect_error(call({0, 2}, {}, 4, 0), "theta");
  expect_error(call({0, 2}, {}, 6, 10), "stride");
  expect_error(call({0, 2}, {1, 2}, 4, 10), "positions");
  expect_error(call({0, 2}, {-1}, 4, 10), "position -1");
  expect_error(call({1, 2}, {}, 4, 10), "start with 0");
  expect_error(call({}, {}, 4, 10), "start with 0");
  expect_error(call({0, 2, 1}, {}, 4, 10), "descends");
}

}  // namespace
}  // namespace loglinear::testing
