#include "nn/parameters.hpp"

#define XXH_INLINE_ALL  // one name at a time: header only
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "base/random.hpp"

namespace loglinear::nn {

MixerKind mixer_kind(const ModelConfig& config, std::int64_t layer) {
  if (std::binary_search(config.attn_layers.begin(), config.attn_layers.end(), layer)) return MixerKind::flash;
  return find_family(config.family)->mixer;
}

// Mamba-2 checkpoints and the others name the same places differently.
static bool named_backbone(const ModelConfig& config) { return find_family(config.family)->mixer == MixerKind::mamba2; }

std::string layer_prefix(const ModelConfig& config, std::int64_t layer) {
  return (named_backbone(config) ? "backbone.layers." : "model.layers.") + std::to_string(layer) + ".";
}

std::string mixer_name(const ModelConfig& config) { return named_backbone(config) ? "mixer" : "attn"; }

std::string final_norm_name(const ModelConfig& config) {
  return named_backbone(config) ? "backbone.norm_f.weight" : "model.norm.weight";
}

std::string embeddings_name(const ModelConfig& config) {
  return named_backbone(config) ? "backbone.embeddings.weight" : "model.embeddings.weight";
}

std::vector<ParameterSpec> match_parameters(const ModelConfig& config) {
  if (config.match_width == 0) return {};
  return {{"match_proj.weight", {2 * config.match_width, config.hidden_size}, Init::matching},
          {"match_conv1d.weight", {2 * config.match_width, 1, config.conv_width}, Init::matching}};
}

static std::vector<ParameterSpec> mixer_parameters(const ModelConfig& config, std::int64_t layer) {
  switch (mixer_kind(config, layer)) {
    case MixerKind::mamba2:
      return mamba2_parameters(config);
    case MixerKind::gated_deltanet:
      return gated_deltanet_parameters(config);
    case MixerKind::linear:
      return linear_parameters(config);
    case MixerKind::flash:
    case MixerKind::standard:
    case MixerKind::sliding_window:
    case MixerKind::local_strided:
      break;
    case MixerKind::mosa:
      return mosa_parameters(config);
  }
  return attention_parameters(config);
}

std::vector<ParameterSpec> parameter_specs(const ModelConfig& config) {
  const std::int64_t D = config.hidden_size, M = config.mlp_width;
  std::vector<ParameterSpec> specs;
  specs.push_back({embeddings_name(config), {config.vocab_size, D}});
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = layer_prefix(config, layer), mixer = mixer_name(config);
    specs.push_back({prefix + mixer + "_norm.weight", {D}, Init::ones});
    for (ParameterSpec& spec : mixer_parameters(config, layer)) {
      spec.name = prefix + mixer + "." + spec.name;
      specs.push_back(std::move(spec));
    }
    specs.push_back({prefix + "mlp_norm.weight", {D}, Init::ones});
    specs.push_back({prefix + "mlp.gate_proj.weight", {M, D}});
    specs.push_back({prefix + "mlp.up_proj.weight", {M, D}, Init::normal, true});
    specs.push_back({prefix + "mlp.down_proj.weight", {D, M}, Init::residual});
  }
  specs.push_back({final_norm_name(config), {D}, Init::ones});
  specs.push_back({"lm_head.weight", {config.vocab_size, D}});
  return specs;
}

static bool decays(const ParameterSpec& spec) {
  return spec.init == Init::normal || spec.init == Init::matching || spec.init == Init::residual;
}

std::vector<ParameterInfo> parameter_list(const ModelConfig& config) {
  std::vector<ParameterInfo> list;
  for (const ParameterSpec& spec : parameter_specs(resolved(config)))
    list.push_back({spec.name, spec.shape, decays(spec)});
  return list;
}

double parameter_count(const ModelConfig& config) {
  double count = 0;
  for (const ParameterInfo& parameter : parameter_list(config)) {
    double elements = 1;
    for (const std::int64_t size : parameter.shape) elements *= static_cast<double>(size);
    count += elements;
  }
  return count;
}

std::int64_t element_count(const std::vector<std::int64_t>& shape) {
  std::int64_t n = 1;
  for (std::int64_t d : shape) n *= d;
  return n;
}

template <class T>
ParameterStore<T>::ParameterStore(const ModelConfig& config) : specs_(parameter_specs(config)) {
  constexpr std::int64_t kPad = 64 / sizeof(T);  // groups of joined tensors begin at a cache line
  std::vector<std::int64_t> offsets;
  for (const ParameterSpec& spec : specs_) {
    if (!spec.joined) padded_ = (padded_ + kPad - 1) / kPad * kPad;
    offsets.push_back(padded_);
    padded_ += element_count(spec.shape);
    count_ += element_count(spec.shape);
  }
  padded_ = (padded_ + kPad - 1) / kPad * kPad;
  const std::size_t bytes = static_cast<std::size_t>(padded_) * sizeof(T);
  for (auto* block : {&values_, &grads_}) {
    *block = new_large_array<T>(static_cast<std::size_t>(padded_));
    if (!*block) fail("model", "out of memory: {} bytes for {} parameters", bytes, count_);
    std::memset(static_cast<void*>(block->get()), 0, bytes);
  }
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const std::size_t n = static_cast<std::size_t>(element_count(specs_[i].shape));
    const Weight<T> weight{values_.get() + offsets[i], grads_.get() + offsets[i]};
    list_.push_back(
        {specs_[i].name, specs_[i].shape, {weight.value, n}, {weight.grad, n}, decays(specs_[i]), specs_[i].scales});
    by_name_.emplace(specs_[i].name, weight);
  }
}

template <class T>
Weight<T> ParameterStore<T>::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) fail("model", "there is no parameter {}", name);
  return found->second;
}

// Element i of a parameter that begins as `spec` says. Two random numbers belong to every element.
static double first_value(const ParameterSpec& spec, const ModelConfig& config, std::uint64_t seed,
                          std::uint64_t stream, std::int64_t i) {
  // Level scales are the same for every level and token at first, so that a log-linear model begins as its base model.
  if (spec.init == Init::normal && i >= element_count(spec.shape) - spec.scales) return 0;
  Random random(seed, stream, 2 * static_cast<std::uint64_t>(i));
  switch (spec.init) {
    case Init::normal:
      return config.initializer_range * random.normal();
    case Init::matching:
      return 0.5 * random.normal() / std::sqrt(static_cast<double>(spec.shape.back()));
    case Init::residual:
      return (2 * random.uniform() - 1) /
             std::sqrt(static_cast<double>(spec.shape.back()) * 2 * static_cast<double>(config.num_layers));
    case Init::zeros:
      return 0;
    case Init::ones:
      return 1;
    case Init::log_index:
      return std::log(static_cast<double>(i + 1));
    case Init::log_uniform:
      return std::log(16 * (1 - random.uniform()));  // in (0, 16]: the logarithm stays finite
    case Init::dt_bias:
      break;
  }
  const double dt = std::max(1e-4, std::exp(std::log(0.001) + random.uniform() * (std::log(0.1) - std::log(0.001))));
  return dt + std::log(-std::expm1(-dt));
}

template <class T>
void ParameterStore<T>::initialise(const ModelConfig& config, std::uint64_t seed, int threads) {
  constexpr std::int64_t kBlock = 1 << 16;
  for (std::size_t p = 0; p < specs_.size(); ++p) {
    const ParameterSpec& spec = specs_[p];
    const std::uint64_t stream = XXH64(spec.name.data(), spec.name.size(), 0);
    const std::span<T> value = list_[p].value;
    const std::int64_t n = static_cast<std::int64_t>(value.size());
    parallel_for((n + kBlock - 1) / kBlock, threads, [&](std::int64_t block) {
      for (std::int64_t i = block * kBlock; i < std::min(n, (block + 1) * kBlock); ++i)
        value[i] = static_cast<T>(first_value(spec, config, seed, stream, i));
    });
  }
}

template <class T>
void ParameterStore<T>::zero_grad() {
  std::memset(static_cast<void*>(grads_.get()), 0, static_cast<std::size_t>(padded_) * sizeof(T));
}

template class ParameterStore<float>;
template class ParameterStore<double>;

}  // namespace loglinear::nn
