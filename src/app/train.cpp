#include "app/train.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>

#include <unistd.h>

#include "app/checkpoint.hpp"
#include "app/evaluate.hpp"
#include "app/optimize.hpp"
#include "app/progress.hpp"
#include "app/schedule.hpp"
#include "app/settings.hpp"
#include "app/source.hpp"
#include "base/error.hpp"
#include "io/file.hpp"
#include "io/json_log.hpp"
#include "nn/families.hpp"

namespace loglinear::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kMaxSkippedInARow = 10;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Settings that decide which model is trained on which sequences: a resumed run must keep them, and those of the task.
constexpr const char* kFixed[] = {"mixer",        "hidden-size",    "layers",
                                  "heads",        "groups",         "key-width",
                                  "value-width",  "kv-heads",       "conv-width",
                                  "mlp-width",    "levels",         "level-policy",
                                  "match-width",  "trained-levels", "position-offsets",
                                  "window",       "stride",         "dense-heads",
                                  "routed-heads", "sparsity",       "norm-eps",
                                  "rope-theta",   "packing",        "seq-len",
                                  "batch-tokens", "seed",           "initializer-range",
                                  "accumulate",   "task",           "from",
                                  "repeats"};

std::vector<std::string> fixed_settings() {
  std::vector<std::string> names(std::begin(kFixed), std::end(kFixed));
  TrainSettings any;
  for_each_task_flag(any, [&](const std::string& name, const auto&...) { names.push_back(name); });
  return names;
}

// What changes from step to step and is not in the model or the optimizer: all of it goes into trainer.json.
struct Progress {
  std::int64_t step = 0;     // optimizer steps begun and ended
  std::int64_t updates = 0;  // of these, applied
  std::int64_t skipped = 0;  // of these, not finite and not applied
  std::int64_t skipped_in_a_row = 0;
  std::int64_t tokens = 0;  // read
  DataPosition position;
  double seconds = 0;  // of the whole run
  double best = kNaN;  // validation: bits per byte of text, accuracy of a task
  double last = kNaN;  // the newest of these
  // Since the last line of the log.
  double loss = 0;  // nats, summed over targets
  std::int64_t scored = 0;
};

json number(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }
double number(const json& x) { return x.is_null() ? kNaN : x.get<double>(); }

// key: what the source calls the value of a validation.
json to_json(const Progress& p, const std::string& key) {
  return {{"step", p.step},
          {"updates", p.updates},
          {"skipped", p.skipped},
          {"skipped_in_a_row", p.skipped_in_a_row},
          {"tokens", p.tokens},
          {"epoch", p.position.epoch},
          {"piece", p.position.piece},
          {"elapsed_seconds", p.seconds},
          {"best_validation_" + key, number(p.best)},
          {"validation_" + key, number(p.last)},
          {"interval_loss", p.loss},
          {"interval_scored", p.scored}};
}

Progress progress_from(const json& j, const std::string& key) {
  Progress p;
  p.step = j.at("step");
  p.updates = j.at("updates");
  p.skipped = j.at("skipped");
  p.skipped_in_a_row = j.at("skipped_in_a_row");
  p.tokens = j.at("tokens");
  p.position = {j.at("epoch"), j.at("piece")};
  p.seconds = j.at("elapsed_seconds");
  p.best = number(j.at("best_validation_" + key));
  p.last = number(j.at("validation_" + key));
  p.loss = j.at("interval_loss");
  p.scored = j.at("interval_scored");
  return p;
}

// A run that cannot fit is refused before the machine starts to swap.
void check_memory(const nn::ModelConfig& c) {
  const double parameters = nn::parameter_count(c);
  const double bytes = 16 * parameters;  // value, gradient and two moments
  const double machine = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGE_SIZE));
  if (!(bytes <= machine))
    fail_usage("train", "a model of about {} parameters needs {} bytes of memory, this machine has {}",
               format_count(parameters), format_count(bytes), format_count(machine));
}

// How the model of --from is read.
LoadOptions load_options(const TrainSettings& s) { return {.trained_levels = s.trained_levels}; }

// Levels that are to have scales of their own, of a model that has read them with those of level `trained` - 1: begin
// with these, so that the model is what it was.
void split_levels(nn::Model<float>& model, std::int64_t trained) {
  const std::int64_t heads = model.config().num_heads, levels = model.config().num_levels;
  for (nn::Parameter<float>& parameter : model.parameters()) {
    if (parameter.scales == 0) continue;
    const std::int64_t each = parameter.scales / (heads * levels);
    float* head = parameter.value.data() + parameter.value.size() - parameter.scales;  // (heads, levels, each)
    for (std::int64_t h = 0; h < heads; ++h, head += levels * each)
      for (std::int64_t level = trained; level < model.config().trained_levels; ++level)
        std::copy_n(head + (trained - 1) * each, each, head + level * each);
  }
}

class Trainer {
 public:
  Trainer(const TrainSettings& settings, const TrainHooks& hooks)
      : s_(settings), hooks_(hooks), console_(settings.quiet ? nullptr : hooks.print, hooks.terminal) {}

  TrainResult run();

 private:
  void warn(const std::string& text) {
    console_.clear();
    if (hooks_.warn) hooks_.warn(text);
  }
  void start();
  void check_resumable(const TrainingCheckpoint& checkpoint);
  bool finished() const {
    return s_.minutes > 0 ? p_.seconds >= 60 * s_.minutes && p_.step > 0 : p_.step >= total_steps_;
  }
  double rate() const;
  void step();
  void report(double seconds_of_interval, double rate, double norm);
  double eta() const;
  void validate();
  void save();
  std::string step_text() const;
  double mean_loss() const { return p_.scored > 0 ? p_.loss / static_cast<double>(p_.scored) : kNaN; }

  TrainSettings s_;
  TrainHooks hooks_;
  Console console_;
  std::unique_ptr<Source> source_;
  std::uint64_t data_hash_ = 0, validation_hash_ = 0;
  std::unique_ptr<DirectoryLock> lock_;
  std::unique_ptr<nn::Model<float>> model_;
  Moments moments_;
  std::unique_ptr<io::JsonLog> log_;
  Progress p_;
  std::int64_t total_steps_ = 0;  // 0 when the clock decides
  std::int64_t saved_ = -1;       // step of the newest checkpoint
  std::string checkpoint_;
  std::vector<std::string> changes_;  // settings that differ from the checkpoint's
  double began_ = 0;                  // the clock when p_.seconds was 0
  // Since this process started its current interval.
  double busy_seconds_ = 0, step_seconds_ = 0, interval_tokens_ = 0;
  double last_rate_ = 0, last_norm_ = kNaN;
};

void Trainer::check_resumable(const TrainingCheckpoint& checkpoint) {
  const std::string name = checkpoint.folder.string();
  const json& trainer = checkpoint.trainer;
  const auto hash = [&](const char* key) { return trainer.at(key).get<std::string>(); };
  // Read as settings, so that those which are new since then have the value that they had without saying so.
  TrainSettings stored;
  apply_stored_settings(stored, trainer.at("settings"), name + " (settings of the checkpoint)");
  const json now = app::to_json(s_), then = app::to_json(stored);
  for (const std::string& key : fixed_settings())
    if (now.value(key, json()) != then.value(key, json()))
      fail_usage("train", "--{}: {} was trained with {}, cannot go on with {}", key, name,
                 then.value(key, json()).dump(), now.value(key, json()).dump());
  if (hash("data_hash") != fmt::format("{:016x}", data_hash_))
    fail("train", "{} was trained on other text than this --data", name);
  if (hash("validation_hash") != fmt::format("{:016x}", validation_hash_))
    fail("train", "{} was validated on other text than this --data or --val-data", name);
  for (const auto& [key, value] : now.items())
    if (key != "data" && key != "val-data" && then.contains(key) && then.at(key) != value)
      changes_.push_back(fmt::format("changed   {} from {} to {}", key, then.at(key).dump(), value.dump()));
}

void Trainer::start() {
  complete_settings(s_);
  const fs::path out = s_.out;
  // A run that goes on does not need what it began with any more.
  TrainSettings model_settings = s_;
  if (!s_.from.empty() && s_.resume && !list_checkpoints(out).empty()) model_settings.from = s_.out;
  const nn::ModelConfig config = model_config(model_settings);
  check_memory(config);
  std::error_code error;
  if (fs::exists(out, error) && !fs::is_directory(out, error))
    fail("train", "--out {}: is a file, a folder is needed", out.string());
  if (!s_.resume && !list_checkpoints(out).empty())
    fail_usage("train", "--out {} already holds checkpoints: go on with --resume, or give another folder", s_.out);

  source_ = open_source(s_, [&](const std::string& text) { warn(text); });
  data_hash_ = source_->hash();
  validation_hash_ = source_->validation_hash();
  // Stored, so that a resumed run finds them from any folder.
  const auto from_anywhere = [](std::string& path) { path = fs::absolute(path).lexically_normal().string(); };
  for (auto* paths : {&s_.data, &s_.val_data})
    for (std::string& path : *paths) from_anywhere(path);
  if (!s_.from.empty()) from_anywhere(s_.from);

  fs::create_directories(out, error);
  if (error) fail("train", "cannot make the folder {}: {}", s_.out, error.message());
  lock_ = std::make_unique<DirectoryLock>(out);
  io::remove_stale_temporaries(out);

  std::optional<TrainingCheckpoint> checkpoint;
  if (s_.resume) checkpoint = newest_checkpoint(out, [&](const std::string& text) { warn(text); });
  std::uint64_t log_bytes = 0;
  const bool from = !checkpoint && !s_.from.empty();
  model_ = from ? load_model<float>(s_.from, load_options(s_)) : std::make_unique<nn::Model<float>>(config);
  if (from) split_levels(*model_, load_config(s_.from).trained_levels);
  model_->threads = static_cast<int>(s_.threads);
  if (checkpoint) {
    try {
      check_resumable(*checkpoint);
      p_ = progress_from(checkpoint->trainer, source_->key());
      log_bytes = checkpoint->trainer.at("log_bytes");
    } catch (const json::exception&) {
      fail("train", "{}: trainer.json is not one of this program", checkpoint->folder.string());
    }
    load_checkpoint(*checkpoint, *model_, moments_);
    saved_ = p_.step;
    checkpoint_ = checkpoint->folder.string();
  } else {
    if (!from) model_->initialise(static_cast<std::uint64_t>(s_.seed));
    moments_ = new_moments(*model_);
  }
  log_ = std::make_unique<io::JsonLog>(out / "log.jsonl", log_bytes);
  source_->seek(p_.position);
  if (s_.epochs > 0) {
    std::int64_t batches = 0;
    for (std::int64_t epoch = 0; epoch < s_.epochs; ++epoch) batches += source_->batches_in_epoch(epoch);
    total_steps_ = (batches + s_.accumulate - 1) / s_.accumulate;
  } else if (!(s_.minutes > 0)) {
    total_steps_ = s_.steps;
  }
  began_ = monotonic_seconds() - p_.seconds;

  console_.line(fmt::format("model     {}, {} parameters, {} layers of width {}", config.family,
                            format_count(static_cast<double>(model_->parameter_count())), config.num_layers,
                            config.hidden_size));
  if (from) console_.line(fmt::format("from      {}", find_checkpoint(s_.from).string()));
  console_.line(source_->summary());
  console_.line(
      fmt::format("run       {}, {} tokens a step, into {}",
                  s_.minutes > 0 ? fmt::format("{:g} minutes", s_.minutes) : fmt::format("{} steps", total_steps_),
                  format_count(static_cast<double>(s_.batch_tokens * s_.accumulate)), s_.out));
  if (const std::string text = future_warning(config); !text.empty()) warn(text);
  if (checkpoint) console_.line(fmt::format("resumed   from {}", checkpoint_));
  for (const std::string& change : changes_) console_.line(change);
  if (s_.resume && !checkpoint) console_.line("resumed   nothing: no checkpoint yet, starting from the beginning");
}

double Trainer::rate() const {
  static constexpr std::pair<std::string_view, Decay> kDecays[] = {
      {"constant", Decay::constant}, {"linear", Decay::linear}, {"cosine", Decay::cosine}, {"wsd", Decay::wsd}};
  Schedule schedule{.peak = s_.lr, .floor = s_.min_lr, .warmup = s_.warmup, .wsd_fraction = s_.wsd_fraction};
  for (const auto& [name, decay] : kDecays)
    if (name == s_.schedule) schedule.decay = decay;
  if (s_.minutes > 0) return learning_rate(schedule, p_.step, p_.seconds / (60 * s_.minutes), 0);
  const double total = static_cast<double>(total_steps_);
  return learning_rate(schedule, p_.step, static_cast<double>(p_.step) / total, static_cast<double>(s_.warmup) / total);
}

void Trainer::step() {
  const double begin = monotonic_seconds();
  std::vector<Batch> batches;
  do {
    source_->next(batches.emplace_back());
    const auto seed = static_cast<std::uint64_t>(s_.seed);
    const std::uint64_t number = static_cast<std::uint64_t>(p_.step * s_.accumulate) + batches.size() - 1;
    draw_repeats(batches.back(), s_.repeats, seed, number);
    if (s_.position_offsets > 0)
      draw_offsets(batches.back(), s_.position_offsets, model_->config().num_levels, seed, number);
    interval_tokens_ += static_cast<double>(batches.back().tokens.size());
    p_.tokens += static_cast<std::int64_t>(batches.back().tokens.size());
  } while (static_cast<std::int64_t>(batches.size()) < s_.accumulate &&
           (s_.epochs == 0 || source_->position().epoch < s_.epochs));

  last_rate_ = rate();
  const OptimizerSettings optimizer{.beta1 = s_.beta1,
                                    .beta2 = s_.beta2,
                                    .eps = s_.eps,
                                    .weight_decay = s_.weight_decay,
                                    .scales_lr = s_.scales_lr,
                                    .clip = s_.clip};
  const StepResult result = optimizer_step(*model_, moments_, p_.updates, batches, optimizer, last_rate_);
  last_norm_ = result.norm;
  if (result.applied) {
    p_.skipped_in_a_row = 0;
    p_.loss += result.loss;
    p_.scored += result.scored;
  } else {
    ++p_.skipped;
    ++p_.skipped_in_a_row;
  }
  ++p_.step;
  p_.position = source_->position();
  const double end = monotonic_seconds();
  p_.seconds = end - began_;
  busy_seconds_ += end - begin;
  step_seconds_ = step_seconds_ == 0 ? end - begin : 0.9 * step_seconds_ + 0.1 * (end - begin);
  if (p_.skipped_in_a_row > 0) {
    log_->write(json{{"type", "skipped"},
                     {"step", p_.step},
                     {"loss", number(result.loss / static_cast<double>(result.scored))},
                     {"grad_norm", number(last_norm_)},
                     {"lr", last_rate_},
                     {"skipped", p_.skipped},
                     {"skipped_in_a_row", p_.skipped_in_a_row}});
    if (p_.skipped_in_a_row >= kMaxSkippedInARow) {
      console_.clear();
      throw Diverged(
          fmt::format("{} steps in a row had a loss or gradient that is not finite, the last at step {}: {}",
                      p_.skipped_in_a_row, p_.step,
                      checkpoint_.empty() ? "there is no checkpoint yet; try a smaller --lr"
                                          : "the newest checkpoint is " + checkpoint_ + "; try a smaller --lr"),
          p_.step, p_.tokens, p_.seconds);
    }
  }
}

double Trainer::eta() const {
  if (s_.minutes > 0) return std::max(0.0, 60 * s_.minutes - p_.seconds);
  return static_cast<double>(total_steps_ - p_.step) * step_seconds_;
}

std::string Trainer::step_text() const {
  const int width = static_cast<int>(std::to_string(total_steps_ > 0 ? total_steps_ : 100000).size());
  return total_steps_ > 0 ? fmt::format("step {:>{}}/{}", p_.step, width, total_steps_)
                          : fmt::format("step {:>{}}", p_.step, width);
}

void Trainer::report(double seconds, double rate, double norm) {
  const double loss = mean_loss();
  const double speed = seconds > 0 ? interval_tokens_ / seconds : kNaN;
  json row{{"type", "train"},
           {"step", p_.step},
           {"loss", number(loss)},
           {"lr", rate},
           {"grad_norm", number(norm)},
           {"tokens_per_second", number(speed)},
           {"eta_seconds", number(eta())},
           {"elapsed_seconds", p_.seconds},
           {"tokens", p_.tokens},
           {"epoch", p_.position.epoch},
           {"skipped", p_.skipped}};
  source_->describe(loss, row);
  log_->write(row);
  console_.line(fmt::format("{}  {}  lr {:.2e}  grad {:9.4g}  {:>6} tokens/s  eta {:>8}{}", step_text(),
                            source_->line(loss), rate, norm, format_count(speed), format_duration(eta()),
                            p_.skipped > 0 ? fmt::format("  skipped {}", p_.skipped) : std::string()));
  p_.loss = 0;
  p_.scored = 0;
  interval_tokens_ = busy_seconds_ = 0;
}

void Trainer::validate() {
  if (!source_->validates()) return;
  const Validation found = source_->validate(
      *model_, [&](double part) { console_.live(fmt::format("{}  validating {:3.0f} %", step_text(), 100 * part)); });
  p_.last = found.value;
  const bool best = std::isfinite(found.value) && (std::isnan(p_.best) || source_->better(found.value, p_.best));
  if (best) p_.best = found.value;
  p_.seconds = monotonic_seconds() - began_;
  json row{{"type", "validation"},
           {"step", p_.step},
           {"loss", number(found.loss)},
           {source_->key(), number(found.value)},
           {"best", best},
           {"elapsed_seconds", p_.seconds}};
  row.update(found.log);
  log_->write(row);
  console_.line(fmt::format("{}  {}{}", step_text(), source_->line(found), best ? "  best so far" : ""));
}

void Trainer::save() {
  p_.seconds = monotonic_seconds() - began_;
  json trainer = to_json(p_, source_->key());
  trainer["format"] = "loglinear.trainer";
  trainer["version"] = 1;
  trainer["data_hash"] = fmt::format("{:016x}", data_hash_);
  trainer["validation_hash"] = fmt::format("{:016x}", validation_hash_);
  trainer["log_bytes"] = log_->size();
  // The order of the text is a pure function of the seed and the epoch, so these and the position are its state.
  trainer["random"] = {{"seed", s_.seed}, {"epoch", p_.position.epoch}, {"piece", p_.position.piece}};
  trainer["settings"] = app::to_json(s_);
  console_.live(step_text() + "  saving");
  save_checkpoint(s_.out, *model_, moments_, std::move(trainer));
  saved_ = p_.step;
  checkpoint_ = list_checkpoints(s_.out).front().string();
}

TrainResult Trainer::run() {
  start();
  bool stopped = false;
  const auto every = [&](std::int64_t n) { return n > 0 && p_.step % n == 0; };
  if (finished()) console_.line(fmt::format("{}: this run has ended; more --steps would go on", step_text()));
  while (!finished() && !stopped) {
    step();
    const bool end = finished();
    if (every(s_.log_every) || end) {
      report(busy_seconds_, last_rate_, last_norm_);
    } else {
      console_.live(fmt::format("{}  {}  {} tokens/s  eta {}", step_text(), source_->line(mean_loss()),
                                format_count(interval_tokens_ / busy_seconds_), format_duration(eta())));
    }
    if (every(s_.val_every) || end) validate();
    // After a step that was skipped the parameters are suspect: they do not replace checkpoints that are not.
    if ((every(s_.save_every) && p_.skipped_in_a_row == 0) || end) save();
    stopped = !end && hooks_.interrupted && hooks_.interrupted();
  }
  if (stopped && saved_ != p_.step) save();
  console_.clear();
  if (!stopped)
    console_.line(fmt::format("done      {} steps in {}{}, checkpoint {}", p_.step, format_duration(p_.seconds),
                              std::isfinite(p_.last) ? ", validation " + source_->value(p_.last) : "", checkpoint_));
  return {p_.step, p_.skipped, stopped, p_.last, checkpoint_};
}

}  // namespace

nn::ModelConfig model_config(const TrainSettings& s) {
  nn::ModelConfig c;
  const std::int64_t vocabulary = s.task.name.empty() ? c.vocab_size : resolved(task_of(s)).vocab;
  if (!s.from.empty()) {
    if (const std::int64_t levels = load_config(s.from).num_levels; s.trained_levels > levels)
      fail_usage("train", "--trained-levels {} is above the {} levels of --from {}", s.trained_levels, levels, s.from);
    c = load_config(s.from, load_options(s));
    if (s.task.name.empty() ? c.vocab_size != vocabulary : c.vocab_size < vocabulary)
      fail_usage("train", "--from {}: its vocabulary has {} tokens, that of the {} {}", s.from, c.vocab_size,
                 s.task.name.empty() ? "text" : "task", vocabulary);
    if (s.position_offsets > 0 && !nn::find_family(c.family)->log_linear)
      fail_usage("train", "--position-offsets: {} has no levels to train", c.family);
    return c;
  }
  const nn::Family* family = nn::find_family(s.mixer);
  if (!family) fail_usage("train", "--mixer: there is no {}, only {}", s.mixer, nn::family_list());
  const nn::MixerKind kind = family->mixer;
  const bool softmax = nn::is_attention(kind), delta = kind == nn::MixerKind::gated_deltanet,
             mosa = kind == nn::MixerKind::mosa;
  const auto only = [&](bool has, const char* name, std::int64_t value) {
    if (!has && value > 0) fail_usage("train", "--{}: {} has none", name, family->name);
    return value;
  };
  const auto choose = [](std::int64_t given, std::int64_t otherwise) {
    return given > 0 ? given : std::max<std::int64_t>(otherwise, 1);
  };
  c.family = family->name;
  c.hidden_size = s.hidden_size;
  c.num_layers = s.layers;
  c.conv_width = s.conv_width;
  c.num_levels = s.levels;
  c.trained_levels = s.trained_levels;
  if (s.trained_levels == 0 && s.position_offsets == 0) c.trained_levels = std::min(s.levels, level_count(s.seq_len));
  if (s.position_offsets > 0 && !family->log_linear)
    fail_usage("train", "--position-offsets: {} has no levels to train", family->name);
  if (s.trained_levels > s.levels)
    fail_usage("train", "--trained-levels {} is above --levels {}", s.trained_levels, s.levels);
  c.level_policy = nn::level_policy(s.level_policy);
  // Projections then keep the size of what they read. The 0.006 of published models of width 1536 makes everything in a
  // narrow one small at first, and it learns late (docs/quality.md, 7).
  c.initializer_range =
      s.initializer_range > 0 ? s.initializer_range : 1 / std::sqrt(static_cast<double>(s.hidden_size));
  c.rope_theta = s.rope_theta;
  c.mlp_width = s.mlp_width;
  const std::int64_t d = s.hidden_size;
  if (softmax || mosa) {
    c.num_heads = choose(s.heads, d / 64);
  } else if (kind == nn::MixerKind::linear) {  // as softmax attention
    c.num_heads = choose(s.heads, d / 64);
    c.key_width = choose(s.key_width, d / c.num_heads);
    c.value_width = choose(s.value_width, d / c.num_heads);
  } else if (delta) {  // the paper's proportions: H K = 3/4 D, V = 2 K; with a width of values, H V = 2 D as below
    c.num_heads = choose(s.heads, s.value_width > 0 ? 2 * d / s.value_width : d / 64);
    c.key_width = choose(s.key_width, d * 3 / 4 / c.num_heads);
    c.value_width = choose(s.value_width, 2 * c.key_width);
  } else {  // H V = 2 D
    c.value_width = choose(s.value_width, 64);
    c.num_heads = choose(s.heads, 2 * d / c.value_width);
    c.key_width = choose(s.key_width, 64);
  }
  if (c.level_policy == LevelPolicy::content)
    c.match_width = s.match_width >= 0 ? s.match_width : delta ? 0 : std::max<std::int64_t>(c.key_width, 32);
  c.num_groups = choose(s.groups, 1);  // of the Mamba-2 families; resolved() knows the others'
  c.kv_heads = s.kv_heads;
  c.window = only(softmax || mosa, "window", s.window);
  c.stride = only(kind == nn::MixerKind::local_strided, "stride", s.stride);
  c.dense_heads = only(mosa, "dense-heads", s.dense_heads);
  c.routed_heads = only(mosa, "routed-heads", s.routed_heads);
  c.sparsity = only(mosa, "sparsity", s.sparsity);
  c.vocab_size = vocabulary;
  c.norm_eps = s.norm_eps > 0 ? s.norm_eps : delta ? 1e-6 : 1e-5;
  try {
    return nn::resolved(c);
  } catch (const Error& error) {
    const std::string text = error.what();
    fail_usage("train", "{}", text.substr(text.find("] ") + 2));
  }
}

TaskSettings task_of(const TrainSettings& settings) {
  TaskSettings task = settings.task;
  task.length = settings.seq_len;
  return task;
}

TaskSettings scored_task_of(const TrainSettings& settings) {
  TaskSettings task = task_of(settings);
  if (task.min_items > 0) task.queries = resolved(task).queries;  // by default they depend on the fewest items
  task.min_length = task.min_items = task.item_length = 0;
  task.item_power = 0;
  return task;
}

TrainResult train(const TrainSettings& settings, const TrainHooks& hooks) {
  Trainer trainer(settings, hooks);
  return trainer.run();
}

}  // namespace loglinear::app
