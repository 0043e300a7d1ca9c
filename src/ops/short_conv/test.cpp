#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "loglinear/short_conv.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

using Lengths = std::vector<std::int64_t>;

template <class T>
struct Problem {
  Lengths cu;
  std::int64_t channels, width, N;
  bool with_bias;
  Grid<T> x, weight, bias, dy;

  Problem(Lengths cu_, std::int64_t channels_, std::int64_t width_, bool with_bias_, std::int64_t padding = 0)
      : cu(std::move(cu_)),
        channels(channels_),
        width(width_),
        N(cu.back()),
        with_bias(with_bias_),
        x(N, channels, padding),
        weight(channels, width),
        bias(1, channels),
        dy(N, channels, padding) {
    Random random(15, static_cast<std::uint64_t>(channels));
    x.fill(random);
    weight.fill(random);
    bias.fill(random);
    dy.fill(random);
  }
  const T* bias_ptr() const { return with_bias ? bias.ptr() : nullptr; }

  Grid<T> forward(const std::vector<const T*>& initial = {}, const std::vector<T*>& final = {}, int threads = 0) const {
    Grid<T> y(N, channels, 2);
    short_conv_forward<T>(cu, channels, width, x.ptr(), x.stride, weight.ptr(), bias_ptr(), initial, y.ptr(), y.stride,
                          final, threads);
    return y;
  }
  struct Gradients {
    Grid<T> dx, dweight, dbias;
  };
  Gradients backward(int threads = 0, double start = 0) const {
    Gradients g{Grid<T>(N, channels, 1), Grid<T>(channels, width), Grid<T>(1, channels)};
    g.dweight.fill(start), g.dbias.fill(start);
    short_conv_backward<T>(cu, channels, width, x.ptr(), x.stride, weight.ptr(), bias_ptr(), dy.ptr(), dy.stride,
                           g.dx.ptr(), g.dx.stride, g.dweight.ptr(), with_bias ? g.dbias.ptr() : nullptr, threads);
    return g;
  }
  // initial: (S) states of (width - 1, channels), or empty.
  Grid<double> definition(const std::vector<Grid<T>>& initial = {}) const {
    Grid<double> y(N, channels);
    for (std::size_t s = 0; s + 1 < cu.size(); ++s)
      for (std::int64_t n = cu[s]; n < cu[s + 1]; ++n)
        for (std::int64_t c = 0; c < channels; ++c) {
          double sum = with_bias ? static_cast<double>(bias(0, c)) : 0;
          for (std::int64_t i = 0; i < width; ++i) {
            const std::int64_t t = n - cu[s] - (width - 1) + i;
            const double in = t >= 0            ? static_cast<double>(x(cu[s] + t, c))
                              : initial.empty() ? 0
                                                : static_cast<double>(initial[s](width - 1 + t, c));
            sum += weight(c, i) * in;
          }
          y(n, c) = silu(sum);
        }
    return y;
  }
};

template <class T>
class ShortConv : public ::testing::Test {};
TYPED_TEST_SUITE(ShortConv, Floats);

TYPED_TEST(ShortConv, definition) {
  using T = TypeParam;
  for (std::int64_t width : {1, 2, 4, 5, 16})
    for (std::int64_t channels : {1, 5, 130})
      for (bool bias : {false, true})
        for (const Lengths& cu : {Lengths{0, 0}, Lengths{0, 1}, Lengths{0, 1, 3, 3, 20}, Lengths{0, 0, 40, 42}}) {
          const Problem<T> p(cu, channels, width, bias, 3);
          expect_close(p.forward(), p.definition(), 4 * kBound<T>, "y");
        }
}

TYPED_TEST(ShortConv, states) {
  using T = TypeParam;
  const Problem<T> p({0, 1, 1, 6}, 7, 4, true);
  std::vector<Grid<T>> initial(3, Grid<T>(3, 7)), last(3, Grid<T>(3, 7));
  Random random(16, 0);
  for (auto& state : initial) state.fill(random);
  std::vector<const T*> from;
  std::vector<T*> to;
  for (std::size_t s = 0; s < 3; ++s) from.push_back(initial[s].ptr()), to.push_back(last[s].ptr());
  const Grid<T> y = p.forward(from, to);
  expect_close(y, p.definition(initial), 4 * kBound<T>, "y");
  for (std::size_t s = 0; s < 3; ++s)
    for (std::int64_t j = 0; j < 3; ++j)
      for (std::int64_t c = 0; c < 7; ++c) {
        const std::int64_t t = p.cu[s + 1] - p.cu[s] - 3 + j;
        EXPECT_EQ(last[s](j, c), t >= 0 ? p.x(p.cu[s] + t, c) : initial[s](3 + t, c));
      }
  // In place, and null pointers: zeros in, nothing out.
  std::vector<Grid<T>> same = initial;
  to = {same[0].ptr(), same[1].ptr(), same[2].ptr()};
  from = {same[0].ptr(), same[1].ptr(), same[2].ptr()};
  EXPECT_TRUE(same_bits(p.forward(from, to).data, y.data));
  for (std::size_t s = 0; s < 3; ++s) EXPECT_TRUE(same_bits(same[s].data, last[s].data));
  EXPECT_TRUE(same_bits(p.forward({nullptr, nullptr, nullptr}, {nullptr, nullptr, nullptr}).data, p.forward().data));
}

// A sequence in two pieces from state to state, at every cut, and token by token.
TYPED_TEST(ShortConv, pieces_give_the_same_bits) {
  using T = TypeParam;
  const std::int64_t length = 11, channels = 9;
  const Problem<T> p({0, length}, channels, 4, true);
  Grid<T> last(3, channels);
  const Grid<T> whole = p.forward({}, {last.ptr()});
  const auto run = [&](const Lengths& cuts) {
    Grid<T> y(length, channels), state(3, channels);
    state.fill(0.0);
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      const Lengths cu = {0, cuts[i + 1] - cuts[i]};
      const std::vector<const T*> from = {state.ptr()};
      const std::vector<T*> to = {state.ptr()};
      short_conv_forward<T>(cu, channels, 4, p.x.ptr() + cuts[i] * channels, channels, p.weight.ptr(), p.bias.ptr(),
                            from, y.ptr() + cuts[i] * channels, channels, to);
    }
    for (std::int64_t n = 0; n < length; ++n) EXPECT_TRUE(same_row_bits(y, whole, n));
    EXPECT_TRUE(same_bits(state.data, last.data));
  };
  for (std::int64_t cut = 0; cut <= length; ++cut) run({0, cut, length});
  Lengths every;
  for (std::int64_t n = 0; n <= length; ++n) every.push_back(n);
  run(every);
}

TEST(ShortConv, gradients) {
  for (bool bias : {false, true})
    for (std::int64_t width : {1, 4}) {
      Problem<double> p({0, 1, 1, 60, 75}, 5, width, bias, 2);
      const auto [dx, dweight, dbias] = p.backward();
      const auto loss = [&] { return weighted_sum(p.dy, p.forward()); };
      expect_gradient(p.x, dx, loss, "dx");
      EXPECT_TRUE(dx.padding_untouched());
      expect_gradient(p.weight, dweight, loss, "dweight");
      if (bias) expect_gradient(p.bias, dbias, loss, "dbias");
    }
}

TYPED_TEST(ShortConv, float_gradients_follow_double_and_are_added) {
  using T = TypeParam;
  const Problem<T> p({0, 50, 300}, 150, 4, true);
  const Problem<double> exact({0, 50, 300}, 150, 4, true);
  const auto got = p.backward(0, 0.5);
  auto want = exact.backward(0, 0.5);
  expect_close(got.dx, want.dx, 10 * kBound<T>, "dx");
  expect_close(got.dweight, want.dweight, 10 * kBound<T>, "dweight");
  expect_close(got.dbias, want.dbias, 10 * kBound<T>, "dbias");
}

TYPED_TEST(ShortConv, same_bits_for_any_number_of_threads_and_for_separate_calls) {
  using T = TypeParam;
  const Problem<T> p({0, 700, 1500, 3000}, 33, 4, true);
  expect_same_for_threads([&](int threads) {
    auto g = p.backward(threads);
    return std::vector{p.forward({}, {}, threads).data, g.dx.data, g.dweight.data, g.dbias.data};
  });
  const Grid<T> y = p.forward(), dx = p.backward().dx;
  for (std::size_t s = 0; s < 3; ++s) {
    Problem<T> one({0, p.cu[s + 1] - p.cu[s]}, 33, 4, true);
    one.weight = p.weight, one.bias = p.bias;
    for (std::int64_t n = 0; n < one.N; ++n)
      for (std::int64_t c = 0; c < 33; ++c) one.x(n, c) = p.x(p.cu[s] + n, c), one.dy(n, c) = p.dy(p.cu[s] + n, c);
    const Grid<T> y1 = one.forward(), dx1 = one.backward().dx;
    for (std::int64_t n = 0; n < one.N; ++n)
      for (std::int64_t c = 0; c < 33; ++c) {
        EXPECT_EQ(y1(n, c), y(p.cu[s] + n, c));
        EXPECT_EQ(dx1(n, c), dx(p.cu[s] + n, c));
      }
  }
}

TYPED_TEST(ShortConv, nan_reaches_only_the_tokens_that_read_it) {
  using T = TypeParam;
  Problem<T> p({0, 10, 20}, 6, 4, false);
  const Grid<T> clean = p.forward();
  p.x(8, 2) = std::numeric_limits<T>::quiet_NaN();
  const Grid<T> dirty = p.forward();
  for (std::int64_t n = 0; n < 20; ++n)
    for (std::int64_t c = 0; c < 6; ++c) {
      if (c == 2 && (n == 8 || n == 9))
        EXPECT_TRUE(std::isnan(dirty(n, c)));
      else
        EXPECT_EQ(dirty(n, c), clean(n, c));
    }
}

RC_GTEST_PROP(ShortConvProperty, random_packings, ()) {
  Lengths cu = {0};
  for (std::int64_t n : *rc::gen::container<Lengths>(rc::gen::inRange<std::int64_t>(0, 50)))
    if (cu.size() < 8) cu.push_back(cu.back() + n);
  const Problem<double> p(cu, *rc::gen::inRange<std::int64_t>(1, 40), *rc::gen::inRange<std::int64_t>(1, 17),
                          *rc::gen::arbitrary<bool>(), *rc::gen::inRange<std::int64_t>(0, 4));
  expect_close(p.forward(), p.definition(), 1e-12, "y");
  RC_ASSERT(!::testing::Test::HasFailure());
}

TEST(ShortConv, errors) {
  std::vector<float> x(64);
  float* data = x.data();
  const auto call = [&](const Lengths& cu, std::int64_t channels, std::int64_t width, std::int64_t stride,
                        const std::vector<const float*>& initial) {
    return [=] {
      short_conv_forward<float>(cu, channels, width, data, stride, data, nullptr, initial, data + 32, stride, {});
    };
  };
  expect_error(call({0, 2}, 4, 0, 4, {}), "width is 0");
  expect_error(call({0, 2}, 4, 17, 4, {}), "width is 17");
  expect_error(call({0, 2}, 4, 4, 3, {}), "stride");
  expect_error(call({0, 2}, -4, 4, 4, {}), "size");
  expect_error(call({0, 2, 1}, 4, 4, 4, {}), "descends");
  expect_error(call({1, 2}, 4, 4, 4, {}), "start with 0");
  expect_error(call({0, 2}, 4, 4, 4, {nullptr, nullptr}), "2 initial states for 1");
  expect_error(
      [&] {
        const Lengths cu = {0, 2};
        short_conv_backward<float>(cu, 4, 4, data, 4, data, data, data, 4, data, 4, data, nullptr);
      },
      "bias and dbias");
}

}  // namespace
}  // namespace loglinear::testing
