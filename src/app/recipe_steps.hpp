#pragma once
// What a recipe does with one trained model.

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "app/checkpoint.hpp"
#include "app/data.hpp"
#include "app/recipe.hpp"
#include "app/task.hpp"

namespace loglinear::app {

struct CostColumn {
  const char *name, *label, *unit;
};
// The columns that a score of kind "cost" may have.
inline constexpr CostColumn kCostColumns[] = {
    {"train", "training, tokens/s", "tokens/s"},      {"read", "reading, tokens/s", "tokens/s"},
    {"generate", "generating, tokens/s", "tokens/s"}, {"state", "state", "bytes"},
    {"parameters", "parameters", "parameters"},
};

// A value of a setting as people write it: texts without quotes.
std::string shown(const nlohmann::json& value);

// The options that a score's `model` table names, for load_model. Throws Error (usage) for unknown ones.
LoadOptions load_options(const nlohmann::json& model, const std::string& source);

// The task of a "task" measurement, resolved: the settings of definition["task"] over those of the task that the
// training has, all of whose examples have the full length and number of items; over the defaults when it is another
// task. Throws Error (usage).
TaskSettings task_to_score(const TrainSettings& settings, const nlohmann::json& definition, const std::string& source);

// The text of a "text" measurement: the first bytes of its own data, or of held_out. Throws Error when there is no such
// file.
Text scored_text(const nlohmann::json& definition, const Text& held_out);

// held_out: text that the training does not see (TrainingText::held_out). Throws Error when measure() would find none,
// or not enough for the measurement.
void check_score(const Measurement& measurement, const TrainSettings& settings, const Text& held_out);

// One value for each column. checkpoint: the folder of the trained model. text: held_out, of which tasks are made
// too. Throws Error; stops with Interrupted when `interrupted` says so.
struct Interrupted {};
std::vector<RecipeValue> measure(const Measurement& measurement, const TrainSettings& settings,
                                 const std::filesystem::path& checkpoint, const Text& text,
                                 const std::function<bool()>& interrupted);

}  // namespace loglinear::app
