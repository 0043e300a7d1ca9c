// `loglinear task`: what it writes is the task, and whatever is wrong ends in one clear line and no file.

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <csignal>
#include <sstream>

#include "app/task.hpp"
#include "io/safetensors.hpp"
#include "program.hpp"

namespace loglinear::tests {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;
using Json = nlohmann::json;

std::vector<Json> lines_of(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
  return lines;
}

std::string greetings() {
  std::string text;
  for (int i = 0; i < 900; ++i) text += "Gr\u00fc\u00dfe, line " + std::to_string(i * i) + " of the text\n";
  return text;
}

app::Batch example(const app::Task& task, std::uint64_t seed, std::uint64_t index, std::vector<app::Answer>& answers) {
  app::Batch batch;
  task.add_example(seed, index, batch, &answers);
  return batch;
}

TEST(TaskCommand, WritesEveryTaskAsJsonLines) {
  const Scratch scratch;
  const std::string data = scratch.file("text.txt", greetings());
  const std::vector<std::string> documents{greetings()};
  const app::Text text(documents);
  for (const app::TaskInfo& info : app::task_list()) {
    SCOPED_TRACE(info.name);
    Arguments arguments{"task", info.name, "--count", "3", "--seed", "9", "--index", "4", "--length", "180"};
    if (info.bytes) arguments.insert(arguments.end(), {"--data", data});
    const Outcome outcome = run(arguments);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    const std::vector<Json> lines = lines_of(outcome.out);
    ASSERT_EQ(lines.size(), 3u);
    const app::Task task({.name = info.name, .length = 180}, info.bytes ? &text : nullptr);
    for (std::uint64_t i = 0; i < 3; ++i) {
      const Json& line = lines[i];
      std::vector<app::Answer> answers;
      const app::Batch batch = example(task, 9, 4 + i, answers);
      EXPECT_EQ(line["task"], info.name);
      EXPECT_EQ(line["index"], 4 + i);
      EXPECT_EQ(line["seed"], 9);
      EXPECT_EQ(line["length"], 180);
      EXPECT_EQ(line["tokens"], Json(batch.tokens));
      EXPECT_EQ(line["targets"], Json(batch.targets));
      ASSERT_EQ(line["answers"].size(), answers.size());
      std::string asked;
      for (std::size_t a = 0; a < answers.size(); ++a) {
        const Json& answer = line["answers"][a];
        EXPECT_EQ(answer["begin"], answers[a].begin);
        EXPECT_EQ(answer["end"], answers[a].end);
        EXPECT_EQ(answer["evidence"], answers[a].evidence);
        EXPECT_EQ(answer["depth"], answers[a].depth());
        const std::vector<std::int32_t> tokens(batch.targets.begin() + answers[a].begin,
                                               batch.targets.begin() + answers[a].end);
        EXPECT_EQ(answer["tokens"], Json(tokens));
        asked += (a == 0 ? "" : " ") + std::string(tokens.begin(), tokens.end());
      }
      EXPECT_EQ(line.contains("text"), info.bytes);
      EXPECT_EQ(line.contains("answer"), info.bytes);
      if (info.bytes) {
        EXPECT_EQ(line["text"], std::string(batch.tokens.begin(), batch.tokens.end()));
        if (!info.needs_text) EXPECT_EQ(line["answer"], asked);  // bytes that are no whole characters are replaced
      }
    }
    // The same into a file, and again.
    const std::string file = (scratch / "out.jsonl").string();
    arguments.insert(arguments.end(), {"--out", file});
    const Outcome written = run(arguments);
    EXPECT_EQ(written.code, 0) << written.err;
    EXPECT_EQ(written.out, "");
    EXPECT_EQ(file_text(file), outcome.out);
  }
}

TEST(TaskCommand, PackedFileIsReadBack) {
  const Scratch scratch;
  const std::string file = (scratch / "packed.safetensors").string();
  const Outcome outcome =
      run({"task",    "mqar", "--count", "20", "--seed",      "3", "--length", "64",     "--min-length", "40",
           "--vocab", "32",   "--items", "8",  "--min-items", "2", "--format", "packed", "--out",        file});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  const app::Task task({.name = "mqar", .length = 64, .min_length = 40, .vocab = 32, .items = 8, .min_items = 2});
  app::Batch batch;
  std::vector<app::Answer> answers;
  for (std::uint64_t i = 0; i < 20; ++i) task.add_example(3, i, batch, &answers);
  const auto in = io::SafetensorsFile::open(file);
  const auto size = [](const auto& values) { return static_cast<std::int64_t>(values.size()); };
  const auto read = [&](const char* name, auto& values, io::Element element, std::vector<std::int64_t> shape) {
    EXPECT_EQ(in.info(name).element, element) << name;
    EXPECT_EQ(in.info(name).shape, shape) << name;
    values.resize(static_cast<std::size_t>(in.info(name).elements));
    in.bytes_into(name, std::as_writable_bytes(std::span(values)));
  };
  std::vector<std::int32_t> tokens, targets;
  std::vector<std::int64_t> cu_seqlens, triples, expected;
  read("tokens", tokens, io::Element::I32, {size(batch.tokens)});
  read("targets", targets, io::Element::I32, {size(batch.tokens)});
  read("cu_seqlens", cu_seqlens, io::Element::I64, {21});
  read("answers", triples, io::Element::I64, {size(answers), 3});
  EXPECT_EQ(tokens, batch.tokens);
  EXPECT_EQ(targets, batch.targets);
  EXPECT_EQ(cu_seqlens, batch.cu_seqlens);
  for (const app::Answer& answer : answers)
    expected.insert(expected.end(), {answer.begin, answer.end, answer.evidence});
  EXPECT_EQ(triples, expected);
  EXPECT_EQ(in.metadata().at("task"), "mqar");
  EXPECT_EQ(in.metadata().at("seed"), "3");
  EXPECT_EQ(in.metadata().at("count"), "20");
  EXPECT_EQ(in.metadata().at("min-items"), "2");
  EXPECT_EQ(in.metadata().at("alpha"), "0.01");
}

TEST(TaskCommand, HeldOutExamplesAreThoseOfEvaluations) {
  const Outcome outcome = run({"task", "induction", "--held-out"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  std::vector<app::Answer> answers;
  const app::Batch batch = example(app::Task({.name = "induction"}), app::kHeldOutSeed, 0, answers);
  EXPECT_EQ(lines_of(outcome.out).at(0)["tokens"], Json(batch.tokens));
  const Json other = lines_of(run({"task", "induction", "--held-out", "--seed", "1"}).out).at(0);
  EXPECT_EQ(other["seed"], app::kHeldOutSeed + 1);
  EXPECT_NE(other["tokens"], Json(batch.tokens));
}

TEST(TaskCommand, ListsAndShows) {
  const Outcome list = run({"task", "--list"});
  EXPECT_EQ(list.code, 0);
  for (const app::TaskInfo& info : app::task_list())
    for (const char* part : {info.name, info.help}) EXPECT_NE(list.out.find(part), std::string::npos) << part;
  const Outcome shown = run({"task", "passkey", "--show", "--length", "200", "--depth", "0", "--seed", "5"});
  EXPECT_EQ(shown.code, 0) << shown.err;
  const Json line = lines_of(run({"task", "passkey", "--length", "200", "--depth", "0", "--seed", "5"}).out).at(0);
  const std::string key = line["answer"];
  EXPECT_NE(shown.out.find("The pass key is [" + key + "]. "), std::string::npos) << shown.out;
  EXPECT_NE(shown.out.find("\nQ: The pass key? A: {" + key + "}\n"), std::string::npos) << shown.out;
  const Outcome several = run({"task", "needle_multivalue", "--show", "--values", "2", "--digits", "2"});
  const std::string numbers =
      lines_of(run({"task", "needle_multivalue", "--values", "2", "--digits", "2"}).out).at(0)["answer"];
  EXPECT_NE(several.out.find("? A: {" + numbers.substr(0, 2) + "} {" + numbers.substr(3) + "}\n"), std::string::npos)
      << several.out;
  const Outcome tokens = run({"task", "copy", "--show", "--length", "6", "--items", "2"});
  const Json copy = lines_of(run({"task", "copy", "--length", "6", "--items", "2"}).out).at(0);
  const std::string a = std::to_string(int{copy["tokens"][0]}), b = std::to_string(int{copy["tokens"][1]});
  EXPECT_NE(tokens.out.find("\n[" + a + "] [" + b + "] 0 0 1 {" + a + "} " + a + " {" + b + "}\n"), std::string::npos)
      << tokens.out;
  const Outcome help = run({"task", "--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_NE(help.out.find("Examples:"), std::string::npos);
}

TEST(TaskCommand, WrongInputIsOneLineAndNoFile) {
  const Scratch scratch;
  const std::string out = (scratch / "out").string(), data = scratch.file("text.txt", "a short text\n");
  const std::pair<Arguments, const char*> wrong[] = {
      {{}, "NAME"},
      {{"passkeys"}, "passkeys"},
      {{"mqar", "--items", "-2"}, "items: got -2"},
      {{"mqar", "--items", "0.5"}, "--items"},
      {{"mqar", "--length", "8"}, "length: got 8"},
      {{"mqar", "--frobnicate", "8"}, "--frobnicate"},
      {{"mqar", "--count", "-1"}, "--count"},
      {{"mqar", "--count", "0"}, "--count"},
      {{"mqar", "--count", "99999999999"}, "--count"},
      {{"mqar", "--seed", "-1"}, "--seed"},
      {{"mqar", "--depth", "0.5"}, "depth"},
      {{"passkey", "--depth", "nan"}, "depth"},
      {{"mqar", "--data", data}, "--data"},
      {{"mqar", "--format", "csv"}, "--format"},
      {{"mqar", "--show"}, "--show"},
      {{"text_recall"}, "--data"},
      {{"mqar", "--format", "packed", "--count", "100000000"}, "--count"}};
  for (const auto& [more, word] : wrong) {
    Arguments arguments{"task"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    arguments.insert(arguments.end(), {"--out", out});
    const Outcome outcome = run(arguments);
    EXPECT_EQ(not_one_clear_line(outcome, 2), "") << word;
    EXPECT_NE(outcome.err.find(word), std::string::npos) << word << ": " << outcome.err;
    EXPECT_EQ(outcome.out, "");
  }
  EXPECT_EQ(not_one_clear_line(run({"task", "mqar", "--format", "packed"}), 2), "");
  const std::pair<Arguments, const char*> failing[] = {
      {{"text_recall", "--data", data, "--out", out}, "13 bytes"},
      {{"passkey", "--data", data + ".none", "--out", out}, "text.txt.none"},
      {{"mqar", "--out", out + "/below"}, "below"}};
  for (const auto& [more, word] : failing) {
    Arguments arguments{"task"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run(arguments);
    EXPECT_EQ(not_one_clear_line(outcome, 1), "") << word;
    EXPECT_NE(outcome.err.find(word), std::string::npos) << word << ": " << outcome.err;
  }
  // A disk that is full.
  for (const char* format : {"jsonl", "packed"})
    EXPECT_EQ(not_one_clear_line(
                  run({"task", "mqar", "--count", "100", "--format", format, "--out", out}, {.file_bytes = 10'000}), 1),
              "")
        << format;
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch.path()), fs::directory_iterator()), 1) << "only text.txt";
}

// Interrupted, it leaves what was there.
TEST(TaskCommand, InterruptedLeavesTheOldFile) {
  const Scratch scratch;
  for (const char* format : {"jsonl", "packed"}) {
    const std::string out = scratch.file("out", "what was there\n");
    const Scratch output;
    // Far more than what can be done until the signal.
    Process process({"task", "induction", "--count", "1000000", "--length", "1000", "--format", format, "--out", out},
                    output.path());
    // It has begun when its temporary file is there.
    while (!process.ended() && std::distance(fs::directory_iterator(scratch.path()), fs::directory_iterator()) < 2)
      usleep(1000);
    process.signal(SIGINT);
    const Outcome outcome = process.wait();
    EXPECT_EQ(not_one_clear_line(outcome, 130), "") << format;
    EXPECT_EQ(file_text(out), "what was there\n");
    EXPECT_EQ(std::distance(fs::directory_iterator(scratch.path()), fs::directory_iterator()), 1) << format;
  }
}

// A stream without end goes on until nobody reads it any more, and that is no error.
TEST(TaskCommand, StreamsUntilTheReaderGoesAway) {
  const Scratch scratch;
  const std::string command = std::string("set -o pipefail; ") + LOGLINEAR_PROGRAM +
                              " task mqar --count 0 --length 64 --items 4 2> " + (scratch / "err").string() +
                              " | head -n 300 > " + (scratch / "out").string();
  ASSERT_EQ(std::system(("bash -c '" + command + "'").c_str()), 0);
  EXPECT_EQ(file_text(scratch / "err"), "");
  const std::vector<Json> lines = lines_of(file_text(scratch / "out"));
  ASSERT_EQ(lines.size(), 300u);
  for (int i = 0; i < 300; ++i) EXPECT_EQ(lines[i]["index"], i);
}

}  // namespace
}  // namespace loglinear::tests
