#include "app/recipe.hpp"

#include <algorithm>
#include <cmath>
#include <regex>
#include <set>

#include "app/progress.hpp"
#include "app/recipe_steps.hpp"
#include "app/settings.hpp"
#include "app/task.hpp"
#include "base/error.hpp"
#include "io/config.hpp"
#include "nn/families.hpp"

namespace loglinear::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kRecipeFile = "recipe";
constexpr double kMostTrainings = 1e5, kMostScores = 1000;
constexpr std::size_t kMostStages = 100;
constexpr std::size_t kLongestName = 200;  // of a folder
// What a recipe decides for its trainings.
constexpr const char* kNotSettings[] = {"out", "resume", "quiet", "seed", "threads"};

std::string dashes(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

// The name of a setting, with - in place of _ and the mixer by its name of today.
std::string setting_name(const std::string& given) {
  const std::string name = dashes(given);
  return name == "family" ? "mixer" : name;
}

// "stage" and a number: what settings of one stage alone are put under.
bool is_stage(const std::string& key) {
  return key.size() > 5 && key.starts_with("stage") && key.find_first_not_of("0123456789", 5) == key.npos;
}

// The object with the names of today for its keys, and "stage2.lr" for what TOML makes of that, lr in a table stage2.
json dashed(const json& object, const std::string& source) {
  if (!object.is_object()) fail_usage(kRecipeFile, "{}: a table of settings is needed", source);
  json result = json::object();
  const auto add = [&](const std::string& name, const json& value) {
    if (result.contains(name)) fail_usage(kRecipeFile, "{}: {} is given twice", source, name);
    result[name] = value;
  };
  for (const auto& [key, value] : object.items()) {
    if (is_stage(key) && value.is_object())
      for (const auto& [inner, given] : value.items()) add(key + "." + setting_name(inner), given);
    else
      add(setting_name(key), value);
  }
  return result;
}

json list_of(const json& value) { return value.is_array() ? value : json::array({value}); }

// Calls f(chosen) for every choice of one value of each list, the last list changing fastest. chosen: an object.
template <class F>
void for_each_choice(const std::vector<std::pair<std::string, json>>& lists, const F& f) {
  std::vector<std::size_t> at(lists.size(), 0);
  for (;;) {
    json chosen = json::object();
    for (std::size_t i = 0; i < lists.size(); ++i) chosen[lists[i].first] = lists[i].second[at[i]];
    f(chosen);
    std::size_t i = lists.size();
    while (i > 0 && ++at[i - 1] == lists[i - 1].second.size()) at[--i] = 0;
    if (i == 0) return;
  }
}

// What a folder may be called.
std::string file_name(const std::string& text) {
  std::string name;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    name += plain || c == '.' || c == '_' || c == '-' ? c : '_';
  }
  return name;
}

class Planner {
 public:
  Planner(const json& file, const std::string& source, const RecipeOptions& options)
      : file_(file), source_(source), options_(options) {}
  Recipe run();

 private:
  void read_sets();
  void read_cases(io::ConfigReader& reader);
  void read_stages(io::ConfigReader& reader);
  void read_sweep(io::ConfigReader& reader);
  void read_scores(io::ConfigReader& reader);
  void read_task(io::ConfigReader& reader, const std::string& label, json definition);
  void read_text(io::ConfigReader& reader, const std::string& label, json definition);
  void read_cost(io::ConfigReader& reader, const std::string& label, json definition);
  std::vector<std::int64_t> lengths(io::ConfigReader& reader);
  std::pair<json, json> of_stage(const json& settings, std::size_t stage) const;
  TrainSettings settings_of(std::size_t stage, const json& case_settings, const json& chosen, std::int64_t seed,
                            const std::string& source) const;
  RecipeTraining training_of(const std::string& name, const json& case_settings, const json& chosen, std::int64_t seed,
                             const std::string& source) const;
  void add_trainings();
  void check_measurements(const RecipeTraining& training) const;

  json file_;
  std::string source_;
  RecipeOptions options_;
  Recipe recipe_;
  json base_ = json::object();                       // [settings]
  json sets_ = json::object();                       // --set
  std::vector<std::pair<std::string, json>> cases_;  // name and settings
  std::vector<json> stages_;                         // settings of each; one without any when the file has none
  std::vector<std::pair<std::string, json>> sweep_;  // setting and its values
  std::vector<std::string> data_;
};

void Planner::read_sets() {
  for (const std::string& text : options_.set) {
    const std::size_t at = text.find('=');
    if (at == std::string::npos || at == 0) fail_usage(kRecipeFile, "--set {}: need SETTING=VALUE", text);
    const std::string key = setting_name(text.substr(0, at)), value = text.substr(at + 1);
    json parsed = json::parse(value, nullptr, false);
    sets_[key] = parsed.is_discarded() ? json(value) : parsed;
  }
}

void Planner::read_cases(io::ConfigReader& reader) {
  const json* list = reader.find("case");
  recipe_.has_cases = list != nullptr;
  if (!list) {
    cases_.emplace_back("", json::object());
    return;
  }
  if (!list->is_array() || list->empty()) fail_usage(kRecipeFile, "{}: case: need tables [[case]]", source_);
  std::set<std::string> names;
  for (const json& each : *list) {
    json settings = dashed(each, source_ + ": case");
    std::string name;
    io::ConfigReader(settings, source_ + ": case").text("name", name);
    if (name.empty()) fail_usage(kRecipeFile, "{}: case {}: has no name", source_, cases_.size() + 1);
    if (!names.insert(name).second) fail_usage(kRecipeFile, "{}: there are two cases {}", source_, name);
    settings.erase("name");
    cases_.emplace_back(name, std::move(settings));
  }
}

void Planner::read_stages(io::ConfigReader& reader) {
  const json* list = reader.find("stage");
  if (!list) {
    stages_.push_back(json::object());
    return;
  }
  if (!list->is_array() || list->empty()) fail_usage(kRecipeFile, "{}: stage: need tables [[stage]]", source_);
  if (list->size() > kMostStages)
    fail_usage(kRecipeFile, "{}: stage: {} stages are more than {}", source_, list->size(), kMostStages);
  for (const json& each : *list) stages_.push_back(dashed(each, source_ + ": stage"));
}

void Planner::read_sweep(io::ConfigReader& reader) {
  const json* sweep = reader.find("sweep");
  if (!sweep) return;
  const json settings = dashed(*sweep, source_ + ": sweep");
  for (const auto& [key, given] : settings.items()) {
    // A list in --set is a sweep of its own.
    const json values = sets_.contains(key) ? list_of(sets_[key]) : given;
    if (!values.is_array() || values.empty())
      fail_usage(kRecipeFile, "{}: sweep: {}: a list of values is needed", source_, key);
    for (std::size_t i = 0; i < values.size(); ++i)
      if (std::find(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(i), values[i]) !=
          values.begin() + static_cast<std::ptrdiff_t>(i))
        fail_usage(kRecipeFile, "{}: sweep: {}: {} is there twice", source_, key, values[i].dump());
    sweep_.emplace_back(key, values);
    sets_.erase(key);
  }
}

std::vector<std::int64_t> Planner::lengths(io::ConfigReader& reader) {
  std::vector<double> given;
  std::int64_t one = 0;
  const json* value = reader.find("length");
  if (value && value->is_array())
    reader.reals("length", given, 1, 1e9);
  else if (reader.integer("length", one, 1, 1'000'000'000))
    given.push_back(static_cast<double>(one));
  if (!value) return {0};
  std::vector<std::int64_t> result;
  for (const double x : given) {
    if (x != std::floor(x)) fail_usage(kRecipeFile, "{}: score: length: got {}, need whole numbers", source_, x);
    result.push_back(static_cast<std::int64_t>(x));
  }
  if (result.empty()) fail_usage(kRecipeFile, "{}: score: length: got no value", source_);
  return result;
}

void Planner::read_task(io::ConfigReader& reader, const std::string& label, json definition) {
  std::string name;
  reader.text("name", name);
  if (!name.empty() && !find_task(name))
    fail_usage(kRecipeFile, "{}: score: there is no task {}, only {}", source_, name, fmt::join(task_names(), ", "));
  std::int64_t examples = 256;
  reader.integer("examples", examples, 1, 1 << 24);
  if (options_.examples > 0) examples = options_.examples;
  definition["examples"] = examples;
  if (!name.empty()) definition["name"] = name;
  std::vector<std::pair<std::string, json>> lists;
  TaskSettings settings;
  for_each_task_setting(settings, [&](const char* key, const auto&, const auto&...) {
    const json* value = reader.find(key);
    if (!value) return;
    if (value->is_array() && value->empty()) fail_usage(kRecipeFile, "{}: score: {}: got no value", source_, key);
    lists.emplace_back(key, list_of(*value));
  });
  double columns = 1;
  for (const auto& each : lists) columns *= static_cast<double>(each.second.size());
  if (columns > kMostScores)
    fail_usage(kRecipeFile, "{}: score: its lists make {:.0f} columns, more than {:.0f}", source_, columns,
               kMostScores);
  for_each_choice(lists, [&](const json& chosen) {
    Measurement m{Measurement::Kind::task, {}, definition};
    m.definition["task"] = chosen;
    std::string text = label.empty() ? (name.empty() ? "accuracy" : name) : label;
    for (const auto& [key, values] : lists)
      if (values.size() > 1) text += fmt::format(", {} {}", key, shown(chosen[key]));
    m.columns.push_back({text, "%"});
    recipe_.measurements.push_back(std::move(m));
  });
}

void Planner::read_text(io::ConfigReader& reader, const std::string& label, json definition) {
  const std::vector<std::int64_t> all = lengths(reader);
  std::vector<double> begins;
  reader.reals("positions", begins, 0, 1e12);
  std::int64_t bytes = 1 << 20;
  reader.integer("bytes", bytes, 1, std::int64_t{1} << 50);
  std::int64_t stride = 0;
  reader.integer("stride", stride, 0, std::int64_t{1} << 40);
  std::vector<std::string> data;
  reader.texts("data", data);
  std::vector<std::int64_t> positions;
  for (const double x : begins) {
    const auto begin = static_cast<std::int64_t>(x);
    const bool power = (begin & (begin - 1)) == 0;
    if (x != static_cast<double>(begin) || !power || (!positions.empty() && begin <= positions.back()))
      fail_usage(kRecipeFile, "{}: score: positions: need 0 or powers of two, ascending", source_);
    positions.push_back(begin);
  }
  definition["bytes"] = bytes, definition["positions"] = positions;
  for (std::string& path : data) path = fs::absolute(path).lexically_normal().string();
  if (!data.empty()) {  // what the files hold belongs to the definition: measured again when it is another text
    definition["data"] = data;
    definition["text"] = fmt::format("{:016x}", scored_text(definition, {}).hash());
  }
  if (stride > 0) definition["stride"] = stride;
  for (const std::int64_t length : all) {
    Measurement m{Measurement::Kind::text, {}, definition};
    m.definition["length"] = length;
    std::string text = label.empty() ? "bits/byte" : label;
    if (all.size() > 1) text += fmt::format(", length {}", length);
    m.columns.push_back({text, "bits/byte"});
    for (std::size_t i = 0; i < positions.size(); ++i)
      m.columns.push_back({i + 1 < positions.size() ? fmt::format("{}, {}-{}", text, positions[i], positions[i + 1] - 1)
                                                    : fmt::format("{}, {}-", text, positions[i]),
                           "bits/byte"});
    recipe_.measurements.push_back(std::move(m));
  }
}

void Planner::read_cost(io::ConfigReader& reader, const std::string& label, json definition) {
  const std::vector<std::int64_t> all = lengths(reader);
  double seconds = 0.5;
  reader.real("seconds", seconds, 0, 3600);
  int threads = 1;
  reader.integer("threads", threads, 0, 4096);
  std::vector<std::string> columns;
  for (const CostColumn& column : kCostColumns) columns.emplace_back(column.name);
  const std::vector<std::string> known = columns;
  reader.texts("columns", columns);
  if (columns.empty()) fail_usage(kRecipeFile, "{}: score: columns: got none of {}", source_, fmt::join(known, ", "));
  for (const std::string& column : columns) {
    if (std::find(known.begin(), known.end(), column) == known.end())
      fail_usage(kRecipeFile, "{}: score: columns: there is no {}, only {}", source_, column, fmt::join(known, ", "));
    if (std::count(columns.begin(), columns.end(), column) > 1)
      fail_usage(kRecipeFile, "{}: score: columns: {} is there twice", source_, column);
  }
  definition["seconds"] = seconds, definition["threads"] = threads;
  for (const std::int64_t length : all) {
    if (length != all.front()) std::erase(columns, "parameters");  // once is enough
    if (columns.empty()) break;
    Measurement m{Measurement::Kind::cost, {}, definition};
    m.definition["length"] = length, m.definition["columns"] = columns;
    for (const std::string& name : columns)
      for (const CostColumn& column : kCostColumns) {
        if (name != column.name) continue;
        std::string text = label.empty() ? column.label : label + ", " + column.label;
        if (all.size() > 1 && name != "parameters") text += fmt::format(", length {}", length);
        m.columns.push_back({text, column.unit});
      }
    recipe_.measurements.push_back(std::move(m));
  }
}

void Planner::read_scores(io::ConfigReader& reader) {
  const json* list = reader.find("score");
  if (!list || !list->is_array() || list->empty())
    fail_usage(kRecipeFile, "{}: score: need tables [[score]] that say what is measured", source_);
  for (const json& each : *list) {
    io::ConfigReader score(dashed(each, source_ + ": score"), source_ + ": score");
    static const std::vector<std::string> kinds = {"task", "text", "cost"};
    std::string kind, label;
    if (!score.choice("kind", kind, kinds))
      fail_usage(kRecipeFile, "{}: score: kind: need task, text or cost", source_);
    score.text("label", label);
    json definition{{"kind", kind}};
    if (const json* model = score.find("model")) {
      const json options = dashed(*model, source_ + ": score: model");
      load_options(options, source_ + ": score: model");
      definition["model"] = options;
    }
    if (kind == "task")
      read_task(score, label, definition);
    else if (kind == "text")
      read_text(score, label, definition);
    else
      read_cost(score, label, definition);
    score.finish();
  }
  // The name of a column is what tells the values of a training apart.
  for (std::size_t i = 0; i < recipe_.measurements.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if (recipe_.measurements[i].columns == recipe_.measurements[j].columns ||
          recipe_.measurements[i].definition == recipe_.measurements[j].definition)
        fail_usage(kRecipeFile, "{}: two scores are called \"{}\": give one a label", source_,
                   recipe_.measurements[i].columns.front().label);
}

// Of settings by name those of a stage (0 first): in .first those of all stages, in .second those that are called
// "stage2.lr", say.
std::pair<json, json> Planner::of_stage(const json& settings, std::size_t stage) const {
  std::pair<json, json> result{json::object(), json::object()};
  for (const auto& [key, value] : settings.items()) {
    bool plain = true;
    for (std::size_t i = 0; i < stages_.size(); ++i) {
      const std::string prefix = fmt::format("stage{}.", i + 1);
      if (!key.starts_with(prefix)) continue;
      plain = false;
      if (i == stage) result.second[setting_name(key.substr(prefix.size()))] = value;
    }
    if (plain) result.first[key] = value;
  }
  return result;
}

TrainSettings Planner::settings_of(std::size_t stage, const json& case_settings, const json& chosen, std::int64_t seed,
                                   const std::string& source) const {
  TrainSettings settings;
  const auto lay = [&](const json& over, const std::string& from) {
    for (const char* name : kNotSettings)
      if (over.contains(name))
        fail_usage(kRecipeFile, "{}: {} is not a setting of a recipe: it gives each training its own", source_, name);
    apply_settings(settings, over, from);
  };
  if (!data_.empty()) settings.data = data_;
  lay(base_, source_ + ": settings");
  const auto [of_case, of_case_stage] = of_stage(case_settings, stage);
  lay(of_case, source);
  lay(stages_[stage], fmt::format("{}: stage {}", source_, stage + 1));
  lay(of_case_stage, source);
  const auto lay_both = [&](const json& over, const std::string& from) {
    const auto [all, own] = of_stage(over, stage);
    lay(all, from);
    lay(own, from);
  };
  lay_both(chosen, source_ + ": sweep");
  if (!options_.data.empty()) settings.data = data_;
  lay_both(sets_, "--set");
  settings.seed = seed;
  settings.threads = 1;
  settings.resume = settings.quiet = true;
  for (auto* paths : {&settings.data, &settings.val_data})
    for (std::string& path : *paths) path = fs::absolute(path).lexically_normal().string();
  settings.out = "-";  // complete_settings() asks for one
  complete_settings(settings);
  settings.out.clear();
  return settings;
}

// All its stages, and what they amount to.
RecipeTraining Planner::training_of(const std::string& name, const json& case_settings, const json& chosen,
                                    std::int64_t seed, const std::string& source) const {
  RecipeTraining training;
  training.name = name;
  training.tokens = training.work = 0;
  std::string where = name;
  try {
    for (std::size_t i = 0; i < stages_.size(); ++i) {
      if (stages_.size() > 1) where = fmt::format("{}: stage {}", name, i + 1);
      if (i > 0) training.before.push_back(std::move(training.settings));
      training.settings = settings_of(i, case_settings, chosen, seed, source);
      const TrainSettings &s = training.settings, &first = training.stage(0);
      if (const std::string setting = other_model(first, s); !setting.empty())
        fail_usage(kRecipeFile, "{}: {}: {}: all stages have the model of the first", source_, where, setting);
      const nn::ModelConfig config = model_config(s);
      if (const std::int64_t vocab = model_config(first).vocab_size;
          s.task.name.empty() ? vocab != config.vocab_size : vocab < config.vocab_size)
        fail_usage(kRecipeFile, "{}: {}: has a vocabulary of {}, the model of the first one of {}", source_, where,
                   config.vocab_size, vocab);
      const double tokens = s.steps > 0 ? static_cast<double>(s.steps) * static_cast<double>(s.accumulate) *
                                              static_cast<double>(s.batch_tokens)
                                        : RecipeTraining::kUnknown;
      training.tokens += tokens;
      training.work += nn::parameter_count(config) * (s.steps > 0 ? tokens : 1e6);
    }
    where = name;
    check_measurements(training);
  } catch (const Error& error) {
    const std::string text = error.what();
    if (text.starts_with("[recipe] ") || text.starts_with("[config] ")) throw;  // these name the place in the file
    fail_usage(kRecipeFile, "{}: {}: {}", source_, where, text.substr(text.find("] ") + 2));
  }
  return training;
}

void Planner::add_trainings() {
  // Before there is a row for each.
  double models = static_cast<double>(cases_.size());
  for (const auto& each : sweep_) models *= static_cast<double>(each.second.size());
  if (models * static_cast<double>(recipe_.seeds) > kMostTrainings)
    fail_usage(kRecipeFile, "{}: {:.0f} models with {} seeds each are more than {:.0f} trainings", source_, models,
               recipe_.seeds, kMostTrainings);
  for (const auto& each_case : cases_)
    for_each_choice(sweep_, [&](const json& chosen) {
      RecipeRow row;
      row.name = each_case.first;
      for (const auto& each : sweep_) row.sweep.emplace_back(each.first, chosen[each.first]);
      recipe_.rows.push_back(std::move(row));
    });
  std::optional<std::regex> only;
  try {
    if (!options_.only.empty()) only.emplace(options_.only);
  } catch (const std::regex_error&) {
    fail_usage(kRecipeFile, "--only {}: is no regular expression", options_.only);
  }
  std::set<std::string> names;
  std::vector<bool> used(recipe_.rows.size(), false);
  // By seed first: a recipe that is interrupted has a row for every model early.
  for (std::int64_t i = 0; i < recipe_.seeds; ++i)
    for (std::size_t r = 0; r < recipe_.rows.size(); ++r) {
      const RecipeRow& row = recipe_.rows[r];
      std::string name = row.name;
      json chosen = json::object();
      for (const auto& [key, value] : row.sweep) {
        name += (name.empty() ? "" : "-") + shown(value);
        chosen[key] = value;
      }
      const std::int64_t seed = recipe_.seed + i;
      name = fmt::format("{}-{}", file_name(name.empty() ? "training" : name), seed);
      if (name.size() > kLongestName)
        fail_usage(kRecipeFile, "{}: a training would be called {}...: {} characters, at most {}", source_,
                   name.substr(0, 40), name.size(), kLongestName);
      if (!names.insert(name).second)
        fail_usage(kRecipeFile, "{}: two trainings would be called {}: give their cases other names", source_, name);
      if (only && !std::regex_search(name, *only)) continue;
      used[r] = true;
      const std::size_t at = recipe_.has_cases ? r / (recipe_.rows.size() / cases_.size()) : 0;
      recipe_.trainings.push_back(
          training_of(name, cases_[at].second, chosen, seed,
                      row.name.empty() ? source_ : fmt::format("{}: case {}", source_, row.name)));
      recipe_.trainings.back().row = r;
    }
  if (recipe_.trainings.empty()) fail_usage(kRecipeFile, "--only {}: no training has such a name", options_.only);
  // Rows that --only leaves nothing of.
  std::vector<std::size_t> place(recipe_.rows.size());
  std::vector<RecipeRow> rows;
  for (std::size_t r = 0; r < recipe_.rows.size(); ++r) {
    place[r] = rows.size();
    if (used[r]) rows.push_back(recipe_.rows[r]);
  }
  recipe_.rows = std::move(rows);
  for (RecipeTraining& training : recipe_.trainings) training.row = place[training.row];
}

void Planner::check_measurements(const RecipeTraining& training) const {
  const nn::ModelConfig config = nn::resolved(model_config(training.stage(0)));
  const std::int64_t vocab = config.vocab_size;
  for (const Measurement& m : recipe_.measurements) {
    const std::string& label = m.columns.front().label;
    read_as(config, load_options(m.definition.value("model", json::object()), source_ + ": score: model"),
            fmt::format("score \"{}\": {}", label, training.name));
    if (m.kind == Measurement::Kind::task) {
      const TaskSettings task = task_to_score(training.settings, m.definition, source_ + ": score");
      if (task.vocab > vocab)
        fail_usage(kRecipeFile, "{}: score \"{}\": {} has a vocabulary of {}, the model {} one of {}", source_, label,
                   task.name, task.vocab, training.name, vocab);
      if (find_task(task.name)->needs_text && training.settings.data.empty())
        fail_usage(kRecipeFile, "{}: score \"{}\": {} is made from text: give --data", source_, label, task.name);
    }
    if (m.kind == Measurement::Kind::text) {
      if (vocab != 256)
        fail_usage(kRecipeFile, "{}: score \"{}\": {} has a vocabulary of {}, text has one of 256", source_, label,
                   training.name, vocab);
      const std::int64_t length = m.definition.at("length"), stride = m.definition.value("stride", std::int64_t{0});
      const std::int64_t whole = length > 0 ? length : training.settings.seq_len;
      if (stride > 0 && whole % stride != 0)
        fail_usage(kRecipeFile, "{}: score \"{}\": stride: got {}, need what divides the length, {}", source_, label,
                   stride, whole);
      if (!m.definition.contains("data") && training.settings.data.empty() && training.settings.val_data.empty())
        fail_usage(kRecipeFile, "{}: score \"{}\": there is no text to score: give --data", source_, label);
    }
  }
}

Recipe Planner::run() {
  io::ConfigReader reader(dashed(file_, source_), source_);
  recipe_.title = fs::path(source_).stem().string();
  reader.text("title", recipe_.title);
  reader.integer("seeds", recipe_.seeds, 1, 1000);
  reader.integer("seed", recipe_.seed, 0, std::int64_t{9'000'000'000'000'000});
  reader.texts("data", data_);
  reader.text("columns", recipe_.columns);
  recipe_.columns = setting_name(recipe_.columns);
  if (options_.seeds > 0) recipe_.seeds = options_.seeds;
  if (options_.seed >= 0) recipe_.seed = options_.seed;
  constexpr std::int64_t kLargestSeed = 9'000'000'000'000'000;  // of a training; held-out examples have larger ones
  if (recipe_.seed > kLargestSeed - recipe_.seeds + 1)
    fail_usage(kRecipeFile, "--seed: got {}, need 0 to {}", recipe_.seed, kLargestSeed - recipe_.seeds + 1);
  if (!options_.data.empty()) data_ = options_.data;
  if (const json* settings = reader.find("settings")) base_ = dashed(*settings, source_ + ": settings");
  read_sets();
  read_cases(reader);
  read_stages(reader);
  read_sweep(reader);
  read_scores(reader);
  reader.finish();

  const bool swept =
      std::any_of(sweep_.begin(), sweep_.end(), [&](const auto& s) { return s.first == recipe_.columns; });
  if (!recipe_.columns.empty() && !swept && !(recipe_.columns == "case" && recipe_.has_cases))
    fail_usage(kRecipeFile, "{}: columns: {} is no setting of [sweep]{}", source_, recipe_.columns,
               recipe_.columns == "case" ? ", and there are no cases" : ", nor \"case\"");
  add_trainings();
  return std::move(recipe_);
}

}  // namespace

Recipe plan_recipe(const json& file, const std::string& source, const RecipeOptions& options) {
  return Planner(file, source, options).run();
}

Recipe read_recipe(const fs::path& file, const RecipeOptions& options) {
  return plan_recipe(io::load_config(file), file.string(), options);
}

std::string recipe_plan_text(const Recipe& recipe) {
  std::size_t width = 8;
  for (const RecipeTraining& training : recipe.trainings) width = std::max(width, training.name.size());
  std::string text = fmt::format("{:<{}}  {:>8}\n", "training", width, "tokens");
  double all = 0;
  for (const RecipeTraining& training : recipe.trainings) {
    text += fmt::format("{:<{}}  {:>8}\n", training.name, width,
                        std::isfinite(training.tokens) ? format_count(training.tokens)
                        : !training.before.empty()     ? fmt::format("{} stages", training.stages())
                        : training.settings.epochs > 0 ? fmt::format("{} epochs", training.settings.epochs)
                                                       : fmt::format("{:g} min", training.settings.minutes));
    all += training.tokens;
  }
  const std::size_t stages = recipe.trainings.front().stages();
  text += fmt::format("{} trainings{}{}; measured after each:\n", recipe.trainings.size(),
                      stages > 1 ? fmt::format(" of {} stages", stages) : "",
                      std::isfinite(all) ? fmt::format(", {} tokens", format_count(all)) : "");
  for (const Measurement& m : recipe.measurements)
    for (const RecipeColumn& column : m.columns) text += fmt::format("  {}\n", column.label);
  return text;
}

}  // namespace loglinear::app
