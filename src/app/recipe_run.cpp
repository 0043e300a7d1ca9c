// The trainings of a recipe, several at once.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "app/checkpoint.hpp"
#include "app/progress.hpp"
#include "app/recipe_steps.hpp"
#include "app/settings.hpp"
#include "app/source.hpp"
#include "base/error.hpp"
#include "base/machine.hpp"
#include "io/config.hpp"
#include "io/file.hpp"
#include "io/json_log.hpp"

namespace loglinear::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kRecipe = "recipe";
constexpr double kNotMeasured = std::numeric_limits<double>::quiet_NaN();

// In a file, NaN is "nan", and what does not exist null.
json to_json(const RecipeValue& value) {
  if (!value) return nullptr;
  return std::isfinite(*value) ? json(*value) : json("nan");
}

RecipeValue value_from(const json& value) {
  if (value.is_null()) return std::nullopt;
  return value.is_string() ? kNotMeasured : value.get<double>();
}

class Runner {
 public:
  Runner(const Recipe& recipe, const RecipeRun& run, const RecipeHooks& hooks)
      : recipe_(recipe), out_(run.out), command_(run.command), hooks_(hooks), states_(recipe.trainings.size()) {
    result_.outcomes.resize(recipe.trainings.size());
    for (RecipeOutcome& outcome : result_.outcomes) outcome.values.resize(recipe.measurements.size());
    const std::size_t jobs = static_cast<std::size_t>(run.jobs > 0 ? run.jobs : processors());
    result_.jobs = static_cast<int>(std::clamp<std::size_t>(jobs, 1, std::max<std::size_t>(1, states_.size())));
  }
  RecipeResult run();

 private:
  struct RecipeText {
    Text held_out;
    std::string hash;  // of all that a stage reads and holds out; empty: there is none
  };
  struct State {
    std::atomic<std::int64_t> steps{0}, earlier{0};  // of this call, and of those before it
    std::atomic<bool> running{false};
    std::atomic<double> began{0};
    bool old = false;                   // had ended before this call
    json other_scores = json::array();  // that this recipe does not ask for: kept for one that does
    std::string trained_text;           // `text` of when it was trained; empty: unknown
    std::string text;                   // RecipeText::hash of its stages, one after the other
    const Text* held_out = nullptr;     // by its last stage
  };

  fs::path folder(std::size_t i) const { return out_ / recipe_.trainings[i].name; }
  // Of a stage: that of the training for the last.
  fs::path folder(std::size_t i, std::size_t stage) const {
    const bool last = stage + 1 == recipe_.trainings[i].stages();
    return last ? folder(i) : folder(i) / fmt::format("before-{}", stage + 1);
  }
  bool read_result(std::size_t i);
  void write_result(std::size_t i, bool ended);
  void read_texts();
  template <class F>
  void of_training(std::size_t i, const F& f);
  const RecipeText& text_of(const TrainSettings& settings);
  bool interrupted() const { return stop_ || (hooks_.interrupted && hooks_.interrupted()); }
  void work();
  void train_one(std::size_t i);
  void measure_one(std::size_t i, bool cost);
  bool complete(std::size_t i, bool cost) const;
  void report(std::size_t i);
  // Of the work of a training.
  struct Part {
    double now, all;  // what this call has done; what is done
  };
  Part part(std::size_t i) const;
  void tell();
  void deliver();
  void write_table();

  const Recipe& recipe_;
  const fs::path out_;
  const std::string command_;
  const RecipeHooks& hooks_;
  RecipeResult result_;
  std::vector<State> states_;
  std::map<std::string, RecipeText> texts_;  // by what they are read from
  std::unique_ptr<io::JsonLog> log_;
  double began_ = 0;

  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::mutex guard_;  // of everything below, the log and the outcomes
  std::condition_variable changed_;
  std::exception_ptr error_;
  std::deque<std::string> lines_, warnings_;
  std::set<std::string> warned_;
  std::int64_t done_ = 0;
  int workers_ = 0;
};

// Whether the training has ended before. Refuses what was made with other settings.
bool Runner::read_result(std::size_t i) {
  const fs::path path = folder(i) / "result.json";
  std::error_code ignored;
  json file{{"ended", false}};
  if (fs::exists(path, ignored)) {
    file = io::parse_json(io::read_file(path), path.string());
  } else {  // checkpoints without one are not of a recipe, but may be of such a training
    file["settings"] = stored_settings(folder(i));
    if (file["settings"].is_null()) return false;
  }
  RecipeOutcome outcome;
  outcome.values.resize(recipe_.measurements.size());
  const RecipeTraining& training = recipe_.trainings[i];
  std::vector<json> then;  // settings of its stages
  try {
    for (const json& before : file.value("before", json::array())) then.push_back(before);
    then.push_back(file.at("settings"));
    // Read as settings, so that those which are new since then have the value that they had without saying so.
    for (json& settings : then) {
      TrainSettings stored;
      apply_stored_settings(stored, settings, path.string());
      settings = app::to_json(stored);
    }
    outcome.ended = file.at("ended");
    if (outcome.ended) {
      states_[i].trained_text = file.value("text", "");
      outcome.diverged = file.at("diverged");
      outcome.steps = file.at("steps");
      outcome.tokens = file.at("tokens");
      outcome.parameters = file.at("parameters");
      outcome.seconds = file.at("seconds");
      for (const json& score : file.at("scores")) {
        bool asked = false;
        for (std::size_t m = 0; m < recipe_.measurements.size(); ++m) {
          if (recipe_.measurements[m].definition != score.at("definition")) continue;
          asked = true;
          for (const json& value : score.at("values")) outcome.values[m].push_back(value_from(value));
          if (outcome.values[m].size() != recipe_.measurements[m].columns.size()) outcome.values[m].clear();
        }
        if (!asked) states_[i].other_scores.push_back(score);
      }
    }
  } catch (const json::exception&) {
    fail(kRecipe, "{}: is not one of this program", path.string());
  }
  const auto said = [](const json& settings, const std::string& key) {
    return settings.contains(key) ? settings.at(key).dump() : "by default";
  };
  if (then.size() != training.stages())
    fail_usage(kRecipe, "{} was trained in {} stages, not {}: give another --out, or remove that folder",
               folder(i).string(), then.size(), training.stages());
  for (std::size_t stage = 0; stage < then.size(); ++stage) {
    const json now = app::to_json(training.stage(stage));
    const std::string name = then.size() > 1 ? fmt::format("stage{}.", stage + 1) : "";
    for (const json* settings : {&now, static_cast<const json*>(&then[stage])})
      for (const auto& [key, value] : settings->items())
        if (said(then[stage], key) != said(now, key))
          fail_usage(kRecipe, "{} was trained with {}{} {}, not {}: give another --out, or remove that folder",
                     folder(i).string(), name, key, said(then[stage], key), said(now, key));
  }
  result_.outcomes[i] = outcome;
  return outcome.ended;
}

void Runner::write_result(std::size_t i, bool ended) {
  const RecipeOutcome& outcome = result_.outcomes[i];
  json file{{"settings", app::to_json(recipe_.trainings[i].settings)}, {"ended", ended}};
  for (const TrainSettings& before : recipe_.trainings[i].before) file["before"].push_back(app::to_json(before));
  if (ended) {
    if (!states_[i].text.empty()) file["text"] = states_[i].text;
    json scores = states_[i].other_scores;
    for (std::size_t m = 0; m < recipe_.measurements.size(); ++m) {
      if (outcome.values[m].empty()) continue;
      json labels = json::array(), values = json::array();
      for (const RecipeColumn& column : recipe_.measurements[m].columns) labels.push_back(column.label);
      for (const RecipeValue& value : outcome.values[m]) values.push_back(to_json(value));
      scores.push_back({{"definition", recipe_.measurements[m].definition}, {"labels", labels}, {"values", values}});
    }
    file["diverged"] = outcome.diverged, file["steps"] = outcome.steps, file["tokens"] = outcome.tokens;
    file["parameters"] = outcome.parameters, file["seconds"] = outcome.seconds, file["scores"] = scores;
  }
  io::write_file_atomic(folder(i) / "result.json", file.dump(1, ' ', false, json::error_handler_t::replace) + "\n");
}

// The text of a training, read once for all that have the same.
const Runner::RecipeText& Runner::text_of(const TrainSettings& s) {
  const json paths{s.data, s.val_data, s.val_fraction, s.data_bytes};
  const auto [at, is_new] = texts_.try_emplace(paths.dump(-1, ' ', false, json::error_handler_t::replace));
  if (is_new && !s.data.empty()) {
    TrainingText text = read_training_text(s, {});
    at->second = {std::move(text.held_out), fmt::format("{:016x}", text.train.hash())};
    at->second.hash += fmt::format("{:016x}", at->second.held_out.hash());
  }
  return at->second;
}

// Calls f; an error names the training.
template <class F>
void Runner::of_training(std::size_t i, const F& f) {
  try {
    f();
  } catch (const Error& error) {
    const std::string text = error.what();
    const std::size_t at = text.find("] ");
    throw Error(kRecipe, recipe_.trainings[i].name + ": " + (at == text.npos ? text : text.substr(at + 2)),
                error.kind());
  }
}

// Before anything is trained: a text that is missing, too short or another than before is known at once.
void Runner::read_texts() {
  for (std::size_t i = 0; i < recipe_.trainings.size(); ++i)
    of_training(i, [&] {
      State& state = states_[i];
      const RecipeTraining& training = recipe_.trainings[i];
      for (std::size_t stage = 0; stage < training.stages(); ++stage) {
        const RecipeText& text = text_of(training.stage(stage));
        state.text += text.hash;
        state.held_out = &text.held_out;
      }
      if (!state.trained_text.empty() && state.trained_text != state.text)
        fail_usage(kRecipe, "was trained on another text than --data holds now: give another --out, or remove {}",
                   folder(i).string());
      for (std::size_t m = 0; m < recipe_.measurements.size(); ++m)
        if (result_.outcomes[i].values[m].empty())
          check_score(recipe_.measurements[m], training.settings, *state.held_out);
    });
}

bool Runner::complete(std::size_t i, bool cost) const {
  const RecipeOutcome& outcome = result_.outcomes[i];
  if (!outcome.ended) return false;
  for (std::size_t m = 0; m < recipe_.measurements.size(); ++m)
    if ((recipe_.measurements[m].kind == Measurement::Kind::cost) == cost && outcome.values[m].empty()) return false;
  return true;
}

void Runner::train_one(std::size_t i) {
  const RecipeTraining& training = recipe_.trainings[i];
  State& state = states_[i];
  std::error_code error;
  fs::create_directories(folder(i), error);
  if (error) fail(kRecipe, "cannot make the folder {}: {}", folder(i).string(), error.message());
  {
    const std::lock_guard lock(guard_);
    write_result(i, false);
  }
  TrainHooks hooks;
  hooks.interrupted = [&] {
    ++state.steps;
    return interrupted();
  };
  hooks.warn = [&](const std::string& text) {
    const std::lock_guard lock(guard_);
    if (warned_.insert(text).second) warnings_.push_back(training.name + ": " + text);
  };
  RecipeOutcome outcome = result_.outcomes[i];
  const auto add = [&](std::int64_t steps, std::int64_t tokens, double seconds) {
    outcome.steps += steps, outcome.tokens += tokens, outcome.seconds += seconds;
  };
  try {
    for (std::size_t stage = 0; stage < training.stages(); ++stage) {
      TrainSettings settings = training.stage(stage);
      std::string from = stage > 0 ? fs::absolute(folder(i, stage - 1)).string() : "";
      if (const std::optional<TrainingCheckpoint> begun = newest_checkpoint(folder(i, stage), {})) try {
          state.earlier += begun->trainer.at("step").get<std::int64_t>();
          // It knows what it began with, in words that were true where OUT was then.
          from = begun->trainer.at("settings").value("from", from);
        } catch (const json::exception&) {  // train says what is wrong with it
        }
      if (stage > 0) settings = going_on_from(settings, from);
      settings.out = folder(i, stage).string();
      const TrainResult result = train(settings, hooks);
      if (result.interrupted) throw Interrupted{};
      const std::optional<TrainingCheckpoint> checkpoint = newest_checkpoint(settings.out, {});
      if (!checkpoint) fail("train", "{}: the checkpoint is gone", settings.out);
      add(result.step, checkpoint->trainer.at("tokens"), checkpoint->trainer.at("elapsed_seconds"));
    }
  } catch (const Diverged& end) {
    outcome.diverged = true;
    add(end.step, end.tokens, end.seconds);
  }
  outcome.parameters = static_cast<std::int64_t>(nn::parameter_count(model_config(training.stage(0))));
  outcome.ended = true;
  const std::lock_guard lock(guard_);
  result_.outcomes[i] = outcome;
  write_result(i, true);
}

// What has not been measured yet of what is cost, or of what is not.
void Runner::measure_one(std::size_t i, bool cost) {
  const RecipeTraining& training = recipe_.trainings[i];
  for (std::size_t m = 0; m < recipe_.measurements.size(); ++m) {
    const Measurement& measurement = recipe_.measurements[m];
    if ((measurement.kind == Measurement::Kind::cost) != cost || !result_.outcomes[i].values[m].empty()) continue;
    if (interrupted()) throw Interrupted{};
    const double began = monotonic_seconds();
    std::vector<RecipeValue> values(measurement.columns.size(), kNotMeasured);
    if (!result_.outcomes[i].diverged)
      values = measure(measurement, training.settings, folder(i), *states_[i].held_out, [&] { return interrupted(); });
    const double seconds = monotonic_seconds() - began;

    json labels = json::array(), list = json::array(), sweep = json::object();
    for (const RecipeColumn& column : measurement.columns) labels.push_back(column.label);
    for (const RecipeValue& value : values) list.push_back(to_json(value));
    const RecipeRow& row = recipe_.rows[training.row];
    for (const auto& [key, value] : row.sweep) sweep[key] = value;
    const std::lock_guard lock(guard_);
    result_.outcomes[i].values[m] = values;
    write_result(i, true);
    log_->write(json{{"training", training.name},
                     {"case", row.name},
                     {"sweep", sweep},
                     {"seed", training.settings.seed},
                     {"definition", measurement.definition},
                     {"labels", labels},
                     {"values", list},
                     {"seconds", seconds},
                     {"training_seconds", result_.outcomes[i].seconds},
                     {"tokens", result_.outcomes[i].tokens}});
  }
}

void Runner::write_table() { io::write_file_atomic(out_ / "table.md", recipe_text(recipe_, result_, command_)); }

void Runner::report(std::size_t i) {
  const RecipeOutcome& outcome = result_.outcomes[i];
  const std::lock_guard lock(guard_);
  ++done_;
  std::string line = fmt::format("{} of {}  {}  {}", done_, recipe_.trainings.size(), recipe_.trainings[i].name,
                                 format_duration(outcome.seconds));
  if (outcome.diverged) line += "  diverged";
  for (std::size_t m = 0; m < recipe_.measurements.size(); ++m)
    if (!outcome.values[m].empty()) {
      const RecipeColumn& column = recipe_.measurements[m].columns.front();
      line += fmt::format("  {} {}{}", column.label, format_values({outcome.values[m].front()}, column.unit),
                          column.unit == "%" ? " %" : "");
    }
  lines_.push_back(line);
  result_.seconds = monotonic_seconds() - began_;
  write_table();
}

void Runner::work() {
  try {
    for (std::size_t i; (i = next_.fetch_add(1)) < recipe_.trainings.size();) {
      if (states_[i].old && complete(i, false)) continue;
      if (interrupted()) break;
      states_[i].began = monotonic_seconds();
      states_[i].running = true;
      of_training(i, [&] {
        if (!states_[i].old) train_one(i);
        measure_one(i, false);
      });
      states_[i].running = false;
      report(i);
    }
  } catch (const Interrupted&) {
  } catch (...) {
    const std::lock_guard lock(guard_);
    if (!error_) error_ = std::current_exception();
    stop_ = true;
  }
  const std::lock_guard lock(guard_);
  --workers_;
  changed_.notify_all();
}

Runner::Part Runner::part(std::size_t i) const {
  const RecipeTraining& training = recipe_.trainings[i];
  double steps = 0, minutes = 0;  // of all its stages; 0 when one of them is not measured so
  for (std::size_t stage = 0; stage < training.stages(); ++stage) {
    const TrainSettings& s = training.stage(stage);
    steps = s.steps > 0 && (stage == 0 || steps > 0) ? steps + static_cast<double>(s.steps) : 0;
    minutes = s.minutes > 0 && (stage == 0 || minutes > 0) ? minutes + s.minutes : 0;
  }
  const double earlier = steps > 0 ? std::min(1.0, static_cast<double>(states_[i].earlier) / steps) : 0;
  if (result_.outcomes[i].ended) return {1 - earlier, 1};
  double now = 0;
  if (steps > 0)
    now = static_cast<double>(states_[i].steps) / steps;
  else if (minutes > 0 && states_[i].running)
    now = (monotonic_seconds() - states_[i].began) / (60 * minutes);
  return {std::min(1.0, now), std::min(1.0, earlier + now)};
}

void Runner::tell() {
  if (!hooks_.progress) return;
  RecipeProgress progress;
  progress.all = static_cast<std::int64_t>(recipe_.trainings.size());
  double done = 0, left = 0;
  {
    const std::lock_guard lock(guard_);
    progress.done = done_;
    for (std::size_t i = 0; i < states_.size(); ++i) {
      if (states_[i].old) continue;
      const auto [now, all] = part(i);
      done += recipe_.trainings[i].work * now;
      left += recipe_.trainings[i].work * (1 - all);
      if (states_[i].running)
        progress.running.push_back(fmt::format("{} {:.0f} %", recipe_.trainings[i].name, 100 * all));
    }
  }
  progress.eta_seconds = (monotonic_seconds() - began_) * left / done;
  hooks_.progress(progress);
}

// Lines of the workers: the hooks are called by the thread that runs the recipe.
void Runner::deliver() {
  std::deque<std::string> lines, warnings;
  {
    const std::lock_guard lock(guard_);
    lines.swap(lines_), warnings.swap(warnings_);
  }
  for (const std::string& text : warnings)
    if (hooks_.warn) hooks_.warn(text);
  for (const std::string& text : lines)
    if (hooks_.line) hooks_.line(text);
}

RecipeResult Runner::run() {
  began_ = monotonic_seconds();
  std::error_code error;
  if (fs::exists(out_, error) && !fs::is_directory(out_, error))
    fail(kRecipe, "--out {}: is a file, a folder is needed", out_.string());
  fs::create_directories(out_, error);
  if (error) fail(kRecipe, "cannot make the folder {}: {}", out_.string(), error.message());
  const DirectoryLock lock(out_);
  io::remove_stale_temporaries(out_);
  for (std::size_t i = 0; i < states_.size(); ++i) {
    states_[i].old = read_result(i);
    done_ += states_[i].old && complete(i, false);
  }
  read_texts();
  log_ = std::make_unique<io::JsonLog>(out_ / "results.jsonl");
  if (done_ > 0 && hooks_.line)
    hooks_.line(fmt::format("{} of {} trainings were done before", done_, recipe_.trainings.size()));

  workers_ = result_.jobs;
  std::vector<std::thread> threads;
  for (int w = 0; w < result_.jobs; ++w) threads.emplace_back([this] { work(); });
  for (bool ended = false; !ended;) {
    {
      std::unique_lock waiting(guard_);
      ended = changed_.wait_for(waiting, std::chrono::milliseconds(200), [&] { return workers_ == 0; });
    }
    deliver();
    if (!ended) tell();
  }
  for (std::thread& thread : threads) thread.join();
  if (error_) std::rethrow_exception(error_);
  try {
    for (std::size_t i = 0; i < states_.size(); ++i) {
      if (interrupted()) throw Interrupted{};
      if (complete(i, true)) continue;
      if (hooks_.progress) {
        RecipeProgress progress;
        progress.done = done_, progress.all = static_cast<std::int64_t>(recipe_.trainings.size());
        progress.running.push_back("cost of " + recipe_.trainings[i].name);
        progress.eta_seconds = kNotMeasured;
        hooks_.progress(progress);
      }
      measure_one(i, true);
    }
  } catch (const Interrupted&) {
  }
  for (std::size_t i = 0; i < states_.size(); ++i)
    if (!complete(i, false) || !complete(i, true)) result_.interrupted = true;
  result_.seconds = monotonic_seconds() - began_;
  write_table();
  return result_;
}

}  // namespace

RecipeResult run_recipe(const Recipe& recipe, const RecipeRun& run, const RecipeHooks& hooks) {
  return Runner(recipe, run, hooks).run();
}

}  // namespace loglinear::app
