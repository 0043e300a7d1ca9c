#pragma once
// How many of a task's questions a model answers.

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "app/task.hpp"
#include "nn/model.hpp"

namespace loglinear::app {

// Batches of the examples first, first + 1, ... of a seed: each takes examples in order while they fit into
// batch_tokens, and one that does not fit into any batch alone. The position is all the state.
class TaskReader {
 public:
  // The task must outlive the reader.
  TaskReader(const Task& task, std::int64_t batch_tokens, std::uint64_t seed, std::uint64_t first = 0)
      : task_(task), batch_tokens_(batch_tokens), seed_(seed), position_(first) {}

  // Writes the next batch, of examples before `end` (at least one when the position is), and its answers where wanted.
  void next(Batch& batch, std::vector<Answer>* answers = nullptr,
            std::uint64_t end = std::numeric_limits<std::uint64_t>::max());
  // The example that the next batch begins with.
  std::uint64_t position() const { return position_; }

 private:
  const Task& task_;
  std::int64_t batch_tokens_;
  std::uint64_t seed_, position_;
  Batch example_;  // the one at position_, when it was made but did not fit
  std::vector<Answer> example_answers_;
};

struct Interval {
  double low = 0, high = 1;
};

// The interval of Wilson (1927, J. Am. Stat. Assoc. 22) in which the rate of a coin lies, with 95 % confidence, that
// fell `right` times out of `all`. 0 to 1 when all is 0.
Interval wilson(std::int64_t right, std::int64_t all);

// Answers, and those of them that were given. An answer is right when each of its tokens is the most probable one after
// what stands before it.
struct Tally {
  std::int64_t answers = 0, right = 0;

  double accuracy() const { return static_cast<double>(right) / static_cast<double>(answers); }  // NaN without answers
  Interval interval() const { return wilson(right, answers); }
};

inline constexpr int kDepthBins = 10;

struct TaskScore {
  std::int64_t examples = 0, scored = 0;  // examples read; tokens of answers
  Tally all;
  std::array<Tally, kDepthBins>
      depths;                // by Answer::depth: number i holds i / 10 up to (i + 1) / 10, the last one 1 too
  double loss = 0;           // nats, summed over the scored tokens
  bool interrupted = false;  // not all examples were read

  double mean_loss() const { return loss / static_cast<double>(scored); }  // NaN without answers
};

struct ScoreOptions {
  std::int64_t examples = 256;
  std::uint64_t seed = kHeldOutSeed;
  std::int64_t batch_tokens = 16384;  // of one pass, >= 1; a longer example has a pass of its own
  // Called after every pass with the examples done so far.
  std::function<void(std::int64_t done)> progress;
  std::function<bool()> interrupted;  // asked between passes
};

// Throws Error of kind usage when the model's vocabulary is smaller than the task's.
void check_vocabulary(const nn::Model<float>& model, const Task& task);

// Scores the examples 0, 1, ... of the seed. A logit that is not a number makes its token wrong and the loss NaN.
// Throws Error as check_vocabulary does. The same bits for any number of threads.
TaskScore score_task(nn::Model<float>& model, const Task& task, const ScoreOptions& options = {});

}  // namespace loglinear::app
