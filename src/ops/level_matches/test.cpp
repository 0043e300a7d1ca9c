#include "loglinear/level_matches.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <bit>

#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

using Lengths = std::vector<std::int64_t>;

std::int64_t bits(std::int64_t x) { return std::bit_width(static_cast<std::uint64_t>(x)); }

template <class T>
struct Problem {
  Lengths cu;
  std::int64_t G, K, N, columns;
  std::vector<std::int64_t> begin;  // of each sequence, or empty: all at 0
  Grid<T> q, k, d;

  Problem(Lengths cu_, std::int64_t G_, std::int64_t K_, std::vector<std::int64_t> begin_ = {})
      : cu(std::move(cu_)), G(G_), K(K_), N(cu.back()), columns(1), begin(std::move(begin_)) {
    for (std::size_t s = 0; s + 1 < cu.size(); ++s)
      columns = std::max(columns, bits((begin.empty() ? 0 : begin[s]) + cu[s + 1] - cu[s]) + 1);
    q = Grid<T>(N, G * K, 1), k = Grid<T>(N, G * K, 2), d = Grid<T>(N, G * columns);
    Random random(23, static_cast<std::uint64_t>(K));
    q.fill(random), k.fill(random), d.fill(random);
  }
  MatchShape shape() const { return {cu, G, K, columns}; }
  std::vector<KeySums<T>> initial() const {
    std::vector<KeySums<T>> sums;
    for (const std::int64_t position : begin) sums.push_back({position, {}});
    return sums;
  }
  Grid<T> forward(int threads = 0) const {
    Grid<T> out(N, G * columns);
    level_matches_forward<T>(shape(), q.ptr(), q.stride, k.ptr(), k.stride, initial(), out.ptr(), {}, threads);
    return out;
  }
  std::pair<Grid<T>, Grid<T>> backward(int threads = 0, double start = 0) const {
    Grid<T> dq(N, G * K, 3), dk(N, G * K, 1);
    dq.fill(start), dk.fill(start);
    level_matches_backward<T>(shape(), q.ptr(), q.stride, k.ptr(), k.stride, initial(), d.ptr(), dq.ptr(), dq.stride,
                              dk.ptr(), dk.stride, threads);
    return {dq, dk};
  }
  // Pair by pair: s is in level bit_width(t XOR s) of t, positions counted from the beginning of the sequence's life.
  Grid<double> definition() const {
    Grid<double> out(N, G * columns);
    out.fill(0);
    for (std::size_t n = 0; n + 1 < cu.size(); ++n)
      for (std::int64_t t = cu[n]; t < cu[n + 1]; ++t)
        for (std::int64_t s = cu[n]; s <= t; ++s)
          for (std::int64_t g = 0; g < G; ++g) {
            const std::int64_t first = (begin.empty() ? 0 : begin[n]) - cu[n], level = bits((t + first) ^ (s + first));
            double sum = 0;
            for (std::int64_t i = 0; i < K; ++i) sum += static_cast<double>(q(t, g * K + i)) * k(s, g * K + i);
            out(t, g * columns + level) +=
                sum * std::exp2(-0.5 * static_cast<double>(std::max<std::int64_t>(0, level - 1)));
          }
    return out;
  }
};

template <class T>
class LevelMatches : public ::testing::Test {};
TYPED_TEST_SUITE(LevelMatches, Floats);

TYPED_TEST(LevelMatches, definition) {
  using T = TypeParam;
  for (const Lengths& cu : {Lengths{0}, Lengths{0, 0}, Lengths{0, 1}, Lengths{0, 1, 1, 70, 203}, Lengths{0, 300}})
    for (const auto& [G, K] : {std::pair{1, 1}, {1, 8}, {3, 5}, {2, 33}}) {
      const Problem<T> p(cu, G, K);
      expect_close(p.forward(), p.definition(), 40 * kBound<T>, "matches");
    }
}

TYPED_TEST(LevelMatches, SequencesMayBeginAnywhere) {
  const Problem<TypeParam> p({0, 20, 90, 91}, 2, 5, {0, 61, std::int64_t{1} << 40});
  expect_close(p.forward(), p.definition(), 40 * kBound<TypeParam>, "matches");
  // Sequences are cut for threads where positions are multiples of 1024.
  for (const Lengths& begin : {Lengths{0, 0}, Lengths{1020, 2047}}) {
    const Problem<TypeParam> far({0, 30, 2200}, 1, 3, begin);
    expect_close(far.forward(), far.definition(), 40 * kBound<TypeParam>, "matches");
  }
}

TEST(LevelMatches, Gradients) {
  struct Case {
    Lengths cu, begin;
    std::int64_t G, K;
  };
  const std::vector<Case> cases = {{{0, 1, 24, 41}, {}, 2, 3},
                                   {{0, 1, 24, 41}, {7, 12, 1000}, 2, 3},
                                   {{0, 1100}, {3070}, 1, 1},  // 3072 and 4096, where a span merges two others
                                   {{0, 40, 1070}, {1000, 1024}, 1, 1}};
  for (const Case& c : cases) {
    Problem<double> p(c.cu, c.G, c.K, c.begin);
    const auto [dq, dk] = p.backward();
    const auto loss = [&] { return weighted_sum(p.d, p.forward()); };
    expect_gradient(p.q, dq, loss, "dq");
    expect_gradient(p.k, dk, loss, "dk");
    EXPECT_TRUE(dq.padding_untouched() && dk.padding_untouched());
  }
}

TYPED_TEST(LevelMatches, FloatGradientsFollowDoubleAndAreAdded) {
  using T = TypeParam;
  const Problem<T> p({0, 130, 400}, 2, 9);
  const Problem<double> exact({0, 130, 400}, 2, 9);
  auto [dq, dk] = exact.backward();
  for (auto* grid : {&dq, &dk})
    for (double& value : grid->data) value += 0.5;
  expect_close(p.backward(0, 0.5).first, dq, 100 * kBound<T>, "dq");
  expect_close(p.backward(0, 0.5).second, dk, 100 * kBound<T>, "dk");
}

TYPED_TEST(LevelMatches, SameBitsForAnyNumberOfThreads) {
  for (const Lengths& cu : {Lengths{0, 700, 701, 1000}, Lengths{0, 5000}}) {
    const Problem<TypeParam> p(cu, 3, 5);
    expect_same_for_threads([&](int t) {
      auto [dq, dk] = p.backward(t);
      return std::vector{p.forward(t).data, dq.data, dk.data};
    });
  }
}

// A stream cut anywhere, its sums handed on, has the bits of one call.
RC_GTEST_PROP(LevelMatchesProperty, EveryCutHasTheBitsOfOneCall, ()) {
  const std::int64_t T = *rc::gen::oneOf(rc::gen::inRange(1, 200), rc::gen::inRange(2800, 3200)),
                     G = *rc::gen::inRange(1, 4), K = *rc::gen::inRange(1, 12);
  const Problem<float> whole({0, T}, G, K);
  const Grid<float> want = whole.forward();
  std::vector<KeySums<float>> sums(1);
  Grid<float> got(T, G * whole.columns);
  for (std::int64_t at = 0; at < T;) {
    const std::int64_t next = at + (*rc::gen::arbitrary<bool>() ? 1 : *rc::gen::inRange<std::int64_t>(1, T - at + 1));
    const Lengths cu{0, next - at};
    level_matches_forward<float>({cu, G, K, whole.columns}, &whole.q.data[at * whole.q.stride], whole.q.stride,
                                 &whole.k.data[at * whole.k.stride], whole.k.stride, sums, &got(at, 0), sums);
    at = next;
    RC_ASSERT(sums[0].position == at);
    RC_ASSERT(static_cast<std::int64_t>(sums[0].sums.size()) == bits(at) * G * K);
  }
  RC_ASSERT(got.data == want.data);
}

TEST(LevelMatches, NanStaysInItsSequenceAndGroup) {
  Problem<float> p({0, 40, 80}, 2, 4);
  const Grid<float> clean = p.forward();
  p.k(20, 1) = std::numeric_limits<float>::quiet_NaN();
  const Grid<float> dirty = p.forward();
  for (std::int64_t n = 0; n < 80; ++n)
    for (std::int64_t c = 0; c < 2 * p.columns; ++c) {
      const bool sees = n >= 20 && n < 40 && c == bits(n ^ 20);
      EXPECT_EQ(std::isnan(dirty(n, c)), sees) << n << " " << c;
      if (!sees) EXPECT_EQ(dirty(n, c), clean(n, c));
    }
}

TEST(LevelMatches, Errors) {
  float x[256] = {};
  const Lengths cu{0, 4}, down{0, 4, 3};
  const auto forward = [&](const MatchShape& shape, std::vector<KeySums<float>> initial = {}, std::int64_t stride = 6,
                           std::size_t final = 0) {
    std::vector<KeySums<float>> last(final);
    level_matches_forward<float>(shape, x, stride, x, 6, initial, x + 128, last);
  };
  expect_error([&] { forward({cu, 2, 3, 65}); }, "columns: got 65");
  expect_error([&] { forward({cu, 2, 3, 2}); }, "position 3 has more levels");
  expect_error([&] { forward({cu, 2, -3, 4}); }, "got a size of -3");
  expect_error([&] { forward({down, 2, 3, 4}); }, "cu_seqlens descends");
  expect_error([&] { forward({cu, 2, 3, 4}, {}, 5); }, "q: row stride 5");
  expect_error([&] { forward({cu, 2, 3, 4}, {{0, {}}, {0, {}}}); }, "initial: got 2");
  expect_error([&] { forward({cu, 2, 3, 4}, {{3, {1, 2}}}); }, "initial: got 2 numbers, position 3 has 12");
  expect_error([&] { forward({cu, 2, 3, 4}, {{-1, {}}}); }, "position: got -1");
  expect_error([&] { forward({cu, 2, 3, 4}, {}, 6, 2); }, "final: got 2");
  expect_error(
      [&] {
        level_matches_backward<float>({cu, 2, 3, 4}, x, 6, x, 6, {}, x, x, 6, nullptr, 6);
      },
      "dk is null");
  EXPECT_NO_THROW(forward({cu, 2, 3, 4}, {{4, {}}}, 6, 1));
}

// Centred, the matches are those of keys less their mean; what all keys have in common changes nothing any more.
TEST(CenterMatches, TakesTheMeanKeyAway) {
  const Problem<double> p({0, 1, 38, 150}, 2, 5);
  std::vector<std::int64_t> positions;
  for (std::size_t n = 0; n + 1 < p.cu.size(); ++n)
    for (std::int64_t t = p.cu[n]; t < p.cu[n + 1]; ++t) positions.push_back(t - p.cu[n]);
  Grid<double> out = p.forward();
  center_matches(p.N, p.G, p.columns, positions.data(), out.ptr());
  for (std::size_t n = 0; n + 1 < p.cu.size(); ++n)
    for (std::int64_t t = p.cu[n]; t < p.cu[n + 1]; ++t)
      for (std::int64_t g = 0; g < p.G; ++g) {
        std::vector<double> sums(static_cast<std::size_t>(p.columns)), sizes(sums), mean(static_cast<std::size_t>(p.K));
        const std::int64_t tokens = t - p.cu[n] + 1;
        for (std::int64_t s = p.cu[n]; s <= t; ++s)
          for (std::int64_t i = 0; i < p.K; ++i) mean[i] += p.k(s, g * p.K + i) / static_cast<double>(tokens);
        for (std::int64_t s = p.cu[n]; s <= t; ++s) {
          const std::int64_t level = bits((t - p.cu[n]) ^ (s - p.cu[n]));
          sizes[level] += 1;
          for (std::int64_t i = 0; i < p.K; ++i) sums[level] += p.q(t, g * p.K + i) * (p.k(s, g * p.K + i) - mean[i]);
        }
        for (std::int64_t l = 0; l < p.columns; ++l)
          EXPECT_NEAR(out(t, g * p.columns + l), sizes[l] == 0 ? 0 : sums[l] / std::sqrt(sizes[l]), 1e-12)
              << t << " " << l;
      }
}

TEST(CenterMatches, IsItsOwnAdjointForAnyPositionAndNumberOfThreads) {
  const std::vector<std::int64_t> positions = {
      0, 1, 2, 63, 64, 100, (std::int64_t{1} << 40) + 5, (std::int64_t{1} << 61) - 1};
  const std::int64_t N = static_cast<std::int64_t>(positions.size()), G = 3, columns = 63;
  Random random(5, 1);
  Grid<double> x(N, G * columns), y(N, G * columns);
  x.fill(random), y.fill(random);
  for (std::int64_t n = 0; n < N; ++n)  // as matches and their gradients are: nothing where there is no level
    for (std::int64_t c = 0; c < G * columns; ++c) {
      const std::int64_t l = c % columns;
      if (l > 0 && (positions[n] >> (l - 1) & 1) == 0) x(n, c) = y(n, c) = 0;
    }
  Grid<double> px = x, py = y;
  center_matches(N, G, columns, positions.data(), px.ptr(), 1);
  center_matches(N, G, columns, positions.data(), py.ptr(), 3);
  for (std::int64_t n = 0; n < N; ++n) {
    double left = 0, right = 0;
    for (std::int64_t c = 0; c < G * columns; ++c) left += px(n, c) * y(n, c), right += x(n, c) * py(n, c);
    EXPECT_NEAR(left, right, 1e-12) << n;
  }
  Grid<double> again = px;
  center_matches(N, G, columns, positions.data(), again.ptr(), 5);
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t c = 0; c < G * columns; ++c) EXPECT_NEAR(again(n, c), px(n, c), 1e-12);
  expect_error([&] { center_matches<double>(N, G, 20, positions.data(), px.ptr()); }, "more levels");
  const std::int64_t negative = -1;
  expect_error([&] { center_matches<double>(1, 1, 4, &negative, px.ptr()); }, "position: got -1");
}

}  // namespace
}  // namespace loglinear::testing
