#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "app/sampler.hpp"
#include "base/random.hpp"
#include "loglinear/error.hpp"

namespace loglinear::app {
namespace {

SamplerSettings plain() {
  SamplerSettings s;
  s.temperature = 1;
  return s;
}

std::vector<float> logits_of(const std::vector<double>& p) {
  std::vector<float> logits;
  for (const double x : p) logits.push_back(static_cast<float>(std::log(x)));
  return logits;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  double best = *std::max_element(logits.begin(), logits.end()), total = 0;
  std::vector<double> p;
  for (const float x : logits) p.push_back(std::exp((x - best) / temperature));
  for (const double x : p) total += x;
  for (double& x : p) x /= total;
  return p;
}

std::set<int> support(const std::vector<double>& p) {
  std::set<int> kept;
  for (std::size_t i = 0; i < p.size(); ++i)
    if (p[i] > 0) kept.insert(static_cast<int>(i));
  return kept;
}

void expect_near(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    if (!(std::fabs(got[i] - want[i]) <= 1e-7))
      ADD_FAILURE() << "token " << i << ": " << got[i] << ", want " << want[i];
}

// The definitions, one filter after another over a list of (probability, token).
std::vector<double> by_definition(const std::vector<float>& logits, const std::vector<std::int32_t>& recent,
                                  const SamplerSettings& s) {
  std::vector<double> score(logits.begin(), logits.end());
  for (std::size_t i = 0; i < score.size(); ++i) {
    const auto first = recent.end() - std::min<std::ptrdiff_t>(recent.size(), s.repetition_window);
    if (std::find(first, recent.end(), static_cast<std::int32_t>(i)) == recent.end()) continue;
    score[i] = score[i] > 0 ? score[i] / s.repetition_penalty : score[i] * s.repetition_penalty;
  }
  std::vector<std::pair<double, int>> ranked;
  for (std::size_t i = 0; i < score.size(); ++i) ranked.push_back({-score[i], static_cast<int>(i)});
  std::sort(ranked.begin(), ranked.end());
  const double best = -ranked[0].first;
  for (auto& [x, i] : ranked) x = std::exp((-x - best) / s.temperature);
  if (s.top_k > 0 && s.top_k < static_cast<std::int64_t>(ranked.size())) ranked.resize(s.top_k);
  double total = 0, sum = 0;
  for (const auto& [x, i] : ranked) total += x;
  std::size_t keep = ranked.size();
  for (std::size_t r = 0; r < ranked.size(); ++r) {
    sum += ranked[r].first / total;
    if (sum >= s.top_p) {
      keep = r + 1;
      break;
    }
  }
  ranked.resize(keep);
  std::erase_if(ranked, [&](const auto& entry) { return entry.first < s.min_p * ranked[0].first; });
  total = 0;
  for (const auto& [x, i] : ranked) total += x;
  std::vector<double> p(logits.size(), 0.0);
  for (const auto& [x, i] : ranked) p[i] = x / total;
  return p;
}

TEST(Sampler, PlainIsSoftmax) {
  const std::vector<float> logits = {0.5f, -1, 2, 2, -30};
  expect_near(probabilities(logits, {}, plain()), softmax(logits, 1));
}

TEST(Sampler, TemperatureDividesLogits) {
  const std::vector<float> logits = {0.5f, -1, 2, 1};
  for (const double t : {0.1, 0.7, 3.0}) {
    SamplerSettings s = plain();
    s.temperature = t;
    expect_near(probabilities(logits, {}, s), softmax(logits, t));
  }
}

TEST(Sampler, ZeroTemperatureTakesTheFirstOfTheLargest) {
  SamplerSettings s = plain();
  s.temperature = 0;
  EXPECT_EQ(probabilities(std::vector<float>{1, 3, 3, 2}, {}, s), (std::vector<double>{0, 1, 0, 0}));
}

TEST(Sampler, TopKKeepsKAndBreaksTiesByToken) {
  SamplerSettings s = plain();
  s.top_k = 2;
  EXPECT_EQ(support(probabilities(std::vector<float>{1, 2, 2, 2}, {}, s)), (std::set<int>{1, 2}));
  s.top_k = 100;
  EXPECT_EQ(support(probabilities(std::vector<float>{1, 2, 2, 2}, {}, s)).size(), 4u);
}

TEST(Sampler, TopPKeepsTheTokenThatReachesP) {
  const std::vector<float> logits = logits_of({0.5, 0.25, 0.125, 0.125});
  const auto kept = [&](double p) {
    SamplerSettings s = plain();
    s.top_p = p;
    return support(probabilities(logits, {}, s)).size();
  };
  EXPECT_EQ(kept(0.0001), 1u);
  EXPECT_EQ(kept(0.49), 1u);
  EXPECT_EQ(kept(0.51), 2u);
  EXPECT_EQ(kept(0.74), 2u);
  EXPECT_EQ(kept(0.76), 3u);
  EXPECT_EQ(kept(0.99), 4u);
  EXPECT_EQ(kept(1.0), 4u);
}

TEST(Sampler, TopPReachedExactlyKeepsNoMore) {
  // Equal logits have weights of exactly one: half of four tokens is two.
  SamplerSettings s = plain();
  s.top_p = 0.5;
  EXPECT_EQ(support(probabilities(std::vector<float>{1, 1, 1, 1}, {}, s)), (std::set<int>{0, 1}));
}

TEST(Sampler, MinPIsRelativeToTheLargest) {
  SamplerSettings s = plain();
  s.min_p = 0.3;
  EXPECT_EQ(support(probabilities(logits_of({0.1, 0.5, 0.16, 0.24}), {}, s)), (std::set<int>{1, 2, 3}));
  s.min_p = 1;
  EXPECT_EQ(support(probabilities(std::vector<float>{2, 2, 1}, {}, s)), (std::set<int>{0, 1}));
}

TEST(Sampler, PenaltyMakesRecentTokensLessLikelyWhateverTheSign) {
  const std::vector<float> logits = {2, -2, 0.5f, -0.5f};
  SamplerSettings s = plain();
  s.repetition_penalty = 2;
  expect_near(probabilities(logits, std::vector<std::int32_t>{0, 1, 0}, s), softmax({1, -4, 0.5f, -0.5f}, 1));
  s.repetition_window = 1;  // only the last token counts
  expect_near(probabilities(logits, std::vector<std::int32_t>{1, 0}, s), softmax({1, -2, 0.5f, -0.5f}, 1));
  s.repetition_window = 0;
  expect_near(probabilities(logits, std::vector<std::int32_t>{1, 0}, s), softmax(logits, 1));
  s.repetition_window = 64;
  s.repetition_penalty = 0.5;  // an award
  expect_near(probabilities(logits, std::vector<std::int32_t>{1}, s), softmax({2, -1, 0.5f, -0.5f}, 1));
}

RC_GTEST_PROP(Sampler, EqualsTheDefinition, ()) {
  const int n = *rc::gen::inRange(1, 40);
  std::vector<float> logits;
  for (int i = 0; i < n; ++i) logits.push_back(static_cast<float>(*rc::gen::inRange(-60, 60)) / 8);
  std::vector<std::int32_t> recent;
  for (int i = *rc::gen::inRange(0, 10); i > 0; --i) recent.push_back(*rc::gen::inRange(0, n));
  SamplerSettings s;
  s.temperature = *rc::gen::inRange(1, 30) / 10.0;
  s.top_k = *rc::gen::inRange(0, n + 2);
  s.top_p = *rc::gen::inRange(1, 1000) / 1000.0 - 1e-5;  // off the places where rounding decides
  s.min_p = *rc::gen::inRange(0, 1000) / 1001.0 + 1e-5;
  s.repetition_penalty = *rc::gen::inRange(5, 30) / 10.0;
  s.repetition_window = *rc::gen::inRange(0, 12);
  const std::vector<double> got = probabilities(logits, recent, s), want = by_definition(logits, recent, s);
  double sum = 0;
  for (int i = 0; i < n; ++i) {
    RC_ASSERT(std::fabs(got[i] - want[i]) <= 1e-9);
    sum += got[i];
  }
  RC_ASSERT(std::fabs(sum - 1) <= 1e-12);
}

TEST(Sampler, LogitsThatAreNotFiniteAreAnError) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()})
    for (const double temperature : {0.0, 1.0}) {
      SamplerSettings s = plain();
      s.temperature = temperature;
      EXPECT_THROW(probabilities(std::vector<float>{1, bad, 2}, {}, s), Error);
    }
}

TEST(Sampler, SettingsOutOfRangeAreUsageErrors) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const auto refused = [](auto change) {
    SamplerSettings s;
    change(s);
    try {
      check(s);
      return false;
    } catch (const Error& error) {
      return error.kind() == Error::Kind::usage;
    }
  };
  EXPECT_FALSE(refused([](SamplerSettings&) {}));
  for (const double x : {-0.1, nan, inf}) EXPECT_TRUE(refused([&](SamplerSettings& s) { s.temperature = x; }));
  EXPECT_TRUE(refused([](SamplerSettings& s) { s.top_k = -1; }));
  for (const double x : {0.0, -1.0, 1.01, nan}) EXPECT_TRUE(refused([&](SamplerSettings& s) { s.top_p = x; }));
  for (const double x : {-0.1, 1.1, nan}) EXPECT_TRUE(refused([&](SamplerSettings& s) { s.min_p = x; }));
  for (const double x : {0.0, -1.0, nan, inf})
    EXPECT_TRUE(refused([&](SamplerSettings& s) { s.repetition_penalty = x; }));
  for (const std::int64_t x : {std::int64_t{-1}, kMaxRepetitionWindow + 1})
    EXPECT_TRUE(refused([&](SamplerSettings& s) { s.repetition_window = x; }));
}

TEST(Sampler, PickInverts) {
  const std::vector<double> p = {0, 0.25, 0, 0.5, 0.25, 0};
  EXPECT_EQ(pick(p, 0), 1);
  EXPECT_EQ(pick(p, 0.2499), 1);
  EXPECT_EQ(pick(p, 0.25), 3);
  EXPECT_EQ(pick(p, 0.7499), 3);
  EXPECT_EQ(pick(p, 0.75), 4);
  EXPECT_EQ(pick(p, 1 - 0x1p-53), 4);
  EXPECT_EQ(pick(std::vector<double>{0.3, 0.3, 0.3999999, 0}, 1 - 0x1p-53), 2);  // a sum below one
}

TEST(Sampler, FrequenciesFollowTheProbabilities) {
  const std::vector<double> p = {0.1, 0.2, 0.3, 0.4};
  const std::vector<float> logits = logits_of(p);
  std::vector<int> count(4);
  const int n = 40000;
  for (int i = 0; i < n; ++i) ++count[next_token(logits, {}, plain(), 7, i)];
  // Five standard deviations of a binomial.
  for (int i = 0; i < 4; ++i) EXPECT_LE(std::fabs(count[i] - n * p[i]), 5 * std::sqrt(n * p[i] * (1 - p[i])));
}

TEST(Sampler, TheTokenIsAFunctionOfSeedAndPosition) {
  const std::vector<float> logits(256, 0.0f);
  std::vector<std::int32_t> a, b, other;
  for (int i = 0; i < 50; ++i) {
    a.push_back(next_token(logits, {}, plain(), 3, i));
    other.push_back(next_token(logits, {}, plain(), 4, i));
  }
  for (int i = 49; i >= 0; --i) b.insert(b.begin(), next_token(logits, {}, plain(), 3, i));
  EXPECT_EQ(a, b);
  EXPECT_NE(a, other);
  EXPECT_GT(std::set<std::int32_t>(a.begin(), a.end()).size(), 20u);
}

}  // namespace
}  // namespace loglinear::app
