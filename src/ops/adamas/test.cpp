#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <numeric>

#include "base/cpu_features.hpp"
#include "compare.hpp"
#include "loglinear/adamas.hpp"
#include "op_testing.hpp"
#include "ops/adamas/ref.hpp"
#include "sanitized.hpp"

namespace loglinear::testing {
namespace {

namespace ref = adamas::ref;

// Thresholds that split keys of Problem into all four codes.
constexpr std::array<double, 3> kThresholds = {-0.7, 0.1, 0.9};

AdamasShape shape_of(std::int64_t H, std::int64_t G, std::int64_t K, std::int64_t V, std::int64_t budget) {
  return {.heads = H, .kv_heads = G, .key_width = K, .value_width = V, .budget = budget, .thresholds = kThresholds};
}

// Caches of several sequences and one query each.
template <class T>
struct Problem {
  AdamasShape shape;
  std::vector<Grid<T>> k, v;
  std::vector<AdamasCodes> codes;
  Grid<T> q;

  Problem(const AdamasShape& shape_, const std::vector<std::int64_t>& lengths, std::int64_t padding = 0,
          std::uint64_t seed = 1)
      : shape(shape_), q(static_cast<std::int64_t>(lengths.size()), shape.heads * shape.key_width, padding) {
    Random random(71, seed);
    q.fill(random, -2, 2);
    for (std::int64_t n : lengths) {
      k.emplace_back(n, shape.kv_heads * shape.key_width, padding).fill(random, -2, 2);
      v.emplace_back(n, shape.kv_heads * shape.value_width, padding).fill(random);
      codes.emplace_back(shape);
      codes.back().append(n, k.back().ptr(), k.back().stride);
    }
  }
  std::int64_t sequences() const { return static_cast<std::int64_t>(k.size()); }
  std::int64_t k_stride() const { return k.front().stride; }
  std::int64_t v_stride() const { return v.front().stride; }

  Grid<T> step(int threads = 0) const { return step(shape, threads); }
  Grid<T> step(const AdamasShape& with, int threads = 0) const {
    Grid<T> out(sequences(), shape.heads * shape.value_width, 1);
    std::vector<AdamasCache<T>> caches;
    for (std::size_t b = 0; b < k.size(); ++b) caches.push_back({&codes[b], k[b].ptr(), v[b].ptr()});
    adamas_step<T>(with, caches, q.ptr(), q.stride, k_stride(), v_stride(), out.ptr(), out.stride, threads);
    return out;
  }

  // One head's part of a row in float64.
  static std::vector<double> part(const Grid<T>& grid, std::int64_t row, std::int64_t head, std::int64_t width) {
    std::vector<double> values;
    for (std::int64_t c = head * width; c < (head + 1) * width; ++c)
      values.push_back(static_cast<double>(grid(row, c)));
    return values;
  }
  std::vector<std::vector<double>> rows(const Grid<T>& grid, std::int64_t group, std::int64_t width) const {
    std::vector<std::vector<double>> all;
    for (std::int64_t s = 0; s < grid.rows; ++s) all.push_back(part(grid, s, group, width));
    return all;
  }
  std::int64_t group_of(std::int64_t h) const { return h / (shape.heads / shape.kv_heads); }
  // Distances of the library, which are those of the definition but where rounding meets a threshold.
  std::vector<int> distances(std::int64_t b, std::int64_t h) const {
    const std::int64_t tokens = codes[b].tokens(), stride = (tokens + 127) / 128 * 128;
    std::vector<std::uint16_t> all(static_cast<std::size_t>(shape.heads * stride));
    adamas_distances<T>(shape, codes[b], q.ptr() + b * q.stride, all.data(), stride);
    return {all.begin() + h * stride, all.begin() + h * stride + tokens};
  }
};

template <class T>
class Adamas : public ::testing::Test {};
TYPED_TEST_SUITE(Adamas, Floats);

TYPED_TEST(Adamas, hadamard) {
  using T = TypeParam;
  for (std::int64_t K : {1, 2, 4, 8, 16, 32, 64, 128, 512})
    for (std::int64_t rows : {0, 1, 31, 70}) {
      Grid<T> x(rows, 3 * K, 2), y(rows, 3 * K, 1), want(rows, 3 * K);
      Random random(72, K);
      x.fill(random);
      hadamard<T>(rows, 3, K, x.ptr(), x.stride, y.ptr(), y.stride);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t h = 0; h < 3; ++h) {
          const std::vector<double> one = ref::hadamard(Problem<T>::part(x, r, h, K));
          for (std::int64_t i = 0; i < K; ++i) want(r, h * K + i) = static_cast<T>(one[i]);
        }
      expect_close(y, want, 4 * kBound<T>, "y");
      // In place, and back.
      Grid<T> back = y;
      hadamard<T>(rows, 3, K, back.ptr(), back.stride, back.ptr(), back.stride);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < 3 * K; ++c) EXPECT_NEAR(back(r, c), x(r, c), 4 * kBound<T>);
    }
}

TYPED_TEST(Adamas, codes_and_distances) {
  using T = TypeParam;
  for (std::int64_t K : {1, 2, 4, 8, 64, 128, 256})
    for (std::int64_t tokens : {1, 31, 33, 127, 128, 129, 300}) {
      if (kSanitized && K != 2 && K != 128 && tokens != 33) continue;
      const Problem<T> p(shape_of(4, 2, K, 3, 5), {tokens}, 1, static_cast<std::uint64_t>(K));
      EXPECT_EQ(p.codes[0].tokens(), tokens);
      EXPECT_EQ(p.codes[0].bytes(), static_cast<std::size_t>(2 * ((K + 3) / 4) * ((tokens + 127) / 128 * 128)));
      int seen[4] = {};
      for (std::int64_t g = 0; g < 2; ++g)
        for (std::int64_t s = 0; s < tokens; ++s) {
          const std::vector<double> key = Problem<T>::part(p.k[0], s, g, K);
          const std::vector<double> turned = ref::hadamard(key);
          const std::vector<int> want = ref::codes(p.shape, key);
          for (std::int64_t i = 0; i < K; ++i) {
            const int code = p.codes[0].code(s, g, i);
            ++seen[code];
            bool near = false;
            for (double threshold : kThresholds) near |= std::abs(turned[i] - threshold) < 1e-5;
            if (!near) EXPECT_EQ(code, want[i]) << "K " << K << " token " << s << " dimension " << i;
          }
        }
      if (K >= 64 && tokens > 30)
        for (int code : seen) EXPECT_GT(code, 0);
      // Distances: Manhattan, of the codes that there are. A query's codes are those of a cache that holds it.
      for (std::int64_t h = 0; h < 4; ++h) {
        AdamasShape one = p.shape;
        one.heads = one.kv_heads = 1;
        AdamasCodes query(one);
        query.append(1, p.q.ptr() + h * K, K);
        const std::vector<int> got = p.distances(0, h);
        for (std::int64_t s = 0; s < tokens; ++s) {
          int want = 0;
          for (std::int64_t i = 0; i < K; ++i) want += std::abs(query.code(0, 0, i) - p.codes[0].code(s, h / 2, i));
          EXPECT_EQ(got[s], want) << "K " << K << " token " << s;
        }
      }
    }
}

// The largest distance, 3 K: every dimension at the other end. And one of one (1, 2) pair.
TYPED_TEST(Adamas, extremes) {
  using T = TypeParam;
  for (std::int64_t K : {1, 4, 64, 1024, 8192}) {
    AdamasShape shape = shape_of(1, 1, K, 1, 1);
    shape.thresholds = {-10, 0, 10};
    // H x of x = sqrt(K) H row: one large element is spread, so choose the transform and go back.
    Grid<T> wanted(2, K), x(2, K);
    for (std::int64_t i = 0; i < K; ++i) wanted(0, i) = T(i % 2 ? -11 : 11), wanted(1, i) = -wanted(0, i);
    hadamard<T>(2, 1, K, wanted.ptr(), K, x.ptr(), K);
    AdamasCodes codes(shape);
    codes.append(1, x.ptr(), K);
    std::uint16_t distances[128];
    adamas_distances<T>(shape, codes, x.ptr() + K, distances, 128);
    EXPECT_EQ(distances[0], 3 * K);
    adamas_distances<T>(shape, codes, x.ptr(), distances, 128);
    EXPECT_EQ(distances[0], 0);
    wanted.fill(1.0), wanted(1, K / 2) = T(-1);
    hadamard<T>(2, 1, K, wanted.ptr(), K, x.ptr(), K);
    AdamasCodes near(shape);
    near.append(1, x.ptr(), K);
    adamas_distances<T>(shape, near, x.ptr() + K, distances, 128);
    EXPECT_EQ(distances[0], 1);
  }
}

TEST(Adamas, selection) {
  Random random(73, 0);
  for (std::int64_t tokens : {1, 2, 3, 15, 16, 17, 33, 100, 1000, 5000})
    for (int range : {1, 2, 7, 190, 3000})
      for (std::int64_t budget : {std::int64_t{1}, std::int64_t{2}, tokens / 3 + 1, tokens - 1, tokens, tokens + 9}) {
        if (budget < 1) continue;
        std::vector<int> distances;
        for (std::int64_t s = 0; s < tokens; ++s)
          distances.push_back(static_cast<int>(random.uniform() * static_cast<double>(range)));
        const std::vector<std::uint16_t> packed(distances.begin(), distances.end());
        std::vector<std::int64_t> chosen(static_cast<std::size_t>(std::min(budget, tokens)), -1);
        adamas_select(tokens, packed.data(), budget, chosen.data());
        EXPECT_EQ(chosen, ref::choice(distances, budget)) << tokens << " tokens, budget " << budget;
      }
}

// Long enough for counts that pass the range of a lane, were they not taken out in time.
TEST(Adamas, selection_among_a_million) {
  const std::int64_t tokens = 1'200'000;
  std::vector<std::uint16_t> distances(static_cast<std::size_t>(tokens), 5);
  distances[3] = distances[1'100'000] = 2;
  std::vector<std::int64_t> chosen(4);
  adamas_select(tokens, distances.data(), 4, chosen.data());
  EXPECT_EQ(chosen, (std::vector<std::int64_t>{3, 1'100'000, tokens - 2, tokens - 1}));
}

template <class T>
void check_step(const AdamasShape& shape, const std::vector<std::int64_t>& lengths, std::int64_t padding,
                std::uint64_t seed = 1) {
  const Problem<T> p(shape, lengths, padding, seed);
  const Grid<T> out = p.step();
  EXPECT_TRUE(out.padding_untouched());
  const std::int64_t K = shape.key_width, V = shape.value_width;
  std::vector<double> got, want;
  for (std::int64_t b = 0; b < p.sequences(); ++b)
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const std::int64_t g = p.group_of(h);
      const std::vector<double> one =
          ref::attention(shape, Problem<T>::part(p.q, b, h, K), p.rows(p.k[b], g, K), p.rows(p.v[b], g, V),
                         ref::choice(p.distances(b, h), shape.budget));
      const std::vector<double> ours = Problem<T>::part(out, b, h, V);
      want.insert(want.end(), one.begin(), one.end()), got.insert(got.end(), ours.begin(), ours.end());
    }
  EXPECT_TRUE(close("out", got, want, sizeof(T) == 4 ? 3e-6 : 1e-12)) << "K " << K << " budget " << shape.budget;
}

TYPED_TEST(Adamas, step_is_attention_to_the_choice) {
  using T = TypeParam;
  for (const auto& [H, G, K, V] : {std::tuple{1, 1, 1, 1}, {4, 2, 8, 5}, {3, 1, 64, 33}, {2, 2, 128, 64}})
    for (std::int64_t budget : {1, 7, 64, 1000}) check_step<T>(shape_of(H, G, K, V, budget), {1, 2, 40, 333}, H % 3);
  AdamasShape scaled = shape_of(2, 1, 16, 4, 9);
  scaled.scale = 0.7;
  check_step<T>(scaled, {50}, 0);
}

TYPED_TEST(Adamas, every_instruction_set) {
  using T = TypeParam;
  const Problem<T> p(shape_of(2, 1, 64, 20, 17), {300});
  std::vector<std::vector<int>> want;
  for (const std::string& name : instruction_sets()) {
    force_instruction_set(name);
    const Problem<T> again(p.shape, {300});
    want.push_back(again.distances(0, 1));
    EXPECT_EQ(want.back(), want.front()) << name;
    check_step<T>(p.shape, {300, 65}, 0);
  }
  force_instruction_set("");
}

// A budget for all tokens is dense attention: the choice is every token, the bits do not depend on how large the budget
// is, and they are those of attention that never looked at a code (to another cache's codes, all of them wrong).
TYPED_TEST(Adamas, a_budget_for_all_tokens_is_dense_attention) {
  using T = TypeParam;
  const std::int64_t tokens = 257;
  Problem<T> p(shape_of(4, 2, 32, 24, tokens), {tokens});
  const Grid<T> out = p.step();
  AdamasShape more = p.shape;
  more.budget = 100000;
  EXPECT_TRUE(same_bits(p.step(more).data, out.data));
  std::vector<std::int64_t> all(tokens);
  std::iota(all.begin(), all.end(), 0);
  for (std::int64_t h = 0; h < 4; ++h) {
    const std::vector<double> want = ref::attention(p.shape, Problem<T>::part(p.q, 0, h, 32), p.rows(p.k[0], h / 2, 32),
                                                    p.rows(p.v[0], h / 2, 24), all);
    EXPECT_TRUE(close("out", Problem<T>::part(out, 0, h, 24), want, sizeof(T) == 4 ? 3e-6 : 1e-12));
  }
  Grid<T> zeros(tokens, 64);
  zeros.fill(0.0);
  p.codes[0] = AdamasCodes(p.shape);
  p.codes[0].append(tokens, zeros.ptr(), zeros.stride);
  EXPECT_TRUE(same_bits(p.step().data, out.data));
  // One token short of all, the one left out has no weight: the same within rounding, from the path that does look.
  AdamasShape less = p.shape;
  less.budget = tokens - 1;
  for (std::int64_t c = 0; c < 64; ++c) p.k[0](0, c) = T(0);
  for (std::int64_t c = 0; c < 128; ++c) p.q(0, c) = T(1);
  for (std::int64_t s = 1; s < tokens; ++s)
    for (std::int64_t c = 0; c < 64; ++c) p.k[0](s, c) = T(40);
  p.codes[0] = AdamasCodes(p.shape);
  p.codes[0].append(tokens, p.k[0].ptr(), p.k[0].stride);
  const Grid<T> dense = p.step(), sparse = p.step(less);
  expect_close(sparse, dense, 8 * kBound<T>, "without the token of no weight");
}

RC_GTEST_PROP(AdamasProperty, random_shapes, ()) {
  const auto size = [](std::int64_t from, std::int64_t to) { return *rc::gen::inRange<std::int64_t>(from, to); };
  const std::int64_t G = size(1, 4), H = G * size(1, 4), K = std::int64_t{1} << size(0, 8);
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(size(1, 4)));
  for (std::int64_t& n : lengths) n = size(1, 150);
  check_step<double>(shape_of(H, G, K, size(1, 40), size(1, 60)), lengths, size(0, 3));
  RC_ASSERT(!::testing::Test::HasFailure());
}

// However tokens are cut into calls, and by any number of threads: the same codes.
TYPED_TEST(Adamas, append_in_pieces) {
  using T = TypeParam;
  const Problem<T> p(shape_of(3, 3, 16, 4, 9), {150});
  const auto same = [&](const AdamasCodes& codes) {
    EXPECT_EQ(codes.tokens(), 150);
    for (std::int64_t g = 0; g < 3; ++g) {
      const auto a = codes.columns(g), b = p.codes[0].columns(g);
      ASSERT_EQ(a.size(), b.size());
      for (std::size_t c = 0; c < a.size(); ++c) EXPECT_EQ(a[c].bytes, b[c].bytes);
    }
  };
  for (std::int64_t step : {1, 7, 32, 50}) {
    AdamasCodes codes(p.shape);
    for (std::int64_t at = 0; at < 150; at += step)
      codes.append(std::min(step, 150 - at), p.k[0].ptr() + at * p.k[0].stride, p.k[0].stride,
                   static_cast<int>(step % 4));
    same(codes);
    // A copy goes its own way.
    AdamasCodes fork = codes;
    fork.append(1, p.k[0].ptr(), p.k[0].stride);
    same(codes);
  }
}

TYPED_TEST(Adamas, bits_do_not_depend_on_threads_or_neighbours) {
  using T = TypeParam;
  // Long enough for a call to take threads at all.
  const Problem<T> p(shape_of(4, 2, 32, 7, 20), {20000, 65, 1});
  expect_same_for_threads([&](int threads) { return std::vector<std::vector<T>>{p.step(threads).data}; });
  const std::int64_t stride = 20096;
  expect_same_for_threads([&](int threads) {
    std::vector<std::uint16_t> distances(4 * stride, 0);
    adamas_distances<T>(p.shape, p.codes[0], p.q.ptr(), distances.data(), stride, threads);
    return std::vector<std::vector<std::uint16_t>>{distances};
  });
  const Grid<T> out = p.step();
  for (std::int64_t b = 0; b < 3; ++b) {
    const AdamasCache<T> one = {&p.codes[b], p.k[b].ptr(), p.v[b].ptr()};
    Grid<T> alone(1, 28);
    adamas_step<T>(p.shape, {&one, 1}, p.q.ptr() + b * p.q.stride, p.q.stride, p.k_stride(), p.v_stride(), alone.ptr(),
                   28);
    for (std::int64_t c = 0; c < 28; ++c) EXPECT_EQ(alone(0, c), out(b, c));
  }
}

// A NaN in a value that is chosen shows in its group's heads and nowhere else.
TYPED_TEST(Adamas, nan_stays_in_its_head_and_sequence) {
  using T = TypeParam;
  Problem<T> p(shape_of(4, 2, 16, 3, 10), {100, 50});
  const Grid<T> out = p.step();
  p.v[0](99, 1) = std::numeric_limits<T>::quiet_NaN();  // the newest is always chosen; group 0
  const Grid<T> dirty = p.step();
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t c = 0; c < 12; ++c) {
      if (b == 0 && (c == 1 || c == 4))
        EXPECT_TRUE(std::isnan(dirty(b, c)));
      else
        EXPECT_EQ(dirty(b, c), out(b, c));
    }
  p.q(1, 0) = std::numeric_limits<T>::quiet_NaN();
  const Grid<T> lost = p.step();
  for (std::int64_t c = 0; c < 12; ++c) EXPECT_EQ(std::isnan(lost(1, c)), c < 3) << c;
}

TEST(Adamas, errors) {
  float d[64] = {};
  AdamasShape shape = shape_of(2, 1, 4, 2, 3);
  const auto refuse = [](AdamasShape bad, const char* part) { expect_error([=] { AdamasCodes codes(bad); }, part); };
  refuse(shape_of(0, 1, 4, 2, 3), "at least 1");
  refuse(shape_of(3, 2, 4, 2, 3), "do not divide");
  refuse(shape_of(2, 1, 6, 2, 3), "power of two");
  refuse(shape_of(2, 1, 16384, 2, 3), "power of two up to 8192");
  refuse(shape_of(2, 1, 4, 2, 0), "budget is 0");
  AdamasShape bad = shape;
  bad.thresholds = {0, 1, std::nan("")};
  refuse(bad, "ascend");
  bad = shape, bad.scale = -1;
  refuse(bad, "scale");
  AdamasCodes codes(shape), other(shape_of(2, 2, 4, 2, 3));
  expect_error([&] { codes.append<float>(-1, d, 4); }, "size of -1");
  expect_error([&] { codes.append<float>(2, d, 3); }, "k: row stride 3");
  expect_error([&] { codes.append<float>(2, nullptr, 4); }, "k is null");
  std::uint16_t distances[256] = {};
  expect_error([&] { adamas_distances<float>(shape, other, d, distances, 128); }, "another shape");
  expect_error([&] { adamas_distances<float>(shape, codes, d, distances, 33); }, "no multiple");
  const auto step = [&](const AdamasCodes* of, const float* k, std::int64_t q_stride) {
    return [=, &d, &shape] {
      const AdamasCache<float> cache = {of, k, d};
      adamas_step<float>(shape, {&cache, 1}, d, q_stride, 4, 2, d + 32, 4);
    };
  };
  expect_error(step(&codes, d, 8), "no tokens");
  codes.append<float>(2, d, 4);
  expect_error([&] { adamas_distances<float>(shape, codes, d, distances, 0); }, "distances: row stride 0");
  expect_error(step(&codes, d, 7), "q: row stride 7");
  expect_error(step(&codes, nullptr, 8), "k is null");
  expect_error(step(nullptr, d, 8), "codes is null");
  expect_error(step(&other, d, 8), "another shape");
  std::int64_t chosen[4];
  distances[0] = 40000;
  expect_error([&] { adamas_select(4, distances, 2, chosen); }, "a distance is 40000");
  expect_error([&] { adamas_select(4, distances, 0, chosen); }, "budget is 0");
  expect_error([&] { adamas_select(4, nullptr, 2, chosen); }, "distances is null");
  expect_error([&] { hadamard<float>(1, 1, 3, d, 3, d, 3); }, "width is 3");
}

}  // namespace
}  // namespace loglinear::testing
