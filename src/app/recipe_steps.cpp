#include "app/recipe_steps.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "app/evaluate.hpp"
#include "app/measure.hpp"
#include "app/optimize.hpp"
#include "app/score.hpp"
#include "app/source.hpp"
#include "base/error.hpp"
#include "base/random.hpp"
#include "io/config.hpp"
#include "io/text.hpp"
#include "nn/families.hpp"

namespace loglinear::app {
namespace {

using nlohmann::json;

constexpr double kNoValue = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kGenerated = 64;  // tokens of a timed call, at most

void overlay(TaskSettings& task, const json& settings, const std::string& source) {
  io::ConfigReader reader(settings, source);
  for_each_task_setting(task, [&](const char* name, auto& value, double low, double high, const char*) {
    using Value = std::remove_cvref_t<decltype(value)>;
    if constexpr (std::is_same_v<Value, std::int64_t>)
      reader.integer(name, value, static_cast<std::int64_t>(low), static_cast<std::int64_t>(high));
    else
      reader.real(name, value, low, high);
  });
  reader.finish();
}

std::vector<RecipeValue> measure_task(nn::Model<float>& model, const json& definition, const TrainSettings& settings,
                                      const Text& text, const std::function<bool()>& interrupted) {
  const Task task(task_to_score(settings, definition, "score"), haystack(text));
  ScoreOptions options;
  options.examples = definition.at("examples");
  options.interrupted = interrupted;
  const TaskScore score = score_task(model, task, options);
  if (score.interrupted) throw Interrupted{};
  // Such a model answers nothing: what it seems to say are the lowest tokens.
  return {std::isfinite(score.loss) ? score.all.accuracy() : kNoValue};
}

// How the text of a "text" measurement is read.
EvaluationOptions evaluation_options(const json& definition, const TrainSettings& settings) {
  EvaluationOptions options;
  options.seq_len = definition.at("length");
  if (options.seq_len == 0) options.seq_len = settings.seq_len;
  options.stride = definition.value("stride", std::int64_t{0});
  return options;
}

std::vector<RecipeValue> measure_text(nn::Model<float>& model, const json& definition, const TrainSettings& settings,
                                      const Text& held_out, const std::function<bool()>& interrupted) {
  const Text text = scored_text(definition, held_out);
  EvaluationOptions options = evaluation_options(definition, settings);
  options.progress = [&](std::int64_t, std::int64_t) {
    if (interrupted && interrupted()) throw Interrupted{};
  };
  const auto positions = definition.at("positions").get<std::vector<std::int64_t>>();
  std::vector<RecipeValue> values(1 + positions.size(), kNoValue);
  try {
    const Evaluation result = evaluate(model, text, options);
    values[0] = result.bits_per_byte();
    for (std::size_t i = 0; i < positions.size(); ++i) {
      std::int64_t bytes = 0;
      double bits = 0;
      for (const EvaluationBin& bin : result.bins)
        if (bin.first >= positions[i] && (i + 1 == positions.size() || bin.first < positions[i + 1]))
          bytes += bin.bytes, bits += bin.bits;
      values[1 + i] = bytes > 0 ? RecipeValue(bits / static_cast<double>(bytes)) : std::nullopt;
    }
  } catch (const Error& error) {
    if (text.bytes() == 0 || error.kind() == Error::Kind::usage) throw;
    // Otherwise the loss is not finite.
  }
  return values;
}

std::vector<RecipeValue> measure_cost(nn::Model<float>& model, const json& definition, const TrainSettings& settings,
                                      const std::function<bool()>& interrupted) {
  std::int64_t length = definition.at("length");
  if (length == 0) length = settings.seq_len;
  const double seconds = definition.at("seconds");
  const auto columns = definition.at("columns").get<std::vector<std::string>>();
  const bool causal = nn::find_family(model.config().family)->causal;
  const Random random(1, 0);
  const auto token = [&](std::int64_t i) {
    return static_cast<std::int32_t>(random.at(static_cast<std::uint64_t>(i)) %
                                     static_cast<std::uint64_t>(model.config().vocab_size));
  };
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < length; ++i) tokens.push_back(token(i));
  std::vector<float> logits(static_cast<std::size_t>(model.config().vocab_size));
  const auto rate = [&](std::int64_t count, const std::function<void()>& call) {
    if (interrupted && interrupted()) throw Interrupted{};
    return static_cast<double>(count) / (time_calls(seconds, call).median * 1e-3);
  };
  // Just before the last tokens: there a state that grows with the set bits of its position is about as large as it
  // gets.
  const std::int64_t generated = std::min(kGenerated, length);
  nn::DecodeState before_last;
  if (causal) {
    before_last = model.new_state();
    if (length > 1) model.read(before_last, std::span(tokens).first(static_cast<std::size_t>(length - 1)), logits);
  }
  std::vector<RecipeValue> values;
  for (const std::string& column : columns) {
    if (column == "parameters") {
      values.emplace_back(static_cast<double>(model.parameter_count()));
    } else if (column == "train") {
      // Whole sequences, as many as a step of the training has tokens for. It changes the weights, not what is timed.
      Batch batch;
      for (std::int64_t i = std::max<std::int64_t>(1, settings.batch_tokens / length); i > 0; --i) {
        for (std::int64_t t = 0; t < length; ++t) {
          batch.tokens.push_back(token(static_cast<std::int64_t>(batch.tokens.size())));
          batch.targets.push_back(token(static_cast<std::int64_t>(batch.tokens.size())));
        }
        batch.cu_seqlens.push_back(static_cast<std::int64_t>(batch.tokens.size()));
      }
      batch.scored = static_cast<std::int64_t>(batch.tokens.size());
      Moments moments = new_moments(model);
      std::int64_t updates = 0;
      const auto step = [&] { optimizer_step(model, moments, updates, {&batch, 1}, {}, 1e-6); };
      // The first two take memory that is new to the process, block by block and then in one.
      step();
      step();
      values.emplace_back(rate(batch.scored, step));
    } else if (!causal) {
      values.emplace_back(std::nullopt);
    } else if (column == "read") {
      values.emplace_back(rate(length, [&] {
        nn::DecodeState fresh = model.new_state();
        model.read(fresh, tokens, logits);
      }));
    } else if (column == "generate") {
      nn::DecodeState state = model.new_state();
      if (length > generated)
        model.read(state, std::span(tokens).first(static_cast<std::size_t>(length - generated)), logits);
      values.emplace_back(rate(generated, [&] {
        nn::DecodeState fork = state;
        for (std::int64_t i = length - generated; i < length; ++i)
          model.read(fork, {&tokens[static_cast<std::size_t>(i)], 1}, logits);
      }));
    } else {
      values.emplace_back(static_cast<double>(before_last.bytes()));
    }
  }
  return values;
}

}  // namespace

std::string shown(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

LoadOptions load_options(const json& model, const std::string& source) {
  LoadOptions options;
  io::ConfigReader reader(model, source);
  reader.boolean("as-log-linear", options.as_log_linear);
  if (model.contains("level-policy")) reader.choice("level-policy", options.level_policy, nn::level_policy_names());
  reader.integer("trained-levels", options.trained_levels, 0, 64);
  reader.finish();
  return options;
}

TaskSettings task_to_score(const TrainSettings& settings, const json& definition, const std::string& source) {
  TaskSettings task{.name = definition.value("name", settings.task.name)};
  if (task.name.empty()) fail_usage("recipe", "{}: name: the models are trained on text: which task?", source);
  if (task.name == settings.task.name) task = scored_task_of(settings);
  overlay(task, definition.at("task"), source);
  return resolved(task);
}

Text scored_text(const json& definition, const Text& held_out) {
  const std::int64_t limit = definition.at("bytes");
  if (!definition.contains("data")) return beginning_of(held_out, limit);
  const auto paths = definition.at("data").get<std::vector<std::string>>();
  return Text(
      io::read_text(std::vector<io::Path>(paths.begin(), paths.end()), static_cast<std::uint64_t>(limit)).documents);
}

void check_score(const Measurement& measurement, const TrainSettings& settings, const Text& held_out) {
  const json& definition = measurement.definition;
  const auto need_held_out = [&] {
    if (held_out.bytes() == 0)
      fail_usage("recipe", "nothing is held out of the text (val-fraction 0): nothing can be scored");
  };
  switch (measurement.kind) {
    case Measurement::Kind::task: {
      const TaskSettings task = task_to_score(settings, definition, "score");
      if (find_task(task.name)->bytes && !settings.data.empty()) need_held_out();
      (void)Task(task, haystack(held_out));
      break;
    }
    case Measurement::Kind::text:
      if (!definition.contains("data")) need_held_out();
      check_text(scored_text(definition, held_out), evaluation_options(definition, settings));
      break;
    case Measurement::Kind::cost:
      break;
  }
}

std::vector<RecipeValue> measure(const Measurement& measurement, const TrainSettings& settings,
                                 const std::filesystem::path& checkpoint, const Text& text,
                                 const std::function<bool()>& interrupted) {
  const json& definition = measurement.definition;
  const auto model =
      load_model<float>(checkpoint, load_options(definition.value("model", json::object()), "score: model"));
  model->threads = 1;
  switch (measurement.kind) {
    case Measurement::Kind::task:
      return measure_task(*model, definition, settings, text, interrupted);
    case Measurement::Kind::text:
      return measure_text(*model, definition, settings, text, interrupted);
    case Measurement::Kind::cost:
      break;
  }
  model->threads = definition.at("threads");
  return measure_cost(*model, definition, settings, interrupted);
}

}  // namespace loglinear::app
