#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <string>

#include "app/ngram.hpp"
#include "sanitized.hpp"

namespace loglinear::app {
namespace {

// Interpolated Kneser-Ney straight from its definition, over maps of strings.
class BruteForce {
 public:
  explicit BruteForce(const std::vector<std::string>& texts) {
    for (const std::string& text : texts)
      for (std::size_t i = 2; i < text.size(); ++i) ++count_[3][text.substr(i - 2, 3)];
    for (int order = 3; order > 1; --order) {
      std::map<std::string, std::set<char>> before;
      for (const auto& [gram, n] : count_[order]) before[gram.substr(1)].insert(gram[0]);
      for (const auto& [gram, set] : before) count_[order - 1][gram] = static_cast<int>(set.size());
    }
  }
  double p(const std::string& context, char next) const {
    const int order = static_cast<int>(context.size()) + 1;
    const double shorter = order == 1 ? 1.0 / 256 : p(context.substr(1), next);
    int total = 0, distinct = 0, count = 0, once = 0, twice = 0;
    for (const auto& [gram, n] : count_[order]) {
      once += n == 1;
      twice += n == 2;
      if (gram.compare(0, context.size(), context) != 0) continue;
      total += n;
      ++distinct;
      if (gram.back() == next) count = n;
    }
    if (total == 0) return shorter;
    const double d = once > 0 ? double(once) / (once + 2 * twice) : 0.5;
    return (std::max(count - d, 0.0) + d * distinct * shorter) / total;
  }

 private:
  std::map<std::string, int> count_[4];
};

TEST(ByteTrigram, EqualsTheDefinition) {
  const std::vector<std::string> texts = {"abracadabra abracadabra, said the cat", "a \xff\x80 cat and a hat", "x", "",
                                          "ab"};
  ByteTrigram model;
  for (const std::string& text : texts) model.add(text);
  model.fit();
  const BruteForce brute(texts);
  for (const char* context : {"ab", "ra", "ca", "zz", "zc", "\xff\x80"})
    for (int next = 0; next < 256; ++next) {
      const double want = brute.p(context, static_cast<char>(next));
      const double got = model.probability(context[0], context[1], static_cast<unsigned char>(next));
      if (!(std::fabs(got - want) <= 1e-14)) FAIL() << context << " then " << next << ": " << got << ", want " << want;
    }
}

RC_GTEST_PROP(ByteTrigram, SumsToOneAndNeverGivesZero, (const std::string& a, const std::string& b)) {
  static int cases = 0;
  if (kSanitized && ++cases > 4) return;
  static ByteTrigram* shared = new ByteTrigram;  // 66 MiB: made once; texts add up over the cases
  shared->add(a + b + a);
  shared->fit();
  const unsigned char older = a.empty() ? 0 : a[0], newer = b.empty() ? 0 : b[0];
  double sum = 0;
  for (int next = 0; next < 256; ++next) {
    const double p = shared->probability(older, newer, static_cast<unsigned char>(next));
    RC_ASSERT(p > 0);
    sum += p;
  }
  RC_ASSERT(std::fabs(sum - 1) <= 1e-12);
}

TEST(ByteTrigram, WithoutTextIsUniform) {
  ByteTrigram model;
  model.fit();
  EXPECT_DOUBLE_EQ(model.probability(1, 2, 3), 1.0 / 256);
  EXPECT_DOUBLE_EQ(model.bits("hello"), 40);
}

TEST(ByteTrigram, BitsAddUp) {
  const std::string text = "the cat sat on the mat and the cat sat on the hat";
  ByteTrigram model;
  model.add(text);
  model.fit();
  const BruteForce brute({text});
  const std::string held = "the hat sat";
  double want = 0;
  for (std::size_t i = 0; i < held.size(); ++i)
    want -= std::log2(brute.p(held.substr(i - std::min<std::size_t>(i, 2), std::min<std::size_t>(i, 2)), held[i]));
  EXPECT_NEAR(model.bits(held), want, 1e-9);
  EXPECT_NEAR(model.bits(held, 4), want - model.bits(held.substr(0, 4)), 1e-9);
  EXPECT_LT(model.bits(text), model.bits("qwertyuiop asdfghjkl zxcvbnm qwertyuiop asdfghjkl"));
}

}  // namespace
}  // namespace loglinear::app
