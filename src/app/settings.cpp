#include "app/settings.hpp"

#include <algorithm>
#include <type_traits>

#include "app/checkpoint.hpp"
#include "base/error.hpp"
#include "io/config.hpp"

namespace loglinear::app {
namespace {

const std::vector<std::string> kPackings = {"documents", "blocks"};
const std::vector<std::string> kSchedules = {"cosine", "linear", "wsd", "constant"};

bool about_one_call(const std::string& name) { return name == "out" || name == "resume" || name == "quiet"; }

// What --from decides.
bool about_the_model(const std::string& name, const std::string& group) {
  return group == "Model" && name != "from" && name != "trained-levels" && name != "position-offsets";
}

// Keys with - in place of _, and the mixer by its names of today.
nlohmann::json settings_of(const nlohmann::json& json, const std::string& source) {
  if (!json.is_object()) fail_usage("train", "{}: an object of settings is needed", source);
  nlohmann::json result = nlohmann::json::object();
  for (const auto& [key, value] : json.items()) {
    std::string name = key;
    std::replace(name.begin(), name.end(), '_', '-');
    if (name == "family") name = "mixer";
    if (result.contains(name)) fail_usage("train", "{}: {} is given twice", source, name);
    result[name] = value;
    if (name == "mixer" && value.is_string())
      if (const nn::Family* family = nn::find_family(value.get<std::string>())) result[name] = family->name;
  }
  return result;
}

// What says nothing about a training on text, or on a task, stays at its default there.
void check_data_settings(const TrainSettings& s) {
  const TrainSettings untouched;
  const nlohmann::json given = to_json(s), defaults = to_json(untouched);
  const auto unused = [&](const std::string& name, const char* why) {
    if (given.at(name) != defaults.at(name)) fail_usage("train", "--{}: {}", name, why);
  };
  if (s.task.name.empty()) {
    for_each_task_flag(s, [&](const std::string& name, const auto&...) { unused(name, "only a --task has it"); });
    unused("val-examples", "only a --task has examples");
    if (s.data.empty()) fail_usage("train", "--data is missing: text files or folders to train on (or give a --task)");
    return;
  }
  unused("epochs", "the examples of a --task have no end, give --steps or --minutes");
  if (s.data.empty())
    for (const char* name : {"data-bytes", "val-data", "val-fraction"})
      unused(name, "of the text that examples are made from, and there is no --data");
  unused("val-bytes", "of text; a --task is validated on --val-examples");
  unused("repeats", "of text; an example of a --task stays as it is");
  unused("packing", "of text; an example of a --task is a sequence of its own");
  const TaskSettings task = resolved(task_of(s));  // refuses numbers that contradict each other
  if (!find_task(task.name)->bytes) unused("data", "the examples of this --task are not made from text");
}

}  // namespace

nlohmann::json to_json(const TrainSettings& settings) {
  nlohmann::json json = nlohmann::json::object();
  for_each_setting(settings, [&](const std::string& name, const auto& value, const SettingRange&, const char* group,
                                 const auto&...) {
    if (about_one_call(name) || (name == "min-lr" && settings.min_lr < 0)) return;
    if (name == "scales-lr" && settings.scales_lr < 0) return;
    if (!settings.from.empty() && about_the_model(name, group)) return;
    json[name] = value;
  });
  return json;
}

void apply_settings(TrainSettings& settings, const nlohmann::json& json, const std::string& source) {
  const nlohmann::json object = settings_of(json, source);
  io::ConfigReader reader(object, source);
  if (object.contains("steps") || object.contains("epochs") || object.contains("minutes"))
    settings.steps = settings.epochs = 0, settings.minutes = 0;
  for_each_setting(settings, [&](const std::string& name, auto& value, const SettingRange& range, const auto&...) {
    using Value = std::remove_cvref_t<decltype(value)>;
    if constexpr (std::is_same_v<Value, bool>) {
      reader.boolean(name, value);
    } else if constexpr (std::is_same_v<Value, std::int64_t>) {
      reader.integer(name, value, static_cast<std::int64_t>(range.low), static_cast<std::int64_t>(range.high));
    } else if constexpr (std::is_same_v<Value, double>) {
      reader.real(name, value, range.low, range.high);
    } else if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
      reader.texts(name, value);
    } else if (name == "mixer") {
      reader.choice(name, value, nn::family_names());
    } else if (name == "level-policy") {
      reader.choice(name, value, nn::level_policy_names());
    } else if (name == "task") {
      if (object.contains(name) && object[name] == "")  // text, as a checkpoint says that was trained on some
        reader.text(name, value);
      else
        reader.choice(name, value, task_names());
    } else if (name == "packing") {
      reader.choice(name, value, kPackings);
    } else if (name == "schedule") {
      reader.choice(name, value, kSchedules);
    } else {
      reader.text(name, value);
    }
  });
  reader.finish();
  if ((settings.steps > 0) + (settings.epochs > 0) + (settings.minutes > 0) > 1)
    fail_usage("train", "{}: steps, epochs or minutes: give one", source);
}

void apply_stored_settings(TrainSettings& settings, const nlohmann::json& json, const std::string& source) {
  apply_settings(settings, json, source);
  if (!settings.from.empty()) return;  // whose config.json says all that follows
  if (!json.contains("match-width")) settings.match_width = 0;
  if (json.contains("level-policy")) return;
  settings.level_policy = "share";
  settings.trained_levels = settings.levels;
  settings.scales_lr = 1;
}

TrainSettings going_on_from(TrainSettings settings, const std::string& from) {
  nlohmann::json untouched = to_json(TrainSettings{}), of_the_model = nlohmann::json::object();
  for_each_setting(settings,
                   [&](const std::string& name, const auto&, const SettingRange&, const char* group, const auto&...) {
                     if (about_the_model(name, group)) of_the_model[name] = untouched.at(name);
                   });
  apply_settings(settings, of_the_model, from);
  settings.from = from;
  return settings;
}

std::string other_model(const TrainSettings& one, const TrainSettings& other) {
  std::string difference;
  const nlohmann::json a = to_json(one), b = to_json(other);
  for_each_setting(one,
                   [&](const std::string& name, const auto&, const SettingRange&, const char* group, const auto&...) {
                     if ((name == "from" || about_the_model(name, group)) &&
                         a.value(name, nlohmann::json()) != b.value(name, nlohmann::json()))
                       difference = name;
                   });
  return difference;
}

TrainSettings resolve_settings(const nlohmann::json& flags, const std::filesystem::path& config) {
  const nlohmann::json file = config.empty() ? nlohmann::json::object() : io::load_config(config);
  const auto apply_given = [&](TrainSettings& settings) {
    if (!config.empty()) apply_settings(settings, file, config.string());
    try {
      apply_settings(settings, flags, "flags");
    } catch (const Error& error) {  // as the caller wrote it: --lr
      std::string text = error.what();
      if (const auto at = text.find("flags: "); at != std::string::npos) text = "--" + text.substr(at + 7);
      throw Error("train", text, error.kind());
    }
  };
  TrainSettings settings;
  apply_given(settings);
  if (settings.resume && !settings.out.empty()) {
    if (const nlohmann::json stored = stored_settings(settings.out); !stored.is_null()) {
      TrainSettings resumed;
      apply_stored_settings(resumed, stored, settings.out + " (settings of the checkpoint)");
      apply_given(resumed);
      return resumed;
    }
    if (settings.data.empty() && settings.task.name.empty())
      fail_usage("train", "--resume: there is no checkpoint in {}, and no --data or --task to begin with",
                 settings.out);
  }
  return settings;
}

std::optional<TrainSettings> training_settings(const std::filesystem::path& path) {
  const std::filesystem::path file = find_checkpoint(path) / "trainer.json";
  if (!std::filesystem::exists(file)) return std::nullopt;
  const nlohmann::json trainer = io::load_config(file);
  if (!trainer.contains("settings")) return std::nullopt;
  TrainSettings settings;
  apply_stored_settings(settings, trainer["settings"], file.string());
  return settings;
}

void complete_settings(TrainSettings& s) {
  if (s.out.empty()) fail_usage("train", "--out is missing: the folder for checkpoints");
  if (!s.from.empty()) {
    TrainSettings given = s, defaults;
    given.from.clear();
    const nlohmann::json now = to_json(given), otherwise = to_json(defaults);
    for_each_setting(s,
                     [&](const std::string& name, const auto&, const SettingRange&, const char* group, const auto&...) {
                       if (about_the_model(name, group) && now.at(name) != otherwise.at(name))
                         fail_usage("train", "--{}: the model of --from {} decides it", name, s.from);
                     });
  }
  check_data_settings(s);
  if (s.steps == 0 && s.epochs == 0 && !(s.minutes > 0)) s.steps = 1000;
  if (s.min_lr < 0) s.min_lr = 0.1 * s.lr;
  if (s.min_lr > s.lr) fail_usage("train", "--min-lr {} is above --lr {}", s.min_lr, s.lr);
  if (s.batch_tokens < s.seq_len)
    fail_usage("train", "--batch-tokens {} is below --seq-len {}", s.batch_tokens, s.seq_len);
}

}  // namespace loglinear::app
