#pragma once
// A training step and generation of a whole model, and which operator takes how much of the step.

#include <cstdint>
#include <string>
#include <vector>

#include "app/bench/row.hpp"
#include "nn/model.hpp"

namespace loglinear::app::bench {

struct ModelCase {
  std::string name;
  nn::ModelConfig config;
  std::int64_t sequences = 1, tokens = 512;  // of a training step: so many sequences of so many tokens
  std::int64_t generated = 64;               // tokens, after the separator of a document
  int threads = 0;
  std::uint64_t seed = 1;
  double seconds = 1;  // of timing
};

// What --model names: "demo", the model of `loglinear demo`, and "130M", log-linear Mamba-2 with 130 million
// parameters.
std::vector<ModelCase> model_cases();

// Rows "train" and "generate". A training step is what `loglinear train` does with a batch: gradients set to zero,
// loss, gradients, their norm, AdamW. Weights and tokens are random. Throws Error when the loss is not finite.
std::vector<Row> measure_model(const ModelCase& c);

}  // namespace loglinear::app::bench
