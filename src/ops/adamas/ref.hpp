#pragma once
// The definition of Adamas as loops in float64.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "loglinear/adamas.hpp"

namespace loglinear::adamas::ref {

// H x for H[i, j] = (-1)^(number of ones in i & j) / sqrt(K).
inline std::vector<double> hadamard(const std::vector<double>& x) {
  std::vector<double> y(x.size(), 0.0);
  for (std::size_t i = 0; i < x.size(); ++i) {
    for (std::size_t j = 0; j < x.size(); ++j) y[i] += std::popcount(i & j) % 2 == 0 ? x[j] : -x[j];
    y[i] /= std::sqrt(static_cast<double>(x.size()));
  }
  return y;
}

inline std::vector<int> codes(const AdamasShape& shape, const std::vector<double>& x) {
  std::vector<int> code;
  for (double value : hadamard(x)) {
    code.push_back(0);
    for (double threshold : shape.thresholds) code.back() += threshold < value;
  }
  return code;
}

// The token's distance to a query, both (K).
inline int distance(const AdamasShape& shape, const std::vector<double>& q, const std::vector<double>& k) {
  const std::vector<int> a = codes(shape, q), b = codes(shape, k);
  int sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
  return sum;
}

// What a head attends to, ascending.
inline std::vector<std::int64_t> choice(const std::vector<int>& distances, std::int64_t budget) {
  const std::int64_t newest = static_cast<std::int64_t>(distances.size()) - 1;
  std::vector<std::int64_t> order;
  for (std::int64_t s = newest; s >= 0; --s) order.push_back(s);
  std::stable_sort(order.begin() + 1, order.end(),
                   [&](std::int64_t a, std::int64_t b) { return distances[a] < distances[b]; });
  order.resize(static_cast<std::size_t>(std::min(budget, newest + 1)));
  std::sort(order.begin(), order.end());
  return order;
}

// Softmax attention of a query to the chosen ones of keys (tokens, K) and values (tokens, V).
inline std::vector<double> attention(const AdamasShape& shape, const std::vector<double>& q,
                                     const std::vector<std::vector<double>>& k,
                                     const std::vector<std::vector<double>>& v,
                                     const std::vector<std::int64_t>& chosen) {
  const double scale = shape.scale > 0 ? shape.scale : 1 / std::sqrt(static_cast<double>(q.size()));
  std::vector<double> out(static_cast<std::size_t>(shape.value_width), 0.0), scores;
  for (std::int64_t s : chosen) {
    double score = 0;
    for (std::size_t i = 0; i < q.size(); ++i) score += q[i] * k[s][i];
    scores.push_back(scale * score);
  }
  const double most = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double score : scores) sum += std::exp(score - most);
  for (std::size_t n = 0; n < chosen.size(); ++n)
    for (std::size_t c = 0; c < out.size(); ++c) out[c] += std::exp(scores[n] - most) / sum * v[chosen[n]][c];
  return out;
}

}  // namespace loglinear::adamas::ref
