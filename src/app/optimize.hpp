#pragma once
// One step of the optimizer, as `train` and `compare --quality` take it.

#include <cstdint>
#include <span>
#include <vector>

#include "app/data.hpp"
#include "nn/model.hpp"

namespace loglinear::app {

// First and second moments of AdamW, (parameter) arrays in the order of Model::parameters().
struct Moments {
  std::vector<std::vector<float>> first, second;
};

// Zeros for every parameter of the model.
Moments new_moments(nn::Model<float>& model);

struct OptimizerSettings {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;  // of the parameters that Parameter::decay names
  // Learning rate of what makes level scales, times that of the others; below 0: 1 for levels by content, otherwise
  // 0.1.
  double scales_lr = -1;
  double clip = 1.0;  // largest norm of all gradients together; 0: no clipping
};

struct StepResult {
  double loss = 0;  // nats, summed over the targets of all batches
  std::int64_t scored = 0;
  double norm = 0;       // of the gradient of the mean loss, before clipping
  bool applied = false;  // false: loss or norm is not finite; parameters and moments are as before
};

// The gradient of the mean loss over the targets of all batches (accumulated batch by batch), then AdamW. `updates` is
// how many steps were applied before, and is counted up when this one is. The same bits for any model.threads.
StepResult optimizer_step(nn::Model<float>& model, Moments& moments, std::int64_t& updates,
                          std::span<const Batch> batches, const OptimizerSettings& settings, double learning_rate);

}  // namespace loglinear::app
