// The table of a recipe.

#include <algorithm>
#include <cmath>

#include "app/measure.hpp"
#include "app/progress.hpp"
#include "app/recipe.hpp"
#include "app/recipe_steps.hpp"
#include "app/settings.hpp"
#include "base/error.hpp"
#include "base/machine.hpp"

namespace loglinear::app {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

std::string format_value(double x, const std::string& unit) {
  if (unit == "%") return fmt::format("{:.1f}", 100 * x);
  if (unit == "bits/byte") return fmt::format("{:.4f}", x);  // positions differ in the last
  if (unit == "bytes") return format_bytes(x);
  return format_count(x);
}

// Values that do not exist have none; NaN in one makes NaN of both.
Spread spread_of(const std::vector<RecipeValue>& values) {
  std::vector<double> numbers;
  for (const RecipeValue& value : values) {
    if (!value) return {};
    numbers.push_back(*value);
  }
  return app::spread_of(numbers);
}

// Characters, not bytes: what the columns of a terminal count.
std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::vector<RecipeValue> values_of(const Recipe& recipe, const RecipeResult& result, std::size_t row,
                                   std::size_t measurement, std::size_t column) {
  std::vector<RecipeValue> values;
  for (std::size_t i = 0; i < recipe.trainings.size(); ++i) {
    const RecipeOutcome& outcome = result.outcomes[i];
    if (recipe.trainings[i].row == row && outcome.ended && !outcome.values[measurement].empty())
      values.push_back(outcome.values[measurement][column]);
  }
  return values;
}

std::string table(const Recipe& recipe, const RecipeResult& result) {
  // A row's name without what is a column, and the value of what is.
  const bool case_is_column = recipe.columns == "case";
  std::vector<std::vector<std::string>> names;              // of the rows of the table
  std::vector<std::string> groups;                          // values of recipe.columns
  std::vector<std::pair<std::size_t, std::size_t>> places;  // of every row of the recipe: row of the table, group
  std::vector<std::string> header;
  if (recipe.has_cases && !case_is_column) header.emplace_back("");
  if (!recipe.rows.empty())
    for (const auto& [key, value] : recipe.rows.front().sweep)
      if (key != recipe.columns) header.push_back(key);
  const std::size_t left = std::max<std::size_t>(header.size(), 1);
  if (header.empty()) header.emplace_back("");
  const auto index = [](auto& list, const auto& value) {
    const auto at = std::find(list.begin(), list.end(), value);
    if (at != list.end()) return static_cast<std::size_t>(at - list.begin());
    list.push_back(value);
    return list.size() - 1;
  };
  for (const RecipeRow& row : recipe.rows) {
    std::vector<std::string> name;
    std::string group;
    if (case_is_column) group = row.name;
    if (recipe.has_cases && !case_is_column) name.push_back(row.name);
    for (const auto& [key, value] : row.sweep) {
      if (key == recipe.columns)
        group = fmt::format("{} {}", key, shown(value));
      else
        name.push_back(shown(value));
    }
    if (name.empty()) name.emplace_back("");
    const std::size_t at = index(names, name);
    places.emplace_back(at, index(groups, group));
  }
  std::size_t width = 0;  // columns of a group
  for (const Measurement& m : recipe.measurements) width += m.columns.size();
  for (const std::string& group : groups)
    for (const Measurement& m : recipe.measurements)
      for (const RecipeColumn& column : m.columns) {
        std::string label = group;
        // One score needs no name in every column: the line below the table says it.
        if (group.empty() || width > 1) label += (group.empty() ? "" : ", ") + column.label;
        header.push_back(label + (column.unit == "%" ? ", %" : ""));
      }
  std::vector<std::vector<std::string>> rows;
  for (const std::vector<std::string>& name : names) {
    rows.push_back(name);
    rows.back().resize(left + groups.size() * width, "-");
  }
  for (std::size_t r = 0; r < recipe.rows.size(); ++r) {
    std::size_t at = left + places[r].second * width;
    for (std::size_t m = 0; m < recipe.measurements.size(); ++m)
      for (std::size_t c = 0; c < recipe.measurements[m].columns.size(); ++c) {
        const std::vector<RecipeValue> values = values_of(recipe, result, r, m, c);
        std::string cell = format_values(values, recipe.measurements[m].columns[c].unit);
        const auto planned = std::count_if(recipe.trainings.begin(), recipe.trainings.end(),
                                           [&](const RecipeTraining& training) { return training.row == r; });
        if (!values.empty() && values.size() < static_cast<std::size_t>(planned))
          cell += fmt::format(" ({} of {} seeds)", values.size(), planned);
        rows[places[r].first][at++] = cell;
      }
  }
  return markdown_table(header, rows, left);
}

}  // namespace

std::string format_values(const std::vector<RecipeValue>& values, const std::string& unit) {
  if (values.empty() || std::any_of(values.begin(), values.end(), [](const RecipeValue& v) { return !v; })) return "-";
  const auto bad = std::count_if(values.begin(), values.end(), [](const RecipeValue& v) { return std::isnan(*v); });
  if (bad > 0) return values.size() == 1 ? "nan" : fmt::format("nan ({} of {})", bad, values.size());
  const Spread s = spread_of(values);
  std::string text = format_value(s.mean, unit);
  if (s.deviation > 0) text += " ± " + format_value(s.deviation, unit);
  return text;
}

std::string markdown_table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows,
                           std::size_t left) {
  std::vector<std::size_t> widths(header.size(), 3);
  const auto widen = [&](const std::vector<std::string>& row) {
    for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], width_of(row[c]));
  };
  widen(header);
  for (const std::vector<std::string>& row : rows) widen(row);
  const auto line = [&](const std::vector<std::string>& row) {
    std::string text = "|";
    for (std::size_t c = 0; c < row.size(); ++c) {
      const std::string space(widths[c] - width_of(row[c]), ' ');
      text += " " + (c < left ? row[c] + space : space + row[c]) + " |";
    }
    return text + "\n";
  };
  std::string text = line(header) + "|";
  for (std::size_t c = 0; c < header.size(); ++c)
    text += " " + std::string(widths[c] - 1, '-') + (c < left ? "-" : ":") + " |";
  text += "\n";
  for (const std::vector<std::string>& row : rows) text += line(row);
  return text;
}

std::string recipe_text(const Recipe& recipe, const RecipeResult& result, const std::string& command) {
  std::string text = fmt::format("## {}\n\n{}\n", recipe.title, table(recipe, result));
  std::size_t columns = 0;
  for (const Measurement& m : recipe.measurements) columns += m.columns.size();
  if (!recipe.columns.empty() && columns == 1) {
    const RecipeColumn& column = recipe.measurements.front().columns.front();
    text += fmt::format("{}{}\n", column.label, column.unit == "%" ? ", %" : "");
  }
  std::int64_t ended = 0, diverged = 0, tokens = 0;
  double seconds = 0;
  for (const RecipeOutcome& outcome : result.outcomes)
    if (outcome.ended) ++ended, diverged += outcome.diverged, tokens += outcome.tokens, seconds += outcome.seconds;
  text += recipe.seeds == 1 ? fmt::format("seed {}", recipe.seed)
                            : fmt::format("mean ± sample standard deviation of {} seeds ({} to {})", recipe.seeds,
                                          recipe.seed, recipe.seed + recipe.seeds - 1);
  text +=
      fmt::format("; {} of {} trainings done{}, {} tokens read in {} of one thread each; this call: {}\n", ended,
                  recipe.trainings.size(), diverged > 0 ? fmt::format(", {} diverged", diverged) : "",
                  format_count(static_cast<double>(tokens)), format_duration(seconds), format_duration(result.seconds));
  for (const Measurement& m : recipe.measurements)
    if (m.kind == Measurement::Kind::cost &&
        std::any_of(m.columns.begin(), m.columns.end(), [](const RecipeColumn& c) { return c.unit == "tokens/s"; })) {
      const int threads = m.definition.at("threads");
      text +=
          fmt::format("speed    with {}, while no training ran\n", threads == 0   ? "all processors"
                                                                   : threads == 1 ? "one thread"
                                                                                  : fmt::format("{} threads", threads));
      break;
    }
  text += fmt::format("command  {}\nmachine  {}, {} processors, {} at once\n", command, cpu_model(), processors(),
                      result.jobs == 1 ? "one training" : fmt::format("{} trainings", result.jobs));
  return text;
}

ordered_json recipe_json(const Recipe& recipe, const RecipeResult& result, const std::string& command) {
  ordered_json rows = ordered_json::array();
  for (std::size_t r = 0; r < recipe.rows.size(); ++r) {
    ordered_json sweep = ordered_json::object(), trainings = ordered_json::array(), scores = ordered_json::array();
    ordered_json settings, before;  // but for the seed those of every training of the row
    for (const auto& [key, value] : recipe.rows[r].sweep) sweep[key] = value;
    for (std::size_t i = 0; i < recipe.trainings.size(); ++i) {
      const RecipeTraining& training = recipe.trainings[i];
      const RecipeOutcome& outcome = result.outcomes[i];
      if (training.row != r) continue;
      settings = to_json(training.settings);
      settings.erase("seed");
      before = ordered_json::array();
      for (const TrainSettings& stage : training.before) {
        before.push_back(ordered_json(to_json(stage)));
        before.back().erase("seed");
      }
      trainings.push_back({{"folder", training.name},
                           {"seed", training.settings.seed},
                           {"ended", outcome.ended},
                           {"diverged", outcome.diverged},
                           {"steps", outcome.steps},
                           {"tokens", outcome.tokens},
                           {"parameters", outcome.parameters},
                           {"seconds", json_number(outcome.seconds)}});
    }
    for (std::size_t m = 0; m < recipe.measurements.size(); ++m)
      for (std::size_t c = 0; c < recipe.measurements[m].columns.size(); ++c) {
        const RecipeColumn& column = recipe.measurements[m].columns[c];
        const std::vector<RecipeValue> values = values_of(recipe, result, r, m, c);
        const Spread s = spread_of(values);
        ordered_json list = ordered_json::array();
        for (const RecipeValue& value : values) list.push_back(json_number(value.value_or(kAbsent)));
        scores.push_back({{"label", column.label},
                          {"unit", column.unit == "%" ? "part of one" : column.unit},
                          {"definition", recipe.measurements[m].definition},
                          {"values", list},
                          {"mean", json_number(s.mean)},
                          {"spread", json_number(s.deviation)}});
      }
    rows.push_back({{"case", recipe.rows[r].name},
                    {"sweep", sweep},
                    {"settings", settings},
                    {"before", before},
                    {"trainings", trainings},
                    {"scores", scores}});
  }
  return {{"title", recipe.title},
          {"command", command},
          {"machine", {{"cpu", cpu_model()}, {"processors", processors()}, {"jobs", result.jobs}}},
          {"seed", recipe.seed},
          {"seeds", recipe.seeds},
          {"seconds", json_number(result.seconds)},
          {"rows", rows}};
}

}  // namespace loglinear::app
