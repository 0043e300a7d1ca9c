#include <gtest/gtest.h>

#include "attention_testing.hpp"
#include "base/attention.hpp"
#include "base/cpu_features.hpp"
#include "loglinear/standard_attention.hpp"
#include "sanitized.hpp"

namespace loglinear::testing {
namespace {

template <class T>
struct Problem : AttentionProblem<T> {
  using AttentionProblem<T>::AttentionProblem, AttentionProblem<T>::sequences, AttentionProblem<T>::shape;
  using AttentionProblem<T>::q, AttentionProblem<T>::k, AttentionProblem<T>::v, AttentionProblem<T>::dout;

  struct Output {
    Grid<T> out;
    Grid<T> probabilities;  // one row
  };
  Output forward(int threads = 0) const {
    Output o{this->new_output().out, Grid<T>(1, standard_attention_elements(sequences, shape), 1)};
    standard_attention_forward<T>(sequences, shape, q.ptr(), q.stride, k.ptr(), k.stride, v.ptr(), v.stride,
                                  o.out.ptr(), o.out.stride, o.probabilities.ptr(), threads);
    return o;
  }
  auto backward(int threads = 0) const {
    const Output o = forward(threads);
    auto g = this->new_gradients();
    standard_attention_backward<T>(sequences, shape, q.ptr(), q.stride, k.ptr(), k.stride, v.ptr(), v.stride,
                                   o.probabilities.ptr(), dout.ptr(), dout.stride, g.dq.ptr(), g.dq.stride, g.dk.ptr(),
                                   g.dk.stride, g.dv.ptr(), g.dv.stride, threads);
    return g;
  }
  auto definition() const { return AttentionProblem<T>::definition(seen_by(shape)); }
};

template <class T>
class StandardAttention : public ::testing::Test {};
TYPED_TEST_SUITE(StandardAttention, Floats);

TYPED_TEST(StandardAttention, definition) {
  using T = TypeParam;
  for (bool causal : {true, false})
    for (std::int64_t window : {0, 1, 70})
      for (const Sequences& sequences :
           {Sequences{}, packed({0}), packed({1}), packed({63, 64, 0, 65}), packed({2, 129, 300}),
            Sequences{{1, 1, 300, 200}, {2, 5, 0, 5}, {8, 140, 5, 290}}})
        for (const auto& [K, V] : {std::pair<std::int64_t, std::int64_t>{7, 5}, {16, 32}, {1, 1}}) {
          if (kSanitized && K == 16 && window != 70) continue;
          const Problem<T> p(sequences, shape_of(4, 2, K, V, window, 0, causal), 3);
          const auto o = p.forward();
          const auto want = p.definition();
          expect_rows(o.out, want.out, 8 * kBound<T>, "out");
          Grid<double> probabilities(1, o.probabilities.width);
          std::copy(want.probabilities.begin(), want.probabilities.end(), probabilities.data.begin());
          expect_close(o.probabilities, probabilities, 8 * kBound<T>, "probabilities");
        }
}

TYPED_TEST(StandardAttention, gradients_of_the_definition) {
  using T = TypeParam;
  for (bool causal : {true, false})
    for (std::int64_t window : {0, 33})
      for (const Sequences& sequences :
           {packed({1, 0, 150, 66, 203}), Sequences{{2, 3, 1, 80}, {5, 0, 81, 2}, {6, 140, 83, 290}}}) {
        const Problem<T> p(sequences, shape_of(6, 2, 9, 5, window, 0.4, causal), 2);
        expect_gradients_of_definition(p, 30 * kBound<T>);
      }
}

TEST(StandardAttention, gradients_by_differences) {
  Problem<double> p(packed({1, 0, 140, 66}), shape_of(4, 2, 5, 3), 2);
  const auto [dq, dk, dv] = p.backward();
  const auto loss = [&] { return weighted_sum(p.dout, p.forward().out); };
  expect_gradient(p.q, dq, loss, "dq", 1e-6, 40);
  expect_gradient(p.k, dk, loss, "dk", 1e-6, 40);
  expect_gradient(p.v, dv, loss, "dv", 1e-6, 40);
}

TYPED_TEST(StandardAttention, same_bits_for_any_number_of_threads) {
  const Problem<TypeParam> p(packed({300, 40, 170}), shape_of(4, 2, 16, 8));
  expect_same_for_threads([&](int threads) {
    auto o = p.forward(threads);
    auto g = p.backward(threads);
    return std::vector{o.out.data, o.probabilities.data, g.dq.data, g.dk.data, g.dv.data};
  });
}

TYPED_TEST(StandardAttention, alone_or_packed_gives_the_same_bits) {
  using T = TypeParam;
  const Problem<T> p(packed({135, 70}), shape_of(2, 1, 9, 18));
  const auto together = p.forward();
  Problem<T> alone(packed({135}), p.shape);
  for (auto [from, to] : {std::pair{&p.q, &alone.q}, {&p.k, &alone.k}, {&p.v, &alone.v}})
    for (std::int64_t n = 0; n < 135; ++n)
      for (std::int64_t c = 0; c < to->width; ++c) (*to)(n, c) = (*from)(n, c);
  const auto out = alone.forward().out;
  for (std::int64_t n = 0; n < 135; ++n) EXPECT_TRUE(same_row_bits(out, together.out, n)) << n;
}

// What a query does not see cannot reach it, and a NaN stays in its sequence and group.
TYPED_TEST(StandardAttention, nan_is_causal) {
  using T = TypeParam;
  const std::int64_t K = 6, V = 5, at = 90;
  for (int where = 0; where < 3; ++where) {
    Problem<T> p(packed({150, 80}), shape_of(4, 2, K, V));
    const auto clean = p.forward();
    const auto clean_gradients = p.backward();
    (where == 0 ? p.q(at, 2 * K) : where == 1 ? p.k(at, K) : p.v(at, V)) = std::numeric_limits<T>::quiet_NaN();
    const auto dirty = p.forward();
    for (std::int64_t n = 0; n < 230; ++n) {
      for (std::int64_t c = 0; c < 4 * V; ++c) {
        const std::int64_t h = c / V;
        const bool reached = where == 0   ? n == at && h == 2
                             : where == 1 ? n >= at && n < 150 && h >= 2
                                          : n >= at && n < 150 && h >= 2 && c % V == 0;
        if (reached)
          ASSERT_TRUE(std::isnan(dirty.out(n, c))) << where << ": " << n << ", " << c;
        else
          ASSERT_EQ(dirty.out(n, c), clean.out(n, c)) << where << ": " << n << ", " << c;
      }
    }
    expect_same_where_unreached(p.backward(), clean_gradients, p.shape, at, where == 0);
  }
}

// Decoding steps (one query) included.
TYPED_TEST(StandardAttention, instruction_sets) {
  using T = TypeParam;
  const Problem<T> p({{0, 150, 0, 150}, {150, 1, 150, 230}, {151, 3, 380, 100}}, shape_of(6, 2, 19, 21), 3);
  expect_definition_on_every_instruction_set(p, 8 * kBound<T>, 30 * kBound<T>);
}

TEST(StandardAttention, errors) {
  std::vector<float> x(256);
  float* d = x.data();
  const auto call = [&](const Sequences& sequences, const AttentionShape& shape, float* probabilities) {
    return [=] { standard_attention_forward<float>(sequences, shape, d, 8, d, 8, d, 8, d, 8, probabilities); };
  };
  const Sequences one = packed({3});
  expect_error(call(one, shape_of(3, 2, 4, 4), d), "divide");
  expect_error(call(one, shape_of(2, 1, 4, 4), nullptr), "probabilities is null");
  expect_error(call(one, shape_of(3, 1, 4, 4), d), "q: row stride 8");
  expect_error(
      [] {
        standard_attention_elements(packed({1, std::int64_t{1} << 40}), shape_of(1, 1, 1, 1));
      },
      "overflow");
  EXPECT_EQ(standard_attention_elements(Sequences{{0, 2, 0, 5}, {2, 3, 5, 3}}, shape_of(4, 2, 8, 8)), 4 * (10 + 9));
}

}  // namespace
}  // namespace loglinear::testing
