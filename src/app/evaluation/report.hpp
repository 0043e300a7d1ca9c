#pragma once
// What `loglinear eval` finds out about a model, as text, JSON and a page.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "app/evaluate.hpp"
#include "app/score.hpp"
#include "app/task.hpp"
#include "nn/model.hpp"

namespace loglinear::app {

// The model that is evaluated, as the reports call it.
struct ModelNote {
  std::string checkpoint, family;
  std::int64_t parameters = 0;
  std::int64_t trained_length = 0;  // of its longest sequences; 0: not known
};

// One length and number of items.
struct TaskRow {
  TaskSettings task;  // resolved
  double chance = 0;  // accuracy of guessing
  TaskScore score;
};

struct TaskEvaluation {
  std::string task;
  std::int64_t examples = 0;  // of a row
  std::vector<TaskRow> rows;  // by items, then by length, in the order that was asked for
  std::int64_t lengths = 0;   // rows of one number of items
};

struct TaskEvaluationOptions {
  std::vector<std::int64_t> lengths, items;  // every length with every number of items; 0: the task's
  ScoreOptions score;
  // Called now and then: the row that is being scored, how many there are, and the examples of it done so far.
  std::function<void(const TaskSettings& row, std::int64_t index, std::int64_t rows, std::int64_t done)> progress;
};

// Scores the model on the task at every length and number of items; `settings` gives the rest. Throws Error as Task and
// score_task do, for any row before the first is scored.
TaskEvaluation evaluate_task(nn::Model<float>& model, const TaskSettings& settings, const Text* text,
                             const TaskEvaluationOptions& options);

// {task, examples, cells: [{length, items, depth_first, depth_last, answers, right, accuracy}], totals: [{length,
// items, answers, right, accuracy, accuracy_low, accuracy_high, loss, chance}]}; a number that is not finite is null.
nlohmann::ordered_json to_json(const TaskEvaluation& evaluation);
std::string to_text(const TaskEvaluation& evaluation);

// {bytes, documents, sequences, places, bits, bits_per_byte, perplexity, cut, positions: [{first, last, bytes,
// bits_per_byte}]}.
nlohmann::ordered_json to_json(const Evaluation& evaluation, bool cut);
std::string to_text(const Evaluation& evaluation, bool cut);

// A page that holds everything it needs, of an object that to_json gave.
std::string to_html(nlohmann::ordered_json evaluation, const ModelNote& model, const std::string& command);

}  // namespace loglinear::app
