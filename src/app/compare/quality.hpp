#pragma once
// The quality half of the comparison: the same small model with each mechanism as its mixer, trained with the same
// tokens and steps on associative recall and on text.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "app/task.hpp"

namespace loglinear::app::compare {

struct QualitySettings {
  std::vector<std::string> mixers;  // names of nn::kFamilies; empty: all of them
  std::int64_t seeds = 3;           // trainings of each mixer on each task
  std::int64_t seed = 1;            // of the first; the others follow it

  // The model. What is not here is what `loglinear train` chooses for the mixer, so that each has the proportions that
  // it was published with; parameter counts differ and are reported.
  std::int64_t hidden_size = 64, layers = 2, heads = 2, mlp_width = 128;

  // What sliding_window and local_strided see, and how many tokens a routed head of mosa chooses from.
  std::int64_t window = 16, stride = 16, sparsity = 4;

  // The training: AdamW, cosine schedule, what `loglinear train` does.
  std::int64_t steps = 1000, batch_tokens = 1024;
  double lr = 3e-3;
  std::int64_t warmup = 50;

  // Of mqar, all examples of one length and number of pairs.
  TaskSettings recall{.name = "mqar", .length = 64, .vocab = 32, .items = 8, .alpha = 0.01};
  std::int64_t recall_examples = 256;  // held out, scored after the training

  std::vector<std::string> data;      // text files or folders, as --data of train; empty: no text task
  std::int64_t data_bytes = 4 << 20;  // at most this much of it is read
  std::int64_t seq_len = 128;         // of the text task; recall has recall.length
  double val_fraction = 0.05;         // of the text, held out
  std::int64_t val_bytes = 32 << 10;  // at most this much of it is scored

  int threads = 0;  // 0: all cores; never changes the result
};

// Where the run stands, told at least once a second of work.
struct QualityProgress {
  std::string mixer;
  const char* task = "";                     // "recall" or "text"
  std::int64_t seed = 0;                     // of this training
  std::int64_t step = 0, steps = 0;          // of this training
  std::int64_t training = 0, trainings = 0;  // which of all, from 0
  double tokens_per_second = 0;              // of this training
  double eta_seconds = 0;                    // of everything; a guess from what is done
};

struct QualityHooks {
  std::function<void(const QualityProgress&)> progress;
  std::function<void(const std::string&)> warn;  // one line
  std::function<bool()> interrupted;             // asked after every step
};

// What the seeds of one mixer gave on one task. A training that diverged counts as NaN, which mean and spread then are.
struct QualityScore {
  std::int64_t parameters = 0;  // of the model
  std::vector<double> values;   // one a seed, in their order
  double mean = 0;
  double spread = 0;   // sample standard deviation; NaN for one seed
  double seconds = 0;  // of all its trainings
};

struct QualityRow {
  std::string mixer;
  // The mixer's choice looks at later tokens, so its numbers are not those of a causal language model.
  bool sees_future = false;
  QualityScore recall;         // part of the held-out queries whose value is the most probable token, 0 to 1
  QualityScore bits_per_byte;  // on the held-out text; no values without data
};

struct QualityResult {
  QualitySettings settings;                          // as used, mixers listed
  double chance = 0;                                 // accuracy of guessing among the values
  std::int64_t recall_queries = 0;                   // scored for each training
  std::int64_t train_bytes = 0, held_out_bytes = 0;  // of text
  std::vector<QualityRow> rows;  // in the order of the mixers; when interrupted, those that are complete
  bool interrupted = false;
};

// Throws Error: kind usage for settings that make no sense, before any work. The same bits for any number of threads
// and from run to run (times aside): every training is a pure function of the settings and its seed. Examples of the
// held-out part are none of the training's.
QualityResult run_quality(const QualitySettings& settings, const QualityHooks& hooks = {});

}  // namespace loglinear::app::compare
