#pragma once
// The parameters of a model: their list, their memory, their first values.

#include <map>
#include <string>
#include <vector>

#include "base/large_pages.hpp"
#include "nn/families.hpp"
#include "nn/model.hpp"

namespace loglinear::nn {

// How a parameter begins. Weight decay applies to the first three kinds and to no other.
enum class Init {
  normal,       // N(0, initializer_range): projections, convolutions, embeddings
  matching,     // N(0, 1 / (2 sqrt(fan in))): queries and keys that states are matched by
  residual,     // U(+-1 / sqrt(fan in)) / sqrt(2 * layers): what writes to the residual stream
  zeros,        // biases
  ones,         // norms, D, L
  log_index,    // log(1 .. H): A_log of Mamba-2
  log_uniform,  // log(U(0, 16)): A_log of Gated DeltaNet
  dt_bias,      // inverse softplus of exp(U(ln 0.001, ln 0.1)), not below 1e-4
};

// How L begins: as one where it scales dl alone. Under `content` it scales what comes from queries and keys too, which
// say nothing before they are trained: as zero, so that all states are read alike at first. The gradient of L is then
// of the size of the matches, and theirs is zero: were matches small too, neither would learn for long; were they
// large, what they say by chance would disturb.
inline Init level_init(const ModelConfig& config) {
  return config.level_policy == LevelPolicy::content ? Init::zeros : Init::ones;
}

struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  Init init = Init::normal;
  // Lies in memory directly behind the one before: matrices that read the same input are multiplied as one.
  bool joined = false;
  std::int64_t scales = 0;  // of its last elements: those that make level scales
};

// Queries and keys that a layer matches states by, of the config's match_width; none without.
std::vector<ParameterSpec> match_parameters(const ModelConfig& config);

// The parameters of one mixer, names relative to it.
std::vector<ParameterSpec> mamba2_parameters(const ModelConfig& config);
std::vector<ParameterSpec> gated_deltanet_parameters(const ModelConfig& config);
std::vector<ParameterSpec> linear_parameters(const ModelConfig& config);
std::vector<ParameterSpec> attention_parameters(const ModelConfig& config);
std::vector<ParameterSpec> mosa_parameters(const ModelConfig& config);

// What mixes tokens in a layer, and the names around it.
MixerKind mixer_kind(const ModelConfig& config, std::int64_t layer);
std::string layer_prefix(const ModelConfig& config, std::int64_t layer);  // "backbone.layers.3."
std::string mixer_name(const ModelConfig& config);                        // "mixer" or "attn"
std::string final_norm_name(const ModelConfig& config);
std::string embeddings_name(const ModelConfig& config);

// All parameters of a resolved config.
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);
std::int64_t element_count(const std::vector<std::int64_t>& shape);

template <class T>
struct Weight {
  T* value = nullptr;
  T* grad = nullptr;
};

// Values and gradients, each in one block of memory, zero at first.
template <class T>
class ParameterStore {
 public:
  explicit ParameterStore(const ModelConfig& config);  // resolved

  std::vector<Parameter<T>>& list() { return list_; }
  std::int64_t count() const { return count_; }  // elements, without padding
  // The parameter of this name, which must exist.
  Weight<T> find(const std::string& name) const;
  void initialise(const ModelConfig& config, std::uint64_t seed, int threads);
  void zero_grad();

 private:
  std::vector<ParameterSpec> specs_;
  std::vector<Parameter<T>> list_;
  std::map<std::string, Weight<T>> by_name_;
  LargeArray<T> values_, grads_;
  std::int64_t count_ = 0, padded_ = 0;
};

extern template class ParameterStore<float>;
extern template class ParameterStore<double>;

}  // namespace loglinear::nn
