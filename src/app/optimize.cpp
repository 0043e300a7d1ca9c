#include "app/optimize.hpp"

#include <cmath>

#include "loglinear/adamw.hpp"

namespace loglinear::app {

Moments new_moments(nn::Model<float>& model) {
  Moments moments;
  for (const auto& parameter : model.parameters()) {
    moments.first.emplace_back(parameter.value.size(), 0.0f);
    moments.second.emplace_back(parameter.value.size(), 0.0f);
  }
  return moments;
}

StepResult optimizer_step(nn::Model<float>& model, Moments& moments, std::int64_t& updates,
                          std::span<const Batch> batches, const OptimizerSettings& settings, double learning_rate) {
  StepResult result;
  for (const Batch& batch : batches) result.scored += batch.scored;
  model.zero_grad();
  for (const Batch& batch : batches)
    result.loss += model.loss(batch.tokens, batch.targets, batch.cu_seqlens, true,
                              1.0 / static_cast<double>(result.scored), {}, batch.offsets);
  const auto parameters = model.parameters();
  double squares = 0;
  for (const auto& q : parameters)
    squares += sum_of_squares(static_cast<std::int64_t>(q.grad.size()), q.grad.data(), model.threads);
  result.norm = std::sqrt(squares);
  if (!std::isfinite(result.loss) || !std::isfinite(result.norm)) return result;

  AdamWArgs args{.beta1 = settings.beta1, .beta2 = settings.beta2, .eps = settings.eps, .step = ++updates};
  if (settings.clip > 0 && result.norm > settings.clip) args.grad_scale = settings.clip / result.norm;
  // Scales that the query alone decides can all become small, and reading stops, when they move as fast as the weights;
  // those of a softmax over what states hold cannot.
  const double by_policy = model.config().level_policy == LevelPolicy::content ? 1 : 0.1;
  const double scales_rate = (settings.scales_lr >= 0 ? settings.scales_lr : by_policy) * learning_rate;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& q = parameters[i];
    args.weight_decay = q.decay ? settings.weight_decay : 0;
    const auto update = [&](std::int64_t begin, std::int64_t count, double rate) {
      args.learning_rate = rate;
      if (count > 0)
        adamw_step(count, q.value.data() + begin, q.grad.data() + begin, moments.first[i].data() + begin,
                   moments.second[i].data() + begin, args, model.threads);
    };
    const std::int64_t others = static_cast<std::int64_t>(q.value.size()) - q.scales;
    update(0, others, learning_rate);
    update(others, q.scales, scales_rate);
  }
  result.applied = true;
  return result;
}

}  // namespace loglinear::app
