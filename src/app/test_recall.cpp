#include "app/recall.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "loglinear/error.hpp"

namespace loglinear::app {
namespace {

Batch example(const RecallTask& task, std::uint64_t seed, std::uint64_t index) {
  Batch batch;
  add_example(task, seed, index, batch);
  return batch;
}

const RecallTask kTasks[] = {{4, 4, 1, 0.01}, {5, 9, 1, 1}, {32, 60, 15, 0.01}, {256, 128, 16, 0.1}, {64, 31, 7, 2}};

TEST(Recall, ShowsEveryPairOnceAndAsksForEveryKeyOnce) {
  for (const RecallTask& task : kTasks) {
    check(task);
    for (std::uint64_t index = 0; index < 200; ++index) {
      const Batch batch = example(task, 3, index);
      ASSERT_EQ(static_cast<std::int64_t>(batch.tokens.size()), task.length);
      ASSERT_EQ(batch.targets.size(), batch.tokens.size());
      ASSERT_EQ(batch.cu_seqlens, (std::vector<std::int64_t>{0, task.length}));
      ASSERT_EQ(batch.scored, task.pairs);
      const std::int64_t half = task.vocab / 2;
      std::map<std::int32_t, std::int32_t> value_of;
      std::set<std::int32_t> values;
      for (std::int64_t i = 0; i < 2 * task.pairs; i += 2) {
        const std::int32_t key = batch.tokens[i], value = batch.tokens[i + 1];
        ASSERT_TRUE(key >= 1 && key < half) << key;
        ASSERT_TRUE(value >= half && value < 2 * half) << value;
        ASSERT_TRUE(value_of.emplace(key, value).second) << "key " << key << " is there twice";
        ASSERT_TRUE(values.insert(value).second) << "value " << value << " is there twice";
        ASSERT_EQ(batch.targets[i], -1);
        ASSERT_EQ(batch.targets[i + 1], -1);
      }
      std::set<std::int32_t> asked;
      for (std::int64_t i = 2 * task.pairs; i < task.length; ++i) {
        if (batch.targets[i] < 0) {
          ASSERT_EQ(batch.tokens[i], 0);  // filler
          continue;
        }
        ASSERT_EQ(i % 2, 0);
        ASSERT_TRUE(asked.insert(batch.tokens[i]).second);
        ASSERT_EQ(batch.targets[i], value_of.at(batch.tokens[i]));
      }
      ASSERT_EQ(static_cast<std::int64_t>(asked.size()), task.pairs);
    }
  }
}

TEST(Recall, IsAFunctionOfSeedAndIndex) {
  const RecallTask task;
  EXPECT_EQ(example(task, 1, 5).tokens, example(task, 1, 5).tokens);
  EXPECT_NE(example(task, 1, 5).tokens, example(task, 1, 6).tokens);
  EXPECT_NE(example(task, 1, 5).tokens, example(task, 2, 5).tokens);
  // Whatever is in the batch already.
  Batch batch = example(task, 1, 6);
  add_example(task, 1, 5, batch);
  const Batch alone = example(task, 1, 5);
  EXPECT_EQ(batch.cu_seqlens, (std::vector<std::int64_t>{0, task.length, 2 * task.length}));
  EXPECT_EQ(batch.scored, 2 * task.pairs);
  EXPECT_TRUE(std::equal(alone.tokens.begin(), alone.tokens.end(), batch.tokens.begin() + task.length));
  EXPECT_TRUE(std::equal(alone.targets.begin(), alone.targets.end(), batch.targets.begin() + task.length));
}

// One pair: the slot of its query follows the power law itself, keys and values are uniform.
TEST(Recall, DrawsFromThePowerLaw) {
  for (const double alpha : {0.01, 0.5, 1.0}) {
    const RecallTask task{18, 22, 1, alpha};  // 10 slots, 8 keys, 9 values
    constexpr int kExamples = 40000;
    std::vector<double> slots(10), keys(9), values(9);
    for (int index = 0; index < kExamples; ++index) {
      const Batch batch = example(task, 7, static_cast<std::uint64_t>(index));
      ++keys[batch.tokens[0]];
      ++values[batch.tokens[1] - 9];
      for (int slot = 0; slot < 10; ++slot) slots[slot] += batch.targets[2 + 2 * slot] >= 0;
    }
    double norm = 0;
    for (int slot = 1; slot <= 10; ++slot) norm += std::pow(slot, alpha - 1);
    // Five standard deviations of a count.
    const auto near = [](double count, double p) {
      EXPECT_LE(std::abs(count - kExamples * p), 5 * std::sqrt(kExamples * p * (1 - p)));
    };
    for (int slot = 0; slot < 10; ++slot) near(slots[slot], std::pow(slot + 1, alpha - 1) / norm);
    for (int key = 1; key <= 8; ++key) near(keys[key], 1 / 8.0);
    for (const double count : values) near(count, 1 / 9.0);
    EXPECT_EQ(keys[0], 0);
  }
}

TEST(Recall, RefusesWhatCannotBe) {
  const auto refused = [](const RecallTask& task, const std::string& name) {
    try {
      check(task);
      ADD_FAILURE() << "accepted " << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), Error::Kind::usage);
      EXPECT_EQ(std::string(error.what()).rfind("[recall] " + name, 0), 0u) << error.what();
    }
  };
  refused({3, 128, 1, 0.01}, "vocab");
  refused({32, 128, 16, 0.01}, "pairs");
  refused({32, 128, 0, 0.01}, "pairs");
  refused({256, 63, 16, 0.01}, "length");
  refused({256, std::int64_t{1} << 40, 16, 0.01}, "length");
  refused({256, 128, 16, 0}, "alpha");
  refused({256, 128, 16, std::nan("")}, "alpha");
  EXPECT_NO_THROW(check(RecallTask{}));
}

}  // namespace
}  // namespace loglinear::app
