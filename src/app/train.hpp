#pragma once
// Training a language model, on text or on the examples of a task.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "app/task.hpp"
#include "loglinear/error.hpp"
#include "nn/model.hpp"

namespace loglinear::app {

// Everything that a run depends on. The defaults are those of the program; settings.hpp lists the names, ranges and
// help lines. 0 in a size of the model: chosen for the mixer.
struct TrainSettings {
  std::vector<std::string> data;
  std::vector<std::string> val_data;
  std::string out;

  // A name: examples of this task instead of text, at most seq_len tokens long (task.length is not used). data is then
  // the text that they are made from, where the task takes one.
  TaskSettings task;

  // A checkpoint or training folder whose weights the training begins with; its config.json then decides the model, and
  // of the sizes below only trained_levels and position_offsets are read.
  std::string from;
  std::string mixer = "log_linear_mamba2";
  std::int64_t hidden_size = 256, layers = 4, heads = 0, groups = 0, key_width = 0, value_width = 0, kv_heads = 0;
  std::int64_t conv_width = 4, mlp_width = 0, levels = 15, trained_levels = 0;
  std::string level_policy = "content";
  std::int64_t match_width = -1;
  double position_offsets = 0;
  std::int64_t window = 0, stride = 0, dense_heads = 0, routed_heads = 0, sparsity = 0;
  double norm_eps = 0, initializer_range = 0, rope_theta = 500000;

  std::string packing = "documents";
  std::int64_t seq_len = 1024, batch_tokens = 4096, accumulate = 1;
  double repeats = 0;
  std::int64_t steps = 0, epochs = 0;  // one of steps, epochs, minutes; none: 1000 steps
  double minutes = 0;
  double lr = 2e-3, min_lr = -1, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1, clip = 1.0;
  double scales_lr = -1;  // as OptimizerSettings has it
  std::int64_t warmup = 50;
  std::string schedule = "cosine";
  double wsd_fraction = 0.2;
  std::int64_t seed = 1, threads = 0;

  double val_fraction = 0.05;
  std::int64_t data_bytes = 0;      // 0: all
  std::int64_t val_examples = 128;  // of a task
  std::int64_t val_bytes = 65536, val_every = 200, save_every = 200, log_every = 10;
  bool resume = false, quiet = false;
};

// The task that the settings ask for; its name is empty when they ask for text.
TaskSettings task_of(const TrainSettings& settings);
// That task as it is scored: every example has its full length, its number of items, and as many questions as in the
// training.
TaskSettings scored_task_of(const TrainSettings& settings);

// The model that the settings ask for: that of settings.from, or a new one with the vocabulary of the task. Throws
// Error of kind usage when the sizes contradict each other, when one is given that only other mixers have (window,
// stride, dense_heads, routed_heads, sparsity), or when the model of settings.from has another vocabulary than the
// data; and what load_config() throws.
nn::ModelConfig model_config(const TrainSettings& settings);

// How the run talks to whoever started it.
struct TrainHooks {
  std::function<void(std::string_view)> print;   // text for the console, whole lines unless `terminal`
  std::function<void(const std::string&)> warn;  // one line
  std::function<bool()> interrupted;             // asked after every step
  bool terminal = false;                         // print may rewrite its last line (\r)
};

struct TrainResult {
  std::int64_t step = 0;     // optimizer steps of the whole run, also before a resume
  std::int64_t skipped = 0;  // of these, not applied because they were not finite
  bool interrupted = false;
  double validation = 0;   // at the end: bits per byte, of a task its accuracy; NaN without validation
  std::string checkpoint;  // the folder written last
};

// Thrown by train() when it gives up: too many steps in a row had a loss or gradient that is not finite.
class Diverged : public Error {
 public:
  // How far it came, what was done before a --resume included.
  Diverged(const std::string& text, std::int64_t step, std::int64_t tokens, double seconds)
      : Error("train", text), step(step), tokens(tokens), seconds(seconds) {}
  std::int64_t step, tokens;
  double seconds;
};

// Trains as the settings say: a fresh run into settings.out, or with settings.resume the continuation of the newest
// checkpoint there. Writes checkpoints and log.jsonl. A run that is stopped and resumed any number of times ends with
// the same bits as one that was not (unless its length is given in minutes). Throws Error, kind usage for settings that
// make no sense; whatever happens, checkpoints already written stay whole.
TrainResult train(const TrainSettings& settings, const TrainHooks& hooks = {});

}  // namespace loglinear::app
