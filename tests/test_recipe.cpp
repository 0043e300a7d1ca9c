// loglinear recipe through the program, as a user runs it.

#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "program.hpp"
#include "sanitized.hpp"

namespace loglinear::tests {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Arguments = std::vector<std::string>;

const std::string kSmallModel = R"(hidden-size = 16
layers = 1
heads = 2
key-width = 8
value-width = 8
mlp-width = 16
)";

const std::string kTask = R"(
title = "Small recall"
seeds = 2
[settings]
task = "mqar"
vocab = 32
seq-len = 32
items = 4
)" + kSmallModel + R"(batch-tokens = 64
steps = 6
val-examples = 0
[sweep]
mixer = ["mamba2", "log_linear_gated_deltanet"]
[[score]]
kind = "task"
label = "recall"
length = [32, 64]
examples = 6
[[score]]
kind = "cost"
length = 64
seconds = 0
)";

const std::string kTextSettings = R"([settings]
seq-len = 64
batch-tokens = 128
)" + kSmallModel + R"(steps = 5
)";

Outcome recipe(const fs::path& file, const fs::path& out, Arguments more = {}) {
  more.insert(more.begin(), {"recipe", file.string(), "--out", out.string()});
  return run(more);
}

// The values that do not depend on the clock, of the rows of --json.
json values(const fs::path& file) {
  json list = json::array();
  const json object = json::parse(file_text(file));
  for (const json& row : object["rows"])
    for (const json& score : row["scores"])
      if (score["unit"] != "tokens/s") list.push_back({row["case"], row["sweep"], score});
  return list;
}

std::vector<json> lines(const fs::path& file) {
  std::vector<json> rows;
  std::istringstream text(file_text(file));
  for (std::string line; std::getline(text, line);) rows.push_back(json::parse(line));
  return rows;
}

TEST(Recipe, MakesATableAndTheSameNumbersAgainWithAnyNumberOfJobs) {
  const Scratch scratch;
  const std::string file = scratch.file("small.toml", kTask);
  const Outcome one = recipe(file, scratch / "one", {"--jobs", "1", "--json", (scratch / "one.json").string()});
  ASSERT_EQ(one.code, 0) << one.err;
  for (const char* part :
       {"## Small recall\n", "| mixer ", "recall, length 32, %", "recall, length 64, %", "state",
        "| log_linear_gated_deltanet |", "4 of 4 trainings done", "one training at once", "command  loglinear recipe "})
    EXPECT_NE(one.out.find(part), std::string::npos) << part << "\n" << one.out;
  EXPECT_NE(one.err.find("4 of 4  "), std::string::npos) << one.err;
  const Outcome two = recipe(file, scratch / "two", {"--jobs", "2", "--json", (scratch / "two.json").string()});
  ASSERT_EQ(two.code, 0) << two.err;
  const json wanted = values(scratch / "one.json");
  ASSERT_EQ(wanted.size(), 2u * 4);
  for (const json& each : wanted) {
    ASSERT_EQ(each[2]["values"].size(), 2u);
    EXPECT_TRUE(each[2]["values"][1].is_number()) << each;
  }
  EXPECT_EQ(values(scratch / "two.json"), wanted);
  EXPECT_EQ(lines(scratch / "one/results.jsonl").size(), 4u * 3);
  for (const char* name : {"mamba2-1", "mamba2-2", "log_linear_gated_deltanet-1", "log_linear_gated_deltanet-2"})
    EXPECT_TRUE(file_text(scratch / "one" / name / "step-0000006/model.safetensors") ==
                file_text(scratch / "two" / name / "step-0000006/model.safetensors"))
        << name;

  // Nothing is done twice.
  const auto written = fs::last_write_time(scratch / "one/mamba2-1/result.json");
  const Outcome again = recipe(file, scratch / "one", {"--json"});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(again.err, "4 of 4 trainings were done before\n");
  const std::string copy = scratch.file("again.json", again.out);
  EXPECT_EQ(values(copy), wanted);
  EXPECT_EQ(fs::last_write_time(scratch / "one/mamba2-1/result.json"), written);
  EXPECT_EQ(lines(scratch / "one/results.jsonl").size(), 4u * 3);

  // Another score is measured without training again; other settings are refused.
  const std::string more =
      scratch.file("more.toml", kTask + "[[score]]\nkind = \"task\"\nlabel = \"few\"\nitems = 2\n");
  const auto model = fs::last_write_time(scratch / "one/mamba2-1/step-0000006/model.safetensors");
  const Outcome added = recipe(more, scratch / "one");
  EXPECT_EQ(added.code, 0) << added.err;
  EXPECT_NE(added.out.find("few, %"), std::string::npos) << added.out;
  EXPECT_EQ(fs::last_write_time(scratch / "one/mamba2-1/step-0000006/model.safetensors"), model);
  EXPECT_EQ(lines(scratch / "one/results.jsonl").size(), 4u * 4);
  for (const json& line : lines(scratch / "one/results.jsonl")) EXPECT_TRUE(line["definition"].is_object()) << line;
  EXPECT_NE(file_text(scratch / "one/table.md").find("\ncommand  loglinear recipe " + more), std::string::npos);

  // A quick look measures its own and takes nothing away.
  const Outcome look = recipe(file, scratch / "one", {"--examples", "2", "--only", "mamba2-1"});
  EXPECT_EQ(look.code, 0) << look.err;
  const std::size_t measured = lines(scratch / "one/results.jsonl").size();
  EXPECT_GT(measured, 4u * 4);
  EXPECT_EQ(recipe(more, scratch / "one").code, 0);
  EXPECT_EQ(lines(scratch / "one/results.jsonl").size(), measured);
  const Outcome other = recipe(file, scratch / "one", {"--set", "lr=0.5"});
  EXPECT_EQ(not_one_clear_line(other, 2), "");
  EXPECT_NE(other.err.find("lr 0.002, not 0.5"), std::string::npos) << other.err;
}

// A folder with another training is never taken for the one that is asked for.
TEST(Recipe, AFolderOfAnotherTrainingIsRefused) {
  const Scratch scratch;
  const std::string data = scratch.file("text.txt", std::string(20000, 'a')),
                    file = scratch.file("text.toml", kTextSettings + "mixer = \"log_linear_mamba2\"\n" +
                                                         "[[score]]\nkind = \"text\"\nbytes = 100\n");
  const auto refused = [&](const Arguments& more, const char* reason) {
    Arguments arguments = {"--data", data};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = recipe(file, scratch / "out", arguments);
    EXPECT_EQ(not_one_clear_line(outcome, 2), "");
    EXPECT_NE(outcome.err.find(reason), std::string::npos) << outcome.err;
  };
  // As `train` leaves a folder, without a result.json.
  ASSERT_EQ(recipe(file, scratch / "out", {"--data", data, "--set", "lr=0.5"}).code, 0);
  fs::remove(scratch / "out/training-1/result.json");
  refused({}, "lr 0.5, not 0.002");
  fs::remove_all(scratch / "out");
  // With a setting that is not there by default, and the other way around.
  const Outcome made = recipe(file, scratch / "out", {"--data", data, "--set", "scales-lr=0.9"});
  ASSERT_EQ(made.code, 0) << made.err;
  refused({}, "scales-lr 0.9, not by default");
  fs::remove_all(scratch / "out");
  ASSERT_EQ(recipe(file, scratch / "out", {"--data", data}).code, 0);
  refused({"--set", "scales-lr=0.9"}, "scales-lr by default, not 0.9");
  // With other text under the same name.
  scratch.file("text.txt", std::string(20000, 'b'));
  refused({}, "another text");
}

TEST(Recipe, GoesOnAfterAnInterruption) {
  const Scratch scratch;
  const std::string file = scratch.file("small.toml", kTask);
  const Arguments longer = {"--set", kSanitized ? "steps=100" : "steps=400", "--set", "save-every=0", "--jobs", "2"};
  Arguments first = {"recipe", file, "--out", (scratch / "cut").string()};
  first.insert(first.end(), longer.begin(), longer.end());
  Process process(first, scratch.path());
  while (!fs::exists(scratch / "cut/mamba2-1/log.jsonl") && !process.ended())
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  process.signal(SIGINT);
  const Outcome cut = process.wait();
  ASSERT_EQ(cut.code, 130) << cut.err;
  EXPECT_EQ(cut.out, "");
  EXPECT_NE(cut.err.find("[recipe] interrupted"), std::string::npos) << cut.err;
  Arguments whole = longer, rest = longer;
  whole.insert(whole.end(), {"--json", (scratch / "whole.json").string()});
  rest.insert(rest.end(), {"--json", (scratch / "rest.json").string()});
  ASSERT_EQ(recipe(file, scratch / "cut", rest).code, 0);
  ASSERT_EQ(recipe(file, scratch / "whole", whole).code, 0);
  EXPECT_EQ(values(scratch / "rest.json"), values(scratch / "whole.json"));
  const char* last = kSanitized ? "step-0000100/model.safetensors" : "step-0000400/model.safetensors";
  EXPECT_TRUE(file_text(scratch / "cut/mamba2-1" / last) == file_text(scratch / "whole/mamba2-1" / last));
}

// A stage begins with the weights of the one before, as `train --from` does, also when it was interrupted.
TEST(Recipe, StagesFollowEachOther) {
  const Scratch scratch;
  std::string words;
  for (int i = 0; i < 6000; ++i) words += "word " + std::to_string(i * 7919 % 1000) + (i % 9 ? " " : ".\n");
  const std::string data = scratch.file("text.txt", words), steps = kSanitized ? "60" : "300";
  const std::string file = scratch.file("stages.toml", "[settings]\nmixer = \"log_linear_mamba2\"\n" + kSmallModel + R"(
batch-tokens = 128
val-every = 0
[[stage]]
task = "text_recall"
seq-len = 64
min-length = 56
val-examples = 0
steps = 4
[[stage]]
seq-len = 128
repeats = 0.2
val-bytes = 100
save-every = 0
steps = )" + steps + R"(
[[score]]
kind = "text"
bytes = 1000
)");
  Arguments arguments = {"recipe", file, "--data", data, "--out", (scratch / "cut").string()};
  Process process(arguments, scratch.path());
  while (!fs::exists(scratch / "cut/training-1/log.jsonl") && !process.ended())
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  process.signal(SIGINT);
  ASSERT_EQ(process.wait().code, 130);
  fs::rename(scratch / "cut", scratch / "moved");  // what a stage began with is found there too
  const Outcome cut = recipe(file, scratch / "moved", {"--data", data, "--json", (scratch / "cut.json").string()});
  ASSERT_EQ(cut.code, 0) << cut.err;
  const json training = json::parse(file_text(scratch / "cut.json"))["rows"][0]["trainings"][0];
  EXPECT_EQ(training["steps"], 4 + std::stoi(steps));

  const fs::path first = scratch / "first", second = scratch / "second";
  Arguments model = {"--mixer",       "log_linear_mamba2",
                     "--hidden-size", "16",
                     "--layers",      "1",
                     "--heads",       "2",
                     "--key-width",   "8",
                     "--value-width", "8",
                     "--mlp-width",   "16",
                     "--task",        "text_recall",
                     "--seq-len",     "64",
                     "--min-length",  "56",
                     "--steps",       "4",
                     "--out",         first.string()};
  Arguments taught = {"--from", first.string(), "--seq-len", "128",   "--repeats",
                      "0.2",    "--steps",      steps,       "--out", second.string()};
  for (Arguments* each : {&model, &taught}) {
    each->insert(each->begin(), "train");
    each->insert(each->end(), {"--data", data, "--batch-tokens", "128", "--quiet"});
    const Outcome outcome = run(*each);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
  }
  const fs::path early = "step-0000004", late = kSanitized ? "step-0000060" : "step-0000300";
  const auto same = [](const fs::path& a, const fs::path& b) {
    return file_text(a / "model.safetensors") == file_text(b / "model.safetensors");
  };
  EXPECT_TRUE(same(scratch / "moved/training-1/before-1" / early, first / early));
  EXPECT_TRUE(same(scratch / "moved/training-1" / late, second / late));
  const auto tokens = [](const fs::path& step) {
    return json::parse(file_text(step / "trainer.json"))["tokens"].get<std::int64_t>();
  };
  EXPECT_EQ(training["tokens"], tokens(first / early) + tokens(second / late));

  const Outcome other = recipe(file, scratch / "moved", {"--data", data, "--set", "stage1.lr=0.5"});
  EXPECT_EQ(not_one_clear_line(other, 2), "");
  EXPECT_NE(other.err.find("was trained with stage1.lr 0.002, not 0.5"), std::string::npos) << other.err;
}

TEST(Recipe, ATrainingThatDivergesIsShown) {
  const Scratch scratch;
  const std::string file = scratch.file("small.toml", kTask);
  const Outcome outcome = recipe(
      file, scratch / "out",
      {"--set", "lr=1e6", "--set", "clip=0", "--set", "steps=60", "--set", "warmup=0", "--set", "schedule=constant",
       "--set", "initializer-range=10", "--only", "mamba2-1", "--json", (scratch / "rows.json").string()});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find(" nan "), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("1 diverged"), std::string::npos) << outcome.out;
  const json object = json::parse(file_text(scratch / "rows.json"));
  const json training = object["rows"][0]["trainings"][0];
  EXPECT_EQ(training["diverged"], true);
  EXPECT_GE(training["steps"], 10);
  EXPECT_EQ(training["tokens"], 64 * training["steps"].get<std::int64_t>());
  EXPECT_TRUE(object["rows"][0]["scores"][0]["mean"].is_null());
  const Outcome again = recipe(file, scratch / "out",
                               {"--set", "lr=1e6", "--set", "clip=0", "--set", "steps=60", "--set", "warmup=0", "--set",
                                "schedule=constant", "--set", "initializer-range=10", "--only", "mamba2-1"});
  EXPECT_NE(again.err.find("1 of 1 trainings were done before"), std::string::npos) << again.err;
  EXPECT_NE(again.out.find(" nan "), std::string::npos) << again.out;
}

TEST(Recipe, TextByPosition) {
  const Scratch scratch;
  std::string text;
  for (int i = 0; i < 2000; ++i) text += (i * i) % 7 < 3 ? "a state " : "the counter\n";
  const std::string data = scratch.file("text.txt", text);
  const std::string file = scratch.file("text.toml", kTextSettings + R"([[case]]
name = "ours"
mixer = "log_linear_mamba2"
[[case]]
name = "unit"
mixer = "mamba2"
[[score]]
kind = "text"
length = [64, 256]
positions = [0, 16]
bytes = 500
[[score]]
kind = "text"
label = "whole"
model = {as_log_linear = true}
)");
  const Outcome refused = recipe(file, scratch / "out");
  EXPECT_EQ(not_one_clear_line(refused, 2), "");
  EXPECT_NE(refused.err.find("--data"), std::string::npos) << refused.err;
  const Outcome twice = recipe(file, scratch / "out", {"--data", data});
  EXPECT_EQ(not_one_clear_line(twice, 2), "");
  EXPECT_NE(twice.err.find("ours-1 is a log_linear_mamba2 model"), std::string::npos) << twice.err;
  EXPECT_FALSE(fs::exists(scratch / "out"));  // known before any work
  const Outcome outcome = recipe(file, scratch / "out", {"--data", data, "--only", "unit"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* part : {"## text\n", "bits/byte, length 64", "bits/byte, length 256, 16-",
                           "bits/byte, length 64, 0-15", "whole", "| unit |", "seed 1;"})
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << "\n" << outcome.out;
}

TEST(Recipe, TextThatCannotBeScoredIsKnownBeforeAnythingIsTrained) {
  const Scratch scratch;
  const std::string data = scratch.file("text.txt", std::string(20000, 'a'));
  const std::string recipe_text = kTextSettings + R"([[case]]
name = "unit"
mixer = "mamba2"
[[score]]
kind = "text"
)";
  const auto refused = [&](const std::string& score, int code, const std::string& reason) {
    const Outcome outcome =
        recipe(scratch.file("text.toml", recipe_text + score), scratch / "out", {"--data", data, "--seeds", "1"});
    EXPECT_EQ(not_one_clear_line(outcome, code), "") << score;
    EXPECT_NE(outcome.err.find(reason), std::string::npos) << outcome.err;
    EXPECT_FALSE(fs::exists(scratch / "out" / "unit-1")) << score;
  };
  refused("length = 1024\nstride = 128\n", 2, "unit-1: stride: no document has the 1920 bytes");  // 5 % are 1000
  refused("data = [\"" + (scratch / "none.txt").string() + "\"]\n", 1, "none.txt");
  refused("[[score]]\nkind = \"task\"\nname = \"text_recall\"\nlength = 4096\n", 1,
          "unit-1: text_recall: the text has 1000 bytes");
}

TEST(Recipe, TheDryRunOnlyLists) {
  const Scratch scratch;
  const std::string file = scratch.file("small.toml", kTask);
  const Outcome outcome = recipe(file, scratch / "out", {"--dry-run", "--seeds", "1", "--seed", "7"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_FALSE(fs::exists(scratch / "out"));
  for (const char* part : {"mamba2-7 ", "384\n", "2 trainings, 768 tokens", "recall, length 64"})
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << "\n" << outcome.out;
}

TEST(Recipe, WrongUseIsOneClearLine) {
  const Scratch scratch;
  const std::string file = scratch.file("small.toml", kTask);
  EXPECT_EQ(not_one_clear_line(run({"recipe"}), 2), "");
  EXPECT_EQ(not_one_clear_line(run({"recipe", file}), 2), "");
  EXPECT_EQ(not_one_clear_line(run({"recipe", (scratch / "none.toml").string(), "--out", "x"}), 1), "");
  EXPECT_EQ(not_one_clear_line(recipe(scratch.file("bad.toml", "seeds = ["), scratch / "o"), 1), "");
  EXPECT_EQ(not_one_clear_line(recipe(file, scratch / "o", {"--seeds", "-1"}), 2), "");
  EXPECT_EQ(not_one_clear_line(recipe(file, scratch / "o", {"--jobs", "-1"}), 2), "");
  EXPECT_EQ(not_one_clear_line(recipe(file, scratch / "o", {"--set", "steps=-1"}), 2), "");
  EXPECT_EQ(not_one_clear_line(recipe(file, file), 1), "");
}

// Those of the tables in the documents can be read and planned.
TEST(Recipe, TheRecipesOfTheProjectArePlannedAsTheyAre) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(LOGLINEAR_SOURCE_DIR) / "recipes")) {
    Arguments arguments = {"recipe", entry.path().string(), "--dry-run"};
    if (const fs::path name = entry.path().stem();
        name == "position" || name == "position_taught" || name == "text_recall" || name == "first_weights")
      arguments.insert(arguments.end(), {"--data", std::string(LOGLINEAR_SOURCE_DIR) + "/README.md"});
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 0) << entry.path() << outcome.err;
    EXPECT_NE(outcome.out.find(" trainings"), std::string::npos) << outcome.out;
    ++count;
  }
  EXPECT_GE(count, 5);
}

}  // namespace
}  // namespace loglinear::tests
