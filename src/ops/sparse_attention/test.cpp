#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "attention_testing.hpp"
#include "base/attention.hpp"
#include "base/cpu_features.hpp"
#include "loglinear/sparse_attention.hpp"
#include "sanitized.hpp"

namespace loglinear::testing {
namespace {

// As the header says it.
Seen seen_by(const SparsePattern& pattern) {
  return [=](std::int64_t t, std::int64_t s) {
    return s <= t && (t - s < pattern.window || (pattern.stride > 0 && (t - s) % pattern.stride == 0));
  };
}

template <class T>
struct Problem : AttentionProblem<T> {
  using AttentionProblem<T>::sequences, AttentionProblem<T>::shape;
  using AttentionProblem<T>::q, AttentionProblem<T>::k, AttentionProblem<T>::v, AttentionProblem<T>::dout;
  SparsePattern pattern;

  Problem(Sequences list, AttentionShape sizes, SparsePattern pattern_, std::int64_t padding = 0)
      : AttentionProblem<T>(std::move(list), sizes, padding), pattern(pattern_) {}

  auto forward(int threads = 0) const {
    auto o = this->new_output();
    sparse_attention_forward<T>(sequences, shape, pattern, q.ptr(), q.stride, k.ptr(), k.stride, v.ptr(), v.stride,
                                o.out.ptr(), o.out.stride, o.log_sums.ptr(), threads);
    return o;
  }
  auto backward(int threads = 0) const {
    const auto o = forward(threads);
    auto g = this->new_gradients();
    sparse_attention_backward<T>(sequences, shape, pattern, q.ptr(), q.stride, k.ptr(), k.stride, v.ptr(), v.stride,
                                 o.out.ptr(), o.out.stride, o.log_sums.ptr(), dout.ptr(), dout.stride, g.dq.ptr(),
                                 g.dq.stride, g.dk.ptr(), g.dk.stride, g.dv.ptr(), g.dv.stride, threads);
    return g;
  }
  auto definition() const { return AttentionProblem<T>::definition(seen_by(pattern)); }
};

const std::vector<SparsePattern> kPatterns =
    kSanitized ? std::vector<SparsePattern>{{7, 0}, {16, 16}, {40, 7}}
               : std::vector<SparsePattern>{{1, 0}, {1, 1},   {7, 0},  {100, 0}, {1000, 0},
                                            {1, 5}, {16, 16}, {40, 7}, {3, 64},  {90, 1000}};

template <class T>
class SparseAttention : public ::testing::Test {};
TYPED_TEST_SUITE(SparseAttention, Floats);

// In float64 to 1e-12: outputs and gradients are those of dense attention under the mask.
TYPED_TEST(SparseAttention, masked_dense_attention) {
  using T = TypeParam;
  const double bound = sizeof(T) == 4 ? 1e-4 : 1e-12;
  for (const SparsePattern& pattern : kPatterns)
    for (const Sequences& sequences :
         {Sequences{}, packed({0}), packed({1}), packed({63, 64, 0, 65}), packed({2, 129, 300}),
          Sequences{{1, 1, 300, 200}, {2, 5, 0, 5}, {8, 140, 5, 290}}}) {
      const Problem<T> p(sequences, shape_of(4, 2, 7, 5), pattern, 3);
      const auto o = p.forward();
      const auto want = p.definition();
      expect_rows(o.out, want.out, bound / 8, "out");
      expect_rows(o.log_sums, want.log_sums, bound / 8, "log_sums");
    }
  for (const SparsePattern& pattern : kPatterns)
    for (const Sequences& sequences :
         {packed({1, 0, 150, 66, 203}), Sequences{{2, 3, 1, 80}, {5, 0, 81, 2}, {6, 140, 83, 290}}}) {
      const Problem<T> p(sequences, shape_of(6, 2, 9, 16, 0, 0.4), pattern, 2);
      const auto g = p.backward();
      const auto want = p.definition();
      expect_rows(g.dq, want.dq, bound, "dq");
      expect_rows(g.dk, want.dk, bound, "dk");
      expect_rows(g.dv, want.dv, bound, "dv");
    }
}

TEST(SparseAttention, gradients_by_differences) {
  Problem<double> p(packed({1, 0, 140, 66}), shape_of(4, 2, 5, 3), {10, 12}, 2);
  const auto [dq, dk, dv] = p.backward();
  const auto loss = [&] { return weighted_sum(p.dout, p.forward().out); };
  expect_gradient(p.q, dq, loss, "dq", 1e-6, 40);
  expect_gradient(p.k, dk, loss, "dk", 1e-6, 40);
  expect_gradient(p.v, dv, loss, "dv", 1e-6, 40);
}

TEST(SparseAttention, keys_are_counted) {
  for (const SparsePattern& pattern : kPatterns)
    for (std::int64_t t = 0; t < 200; ++t) {
      std::int64_t count = 0;
      for (std::int64_t s = 0; s <= t; ++s) count += seen_by(pattern)(t, s);
      ASSERT_EQ(sparse_attention_keys(pattern, t), count) << pattern.window << ", " << pattern.stride << ", " << t;
    }
}

TYPED_TEST(SparseAttention, same_bits_for_any_number_of_threads) {
  const Problem<TypeParam> p(packed({300, 40, 170}), shape_of(4, 2, 16, 8), {30, 20});
  expect_same_for_threads([&](int threads) {
    auto o = p.forward(threads);
    auto g = p.backward(threads);
    return std::vector{o.out.data, o.log_sums.data, g.dq.data, g.dk.data, g.dv.data};
  });
}

// The same sequence, cut into two reads against its cache: the same bits.
TYPED_TEST(SparseAttention, pieces_give_the_same_bits) {
  using T = TypeParam;
  for (const SparsePattern& pattern : {SparsePattern{20, 0}, SparsePattern{20, 16}, SparsePattern{3, 40}}) {
    const Problem<T> p(packed({235}), shape_of(2, 1, 9, 18), pattern);
    const Grid<T> whole = p.forward().out;
    for (std::int64_t cut = 0; cut <= 235; cut += 9) {
      Grid<T> out(235, whole.width, 2);
      for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>{0, cut}, {cut, 235}}) {
        const Sequences piece = {{0, end - begin, 0, end}};
        sparse_attention_forward<T>(piece, p.shape, pattern, p.q.ptr() + begin * p.q.stride, p.q.stride, p.k.ptr(),
                                    p.k.stride, p.v.ptr(), p.v.stride, out.ptr() + begin * out.stride, out.stride,
                                    nullptr);
      }
      for (std::int64_t n = 0; n < 235; ++n) ASSERT_TRUE(same_row_bits(out, whole, n)) << cut << ", " << n;
    }
  }
}

// A NaN reaches the queries that see it, through the keys and values of its group, and nothing else.
TYPED_TEST(SparseAttention, nan_stays_where_it_is_seen) {
  using T = TypeParam;
  const std::int64_t K = 6, V = 5, at = 90;
  for (const SparsePattern& pattern : {SparsePattern{20, 0}, SparsePattern{5, 16}})
    for (int where = 0; where < 3; ++where) {
      Problem<T> p(packed({150, 80}), shape_of(4, 2, K, V), pattern);
      const auto clean = p.forward();
      const auto clean_gradients = p.backward();
      (where == 0 ? p.q(at, 2 * K) : where == 1 ? p.k(at, K) : p.v(at, V)) = std::numeric_limits<T>::quiet_NaN();
      const auto dirty = p.forward();
      const auto gradients = p.backward();
      for (std::int64_t n = 0; n < 230; ++n) {
        const bool sees = n < 150 && seen_by(pattern)(n, at);
        for (std::int64_t c = 0; c < 4 * V; ++c) {
          const std::int64_t h = c / V;
          const bool reached = where == 0 ? n == at && h == 2 : sees && h >= 2 && (where == 1 || c % V == 0);
          if (reached)
            ASSERT_TRUE(std::isnan(dirty.out(n, c))) << where << ": " << n << ", " << c;
          else
            ASSERT_EQ(dirty.out(n, c), clean.out(n, c)) << where << ": " << n << ", " << c;
        }
        for (std::int64_t c = 0; c < 4 * K; ++c)
          if (c < 2 * K || !(where == 0 ? n == at : sees)) {
            ASSERT_EQ(gradients.dq(n, c), clean_gradients.dq(n, c)) << where << ": " << n << ", " << c;
          }
        // Keys that no query saw which saw the NaN.
        bool touched = false;
        for (std::int64_t t = 0; t < 150; ++t)
          touched |= seen_by(pattern)(t, n) && (where == 0 ? t == at : seen_by(pattern)(t, at));
        for (std::int64_t c = 0; c < 2 * K; ++c)
          if (n >= 150 || c < K || !touched) {
            ASSERT_EQ(gradients.dk(n, c), clean_gradients.dk(n, c)) << where << ": " << n << ", " << c;
          }
        for (std::int64_t c = 0; c < 2 * V; ++c)
          if (n >= 150 || c < V || !touched) {
            ASSERT_EQ(gradients.dv(n, c), clean_gradients.dv(n, c)) << where << ": " << n << ", " << c;
          }
      }
    }
}

RC_GTEST_PROP(SparseAttentionProperty, random_shapes, ()) {
  const auto small = [](std::int64_t low, std::int64_t high) { return *rc::gen::inRange<std::int64_t>(low, high); };
  const std::int64_t G = small(1, 4);
  const Sequences sequences = random_sequences(small);
  const Problem<double> p(sequences, shape_of(G * small(1, 4), G, small(1, 20), small(1, 20)),
                          {small(1, 120), small(0, 60)});
  expect_rows(p.forward().out, p.definition().out, 1e-12, "out");
  RC_ASSERT(!::testing::Test::HasFailure());
}

// Decoding steps (one query) included.
TYPED_TEST(SparseAttention, instruction_sets) {
  using T = TypeParam;
  const Problem<T> p({{0, 150, 0, 150}, {150, 1, 150, 230}, {151, 3, 380, 100}}, shape_of(6, 2, 19, 21), {40, 7}, 3);
  expect_definition_on_every_instruction_set(p, 8 * kBound<T>, 30 * kBound<T>);
}

TEST(SparseAttention, errors) {
  std::vector<float> x(256);
  float* d = x.data();
  const auto call = [&](const AttentionShape& shape, SparsePattern pattern) {
    return [=] { sparse_attention_forward<float>(packed({3}), shape, pattern, d, 8, d, 8, d, 8, d, 8, nullptr); };
  };
  expect_error(call(shape_of(3, 2, 4, 4), {1, 0}), "divide");
  expect_error(call(shape_of(2, 1, 4, 4), {0, 4}), "window is 0");
  expect_error(call(shape_of(2, 1, 4, 4), {1, -1}), "stride is -1");
  expect_error(call(shape_of(2, 1, 4, 4, 5), {1, 1}), "the pattern says what is seen");
  expect_error(call(shape_of(2, 1, 4, 4, 0, 0, false), {1, 1}), "the pattern says what is seen");
  expect_error([] { sparse_attention_keys({1, 1}, -1); }, "position");
}

}  // namespace
}  // namespace loglinear::testing
