#pragma once
// Small models of every family, and batches for them. For tests only.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "base/random.hpp"
#include "nn/families.hpp"
#include "nn/model.hpp"

namespace loglinear::nn {

struct TestModel {
  std::string name;
  ModelConfig config;
};

inline void PrintTo(const TestModel& model, std::ostream* out) { *out << model.name; }
inline std::string test_name(const testing::TestParamInfo<TestModel>& info) { return info.param.name; }

inline ModelConfig small_config(const std::string& family) {
  ModelConfig c;
  c.family = family;
  c.vocab_size = 13;
  c.hidden_size = 16;
  c.num_layers = 2;
  c.num_heads = 4;
  c.key_width = 8;
  c.value_width = 8;
  c.mlp_width = 24;
  c.num_levels = 8;
  if (family.ends_with("mamba2")) c.num_groups = 2;
  if (family.ends_with("gated_deltanet") || family == "linear") c.value_width = 12;
  if (family == "sliding_window") c.window = 9;
  if (family == "local_strided") c.window = 5, c.stride = 7;
  if (family == "mosa") c.dense_heads = 1, c.routed_heads = 6, c.sparsity = 5, c.window = 20;
  return c;
}

// Every family, and the settings that change what is computed.
inline std::vector<TestModel> test_models() {
  std::vector<TestModel> models;
  for (const std::string& family : family_names()) models.push_back({family, small_config(family)});
  {  // levels past the last, no convolution memory, odd widths
    ModelConfig c = small_config("log_linear_mamba2");
    c.num_levels = 3;
    c.num_heads = 3;
    c.num_groups = 1;
    c.key_width = 5;
    c.value_width = 7;
    c.conv_width = 1;
    models.push_back({"log_linear_mamba2_odd", c});
    c.family = "log_linear_gated_deltanet";
    c.conv_width = 2;
    models.push_back({"log_linear_gated_deltanet_odd", c});
  }
  for (const char* base : {"mamba2", "gated_deltanet"}) {
    ModelConfig c = small_config(std::string("log_linear_") + base);
    c.trained_levels = 5;
    models.push_back({c.family + "_share", c});
    c.level_policy = LevelPolicy::stretch;
    models.push_back({c.family + "_stretch", c});
    c.level_policy = LevelPolicy::routed;
    models.push_back({c.family + "_routed", c});
    c.level_policy = LevelPolicy::content;
    models.push_back({c.family + "_content", c});
    c.match_width = 6;
    models.push_back({c.family + "_matched", c});
    c.match_width = 0;
    c.level_policy = LevelPolicy::share;
    c.trained_levels = 0;
    c.unit_scales = true;
    models.push_back({std::string("unit_scales_") + base, c});
  }
  {
    ModelConfig c = small_config("log_linear_gated_deltanet");
    c.attn_layers = {1};
    c.attn_heads = 4;
    c.kv_heads = 2;
    c.window = 9;
    c.qkv_bias = true;
    models.push_back({"hybrid", c});
  }
  {
    ModelConfig c = small_config("transformer");
    c.kv_heads = 1;
    c.rope_theta = 100;
    models.push_back({"transformer_shared_keys", c});
    c.family = "local_strided";
    c.window = 4;
    c.stride = 16;
    c.kv_heads = 2;
    c.qkv_bias = true;
    models.push_back({"local_strided_shared_keys", c});
  }
  {  // odd widths
    ModelConfig c = small_config("linear");
    c.num_heads = 3;
    c.key_width = 5;
    c.value_width = 7;
    c.conv_width = 2;
    models.push_back({"linear_odd", c});
  }
  return models;
}

// Those that read one token at a time.
inline std::vector<TestModel> causal_test_models() {
  std::vector<TestModel> models = test_models();
  std::erase_if(models, [](const TestModel& model) { return !find_family(model.config.family)->causal; });
  return models;
}

// Values large enough that every gradient is well above rounding, also where initialise() writes zeros and ones.
template <class T>
void fill(Model<T>& model, std::uint64_t seed) {
  model.initialise(seed);
  Random random(seed, 99);
  for (Parameter<T>& p : model.parameters()) {
    const double width = p.decay && p.shape.size() == 2 ? 1 / std::sqrt(static_cast<double>(p.shape[1])) : 0.3;
    const bool kept = p.name.ends_with("A_log") || p.name.ends_with("dt_bias");
    for (T& x : p.value) x = static_cast<T>((p.decay || kept ? 0 : x) + (kept ? -0.5 : 0) + width * random.normal());
  }
}

struct Batch {
  std::vector<std::int32_t> tokens, targets;
  std::vector<std::int64_t> cu_seqlens{0};
};

// Random tokens; each predicts the next of its sequence, the last one and a few others are not scored.
inline Batch make_batch(const ModelConfig& config, const std::vector<std::int64_t>& lengths, std::uint64_t seed) {
  Batch batch;
  Random random(seed, 1);
  const auto vocab = static_cast<std::uint64_t>(config.vocab_size);
  for (std::int64_t length : lengths) {
    const std::size_t begin = batch.tokens.size();
    for (std::int64_t t = 0; t < length; ++t) batch.tokens.push_back(static_cast<std::int32_t>(random.below(vocab)));
    // Sequences begin differently, so that a model can know which one it reads.
    if (length > 0) batch.tokens[begin] = static_cast<std::int32_t>(batch.cu_seqlens.size() % vocab);
    for (std::size_t t = begin; t < batch.tokens.size(); ++t)
      batch.targets.push_back(t + 1 < batch.tokens.size() && t % 17 != 5 ? batch.tokens[t + 1] : -1);
    batch.cu_seqlens.push_back(batch.cu_seqlens.back() + length);
  }
  return batch;
}

// -ln softmax(logits)[target]
template <class T>
double minus_log_p(const std::vector<T>& logits, std::int32_t target) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (T x : logits) sum += std::exp(static_cast<double>(x) - top);
  return std::log(sum) + top - static_cast<double>(logits[static_cast<std::size_t>(target)]);
}

}  // namespace loglinear::nn
