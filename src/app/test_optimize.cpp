#include "app/optimize.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace loglinear::app {
namespace {

nn::ModelConfig small(const char* family) {
  nn::ModelConfig c;
  c.family = family;
  c.vocab_size = 11;
  c.hidden_size = 8;
  c.num_layers = 1;
  c.num_heads = 2;
  c.key_width = c.value_width = 4;
  c.mlp_width = 8;
  c.num_levels = 6;
  c.initializer_range = 0.3;
  return c;
}

Batch some_batch() {
  Batch batch;
  for (int i = 0; i < 60; ++i) {
    batch.tokens.push_back(i * i % 11);
    batch.targets.push_back((i + 1) * (i + 1) % 11);
  }
  batch.cu_seqlens = {0, 25, 60};
  batch.scored = 60;
  return batch;
}

// The parameters that make level scales move by `scales_lr` times what the others would, and nothing else changes.
TEST(Optimizer, LevelScalesHaveARateOfTheirOwn) {
  for (const char* family : {"log_linear_mamba2", "log_linear_gated_deltanet"}) {
    const Batch batch = some_batch();
    const auto moves = [&](double scales_lr) {
      nn::Model<float> model(small(family));
      model.initialise(1);
      std::vector<std::vector<float>> before;
      for (auto& p : model.parameters()) {
        // Not where they begin: a scale whose dl is zero has no gradient in L.
        for (std::size_t i = p.value.size() - static_cast<std::size_t>(p.scales); i < p.value.size(); ++i)
          p.value[i] += 0.1f * static_cast<float>(i % 7);
        before.emplace_back(p.value.begin(), p.value.end());
      }
      Moments moments = new_moments(model);
      std::int64_t updates = 0;
      optimizer_step(model, moments, updates, {&batch, 1}, {.weight_decay = 0, .scales_lr = scales_lr}, 1e-3);
      for (std::size_t i = 0; i < before.size(); ++i)
        for (std::size_t j = 0; j < before[i].size(); ++j) before[i][j] = model.parameters()[i].value[j] - before[i][j];
      return before;
    };
    const auto one = moves(1), tenth = moves(0.1), none = moves(0);
    nn::Model<float> model(small(family));
    std::int64_t scales = 0;
    for (std::size_t i = 0; i < one.size(); ++i) {
      const std::size_t others = one[i].size() - static_cast<std::size_t>(model.parameters()[i].scales);
      scales += model.parameters()[i].scales;
      double largest = 0;
      for (std::size_t j = 0; j < one[i].size(); ++j) {
        if (j < others) {
          EXPECT_EQ(one[i][j], tenth[i][j]) << model.parameters()[i].name;
        } else {
          EXPECT_NEAR(tenth[i][j], 0.1 * one[i][j], 2e-7) << model.parameters()[i].name;
          EXPECT_EQ(none[i][j], 0);
          largest = std::max<double>(largest, std::abs(one[i][j]));
        }
      }
      if (others < one[i].size()) EXPECT_GT(largest, 5e-4) << model.parameters()[i].name;
    }
    EXPECT_EQ(scales, 2 * 6 * 8 + 2 * 6);  // H L of dl for each of D inputs, and L
  }
}

// A batch whose sequences begin elsewhere trains the scales of other levels.
TEST(Optimizer, PositionsOfABatchCount) {
  const auto gradient_of_last_level = [](std::int64_t offset) {
    Batch batch = some_batch();
    batch.offsets = {0, offset};
    nn::ModelConfig config = small("log_linear_mamba2");
    config.num_levels = 12;
    nn::Model<float> model(config);
    model.initialise(1);
    for (auto& p : model.parameters())
      for (std::size_t i = p.value.size() - static_cast<std::size_t>(p.scales); i < p.value.size(); ++i)
        p.value[i] += 0.1f;
    Moments moments = new_moments(model);
    std::int64_t updates = 0;
    optimizer_step(model, moments, updates, {&batch, 1}, {}, 1e-3);
    for (const auto& p : model.parameters())
      if (p.name.ends_with(".L")) return std::abs(p.grad[11]);  // of the first head
    return -1.0f;
  };
  EXPECT_EQ(gradient_of_last_level(0), 0);
  EXPECT_GT(gradient_of_last_level(1024 - 20), 0);  // 2^10 lies in the second sequence
}

}  // namespace
}  // namespace loglinear::app
