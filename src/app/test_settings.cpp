#include "app/settings.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

#include "loglinear/error.hpp"

namespace loglinear::app {
namespace {

using nlohmann::json;

class Settings : public testing::Test {
 protected:
  Settings() : folder_(std::filesystem::temp_directory_path() / ("loglinear_settings_" + std::to_string(getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~Settings() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path file(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }
  std::filesystem::path folder_;
};

Error::Kind kind_of(const std::function<void()>& call, const std::string& names) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(names), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.kind();
  }
  ADD_FAILURE() << "no error naming " << names;
  return Error::Kind::failure;
}

TEST_F(Settings, FlagsWinOverTheFileAndTheFileOverDefaults) {
  const auto toml =
      file("run.toml", "lr = 0.5\nwarmup = 7\nbatch_tokens = 8192\nseq-len = 99\ndata = [\"a\", \"b\"]\n");
  const auto js =
      file("run.json", R"({"lr": 0.5, "warmup": 7, "batch_tokens": 8192, "seq-len": 99, "data": ["a", "b"]})");
  for (const auto& path : {toml, js}) {
    const TrainSettings s = resolve_settings({{"lr", 0.25}}, path);
    EXPECT_EQ(s.lr, 0.25);
    EXPECT_EQ(s.warmup, 7);
    EXPECT_EQ(s.batch_tokens, 8192);
    EXPECT_EQ(s.seq_len, 99);
    EXPECT_EQ(s.data, (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(s.layers, TrainSettings{}.layers);
  }
}

TEST_F(Settings, ALengthReplacesOneFromALowerLayer) {
  const TrainSettings s = resolve_settings({{"minutes", 2.0}}, file("a.toml", "steps = 10\n"));
  EXPECT_EQ(s.steps, 0);
  EXPECT_EQ(s.minutes, 2.0);
  EXPECT_EQ(kind_of([&] { resolve_settings({{"minutes", 2.0}, {"steps", 3}}, {}); }, "steps"), Error::Kind::usage);
}

TEST_F(Settings, UnknownKeysWrongTypesAndRangesAreUsageErrors) {
  const auto usage = [&](const json& flags, const std::string& names) {
    EXPECT_EQ(kind_of([&] { resolve_settings(flags, {}); }, names), Error::Kind::usage) << flags;
  };
  usage({{"learning-rate", 1}}, "learning-rate");
  usage({{"lr", "big"}}, "--lr");
  usage({{"lr", -1}}, "--lr");
  usage({{"lr", std::numeric_limits<double>::quiet_NaN()}}, "--lr");
  usage({{"seq-len", 0}}, "--seq-len");
  usage({{"seq-len", 1.5}}, "--seq-len");
  usage({{"batch-tokens", -5}}, "--batch-tokens");
  usage({{"val-fraction", 1.0}}, "--val-fraction");
  usage({{"beta2", 1.0}}, "--beta2");
  usage({{"mixer", "rnn"}}, "--mixer");
  usage({{"family", "rnn"}}, "--mixer");
  usage({{"family", "flash"}, {"mixer", "flash"}}, "mixer is given twice");
  usage({{"sparsity", 1 << 20}}, "--sparsity");
  usage({{"window", -1}}, "--window");
  usage({{"schedule", "step"}}, "--schedule");
  usage({{"packing", "none"}}, "--packing");
  usage({{"resume", 1}}, "--resume");
  usage({{"seq-len", 5}, {"seq_len", 6}}, "seq-len");
  EXPECT_EQ(kind_of([&] { resolve_settings(json::object(), file("x.toml", "[model]\nlayers = 2\n")); }, "model"),
            Error::Kind::usage);
  EXPECT_EQ(kind_of([&] { resolve_settings(json::object(), file("y.toml", "lrr = 2\n")); }, "lrr"), Error::Kind::usage);
}

TEST_F(Settings, EverySettingSurvivesJson) {
  TrainSettings s;
  s.lr = 0.1234567890123;
  s.data = {"a b", "c"};
  s.schedule = "wsd";
  s.epochs = 3;
  TrainSettings t;
  apply_settings(t, to_json(s), "test");
  EXPECT_EQ(to_json(s), to_json(t));
  EXPECT_EQ(t.lr, s.lr);
  EXPECT_FALSE(to_json(s).contains("resume"));
}

TEST_F(Settings, TheDefaultsAreInRange) {
  TrainSettings s, t;
  EXPECT_NO_THROW(apply_settings(t, to_json(s), "test"));
}

TEST_F(Settings, CompleteChecksWhatConcernsSeveral) {
  TrainSettings s;
  s.out = "x";
  s.data = {"y"};
  TrainSettings good = s;
  complete_settings(good);
  EXPECT_EQ(good.steps, 1000);
  EXPECT_DOUBLE_EQ(good.min_lr, 0.1 * good.lr);
  TrainSettings bad = s;
  bad.out.clear();
  EXPECT_EQ(kind_of([&] { complete_settings(bad); }, "--out"), Error::Kind::usage);
  bad = s, bad.data.clear();
  EXPECT_EQ(kind_of([&] { complete_settings(bad); }, "--data"), Error::Kind::usage);
  bad = s, bad.batch_tokens = bad.seq_len - 1;
  EXPECT_EQ(kind_of([&] { complete_settings(bad); }, "--batch-tokens"), Error::Kind::usage);
  bad = s, bad.min_lr = 1;
  EXPECT_EQ(kind_of([&] { complete_settings(bad); }, "--min-lr"), Error::Kind::usage);
}

TEST_F(Settings, TheTaskIsReadLikeEveryOther) {
  const TrainSettings s =
      resolve_settings({{"items", 8}}, file("task.toml", "task = \"mqar\"\nvocab = 64\nmin_items = 2\nalpha = 0.5\n"));
  EXPECT_EQ(s.task.name, "mqar");
  EXPECT_EQ(s.task.vocab, 64);
  EXPECT_EQ(s.task.items, 8);
  EXPECT_EQ(s.task.min_items, 2);
  EXPECT_EQ(s.task.alpha, 0.5);
  EXPECT_EQ(model_config(s).vocab_size, 64);
  EXPECT_EQ(task_of(s).length, s.seq_len);
  TrainSettings t;
  apply_settings(t, to_json(s), "test");
  EXPECT_EQ(t.task, s.task);
  EXPECT_EQ(kind_of([&] { resolve_settings({{"task", "mqa"}}, {}); }, "mqar"), Error::Kind::usage);
  EXPECT_EQ(kind_of([&] { resolve_settings({{"task", 1}}, {}); }, "--task"), Error::Kind::usage);
  EXPECT_EQ(kind_of([&] { resolve_settings({{"items", -1}}, {}); }, "--items"), Error::Kind::usage);
}

TEST_F(Settings, WhatOnlyTextOrOnlyATaskHasIsRefused) {
  const auto refused = [](const nlohmann::json& flags, const std::string& names) {
    TrainSettings s = resolve_settings(flags, {});
    EXPECT_EQ(kind_of([&] { complete_settings(s); }, names), Error::Kind::usage) << flags;
  };
  const json task{{"out", "x"}, {"task", "passkey"}, {"seq-len", 256}}, text{{"out", "x"}, {"data", "y"}};
  const auto with = [](json object, const std::string& key, const json& value) { return object[key] = value, object; };
  TrainSettings good = resolve_settings(task, {});
  EXPECT_NO_THROW(complete_settings(good));
  EXPECT_EQ(good.steps, 1000);
  good = resolve_settings(with(task, "data", "haystack"), {});
  EXPECT_NO_THROW(complete_settings(good));
  refused(with(task, "epochs", 2), "--epochs");
  refused(with(task, "val-data", "z"), "--val-data");
  refused(with(task, "val-fraction", 0.1), "--val-fraction");
  refused(with(task, "val-bytes", 100), "--val-bytes");
  refused(with(task, "packing", "blocks"), "--packing");
  refused(with(task, "repeats", 0.1), "--repeats");
  refused(with(task, "seq-len", 20), "length");
  refused(with(task, "alpha", 0.5), "alpha");
  refused(with(with(task, "task", "mqar"), "data", "y"), "--data");
  refused(with(text, "items", 4), "--items");
  refused(with(text, "depth", 0.5), "--depth");
  refused(with(text, "val-examples", 4), "--val-examples");
}

// family is what mixer was called, and transformer what flash was.
TEST_F(Settings, OldNamesAreRead) {
  EXPECT_EQ(resolve_settings({{"family", "transformer"}}, {}).mixer, "flash");
  EXPECT_EQ(resolve_settings({{"mixer", "transformer"}}, {}).mixer, "flash");
  EXPECT_EQ(resolve_settings(json::object(), file("old.toml", "family = \"mamba2\"\n")).mixer, "mamba2");
}

TEST_F(Settings, WhatAMixerDoesNotHaveIsRefused) {
  const auto refused = [](const char* mixer, std::int64_t TrainSettings::*field, const char* name) {
    TrainSettings s;
    s.mixer = mixer;
    s.*field = 2;
    EXPECT_EQ(kind_of([&] { model_config(s); }, std::string(name) + ": " + mixer), Error::Kind::usage);
  };
  refused("mamba2", &TrainSettings::window, "--window");
  refused("linear", &TrainSettings::window, "--window");
  refused("flash", &TrainSettings::stride, "--stride");
  refused("sliding_window", &TrainSettings::sparsity, "--sparsity");
  refused("gated_deltanet", &TrainSettings::routed_heads, "--routed-heads");
  refused("standard", &TrainSettings::dense_heads, "--dense-heads");
  TrainSettings s;
  s.window = 32;
  s.mixer = "sliding_window";
  EXPECT_EQ(model_config(s).window, 32);
  s.mixer = "local_strided";
  s.stride = 16;
  EXPECT_EQ(model_config(s).stride, 16);
  s.mixer = "mosa";
  s.stride = 0;
  s.sparsity = 8;
  s.heads = 4;
  EXPECT_EQ(model_config(s).routed_heads, 16);
}

TEST_F(Settings, EveryFamilyHasDefaultSizes) {
  for (const std::string& family : nn::family_names())
    for (const std::int64_t width : {64, 96, 256, 1536}) {
      TrainSettings s;
      s.mixer = family;
      s.hidden_size = width;
      nn::ModelConfig config;
      EXPECT_NO_THROW(config = model_config(s)) << family << width;
      EXPECT_EQ(config.hidden_size, width);
    }
  TrainSettings paper;
  paper.mixer = "log_linear_gated_deltanet";
  paper.hidden_size = 1536;
  paper.heads = 6;
  EXPECT_EQ(model_config(paper).key_width, 192);
  EXPECT_EQ(model_config(paper).value_width, 384);
  TrainSettings narrow;  // as many heads as make the values twice as wide as the model, as in Mamba-2
  narrow.hidden_size = 64;
  narrow.key_width = 8;
  narrow.value_width = 16;
  for (const char* mixer : {"gated_deltanet", "log_linear_mamba2"}) {
    narrow.mixer = mixer;
    EXPECT_EQ(model_config(narrow).num_heads, 8) << mixer;
  }
  TrainSettings bad;
  bad.heads = 3;
  bad.groups = 2;
  EXPECT_EQ(kind_of([&] { model_config(bad); }, "groups"), Error::Kind::usage);
}

}  // namespace
}  // namespace loglinear::app
