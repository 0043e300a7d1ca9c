#include "app/compare/fit.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace loglinear::app::compare {

double extrapolated(std::span<const Sample> samples, const Fit& fit, double T) {
  if (std::isnan(fit.exponent)) return kAbsent;
  const auto last = std::find_if(samples.rbegin(), samples.rend(), [](const Sample& s) { return s.value > 0; });
  return last->value * std::pow(T / last->T, std::clamp(fit.exponent, 0.0, 2.2));
}

Fit fit(std::span<const Sample> samples) {
  std::vector<Sample> used;
  for (const Sample& s : samples)
    if (s.T > 0 && s.value > 0 && std::isfinite(s.value)) used.push_back(s);
  if (used.size() < 2) return {};
  std::size_t first = used.size() - std::min<std::size_t>(3, used.size());
  while (first > 0 && used[first - 1].T >= used.back().T / 8) --first;
  const auto n = static_cast<double>(used.size() - first);
  double x = 0, y = 0, xx = 0, xy = 0;
  for (std::size_t i = first; i < used.size(); ++i) x += std::log(used[i].T) / n, y += std::log(used[i].value) / n;
  for (std::size_t i = first; i < used.size(); ++i) {
    const double dx = std::log(used[i].T) - x;
    xx += dx * dx, xy += dx * (std::log(used[i].value) - y);
  }
  if (!(xx > 0)) return {};
  const double exponent = xy / xx;
  return {exponent, static_cast<int>(n)};
}

Crossover crossover(std::span<const Sample> a, std::span<const Sample> b) {
  struct Both {
    double T, gap;  // log of a over b: at most 0 where a takes no more
  };
  std::vector<Both> both;
  for (const Sample& s : a)
    for (const Sample& other : b)
      if (s.T == other.T && s.value > 0 && other.value > 0) both.push_back({s.T, std::log(s.value / other.value)});
  if (both.empty()) return {};
  if (both.back().gap > 0) return {Crossover::Kind::never, kAbsent};
  std::size_t from = both.size() - 1;
  while (from > 0 && both[from - 1].gap <= 0) --from;
  if (from == 0) return {Crossover::Kind::below, both[0].T};
  const Both &before = both[from - 1], &after = both[from];
  const double part = before.gap / (before.gap - after.gap);
  return {Crossover::Kind::at, before.T * std::pow(after.T / before.T, part)};
}

}  // namespace loglinear::app::compare
