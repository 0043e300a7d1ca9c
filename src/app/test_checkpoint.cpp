#include "app/checkpoint.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>

#include "io/file.hpp"
#include "io/safetensors.hpp"
#include "loglinear/error.hpp"
#include "nn/model.hpp"

namespace loglinear::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

nn::ModelConfig tiny(const std::string& family = "log_linear_mamba2") {
  nn::ModelConfig c;
  c.family = family;
  c.hidden_size = 16;
  c.num_layers = 2;
  c.num_heads = 2;
  c.key_width = c.value_width = 8;
  c.mlp_width = 24;
  c.num_levels = 5;
  return c;
}

class Checkpoint : public testing::Test {
 protected:
  Checkpoint() : folder_(fs::temp_directory_path() / ("loglinear_checkpoint_" + std::to_string(getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Checkpoint() override { fs::remove_all(folder_); }

  // A folder with a saved model.
  fs::path saved(const nn::ModelConfig& config, const std::string& name = "model") {
    nn::Model<float> model(config);
    model.initialise(7);
    fs::create_directories(folder_ / name);
    save_model(folder_ / name, model);
    return folder_ / name;
  }

  struct Stored {
    io::TensorInfo info;
    std::vector<std::byte> bytes;
  };
  // Rewrites the model's tensors.
  void edit(const fs::path& folder, const std::function<void(std::vector<Stored>&)>& change) {
    std::vector<Stored> tensors;
    {
      const auto file = io::SafetensorsFile::open(folder / "model.safetensors");
      for (const auto& info : file.tensors()) tensors.push_back({info, file.bytes(info.name)});
    }
    change(tensors);
    write(folder / "model.safetensors", tensors);
  }
  void write(const fs::path& path, const std::vector<Stored>& tensors) {
    std::vector<io::TensorView> views;
    for (const auto& t : tensors) views.push_back({t.info.name, t.info.element, t.info.shape, t.bytes});
    io::write_safetensors(path, views);
  }
  void edit_config(const fs::path& folder, const std::function<void(json&)>& change) {
    json object = json::parse(io::read_file(folder / "config.json"));
    change(object);
    std::ofstream(folder / "config.json") << object.dump();
  }

  // One line that holds all the words.
  void expect_error(const std::function<void()>& call, const std::vector<std::string>& words) {
    try {
      call();
      ADD_FAILURE() << "no error naming " << words.front();
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_EQ(text.find('\n'), std::string::npos);
      for (const std::string& word : words) EXPECT_NE(text.find(word), std::string::npos) << word << " in: " << text;
    }
  }

  fs::path folder_;
};

void expect_equal(nn::Model<float>& a, nn::Model<float>& b) {
  ASSERT_EQ(a.parameters().size(), b.parameters().size());
  for (std::size_t i = 0; i < a.parameters().size(); ++i) {
    const auto &p = a.parameters()[i], &q = b.parameters()[i];
    EXPECT_EQ(p.name, q.name);
    ASSERT_EQ(p.value.size(), q.value.size());
    EXPECT_EQ(std::memcmp(p.value.data(), q.value.data(), p.value.size_bytes()), 0) << p.name;
  }
}

TEST_F(Checkpoint, AModelComesBackBitForBit) {
  for (const std::string& family : nn::family_names()) {
    nn::ModelConfig config = tiny(family);
    const fs::path path = saved(config, family);
    nn::Model<float> model(config);
    model.initialise(7);
    const auto loaded = load_model<float>(path);
    EXPECT_EQ(loaded->config(), model.config());
    expect_equal(*loaded, model);
    const auto wide = load_model<double>(path);
    EXPECT_EQ(wide->parameters()[0].value[3], static_cast<double>(model.parameters()[0].value[3]));
  }
}

TEST_F(Checkpoint, ReadsOtherFloatTypesAndShards) {
  const fs::path path = saved(tiny());
  nn::Model<float> model(tiny());
  model.initialise(7);
  // Every parameter rounded to bfloat16, in two shards behind an index.
  std::vector<Stored> tensors;
  edit(path, [&](std::vector<Stored>& all) { tensors = all; });
  json index;
  std::vector<Stored> shards[2];
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    Stored& t = tensors[i];
    std::vector<std::byte> halves;
    for (std::size_t at = 0; at < t.bytes.size(); at += 4) {
      float value;
      std::memcpy(&value, &t.bytes[at], 4);
      const bfloat16 rounded(value);
      const auto* bytes = reinterpret_cast<const std::byte*>(&rounded.bits);
      halves.insert(halves.end(), bytes, bytes + 2);
    }
    t.bytes = halves;
    t.info.element = io::Element::BF16;
    const std::size_t shard = i % 2;
    shards[shard].push_back(t);
    index["weight_map"][t.info.name] = shard == 0 ? "model-1.safetensors" : "model-2.safetensors";
  }
  write(path / "model-1.safetensors", shards[0]);
  write(path / "model-2.safetensors", shards[1]);
  std::ofstream(path / "model.safetensors.index.json") << index.dump();
  fs::remove(path / "model.safetensors");
  const auto loaded = load_model<float>(path);
  for (std::size_t i = 0; i < model.parameters().size(); ++i)
    for (std::size_t j = 0; j < model.parameters()[i].value.size(); ++j)
      EXPECT_EQ(loaded->parameters()[i].value[j], static_cast<float>(bfloat16(model.parameters()[i].value[j])));
}

TEST_F(Checkpoint, TensorsThatDoNotFitAreNamed) {
  const auto broken = [&](const std::function<void(std::vector<Stored>&)>& change,
                          const std::vector<std::string>& words) {
    const fs::path path = saved(tiny());
    edit(path, change);
    expect_error([&] { load_model<float>(path); }, words);
  };
  broken([](auto& all) { all[1].info.name = "something.else"; }, {"missing", "unknown something.else", "config.json"});
  broken([](auto& all) { all.pop_back(); }, {"missing", "config.json"});
  broken(
      [](auto& all) {
        all.push_back(all[0]);
        all.back().info.name = "backbone.extra";
      },
      {"backbone.extra", "no such parameter"});
  broken(
      [](auto& all) {
        for (auto& t : all)
          if (t.info.name == "lm_head.weight") t.info.shape = {16, 256};
      },
      {"lm_head.weight", "(16, 256)", "(256, 16)", "config.json"});
  broken(
      [](auto& all) {
        for (auto& t : all)
          if (t.info.name == "lm_head.weight") t.info.element = io::Element::I32;
      },
      {"lm_head.weight", "I32"});
  broken(
      [](auto& all) {
        const float nan = std::numeric_limits<float>::quiet_NaN();
        std::memcpy(all[2].bytes.data(), &nan, 4);
      },
      {"NaN"});
}

TEST_F(Checkpoint, AConfigThatContradictsTheTensorsIsNamedWithThem) {
  const auto broken = [&](const std::function<void(json&)>& change, const std::vector<std::string>& words) {
    const fs::path path = saved(tiny());
    edit_config(path, change);
    expect_error([&] { load_model<float>(path); }, words);
  };
  broken([](json& c) { c["vocab_size"] = 512; }, {"config.json", "vocab_size 512", "(256, 16)"});
  broken([](json& c) { c["num_hidden_layers"] = 3; }, {"config.json", "3 layers", "layers.2"});
  broken([](json& c) { c["num_hidden_layers"] = 1; }, {"config.json", "1 layers", "layers.1"});
  broken([](json& c) { c["num_levels"] = 6; }, {"config.json", "shape"});
  broken([](json& c) { c["intermediate_size"] = 16777216; }, {"config.json", "16777216"});
  broken([](json& c) { c.erase("hidden_size"); }, {"config.json", "hidden_size"});
  broken([](json& c) { c["hidden_size"] = "wide"; }, {"config.json", "hidden_size"});
  broken([](json& c) { c["model_type"] = "llama"; }, {"config.json", "llama"});
  broken([](json& c) { c = json::array(); }, {"config.json"});
}

TEST_F(Checkpoint, MissingPartsAreNamed) {
  expect_error([&] { load_model<float>(folder_ / "nowhere"); }, {"nowhere"});
  expect_error([&] { load_model<float>(folder_); }, {"config.json"});
  const fs::path path = saved(tiny());
  expect_error([&] { load_model<float>(path / "config.json"); }, {"file"});
  fs::remove(path / "model.safetensors");
  expect_error([&] { load_model<float>(path); }, {"model.safetensors"});
  const fs::path other = saved(tiny(), "other");
  std::ofstream(other / "config.json") << "{";
  expect_error([&] { load_model<float>(other); }, {"config.json"});
}

TEST_F(Checkpoint, ABaseModelLoadsAsTheLogLinearOneWithUnitScales) {
  for (const std::string family : {"mamba2", "gated_deltanet"}) {
    const fs::path path = saved(tiny(family), family);
    const auto base = load_model<float>(path);
    const auto model = load_model<float>(path, {.as_log_linear = true, .warn = {}});
    EXPECT_EQ(model->config().family, "log_linear_" + family);
    EXPECT_TRUE(model->config().unit_scales);
    std::vector<std::int32_t> tokens(150), targets(150);
    for (int i = 0; i < 150; ++i) tokens[i] = (i * 37) % 256, targets[i] = ((i + 1) * 37) % 256;
    const std::vector<std::int64_t> cu = {0, 150};
    const double a = base->loss(tokens, targets, cu, false), b = model->loss(tokens, targets, cu, false);
    EXPECT_NEAR(a, b, 1e-4 * a);
  }
  expect_error([&] { load_model<float>(saved(tiny()), {.as_log_linear = true, .warn = {}}); }, {"log_linear_mamba2"});
}

TEST_F(Checkpoint, LevelsMayBeReadInAnotherWay) {
  const fs::path path = saved(tiny());  // 5 levels, all trained
  const auto model = load_model<float>(path),
             other = load_model<float>(path, {.level_policy = "stretch", .trained_levels = 3, .warn = {}});
  EXPECT_EQ(other->config().level_policy, LevelPolicy::stretch);
  std::vector<std::string> warnings;  // of a policy that changes how trained levels are read
  for (const char* policy : {"share", "stretch", "content"})
    load_model<float>(path,
                      {.level_policy = policy, .warn = [&](const std::string& text) { warnings.push_back(text); }});
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("with level policy share: with content"), std::string::npos) << warnings[0];
  EXPECT_EQ(other->config().trained_levels, 3);
  for (std::size_t i = 0; i < model->parameters().size(); ++i)
    EXPECT_TRUE(std::equal(model->parameters()[i].value.begin(), model->parameters()[i].value.end(),
                           other->parameters()[i].value.begin()));
  // What a checkpoint says is kept when nothing else is asked for.
  const fs::path again = folder_ / "again";
  fs::create_directories(again);
  save_model(again, *other);
  EXPECT_EQ(load_model<float>(again)->config(), other->config());
  EXPECT_EQ(load_model<float>(again, {.trained_levels = 5, .warn = {}})->config().level_policy, LevelPolicy::stretch);
  // Queries and keys to match states by stay where another policy leaves them unused.
  nn::ModelConfig matched = tiny();
  matched.level_policy = LevelPolicy::content;
  matched.match_width = 3;
  const fs::path with = saved(matched, "matched");
  const auto content = load_model<float>(with),
             routed = load_model<float>(with, {.level_policy = "routed", .warn = {}});
  EXPECT_EQ(content->config().match_width, 3);
  EXPECT_EQ(routed->config().match_width, 3);
  EXPECT_EQ(content->parameters().size(),
            model->parameters().size() + 2 * static_cast<std::size_t>(matched.num_layers));
  expect_error([&] { load_model<float>(path, {.level_policy = "best", .warn = {}}); }, {"level_policy", "best"});
  expect_error([&] { load_model<float>(path, {.trained_levels = 6, .warn = {}}); }, {"trained_levels", "6"});
  expect_error([&] { load_model<float>(saved(tiny("mamba2"), "base"), {.trained_levels = 2, .warn = {}}); },
               {"mamba2", "level"});
}

class TrainingFolder : public Checkpoint {
 protected:
  TrainingFolder() : model_(tiny()) {
    model_.initialise(1);
    for (const auto& p : model_.parameters()) {
      moments_.first.emplace_back(p.value.size(), 0.25f);
      moments_.second.emplace_back(p.value.size(), 0.5f);
    }
  }
  void save(int step) {
    model_.parameters()[0].value[0] = static_cast<float>(step);
    save_checkpoint(folder_, model_, moments_, {{"step", step}, {"settings", {{"lr", step}}}});
  }
  nn::Model<float> model_;
  Moments moments_;
};

TEST_F(TrainingFolder, KeepsTheLastTwo) {
  for (const int step : {5, 10, 15}) save(step);
  const auto all = list_checkpoints(folder_);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].filename(), "step-0000015");
  EXPECT_EQ(all[1].filename(), "step-0000010");
  EXPECT_EQ(stored_settings(folder_).at("lr"), 15);
  for (const char* part : {"config.json", "model.safetensors", "optimizer.safetensors", "trainer.json"})
    EXPECT_TRUE(fs::exists(all[0] / part)) << part;

  nn::Model<float> other(tiny());
  Moments moments;
  const auto newest = newest_checkpoint(folder_, {});
  ASSERT_TRUE(newest);
  EXPECT_EQ(newest->trainer.at("step"), 15);
  load_checkpoint(*newest, other, moments);
  expect_equal(other, model_);
  EXPECT_EQ(moments.first, moments_.first);
  EXPECT_EQ(moments.second, moments_.second);
  // A training folder and one of its checkpoints both stand for a model.
  EXPECT_EQ(load_model<float>(folder_)->parameters()[0].value[0], 15.0f);
  EXPECT_EQ(load_model<float>(all[1])->parameters()[0].value[0], 10.0f);
}

TEST_F(TrainingFolder, ADamagedNewestFallsBackToTheOneBefore) {
  const auto damages = std::vector<std::function<void(const fs::path&)>>{
      [](const fs::path& p) { fs::remove(p / "optimizer.safetensors"); },
      [](const fs::path& p) { fs::remove(p / "trainer.json"); },
      [](const fs::path& p) { fs::resize_file(p / "model.safetensors", fs::file_size(p / "model.safetensors") - 1); },
      [](const fs::path& p) { std::ofstream(p / "trainer.json") << "{\"step\": 10"; },
      [](const fs::path& p) { std::ofstream(p / "trainer.json") << "{\"step\": 10}"; },
      [](const fs::path& p) {  // one bit
        std::fstream file(p / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(-1, std::ios::end);
        const char byte = static_cast<char>(file.get() ^ 1);
        file.seekp(-1, std::ios::end);
        file.put(byte);
      }};
  for (std::size_t i = 0; i < damages.size(); ++i) {
    save(5);
    save(10);
    damages[i](folder_ / "step-0000010");
    std::vector<std::string> warnings;
    const auto newest = newest_checkpoint(folder_, [&](const std::string& text) { warnings.push_back(text); });
    ASSERT_TRUE(newest);
    EXPECT_EQ(newest->trainer.at("step"), 5) << i;
    ASSERT_EQ(warnings.size(), 1u) << i;
    EXPECT_NE(warnings[0].find("step-0000010"), std::string::npos);
    damages[i](folder_ / "step-0000005");
    expect_error([&] { newest_checkpoint(folder_, {}); }, {"no checkpoint is whole"});
    fs::remove_all(folder_ / "step-0000005");
    fs::remove_all(folder_ / "step-0000010");
  }
  EXPECT_FALSE(newest_checkpoint(folder_, {}));
}

TEST_F(TrainingFolder, ADamagedCheckpointNamedDirectlyIsAnError) {
  save(5);
  const fs::path path = folder_ / "step-0000005";
  fs::resize_file(path / "model.safetensors", fs::file_size(path / "model.safetensors") - 1);
  expect_error([&] { load_model<float>(path); }, {"model.safetensors", "damaged"});
  fs::remove(path / "model.safetensors");
  expect_error([&] { load_model<float>(path); }, {"model.safetensors", "missing"});
}

TEST_F(TrainingFolder, ParametersThatAreNotFiniteAreNotSaved) {
  save(5);
  model_.parameters()[1].value[0] = std::numeric_limits<float>::infinity();
  expect_error([&] { save_checkpoint(folder_, model_, moments_, {{"step", 6}}); }, {model_.parameters()[1].name});
  EXPECT_EQ(list_checkpoints(folder_).size(), 1u);
}

TEST_F(TrainingFolder, OneTrainingAtATime) {
  {
    const DirectoryLock lock(folder_);
    expect_error([&] { DirectoryLock second(folder_); }, {"another training"});
  }
  EXPECT_NO_THROW(DirectoryLock(folder_.string()));
}

TEST_F(TrainingFolder, OtherNamesAreNoCheckpoints) {
  for (const char* name : {"step-", "step-12x", "step-0000010.tmp-1-2", "steps-1", "step--5"})
    fs::create_directories(folder_ / name);
  EXPECT_TRUE(list_checkpoints(folder_).empty());
  EXPECT_FALSE(newest_checkpoint(folder_, {}));
  EXPECT_TRUE(stored_settings(folder_).is_null());
}

}  // namespace
}  // namespace loglinear::app
