#include "app/train.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "app/checkpoint.hpp"
#include "app/data.hpp"
#include "app/evaluate.hpp"
#include "app/score.hpp"
#include "app/settings.hpp"
#include "app/source.hpp"
#include "base/random.hpp"
#include "io/file.hpp"
#include "io/safetensors.hpp"
#include "loglinear/error.hpp"

namespace loglinear::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class Train : public testing::Test {
 protected:
  Train() : folder_(fs::temp_directory_path() / ("loglinear_train_" + std::to_string(getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::ofstream text(folder_ / "text.txt");
    Random random(1, 2);
    const char* words[] = {"the ", "state ", "of ", "a ", "counter ", "is ", "its ", "digits.\n"};
    for (int i = 0; i < 700; ++i) text << words[random.below(8)];
  }
  ~Train() override { fs::remove_all(folder_); }

  TrainSettings settings(const std::string& out) {
    TrainSettings s;
    s.data = {(folder_ / "text.txt").string()};
    s.out = (folder_ / out).string();
    s.hidden_size = 16;
    s.layers = 1;
    s.heads = 2;
    s.key_width = s.value_width = 8;
    s.mlp_width = 16;
    s.levels = 5;
    s.seq_len = 48;
    s.batch_tokens = 100;
    s.warmup = 3;
    s.steps = 12;
    s.val_every = 5;
    s.val_bytes = 200;
    s.save_every = 4;
    s.log_every = 3;
    s.threads = 1;
    return s;
  }
  std::string file(const fs::path& path) { return io::read_file(path); }
  std::string part(const std::string& out, int step, const char* name) {
    return file(folder_ / out / fmt::format("step-{:07}", step) / name);
  }
  std::string weights(const std::string& out, int step) { return part(out, step, "model.safetensors"); }
  std::string optimizer(const std::string& out, int step) { return part(out, step, "optimizer.safetensors"); }
  // The log without what the clock decides.
  std::vector<json> log(const std::string& out) {
    std::vector<json> rows;
    std::istringstream lines(file(folder_ / out / "log.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      rows.push_back(json::parse(line));
      for (const char* key : {"tokens_per_second", "eta_seconds", "elapsed_seconds"}) rows.back().erase(key);
    }
    return rows;
  }
  // Stops after so many steps of this call.
  TrainHooks stop_after(int steps) {
    TrainHooks hooks;
    hooks.interrupted = [n = 0, steps]() mutable { return ++n >= steps; };
    return hooks;
  }
  template <class Call>
  std::string error_of(Call&& call, Error::Kind kind) {
    try {
      call();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      return error.what();
    }
    ADD_FAILURE() << "no error";
    return "";
  }

  fs::path folder_;
};

TEST_F(Train, LearnsAndLogsAndKeepsTwoCheckpoints) {
  TrainSettings s = settings("a");
  s.steps = 60;
  s.lr = 1e-2;
  std::string printed;
  TrainHooks hooks;
  hooks.print = [&](std::string_view text) { printed += text; };
  const TrainResult result = train(s, hooks);
  EXPECT_EQ(result.step, 60);
  EXPECT_EQ(result.skipped, 0);
  EXPECT_FALSE(result.interrupted);
  EXPECT_EQ(list_checkpoints(s.out).size(), 2u);
  EXPECT_EQ(result.checkpoint, (fs::path(s.out) / "step-0000060").string());
  const auto rows = log("a");
  double first = 0, last = 0;
  int train_rows = 0, validation_rows = 0;
  for (const json& row : rows) {
    if (row.at("type") == "validation") {
      ++validation_rows;
      last = row.at("bits_per_byte");
      if (first == 0) first = last;
      continue;
    }
    ++train_rows;
    for (const char* key : {"step", "loss", "bits_per_byte", "lr", "grad_norm", "tokens", "epoch", "skipped"})
      EXPECT_TRUE(row.at(key).is_number()) << key;
    EXPECT_NEAR(row.at("bits_per_byte").get<double>() * std::log(2.0), row.at("loss").get<double>(), 1e-9);
  }
  EXPECT_EQ(train_rows, 20);
  EXPECT_EQ(validation_rows, 12);
  EXPECT_LT(last, first - 1);
  EXPECT_EQ(result.validation, last);
  EXPECT_NE(printed.find("bits/byte"), std::string::npos);
  EXPECT_NE(printed.find("eta"), std::string::npos);
  EXPECT_EQ(printed.find('\r'), std::string::npos);
}

TEST_F(Train, ResumedRunsEndWithTheSameBits) {
  for (const std::string& family : nn::family_names()) {
    TrainSettings s = settings("whole_" + family);
    s.mixer = family;
    s.accumulate = 2;
    s.packing = family == "flash" ? "blocks" : "documents";
    s.repeats = family == "mamba2" ? 0.9 : 0;
    train(s);
    const std::string parts = "parts_" + family;
    s.out = (folder_ / parts).string();
    // Cut after 1, then 2, 3 steps, and at the end.
    for (const int steps : {1, 2, 3, 100}) {
      const TrainResult result = train(s, stop_after(steps));
      EXPECT_EQ(result.interrupted, steps < 100);
      s.resume = true;
      s.threads = 2;  // never changes the result
    }
    EXPECT_TRUE(weights("whole_" + family, 12) == weights(parts, 12));
    EXPECT_TRUE(optimizer("whole_" + family, 12) == optimizer(parts, 12));
    EXPECT_EQ(log("whole_" + family), log(parts));
  }
}

// Passages are repeated in what is trained on, not in what is held out, and a resumed run repeats as much.
TEST_F(Train, RepeatsAreOfTheTrainingAlone) {
  TrainSettings s = settings("plain");
  s.seq_len = s.batch_tokens = 256;
  s.lr = s.min_lr = 0;  // the same model throughout
  train(s);
  s.out = (folder_ / "repeated").string();
  s.repeats = 0.5;
  train(s);
  const std::vector<json> plain = log("plain"), repeated = log("repeated");
  ASSERT_EQ(plain.size(), repeated.size());
  std::map<std::string, int> seen;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const std::string type = plain[i].at("type");
    ++seen[type];
    if (type == "train") EXPECT_NE(plain[i].at("loss"), repeated[i].at("loss"));
    if (type == "validation") EXPECT_EQ(plain[i], repeated[i]);
  }
  EXPECT_GT(seen["train"], 0);
  EXPECT_GT(seen["validation"], 0);
  s.resume = true;
  s.repeats = 0.25;
  EXPECT_THROW(train(s), Error);
}

// What trainer.json said before mixers had names of their own.
TEST_F(Train, CheckpointsWithAFamilyResume) {
  TrainSettings s = settings("a");
  s.mixer = "flash";
  train(s);
  s = settings("b");
  s.mixer = "flash";
  train(s, stop_after(4));
  const auto checkpoint = newest_checkpoint(s.out, {});
  json trainer = checkpoint->trainer;
  json& stored = trainer.at("settings");
  stored["family"] = "transformer";
  for (const char* key : {"mixer", "window", "stride", "dense-heads", "routed-heads", "sparsity"}) stored.erase(key);
  nn::Model<float> model(model_config(s));
  Moments moments;
  load_checkpoint(*checkpoint, model, moments);
  save_checkpoint(s.out, model, moments, trainer);
  s.resume = true;
  std::string printed;
  TrainHooks hooks;
  hooks.print = [&](std::string_view text) { printed += text; };
  EXPECT_EQ(train(s, hooks).step, 12);
  EXPECT_EQ(printed.find("changed"), std::string::npos) << printed;
  EXPECT_TRUE(weights("a", 12) == weights("b", 12));
  s.mixer = "standard";
  EXPECT_NE(error_of([&] { train(s); }, Error::Kind::usage).find("--mixer"), std::string::npos);
}

// How the training of s goes on if its newest checkpoint was made before there were these settings.
TrainSettings resume_without(const std::vector<std::string>& keys, const TrainSettings& s) {
  const auto checkpoint = newest_checkpoint(s.out, {});
  json trainer = checkpoint->trainer;
  for (const std::string& key : keys) trainer.at("settings").erase(key);
  nn::Model<float> model(model_config(s));
  Moments moments;
  load_checkpoint(*checkpoint, model, moments);
  save_checkpoint(s.out, model, moments, trainer);
  return resolve_settings({{"resume", true}, {"out", s.out}}, "");
}

// Before layers had queries and keys of their own to match states by, those of the mixer served.
TEST_F(Train, CheckpointsWithoutAMatchWidthGoOnAsTheyWere) {
  TrainSettings s = settings("a");
  s.mixer = "log_linear_gated_deltanet";
  EXPECT_EQ(model_config(s).match_width, 0);
  s.mixer = "log_linear_mamba2";
  s.key_width = 8;
  EXPECT_EQ(model_config(s).match_width, 32);
  s.key_width = 40;
  EXPECT_EQ(model_config(s).match_width, 40);
  s.match_width = 7;
  EXPECT_EQ(model_config(s).match_width, 7);
  s.match_width = -1, s.key_width = 0;
  s.level_policy = "routed";
  EXPECT_EQ(model_config(s).match_width, 0);
  s.level_policy = "content";
  s.match_width = 0;
  train(s);
  TrainSettings other = s;
  other.out = settings("b").out;
  train(other, stop_after(4));
  const TrainSettings resumed = resume_without({"match-width"}, other);
  EXPECT_EQ(resumed.match_width, 0);
  train(resumed);
  EXPECT_TRUE(weights("a", 12) == weights("b", 12));
}

// Before level policies every level had a scale of its own, which learned like any other parameter.
TEST_F(Train, CheckpointsWithoutALevelPolicyGoOnAsTheyWere) {
  TrainSettings s = settings("a");
  s.mixer = "log_linear_mamba2";
  s.level_policy = "share";
  s.trained_levels = s.levels;
  s.scales_lr = 1;
  train(s);
  TrainSettings other = s;
  other.out = settings("b").out;
  train(other, stop_after(4));
  const TrainSettings resumed =
      resume_without({"level-policy", "trained-levels", "position-offsets", "scales-lr", "match-width"}, other);
  EXPECT_EQ(resumed.level_policy, "share");
  EXPECT_EQ(resumed.match_width, 0);
  EXPECT_EQ(resumed.trained_levels, s.levels);
  EXPECT_EQ(training_settings(other.out)->scales_lr, 1);
  train(resumed);
  EXPECT_TRUE(weights("a", 12) == weights("b", 12));
}

TEST_F(Train, ScalesLearnAsFastAsTheRestWithContentAndSlowlyWithoutIt) {
  const auto trained = [&](const char* name, const char* policy, double rate) {
    TrainSettings s = settings(name);
    s.mixer = "log_linear_mamba2";
    s.level_policy = policy;
    s.scales_lr = rate;
    train(s);
    return weights(name, 12);
  };
  const auto content = trained("a", "content", -1), share = trained("b", "share", -1);
  EXPECT_TRUE(content == trained("c", "content", 1));
  EXPECT_FALSE(content == trained("d", "content", 0.1));
  EXPECT_TRUE(share == trained("e", "share", 0.1));
}

// Its choice looks at later tokens: it says so, and scores what it can.
TEST_F(Train, AMixerThatIsNotCausalWarnsOnceAndScoresWindows) {
  TrainSettings s = settings("a");
  s.mixer = "mosa";
  std::vector<std::string> warnings;
  TrainHooks hooks;
  hooks.warn = [&](const std::string& text) { warnings.push_back(text); };
  train(s, hooks);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("sees the future"), std::string::npos) << warnings[0];
  const auto model = load_model<float>(s.out);
  const std::vector<std::string> documents = {file(folder_ / "text.txt").substr(0, 300), "short"};
  const Text text(documents);
  const Evaluation windows = evaluate(*model, text, {.seq_len = 0, .batch_tokens = 50, .progress = {}});
  const Evaluation cut = evaluate(*model, text, {.seq_len = 50, .batch_tokens = 50, .progress = {}});
  EXPECT_EQ(windows.bytes, 305);
  EXPECT_EQ(windows.sequences, 8);  // 300 bytes, the end of their document on its own, and 5
  EXPECT_EQ(windows.bits, cut.bits);
}

TEST_F(Train, ARunThatEndedIsLeftAsItIsAndCanBeMadeLonger) {
  TrainSettings s = settings("a");
  train(s);
  const std::string before = weights("a", 12), rows = file(fs::path(s.out) / "log.jsonl");
  s.resume = true;
  EXPECT_EQ(train(s).step, 12);
  EXPECT_TRUE(weights("a", 12) == before);
  EXPECT_EQ(file(fs::path(s.out) / "log.jsonl"), rows);
  s.steps = 14;
  EXPECT_EQ(train(s).step, 14);
  EXPECT_TRUE(weights("a", 14) != before);
}

TEST_F(Train, TheSeedDecidesEverything) {
  for (const char* out : {"a", "b", "c"}) {
    TrainSettings s = settings(out);
    if (out[0] == 'c') s.seed = 2;
    train(s);
  }
  EXPECT_TRUE(weights("a", 12) == weights("b", 12));
  EXPECT_TRUE(weights("a", 12) != weights("c", 12));
  EXPECT_EQ(log("a"), log("b"));
}

TEST_F(Train, AccumulationIsOneLargerBatch) {
  // Two batches of one sequence each against one of both: the same gradient up to rounding.
  TrainSettings s = settings("a");
  s.packing = "blocks";
  s.seq_len = s.batch_tokens = 32;
  s.accumulate = 2;
  s.steps = 1;
  s.clip = 0;
  train(s);
  s.out = (folder_ / "b").string();
  s.batch_tokens = 64;
  s.accumulate = 1;
  train(s);
  EXPECT_NEAR(log("a")[0].at("loss").get<double>(), log("b")[0].at("loss").get<double>(), 1e-5);
  const double a = log("a")[0].at("grad_norm"), b = log("b")[0].at("grad_norm");
  EXPECT_NEAR(a, b, 1e-3 * b);
}

TEST_F(Train, EpochsUseEveryByteThatManyTimes) {
  TrainSettings s = settings("a");
  s.steps = 0;
  s.epochs = 2;
  s.accumulate = 4;
  s.val_fraction = 0;
  train(s);
  const json trainer = json::parse(file(newest_checkpoint(s.out, {})->folder / "trainer.json"));
  EXPECT_EQ(trainer.at("epoch"), 2);
  EXPECT_EQ(trainer.at("piece"), 0);
  const std::string text = file(folder_ / "text.txt");
  EXPECT_EQ(trainer.at("tokens").get<std::size_t>(), 2 * (text.size() + 1));  // and the separator
}

TEST_F(Train, WithoutWeightDecayNothingElseMovesUnusedRows) {
  // The embedding of a byte that never occurs has no gradient: only weight decay moves it.
  TrainSettings s = settings("a");
  s.weight_decay = 0;
  train(s);
  nn::Model<float> fresh(model_config(s));
  fresh.initialise(1);
  const auto trained = load_model<float>(s.out);
  const auto row = [&](nn::Model<float>& m, int byte) {
    for (const auto& p : m.parameters())
      if (p.name == "backbone.embeddings.weight")
        return std::vector<float>(&p.value[byte * 16], &p.value[byte * 16 + 16]);
    return std::vector<float>();
  };
  EXPECT_EQ(row(*trained, 200), row(fresh, 200));
  EXPECT_NE(row(*trained, 'e'), row(fresh, 'e'));
  s.out = (folder_ / "b").string();
  s.weight_decay = 0.5;
  train(s);
  EXPECT_NE(row(*load_model<float>(s.out), 200), row(fresh, 200));
}

TEST_F(Train, StepsThatAreNotFiniteAreSkippedAndFatalAfterTen) {
  TrainSettings s = settings("a");
  train(s, stop_after(4));
  // A poisoned parameter that the checkpoint's checksums vouch for, large enough to overflow and still finite.
  const auto checkpoint = newest_checkpoint(s.out, {});
  nn::Model<float> model(model_config(s));
  Moments moments;
  load_checkpoint(*checkpoint, model, moments);
  for (auto& p : model.parameters())
    if (p.name == "lm_head.weight")
      for (float& x : p.value) x = 3e38f;
  save_checkpoint(s.out, model, moments, checkpoint->trainer);
  const std::string before = weights("a", 4);
  s.resume = true;
  s.steps = 40;
  const std::string text = error_of([&] { train(s); }, Error::Kind::failure);
  EXPECT_NE(text.find("10 steps in a row"), std::string::npos) << text;
  EXPECT_TRUE(weights("a", 4) == before);
  EXPECT_EQ(list_checkpoints(s.out).size(), 1u);
  int skipped = 0;
  for (const json& row : log("a"))
    if (row.at("type") == "skipped") {
      EXPECT_EQ(row.at("skipped_in_a_row"), ++skipped);
      EXPECT_TRUE(row.at("grad_norm").is_null() || row.at("loss").is_null());
    }
  EXPECT_EQ(skipped, 10);
}

TEST_F(Train, AnAbsurdLearningRateEndsInAnErrorOrFiniteNumbers) {
  TrainSettings s = settings("a");
  s.lr = 1e6;
  s.steps = 60;
  s.save_every = 1;
  try {
    train(s);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::failure);
  }
  // Whatever was saved can be read.
  if (!list_checkpoints(s.out).empty()) EXPECT_NO_THROW(load_model<float>(s.out));
  for (const json& row : log("a")) EXPECT_TRUE(row.is_object());
}

TEST_F(Train, RefusesToOverwriteOrToMixRuns) {
  TrainSettings s = settings("a");
  train(s);
  const std::string before = weights("a", 12);
  EXPECT_NE(error_of([&] { train(s); }, Error::Kind::usage).find("--resume"), std::string::npos);
  s.resume = true;
  s.steps = 20;
  TrainSettings other = s;
  other.hidden_size = 32;
  EXPECT_NE(error_of([&] { train(other); }, Error::Kind::usage).find("--hidden-size"), std::string::npos);
  other = s;
  other.seed = 9;
  EXPECT_NE(error_of([&] { train(other); }, Error::Kind::usage).find("--seed"), std::string::npos);
  std::ofstream(folder_ / "text.txt", std::ios::app) << "more";
  EXPECT_NE(error_of([&] { train(s); }, Error::Kind::failure).find("other text"), std::string::npos);
  EXPECT_TRUE(weights("a", 12) == before);
  EXPECT_EQ(list_checkpoints(s.out).size(), 2u);
}

// Lengths and pairs that differ from example to example, so that batches hold different numbers of them.
void make_recall(TrainSettings& s) {
  s.data.clear();
  s.val_bytes = TrainSettings{}.val_bytes;
  s.task.name = "mqar";
  s.task.vocab = 32;
  s.task.items = 4;
  s.task.min_items = 1;
  s.task.min_length = 20;
  s.val_examples = 9;
}

TEST_F(Train, OnATaskResumedRunsEndWithTheSameBits) {
  TrainSettings s = settings("whole");
  make_recall(s);
  s.accumulate = 2;
  const TrainResult whole = train(s);
  s.out = (folder_ / "parts").string();
  for (const int steps : {1, 2, 3, 100}) {
    const TrainResult result = train(s, stop_after(steps));
    EXPECT_EQ(result.interrupted, steps < 100);
    if (steps == 100) EXPECT_EQ(result.validation, whole.validation);
    s.resume = true;
    s.threads = 2;
  }
  EXPECT_TRUE(weights("whole", 12) == weights("parts", 12));
  EXPECT_TRUE(optimizer("whole", 12) == optimizer("parts", 12));
  EXPECT_EQ(log("whole"), log("parts"));
  const json trainer = json::parse(part("parts", 12, "trainer.json"));
  EXPECT_EQ(trainer.at("epoch"), 0);
  EXPECT_GT(trainer.at("piece"), 2 * 12);  // examples: two batches a step
  EXPECT_EQ(trainer.at("settings").at("task"), "mqar");
  EXPECT_EQ(trainer.at("settings").at("vocab"), 32);
  // All that it takes is in the checkpoint.
  EXPECT_EQ(training_settings(s.out)->task, s.task);
  EXPECT_EQ(training_settings(folder_ / "parts" / "step-0000012")->seq_len, s.seq_len);
}

TEST_F(Train, BeginsWithTheWeightsOfAnotherModel) {
  TrainSettings first = settings("first");
  train(first);
  TrainSettings s = settings("next");
  const TrainSettings untouched;
  s.from = first.out;
  s.hidden_size = untouched.hidden_size, s.layers = untouched.layers, s.heads = s.key_width = s.value_width = 0;
  s.mlp_width = 0, s.levels = untouched.levels;
  TrainSettings still = s;
  still.out = (folder_ / "still").string();
  still.lr = 0, still.steps = 1;
  std::string printed;
  TrainHooks hooks;
  hooks.print = [&](std::string_view text) { printed += text; };
  train(still, hooks);
  EXPECT_EQ(weights("still", 1), weights("first", 12));
  EXPECT_EQ(part("still", 1, "config.json"), part("first", 12, "config.json"));
  EXPECT_NE(printed.find("from      " + (folder_ / "first" / "step-0000012").string()), std::string::npos) << printed;

  // Levels that get scales of their own begin with those that they were read with: the model is what it was.
  TrainSettings shared = settings("shared");
  shared.trained_levels = 3;
  train(shared);
  const auto same_bits = [&](const std::string& name, std::int64_t levels) {
    TrainSettings own = still;
    own.from = shared.out, own.out = (folder_ / name).string(), own.trained_levels = levels;
    train(own);
    const json config = json::parse(part(name, 1, "config.json"));
    EXPECT_EQ(config.value("trained_levels", config.at("num_levels").get<std::int64_t>()), levels == 0 ? 3 : levels);
    return json::parse(part(name, 1, "trainer.json")).at("validation_bits_per_byte").get<double>();
  };
  const double bits = same_bits("still_shared", 0);
  EXPECT_EQ(same_bits("own", 5), bits);
  EXPECT_NE(weights("own", 1), weights("shared", 12));
  EXPECT_NE(same_bits("fewer", 1), bits);

  // A run in pieces ends as one in one go, and needs what it began with once.
  train(s);
  EXPECT_NE(weights("next", 12), weights("first", 12));
  TrainSettings pieces = s;
  pieces.out = (folder_ / "pieces").string();
  train(pieces, stop_after(5));
  fs::rename(folder_ / "first", folder_ / "gone");
  train(resolve_settings({{"resume", true}, {"out", pieces.out}}, ""));
  EXPECT_EQ(weights("pieces", 12), weights("next", 12));
  EXPECT_EQ(optimizer("pieces", 12), optimizer("next", 12));
  EXPECT_EQ(log("pieces"), log("next"));
  fs::rename(folder_ / "gone", folder_ / "first");

  // What the model decides is neither kept as a setting nor taken as one.
  const json stored = json::parse(part("next", 12, "trainer.json")).at("settings");
  EXPECT_EQ(stored.at("from"), first.out);
  for (const char* name : {"mixer", "hidden-size", "levels", "level-policy"})
    EXPECT_FALSE(stored.contains(name)) << name;
  const auto refused = [&](const char* what, const auto& change, Error::Kind kind = Error::Kind::usage) {
    TrainSettings bad = s;
    bad.out = (folder_ / "bad").string();
    change(bad);
    EXPECT_NE(error_of([&] { train(bad); }, kind).find(what), std::string::npos) << what;
    EXPECT_FALSE(fs::exists(bad.out));
  };
  refused("--mixer: the model of --from", [](TrainSettings& b) { b.mixer = "mamba2"; });
  refused("--hidden-size: the model of --from", [](TrainSettings& b) { b.hidden_size = 16; });
  refused("--trained-levels 6 is above the 5", [](TrainSettings& b) { b.trained_levels = 6; });
  refused(
      "no such folder", [&](TrainSettings& b) { b.from = (folder_ / "none").string(); }, Error::Kind::failure);
  refused("vocabulary", [](TrainSettings& b) {
    b.data.clear(), b.task.name = "mqar", b.task.vocab = 300, b.task.items = 2, b.val_bytes = TrainSettings().val_bytes;
  });
  TrainSettings other = pieces;
  other.resume = true, other.from = pieces.out;
  EXPECT_NE(error_of([&] { train(other); }, Error::Kind::usage).find("--from"), std::string::npos);
}

TEST_F(Train, AModelOfATaskGoesOnOnlyWhereItsVocabularyIsEnough) {
  TrainSettings recall = settings("recall");
  make_recall(recall);
  train(recall);
  TrainSettings s = settings("text");
  const TrainSettings untouched;
  s.from = recall.out;
  s.hidden_size = untouched.hidden_size, s.layers = untouched.layers, s.heads = s.key_width = s.value_width = 0;
  s.mlp_width = 0, s.levels = untouched.levels;
  EXPECT_NE(error_of([&] { train(s); }, Error::Kind::usage).find("vocabulary"), std::string::npos);
  TrainSettings more = s;
  more.out = (folder_ / "more").string();
  make_recall(more);
  more.steps = recall.steps;
  EXPECT_EQ(train(more).step, recall.steps);
}

TEST_F(Train, OnATaskItLearnsAndIsScoredByAccuracy) {
  TrainSettings s = settings("a");
  s.data.clear();
  s.val_bytes = TrainSettings{}.val_bytes;
  s.task.name = "induction";  // which of two symbols followed the special one
  s.task.vocab = 3;
  s.task.depth = 1;
  s.mixer = "gated_deltanet";
  s.seq_len = 8;
  s.batch_tokens = 256;
  s.initializer_range = 0.1;
  s.lr = 1e-2;
  s.steps = 150;
  s.val_every = 50;
  s.val_examples = 64;
  std::string printed;
  TrainHooks hooks;
  hooks.print = [&](std::string_view text) { printed += text; };
  const TrainResult result = train(s, hooks);
  const auto model = load_model<float>(s.out);
  EXPECT_EQ(model->config().vocab_size, 3);
  ScoreOptions options;
  options.examples = 64;
  options.batch_tokens = 256;
  const TaskScore score = score_task(*model, Task(task_of(s)), options);
  EXPECT_EQ(result.validation, score.all.accuracy());
  EXPECT_GT(result.validation, 0.95) << printed;
  int validations = 0;
  double best = -1;
  for (const json& row : log("a")) {
    EXPECT_FALSE(row.contains("bits_per_byte"));
    if (row.at("type") != "validation") continue;
    ++validations;
    EXPECT_EQ(row.at("best"), row.at("accuracy").get<double>() > best);
    best = std::max(best, row.at("accuracy").get<double>());
    EXPECT_EQ(row.at("answers"), 64);
    EXPECT_GT(row.at("loss"), 0);
  }
  EXPECT_EQ(validations, 3);
  EXPECT_NE(printed.find("validation accuracy"), std::string::npos) << printed;
  EXPECT_NE(printed.find("best so far"), std::string::npos) << printed;
  EXPECT_EQ(printed.find("bits/byte"), std::string::npos) << printed;
}

TEST_F(Train, ATaskMadeFromText) {
  TrainSettings s = settings("a");
  s.val_bytes = TrainSettings{}.val_bytes;
  s.val_examples = 4;
  s.task.name = "text_recall";
  s.task.cue = 4;
  s.task.answer = 2;
  s.seq_len = 64;
  s.batch_tokens = 128;
  train(s);
  // The text is part of what a resumed run must keep.
  std::ofstream(folder_ / "text.txt", std::ios::app) << "and more";
  s.resume = true;
  EXPECT_NE(error_of([&] { train(s); }, Error::Kind::failure).find("other text"), std::string::npos);
  s.resume = false;
  s.data.clear();
  s.out = (folder_ / "b").string();
  EXPECT_NE(error_of([&] { train(s); }, Error::Kind::usage).find("text"), std::string::npos);
}

// The tail of the text is held out: no example of a training is made from it, and those of a validation are.
TEST_F(Train, ExamplesToValidateOnAreMadeFromTextThatIsHeldOut) {
  const Random random(5, 0);
  std::string text;
  for (std::uint64_t i = 0; i < 4000; ++i) text += static_cast<char>('a' + random.at(i) % 26);
  for (std::uint64_t i = 0; i < 1000; ++i) text += static_cast<char>('A' + random.at(4000 + i) % 26);
  std::ofstream(folder_ / "two.txt") << text;
  TrainSettings s = settings("a");
  s.data = {(folder_ / "two.txt").string()};
  s.task.name = "text_recall";
  s.task.cue = 4;
  s.task.answer = 2;
  s.seq_len = 64;
  s.batch_tokens = 6400;
  s.val_examples = 20;
  const auto count = [&](double fraction) {
    s.val_fraction = fraction;
    const std::unique_ptr<Source> source = open_source(s, {});
    Batch batch;
    std::int64_t held_out = 0;
    for (int i = 0; i < 5; ++i) {
      source->next(batch);
      for (const std::int32_t token : batch.tokens) held_out += token >= 'A' && token <= 'Z';
    }
    return held_out;
  };
  EXPECT_EQ(count(0.2), 0);
  EXPECT_GT(count(0), 0);
  s.val_fraction = 0.2;
  const auto hash = open_source(s, {})->validation_hash();
  text[4500] = '?';  // in what is held out
  std::ofstream(folder_ / "two.txt") << text;
  EXPECT_NE(open_source(s, {})->validation_hash(), hash);
  s.val_fraction = 0.01;
  EXPECT_NE(error_of([&] { open_source(s, {}); }, Error::Kind::failure).find("held out has 50 bytes"),
            std::string::npos);
  s.val_examples = 0;
  open_source(s, {});
  s.data.clear();
  s.out = "x";
  s.task.name = "passkey";
  s.task.cue = s.task.answer = 0;
  EXPECT_NE(error_of([&] { complete_settings(s); }, Error::Kind::usage).find("val-fraction"), std::string::npos);
}

TEST_F(Train, WhatIsScoredHasAsManyQuestionsAsInTheTraining) {
  TrainSettings s;
  s.task.name = "needle_multiquery";
  s.task.items = 4;
  s.task.min_items = 2;
  s.seq_len = 128;
  const TaskSettings scored = scored_task_of(s);
  EXPECT_EQ(scored.queries, resolved(task_of(s)).queries);
  EXPECT_EQ(resolved(scored).queries, 2);
  EXPECT_EQ(resolved(scored).min_items, 4);
  s.task.min_items = 0;
  EXPECT_EQ(resolved(scored_task_of(s)).queries, 4);
}

TEST_F(Train, TheTaskOfARunStays) {
  TrainSettings s = settings("a");
  make_recall(s);
  train(s, stop_after(4));
  s.resume = true;
  TrainSettings t = s;
  t.task.items = 2;
  EXPECT_NE(error_of([&] { train(t); }, Error::Kind::usage).find("--items"), std::string::npos);
  t = s, t.task.min_length = 0;
  EXPECT_NE(error_of([&] { train(t); }, Error::Kind::usage).find("--min-length"), std::string::npos);
  t = s, t.task = {}, t.task.name = "copy", t.task.vocab = 32;
  EXPECT_NE(error_of([&] { train(t); }, Error::Kind::usage).find("--task"), std::string::npos);
  t = settings("a"), t.resume = true;
  EXPECT_NE(error_of([&] { train(t); }, Error::Kind::usage).find("--task"), std::string::npos);
  t = s, t.val_examples = 3;
  EXPECT_EQ(train(t).step, 12);
}

TEST_F(Train, AnotherTrainingInTheSameFolderIsAnError) {
  TrainSettings s = settings("a");
  fs::create_directories(s.out);
  const DirectoryLock lock(s.out);
  EXPECT_NE(error_of([&] { train(s); }, Error::Kind::failure).find("another training"), std::string::npos);
}

TEST_F(Train, BadTextIsOneClearError) {
  TrainSettings s = settings("a");
  s.seq_len = s.batch_tokens = 100000;
  EXPECT_NE(error_of([&] { train(s); }, Error::Kind::failure).find("--seq-len"), std::string::npos);
  s = settings("a");
  s.data = {(folder_ / "nothing").string()};
  error_of([&] { train(s); }, Error::Kind::failure);
  EXPECT_FALSE(fs::exists(s.out));
}

TEST_F(Train, ResumeWithoutACheckpointBegins) {
  TrainSettings s = settings("a");
  s.resume = true;
  train(s);
  TrainSettings t = settings("b");
  train(t);
  EXPECT_TRUE(weights("a", 12) == weights("b", 12));
}

TEST_F(Train, ModelsThatCannotFitAreRefused) {
  TrainSettings s = settings("a");
  s.hidden_size = 1 << 20;
  s.mlp_width = 1 << 20;
  EXPECT_NE(error_of([&] { train(s); }, Error::Kind::usage).find("memory"), std::string::npos);
}

// -log2 of the probability of a token.
double bits_of(const std::vector<float>& logits, std::int32_t token) {
  double largest = -1e30, sum = 0;
  for (const float x : logits) largest = std::max<double>(largest, x);
  for (const float x : logits) sum += std::exp(x - largest);
  return -(logits[static_cast<std::size_t>(token)] - largest - std::log(sum)) / std::log(2.0);
}

TEST_F(Train, EvaluationScoresEveryByteOnce) {
  TrainSettings s = settings("a");
  train(s);
  const auto model = load_model<float>(s.out);
  const std::vector<std::string> documents = {file(folder_ / "text.txt").substr(0, 300), "short", "x"};
  const Text text(documents);
  const Evaluation whole = evaluate(*model, text);
  EXPECT_EQ(whole.bytes, 306);
  EXPECT_EQ(whole.sequences, 3);
  std::int64_t bytes = 0;
  double bits = 0;
  for (const EvaluationBin& bin : whole.bins) bytes += bin.bytes, bits += bin.bits;
  EXPECT_EQ(bytes, 306);
  EXPECT_NEAR(bits, whole.bits, 1e-9);
  EXPECT_EQ(whole.bins[0].bytes, 3);  // position 0 of each document
  EXPECT_EQ(whole.bins[1].bytes, 2);
  EXPECT_EQ(whole.bins[2].first, 2);
  EXPECT_EQ(whole.bins[2].last, 3);
  EXPECT_NEAR(whole.perplexity(), std::exp2(whole.bits_per_byte()), 1e-12);
  // The definition: read byte by byte.
  double expected = 0;
  for (const std::string& document : documents) {
    nn::DecodeState state = model->new_state();
    std::vector<float> logits(256);
    std::int32_t token = kSeparator;
    for (const char c : document) {
      model->read(state, std::span(&token, 1), logits);
      token = static_cast<unsigned char>(c);
      expected += bits_of(logits, token);
    }
  }
  EXPECT_NEAR(whole.bits, expected, 1e-4 * expected);
  // A document longer than a pass is read from state to state.
  const Evaluation parts = evaluate(*model, text, {.seq_len = 0, .batch_tokens = 50, .progress = {}});
  EXPECT_EQ(parts.bytes, 306);
  EXPECT_NEAR(parts.bits, whole.bits, 1e-5 * whole.bits);
  ASSERT_EQ(parts.bins.size(), whole.bins.size());
  for (std::size_t j = 0; j < parts.bins.size(); ++j) EXPECT_EQ(parts.bins[j].bytes, whole.bins[j].bytes);
  // In pieces: fewer bytes of context, as many bytes scored.
  const Evaluation pieces = evaluate(*model, text, {.seq_len = 16, .batch_tokens = 64, .progress = {}});
  EXPECT_EQ(pieces.bytes, 306);
  EXPECT_EQ(pieces.bins.back().last, 15);
  EXPECT_THROW(evaluate(*model, Text()), Error);
  // Finer bins are parts of the others.
  const Evaluation fine =
      evaluate(*model, text, {.seq_len = 0, .batch_tokens = 50, .bins_per_doubling = 3, .progress = {}});
  EXPECT_GT(fine.bins.size(), parts.bins.size());
  std::size_t inside = 0;
  for (const EvaluationBin& bin : parts.bins) {
    EvaluationBin sum{bin.first, bin.first - 1, 0, 0};
    for (; inside < fine.bins.size() && fine.bins[inside].last <= bin.last; ++inside) {
      EXPECT_EQ(fine.bins[inside].first, sum.last + 1);
      EXPECT_GE(fine.bins[inside].last, fine.bins[inside].first);
      sum.last = fine.bins[inside].last;
      sum.bytes += fine.bins[inside].bytes;
      sum.bits += fine.bins[inside].bits;
    }
    EXPECT_EQ(sum.bytes, bin.bytes) << bin.first;
    EXPECT_NEAR(sum.bits, bin.bits, 1e-9) << bin.first;
  }
  EXPECT_EQ(inside, fine.bins.size());
}

}  // namespace
TEST_F(Train, TheSameBytesStandAtEveryPositionWithAStride) {
  const TrainSettings s = settings("a");
  train(s);
  const auto model = load_model<float>(s.out);
  constexpr std::int64_t kLength = 12, kStride = 4, kPlaces = 3;
  // Two of them have too few bytes: 20 are needed for one block of four that can stand at three places.
  std::vector<std::string> documents;
  for (const std::size_t n : {45, 3, 20, 19}) {
    std::string& document = documents.emplace_back();
    for (std::size_t i = 0; i < n; ++i) document += static_cast<char>('a' + (i * i + n) % 17);
  }
  std::vector<double> bits(kLength);
  std::vector<std::int64_t> bytes(kLength);
  for (const std::string& document : documents) {
    const auto n = static_cast<std::int64_t>(document.size());
    for (std::int64_t b = 0; b < n; ++b) {
      // A block can stand last when a whole sequence ends with it, and first when one fits behind its beginning.
      const std::int64_t block = b / kStride * kStride;
      if (block + kStride < kLength || block + kLength > n) continue;
      for (std::int64_t place = 0; place < kPlaces; ++place) {
        const std::int64_t position = place * kStride + b - block;
        nn::DecodeState state = model->new_state();
        std::vector<float> logits(256);
        for (std::int64_t t = b - position - 1; t < b; ++t) {
          const std::int32_t token = t < 0 ? kSeparator : static_cast<unsigned char>(document[t]);
          model->read(state, std::span(&token, 1), logits);
        }
        bits[position] += bits_of(logits, static_cast<unsigned char>(document[b]));
        ++bytes[position];
      }
    }
  }
  EXPECT_EQ(bytes[0], 7 + 1);  // blocks 2 to 8 of the first, 2 of the third
  const Text text(documents);
  for (const std::int64_t batch : {7, 12, 100}) {  // parts of a sequence, one, several
    const Evaluation result = evaluate(
        *model, text,
        {.seq_len = kLength, .stride = kStride, .batch_tokens = batch, .bins_per_doubling = 8, .progress = {}});
    EXPECT_EQ(result.sequences, 9 + 3);
    EXPECT_EQ(result.documents, 2);
    EXPECT_EQ(result.places, kPlaces);
    ASSERT_EQ(result.bins.size(), bits.size());
    for (std::size_t p = 0; p < bits.size(); ++p) {
      EXPECT_EQ(result.bins[p].first, p);
      EXPECT_EQ(result.bins[p].bytes, bytes[p]) << p;
      EXPECT_NEAR(result.bins[p].bits, bits[p], 1e-4 * bits[p]) << p;
    }
  }
  std::int64_t last = 0, all = 0;
  evaluate(
      *model, text,
      {.seq_len = kLength, .stride = kStride, .batch_tokens = 24, .progress = [&](std::int64_t done, std::int64_t n) {
         EXPECT_GT(done, last);
         last = done, all = n;
       }});
  EXPECT_EQ(last, all);
  EXPECT_EQ(all, 8 * kLength);
  EXPECT_THROW(evaluate(*model, text, {.seq_len = 12, .stride = 5, .progress = {}}), Error);
  EXPECT_THROW(evaluate(*model, text, {.seq_len = 0, .stride = 5, .progress = {}}), Error);
  EXPECT_THROW(evaluate(*model, text, {.seq_len = 64, .stride = 16, .progress = {}}), Error);  // no such document
}

}  // namespace loglinear::app
