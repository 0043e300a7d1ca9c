#pragma once
// The definition of quasi-linear attention as loops. S is double, or a complex number for derivatives.

#include <cmath>
#include <complex>
#include <cstdint>
#include <span>
#include <vector>

#include "loglinear/quasi_linear.hpp"

namespace loglinear::quasi_linear::ref {

inline double real_of(double x) { return x; }
inline double real_of(const std::complex<double>& x) { return x.real(); }

template <class S>
S phi(Feature feature, S x) {
  if (feature == Feature::silu) return x / (S(1) + std::exp(-x));
  return real_of(x) >= 1 ? x : std::exp(x - S(1));
}

// q, k (rows, H * K) and v (rows, H * V), dense. state: (sequences, H, K, V), read and written. Returns out (rows,
// H * V), zero where no sequence has a row. Every pair of rows is looked at: the state is not used for the outputs.
template <class S>
std::vector<S> forward(std::span<const QuasiLinearSequence> sequences, const QuasiLinearShape& shape, std::vector<S> q,
                       std::vector<S> k, const std::vector<S>& v, std::vector<S>& state) {
  const auto [H, K, V, feature] = shape;
  for (std::vector<S>* x : {&q, &k})
    for (S& value : *x) value = phi(feature, value);
  std::vector<S> out(v.size(), S(0));
  for (std::size_t n = 0; n < sequences.size(); ++n)
    for (std::int64_t h = 0; h < H; ++h) {
      const QuasiLinearSequence& range = sequences[n];
      S* const Z = state.data() + (static_cast<std::int64_t>(n) * H + h) * K * V;
      const auto weight = [&](std::int64_t t, std::int64_t s) {
        S sum = 0;
        for (std::int64_t a = 0; a < K; ++a) sum += q[(t * H + h) * K + a] * k[(s * H + h) * K + a];
        return sum;
      };
      const auto row = [&](std::int64_t t, bool candidate) {
        S* const to = out.data() + (t * H + h) * V;
        for (std::int64_t c = 0; c < V; ++c)
          for (std::int64_t a = 0; a < K; ++a) to[c] += q[(t * H + h) * K + a] * Z[a * V + c];
        for (std::int64_t i = 0; i < range.seed_count + (candidate ? 1 : 0); ++i) {
          const std::int64_t s = i < range.seed_count ? range.seed_begin + i : t;
          const S w = weight(t, s);
          for (std::int64_t c = 0; c < V; ++c) to[c] += w * v[(s * H + h) * V + c];
        }
      };
      for (std::int64_t i = 0; i < range.seed_count; ++i) row(range.seed_begin + i, false);
      for (std::int64_t i = 0; i < range.candidate_count; ++i) row(range.candidate_begin + i, true);
      for (std::int64_t i = 0; i < range.seed_count; ++i)
        for (std::int64_t a = 0; a < K; ++a)
          for (std::int64_t c = 0; c < V; ++c) {
            const std::int64_t s = range.seed_begin + i;
            Z[a * V + c] += k[(s * H + h) * K + a] * v[(s * H + h) * V + c];
          }
    }
  return out;
}

}  // namespace loglinear::quasi_linear::ref
