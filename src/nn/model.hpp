#pragma once
// The language models: families that share one block and differ in what mixes tokens, with an explicit backward.
// docs/algorithm.md has the mathematics.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "loglinear/level_scales.hpp"

#include "loglinear/state.hpp"

namespace loglinear::nn {

// What a model is. Names and meanings follow the published checkpoints; to_json / config_from_json convert to
// config.json. Fields that a family does not have are ignored; resolved() sets them to these defaults.
struct ModelConfig {
  // A name of nn::kFamilies, or another name of the same family (transformer for flash), which resolved() replaces.
  // config.json has the published model_type of each family; the other names are read too.
  std::string family = "log_linear_mamba2";
  std::int64_t vocab_size = 256;
  std::int64_t hidden_size = 256;  // D
  std::int64_t num_layers = 4;
  std::int64_t num_heads = 8;     // H
  std::int64_t num_groups = 1;    // G   (Mamba-2 families; others: G = H)
  std::int64_t key_width = 64;    // K   (Mamba-2: state size N; GDN, linear: head_dim; softmax: always D / H)
  std::int64_t value_width = 64;  // V   (Mamba-2: head_dim P; GDN, linear: head_dim * expand_v; softmax: always D / H)
  std::int64_t conv_width = 4;
  std::int64_t mlp_width = 0;    // 0: 256 * ceil(int(D * 4 * 2 / 3) / 256)
  std::int64_t num_levels = 15;  // L; 1 scale fixed at one for the base families
  double norm_eps = 1e-5;
  double initializer_range = 0.006;
  // How many of the levels training has reached, and what older ones are read with (loglinear/level_scales.hpp). 0: all
  // of them, which with `share` is the published model.
  std::int64_t trained_levels = 0;
  LevelPolicy level_policy = LevelPolicy::share;
  // Width of a query and a key that a layer has for `content` to match states by, apart from those of the operator, and
  // less the mean of all keys so far (loglinear/level_matches.hpp, center_matches); 0: those of the operator, as they
  // are. Other policies leave them unused.
  std::int64_t match_width = 0;
  bool unit_scales = false;  // a base checkpoint loaded as a log-linear model: every level scale is one, no dl, no L

  // Softmax attention: every layer of flash (the transformer), standard, sliding_window and local_strided, the hybrid
  // layers of the GDN families, and the dense heads of mosa.
  std::int64_t kv_heads = 0;  // 0: as many as query heads (mosa: always)
  double rope_theta = 500000;
  // The newest keys that a token sees; 0: all of them, but kDefaultWindow in sliding_window and local_strided.
  std::int64_t window = 0;
  std::int64_t stride = 0;                // local_strided: of the older keys that a token sees; 0: kDefaultStride
  bool qkv_bias = false;                  // biases on q_proj, k_proj and v_proj (not mosa)
  std::vector<std::int64_t> attn_layers;  // hybrids: which layers, ascending; others: ignored
  std::int64_t attn_heads = 0;            // hybrids: their query heads, 0: num_heads

  // mosa: every head has the width D / H; dense_heads of them are softmax attention, routed_heads choose
  // max(2, T / sparsity) tokens each. 0: half of H; sparsity for each of H that is not dense, so that the projections
  // are as much work as those of H dense heads; kDefaultSparsity.
  std::int64_t dense_heads = 0, routed_heads = 0, sparsity = 0;

  static constexpr std::int64_t kDefaultWindow = 256, kDefaultStride = 64, kDefaultSparsity = 4;

  bool operator==(const ModelConfig&) const = default;
};

// "share", "stretch", "routed", "content", in the order of LevelPolicy; and which one a name is. Throws Error (usage)
// for others.
std::vector<std::string> level_policy_names();
LevelPolicy level_policy(const std::string& name);

// The names a family may have, in the order above.
std::vector<std::string> family_names();

// Throws Error (usage) naming the field when a value is out of range or values contradict each other.
void check(const ModelConfig& config);
// check(), then the config with every derived value filled in (mlp_width, kv_heads, the transformer's widths, one level
// for base families) and every field that the family does not have at its default. Model::config() is resolved.
ModelConfig resolved(const ModelConfig& config);

// The published keys and model_type, of the resolved config.
nlohmann::json to_json(const ModelConfig& config);
// Gives a resolved config. Throws Error (failure) naming the key: missing, mistyped, out of range, contradictory, or a
// published option that this model does not have. Other keys (bookkeeping) are ignored.
ModelConfig config_from_json(const nlohmann::json& json);
// The same from the text of a config.json, which, as Python writes it, may contain the bare words Infinity and NaN.
ModelConfig config_from_text(const std::string& text);

// Name, shape and kind of every parameter, in the order of Model::parameters(), without allocating a model.
struct ParameterInfo {
  std::string name;
  std::vector<std::int64_t> shape;
  bool decay = true;  // whether weight decay applies
};
std::vector<ParameterInfo> parameter_list(const ModelConfig& config);
// Numbers in all of them: a double, as a configuration may ask for more than an integer holds.
double parameter_count(const ModelConfig& config);

// One parameter tensor, with its published name. value and grad are owned by the model.
template <class T>
struct Parameter {
  std::string name;
  std::vector<std::int64_t> shape;
  std::span<T> value;
  std::span<T> grad;
  bool decay = true;        // whether weight decay applies
  std::int64_t scales = 0;  // how many of its last elements make level scales: they want a smaller learning rate
};

// An array of a decoding state, under a name that is unique within the state: how states are written to files.
struct StateTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  DType dtype = DType::f32;
  std::vector<std::byte> bytes;
};

// What a model remembers of one sequence: convolution tails and operator states, or keys and values. Copying is a fork.
class DecodeState {
 public:
  DecodeState();
  DecodeState(const DecodeState&);
  DecodeState(DecodeState&&) noexcept;
  DecodeState& operator=(const DecodeState&);
  DecodeState& operator=(DecodeState&&) noexcept;
  ~DecodeState();

  std::int64_t position() const;  // tokens read so far
  std::size_t bytes() const;      // of the arrays it holds, those shared with forks counted in full
  // "position" (1) in f64, and for layer i: "layers.i.conv", "layers.i.state.bit<j>" (H, K, V) with its ".log_decay"
  // (H) in f64 for every set bit j of the position, or "layers.i.keys" and "layers.i.values".
  std::vector<StateTensor> save() const;

  struct Impl;
  std::unique_ptr<Impl> impl;
};

// T: float for use, double for the gradient checks.
template <class T>
class Model {
 public:
  // Allocates parameters and gradients (all zero). Throws Error as check() does.
  explicit Model(const ModelConfig& config);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const;
  std::span<Parameter<T>> parameters();
  std::int64_t parameter_count() const;

  // Fills the parameters as docs say for each kind; a pure function of the seed and the parameter's name.
  void initialise(std::uint64_t seed);

  // One pass over packed sequences. tokens, targets: (N) in [0, vocab); a target of -1 is not scored. cu_seqlens: (n +
  // 1), from 0 to N. Returns the sum over scored positions of -ln p(target) and, when backward, ADDS scale * its
  // gradient to every parameter's grad. losses: empty, or (N), written with each position's -ln p (0 where not scored).
  // offsets: empty, or (n), the position at which each sequence begins (0 to 2^61), as if that many tokens of nothing
  // came before: only the levels that log-linear mixers read through depend on it.
  double loss(std::span<const std::int32_t> tokens, std::span<const std::int32_t> targets,
              std::span<const std::int64_t> cu_seqlens, bool backward, double scale = 1.0, std::span<float> losses = {},
              std::span<const std::int64_t> offsets = {});
  void zero_grad();
  // The most probable token after each of the tokens (the lowest of equal ones; -1 where a logit is NaN), of the same
  // pass. predicted: (N), written. targets: empty, or (N) as in loss(), whose value without backward is returned then;
  // otherwise 0.
  double predict(std::span<const std::int32_t> tokens, std::span<const std::int64_t> cu_seqlens,
                 std::span<std::int32_t> predicted, std::span<const std::int32_t> targets = {});

  // Decoding. new_state: position 0. read: consumes tokens (any number >= 1, chunked) and writes the logits after the
  // last one, (vocab). A single token goes through the operator's step form. Throws Error, state untouched, on a token
  // out of range or a state of a model with another config. new_state throws Error for a family that is not causal: it
  // has no streaming form.
  DecodeState new_state() const;
  void read(DecodeState& state, std::span<const std::int32_t> tokens, std::span<T> logits);
  // read(), but for the loss of every target instead of the last logits: loss() without backward of one sequence that
  // continues the state, in memory that does not grow with the number of tokens.
  double score(DecodeState& state, std::span<const std::int32_t> tokens, std::span<const std::int32_t> targets,
               std::span<float> losses = {});
  // Restores what DecodeState::save gave. Throws Error when a tensor is missing or has the wrong shape for this model.
  DecodeState load_state(const std::vector<StateTensor>& tensors) const;

  int threads = 0;  // 0: what OpenMP would use; never changes the result

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

extern template class Model<float>;
extern template class Model<double>;

}  // namespace loglinear::nn
