#pragma once
// Checkpoints. A training folder DIR holds DIR/step-0000100/{config.json, model.safetensors, optimizer.safetensors,
// trainer.json}; the first two are all that a model needs, and are what Hugging Face folders hold.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "app/optimize.hpp"
#include "nn/model.hpp"

namespace loglinear::app {

using Warn = std::function<void(const std::string&)>;  // one line, without an end of line

// Reading models

struct LoadOptions {
  bool as_log_linear = false;  // read a base model (mamba2, gated_deltanet) as the log-linear one with unit scales
  // Of a log-linear model, in place of what config.json says: a name of nn::level_policy_names(), empty to keep it; and
  // how many levels have scales of their own, 0 to keep it.
  std::string level_policy = "";
  std::int64_t trained_levels = 0;
  Warn warn = {};  // told when a damaged newest checkpoint of a training folder is passed over, and of a
                   // level_policy that changes what was trained
};

// The configuration of a model, resolved, as the options have it read; `name` says whose it is in errors and warnings.
// Throws Error of kind usage when the model has no such option, and as nn::resolved() does.
nn::ModelConfig read_as(nn::ModelConfig config, const LoadOptions& options, const std::string& name);

// The folder with the model that `path` stands for: path itself when it has a config.json, otherwise the newest
// complete checkpoint below the training folder `path`. Throws Error when there is none, naming what is missing.
std::filesystem::path find_checkpoint(const std::filesystem::path& path, const Warn& warn = {});

// The resolved config.json of find_checkpoint(path), as load_model() reads it. Throws Error when it is missing, damaged
// or contradicts itself.
nn::ModelConfig load_config(const std::filesystem::path& path, const LoadOptions& options = {});

// Reads config.json and the parameters of find_checkpoint(path): model.safetensors, or the shards that
// model.safetensors.index.json names. Any float type is converted to T. Throws Error, one line naming files and
// tensors, when a file is missing or damaged, when the config and the tensors contradict each other, and for a missing,
// surplus, doubled, wrongly shaped, non-float or non-finite tensor.
template <class T>
std::unique_ptr<nn::Model<T>> load_model(const std::filesystem::path& path, const LoadOptions& options = {});

extern template std::unique_ptr<nn::Model<float>> load_model<float>(const std::filesystem::path&, const LoadOptions&);
extern template std::unique_ptr<nn::Model<double>> load_model<double>(const std::filesystem::path&, const LoadOptions&);

// Writes config.json and model.safetensors (float32) into the existing folder.
void save_model(const std::filesystem::path& folder, nn::Model<float>& model);

// Training checkpoints

// Writes DIR/step-N for N = trainer["step"], whole or not at all: beside, flushed, renamed. Adds the sizes and
// checksums of the files to trainer.json, then removes all but the newest `keep` checkpoints.
void save_checkpoint(const std::filesystem::path& directory, nn::Model<float>& model, const Moments& moments,
                     nlohmann::json trainer, int keep = 2);

// Complete-looking checkpoint folders below a training folder, newest first.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& directory);

// trainer.json of the newest checkpoint whose files all have the sizes and checksums it was saved with. A damaged one
// is passed over with a call of warn. nullopt when the folder has no checkpoints at all; throws Error when every one is
// damaged.
struct TrainingCheckpoint {
  std::filesystem::path folder;
  nlohmann::json trainer;
};
std::optional<TrainingCheckpoint> newest_checkpoint(const std::filesystem::path& directory, const Warn& warn);

// The settings stored in the newest checkpoint whose trainer.json can be read; null when there is none.
nlohmann::json stored_settings(const std::filesystem::path& directory);

// Reads the parameters and moments of a training checkpoint into a model of its configuration.
void load_checkpoint(const TrainingCheckpoint& checkpoint, nn::Model<float>& model, Moments& moments);

// Holds DIR/lock while it lives, so that one training at a time writes to DIR; released also when the process dies.
// Throws Error when another process holds it.
class DirectoryLock {
 public:
  explicit DirectoryLock(const std::filesystem::path& directory);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace loglinear::app
