#pragma once
// What the tests of the attention operators share: a problem with its definition in float64, every pair looked at, and
// the adjoint of that written out.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/attention.hpp"
#include "base/cpu_features.hpp"
#include "loglinear/attention.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {

using Sequences = std::vector<AttentionSequence>;
using Seen = std::function<bool(std::int64_t position, std::int64_t key)>;

inline Sequences packed(const std::vector<std::int64_t>& lengths) {
  Sequences sequences;
  std::int64_t at = 0;
  for (std::int64_t n : lengths) sequences.push_back({at, n, at, n}), at += n;
  return sequences;
}

inline AttentionShape shape_of(std::int64_t H, std::int64_t G, std::int64_t K, std::int64_t V, std::int64_t window = 0,
                               double scale = 0, bool causal = true) {
  AttentionShape shape;
  shape.heads = H, shape.kv_heads = G, shape.key_width = K, shape.value_width = V, shape.window = window;
  shape.scale = scale, shape.causal = causal;
  return shape;
}

// As loglinear/attention.hpp says it.
inline Seen seen_by(const AttentionShape& shape) {
  return [=](std::int64_t p, std::int64_t s) {
    return shape.causal ? s <= p && (shape.window == 0 || p - s < shape.window)
                        : shape.window == 0 || std::abs(p - s) < shape.window;
  };
}

template <class T>
struct AttentionProblem {
  Sequences sequences;
  AttentionShape shape;
  std::int64_t q_rows = 0, k_rows = 0;
  Grid<T> q, k, v, dout;

  AttentionProblem(Sequences sequences_, AttentionShape shape_, std::int64_t padding = 0)
      : sequences(std::move(sequences_)), shape(shape_) {
    for (const auto& s : sequences) {
      q_rows = std::max(q_rows, s.q_begin + s.q_count);
      k_rows = std::max(k_rows, s.k_begin + s.k_count);
    }
    q = Grid<T>(q_rows, shape.heads * shape.key_width, padding);
    k = Grid<T>(k_rows, shape.kv_heads * shape.key_width, padding + 1);
    v = Grid<T>(k_rows, shape.kv_heads * shape.value_width, padding);
    dout = Grid<T>(q_rows, shape.heads * shape.value_width, padding);
    Random random(19, static_cast<std::uint64_t>(q_rows));
    q.fill(random, -2, 2), k.fill(random, -2, 2), v.fill(random), dout.fill(random);
  }

  struct Output {
    Grid<T> out, log_sums;
  };
  struct Gradients {
    Grid<T> dq, dk, dv;
  };
  Output new_output() const {
    return {Grid<T>(q_rows, shape.heads * shape.value_width, 2), Grid<T>(q_rows, shape.heads)};
  }
  Gradients new_gradients() const {
    return {Grid<T>(q_rows, q.width, 1), Grid<T>(k_rows, k.width, 2), Grid<T>(k_rows, v.width, 3)};
  }

  // Rows of no sequence stay NaN, as an operator leaves them.
  struct Definition {
    Grid<double> out, log_sums, dq, dk, dv;
    std::vector<double> probabilities;  // as standard_attention orders them
  };
  Definition definition(const Seen& seen) const {
    const std::int64_t H = shape.heads, R = H / shape.kv_heads, K = shape.key_width, V = shape.value_width;
    const double scale = shape.scale > 0 ? shape.scale : 1 / std::sqrt(static_cast<double>(K));
    Definition d{Grid<double>(q_rows, H * V),   Grid<double>(q_rows, H),       Grid<double>(q_rows, q.width),
                 Grid<double>(k_rows, k.width), Grid<double>(k_rows, v.width), {}};
    for (const auto& s : sequences) {
      for (std::int64_t t = s.k_begin; t < s.k_begin + s.k_count; ++t) {
        for (std::int64_t c = 0; c < k.width; ++c) d.dk(t, c) = 0;
        for (std::int64_t c = 0; c < v.width; ++c) d.dv(t, c) = 0;
      }
      for (std::int64_t h = 0; h < H; ++h)
        for (std::int64_t i = 0; i < s.q_count; ++i) {
          const std::int64_t position = s.k_count - s.q_count + i, g = h / R, n = s.q_begin + i;
          std::vector<double> p(static_cast<std::size_t>(s.k_count)), dp = p;
          double peak = -std::numeric_limits<double>::infinity(), sum = 0, mean = 0;
          for (std::int64_t t = 0; t < s.k_count; ++t) {
            if (!seen(position, t)) continue;
            for (std::int64_t c = 0; c < K; ++c)
              p[t] += scale * static_cast<double>(q(n, h * K + c)) * static_cast<double>(k(s.k_begin + t, g * K + c));
            for (std::int64_t c = 0; c < V; ++c)
              dp[t] += static_cast<double>(dout(n, h * V + c)) * static_cast<double>(v(s.k_begin + t, g * V + c));
            peak = std::max(peak, p[t]);
          }
          for (std::int64_t t = 0; t < s.k_count; ++t)
            if (seen(position, t)) sum += p[t] = std::exp(p[t] - peak);
          for (std::int64_t t = 0; t < s.k_count; ++t) mean += (p[t] /= sum) * dp[t];
          d.log_sums(n, h) = peak + std::log(sum);
          d.probabilities.insert(d.probabilities.end(), p.begin(), p.end());
          for (std::int64_t c = 0; c < V; ++c) d.out(n, h * V + c) = 0;
          for (std::int64_t c = 0; c < K; ++c) d.dq(n, h * K + c) = 0;
          for (std::int64_t t = 0; t < s.k_count; ++t) {
            if (!seen(position, t)) continue;
            const std::int64_t m = s.k_begin + t;
            const double ds = scale * p[t] * (dp[t] - mean);
            for (std::int64_t c = 0; c < V; ++c) {
              d.out(n, h * V + c) += p[t] * static_cast<double>(v(m, g * V + c));
              d.dv(m, g * V + c) += p[t] * static_cast<double>(dout(n, h * V + c));
            }
            for (std::int64_t c = 0; c < K; ++c) {
              d.dq(n, h * K + c) += ds * static_cast<double>(k(m, g * K + c));
              d.dk(m, g * K + c) += ds * static_cast<double>(q(n, h * K + c));
            }
          }
        }
    }
    return d;
  }
};

// As expect_close, but only rows where the definition has a number; elsewhere the operator must have written nothing.
template <class T>
void expect_rows(const Grid<T>& got, const Grid<double>& want, double bound, const std::string& what) {
  Grid<double> expected = want;
  for (std::int64_t r = 0; r < want.rows; ++r)
    if (want.width > 0 && std::isnan(want(r, 0)))
      for (std::int64_t c = 0; c < want.width; ++c) {
        if (!std::isnan(got(r, c))) {
          ADD_FAILURE() << what << " (" << r << ", " << c << "): written, belongs to no sequence";
          return;
        }
        expected(r, c) = 0;
      }
  Grid<double> numbers = converted<double>(got);
  for (std::int64_t r = 0; r < want.rows; ++r)
    if (want.width > 0 && std::isnan(want(r, 0)))
      for (std::int64_t c = 0; c < want.width; ++c) numbers(r, c) = 0;
  expect_close(numbers, expected, bound, what);
}

// The gradients of a Problem (what each operator's test makes of AttentionProblem) against the adjoint of its
// definition.
template <class Problem>
void expect_gradients_of_definition(const Problem& p, double bound) {
  const auto g = p.backward();
  const auto want = p.definition();
  expect_rows(g.dq, want.dq, bound, "dq");
  expect_rows(g.dk, want.dk, bound, "dk");
  expect_rows(g.dv, want.dv, bound, "dv");
}

// Output and gradients with every instruction set that this program has for this CPU, forced.
template <class Problem>
void expect_definition_on_every_instruction_set(const Problem& p, double bound, double gradient_bound) {
  for (const std::string& name : instruction_sets()) {
    SCOPED_TRACE(name);
    force_instruction_set(name);
    ASSERT_EQ(instruction_set_name(attention::instruction_set()), name);
    expect_rows(p.forward().out, p.definition().out, bound, "out");
    expect_gradients_of_definition(p, gradient_bound);
  }
  force_instruction_set("");
}

// Up to three sequences of any lengths, some with a cache, gaps between their rows.
template <class Integer>
Sequences random_sequences(const Integer& integer) {
  Sequences sequences;
  std::int64_t q_at = 0, k_at = 0;
  for (std::int64_t i = integer(0, 4); i > 0; --i) {
    const std::int64_t n = integer(0, 150), extra = integer(0, 100);
    q_at += integer(0, 3), k_at += integer(0, 3);
    sequences.push_back({q_at, n, k_at, n + extra});
    q_at += n, k_at += n + extra;
  }
  return sequences;
}

// After a NaN at token `at` of group 1 (of 2, two heads each) of the first of two packed sequences (150, 80 tokens):
// the gradients that it must not reach. of_query: the NaN is in a query, else in a key or value.
template <class Gradients>
void expect_same_where_unreached(const Gradients& got, const Gradients& want, const AttentionShape& shape,
                                 std::int64_t at, bool of_query) {
  const std::int64_t K = shape.key_width, V = shape.value_width;
  for (std::int64_t n = 0; n < 230; ++n) {
    // The other sequence, the other group, and queries before the NaN.
    for (std::int64_t c = 0; c < 4 * K; ++c)
      if (n >= 150 || c < 2 * K || n < at) {
        ASSERT_EQ(got.dq(n, c), want.dq(n, c));
      }
    for (std::int64_t c = 0; c < 2 * K; ++c)
      if (n >= 150 || c < K || (of_query && n > at)) {
        ASSERT_EQ(got.dk(n, c), want.dk(n, c));
      }
    for (std::int64_t c = 0; c < 2 * V; ++c)
      if (n >= 150 || c < V || (of_query && n > at)) {
        ASSERT_EQ(got.dv(n, c), want.dv(n, c));
      }
  }
}

}  // namespace loglinear::testing
