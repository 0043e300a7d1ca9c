#include "loglinear/l2_norm.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

template <class T>
struct Problem {
  std::int64_t rows, heads, width;
  T scale = T(0.125);
  Grid<T> x, dy;

  Problem(std::int64_t rows_, std::int64_t heads_, std::int64_t width_, std::int64_t padding = 0)
      : rows(rows_), heads(heads_), width(width_), x(rows, heads * width, padding), dy(rows, heads * width, padding) {
    Random random(4, static_cast<std::uint64_t>(width));
    x.fill(random);
    dy.fill(random);
    // A row of zeros and a tiny one: where the 1e-6 counts.
    for (std::int64_t c = 0; rows > 2 && c < x.width; ++c) x(0, c) = 0, x(1, c) *= T(1e-4);
  }
  Grid<T> forward(int threads = 0) const {
    Grid<T> y(rows, heads * width, 2);
    l2_norm_forward<T>(rows, heads, width, x.ptr(), x.stride, scale, y.ptr(), y.stride, threads);
    return y;
  }
  Grid<T> backward(int threads = 0) const {
    Grid<T> dx(rows, heads * width, 3);
    l2_norm_backward<T>(rows, heads, width, x.ptr(), x.stride, scale, dy.ptr(), dy.stride, dx.ptr(), dx.stride,
                        threads);
    return dx;
  }
};

template <class T>
class L2Norm : public ::testing::Test {};
TYPED_TEST_SUITE(L2Norm, Floats);

TYPED_TEST(L2Norm, definition) {
  for (std::int64_t rows : {0, 1, 6, 50})
    for (std::int64_t heads : {1, 4})
      for (std::int64_t width : {1, 5, 16, 31, 64}) {
        const Problem<TypeParam> p(rows, heads, width, 3);
        Grid<double> want(rows, heads * width);
        for (std::int64_t n = 0; n < rows; ++n)
          for (std::int64_t h = 0; h < heads; ++h) {
            double sum = 1e-6;
            for (std::int64_t i = h * width; i < (h + 1) * width; ++i)
              sum += static_cast<double>(p.x(n, i)) * p.x(n, i);
            for (std::int64_t i = h * width; i < (h + 1) * width; ++i) want(n, i) = 0.125 * p.x(n, i) / std::sqrt(sum);
          }
        expect_close(p.forward(), want, kBound<TypeParam>, "y");
      }
}

TEST(L2Norm, gradient) {
  Problem<double> p(20, 2, 7, 1);
  // Away from the origin, where differences are accurate.
  Random random(5, 0);
  p.x.fill(random);
  expect_gradient(
      p.x, p.backward(), [&] { return weighted_sum(p.dy, p.forward()); }, "dx");
}

TYPED_TEST(L2Norm, float_gradient_follows_double) {
  const Problem<TypeParam> p(40, 2, 33);
  Problem<double> exact(40, 2, 33);
  exact.x = converted<double>(p.x);
  const Grid<TypeParam> got = p.backward();
  const Grid<double> want = exact.backward();
  for (std::int64_t r = 0; r < 40; ++r)
    for (std::int64_t c = 0; c < 66; ++c)
      EXPECT_LE(std::abs(got(r, c) - want(r, c)), 4 * kBound<TypeParam> * (r < 2 ? 150 : 1));
}

TYPED_TEST(L2Norm, same_bits_for_any_number_of_threads_and_in_place) {
  Problem<TypeParam> p(2000, 3, 17);
  expect_same_for_threads([&](int threads) { return std::vector{p.forward(threads).data, p.backward(threads).data}; });
  const Grid<TypeParam> y = p.forward(), dx = p.backward();
  l2_norm_backward<TypeParam>(2000, 3, 17, p.x.ptr(), p.x.stride, p.scale, p.dy.ptr(), p.dy.stride, p.dy.ptr(),
                              p.dy.stride);
  l2_norm_forward<TypeParam>(2000, 3, 17, p.x.ptr(), p.x.stride, p.scale, p.x.ptr(), p.x.stride);
  for (std::int64_t r = 0; r < 2000; ++r) {
    EXPECT_TRUE(same_row_bits(p.x, y, r));
    EXPECT_TRUE(same_row_bits(p.dy, dx, r));
  }
}

TYPED_TEST(L2Norm, nan_stays_in_its_row_and_head) {
  Problem<TypeParam> p(30, 2, 10);
  const Grid<TypeParam> clean = p.forward(), clean_dx = p.backward();
  p.x(12, 14) = std::numeric_limits<TypeParam>::quiet_NaN();
  const Grid<TypeParam> dirty = p.forward(), dirty_dx = p.backward();
  for (std::int64_t n = 0; n < 30; ++n)
    for (std::int64_t c = 0; c < 20; ++c) {
      if (n == 12 && c >= 10) {
        EXPECT_TRUE(std::isnan(dirty(n, c)) && std::isnan(dirty_dx(n, c)));
      } else {
        EXPECT_EQ(dirty(n, c), clean(n, c));
        EXPECT_EQ(dirty_dx(n, c), clean_dx(n, c));
      }
    }
}

TEST(L2Norm, errors) {
  float x[8] = {};
  expect_error([&] { l2_norm_forward<float>(-1, 1, 4, x, 4, 1, x, 4); }, "size");
  expect_error([&] { l2_norm_forward<float>(1, 1, 0, x, 4, 1, x, 4); }, "width");
  expect_error([&] { l2_norm_forward<float>(1, 2, 4, x, 4, 1, x, 8); }, "x: row stride 4");
  expect_error([&] { l2_norm_forward<float>(1, 2, 4, x, 8, 1, nullptr, 8); }, "y is null");
  expect_error([&] { l2_norm_backward<float>(1, 2, 4, x, 8, 1, nullptr, 8, x, 8); }, "dy is null");
}

}  // namespace
}  // namespace loglinear::testing
