#include "app/compare/quality.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/random.hpp"
#include "loglinear/error.hpp"
#include "nn/families.hpp"
#include "sanitized.hpp"

namespace loglinear::app::compare {
namespace {

namespace fs = std::filesystem;

// Small enough for a test, and still to be learnt: two pairs of few keys and values.
QualitySettings small(std::vector<std::string> mixers) {
  QualitySettings s;
  s.mixers = std::move(mixers);
  s.seeds = 1;
  s.hidden_size = 32;
  s.heads = 2;
  s.mlp_width = 32;
  s.steps = 150;
  s.batch_tokens = 512;
  s.warmup = 10;
  s.recall = {.name = "mqar", .length = 16, .vocab = 12, .items = 2, .alpha = 0.5};
  s.recall_examples = 100;
  s.seq_len = 32;
  s.val_bytes = 400;
  s.threads = 1;
  return s;
}

class Quality : public testing::Test {
 protected:
  Quality() : folder_(fs::temp_directory_path() / ("loglinear_quality_" + std::to_string(getpid()))) {
    fs::create_directories(folder_);
    std::ofstream text(folder_ / "text.txt");
    Random random(1, 2);
    const char* words[] = {"the ", "state ", "of ", "a ", "counter ", "is ", "its ", "digits.\n"};
    for (int i = 0; i < 3000; ++i) text << words[random.below(8)];
  }
  ~Quality() override { fs::remove_all(folder_); }
  std::string text() const { return (folder_ / "text.txt").string(); }

  fs::path folder_;
};

TEST_F(Quality, MixersThatCanRecallLearnTo) {
  QualitySettings s = small({"flash", "log_linear_gated_deltanet"});
  s.steps = kSanitized ? 20 : 300;
  const QualityResult result = run_quality(s);
  EXPECT_FALSE(result.interrupted);
  EXPECT_DOUBLE_EQ(result.chance, 1 / 6.0);
  EXPECT_EQ(result.recall_queries, 200);
  ASSERT_EQ(result.rows.size(), 2u);
  for (const QualityRow& row : result.rows) {
    ASSERT_EQ(row.recall.values.size(), 1u);
    // Guessing one of the two values shown would give a half.
    if (!kSanitized) EXPECT_GT(row.recall.mean, 0.8) << row.mixer;
    EXPECT_EQ(row.recall.mean, row.recall.values[0]);
    EXPECT_TRUE(std::isnan(row.recall.spread));
    EXPECT_GT(row.recall.parameters, 0);
    EXPECT_TRUE(row.bits_per_byte.values.empty());
    EXPECT_FALSE(row.sees_future);
  }
}

TEST_F(Quality, EveryMixerTrainsOnBothTasks) {
  QualitySettings s = small({});
  s.steps = kSanitized ? 8 : 16;
  s.data = {text()};
  const QualityResult result = run_quality(s);
  ASSERT_EQ(result.rows.size(), std::size(nn::kFamilies));
  EXPECT_EQ(result.settings.mixers.size(), result.rows.size());
  EXPECT_EQ(result.held_out_bytes, 400);
  for (const QualityRow& row : result.rows) {
    EXPECT_EQ(row.sees_future, row.mixer == "mosa");
    ASSERT_EQ(row.recall.values.size(), 1u);
    EXPECT_GE(row.recall.mean, 0);
    EXPECT_LE(row.recall.mean, 1);
    ASSERT_EQ(row.bits_per_byte.values.size(), 1u);
    EXPECT_GT(row.bits_per_byte.mean, 0) << row.mixer;
    EXPECT_LT(row.bits_per_byte.mean, 7) << row.mixer;  // a byte has 8
    EXPECT_GT(row.bits_per_byte.parameters, row.recall.parameters);
  }
}

TEST_F(Quality, TheSeedDecidesAndThreadsDoNot) {
  QualitySettings s = small({"sliding_window", "mamba2"});
  s.steps = kSanitized ? 2 : 6;
  s.seeds = 3;
  s.data = {text()};
  const QualityResult one = run_quality(s);
  s.threads = 3;
  const QualityResult three = run_quality(s);
  s.seed = 2;
  const QualityResult later = run_quality(s);
  ASSERT_EQ(one.rows.size(), 2u);
  for (std::size_t i = 0; i < 2; ++i)
    for (const auto score : {&QualityRow::recall, &QualityRow::bits_per_byte}) {
      const QualityScore &a = one.rows[i].*score, &b = three.rows[i].*score, &c = later.rows[i].*score;
      ASSERT_EQ(a.values.size(), 3u);
      EXPECT_EQ(a.values, b.values);
      // A training is a function of its own seed: the second of the first run is the first of a run from there.
      EXPECT_EQ(a.values[1], c.values[0]);
      EXPECT_EQ(a.values[2], c.values[1]);
      double mean = (a.values[0] + a.values[1] + a.values[2]) / 3, squares = 0;
      for (const double value : a.values) squares += (value - mean) * (value - mean);
      EXPECT_NEAR(a.mean, mean, 1e-12);
      EXPECT_NEAR(a.spread, std::sqrt(squares / 2), 1e-12);
    }
  EXPECT_NE(one.rows[0].bits_per_byte.values[0], one.rows[0].bits_per_byte.values[1]);
}

TEST_F(Quality, SaysWhereItStandsAndStopsWhenAsked) {
  QualitySettings s = small({"flash", "linear"});
  s.steps = 5;
  s.seeds = 2;
  std::vector<QualityProgress> told;
  QualityHooks hooks;
  hooks.progress = [&](const QualityProgress& progress) { told.push_back(progress); };
  int steps = 0;
  hooks.interrupted = [&] { return ++steps == 13; };  // in the third of four trainings
  const QualityResult result = run_quality(s, hooks);
  EXPECT_TRUE(result.interrupted);
  ASSERT_EQ(result.rows.size(), 1u);
  EXPECT_EQ(result.rows[0].mixer, "flash");
  ASSERT_GE(told.size(), 2u);
  EXPECT_EQ(told[0].mixer, "flash");
  EXPECT_EQ(std::string(told[0].task), "recall");
  EXPECT_EQ(told[0].trainings, 4);
  for (const QualityProgress& progress : told) {
    EXPECT_EQ(progress.steps, 5);
    EXPECT_GE(progress.eta_seconds, 0);
    EXPECT_GT(progress.tokens_per_second, 0);
  }
}

TEST_F(Quality, RefusesBeforeAnyWork) {
  const auto refused = [&](const std::string& what, auto change, Error::Kind kind = Error::Kind::usage) {
    QualitySettings s = small({"flash"});
    change(s);
    QualityHooks hooks;
    hooks.interrupted = [&] {
      ADD_FAILURE() << what << ": trained";
      return true;
    };
    try {
      run_quality(s, hooks);
      ADD_FAILURE() << what << ": no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_NE(std::string(error.what()).find(what), std::string::npos) << error.what();
    }
  };
  refused("adamas", [](QualitySettings& s) { s.mixers = {"adamas"}; });
  refused("twice", [](QualitySettings& s) { s.mixers = {"flash", "transformer"}; });
  refused("seeds", [](QualitySettings& s) { s.seeds = 0; });
  refused("lr", [](QualitySettings& s) { s.lr = std::nan(""); });
  refused("steps", [](QualitySettings& s) { s.steps = 0; });
  refused("items", [](QualitySettings& s) { s.recall.items = 6; });
  refused("recall", [](QualitySettings& s) { s.recall.min_items = 1; });
  refused("recall", [](QualitySettings& s) { s.recall = {.name = "copy"}; });
  refused("batch_tokens", [](QualitySettings& s) { s.batch_tokens = 15; });
  refused("num_heads", [](QualitySettings& s) { s.heads = 5; });
  refused("val_fraction", [](QualitySettings& s) { s.val_fraction = 0; });
  refused(
      "nothing.txt", [](QualitySettings& s) { s.data = {"/nowhere/nothing.txt"}; }, Error::Kind::failure);
}

}  // namespace
}  // namespace loglinear::app::compare
