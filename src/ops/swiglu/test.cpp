#include "loglinear/swiglu.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

template <class T>
struct Problem {
  std::int64_t rows, width;
  Grid<T> gate, up, dout;

  Problem(std::int64_t rows_, std::int64_t width_, std::int64_t padding)
      : rows(rows_),
        width(width_),
        gate(rows, width, padding),
        up(rows, width, padding + 1),
        dout(rows, width, padding) {
    Random random(6, 0);
    gate.fill(random, -8, 8);
    up.fill(random, -2, 2);
    dout.fill(random);
  }
  Grid<T> forward(int threads = 0) const {
    Grid<T> out(rows, width, 2);
    swiglu_forward<T>(rows, width, gate.ptr(), gate.stride, up.ptr(), up.stride, out.ptr(), out.stride, threads);
    return out;
  }
  std::pair<Grid<T>, Grid<T>> backward(int threads = 0) const {
    Grid<T> dgate(rows, width, 1), dup(rows, width, 3);
    swiglu_backward<T>(rows, width, gate.ptr(), gate.stride, up.ptr(), up.stride, dout.ptr(), dout.stride, dgate.ptr(),
                       dgate.stride, dup.ptr(), dup.stride, threads);
    return {dgate, dup};
  }
};

template <class T>
class Swiglu : public ::testing::Test {};
TYPED_TEST_SUITE(Swiglu, Floats);

TYPED_TEST(Swiglu, definition) {
  for (std::int64_t rows : {0, 1, 9})
    for (std::int64_t width : {0, 1, 15, 16, 77}) {
      const Problem<TypeParam> p(rows, width, 4);
      Grid<double> want(rows, width);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < width; ++c) want(r, c) = silu(p.gate(r, c)) * p.up(r, c);
      expect_close(p.forward(), want, kBound<TypeParam>, "out");
    }
}

TEST(Swiglu, gradients) {
  Problem<double> p(8, 19, 2);
  const auto [dgate, dup] = p.backward();
  const auto loss = [&] { return weighted_sum(p.dout, p.forward()); };
  expect_gradient(p.gate, dgate, loss, "dgate");
  expect_gradient(p.up, dup, loss, "dup");
  const Problem<float> narrow(8, 19, 2);
  expect_close(narrow.backward().first, dgate, 1e-5, "dgate");
  expect_close(narrow.backward().second, dup, 1e-5, "dup");
}

TYPED_TEST(Swiglu, same_bits_for_any_number_of_threads_and_in_place) {
  Problem<TypeParam> p(3000, 37, 0);
  expect_same_for_threads([&](int threads) {
    auto [dgate, dup] = p.backward(threads);
    return std::vector{p.forward(threads).data, dgate.data, dup.data};
  });
  const auto [dgate, dup] = p.backward();
  swiglu_backward<TypeParam>(3000, 37, p.gate.ptr(), p.gate.stride, p.up.ptr(), p.up.stride, p.dout.ptr(),
                             p.dout.stride, p.gate.ptr(), p.gate.stride, p.up.ptr(), p.up.stride);
  for (std::int64_t r = 0; r < 3000; ++r) {
    EXPECT_TRUE(same_row_bits(p.gate, dgate, r));
    EXPECT_TRUE(same_row_bits(p.up, dup, r));
  }
}

TYPED_TEST(Swiglu, nan_stays_where_it_is) {
  Problem<TypeParam> p(10, 21, 1);
  const Grid<TypeParam> clean = p.forward();
  p.gate(4, 20) = std::numeric_limits<TypeParam>::quiet_NaN();
  const Grid<TypeParam> dirty = p.forward();
  for (std::int64_t r = 0; r < 10; ++r)
    for (std::int64_t c = 0; c < 21; ++c) {
      if (r == 4 && c == 20)
        EXPECT_TRUE(std::isnan(dirty(r, c)));
      else
        EXPECT_EQ(dirty(r, c), clean(r, c));
    }
}

TEST(Swiglu, errors) {
  float x[8] = {};
  expect_error([&] { swiglu_forward<float>(2, -4, x, 4, x, 4, x, 4); }, "size");
  expect_error([&] { swiglu_forward<float>(2, 4, x, 4, x, 3, x, 4); }, "up: row stride 3");
  expect_error([&] { swiglu_forward<float>(2, 4, nullptr, 4, x, 4, x, 4); }, "gate is null");
  expect_error([&] { swiglu_backward<float>(2, 4, x, 4, x, 4, x, 4, x, 4, x, 2); }, "dup: row stride 2");
}

}  // namespace
}  // namespace loglinear::testing
