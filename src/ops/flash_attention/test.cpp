#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "attention_testing.hpp"
#include "base/attention.hpp"
#include "base/cpu_features.hpp"
#include "loglinear/flash_attention.hpp"
#include "sanitized.hpp"

namespace loglinear::testing {
namespace {

template <class T>
struct Problem : AttentionProblem<T> {
  using AttentionProblem<T>::AttentionProblem, AttentionProblem<T>::sequences, AttentionProblem<T>::shape;
  using AttentionProblem<T>::q, AttentionProblem<T>::k, AttentionProblem<T>::v, AttentionProblem<T>::dout;

  auto forward(int threads = 0) const {
    auto o = this->new_output();
    flash_attention_forward<T>(sequences, shape, q.ptr(), q.stride, k.ptr(), k.stride, v.ptr(), v.stride, o.out.ptr(),
                               o.out.stride, o.log_sums.ptr(), threads);
    return o;
  }
  auto backward(int threads = 0) const {
    const auto o = forward(threads);
    auto g = this->new_gradients();
    flash_attention_backward<T>(sequences, shape, q.ptr(), q.stride, k.ptr(), k.stride, v.ptr(), v.stride, o.out.ptr(),
                                o.out.stride, o.log_sums.ptr(), dout.ptr(), dout.stride, g.dq.ptr(), g.dq.stride,
                                g.dk.ptr(), g.dk.stride, g.dv.ptr(), g.dv.stride, threads);
    return g;
  }
  auto definition() const { return AttentionProblem<T>::definition(seen_by(shape)); }
};

const std::vector<std::int64_t> kWindows =
    kSanitized ? std::vector<std::int64_t>{0, 33} : std::vector<std::int64_t>{0, 1, 3, 64, 100, 1000};

template <class T>
class FlashAttention : public ::testing::Test {};
TYPED_TEST_SUITE(FlashAttention, Floats);

TYPED_TEST(FlashAttention, definition) {
  using T = TypeParam;
  for (bool causal : {true, false})
    for (std::int64_t window : kWindows)
      for (const Sequences& sequences :
           {Sequences{}, packed({0}), packed({1}), packed({63, 64, 0, 65}), packed({2, 129, 200})}) {
        const Problem<T> p(sequences, shape_of(4, 2, 7, 5, window, 0, causal), 3);
        const auto o = p.forward();
        const auto want = p.definition();
        expect_close(o.out, want.out, 8 * kBound<T>, "out");
        expect_close(o.log_sums, want.log_sums, 8 * kBound<T>, "log_sums");
      }
  for (const AttentionShape& shape : {shape_of(1, 1, 1, 1), shape_of(6, 1, 16, 33), shape_of(3, 3, 32, 8, 0, 0.5)}) {
    const Problem<T> p(packed({150, 3}), shape);
    expect_close(p.forward().out, p.definition().out, 8 * kBound<T>, "out");
  }
}

// Queries at the end of longer key sequences that lie anywhere in the cache.
TYPED_TEST(FlashAttention, cache) {
  using T = TypeParam;
  for (bool causal : {true, false})
    for (std::int64_t window : {0, 5, 70}) {
      const Problem<T> p({{0, 1, 300, 200}, {1, 5, 0, 5}, {6, 0, 5, 0}, {6, 140, 5, 290}},
                         shape_of(4, 2, 8, 6, window, 0, causal));
      expect_close(p.forward().out, p.definition().out, 8 * kBound<T>, "out");
    }
}

TYPED_TEST(FlashAttention, log_sums_and_large_scores) {
  using T = TypeParam;
  Problem<T> p(packed({90}), shape_of(1, 1, 4, 3, 0, 1.0));
  for (std::int64_t n = 0; n < 90; ++n)
    for (std::int64_t c = 0; c < 4; ++c) p.q(n, c) *= 30, p.k(n, c) *= 30;
  const auto o = p.forward();
  for (std::int64_t n = 0; n < 90; ++n) {
    std::vector<double> scores;
    for (std::int64_t t = 0; t <= n; ++t) {
      double score = 0;
      for (std::int64_t c = 0; c < 4; ++c) score += static_cast<double>(p.q(n, c)) * p.k(t, c);
      scores.push_back(score);
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double s : scores) sum += std::exp(s - largest);
    EXPECT_LE(std::abs(o.log_sums(n, 0) - (largest + std::log(sum))), kBound<T> * (1 + std::abs(largest)));
    for (std::int64_t c = 0; c < 3; ++c) EXPECT_LE(std::abs(o.out(n, c)), 1.001);
  }
}

TEST(FlashAttention, gradients) {
  for (std::int64_t window : {0, 7, 90}) {
    Problem<double> p(packed({1, 0, 150, 66}), shape_of(4, 2, 5, 3, window), 2);
    const auto [dq, dk, dv] = p.backward();
    const auto loss = [&] { return weighted_sum(p.dout, p.forward().out); };
    expect_gradient(p.q, dq, loss, "dq", 1e-6, 40);
    expect_gradient(p.k, dk, loss, "dk", 1e-6, 40);
    expect_gradient(p.v, dv, loss, "dv", 1e-6, 40);
    EXPECT_TRUE(dq.padding_untouched() && dk.padding_untouched() && dv.padding_untouched());
  }
  Problem<double> cached({{0, 3, 0, 80}, {3, 140, 80, 150}}, shape_of(2, 1, 4, 4));
  const auto [dq, dk, dv] = cached.backward();
  const auto loss = [&] { return weighted_sum(cached.dout, cached.forward().out); };
  expect_gradient(cached.q, dq, loss, "dq", 1e-6, 40);
  expect_gradient(cached.k, dk, loss, "dk", 1e-6, 40);
  expect_gradient(cached.v, dv, loss, "dv", 1e-6, 40);
}

// Against the adjoint of the definition; the central differences above check that one too.
TYPED_TEST(FlashAttention, gradients_of_the_definition) {
  using T = TypeParam;
  for (bool causal : {true, false})
    for (std::int64_t window : kWindows)
      for (const Sequences& sequences :
           {packed({1, 0, 150, 66, 203}), Sequences{{2, 3, 1, 80}, {5, 0, 81, 2}, {6, 140, 83, 290}}}) {
        const Problem<T> p(sequences, shape_of(6, 2, 9, 5, window, 0, causal), 2);
        expect_gradients_of_definition(p, 30 * kBound<T>);
      }
}

TYPED_TEST(FlashAttention, float_gradients_follow_double) {
  using T = TypeParam;
  const Problem<T> p(packed({200, 77}), shape_of(4, 2, 16, 16, 100));
  const Problem<double> exact(packed({200, 77}), shape_of(4, 2, 16, 16, 100));
  const auto got = p.backward();
  const auto want = exact.backward();
  expect_close(got.dq, want.dq, 30 * kBound<T>, "dq");
  expect_close(got.dk, want.dk, 30 * kBound<T>, "dk");
  expect_close(got.dv, want.dv, 30 * kBound<T>, "dv");
}

// The same sequence, cut into two reads against its cache at every length, and alone or packed: the same bits.
TYPED_TEST(FlashAttention, pieces_and_packing_give_the_same_bits) {
  using T = TypeParam;
  for (std::int64_t window : {0, 20, 80}) {
    Problem<T> p(packed({135}), shape_of(2, 1, 9, 18, window));
    const Grid<T> whole = p.forward().out;
    for (std::int64_t cut = 0; cut <= 135; ++cut) {
      Grid<T> out(135, whole.width, 2);
      for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>{0, cut}, {cut, 135}}) {
        const Sequences piece = {{0, end - begin, 0, end}};
        flash_attention_forward<T>(piece, p.shape, p.q.ptr() + begin * p.q.stride, p.q.stride, p.k.ptr(), p.k.stride,
                                   p.v.ptr(), p.v.stride, out.ptr() + begin * out.stride, out.stride, nullptr);
      }
      for (std::int64_t n = 0; n < 135; ++n) ASSERT_TRUE(same_row_bits(out, whole, n)) << cut << ", " << n;
    }
    const auto alone = p.backward();
    Problem<T> both(packed({70, 135}), p.shape);
    for (std::int64_t n = 0; n < 135; ++n) {
      for (std::int64_t c = 0; c < p.q.width; ++c) both.q(70 + n, c) = p.q(n, c);
      for (std::int64_t c = 0; c < p.k.width; ++c) both.k(70 + n, c) = p.k(n, c);
      for (std::int64_t c = 0; c < p.v.width; ++c) both.v(70 + n, c) = p.v(n, c);
      for (std::int64_t c = 0; c < p.dout.width; ++c) both.dout(70 + n, c) = p.dout(n, c);
    }
    const auto together = both.backward();
    for (std::int64_t n = 0; n < 135; ++n) {
      for (std::int64_t c = 0; c < p.q.width; ++c) EXPECT_EQ(together.dq(70 + n, c), alone.dq(n, c));
      for (std::int64_t c = 0; c < p.k.width; ++c) EXPECT_EQ(together.dk(70 + n, c), alone.dk(n, c));
      for (std::int64_t c = 0; c < p.v.width; ++c) EXPECT_EQ(together.dv(70 + n, c), alone.dv(n, c));
    }
  }
}

// Reading token by token, with heads that share keys and without, gives the bits of reading all at once.
TYPED_TEST(FlashAttention, steps_give_the_same_bits) {
  using T = TypeParam;
  struct Heads {
    std::int64_t H, G, K, V, window;
  };
  for (const auto& [H, G, K, V, window] : {Heads{2, 2, 64, 64, 0},
                                           {3, 1, 9, 18, 0},
                                           {8, 2, 16, 64, 70},
                                           {5, 1, 33, 7, 0},
                                           {60, 60, 4, 4, 20},
                                           {50, 1, 4, 4, 0}}) {
    const Problem<T> p(packed({230}), shape_of(H, G, K, V, window));
    const auto whole = p.forward();
    auto steps = p.new_output();
    for (std::int64_t n = 0; n < 230; ++n) {
      const Sequences piece = {{n, 1, 0, n + 1}};
      flash_attention_forward<T>(piece, p.shape, p.q.ptr(), p.q.stride, p.k.ptr(), p.k.stride, p.v.ptr(), p.v.stride,
                                 steps.out.ptr(), steps.out.stride, steps.log_sums.ptr(), static_cast<int>(n % 3) + 1);
      ASSERT_TRUE(same_row_bits(steps.out, whole.out, n)) << H << ", " << n;
      ASSERT_TRUE(same_row_bits(steps.log_sums, whole.log_sums, n)) << H << ", " << n;
    }
  }
}

TYPED_TEST(FlashAttention, same_bits_for_any_number_of_threads) {
  const Problem<TypeParam> p(packed({300, 40, 170}), shape_of(4, 2, 16, 8));
  expect_same_for_threads([&](int threads) {
    auto o = p.forward(threads);
    auto g = p.backward(threads);
    return std::vector{o.out.data, o.log_sums.data, g.dq.data, g.dk.data, g.dv.data};
  });
}

// A NaN at token t reaches tokens from t on, of its sequence and (through k and v) its group; nothing else moves a bit.
TYPED_TEST(FlashAttention, nan_is_causal) {
  using T = TypeParam;
  const std::int64_t K = 6, V = 5, at = 90;
  for (int where = 0; where < 3; ++where) {
    Problem<T> p(packed({150, 80}), shape_of(4, 2, K, V));
    const auto clean = p.forward();
    const auto clean_gradients = p.backward();
    (where == 0 ? p.q(at, 2 * K) : where == 1 ? p.k(at, K) : p.v(at, V)) = std::numeric_limits<T>::quiet_NaN();
    const auto dirty = p.forward();
    for (std::int64_t n = 0; n < 230; ++n)
      for (std::int64_t c = 0; c < 4 * V; ++c) {
        // Head 2 reads q, heads 2 and 3 read group 1.
        const std::int64_t h = c / V;
        const bool reached = where == 0   ? n == at && h == 2
                             : where == 1 ? n >= at && n < 150 && h >= 2
                                          : n >= at && n < 150 && h >= 2 && c % V == 0;
        if (reached)
          ASSERT_TRUE(std::isnan(dirty.out(n, c))) << where << ": " << n << ", " << c;
        else
          ASSERT_EQ(dirty.out(n, c), clean.out(n, c)) << where << ": " << n << ", " << c;
      }
    expect_same_where_unreached(p.backward(), clean_gradients, p.shape, at, where == 0);
  }
}

RC_GTEST_PROP(FlashAttentionProperty, random_shapes, ()) {
  const auto small = [](std::int64_t low, std::int64_t high) { return *rc::gen::inRange<std::int64_t>(low, high); };
  const std::int64_t G = small(1, 4);
  const Sequences sequences = random_sequences(small);
  const Problem<double> p(sequences, shape_of(G * small(1, 4), G, small(1, 20), small(1, 20), small(0, 120)));
  const Grid<double> out = p.forward().out, want = p.definition().out;
  // Rows between sequences stay as they were: NaN.
  for (const auto& s : sequences)
    for (std::int64_t n = s.q_begin; n < s.q_begin + s.q_count; ++n)
      for (std::int64_t c = 0; c < out.width; ++c) RC_ASSERT(std::abs(out(n, c) - want(n, c)) <= 1e-12);
  for (std::int64_t n = 0; n < out.rows; ++n)
    if (std::isnan(want(n, 0))) RC_ASSERT(std::isnan(out(n, 0)));
}

// Decoding steps (one query) included.
TYPED_TEST(FlashAttention, instruction_sets) {
  using T = TypeParam;
  const Problem<T> p({{0, 150, 0, 150}, {150, 1, 150, 230}, {151, 3, 380, 100}}, shape_of(6, 2, 19, 21), 3);
  expect_definition_on_every_instruction_set(p, 8 * kBound<T>, 30 * kBound<T>);
}

TEST(FlashAttention, errors) {
  std::vector<float> x(256);
  float* d = x.data();
  const auto call = [&](const Sequences& sequences, const AttentionShape& shape, std::int64_t stride) {
    return [=] { flash_attention_forward<float>(sequences, shape, d, 8, d, stride, d, 8, d, 8, nullptr); };
  };
  const Sequences one = packed({3});
  expect_error(call(one, shape_of(0, 1, 4, 4), 8), "at least 1");
  expect_error(call(one, shape_of(3, 2, 4, 4), 8), "divide");
  expect_error(call(one, shape_of(2, 1, 4, 4, -1), 8), "window");
  expect_error(call(one, shape_of(2, 1, 4, 4, 0, -1), 8), "scale");
  expect_error(call(one, shape_of(2, 1, 4, 4), 3), "k: row stride 3");
  expect_error(call({{0, 4, 0, 3}}, shape_of(2, 1, 4, 4), 8), "3 keys for 4 queries");
  expect_error(call({{-1, 4, 0, 4}}, shape_of(2, 1, 4, 4), 8), "out of range");
  expect_error(call({{0, 4, 0, 4}, {3, 1, 4, 4}}, shape_of(2, 1, 4, 4), 8), "overlap");
  expect_error([&] { flash_attention_forward<float>(one, shape_of(2, 1, 4, 4), nullptr, 8, d, 8, d, 8, d, 8, d); },
               "q is null");
  expect_error(
      [&] {
        const Sequences shared = {{0, 1, 0, 2}, {1, 1, 1, 2}};
        flash_attention_backward<float>(shared, shape_of(2, 1, 4, 4), d, 8, d, 8, d, 8, d, 8, d, d, 8, d, 8, d, 8, d,
                                        8);
      },
      "keys overlap");
}

}  // namespace
}  // namespace loglinear::testing
