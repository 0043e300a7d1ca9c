#include "app/score.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include "loglinear/error.hpp"

namespace loglinear::app {
namespace {

constexpr float kFloatNaN = std::numeric_limits<float>::quiet_NaN();

// A model that looks at the last token alone: after a digit it says the next one (0 after 9), after everything else 3.
std::unique_ptr<nn::Model<float>> counting_model(float poison = 0) {
  nn::ModelConfig config;
  config.family = "flash";
  config.hidden_size = 16;
  config.num_layers = 1;
  config.num_heads = 2;
  config.mlp_width = 8;
  auto model = std::make_unique<nn::Model<float>>(config);
  constexpr int kOther = 10;  // where the tokens that are no digits are; digit d is at d
  const auto at = [](int token) { return token >= '0' && token <= '9' ? token - '0' : kOther; };
  for (auto& p : model->parameters()) {
    if (p.name.find("norm") != std::string::npos)
      for (float& x : p.value) x = 1;
    if (p.name.find("embeddings.weight") != std::string::npos)
      for (int token = 0; token < 256; ++token) p.value[token * 16 + at(token)] = 1;
    if (p.name == "lm_head.weight") {
      for (int d = 0; d < 10; ++d) p.value[('0' + (d + 1) % 10) * 16 + d] = 1;
      p.value['3' * 16 + kOther] = 1;
      p.value[200 * 16] = poison;
    }
  }
  return model;
}

std::int32_t says(std::int32_t token) {
  if (token < '0' || token > '9') return '3';
  return token == '9' ? '0' : token + 1;
}

TaskSettings needles(std::int64_t digits) {
  TaskSettings s;
  s.name = "needle_multiquery";
  s.length = 256;
  s.min_length = 200;
  s.digits = digits;
  return s;
}

TEST(Score, CountsWhatAKnownModelSays) {
  const auto model = counting_model();
  for (const std::int64_t digits : {1, 2}) {
    const Task task(needles(digits));
    constexpr std::int64_t kExamples = 150;
    // By the definition, one example at a time.
    TaskScore expected;
    for (std::int64_t i = 0; i < kExamples; ++i) {
      Batch batch;
      std::vector<Answer> answers;
      task.add_example(kHeldOutSeed, static_cast<std::uint64_t>(i), batch, &answers);
      expected.loss += model->loss(batch.tokens, batch.targets, batch.cu_seqlens, false);
      expected.scored += batch.scored;
      for (const Answer& answer : answers) {
        std::int64_t good = 0;
        for (std::int64_t t = answer.begin; t < answer.end; ++t) good += batch.targets[t] == says(batch.tokens[t]);
        const std::int64_t bin = 10 * answer.evidence / answer.begin;  // the only example of its batch: starts at 0
        for (Tally* tally : {&expected.all, &expected.depths[bin]}) {
          ++tally->answers;
          tally->right += good == digits;
        }
      }
    }
    ASSERT_EQ(expected.all.answers, 4 * kExamples);
    ASSERT_GT(expected.all.right, 0);
    ASSERT_LT(expected.all.right, expected.all.answers / 2);
    for (const std::int64_t batch_tokens : {1, 700, 100000}) {
      ScoreOptions options;
      options.examples = kExamples;
      options.batch_tokens = batch_tokens;
      std::int64_t done = 0;
      options.progress = [&](std::int64_t examples) {
        EXPECT_GT(examples, done);
        done = examples;
      };
      const TaskScore score = score_task(*model, task, options);
      EXPECT_EQ(done, kExamples);
      EXPECT_EQ(score.examples, kExamples);
      EXPECT_EQ(score.scored, expected.scored);
      EXPECT_EQ(score.all.answers, expected.all.answers);
      EXPECT_EQ(score.all.right, expected.all.right);
      for (int bin = 0; bin < kDepthBins; ++bin) {
        EXPECT_EQ(score.depths[bin].answers, expected.depths[bin].answers) << bin;
        EXPECT_EQ(score.depths[bin].right, expected.depths[bin].right) << bin;
      }
      EXPECT_NEAR(score.loss, expected.loss, 1e-5 * expected.loss);
      EXPECT_FALSE(score.interrupted);
    }
  }
}

TEST(Score, ThreadsChangeNoBitAndTheSeedChangesTheExamples) {
  const auto model = counting_model();
  const Task task(needles(1));
  const auto score = [&](int threads, std::uint64_t seed) {
    model->threads = threads;
    ScoreOptions options;
    options.examples = 40;
    options.seed = seed;
    return score_task(*model, task, options);
  };
  const TaskScore one = score(1, kHeldOutSeed), three = score(3, kHeldOutSeed), other = score(1, kHeldOutSeed + 1);
  EXPECT_EQ(one.loss, three.loss);
  EXPECT_EQ(one.all.right, three.all.right);
  EXPECT_NE(one.loss, other.loss);
}

TEST(Score, NotANumberIsWrong) {
  const auto model = counting_model(kFloatNaN);
  const TaskScore score = score_task(*model, Task(needles(1)));
  EXPECT_EQ(score.all.answers, 4 * 256);
  EXPECT_EQ(score.all.right, 0);
  EXPECT_TRUE(std::isnan(score.mean_loss()));
}

TEST(Score, CanBeInterruptedBetweenPasses) {
  const auto model = counting_model();
  ScoreOptions options;
  options.batch_tokens = 1;
  options.interrupted = [n = 0]() mutable { return ++n > 3; };
  const TaskScore score = score_task(*model, Task(needles(1)), options);
  EXPECT_TRUE(score.interrupted);
  EXPECT_EQ(score.examples, 3);
  EXPECT_EQ(score.all.answers, 12);
}

TEST(Score, AVocabularyThatIsTooSmallIsAnError) {
  const auto model = counting_model();
  TaskSettings s;
  s.name = "mqar";
  s.vocab = 512;
  try {
    score_task(*model, Task(s));
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::usage);
    EXPECT_NE(std::string(error.what()).find("256"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("512"), std::string::npos) << error.what();
  }
}

TEST(Score, BatchesHoldEveryExampleOnceAndGoOnFromAnyPosition) {
  const Task task(needles(3));
  Batch all;  // of the examples one after the other
  std::vector<Answer> answers;
  for (std::uint64_t i = 5; i < 45; ++i) task.add_example(7, i, all, &answers);
  for (const std::int64_t batch_tokens : {1, 300, 1000, 100000}) {
    TaskReader reader(task, batch_tokens, 7, 5);
    Batch read, batch;
    std::vector<Answer> read_answers, batch_answers;
    std::vector<std::int64_t> lengths;
    while (reader.position() < 45) {
      // As a reader that begins here.
      TaskReader resumed(task, batch_tokens, 7, reader.position());
      Batch same;
      resumed.next(same, nullptr, 45);
      reader.next(batch, &batch_answers, 45);
      EXPECT_EQ(same.tokens, batch.tokens);
      EXPECT_EQ(same.cu_seqlens, batch.cu_seqlens);
      EXPECT_EQ(resumed.position(), reader.position());
      EXPECT_TRUE(static_cast<std::int64_t>(batch.tokens.size()) <= batch_tokens || batch.cu_seqlens.size() == 2);
      const std::int64_t begin = static_cast<std::int64_t>(read.tokens.size());
      read.tokens.insert(read.tokens.end(), batch.tokens.begin(), batch.tokens.end());
      read.targets.insert(read.targets.end(), batch.targets.begin(), batch.targets.end());
      for (std::size_t n = 1; n < batch.cu_seqlens.size(); ++n) read.cu_seqlens.push_back(begin + batch.cu_seqlens[n]);
      read.scored += batch.scored;
      for (const Answer& a : batch_answers)
        read_answers.push_back({a.begin + begin, a.end + begin, a.evidence + begin, a.start + begin});
    }
    EXPECT_EQ(read.tokens, all.tokens);
    EXPECT_EQ(read.targets, all.targets);
    EXPECT_EQ(read.cu_seqlens, all.cu_seqlens);
    EXPECT_EQ(read.scored, all.scored);
    ASSERT_EQ(read_answers.size(), answers.size());
    for (std::size_t i = 0; i < answers.size(); ++i) {
      EXPECT_EQ(read_answers[i].begin, answers[i].begin);
      EXPECT_EQ(read_answers[i].end, answers[i].end);
      EXPECT_EQ(read_answers[i].evidence, answers[i].evidence);
      EXPECT_EQ(read_answers[i].start, answers[i].start);
    }
  }
}

// Values of the published formula, computed by hand from its two roots p = (r/n + z^2/2n -+ z sqrt(...)) / (1 + z^2/n).
TEST(Score, TheIntervalIsWilsons) {
  const auto near = [](Interval interval, double low, double high) {
    EXPECT_NEAR(interval.low, low, 5e-5);
    EXPECT_NEAR(interval.high, high, 5e-5);
  };
  near(wilson(0, 10), 0, 0.2775);
  near(wilson(5, 10), 0.2366, 0.7634);
  near(wilson(10, 10), 0.7225, 1);
  near(wilson(15, 148), 0.0624, 0.1605);  // Newcombe 1998, table I: 0.0624 to 0.1605
  EXPECT_EQ(wilson(0, 10).low, 0);
  EXPECT_EQ(wilson(10, 10).high, 1);
  near(wilson(0, 0), 0, 1);
}

}  // namespace
}  // namespace loglinear::app
