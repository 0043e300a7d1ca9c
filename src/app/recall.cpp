#include "app/recall.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/error.hpp"
#include "base/random.hpp"

namespace loglinear::app {
namespace {

constexpr std::int64_t kMostTokens = 1 << 24;
constexpr std::uint64_t kRecallStream = std::uint64_t{0x7265636c} << 32;  // + index

// `count` distinct tokens of first .. first + range - 1 in random order.
std::vector<std::int32_t> distinct(Random& random, std::int64_t first, std::int64_t range, std::int64_t count) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(range));
  std::iota(tokens.begin(), tokens.end(), static_cast<std::int32_t>(first));
  for (std::int64_t i = 0; i < count; ++i)
    std::swap(tokens[i], tokens[i + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(range - i)))]);
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

// `count` distinct numbers of 0 .. range - 1, drawn one after the other with probability proportional to
// (number + 1)^(alpha - 1) among those left. An exponential clock of that rate runs for each number; those that ring
// first are such a draw, in its order.
std::vector<std::int64_t> power_law(Random& random, std::int64_t range, std::int64_t count, double alpha) {
  std::vector<double> time(static_cast<std::size_t>(range));
  for (std::int64_t i = 0; i < range; ++i)
    time[i] = -std::log1p(-random.uniform()) * std::pow(static_cast<double>(i + 1), 1 - alpha);
  std::vector<std::int64_t> order(static_cast<std::size_t>(range));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](std::int64_t a, std::int64_t b) { return time[a] != time[b] ? time[a] < time[b] : a < b; });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

}  // namespace

void check(const RecallTask& task) {
  if (task.vocab < 4 || task.vocab > kMostTokens)
    fail_usage("recall", "vocab: got {}, need 4 to {}", task.vocab, kMostTokens);
  if (task.pairs < 1 || task.pairs > task.vocab / 2 - 1)
    fail_usage("recall", "pairs: got {}, need 1 to {}, the keys of a vocabulary of {}", task.pairs, task.vocab / 2 - 1,
               task.vocab);
  if (task.length < 4 * task.pairs || task.length > kMostTokens)
    fail_usage("recall", "length: got {}, need {} (four tokens a pair) to {}", task.length, 4 * task.pairs,
               kMostTokens);
  if (!(task.alpha > 0 && task.alpha <= 100))
    fail_usage("recall", "alpha: got {}, need more than 0, at most 100", task.alpha);
}

void add_example(const RecallTask& task, std::uint64_t seed, std::uint64_t index, Batch& batch) {
  Random random(seed, kRecallStream + index);
  const std::int64_t half = task.vocab / 2, n = task.pairs;
  const std::vector<std::int32_t> keys = distinct(random, 1, half - 1, n), values = distinct(random, half, half, n);
  const std::vector<std::int64_t> slots = power_law(random, task.length / 2 - n, n, task.alpha);
  const std::size_t begin = batch.tokens.size(), end = begin + static_cast<std::size_t>(task.length);
  batch.tokens.resize(end, 0);
  batch.targets.resize(end, -1);
  std::int32_t* tokens = batch.tokens.data() + begin;
  for (std::int64_t i = 0; i < n; ++i) {
    tokens[2 * i] = keys[i];
    tokens[2 * i + 1] = values[i];
    tokens[2 * (n + slots[i])] = keys[i];
    batch.targets[begin + static_cast<std::size_t>(2 * (n + slots[i]))] = values[i];
  }
  batch.cu_seqlens.push_back(static_cast<std::int64_t>(end));
  batch.scored += n;
}

}  // namespace loglinear::app
