// A training that dies or is stopped at any moment goes on as if nothing had happened.

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <chrono>
#include <random>
#include <sstream>
#include <thread>

#include "program.hpp"
#include "sanitized.hpp"

namespace loglinear::tests {
namespace {

namespace fs = std::filesystem;
using std::chrono::duration;
using std::chrono::steady_clock;

constexpr int kSteps = 240;

std::string word_salad() {
  std::mt19937 random(5);
  const char* words[] = {"the ", "state ", "of ", "a ", "counter ", "is ", "its ", "digits.\n"};
  std::string text;
  for (int i = 0; i < 3000; ++i) text += words[random() % 8];
  return text;
}

std::vector<std::string> training(const std::string& data, const fs::path& out, int steps = kSteps) {
  return {"train",
          "--data",
          data,
          "--out",
          out.string(),
          "--resume",
          "--steps",
          std::to_string(steps),
          "--layers",
          "1",
          "--hidden-size",
          "16",
          "--heads",
          "2",
          "--key-width",
          "8",
          "--value-width",
          "8",
          "--mlp-width",
          "16",
          "--levels",
          "6",
          "--seq-len",
          "64",
          "--batch-tokens",
          "128",
          "--save-every",
          "2",
          "--log-every",
          "3",
          "--val-every",
          "7",
          "--val-bytes",
          "300",
          "--threads",
          "1"};
}

fs::path last_step(const fs::path& out, int steps = kSteps) {
  return out / ("step-" + std::string(7 - std::to_string(steps).size(), '0') + std::to_string(steps));
}

// Rows of the log without what the clock decides; every line must be whole.
std::vector<nlohmann::json> log_rows(const fs::path& out) {
  std::vector<nlohmann::json> rows;
  std::istringstream lines(file_text(out / "log.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    rows.push_back(nlohmann::json::parse(line));
    for (const char* key : {"tokens_per_second", "eta_seconds", "elapsed_seconds"}) rows.back().erase(key);
  }
  return rows;
}

TEST(Resume, FiftyKillsChangeNoBit) {
  const Scratch scratch;
  const std::string data = scratch.file("text.txt", word_salad());
  const auto begin = steady_clock::now();
  const Outcome whole = run(training(data, scratch / "whole"));
  ASSERT_EQ(whole.code, 0) << whole.err;
  const double seconds = duration<double>(steady_clock::now() - begin).count();

  std::mt19937 random(std::random_device{}());
  const fs::path out = scratch / "killed";
  int kills = 0, ends = 0;
  while (kills < (kSanitized ? 6 : 50)) {
    Process process(training(data, out), scratch.path());
    // Somewhere in the run: mostly soon, so that fifty deaths fit before the end, and during start-up too.
    const double delay = std::uniform_real_distribution<>(0, 0.12 * seconds)(random);
    std::this_thread::sleep_for(duration<double>(delay));
    if (process.ended()) {  // it reached the end before it died: begin once more, all deaths have to be counted
      const Outcome outcome = process.wait();
      ASSERT_EQ(outcome.code, 0) << outcome.err;
      ASSERT_EQ(file_text(last_step(out) / "model.safetensors"),
                file_text(last_step(scratch / "whole") / "model.safetensors"));
      fs::remove_all(out);
      ASSERT_LT(++ends, 40) << "the run is too short to be killed";
      continue;
    }
    process.signal(SIGKILL);
    const Outcome outcome = process.wait();
    ASSERT_TRUE(outcome.code == 128 + SIGKILL || outcome.code == 0) << outcome.code << outcome.err;
    ASSERT_EQ(outcome.err, "");
    ++kills;
  }
  const Outcome end = run(training(data, out));
  ASSERT_EQ(end.code, 0) << end.err;
  for (const char* part : {"model.safetensors", "optimizer.safetensors", "config.json"}) {
    const std::string a = file_text(last_step(out) / part), b = file_text(last_step(scratch / "whole") / part);
    EXPECT_FALSE(a.empty());
    EXPECT_TRUE(a == b) << part << " differs";
  }
  EXPECT_EQ(log_rows(out), log_rows(scratch / "whole"));
  // Nothing half-written stays behind.
  for (const auto& entry : fs::directory_iterator(out))
    EXPECT_EQ(entry.path().filename().string().find(".tmp"), std::string::npos) << entry.path();
}

TEST(Resume, AnInterruptSavesAndSaysHowToGoOn) {
  for (const int number : {SIGINT, SIGTERM}) {
    const Scratch scratch;
    const std::string data = scratch.file("text.txt", word_salad());
    const fs::path out = scratch / "out";
    constexpr int kMany = 100000;
    {
      auto arguments = training(data, out, kMany);
      arguments.insert(arguments.end(), {"--schedule", "constant"});
      Process process(arguments, scratch.path());
      while (!fs::exists(out / "step-0000004") && !process.ended())
        std::this_thread::sleep_for(duration<double>(0.002));
      process.signal(number);
      const Outcome outcome = process.wait();
      EXPECT_EQ(not_one_clear_line(outcome, 130), "");
      EXPECT_NE(outcome.err.find("--resume"), std::string::npos) << outcome.err;
    }
    // To any step after it: the same bits as without the interrupt.
    int step = 0;
    for (const auto& entry : fs::directory_iterator(out))
      if (const std::string name = entry.path().filename(); name.starts_with("step-"))
        step = std::max(step, std::stoi(name.substr(5)));
    ASSERT_GT(step, 0);
    const int target = step + 5;
    auto resumed = training(data, out, target), whole = training(data, scratch / "whole", target);
    for (auto* arguments : {&resumed, &whole}) arguments->insert(arguments->end(), {"--schedule", "constant"});
    EXPECT_EQ(run(resumed).code, 0);
    EXPECT_EQ(run(whole).code, 0);
    EXPECT_TRUE(file_text(last_step(out, target) / "model.safetensors") ==
                file_text(last_step(scratch / "whole", target) / "model.safetensors"));
  }
}

TEST(Resume, NeedsNoFlagsButTheFolder) {
  const Scratch scratch;
  const std::string data = scratch.file("text.txt", word_salad());
  auto short_run = training(data, scratch / "out", 20);
  ASSERT_EQ(run(short_run).code, 0);
  const Outcome longer = run({"train", "--out", (scratch / "out").string(), "--resume", "--steps", "24"});
  EXPECT_EQ(longer.code, 0) << longer.err;
  EXPECT_TRUE(fs::exists(last_step(scratch / "out", 24)));
  EXPECT_NE(longer.out.find("resumed"), std::string::npos);
}

TEST(Resume, ADamagedNewestCheckpointIsPassedOverWithAWarning) {
  const Scratch scratch;
  const std::string data = scratch.file("text.txt", word_salad());
  const fs::path out = scratch / "out";
  ASSERT_EQ(run(training(data, out, 20)).code, 0);
  const std::string before = file_text(last_step(out, 20) / "model.safetensors");
  fs::resize_file(last_step(out, 20) / "model.safetensors", 1000);
  const Outcome outcome = run(training(data, out, 20));
  EXPECT_EQ(not_one_clear_line(outcome, 0), "");
  EXPECT_NE(outcome.err.find("warning"), std::string::npos);
  EXPECT_TRUE(file_text(last_step(out, 20) / "model.safetensors") == before);
}

TEST(Resume, TheQuietRunPrintsNothing) {
  const Scratch scratch;
  auto arguments = training(scratch.file("text.txt", word_salad()), scratch / "out", 4);
  arguments.push_back("--quiet");
  const Outcome outcome = run(arguments);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.out + outcome.err, "");
}

}  // namespace
}  // namespace loglinear::tests
