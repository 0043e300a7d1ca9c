#include "app/bench/model.hpp"

#include <algorithm>
#include <cmath>

#include "app/demo.hpp"
#include "app/generate.hpp"
#include "app/progress.hpp"
#include "base/cpu_features.hpp"
#include "base/error.hpp"
#include "base/op_timer.hpp"
#include "base/parallel.hpp"
#include "base/random.hpp"
#include "loglinear/adamw.hpp"
#include "ops/log_linear/cpu.hpp"

namespace loglinear::app::bench {
namespace {

// Everything that a training step needs beside the model.
class Training {
 public:
  Training(const ModelCase& c, nn::Model<float>& model) : case_(c), model_(model) {
    Random random(c.seed, 0);
    for (std::int64_t n = 0; n < c.sequences * c.tokens; ++n)
      tokens_.push_back(static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(model.config().vocab_size))));
    targets_ = tokens_;
    for (std::int64_t n = 0; n <= c.sequences; ++n) cu_seqlens_.push_back(n * c.tokens);
    for (const auto& parameter : model.parameters()) {
      first_.emplace_back(parameter.value.size());
      second_.emplace_back(parameter.value.size());
    }
  }

  void step() {
    model_.zero_grad();
    const double loss = model_.loss(tokens_, targets_, cu_seqlens_, true, 1.0 / static_cast<double>(tokens_.size()));
    double squares = 0;
    const auto parameters = model_.parameters();
    for (const auto& p : parameters)
      squares += sum_of_squares(static_cast<std::int64_t>(p.grad.size()), p.grad.data(), case_.threads);
    const double norm = std::sqrt(squares);
    if (!std::isfinite(loss) || !std::isfinite(norm))
      fail("bench", "{}: the loss is {}, the norm of the gradients {}", case_.name, loss, norm);
    AdamWArgs args{.learning_rate = 1e-3, .weight_decay = 0.1, .step = ++steps_, .grad_scale = 1 / std::max(1.0, norm)};
    for (std::size_t i = 0; i < parameters.size(); ++i)
      adamw_step(static_cast<std::int64_t>(parameters[i].value.size()), parameters[i].value.data(),
                 parameters[i].grad.data(), first_[i].data(), second_[i].data(), args, case_.threads);
  }

 private:
  const ModelCase& case_;
  nn::Model<float>& model_;
  std::vector<std::int32_t> tokens_, targets_;
  std::vector<std::int64_t> cu_seqlens_;
  std::vector<std::vector<float>> first_, second_;
  std::int64_t steps_ = 0;
};

Row row_of(const ModelCase& c, const nn::Model<float>& model, const char* form) {
  const nn::ModelConfig& config = model.config();
  Row row;
  row.op = "model";
  row.model = c.name;
  row.rule = name_of(config.family.ends_with("gated_deltanet") ? Rule::gated_delta : Rule::scalar_decay);
  row.form = form;
  row.dtype = name_of(DType::f32);
  row.isa = instruction_set_name(log_linear::cpu::instruction_set());
  row.threads = thread_count(c.threads);
  row.shape = {c.sequences,      c.tokens,           config.num_heads, config.num_groups,
               config.key_width, config.value_width, config.num_levels};
  row.parameters = static_cast<double>(model.parameter_count());
  return row;
}

void take(Row& row, const Timing& t, std::int64_t tokens) {
  row.runs = t.runs;
  row.ms = t.median, row.ms_min = t.min, row.ms_max = t.max, row.ms_mean = t.mean;
  row.tokens_per_s = static_cast<double>(tokens) / (1e-3 * t.median);
}

Row train(const ModelCase& c, nn::Model<float>& model) {
  Row row = row_of(c, model, "train");
  Training training(c, model);
  for (int i = 0; i < 2; ++i) training.step();  // the first takes the memory for the activations, the second joins it
  Timing timing;
  double seconds = 0, named = 0;
  {
    const OperatorTimes times;
    timing = time_calls(c.seconds, [&] { training.step(); });
    seconds = 1e-3 * timing.mean * timing.runs;
    for (const auto& [name, sum] : times.sums()) {
      row.shares.emplace_back(name, 100 * sum.seconds / seconds);
      named += sum.seconds;
      if (sum.operations > 0) row.gflops = 1e-9 * sum.operations / sum.seconds;
    }
  }
  row.shares.emplace_back("rest", 100 * (seconds - named) / seconds);
  std::stable_sort(row.shares.begin(), row.shares.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  take(row, timing, c.sequences * c.tokens);
  return row;
}

Row generate(const ModelCase& c, nn::Model<float>& model) {
  Row row = row_of(c, model, "generate");
  row.shape.B = row.shape.T = 1;
  double state_bytes = 0;
  const auto text = [&] {
    Context context = new_context(model);
    read_text_into(model, context, "");
    GenerateSettings settings;
    settings.seed = c.seed;
    settings.max_tokens = c.generated;
    const std::size_t drawn = app::generate(model, context, settings, false).tokens.size();
    state_bytes = static_cast<double>(context.state.bytes());
    return drawn;
  };
  std::size_t drawn = text();
  // A text may end early, at a separator: the time is that of a token.
  std::vector<double> ms;
  double spent = 0;
  while (ms.size() < 3 || spent < c.seconds) {
    const double start = monotonic_seconds();
    drawn = text();
    const double elapsed = monotonic_seconds() - start;
    spent += elapsed;
    ms.push_back(1e3 * elapsed / static_cast<double>(std::max<std::size_t>(1, drawn)));
    if (spent > 3 * c.seconds) break;
  }
  take(row, timing_of(std::move(ms)), 1);
  row.position = static_cast<std::int64_t>(drawn) + 1;
  row.state_bytes = state_bytes;
  return row;
}

}  // namespace

std::vector<ModelCase> model_cases() {
  ModelCase demo;
  demo.name = "demo";
  demo.config = demo_model();
  demo.sequences = 8;
  demo.generated = 256;
  ModelCase large;
  large.name = "130M";
  large.config.hidden_size = 768;
  large.config.num_layers = 15;
  large.config.num_heads = 24;
  large.config.key_width = 128;
  large.config.value_width = 64;
  large.generated = 32;
  return {demo, large};
}

std::vector<Row> measure_model(const ModelCase& c) {
  nn::Model<float> model(c.config);
  model.threads = c.threads;
  model.initialise(c.seed);
  return {train(c, model), generate(c, model)};
}

}  // namespace loglinear::app::bench
