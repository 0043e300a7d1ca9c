#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <complex>

#include "base/cpu_features.hpp"
#include "compare.hpp"
#include "loglinear/mosa.hpp"
#include "op_testing.hpp"
#include "ops/mosa/ref.hpp"

namespace loglinear::testing {
namespace {

using Lengths = std::vector<std::int64_t>;
namespace ref = mosa::ref;

template <class T>
std::vector<double> dense(const Grid<T>& grid) {
  std::vector<double> values;
  for (std::int64_t r = 0; r < grid.rows; ++r)
    for (std::int64_t c = 0; c < grid.width; ++c) values.push_back(static_cast<double>(grid(r, c)));
  return values;
}

MosaShape shape_of(std::int64_t D, std::int64_t E, std::int64_t d, std::int64_t sparsity, bool first_token = false) {
  return {.model_width = D, .heads = E, .head_width = d, .sparsity = sparsity, .first_token = first_token};
}

template <class T>
struct Problem {
  Lengths cu;
  MosaShape shape;
  std::int64_t N, D, E, d;
  Grid<T> x, router, qkv, out, dy;

  Problem(Lengths cu_, const MosaShape& shape_, std::int64_t padding = 0, std::uint64_t seed = 1)
      : cu(std::move(cu_)),
        shape(shape_),
        N(cu.back()),
        D(shape.model_width),
        E(shape.heads),
        d(shape.head_width),
        x(N, D, padding),
        router(D, E),
        qkv(E * D, 3 * d),
        out(E * d, D),
        dy(N, D, padding) {
    Random random(81, seed);
    const double w = 1.5 / std::sqrt(static_cast<double>(D));
    x.fill(random), router.fill(random, -w, w), qkv.fill(random, -w, w), out.fill(random), dy.fill(random);
  }
  MosaWeights<T> weights() const { return {router.ptr(), qkv.ptr(), out.ptr()}; }
  std::size_t choices() const {
    std::int64_t n = 0;
    for (std::size_t s = 0; s + 1 < cu.size(); ++s) n += mosa_choice(cu[s + 1] - cu[s], shape.sparsity);
    return static_cast<std::size_t>(n * E);
  }

  Grid<T> forward(int threads = 0, Lengths* chosen = nullptr) const {
    Grid<T> y(N, D, 3);
    if (chosen) chosen->assign(choices(), -1);
    mosa_forward<T>(cu, shape, weights(), x.ptr(), x.stride, y.ptr(), y.stride, chosen ? chosen->data() : nullptr,
                    threads);
    return y;
  }
  struct Gradients {
    Grid<T> dx, drouter, dqkv, dout;
  };
  Gradients backward(int threads = 0, double start = 0) const {
    Gradients g{Grid<T>(N, D, 1), Grid<T>(D, E), Grid<T>(E * D, 3 * d), Grid<T>(E * d, D)};
    g.drouter.fill(start), g.dqkv.fill(start), g.dout.fill(start);
    mosa_backward<T>(cu, shape, weights(), x.ptr(), x.stride, dy.ptr(), dy.stride, g.dx.ptr(), g.dx.stride,
                     {g.drouter.ptr(), g.dqkv.ptr(), g.dout.ptr()}, threads);
    EXPECT_TRUE(g.dx.padding_untouched());
    return g;
  }
  template <class S>
  ref::Inputs<S> inputs() const {
    const auto copy = [](const Grid<T>& from) {
      const std::vector<double> values = dense(from);
      return std::vector<S>(values.begin(), values.end());
    };
    return {cu, shape, copy(router), copy(qkv), copy(out), copy(x)};
  }
};

template <class T>
class Mosa : public ::testing::Test {};
TYPED_TEST_SUITE(Mosa, Floats);

// Float scores may tie or swap where float64 ones do not: seeds are drawn until the reference chooses with a margin.
template <class T>
void check_forward(const Lengths& cu, const MosaShape& shape, std::int64_t padding) {
  SCOPED_TRACE(::testing::Message() << "N " << cu.back() << " D " << shape.model_width << " E " << shape.heads << " d "
                                    << shape.head_width << " sparsity " << shape.sparsity << " first "
                                    << shape.first_token);
  for (std::uint64_t seed = 1;; ++seed) {
    ASSERT_LT(seed, 200u);
    const Problem<T> p(cu, shape, padding, seed);
    Lengths chosen, want_chosen;
    double gap = 0;
    const std::vector<double> want = ref::forward(p.template inputs<double>(), &want_chosen, &gap);
    if (!(gap > 2e-6)) continue;
    const Grid<T> y = p.forward(0, &chosen);
    EXPECT_EQ(chosen, want_chosen);
    EXPECT_TRUE(close("y", dense(y), want, sizeof(T) == 4 ? 3e-6 : 1e-12));
    EXPECT_TRUE(y.padding_untouched());
    return;
  }
}

TYPED_TEST(Mosa, definition) {
  using T = TypeParam;
  for (const Lengths& cu : {Lengths{0}, Lengths{0, 0}, Lengths{0, 1}, Lengths{0, 2}, Lengths{0, 1, 4, 4, 21, 91}})
    for (std::int64_t d : {1, 4, 7, 16, 33})
      for (std::int64_t sparsity : {1, 3, 200})
        for (bool first : {false, true}) check_forward<T>(cu, shape_of(13, 3, d, sparsity, first), d % 3);
  check_forward<T>({0, 100, 257}, shape_of(300, 1, 20, 2), 0);
  check_forward<T>({0, 530}, shape_of(32, 1, 16, 2, true), 0);
}

TYPED_TEST(Mosa, every_instruction_set) {
  using T = TypeParam;
  for (const std::string& name : instruction_sets()) {
    SCOPED_TRACE(name);
    force_instruction_set(name);
    check_forward<T>({0, 70, 201}, shape_of(37, 3, 18, 2), 1);
  }
  force_instruction_set("");
}

RC_GTEST_PROP(MosaProperty, random_shapes, ()) {
  Lengths cu = {0};
  const int count = *rc::gen::inRange(0, 4);
  for (int i = 0; i < count; ++i) cu.push_back(cu.back() + *rc::gen::inRange<std::int64_t>(0, 90));
  const auto size = [](std::int64_t to) { return *rc::gen::inRange<std::int64_t>(1, to); };
  check_forward<double>(cu, shape_of(size(40), size(6), size(24), size(20), *rc::gen::arbitrary<bool>()), size(4));
  RC_ASSERT(!::testing::Test::HasFailure());
}

// Every gradient against the complex step of the definition.
void check_gradients(const Lengths& cu, const MosaShape& shape, std::int64_t padding, std::uint64_t seed = 1) {
  SCOPED_TRACE(::testing::Message() << "N " << cu.back() << " d " << shape.head_width << " sparsity "
                                    << shape.sparsity);
  using C = std::complex<double>;
  const Problem<double> p(cu, shape, padding, seed);
  double gap = 0;
  ref::forward(p.inputs<double>(), nullptr, &gap);
  ASSERT_GT(gap, 1e-6);
  const auto g = p.backward();
  ref::Inputs<C> z = p.inputs<C>();
  const std::vector<double> dy = dense(p.dy);
  const auto check = [&](const char* what, std::vector<C>& inputs, const Grid<double>& gradient) {
    const std::vector<double> all = dense(gradient);
    std::vector<double> got, want;
    const std::size_t step = std::max<std::size_t>(1, inputs.size() / 60);
    for (std::size_t i = 0; i < inputs.size(); i += step) {
      const C kept = inputs[i];
      inputs[i] += C(0, 1e-100);
      const std::vector<C> y = ref::forward(z);
      inputs[i] = kept;
      C loss = 0;
      for (std::size_t n = 0; n < y.size(); ++n) loss += y[n] * dy[n];
      got.push_back(all[i]), want.push_back(loss.imag() / 1e-100);
    }
    EXPECT_TRUE(close(what, got, want, 1e-11));
  };
  check("dx", z.x, g.dx);
  check("drouter", z.router, g.drouter);
  check("dqkv", z.qkv, g.dqkv);
  check("dout", z.out, g.dout);
}

TEST(Mosa, gradients_equal_complex_step) {
  check_gradients({0, 1}, shape_of(3, 2, 4, 1), 0);
  check_gradients({0, 1, 4, 4, 30}, shape_of(5, 3, 7, 3), 2);
  check_gradients({0, 12, 29}, shape_of(6, 2, 9, 2, true), 1);
  check_gradients({0, 140}, shape_of(7, 1, 4, 1), 0);  // three tiles of chosen tokens
}

TEST(Mosa, gradients_of_wide_models) {
  // Products deeper than one panel.
  check_gradients({0, 9}, shape_of(300, 1, 3, 3), 0);
}

TYPED_TEST(Mosa, gradients_are_added_and_float_is_near_double) {
  using T = TypeParam;
  const Problem<T> p({0, 90, 211}, shape_of(24, 4, 16, 4));
  const auto zero = p.backward(), one = p.backward(0, 1.0);
  Problem<double> wide({0, 90, 211}, shape_of(24, 4, 16, 4));
  const auto want = wide.backward();
  const double bound = sizeof(T) == 4 ? 2e-5 : 0;
  EXPECT_TRUE(close("dx", dense(zero.dx), dense(want.dx), bound));
  EXPECT_TRUE(close("drouter", dense(zero.drouter), dense(want.drouter), bound));
  EXPECT_TRUE(close("dqkv", dense(zero.dqkv), dense(want.dqkv), bound));
  EXPECT_TRUE(close("dout", dense(zero.dout), dense(want.dout), bound));
  const auto added = [](Grid<T> grid) {
    for (T& value : grid.data) value = T(1) + value;
    return grid;
  };
  EXPECT_TRUE(same_bits(one.dqkv.data, added(zero.dqkv).data));
  EXPECT_TRUE(same_bits(one.dout.data, added(zero.dout).data));
  EXPECT_TRUE(same_bits(one.drouter.data, added(zero.drouter).data));
  EXPECT_TRUE(same_bits(one.dx.data, zero.dx.data));
}

// Equal scores: the earlier tokens are chosen. A router of zeros makes all of them equal.
TYPED_TEST(Mosa, ties_go_to_the_earlier_token) {
  using T = TypeParam;
  Problem<T> p({0, 40}, shape_of(8, 2, 4, 5));
  p.router.fill(0.0);
  Lengths chosen;
  p.forward(0, &chosen);
  EXPECT_EQ(chosen, (Lengths{0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7}));
  // A saturated sigmoid ties as well: every score is exactly 1.
  p.router.fill(1.0);
  for (std::int64_t t = 0; t < 40; ++t)
    for (std::int64_t c = 0; c < 8; ++c) p.x(t, c) = static_cast<T>(50 + t);
  p.forward(0, &chosen);
  EXPECT_EQ(chosen, (Lengths{0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7}));
}

TYPED_TEST(Mosa, the_first_token_is_chosen_when_asked_for) {
  using T = TypeParam;
  Problem<T> p({0, 60}, shape_of(8, 3, 4, 6));
  // Token 0 has the lowest score of all.
  p.router.fill(1.0);
  for (std::int64_t c = 0; c < 8; ++c) p.x(0, c) = T(-1);
  Lengths without, with;
  p.forward(0, &without);
  p.shape.first_token = true;
  p.forward(0, &with);
  ASSERT_EQ(with.size(), without.size());
  for (std::size_t e = 0; e < 3; ++e) {
    EXPECT_NE(without[e * 10], 0);
    EXPECT_EQ(with[e * 10], 0);
    // One of the others made room.
    std::vector<std::int64_t> lost;
    std::set_difference(without.begin() + e * 10, without.begin() + e * 10 + 10, with.begin() + e * 10,
                        with.begin() + e * 10 + 10, std::back_inserter(lost));
    EXPECT_EQ(lost.size(), 1u);
  }
}

TYPED_TEST(Mosa, tokens_that_no_head_chose_are_zero) {
  using T = TypeParam;
  const Problem<T> p({0, 64}, shape_of(16, 2, 8, 16));
  Lengths chosen;
  const Grid<T> y = p.forward(0, &chosen);
  std::int64_t zero_rows = 0;
  for (std::int64_t t = 0; t < 64; ++t) {
    const bool seen = std::find(chosen.begin(), chosen.end(), t) != chosen.end();
    bool zero = true;
    for (std::int64_t c = 0; c < 16; ++c) zero &= y(t, c) == T(0);
    EXPECT_EQ(zero, !seen) << t;
    zero_rows += zero;
  }
  EXPECT_GE(zero_rows, 56);
}

// What the contract warns of: a token far away decides whether an earlier one is chosen.
TYPED_TEST(Mosa, later_tokens_reach_earlier_ones_through_the_choice_alone) {
  using T = TypeParam;
  Problem<T> p({0, 50}, shape_of(8, 1, 4, 25));  // two tokens
  p.router.fill(1.0);
  Lengths before, after;
  p.forward(0, &before);
  for (std::int64_t c = 0; c < 8; ++c) p.x(49, c) = T(10);
  p.forward(0, &after);
  EXPECT_NE(before, after);
  EXPECT_EQ(after[1], 49);
  // Where all are chosen there is no choice, and the output is causal.
  Problem<T> q({0, 150}, shape_of(8, 2, 8, 1));
  const Grid<T> y = q.forward();
  for (std::int64_t c = 0; c < 8; ++c) q.x(97, c) = std::numeric_limits<T>::quiet_NaN();
  const Grid<T> z = q.forward();
  for (std::int64_t t = 0; t < 150; ++t) EXPECT_EQ(same_row_bits(y, z, t), t < 97) << t;
}

TYPED_TEST(Mosa, bits_do_not_depend_on_threads) {
  using T = TypeParam;
  const Problem<T> p({0, 130, 131, 700}, shape_of(40, 5, 12, 3));
  expect_same_for_threads([&](int threads) {
    const auto g = p.backward(threads);
    return std::vector<std::vector<T>>{p.forward(threads).data, g.dx.data, g.drouter.data, g.dqkv.data, g.dout.data};
  });
}

TYPED_TEST(Mosa, sequences_are_separate) {
  using T = TypeParam;
  Problem<T> p({0, 70, 70, 201}, shape_of(20, 3, 8, 4));
  const Grid<T> y = p.forward(), dx = p.backward().dx;
  for (std::size_t s = 0; s < 3; ++s) {
    const Lengths one = {0, p.cu[s + 1] - p.cu[s]};
    Grid<T> alone(one[1], p.D), dalone(one[1], p.D), drouter = p.router, dqkv = p.qkv, dout = p.out;
    mosa_forward<T>(one, p.shape, p.weights(), p.x.ptr() + p.cu[s] * p.x.stride, p.x.stride, alone.ptr(), alone.stride);
    mosa_backward<T>(one, p.shape, p.weights(), p.x.ptr() + p.cu[s] * p.x.stride, p.x.stride,
                     p.dy.ptr() + p.cu[s] * p.dy.stride, p.dy.stride, dalone.ptr(), dalone.stride,
                     {drouter.ptr(), dqkv.ptr(), dout.ptr()});
    for (std::int64_t t = 0; t < one[1]; ++t)
      for (std::int64_t c = 0; c < p.D; ++c) {
        EXPECT_EQ(alone(t, c), y(p.cu[s] + t, c));
        EXPECT_EQ(dalone(t, c), dx(p.cu[s] + t, c));
      }
  }
  // A NaN stays in its sequence, and shows there.
  p.x(150, 3) = std::numeric_limits<T>::quiet_NaN();
  const Grid<T> dirty = p.forward(), ddirty = p.backward().dx;
  EXPECT_TRUE(std::isnan(dirty(150, 0)));
  for (std::int64_t t = 0; t < 70; ++t) {
    EXPECT_TRUE(same_row_bits(y, dirty, t));
    EXPECT_TRUE(same_row_bits(dx, ddirty, t));
  }
}

TEST(Mosa, errors) {
  float data[256] = {};
  const MosaWeights<float> weights = {data, data, data};
  const Lengths cu = {0, 2};
  const auto call = [&](const MosaShape& shape, const MosaWeights<float>& w, Lengths lengths, std::int64_t stride) {
    return [=, &data] { mosa_forward<float>(lengths, shape, w, data, stride, data + 128, 4); };
  };
  expect_error(call(shape_of(0, 1, 4, 2), weights, cu, 4), "at least 1");
  expect_error(call(shape_of(4, 1, 4, 0), weights, cu, 4), "sparsity is 0");
  MosaShape turned = shape_of(4, 1, 4, 2);
  turned.theta = 0;
  expect_error(call(turned, weights, cu, 4), "theta");
  expect_error(call(shape_of(4, 1, 4, 2), weights, {1, 2}, 4), "cu_seqlens");
  expect_error(call(shape_of(4, 1, 4, 2), weights, {0, 3, 2}, 4), "descends");
  expect_error(call(shape_of(4, 1, 4, 2), weights, cu, 3), "x: row stride 3");
  expect_error(call(shape_of(4, 1, 4, 2), {nullptr, data, data}, cu, 4), "router is null");
  expect_error(call(shape_of(4, 1, 4, 2), {data, data, nullptr}, cu, 4), "out is null");
  expect_error(call(shape_of(std::int64_t{1} << 40, 1 << 20, 1 << 20, 2), weights, cu, 4), "overflow");
  expect_error([&] { mosa_choice(-1, 2); }, "T is -1");
  expect_error(
      [&] {
        mosa_backward<float>(cu, shape_of(4, 1, 4, 2), weights, data, 4, data, 4, data + 128, 4,
                             {data + 200, nullptr, data});
      },
      "gradient of qkv is null");
}

}  // namespace
}  // namespace loglinear::testing
