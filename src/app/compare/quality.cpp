#include "app/compare/quality.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <span>

#include "app/data.hpp"
#include "app/evaluate.hpp"
#include "app/measure.hpp"
#include "app/optimize.hpp"
#include "app/progress.hpp"
#include "app/schedule.hpp"
#include "app/score.hpp"
#include "app/source.hpp"
#include "app/train.hpp"
#include "base/error.hpp"
#include "nn/families.hpp"

namespace loglinear::app::compare {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr int kMaxSkippedInARow = 10;                      // as `train`
constexpr std::int64_t kMostSeed = std::int64_t{1} << 53;  // below kHeldOutSeed

enum class Subject { recall, text };

class Quality {
 public:
  Quality(const QualitySettings& settings, const QualityHooks& hooks) : s_(settings), hooks_(hooks) {}
  QualityResult run();

 private:
  void check_settings();
  void read_text();
  nn::ModelConfig config(const std::string& mixer, Subject subject) const;
  bool score(const std::string& mixer, Subject subject, QualityScore& score);
  std::optional<double> train(nn::Model<float>& model, Subject subject, std::uint64_t seed);

  QualitySettings s_;
  QualityHooks hooks_;
  QualityResult result_;
  Text train_text_, held_out_;
  QualityProgress progress_;
  double began_ = 0, told_ = 0;
  std::int64_t steps_done_ = 0;  // of all trainings
};

void Quality::check_settings() {
  const auto need = [](const char* name, auto value, auto low, auto high) {
    if (!(value >= low && value <= high)) fail_usage("quality", "{}: got {}, need {} to {}", name, value, low, high);
  };
  need("seeds", s_.seeds, 1, 1000);
  need("seed", s_.seed, 0, kMostSeed);
  need("heads", s_.heads, 1, 1 << 16);
  need("window", s_.window, 1, std::int64_t{1} << 50);
  need("stride", s_.stride, 1, std::int64_t{1} << 50);
  need("sparsity", s_.sparsity, 1, 1 << 16);
  need("steps", s_.steps, 1, 100'000'000);
  need("batch_tokens", s_.batch_tokens, 1, 1 << 30);
  need("lr", s_.lr, 0.0, 1e6);
  need("warmup", s_.warmup, 0, 100'000'000);
  need("recall_examples", s_.recall_examples, 1, 1 << 24);
  need("seq_len", s_.seq_len, 1, 1 << 30);
  need("data_bytes", s_.data_bytes, 0, std::int64_t{1} << 50);
  need("val_fraction", s_.val_fraction, 1e-6, 0.9);
  need("val_bytes", s_.val_bytes, 1, std::int64_t{1} << 50);
  need("threads", s_.threads, 0, 4096);
  s_.recall = resolved(s_.recall);
  if (s_.recall.name != "mqar" || s_.recall.min_length != s_.recall.length || s_.recall.min_items != s_.recall.items)
    fail_usage("quality", "recall: got {}, need mqar with one length and number of pairs", s_.recall.name);
  for (const std::int64_t length : {s_.recall.length, s_.data.empty() ? 0 : s_.seq_len})
    if (s_.batch_tokens < length)
      fail_usage("quality", "batch_tokens: got {}, less than one sequence of {}", s_.batch_tokens, length);
  if (s_.mixers.empty())
    for (const nn::Family& family : nn::kFamilies) s_.mixers.push_back(family.name);
  for (std::string& mixer : s_.mixers) {
    const nn::Family* family = nn::find_family(mixer);
    if (!family) fail_usage("quality", "{} is no mixer of a model, only {} are", mixer, nn::family_list());
    mixer = family->name;
    if (std::count(s_.mixers.begin(), s_.mixers.end(), mixer) > 1) fail_usage("quality", "{} is there twice", mixer);
    for (const Subject subject : {Subject::recall, Subject::text})
      config(mixer, subject);  // sizes that contradict each other
  }
}

nn::ModelConfig Quality::config(const std::string& mixer, Subject subject) const {
  TrainSettings settings;
  settings.mixer = mixer;
  settings.hidden_size = s_.hidden_size;
  settings.layers = s_.layers;
  settings.heads = s_.heads;
  settings.mlp_width = s_.mlp_width;
  const nn::MixerKind kind = nn::find_family(mixer)->mixer;
  if (kind == nn::MixerKind::sliding_window || kind == nn::MixerKind::local_strided) settings.window = s_.window;
  if (kind == nn::MixerKind::local_strided) settings.stride = s_.stride;
  if (kind == nn::MixerKind::mosa) settings.sparsity = s_.sparsity;
  nn::ModelConfig config = model_config(settings);
  config.vocab_size = subject == Subject::recall ? s_.recall.vocab : 256;
  return nn::resolved(config);
}

void Quality::read_text() {
  if (s_.data.empty()) return;
  TrainSettings settings;
  settings.data = s_.data;
  settings.data_bytes = s_.data_bytes;
  settings.val_fraction = s_.val_fraction;
  auto [train, held_out] = read_training_text(settings, hooks_.warn);
  train_text_ = std::move(train);
  held_out_ = beginning_of(held_out, s_.val_bytes);
  if (train_text_.bytes() < s_.seq_len)
    fail("quality", "the training text has {} bytes, less than one sequence of {}", train_text_.bytes(), s_.seq_len);
  result_.train_bytes = train_text_.bytes();
  result_.held_out_bytes = held_out_.bytes();
}

// Trains the model and gives its score; NaN when it diverged, nothing when interrupted.
std::optional<double> Quality::train(nn::Model<float>& model, Subject subject, std::uint64_t seed) {
  model.initialise(seed);
  Moments moments = new_moments(model);
  std::optional<BatchReader> reader;
  if (subject == Subject::text)
    reader.emplace(train_text_, cut_pieces(train_text_, Packing::documents, s_.seq_len), s_.batch_tokens, seed);
  const Schedule schedule{.peak = s_.lr, .floor = 0.1 * s_.lr, .warmup = s_.warmup};
  const double total = static_cast<double>(s_.steps);
  const double began = monotonic_seconds();
  const Task recall(s_.recall);
  Batch batch;
  std::int64_t updates = 0, tokens = 0;
  std::uint64_t example = 0;
  int skipped = 0;
  for (std::int64_t step = 0; step < s_.steps; ++step) {
    if (reader) {
      reader->next(batch);
    } else {
      batch.clear();
      for (std::int64_t i = s_.batch_tokens / s_.recall.length; i > 0; --i) recall.add_example(seed, example++, batch);
    }
    const double rate =
        learning_rate(schedule, step, static_cast<double>(step) / total, static_cast<double>(s_.warmup) / total);
    const StepResult result = optimizer_step(model, moments, updates, {&batch, 1}, {}, rate);
    skipped = result.applied ? 0 : skipped + 1;
    if (skipped >= kMaxSkippedInARow) return kNaN;

    ++steps_done_;
    tokens += static_cast<std::int64_t>(batch.tokens.size());
    const double now = monotonic_seconds();
    if (hooks_.progress && (now - told_ >= 0.5 || step + 1 == s_.steps)) {
      told_ = now;
      progress_.step = step + 1;
      progress_.tokens_per_second = static_cast<double>(tokens) / (now - began);
      const double all = static_cast<double>(progress_.trainings * s_.steps);
      progress_.eta_seconds = (now - began_) * (all / static_cast<double>(steps_done_) - 1);
      hooks_.progress(progress_);
    }
    if (hooks_.interrupted && hooks_.interrupted()) return std::nullopt;
  }
  if (subject == Subject::recall)
    return score_task(
               model, recall,
               {.examples = s_.recall_examples, .batch_tokens = s_.batch_tokens, .progress = {}, .interrupted = {}})
        .all.accuracy();
  try {
    return evaluate(model, held_out_, {.seq_len = s_.seq_len, .batch_tokens = s_.batch_tokens, .progress = {}})
        .bits_per_byte();
  } catch (const Error&) {  // not finite
    return kNaN;
  }
}

// False when interrupted.
bool Quality::score(const std::string& mixer, Subject subject, QualityScore& score) {
  nn::Model<float> model(config(mixer, subject));
  model.threads = s_.threads;
  score.parameters = model.parameter_count();
  progress_.mixer = mixer;
  progress_.task = subject == Subject::recall ? "recall" : "text";
  const double began = monotonic_seconds();
  for (std::int64_t i = 0; i < s_.seeds; ++i, ++progress_.training) {
    progress_.seed = s_.seed + i;
    const std::optional<double> value = train(model, subject, static_cast<std::uint64_t>(progress_.seed));
    if (!value) return false;
    score.values.push_back(*value);
  }
  score.seconds = monotonic_seconds() - began;
  const Spread spread = spread_of(score.values);
  score.mean = spread.mean;
  score.spread = spread.deviation;
  return true;
}

QualityResult Quality::run() {
  check_settings();
  read_text();
  result_.settings = s_;
  result_.chance = Task(s_.recall).chance();
  result_.recall_queries = s_.recall_examples * s_.recall.items;
  std::vector<Subject> subjects{Subject::recall};
  if (!s_.data.empty()) subjects.push_back(Subject::text);
  progress_.steps = s_.steps;
  progress_.trainings = s_.seeds * static_cast<std::int64_t>(s_.mixers.size() * subjects.size());
  began_ = monotonic_seconds();
  for (const std::string& mixer : s_.mixers) {
    QualityRow row;
    row.mixer = mixer;
    row.sees_future = !nn::find_family(mixer)->causal;
    for (const Subject subject : subjects)
      if (!score(mixer, subject, subject == Subject::recall ? row.recall : row.bits_per_byte)) {
        result_.interrupted = true;
        return result_;
      }
    result_.rows.push_back(std::move(row));
  }
  return result_;
}

}  // namespace

QualityResult run_quality(const QualitySettings& settings, const QualityHooks& hooks) {
  return Quality(settings, hooks).run();
}

}  // namespace loglinear::app::compare
