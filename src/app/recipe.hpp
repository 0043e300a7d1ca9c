#pragma once
// Recipes: files that say which models a table needs, how each is trained and what is measured then. One command and a
// seed make the table. docs/recipes.md describes the files.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "app/train.hpp"

namespace loglinear::app {

// What the command line lays over a recipe.
struct RecipeOptions {
  std::vector<std::string> set;   // "setting=value": replaces what settings, cases and sweep say
  std::vector<std::string> data;  // text to train on, instead of the recipe's
  std::int64_t seeds = 0;         // trainings of each model; 0: the recipe's
  std::int64_t seed = -1;         // of the first of them, the others follow it; -1: the recipe's
  std::int64_t examples = 0;      // of every task that is scored; 0: the recipe's
  std::string only;               // a regular expression: only trainings whose name has a match; empty: all
};

struct RecipeColumn {
  std::string label;
  std::string unit;  // "%" (values are parts of one), "bits/byte", "tokens/s", "bytes", "parameters"
  bool operator==(const RecipeColumn&) const = default;
};

// One pass over a trained model: a value for each of its columns.
struct Measurement {
  enum class Kind { task, text, cost };
  Kind kind = Kind::task;
  std::vector<RecipeColumn> columns;
  // Everything that the values depend on beside the trained model, as the recipe says it: kept with them, so that a
  // recipe with another score measures again and does not train again.
  nlohmann::json definition;
};

struct RecipeTraining {
  std::string name;     // of its folder below --out, unique
  std::size_t row = 0;  // of Recipe::rows
  TrainSettings settings;
  // The stages before that one, in order: each begins with the weights of the one before. Their models are the same.
  std::vector<TrainSettings> before;
  double tokens = kUnknown;  // that it will read, at most; NaN when its length is not given in steps
  double work = 1;           // proportional to the time it is expected to take

  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

  std::size_t stages() const { return before.size() + 1; }
  const TrainSettings& stage(std::size_t i) const { return i < before.size() ? before[i] : settings; }
};

// The trainings that differ in nothing but the seed.
struct RecipeRow {
  std::string name;                                           // of the case; empty when there are no cases
  std::vector<std::pair<std::string, nlohmann::json>> sweep;  // setting and value
};

struct Recipe {
  std::string title;
  std::int64_t seeds = 1, seed = 1;
  std::string columns;  // of the sweep, or "case": its values are columns of the table and not rows; empty: none
  std::vector<RecipeRow> rows;
  std::vector<Measurement> measurements;
  std::vector<RecipeTraining> trainings;  // by seed, then by row; out: not yet set in their settings
  bool has_cases = false;
};

// Reads and plans. Throws Error (usage) for whatever can be known to be wrong before any work: unknown keys, values out
// of range, models whose sizes contradict each other, tasks that do not fit the model they are asked of.
Recipe read_recipe(const std::filesystem::path& file, const RecipeOptions& options = {});
// The same of a file's content; source names it in errors.
Recipe plan_recipe(const nlohmann::json& file, const std::string& source, const RecipeOptions& options = {});

// A value that was measured; NaN: the training diverged, or the model's loss is not a number; nothing: there is no such
// number (a mixer that is not causal does not generate).
using RecipeValue = std::optional<double>;

struct RecipeOutcome {
  bool ended = false;     // trained; otherwise the rest says nothing
  bool diverged = false;  // training gave up on it: every value is NaN
  std::int64_t steps = 0, tokens = 0, parameters = 0;
  double seconds = 0;                            // of training
  std::vector<std::vector<RecipeValue>> values;  // one list a measurement; empty: not measured yet
};

struct RecipeProgress {
  std::int64_t done = 0, all = 0;    // trainings
  std::vector<std::string> running;  // "name 35 %", what earlier calls did included
  double eta_seconds = 0;            // a guess; NaN: no idea
};

struct RecipeHooks {
  std::function<void(const RecipeProgress&)> progress;  // a few times a second
  std::function<void(const std::string&)> line;         // a training has ended, or is a remark
  std::function<void(const std::string&)> warn;         // one line
  // Called after every step of every training, by several threads at once.
  std::function<bool()> interrupted;
};

struct RecipeRun {
  std::filesystem::path out;
  int jobs = 0;         // trainings at once, of one thread each; 0: as many as there are processors
  std::string command;  // for table.md
};

struct RecipeResult {
  std::vector<RecipeOutcome> outcomes;  // one a training
  bool interrupted = false;
  int jobs = 1;        // as used
  double seconds = 0;  // of this call
};

// Trains and measures what OUT does not hold yet, each training in a folder of its own:
//
//   OUT/<name>/step-*, log.jsonl   as `loglinear train` writes them
//   OUT/<name>/before-1, ...       the same of the stages before the last
//   OUT/<name>/result.json         the settings, and once it has ended what came out
//   OUT/results.jsonl              a line for every measurement, appended
//   OUT/table.md                   the table as far as there are values, written anew after every training
//
// Speed ("cost") is measured after all trainings, when nothing else runs. Apart from that the same values whatever the
// number of jobs, and however often the recipe was interrupted in between. Throws Error: a training that fails stops
// the others, which are saved; kind usage when OUT holds trainings of the same name with other settings.
RecipeResult run_recipe(const Recipe& recipe, const RecipeRun& run, const RecipeHooks& hooks = {});

// The trainings and what each reads, a line each.
std::string recipe_plan_text(const Recipe& recipe);
// The table in Markdown with a title above it, and below it on what it rests.
std::string recipe_text(const Recipe& recipe, const RecipeResult& result, const std::string& command);
nlohmann::ordered_json recipe_json(const Recipe& recipe, const RecipeResult& result, const std::string& command);

// For the table.

// "75.1 ± 1.2": mean and sample standard deviation of the values, in the unit; without the latter when it is zero or
// there is one value. "nan (1 of 3)" when one of three is NaN. "-" for no values or when one of them does not exist.
std::string format_values(const std::vector<RecipeValue>& values, const std::string& unit);

// A table in Markdown whose columns line up as plain text too. header: (columns); rows: each (columns). The first
// `left` columns are text, the others numbers.
std::string markdown_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows,
                           std::size_t left);

}  // namespace loglinear::app
