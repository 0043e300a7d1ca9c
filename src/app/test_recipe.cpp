#include "app/recipe.hpp"

#include <gtest/gtest.h>

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <thread>

#include "loglinear/error.hpp"

namespace loglinear::app {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

json small() {
  return json::parse(R"({
    "title": "Small", "seeds": 2,
    "settings": {"task": "mqar", "vocab": 32, "seq_len": 32, "items": 4, "hidden-size": 16, "layers": 1, "heads": 2,
                 "batch-tokens": 64, "steps": 3},
    "case": [{"name": "base", "mixer": "mamba2"}, {"name": "ours", "mixer": "log_linear_mamba2", "levels": 6}],
    "sweep": {"lr": [0.01, 0.001], "hidden-size": [16, 32]},
    "score": [{"kind": "task", "label": "recall", "items": [2, 4], "examples": 3},
              {"kind": "cost", "columns": ["state", "parameters"]}]})");
}

// The message of the usage error; empty when there is none.
std::string refusal(const json& file, const RecipeOptions& options = {}) {
  try {
    plan_recipe(file, "file.toml", options);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::usage) << error.what();
    return error.what();
  }
  return "";
}

TEST(Recipe, PlansEveryCaseWithEveryChoiceAndSeed) {
  const Recipe recipe = plan_recipe(small(), "file.toml");
  EXPECT_EQ(recipe.title, "Small");
  ASSERT_EQ(recipe.rows.size(), 8u);
  ASSERT_EQ(recipe.trainings.size(), 16u);
  const RecipeTraining &first = recipe.trainings[0], &last = recipe.trainings[15];
  EXPECT_EQ(first.name, "base-16-0.01-1");
  EXPECT_EQ(recipe.trainings[1].name, "base-16-0.001-1");
  EXPECT_EQ(recipe.trainings[8].name, "base-16-0.01-2");
  EXPECT_EQ(last.name, "ours-32-0.001-2");
  EXPECT_EQ(first.settings.mixer, "mamba2");
  EXPECT_EQ(last.settings.mixer, "log_linear_mamba2");
  EXPECT_EQ(last.settings.levels, 6);
  EXPECT_EQ(last.settings.hidden_size, 32);
  EXPECT_EQ(last.settings.lr, 0.001);
  EXPECT_EQ(last.settings.seed, 2);
  EXPECT_EQ(last.settings.threads, 1);
  EXPECT_EQ(last.settings.seq_len, 32);
  EXPECT_EQ(last.tokens, 3 * 64);
  ASSERT_EQ(recipe.measurements.size(), 3u);
  EXPECT_EQ(recipe.measurements[0].columns, (std::vector<RecipeColumn>{{"recall, items 2", "%"}}));
  EXPECT_EQ(recipe.measurements[1].columns, (std::vector<RecipeColumn>{{"recall, items 4", "%"}}));
  EXPECT_EQ(recipe.measurements[2].columns,
            (std::vector<RecipeColumn>{{"state", "bytes"}, {"parameters", "parameters"}}));
}

TEST(Recipe, WhatTheCommandLineLaysOver) {
  RecipeOptions options;
  options.set = {"steps=7", "hidden_size=24", "lr=[0.1,0.2,0.3]", "levels=5"};
  options.seeds = 1, options.seed = 11, options.examples = 9;
  const Recipe recipe = plan_recipe(small(), "file.toml", options);
  ASSERT_EQ(recipe.trainings.size(), 6u);
  EXPECT_EQ(recipe.trainings[5].name, "ours-24-0.3-11");
  for (const RecipeTraining& training : recipe.trainings) {
    EXPECT_EQ(training.settings.steps, 7);
    EXPECT_EQ(training.settings.hidden_size, 24);
    EXPECT_EQ(training.settings.levels, 5);
    EXPECT_EQ(training.settings.seed, 11);
  }
  EXPECT_EQ(recipe.measurements[0].definition["examples"], 9);
  options.only = "^ours.*0.2";
  const Recipe part = plan_recipe(small(), "file.toml", options);
  ASSERT_EQ(part.trainings.size(), 1u);
  EXPECT_EQ(part.trainings[0].name, "ours-24-0.2-11");
  ASSERT_EQ(part.rows.size(), 1u);
  EXPECT_EQ(part.trainings[0].row, 0u);
}

TEST(Recipe, TheMixerByItsOldNameIsTheMixer) {
  json file = small();
  file["case"] = {{{"name", "a"}}};
  file["sweep"] = {{"mixer", {"mamba2", "flash"}}};
  RecipeOptions options;
  options.set = {"family=linear"};
  const Recipe recipe = plan_recipe(file, "file.toml", options);
  ASSERT_EQ(recipe.trainings.size(), 2u);  // of two seeds: the sweep is replaced
  for (const RecipeTraining& training : recipe.trainings) EXPECT_EQ(training.settings.mixer, "linear");
  EXPECT_EQ(recipe.rows[0].sweep[0].second, "linear");
}

TEST(Recipe, StagesAreLaidOverCasesAndNamedByTheCommandLine) {
  json file = small();
  file["stage"] = {{{"steps", 5}, {"lr", 0.3}}, {{"items", 2}, {"repeats", 0}}, {{"minutes", 2}}};
  file["case"][1]["stage3"] = {{"trained_levels", 4}, {"lr", 0.2}};  // as TOML reads stage3.lr
  file["sweep"] = {{"stage2.warmup", {1, 2}}};
  RecipeOptions options;
  options.set = {"beta1=0.8", "stage1.beta1=0.7", "stage2.seq_len=16"};
  const Recipe recipe = plan_recipe(file, "file.toml", options);
  ASSERT_EQ(recipe.trainings.size(), 8u);
  const RecipeTraining& training = recipe.trainings[1];
  EXPECT_EQ(training.name, "base-2-1");
  ASSERT_EQ(training.stages(), 3u);
  const TrainSettings &first = training.stage(0), &second = training.stage(1), &last = training.stage(2);
  EXPECT_EQ(&last, &training.settings);
  EXPECT_EQ(first.steps, 5);
  EXPECT_EQ(second.steps, 3);
  EXPECT_EQ(last.steps, 0);
  EXPECT_EQ(last.minutes, 2);
  EXPECT_EQ(first.lr, 0.3);
  EXPECT_EQ(second.lr, TrainSettings{}.lr);
  EXPECT_EQ(second.task.items, 2);
  EXPECT_EQ(last.task.items, 4);
  EXPECT_EQ(first.warmup, 50);
  EXPECT_EQ(second.warmup, 2);
  EXPECT_EQ(first.beta1, 0.7);
  EXPECT_EQ(last.beta1, 0.8);
  EXPECT_EQ(first.seq_len, 32);
  EXPECT_EQ(second.seq_len, 16);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(training.stage(i).seed, 1);
    EXPECT_EQ(training.stage(i).hidden_size, 16);
    EXPECT_EQ(training.stage(i).mixer, "mamba2");
  }
  EXPECT_TRUE(std::isnan(training.tokens));
  const RecipeTraining& ours = recipe.trainings[3];
  EXPECT_EQ(ours.name, "ours-2-1");
  EXPECT_EQ(ours.stage(2).trained_levels, 4);
  EXPECT_EQ(ours.stage(2).lr, 0.2);
  EXPECT_EQ(ours.stage(1).trained_levels, 0);
  EXPECT_EQ(last.lr, TrainSettings{}.lr);
  file["stage"].erase(2);
  EXPECT_NE(refusal(file, options).find("stage3"), std::string::npos);
  file["case"][1].erase("stage3");
  EXPECT_EQ(plan_recipe(file, "file.toml", options).trainings[1].tokens, (5 + 3) * 64);

  const auto refused = [&](const char* setting, const json& value, const char* reason) {
    json other = file;
    other["stage"][1][setting] = value;
    const std::string text = refusal(other);
    EXPECT_NE(text.find(reason), std::string::npos) << text;
  };
  refused("hidden-size", 32, "base-1-1: stage 2: hidden-size: all stages have the model of the first");
  refused("from", "somewhere", "decides it");
  refused("vocab", 64, "base-1-1: stage 2: has a vocabulary of 64, the model of the first one of 32");
  refused("seed", 3, "seed is not a setting of a recipe");
  refused("itms", 3, "stage 2: unknown key \"itms\"");
  refused("batch-tokens", 16, "base-1-1: stage 2: --batch-tokens 16");
  options.set = {"stage3.lr=1"};
  EXPECT_NE(refusal(file, options).find("stage3.lr"), std::string::npos);
  file["stage"] = json::array();
  EXPECT_NE(refusal(file).find("stage: need tables"), std::string::npos);
}

TEST(Recipe, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(refusal(small()), "");
  const auto with = [](const char* pointer, const json& value) {
    json file = small();
    file[json::json_pointer(pointer)] = value;
    return refusal(file);
  };
  const auto says = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  EXPECT_TRUE(says(with("/sede", 3), "sede"));
  EXPECT_TRUE(says(with("/seeds", 0), "seeds"));
  EXPECT_TRUE(says(with("/settings/hiden-size", 16), "hiden-size"));
  EXPECT_TRUE(says(with("/settings/seed", 16), "seed is not a setting of a recipe"));
  EXPECT_TRUE(says(with("/case/1/levels", "many"), "case ours: levels"));
  EXPECT_TRUE(says(with("/case/1/name", "base"), "two cases base"));
  EXPECT_TRUE(says(with("/case", json::array()), "case"));
  EXPECT_TRUE(says(with("/sweep/lr", 0.1), "lr: a list"));
  EXPECT_TRUE(says(with("/sweep/lr", {0.1, 0.1}), "0.1 is there twice"));
  EXPECT_TRUE(says(with("/sweep/mixer", {"mamba3"}), "mamba3"));
  EXPECT_TRUE(says(with("/settings/trained-levels", 20), "base-16-0.01-1: --trained-levels 20"));
  EXPECT_TRUE(says(with("/settings/batch-tokens", 16), "base-16-0.01-1: --batch-tokens 16"));
  EXPECT_TRUE(says(with("/columns", "width"), "columns: width"));
  EXPECT_TRUE(says(with("/score", json::array()), "score"));
  EXPECT_TRUE(says(with("/score/0/kind", "speed"), "speed"));
  EXPECT_TRUE(says(with("/score/0/itms", 3), "itms"));
  EXPECT_TRUE(says(with("/score/0/items", json::array()), "items: got no value"));
  EXPECT_TRUE(says(with("/score/0/items", {2, 400}), "400"));
  EXPECT_TRUE(says(with("/score/0/vocab", 64), "vocabulary of 64"));
  EXPECT_TRUE(says(with("/score/0/name", "mqarr"), "there is no task mqarr"));
  EXPECT_TRUE(says(with("/score/0/model", {{"levelpolicy", 1}}), "levelpolicy"));
  EXPECT_TRUE(says(with("/score/0", {{"kind", "text"}}), "vocabulary of 32"));
  json text = small();
  text["settings"] = {{"seq-len", 32}, {"batch-tokens", 64}, {"steps", 3}, {"data", {"books"}}};
  text["score"] = {{{"kind", "text"}, {"stride", 16}}};
  EXPECT_EQ(refusal(text), "");
  text["score"][0]["stride"] = 12;
  EXPECT_TRUE(says(refusal(text), "stride: got 12, need what divides the length, 32"));
  text["score"][0]["length"] = {24};
  EXPECT_EQ(refusal(text), "");
  EXPECT_TRUE(says(with("/score/1/columns", {"price"}), "price"));
  EXPECT_TRUE(says(with("/score/1", small()["score"][0]), "two scores are called"));
  EXPECT_TRUE(says(with("/score/1/columns", json::array()), "columns: got none"));
  EXPECT_TRUE(says(with("/score/1/columns", {"state", "state"}), "state is there twice"));
  EXPECT_TRUE(says(with("/score/0/model", {{"level-policy", "share"}}), "base-16-0.01-1 is a mamba2 model without"));
  EXPECT_TRUE(says(with("/score/0/model", {{"trained-levels", 9}}), "without level scales"));
  json levels = small();
  levels["case"] = {{{"name", "ours"}, {"mixer", "log_linear_mamba2"}, {"levels", 6}}};
  levels["score"][0]["model"] = {{"trained-levels", 5}};
  EXPECT_EQ(refusal(levels), "");
  levels["score"][0]["model"] = {{"trained-levels", 9}};
  EXPECT_TRUE(says(refusal(levels), "ours-16-0.01-1"));
  EXPECT_TRUE(says(with("/case/0/name", std::string(300, 'n')), "at most 200"));
  json many = json::array();
  for (int i = 1; i <= 400; ++i) many.push_back(i);
  EXPECT_TRUE(says(with("/sweep", {{"steps", many}, {"warmup", many}, {"levels", many}}), "models with 2 seeds"));
  json lists = small();
  lists["score"][0]["items"] = lists["score"][0]["length"] = many;
  EXPECT_TRUE(says(refusal(lists), "160000 columns"));
  json text_of_its_own = text;
  text_of_its_own["score"][0]["data"] = {"no such file"};
  EXPECT_THROW(plan_recipe(text_of_its_own, "file.toml"), Error);
  RecipeOptions options;
  options.seed = std::int64_t{1} << 60;  // of held-out examples
  EXPECT_TRUE(says(refusal(small(), options), "--seed: got"));
  options.seed = std::numeric_limits<std::int64_t>::max();
  EXPECT_TRUE(says(refusal(small(), options), "--seed: got"));
  options.seed = -1;
  options.set = {"steps"};
  EXPECT_TRUE(says(refusal(small(), options), "SETTING=VALUE"));
  options.set = {"stps=3"};
  EXPECT_TRUE(says(refusal(small(), options), "stps"));
  options.set.clear(), options.only = "(";
  EXPECT_TRUE(says(refusal(small(), options), "regular expression"));
  options.only = "nothing";
  EXPECT_TRUE(says(refusal(small(), options), "no training"));
}

TEST(Recipe, ProgressKnowsWhatEarlierCallsDid) {
  json file = small();
  file["settings"]["steps"] = 200;
  file["case"].erase(1);
  file.erase("sweep");
  RecipeOptions options;
  options.seeds = 1;
  const Recipe recipe = plan_recipe(file, "file.toml", options);
  const fs::path out = fs::temp_directory_path() / ("loglinear_recipe_" + std::to_string(getpid()));
  std::atomic<int> asked = 0;
  std::string first;
  RecipeHooks hooks;
  hooks.progress = [&](const RecipeProgress& p) {
    if (first.empty() && !p.running.empty() && asked > 0) first = p.running[0];
  };
  hooks.interrupted = [&] { return ++asked > 150; };
  EXPECT_TRUE(run_recipe(recipe, {.out = out, .jobs = 1, .command = ""}, hooks).interrupted);
  first.clear(), asked = 0;
  hooks.interrupted = [&] {  // slow, so that there is time to tell of it
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return ++asked > 40;
  };
  run_recipe(recipe, {.out = out, .jobs = 1, .command = ""}, hooks);
  fs::remove_all(out);
  ASSERT_TRUE(first.starts_with("base-1 ")) << first;
  const int percent = std::stoi(first.substr(7));
  EXPECT_GE(percent, 75) << first;
  EXPECT_LE(percent, 97) << first;
}

TEST(Recipe, MeanAndSpreadInTheUnitOfTheScore) {
  EXPECT_EQ(format_values({}, "%"), "-");
  EXPECT_EQ(format_values({0.5}, "%"), "50.0");
  EXPECT_EQ(format_values({0.5, 0.6, 0.7}, "%"), "60.0 ± 10.0");
  EXPECT_EQ(format_values({1.5, 1.25}, "bits/byte"), "1.3750 ± 0.1768");
  EXPECT_EQ(format_values({2048.0, 2048.0}, "bytes"), "2.0 KiB");
  EXPECT_EQ(format_values({12000.0, 14000.0}, "tokens/s"), "13k ± 1.41k");
  EXPECT_EQ(format_values({0.5, kNaN, 0.7}, "%"), "nan (1 of 3)");
  EXPECT_EQ(format_values({kNaN}, "%"), "nan");
  EXPECT_EQ(format_values({0.5, std::nullopt}, "%"), "-");
}

TEST(Recipe, TheTableLinesUpAsText) {
  EXPECT_EQ(markdown_table({"mixer", "width", "a, %"}, {{"mamba2", "16", "75.1 ± 1.2"}, {"flash", "8", "nan"}}, 2),
            "| mixer  | width |       a, % |\n"
            "| ------ | ----- | ---------: |\n"
            "| mamba2 | 16    | 75.1 ± 1.2 |\n"
            "| flash  | 8     |        nan |\n");
}

RecipeResult filled(const Recipe& recipe) {
  RecipeResult result;
  for (std::size_t i = 0; i < recipe.trainings.size(); ++i) {
    RecipeOutcome outcome;
    outcome.ended = true;
    for (const Measurement& m : recipe.measurements)
      outcome.values.push_back(std::vector<RecipeValue>(m.columns.size(), 0.01 * static_cast<double>(i)));
    result.outcomes.push_back(outcome);
  }
  return result;
}

TEST(Recipe, ASettingOfTheSweepCanBeColumns) {
  json file = small();
  file["columns"] = "hidden_size";
  file["score"].erase(1);
  file["score"][0]["items"] = 4;
  const Recipe recipe = plan_recipe(file, "file.toml");
  RecipeResult result = filled(recipe);
  result.outcomes.back().ended = false;  // ours, 32, 0.001, second seed
  result.outcomes[9].values[0][0] = kNaN;
  result.outcomes[9].diverged = true;
  const std::string text = recipe_text(recipe, result, "loglinear recipe x");
  const std::string table = markdown_table({"", "lr", "hidden-size 16, %", "hidden-size 32, %"},
                                           {{"base", "0.01", "4.0 ± 5.7", "6.0 ± 5.7"},
                                            {"base", "0.001", "nan (1 of 2)", "7.0 ± 5.7"},
                                            {"ours", "0.01", "8.0 ± 5.7", "10.0 ± 5.7"},
                                            {"ours", "0.001", "9.0 ± 5.7", "7.0 (1 of 2 seeds)"}},
                                           2);
  EXPECT_NE(text.find(table), std::string::npos) << text;
  for (const char* part : {"## Small\n", "\nrecall, %\n", "2 seeds (1 to 2)", "15 of 16 trainings", "1 diverged",
                           "command  loglinear recipe x\n", "machine  "})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  const auto object = recipe_json(recipe, result, "loglinear recipe x");
  EXPECT_EQ(object["rows"].size(), 8u);
  EXPECT_EQ(object["rows"][1]["sweep"], (json{{"hidden-size", 16}, {"lr", 0.001}}));
  EXPECT_EQ(object["rows"][1]["scores"][0]["values"][0], 0.01);
  EXPECT_TRUE(object["rows"][1]["scores"][0]["values"][1].is_null());
  EXPECT_TRUE(object["rows"][1]["scores"][0]["mean"].is_null());
  EXPECT_EQ(object["rows"][1]["trainings"][1]["diverged"], true);
  EXPECT_NEAR(object["rows"][0]["scores"][0]["mean"].get<double>(), 0.04, 1e-15);
}

TEST(Recipe, CostHasItsColumnsForEveryLengthAndParametersOnce) {
  json file = small();
  file["score"] = {{{"kind", "cost"}, {"length", {64, 128}}, {"columns", {"read", "parameters"}}}};
  const Recipe recipe = plan_recipe(file, "file.toml");
  ASSERT_EQ(recipe.measurements.size(), 2u);
  EXPECT_EQ(recipe.measurements[0].columns,
            (std::vector<RecipeColumn>{{"reading, tokens/s, length 64", "tokens/s"}, {"parameters", "parameters"}}));
  EXPECT_EQ(recipe.measurements[1].columns, (std::vector<RecipeColumn>{{"reading, tokens/s, length 128", "tokens/s"}}));
  const std::string text = recipe_text(recipe, filled(recipe), "");
  EXPECT_NE(text.find("with one thread, while no training ran"), std::string::npos) << text;
}

TEST(Recipe, CasesCanBeColumns) {
  json file = small();
  file["columns"] = "case";
  const Recipe recipe = plan_recipe(file, "file.toml");
  const std::string text = recipe_text(recipe, filled(recipe), "");
  EXPECT_NE(text.find("| hidden-size | lr    | base, recall, items 2, % |"), std::string::npos) << text;
}

}  // namespace
}  // namespace loglinear::app
