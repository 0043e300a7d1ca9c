#pragma once
// The definition of MoSA as loops, rows in the order of their scores as the paper has them. S is double, or a complex
// number for derivatives: choices are made by real parts.

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <span>
#include <vector>

#include "loglinear/mosa.hpp"

namespace loglinear::mosa::ref {

inline double real_of(double x) { return x; }
inline double real_of(const std::complex<double>& x) { return x.real(); }

// Dense arrays in the shapes of loglinear/mosa.hpp.
template <class S>
struct Inputs {
  std::vector<std::int64_t> cu_seqlens;
  MosaShape shape;
  std::vector<S> router, qkv, out, x;
};

// y (N, D). chosen: null, or receives what mosa_forward writes there. gap: null, or receives the smallest distance
// between the score of a chosen token and that of one left out: derivatives exist where it is not small.
template <class S>
std::vector<S> forward(const Inputs<S>& in, std::vector<std::int64_t>* chosen = nullptr, double* gap = nullptr) {
  const auto [D, E, d, sparsity, first_token, theta] = in.shape;
  std::vector<S> y(static_cast<std::size_t>(in.cu_seqlens.back() * D), S(0));
  if (gap) *gap = 1;
  for (std::int64_t e = 0; e < E; ++e)
    for (std::size_t s = 0; s + 1 < in.cu_seqlens.size(); ++s) {
      const std::int64_t begin = in.cu_seqlens[s], T = in.cu_seqlens[s + 1] - begin;
      const std::int64_t k = std::min(std::max<std::int64_t>(T / sparsity, 2), T);
      const S* const x = in.x.data() + begin * D;
      std::vector<S> r(static_cast<std::size_t>(T));
      std::vector<std::int64_t> I;
      for (std::int64_t t = 0; t < T; ++t) {
        S sum = 0;
        for (std::int64_t i = 0; i < D; ++i) sum += x[t * D + i] * in.router[i * E + e];
        r[t] = S(1) / (S(1) + std::exp(-sum));
        I.push_back(t);
      }
      const std::int64_t kept = first_token && T > 0 ? 1 : 0;
      std::stable_sort(I.begin() + kept, I.end(),
                       [&](std::int64_t a, std::int64_t b) { return real_of(r[a]) > real_of(r[b]); });
      if (gap && k < T && k > kept) *gap = std::min(*gap, real_of(r[I[k - 1]]) - real_of(r[I[k]]));
      I.resize(static_cast<std::size_t>(k));

      // (k, 3 d)
      std::vector<S> z(static_cast<std::size_t>(k * 3 * d));
      for (std::int64_t a = 0; a < k; ++a)
        for (std::int64_t c = 0; c < 3 * d; ++c) {
          S sum = 0;
          for (std::int64_t i = 0; i < D; ++i) sum += x[I[a] * D + i] * in.qkv[(e * D + i) * 3 * d + c];
          z[a * 3 * d + c] = sum;
        }
      const std::int64_t width = 2 * (d / 4);
      for (std::int64_t a = 0; a < k; ++a)
        for (std::int64_t part = 0; part < 2; ++part)
          for (std::int64_t i = 0; i < width / 2; ++i) {
            const double angle =
                static_cast<double>(I[a]) * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(width));
            S &one = z[a * 3 * d + part * d + i], &two = z[a * 3 * d + part * d + width / 2 + i];
            const S before = one;
            one = before * std::cos(angle) - two * std::sin(angle);
            two = two * std::cos(angle) + before * std::sin(angle);
          }
      for (std::int64_t a = 0; a < k; ++a) {
        S sum = 0;
        std::vector<S> attended(static_cast<std::size_t>(d), S(0));
        for (std::int64_t b = 0; b < k; ++b) {
          if (I[a] < I[b]) continue;
          S score = 0;
          for (std::int64_t c = 0; c < d; ++c) score += z[a * 3 * d + c] * z[b * 3 * d + d + c];
          const S weight = std::exp(score / std::sqrt(static_cast<double>(d)));
          sum += weight;
          for (std::int64_t c = 0; c < d; ++c) attended[c] += weight * z[b * 3 * d + 2 * d + c];
        }
        for (std::int64_t i = 0; i < D; ++i) {
          S projected = 0;
          for (std::int64_t c = 0; c < d; ++c) projected += attended[c] / sum * in.out[(e * d + c) * D + i];
          y[(begin + I[a]) * D + i] += r[I[a]] * projected;
        }
      }
      std::sort(I.begin(), I.end());
      if (chosen) chosen->insert(chosen->end(), I.begin(), I.end());
    }
  return y;
}

}  // namespace loglinear::mosa::ref
