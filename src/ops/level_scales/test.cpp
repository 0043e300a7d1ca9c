#include "loglinear/level_scales.hpp"

#include <bit>

#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

constexpr LevelPolicy kPolicies[] = {LevelPolicy::share, LevelPolicy::stretch, LevelPolicy::routed,
                                     LevelPolicy::content};

template <class T>
struct Problem {
  LevelShape shape;
  T factor = T(1.5);
  std::vector<std::int64_t> positions;
  Grid<T> dl, level, dscales, matches;

  // Positions: small ones, powers of two and their neighbours up to `last`.
  Problem(LevelPolicy policy, std::int64_t N, std::int64_t H, std::int64_t L, std::int64_t learned,
          std::int64_t last = 5000) {
    Random random(17, static_cast<std::uint64_t>(H));
    for (std::int64_t n = 0; n < N; ++n) {
      const std::int64_t power = std::int64_t{1} << (n % 13);
      positions.push_back(n < 16 ? n : n % 3 == 0 ? std::min(last, power + n % 5 - 1) : n * 37 % (last + 1));
    }
    shape = {policy, N, H, L, learned, level_columns(policy, learned, last), 1, 1.25};
    dl = Grid<T>(N, H * L, 2), level = Grid<T>(H, L), dscales = Grid<T>(N, H * shape.columns);
    dl.fill(random, -3, 3), level.fill(random, 0.5, 1.5), dscales.fill(random);
    matches = Grid<T>(N, shape.columns).fill(random, -2, 2);
    if (N > 1) dl(1, 0) = 40;  // the linear part of softplus
  }
  Grid<T> forward(int threads = 0) const {
    Grid<T> out(shape.rows, shape.heads * shape.columns);
    level_scales_forward<T>(shape, positions.data(), dl.ptr(), dl.stride, level.ptr(), matches.ptr(), factor, out.ptr(),
                            threads);
    return out;
  }
  struct Gradients {
    Grid<T> ddl, dlevel, dmatches;
  };
  Gradients backward(int threads = 0, double start = 0) const {
    Grid<T> ddl(shape.rows, shape.heads * shape.levels, 3), dlevel(shape.heads, shape.levels),
        dmatches(shape.rows, shape.columns);
    dlevel.fill(start);
    level_scales_backward<T>(shape, positions.data(), dl.ptr(), dl.stride, level.ptr(), matches.ptr(), factor,
                             dscales.ptr(), ddl.ptr(), ddl.stride, dlevel.ptr(), dmatches.ptr(), threads);
    return {ddl, dlevel, dmatches};
  }
  double z(std::int64_t n, std::int64_t h, std::int64_t j) const {
    return static_cast<double>(level(h, j)) * dl(n, h * shape.levels + j);
  }
  // What content adds.
  double found(std::int64_t n, std::int64_t h, std::int64_t l) const {
    if (shape.policy != LevelPolicy::content) return 0;
    return static_cast<double>(level(h, std::min(l, shape.learned - 1))) * shape.match_factor * matches(n, l);
  }
  // The definition in the header, level by level.
  double definition(std::int64_t n, std::int64_t h, std::int64_t l) const {
    const std::int64_t t = positions[n], last = shape.learned - 1, m = std::bit_width(static_cast<std::uint64_t>(t));
    if (shape.policy == LevelPolicy::share) return factor * softplus(z(n, h, l));
    if (l > m) return 0;
    if (shape.policy == LevelPolicy::stretch) {
      if (m <= last) return factor * softplus(z(n, h, l));
      const double at = static_cast<double>(l * last) / static_cast<double>(m), below = std::floor(at);
      const double low = softplus(z(n, h, static_cast<std::int64_t>(below)));
      if (at == below) return factor * low;
      return factor * (low + (at - below) * (softplus(z(n, h, static_cast<std::int64_t>(below) + 1)) - low));
    }
    double sum = 0, mine = 0;
    int count = 0;
    for (std::int64_t j = 0; j <= m; ++j) {
      if (j > 0 && (t >> (j - 1)) % 2 == 0) continue;
      const double p = std::exp(z(n, h, std::min(j, last)) + found(n, h, j));
      sum += p, ++count;
      if (j == l) mine = p;
    }
    return factor * mine * count / sum;
  }
};

template <class T>
class LevelScales : public ::testing::Test {};
TYPED_TEST_SUITE(LevelScales, Floats);

TYPED_TEST(LevelScales, definition) {
  using T = TypeParam;
  for (const LevelPolicy policy : kPolicies)
    for (std::int64_t N : {0, 1, 80})
      for (std::int64_t learned : {1, 2, 6, 15}) {
        const Problem<T> p(policy, N, 3, 15, learned);
        const std::int64_t C = p.shape.columns;
        Grid<double> want(N, 3 * C);
        for (std::int64_t n = 0; n < N; ++n)
          for (std::int64_t h = 0; h < 3; ++h)
            for (std::int64_t l = 0; l < C; ++l) want(n, h * C + l) = p.definition(n, h, l);
        expect_close(p.forward(), want, 20 * kBound<T>, "level_scales");
      }
}

TEST(LevelScales, StretchIsShareWhereLevelsAreLearned) {
  const Problem<float> share(LevelPolicy::share, 60, 2, 9, 7, 63), stretch(LevelPolicy::stretch, 60, 2, 9, 7, 63);
  const Grid<float> a = share.forward(), b = stretch.forward();
  for (std::int64_t n = 0; n < 60; ++n)
    for (std::int64_t l = 0;
         l <= static_cast<std::int64_t>(std::bit_width(static_cast<std::uint64_t>(share.positions[n]))); ++l)
      EXPECT_EQ(a(n, l), b(n, l)) << n << " " << l;
}

TEST(LevelScales, CountsTheLevelsOfASequence) {
  std::int64_t most = 0;
  for (std::int64_t T = 1; T < 300; ++T) {
    for (std::int64_t s = 0; s < T; ++s)
      most = std::max<std::int64_t>(most, std::bit_width(static_cast<std::uint64_t>((T - 1) ^ s)));
    EXPECT_EQ(level_count(T), most + 1) << T;
  }
}

TEST(LevelScales, ColumnsHoldEveryLevelOfTheStateAfterTheLastToken) {
  EXPECT_EQ(level_columns(LevelPolicy::share, 7, 1000000), 7);
  for (std::int64_t last : {std::int64_t{0}, std::int64_t{1}, std::int64_t{62}, std::int64_t{63}, std::int64_t{64},
                            std::int64_t{1} << 40, std::int64_t{1} << 62})
    for (const LevelPolicy policy : {LevelPolicy::stretch, LevelPolicy::routed, LevelPolicy::content}) {
      // Slots are merged from bit columns - 2 on: the counter of last + 1 tokens has none there but at the very end.
      const std::int64_t columns = level_columns(policy, 7, last);
      EXPECT_GE(columns, std::min<std::int64_t>(64, std::bit_width(static_cast<std::uint64_t>(last + 1)) + 2));
    }
}

TEST(LevelScales, Gradients) {
  for (const LevelPolicy policy : kPolicies)
    for (std::int64_t learned : {1, 4, 5}) {
      Problem<double> p(policy, 40, 3, 5, learned);
      const auto [ddl, dlevel, dmatches] = p.backward();
      const auto loss = [&] { return weighted_sum(p.dscales, p.forward()); };
      expect_gradient(p.dl, ddl, loss, "ddl");
      expect_gradient(p.level, dlevel, loss, "dlevel");
      if (policy == LevelPolicy::content) expect_gradient(p.matches, dmatches, loss, "dmatches");
      EXPECT_TRUE(ddl.padding_untouched());
    }
}

TYPED_TEST(LevelScales, FloatGradientsFollowDoubleAndAreAdded) {
  using T = TypeParam;
  for (const LevelPolicy policy : kPolicies) {
    const Problem<T> p(policy, 100, 5, 15, 9);
    const Problem<double> exact(policy, 100, 5, 15, 9);
    auto [ddl, dlevel, dmatches] = exact.backward();
    for (double& value : dlevel.data) value += 0.5;
    expect_close(p.backward(0, 0.5).ddl, ddl, 40 * kBound<T>, "ddl");
    expect_close(p.backward(0, 0.5).dlevel, dlevel, 40 * kBound<T>, "dlevel");
    if (policy == LevelPolicy::content) expect_close(p.backward(0, 0.5).dmatches, dmatches, 40 * kBound<T>, "dmatches");
  }
}

TYPED_TEST(LevelScales, SameBitsForAnyNumberOfThreads) {
  for (const LevelPolicy policy : kPolicies) {
    const Problem<TypeParam> p(policy, 2500, 3, 15, 9);
    expect_same_for_threads([&](int t) {
      auto [ddl, dlevel, dmatches] = p.backward(t);
      return std::vector{p.forward(t).data, ddl.data, dlevel.data, dmatches.data};
    });
  }
}

TYPED_TEST(LevelScales, NanStaysInItsRowAndHead) {
  using T = TypeParam;
  for (const LevelPolicy policy : kPolicies) {
    Problem<T> p(policy, 50, 3, 15, 9);
    const Grid<T> clean = p.forward(), ddl = p.backward().ddl;
    p.dl(20, 15) = std::numeric_limits<T>::quiet_NaN();  // level 0 of the second head, which every token has
    const Grid<T> dirty = p.forward(), dirty_ddl = p.backward().ddl;
    const std::int64_t C = p.shape.columns;
    for (std::int64_t n = 0; n < 50; ++n) {
      EXPECT_EQ(same_row_bits(dirty, clean, n), n != 20);
      EXPECT_EQ(same_row_bits(dirty_ddl, ddl, n), n != 20);
    }
    EXPECT_TRUE(std::isnan(dirty(20, C)));
    for (std::int64_t l = 0; l < C; ++l) {
      EXPECT_EQ(dirty(20, l), clean(20, l));
      EXPECT_EQ(dirty(20, 2 * C + l), clean(20, 2 * C + l));
    }
  }
}

TEST(LevelScales, Errors) {
  float x[256] = {};
  const std::int64_t far[] = {100}, before[] = {-1};
  const LevelShape share{LevelPolicy::share, 1, 2, 3, 3, 3}, routed{LevelPolicy::routed, 1, 2, 3, 3, 8};
  const auto forward = [&](const LevelShape& shape, const std::int64_t* positions, std::int64_t stride = 6) {
    level_scales_forward<float>(shape, positions, x, stride, x, x, 1, x + 128);
  };
  expect_error([&] { forward(share, nullptr, 5); }, "dl: row stride 5");
  expect_error([&] { forward({LevelPolicy::share, 1, 2, 3, 4, 4}, nullptr); }, "learned: got 4");
  expect_error([&] { forward({LevelPolicy::share, 1, 2, 3, 0, 0}, nullptr); }, "learned: got 0");
  expect_error([&] { forward({LevelPolicy::share, 1, 2, 3, 3, 4}, nullptr); }, "columns: got 4");
  expect_error([&] { forward({LevelPolicy::routed, 1, 2, 3, 3, 65}, far); }, "columns: got 65");
  expect_error([&] { forward({LevelPolicy::routed, 1, 2, 3, 3, 7}, far); }, "position 100 has more levels");
  expect_error([&] { forward(routed, nullptr); }, "positions is null");
  expect_error([&] { forward(routed, before); }, "positions: got -1");
  expect_error([&] { level_scales_backward<float>(share, nullptr, x, 6, x, nullptr, 1, x, x, 6, nullptr, nullptr); },
               "dlevel is null");
  LevelShape content{LevelPolicy::content, 1, 2, 3, 3, 8, 1};
  EXPECT_NO_THROW(forward(content, far));
  expect_error([&] { level_scales_forward<float>(content, far, x, 6, x, nullptr, 1, x + 128); }, "matches is null");
  expect_error([&] { level_scales_backward<float>(content, far, x, 6, x, x, 1, x, x, 6, x, nullptr); },
               "dmatches is null");
  for (const std::int64_t groups : {0, 3}) {
    content.groups = groups;
    expect_error([&] { forward(content, far); }, "groups: got");
  }
  EXPECT_NO_THROW(forward(routed, far));
}

}  // namespace
}  // namespace loglinear::testing
