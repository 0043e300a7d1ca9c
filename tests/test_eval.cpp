// loglinear train --task and loglinear eval through the program, as a user runs them.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "browser.hpp"
#include "program.hpp"

namespace loglinear::tests {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;
using nlohmann::json;

class Eval : public testing::Test {
 protected:
  // A small model, trained for 20 steps unless told otherwise.
  Outcome train(const std::string& out, const Arguments& more) {
    Arguments all = {"train",
                     "--out",
                     (scratch_ / out).string(),
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
                     "7",
                     "--seq-len",
                     "64",
                     "--batch-tokens",
                     "256",
                     "--threads",
                     "1",
                     "--steps",
                     "20"};
    for (const std::string& argument : more) {
      // What is given replaces what stands above.
      const auto at = argument.starts_with("--") ? std::find(all.begin(), all.end(), argument) : all.end();
      if (at != all.end()) all.erase(at, at + 2);
    }
    all.insert(all.end(), more.begin(), more.end());
    return run(all);
  }
  std::string recall() {
    const Outcome outcome = train("recall", kRecall);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return (scratch_ / "recall").string();
  }
  void refused(const Arguments& arguments, int code, const std::string& names) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(not_one_clear_line(outcome, code), "") << names;
    EXPECT_NE(outcome.err.find(names), std::string::npos) << outcome.err;
    EXPECT_EQ(outcome.out, "") << names;
  }
  const Arguments kRecall = {"--task",      "mqar", "--vocab",        "32", "--items", "4",
                             "--min-items", "2",    "--val-examples", "8"};
  Scratch scratch_;
};

TEST_F(Eval, TrainingOnATaskPrintsAccuracyAndResumesBitForBit) {
  const Outcome whole = train("whole", kRecall);
  EXPECT_EQ(whole.code, 0) << whole.err;
  EXPECT_EQ(whole.err, "");
  for (const char* part : {"task      mqar", "validation accuracy ", "best so far", "loss ", "done      20 steps"})
    EXPECT_NE(whole.out.find(part), std::string::npos) << part << "\n" << whole.out;
  EXPECT_EQ(whole.out.find("bits/byte"), std::string::npos) << whole.out;

  Arguments shorter = kRecall;
  shorter.insert(shorter.end(), {"--steps", "7"});
  EXPECT_EQ(train("parts", shorter).code, 0);
  const std::string parts = (scratch_ / "parts").string();
  const Outcome resumed = run({"train", "--out", parts, "--resume", "--steps", "20"});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
    const std::string a = file_text(scratch_ / "parts" / "step-0000020" / name);
    EXPECT_FALSE(a.empty());
    EXPECT_TRUE(a == file_text(scratch_ / "whole" / "step-0000020" / name)) << name;
  }
}

TEST_F(Eval, ATableWithTheSettingsOfTheTraining) {
  const std::string model = recall();
  const Outcome outcome = run({"eval", model, "--task", "mqar", "--examples", "12"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  for (const char* part : {"task mqar, 12 examples", "length", "items", "95 % interval", "guessing",
                           "\n      64       4 ", "\n     128       4 ", "\n     256       4 ", "\n     512       4 "})
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << "\n" << outcome.out;
  EXPECT_EQ(run({"eval", model, "--task", "mqar", "--examples", "12", "--threads", "2"}).out, outcome.out);
  EXPECT_NE(run({"eval", model, "--task", "mqar", "--examples", "12", "--seed", "3"}).out, outcome.out);
}

TEST_F(Eval, JsonHasEveryCell) {
  const Outcome outcome = run(
      {"eval", recall(), "--task", "mqar", "--length", "64,32,64", "--items", "2,8,8", "--examples", "10", "--json"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const json object = json::parse(outcome.out);
  EXPECT_EQ(object["task"], "mqar");
  EXPECT_EQ(object["examples"], 10);
  ASSERT_EQ(object["totals"].size(), 4u);
  ASSERT_EQ(object["cells"].size(), 40u);
  const std::pair<int, int> order[] = {{64, 2}, {32, 2}, {64, 8}, {32, 8}};  // length, items
  for (std::size_t i = 0; i < 4; ++i) {
    const json& total = object["totals"][i];
    EXPECT_EQ(total["length"], order[i].first);
    EXPECT_EQ(total["items"], order[i].second);
    EXPECT_EQ(total["answers"], 10 * order[i].second);
    EXPECT_DOUBLE_EQ(total["accuracy"], total["right"].get<double>() / total["answers"].get<double>());
    EXPECT_LE(total["accuracy_low"], total["accuracy"]);
    EXPECT_GE(total["accuracy_high"], total["accuracy"]);
    EXPECT_DOUBLE_EQ(total["chance"], 1.0 / 16);
    EXPECT_GT(total["loss"], 0);
    std::int64_t answers = 0, right = 0;
    for (std::size_t bin = 0; bin < 10; ++bin) {
      const json& cell = object["cells"][10 * i + bin];
      EXPECT_EQ(cell["length"], total["length"]);
      EXPECT_EQ(cell["items"], total["items"]);
      EXPECT_DOUBLE_EQ(cell["depth_first"], 0.1 * static_cast<double>(bin));
      EXPECT_EQ(cell["accuracy"].is_null(), cell["answers"] == 0);
      answers += cell["answers"].get<std::int64_t>();
      right += cell["right"].get<std::int64_t>();
    }
    EXPECT_EQ(total["answers"], answers);
    EXPECT_EQ(total["right"], right);
  }
}

// A byte model is scored on tasks of bytes, whatever it was trained on, with a haystack or without.
TEST_F(Eval, OtherTasksOfTheSameVocabulary) {
  const std::string text = scratch_.file("text.txt", std::string(3000, 'a') + " b. " + std::string(3000, 'c'));
  ASSERT_EQ(train("text", {"--data", text, "--val-bytes", "300"}).code, 0);
  const std::string model = (scratch_ / "text").string();
  for (const Arguments& more : std::vector<Arguments>{{"--task", "passkey", "--digits", "3"},
                                                      {"--task", "passkey", "--data", text, "--depth", "0.5"},
                                                      {"--task", "text_recall", "--data", text}}) {
    Arguments arguments = {"eval", model, "--length", "200", "--examples", "5"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find("\n     200 "), std::string::npos) << outcome.out;
  }
  refused({"eval", model, "--task", "text_recall"}, 2, "text");
}

TEST_F(Eval, ThePageOfATaskInHeadlessChromium) {
  const std::string page = (scratch_ / "page.html").string();
  const Outcome outcome = run({"eval", recall(), "--task", "mqar", "--length", "32,64,128", "--items", "2,4",
                               "--examples", "20", "--html", page});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("task mqar"), std::string::npos);
  look_at("browser_evaluation.py", page);
}

TEST_F(Eval, ThePageOfATextInHeadlessChromium) {
  std::string words;
  for (int i = 0; i < 2000; ++i) words += "word " + std::to_string(i * i % 97) + "\n";
  const std::string text = scratch_.file("text.txt", words), page = (scratch_ / "page.html").string();
  ASSERT_EQ(train("text", {"--data", text, "--val-bytes", "300"}).code, 0);
  const Outcome outcome = run({"eval", (scratch_ / "text").string(), "--data", text, "--bins", "2", "--html", page});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("3072 - 4095"), std::string::npos) << outcome.out;
  look_at("browser_evaluation.py", page);
}

TEST_F(Eval, WrongUsage) {
  const std::string model = recall();
  const auto eval = [&](const Arguments& more) {
    Arguments arguments = {"eval", model};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  refused(eval({}), 2, "--data");
  refused(eval({"--task", "mqr"}), 2, "selective_copy");
  refused(eval({"--task", "mqar", "--vocab", "64"}), 2, "vocabulary of 32");
  refused(eval({"--task", "passkey"}), 2, "vocabulary of 32");
  refused(eval({"--task", "mqar", "--length", "4"}), 2, "length");
  refused(eval({"--task", "mqar", "--length", "0"}), 2, "--length");
  refused(eval({"--task", "mqar", "--items", "0"}), 2, "--items");
  refused(eval({"--task", "mqar", "--items", "many"}), 2, "many");
  refused(eval({"--task", "mqar", "--alpha", "1000"}), 2, "--alpha");
  refused(eval({"--task", "mqar", "--alpha", "nan"}), 2, "--alpha");
  refused(eval({"--task", "mqar", "--digits", "3"}), 2, "digits");
  refused(eval({"--task", "mqar", "--examples", "0"}), 2, "--examples");
  refused(eval({"--task", "mqar", "--seed", "-1"}), 2, "--seed");
  refused(eval({"--task", "mqar", "--data", "text"}), 2, "--data");
  refused(eval({"--task", "mqar", "--seq-len", "64"}), 2, "--seq-len");
  refused(eval({"--task", "mqar", "--bins", "2"}), 2, "--bins");
  refused(eval({"--data", "text", "--items", "2"}), 2, "--items");
  refused(eval({"--data", "text", "--bins", "0"}), 2, "--bins");
  refused(eval({"--data", "text", "--stride", "4"}), 2, "--stride: needs a --seq-len");
  refused(eval({"--data", "text", "--seq-len", "32", "--stride", "12"}), 2, "need what divides --seq-len, 32");
  refused(eval({"--task", "mqar", "--stride", "4"}), 2, "--stride: of text");
  refused({"eval", (scratch_ / "nowhere").string(), "--task", "mqar"}, 1, "nowhere");

  const std::string out = (scratch_ / "other").string();
  refused({"train", "--out", out, "--task", "mqr"}, 2, "mqar");
  refused({"train", "--out", out, "--task", "mqar", "--epochs", "2"}, 2, "--epochs");
  refused({"train", "--out", out, "--task", "mqar", "--items", "9999"}, 2, "items");
  refused({"train", "--out", out, "--task", "mqar", "--val-bytes", "9"}, 2, "--val-bytes");
  refused({"train", "--out", out, "--task", "text_recall"}, 2, "text");
  refused({"train", "--out", out, "--items", "2", "--data", "text"}, 2, "--items");
  EXPECT_FALSE(fs::exists(out));
}

TEST_F(Eval, WhereNothingCanBeWritten) {
  const std::string model = recall();
  for (const std::string& path : {(scratch_ / "missing/file").string(), scratch_.path().string()})
    refused({"eval", model, "--task", "mqar", "--html", path}, 1, path);
}

}  // namespace
}  // namespace loglinear::tests
