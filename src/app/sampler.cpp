#include "app/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.hpp"
#include "base/random.hpp"

namespace loglinear::app {

void check(const SamplerSettings& s) {
  // Written so that NaN is refused.
  if (!(s.temperature >= 0) || std::isinf(s.temperature))
    fail_usage("generate", "temperature: got {}, need a number >= 0", s.temperature);
  if (s.top_k < 0) fail_usage("generate", "top-k: got {}, need >= 0 (0 keeps all)", s.top_k);
  if (!(s.top_p > 0 && s.top_p <= 1)) fail_usage("generate", "top-p: got {}, need > 0 and <= 1", s.top_p);
  if (!(s.min_p >= 0 && s.min_p <= 1)) fail_usage("generate", "min-p: got {}, need 0 to 1", s.min_p);
  if (!(s.repetition_penalty > 0) || std::isinf(s.repetition_penalty))
    fail_usage("generate", "repetition-penalty: got {}, need a number > 0", s.repetition_penalty);
  if (s.repetition_window < 0 || s.repetition_window > kMaxRepetitionWindow)
    fail_usage("generate", "repetition-window: got {}, need 0 to {}", s.repetition_window, kMaxRepetitionWindow);
}

std::vector<double> probabilities(std::span<const float> logits, std::span<const std::int32_t> recent,
                                  const SamplerSettings& settings) {
  check(settings);
  const std::size_t n = logits.size();
  if (n == 0) fail("generate", "the model has no tokens to choose from");
  std::vector<double> score(logits.begin(), logits.end());
  for (std::size_t i = 0; i < n; ++i)
    if (!std::isfinite(score[i])) fail("generate", "the model gave a logit of {} for token {}", score[i], i);

  if (settings.repetition_penalty != 1.0) {
    std::vector<bool> seen(n, false);  // a token is penalised once, however often it was seen
    const std::size_t window = std::min(recent.size(), static_cast<std::size_t>(settings.repetition_window));
    for (const std::int32_t token : recent.last(window))
      if (token >= 0 && static_cast<std::size_t>(token) < n) seen[token] = true;
    for (std::size_t i = 0; i < n; ++i)
      if (seen[i]) score[i] *= score[i] > 0 ? 1 / settings.repetition_penalty : settings.repetition_penalty;
  }

  std::vector<std::int32_t> order(n);  // most likely first
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return score[a] > score[b]; });

  std::vector<double> p(n, 0.0);
  if (settings.temperature == 0) {
    p[order[0]] = 1;
    return p;
  }
  std::size_t kept = n;
  if (settings.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(settings.top_k));
  const double best = score[order[0]];
  double total = 0;
  std::vector<double> weight(kept);  // in rank order
  for (std::size_t r = 0; r < kept; ++r) total += weight[r] = std::exp((score[order[r]] - best) / settings.temperature);

  if (settings.top_p < 1) {
    double sum = 0;
    std::size_t r = 0;
    while (r < kept) {
      sum += weight[r++];
      if (sum >= settings.top_p * total) break;
    }
    kept = r;
  }
  while (kept > 1 && weight[kept - 1] < settings.min_p) --kept;  // weight[0] is one

  total = std::accumulate(weight.begin(), weight.begin() + static_cast<std::ptrdiff_t>(kept), 0.0);
  for (std::size_t r = 0; r < kept; ++r) p[order[r]] = weight[r] / total;
  return p;
}

std::int32_t pick(std::span<const double> probabilities, double u) {
  double sum = 0;
  std::int32_t last = 0;
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    if (!(probabilities[i] > 0)) continue;
    last = static_cast<std::int32_t>(i);
    sum += probabilities[i];
    if (u < sum) break;
  }
  return last;  // rounding may leave the sum a little below one
}

std::int32_t next_token(std::span<const float> logits, std::span<const std::int32_t> recent,
                        const SamplerSettings& settings, std::uint64_t seed, std::int64_t position) {
  constexpr std::uint64_t kSamplerStream = 0x73616d706c65;  // "sample": no other use of the seed has this stream
  const Random random(seed, kSamplerStream);
  const double u = static_cast<double>(random.at(static_cast<std::uint64_t>(position)) >> 11) * 0x1p-53;
  return pick(probabilities(logits, recent, settings), u);
}

}  // namespace loglinear::app
