#pragma once
// From logits to the next token. Pure functions: the same arguments give the same token.

#include <cstdint>
#include <span>
#include <vector>

namespace loglinear::app {

// Applied in this order: repetition penalty, temperature, top-k, top-p, min-p. Equal logits are ranked by token number,
// smaller first.
struct SamplerSettings {
  double temperature = 0.8;             // >= 0; 0: always the most likely token
  std::int64_t top_k = 0;               // keep the k most likely tokens; 0: all
  double top_p = 1.0;                   // (0, 1]: keep the fewest most likely tokens whose probabilities reach p
  double min_p = 0.0;                   // [0, 1]: keep tokens at least min_p times as likely as the most likely one
  double repetition_penalty = 1.0;      // > 0: logits of recent tokens are divided by it when positive, else multiplied
  std::int64_t repetition_window = 64;  // how many recent tokens; >= 0
};

// The longest repetition_window.
inline constexpr std::int64_t kMaxRepetitionWindow = 65536;

// Throws a usage Error naming the first setting that is out of range or not a number.
void check(const SamplerSettings& settings);

// The distribution the next token is drawn from, (vocab), sums to one. logits: (vocab), vocab >= 1. recent: the tokens
// so far, newest last; only the last repetition_window are used. Throws Error when a logit is NaN or infinite.
std::vector<double> probabilities(std::span<const float> logits, std::span<const std::int32_t> recent,
                                  const SamplerSettings& settings);

// The smallest token whose cumulative probability exceeds u in [0, 1), in token order; never a token of probability
// zero.
std::int32_t pick(std::span<const double> probabilities, double u);

// pick(probabilities(..), value number `position` of the stream that `seed` names): the token at an absolute position
// is a function of the seed, the logits and the position, so a text cut into runs is sampled as one run would.
std::int32_t next_token(std::span<const float> logits, std::span<const std::int32_t> recent,
                        const SamplerSettings& settings, std::uint64_t seed, std::int64_t position);

}  // namespace loglinear::app
