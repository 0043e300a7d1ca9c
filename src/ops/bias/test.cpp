#include "loglinear/bias.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

template <class T>
class Bias : public ::testing::Test {};
TYPED_TEST_SUITE(Bias, Floats);

TYPED_TEST(Bias, forward_and_backward) {
  using T = TypeParam;
  for (std::int64_t rows : {0, 1, 31, 33, 500})
    for (std::int64_t width : {0, 1, 19}) {
      Random random(8, 0);
      Grid<T> y(rows, width, 2), bias(1, width), dbias(1, width);
      y.fill(random), bias.fill(random), dbias.fill(0.25);
      Grid<double> want(rows, width), dwant(1, width);
      dwant.fill(0.25);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < width; ++c) {
          want(r, c) = static_cast<double>(y(r, c)) + bias(0, c);
          dwant(0, c) += y(r, c);
        }
      bias_backward<T>(rows, width, y.ptr(), y.stride, dbias.ptr());
      expect_close(dbias, dwant, 4 * kBound<T>, "dbias");
      bias_forward<T>(rows, width, bias.ptr(), y.ptr(), y.stride);
      expect_close(y, want, kBound<T>, "y");
    }
}

TYPED_TEST(Bias, same_bits_for_any_number_of_threads) {
  using T = TypeParam;
  Random random(9, 0);
  Grid<T> y(5000, 21), bias(1, 21);
  y.fill(random), bias.fill(random);
  expect_same_for_threads([&](int threads) {
    Grid<T> out = y, dbias(1, 21);
    dbias.fill(0.0);
    bias_forward<T>(5000, 21, bias.ptr(), out.ptr(), out.stride, threads);
    bias_backward<T>(5000, 21, y.ptr(), y.stride, dbias.ptr(), threads);
    return std::vector{out.data, dbias.data};
  });
}

TEST(Bias, errors) {
  float x[8] = {};
  expect_error([&] { bias_forward<float>(2, 4, x, x, 3); }, "y: row stride 3");
  expect_error([&] { bias_forward<float>(2, 4, nullptr, x, 4); }, "bias is null");
  expect_error([&] { bias_backward<float>(-2, 4, x, 4, x); }, "size");
}

}  // namespace
}  // namespace loglinear::testing
