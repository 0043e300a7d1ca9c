#pragma once
// The list of training settings: flags, configuration files and trainer.json all read it.

#include <filesystem>
#include <limits>
#include <optional>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "app/train.hpp"
#include "nn/families.hpp"

namespace loglinear::app {

// What a setting may be. Names are long flags without the dashes.
struct SettingRange {
  double low = 0, high = 0;
};
inline constexpr double kNoLimit = std::numeric_limits<double>::max();
inline constexpr double kLargest = 1e12;  // of whole numbers

// Calls f(name, reference, range, group, help) for every setting of the task but its name and its length, which is
// seq-len.
template <class Settings, class F>
void for_each_task_flag(Settings& s, F&& f) {
  for_each_task_setting(s.task, [&](const std::string& name, auto& value, double low, double high, const char* help) {
    if (name != "length") f(name, value, SettingRange{low, high}, "Task", help);
  });
}

// Calls f(name, reference, range or {}, group, help) for every setting.
template <class Settings, class F>
void for_each_setting(Settings& s, F&& f) {
  const SettingRange none{}, positive{1, kLargest}, count{0, kLargest}, real{0, kNoLimit};
  f("data", s.data, none, "Data",
    "text files, folders, .jsonl files with a \"text\" field; of a task: what its examples are made from");
  f("data-bytes", s.data_bytes, count, "Data", "at most this much of --data is read, from its beginning; 0: all");
  f("val-data", s.val_data, none, "Data",
    "text for validation (of a task: its held-out examples) instead of a part of --data");
  f("val-fraction", s.val_fraction, SettingRange{0, 0.9}, "Data", "part of --data held out for validation");
  f("val-bytes", s.val_bytes, positive, "Data", "at most this much of the validation text is scored each time");
  f("packing", s.packing, none, "Data",
    "documents: sequences end with their document; blocks: contiguous blocks of all text");
  f("repeats", s.repeats, SettingRange{0, 0.9}, "Data",
    "part of the text trained on that is replaced by passages from before in the same sequence: it pays to remember");
  f("seq-len", s.seq_len, SettingRange{1, 1 << 30}, "Data", "longest sequence, in tokens (of text: bytes)");
  f("batch-tokens", s.batch_tokens, SettingRange{1, 1 << 30}, "Data", "tokens in a batch, at least --seq-len");

  static const std::string tasks =
      fmt::format("train on examples of this task, not on text: {}", fmt::join(task_names(), ", "));
  f("task", s.task.name, none, "Task", tasks.c_str());
  for_each_task_flag(s, f);
  f("val-examples", s.val_examples, SettingRange{0, kLargest}, "Task",
    "held-out examples that are scored in a validation; 0: none");

  f("from", s.from, none, "Model",
    "begin with the weights of this checkpoint or training folder; of this group only trained-levels and "
    "position-offsets can be given with it");
  static const std::string mixers = "what mixes tokens in a layer: " + nn::family_list();
  f("mixer", s.mixer, none, "Model", mixers.c_str());
  f("hidden-size", s.hidden_size, SettingRange{1, 1 << 20}, "Model", "width D of the model");
  f("layers", s.layers, SettingRange{1, 1 << 16}, "Model", "blocks");
  f("heads", s.heads, SettingRange{0, 1 << 16}, "Model",
    "heads H; 0: chosen for the mixer (mamba2, and gated_deltanet with --value-width: as many as make values 2 D "
    "wide)");
  f("groups", s.groups, SettingRange{0, 1 << 16}, "Model", "query/key groups G (mamba2, log_linear_mamba2); 0: 1");
  f("key-width", s.key_width, SettingRange{0, 1 << 16}, "Model", "key width K of a head; 0: chosen for the mixer");
  f("value-width", s.value_width, SettingRange{0, 1 << 16}, "Model", "value width V; 0: chosen for the mixer");
  f("kv-heads", s.kv_heads, SettingRange{0, 1 << 16}, "Model", "key/value heads of softmax attention; 0: --heads");
  f("conv-width", s.conv_width, SettingRange{1, 64}, "Model", "taps of the short convolution");
  f("mlp-width", s.mlp_width, SettingRange{0, 1 << 24}, "Model", "hidden width of the MLP; 0: about 8/3 D");
  f("levels", s.levels, SettingRange{1, 64}, "Model", "levels L of the log-linear mixers");
  f("level-policy", s.level_policy, none, "Model",
    "how levels are read, and those beyond the trained ones: share, stretch, routed or content (docs/algorithm.md, "
    "8.1)");
  f("match-width", s.match_width, SettingRange{-1, 1 << 16}, "Model",
    "content: width of the query and key that a layer has to match states by; 0: the mixer's own are used; -1: "
    "log_linear_mamba2 K, at least 32, log_linear_gated_deltanet 0");
  f("trained-levels", s.trained_levels, SettingRange{0, 64}, "Model",
    "levels that have scales of their own; 0: those of --seq-len, all with --position-offsets, those of the model "
    "with --from; further ones begin as its last");
  f("position-offsets", s.position_offsets, SettingRange{0, 1}, "Model",
    "part of the sequences that begin at a random position, so that every level is trained");
  f("window", s.window, SettingRange{0, kLargest}, "Model",
    "newest tokens that one sees; 0: 256 for sliding_window and local_strided, all for flash, standard, mosa");
  f("stride", s.stride, SettingRange{0, kLargest}, "Model", "local_strided: of the older tokens that one sees; 0: 64");
  f("dense-heads", s.dense_heads, SettingRange{0, 1 << 16}, "Model",
    "mosa: of --heads, those with softmax attention; 0: half");
  f("routed-heads", s.routed_heads, SettingRange{0, 1 << 16}, "Model",
    "mosa: heads that choose their tokens; 0: --sparsity for each of --heads that is not dense");
  f("sparsity", s.sparsity, SettingRange{0, 1 << 16}, "Model",
    "mosa: a routed head chooses one token of so many; 0: 4");
  f("norm-eps", s.norm_eps, SettingRange{0, 1}, "Model", "epsilon of the norms; 0: the mixer's");
  f("initializer-range", s.initializer_range, SettingRange{0, 10}, "Model",
    "standard deviation of the first weights; 0: the root of 1 / --hidden-size");
  f("rope-theta", s.rope_theta, SettingRange{1, kNoLimit}, "Model",
    "base of the rotary embedding of softmax attention");

  f("steps", s.steps, count, "Length", "optimizer steps (1000 when no length is given)");
  f("epochs", s.epochs, SettingRange{0, 100000}, "Length", "times over the text, instead of --steps");
  f("minutes", s.minutes, SettingRange{0, 1e7}, "Length",
    "time, instead of --steps; the schedule then follows the clock and a resumed run is not repeatable");

  f("lr", s.lr, SettingRange{0, 1e6}, "Optimizer", "peak learning rate");
  f("scales-lr", s.scales_lr, SettingRange{0, 1e6}, "Optimizer",
    "learning rate of what makes level scales, times that of the others; default: 1 with content, otherwise 0.1");
  f("min-lr", s.min_lr, SettingRange{0, 1e6}, "Optimizer", "learning rate at the end; default: a tenth of --lr");
  f("warmup", s.warmup, count, "Optimizer", "steps of linear warm-up");
  f("schedule", s.schedule, none, "Optimizer", "cosine, linear, wsd (warm-up, stable, decay) or constant");
  f("wsd-fraction", s.wsd_fraction, SettingRange{0, 1}, "Optimizer", "last part of the run that wsd decays over");
  f("beta1", s.beta1, SettingRange{0, 0.999999}, "Optimizer", "AdamW, decay of the first moment");
  f("beta2", s.beta2, SettingRange{0, 0.999999}, "Optimizer", "AdamW, decay of the second moment");
  f("eps", s.eps, SettingRange{1e-30, 1}, "Optimizer", "AdamW, added to the root of the second moment");
  f("weight-decay", s.weight_decay, SettingRange{0, 1e3}, "Optimizer", "AdamW; not on norms, biases and gates");
  f("clip", s.clip, real, "Optimizer", "largest gradient norm; 0: no clipping");
  f("accumulate", s.accumulate, SettingRange{1, 1 << 20}, "Optimizer", "batches a step");

  f("out", s.out, none, "Run", "folder for checkpoints and log.jsonl");
  f("resume", s.resume, none, "Run",
    "go on from the newest checkpoint in --out; settings not given are those it was saved with");
  f("val-every", s.val_every, count, "Run", "steps between validations, one at the end too; 0: only then");
  f("save-every", s.save_every, count, "Run", "steps between checkpoints, one at the end too; 0: only then");
  f("log-every", s.log_every, positive, "Run", "steps between lines on the console and in log.jsonl");
  f("seed", s.seed, SettingRange{0, 9e15}, "Run",
    "of the first weights and the order of the text, or the examples of a task");
  f("threads", s.threads, SettingRange{0, 4096}, "Run", "0: all cores; never changes the result");
  f("quiet", s.quiet, none, "Run", "print nothing but errors");
}

// The settings as {"lr": 0.002, ...}, those about one call (out, resume, quiet) left out, and with settings.from those
// of the model, which are not read.
nlohmann::json to_json(const TrainSettings& settings);

// Sets what `json` (an object; keys as long flags with - or _; "family", the old name of "mixer", too) gives, checking
// type and range; `source` names it in errors. A length (steps, epochs, minutes) replaces one set before. Throws Error
// of kind usage for an unknown key, a wrong type, a value out of range, or two lengths at once.
void apply_settings(TrainSettings& settings, const nlohmann::json& json, const std::string& source);

// The same for the settings that a checkpoint was saved with: what is newer than the checkpoint has the value that it
// had before it was a setting.
void apply_stored_settings(TrainSettings& settings, const nlohmann::json& json, const std::string& source);

// The settings of one call: the defaults; when resuming, over them those of the newest checkpoint in `out`; over them
// the configuration file (TOML or JSON; none when the path is empty); over them the flags.
TrainSettings resolve_settings(const nlohmann::json& flags, const std::filesystem::path& config);

// The settings that the model at `path` (a checkpoint or a training folder) was trained with; nothing when its folder
// does not say. Throws Error when there is no model, or what is said cannot be read.
std::optional<TrainSettings> training_settings(const std::filesystem::path& path);

// The settings of a training that begins with the weights of `from`, whose model is the one that they ask for.
TrainSettings going_on_from(TrainSettings settings, const std::string& from);

// A setting by which the two ask for different models; empty when they ask for the same.
std::string other_model(const TrainSettings& one, const TrainSettings& other);

// Checks what concerns several settings at once and fills in what is left to default (length, min-lr). Throws Error of
// kind usage.
void complete_settings(TrainSettings& settings);

}  // namespace loglinear::app
