#include "loglinear/elu.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

template <class T>
struct Problem {
  std::int64_t rows, width;
  Grid<T> x, dy;

  Problem(std::int64_t rows_, std::int64_t width_, std::int64_t padding)
      : rows(rows_), width(width_), x(rows, width, padding), dy(rows, width, padding + 1) {
    Random random(6, 1);
    x.fill(random, -8, 8);
    dy.fill(random);
    if (rows > 1 && width > 2) x(1, 0) = T(-90), x(1, 1) = 0, x(1, 2) = T(1e6);
  }
  Grid<T> forward(int threads = 0) const {
    Grid<T> y(rows, width, 2);
    elu_plus_one_forward<T>(rows, width, x.ptr(), x.stride, y.ptr(), y.stride, threads);
    return y;
  }
  Grid<T> backward(int threads = 0) const {
    const Grid<T> y = forward(threads);
    Grid<T> dx(rows, width, 3);
    elu_plus_one_backward<T>(rows, width, y.ptr(), y.stride, dy.ptr(), dy.stride, dx.ptr(), dx.stride, threads);
    return dx;
  }
};

template <class T>
class Elu : public ::testing::Test {};
TYPED_TEST_SUITE(Elu, Floats);

TYPED_TEST(Elu, definition) {
  for (std::int64_t rows : {0, 1, 9})
    for (std::int64_t width : {0, 1, 15, 77}) {
      const Problem<TypeParam> p(rows, width, 4);
      const Grid<TypeParam> y = p.forward();
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < width; ++c) {
          const double x = p.x(r, c), want = x > 0 ? x + 1 : std::exp(x);
          EXPECT_LE(std::abs(y(r, c) - want), kBound<TypeParam> * want);
          EXPECT_GT(y(r, c), 0);
        }
    }
}

TEST(Elu, gradient) {
  Problem<double> p(8, 19, 2);
  p.x(1, 1) = 0.5;  // away from the jump of the second derivative
  p.x(1, 2) = 3;    // and from numbers whose differences are coarse
  expect_gradient(
      p.x, p.backward(), [&] { return weighted_sum(p.dy, p.forward()); }, "dx");
  const Problem<float> narrow(8, 19, 2);
  Problem<double> same(8, 19, 2);
  same.x = converted<double>(narrow.x);
  same.dy = converted<double>(narrow.dy);
  expect_close(narrow.backward(), same.backward(), kBound<float>, "dx");
}

TYPED_TEST(Elu, same_bits_for_any_number_of_threads_and_in_place) {
  Problem<TypeParam> p(3000, 37, 0);
  expect_same_for_threads([&](int threads) { return std::vector{p.forward(threads).data, p.backward(threads).data}; });
  const Grid<TypeParam> y = p.forward(), dx = p.backward();
  elu_plus_one_forward<TypeParam>(3000, 37, p.x.ptr(), p.x.stride, p.x.ptr(), p.x.stride);
  elu_plus_one_backward<TypeParam>(3000, 37, p.x.ptr(), p.x.stride, p.dy.ptr(), p.dy.stride, p.dy.ptr(), p.dy.stride);
  for (std::int64_t r = 0; r < 3000; ++r) {
    EXPECT_TRUE(same_row_bits(p.x, y, r));
    EXPECT_TRUE(same_row_bits(p.dy, dx, r));
  }
}

TYPED_TEST(Elu, nan_stays_where_it_is) {
  Problem<TypeParam> p(10, 21, 1);
  const Grid<TypeParam> clean = p.forward(), clean_dx = p.backward();
  p.x(4, 20) = std::numeric_limits<TypeParam>::quiet_NaN();
  const Grid<TypeParam> dirty = p.forward(), dirty_dx = p.backward();
  for (std::int64_t r = 0; r < 10; ++r)
    for (std::int64_t c = 0; c < 21; ++c) {
      if (r == 4 && c == 20) {
        EXPECT_TRUE(std::isnan(dirty(r, c)) && std::isnan(dirty_dx(r, c)));
      } else {
        EXPECT_EQ(dirty(r, c), clean(r, c));
        EXPECT_EQ(dirty_dx(r, c), clean_dx(r, c));
      }
    }
}

TEST(Elu, errors) {
  float x[8] = {};
  expect_error([&] { elu_plus_one_forward<float>(2, -4, x, 4, x, 4); }, "size");
  expect_error([&] { elu_plus_one_forward<float>(2, 4, x, 3, x, 4); }, "x: row stride 3");
  expect_error([&] { elu_plus_one_forward<float>(2, 4, x, 4, nullptr, 4); }, "y is null");
  expect_error([&] { elu_plus_one_backward<float>(2, 4, x, 4, nullptr, 4, x, 4); }, "dy is null");
  expect_error([&] { elu_plus_one_backward<float>(2, 4, x, 4, x, 4, x, 2); }, "dx: row stride 2");
}

}  // namespace
}  // namespace loglinear::testing
