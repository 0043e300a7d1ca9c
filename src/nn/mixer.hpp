#pragma once
// What mixes tokens in a layer: one interface, one file a kind.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "loglinear/level_matches.hpp"
#include "loglinear/state.hpp"
#include "nn/arena.hpp"
#include "nn/model.hpp"
#include "nn/parameters.hpp"

namespace loglinear::nn {

// What a layer remembers of one sequence. Copying is a fork.
template <class T>
struct LayerState {
  // Log-linear kinds: the inputs of the convolution before the next token, and the operator's state.
  std::int64_t conv_rows = 0, conv_channels = 0;
  std::vector<T> conv;  // (conv_rows, conv_channels)
  std::int64_t groups = 0;
  State state;
  // Policy `content`: keys by which states are matched, summed; with a match_width they are the layer's own, made by a
  // convolution with its own memory.
  std::int64_t match_groups = 0, match_width = 0;  // of key_sums; no groups: there are none
  KeySums<T> key_sums;
  std::vector<T> match_conv;  // (conv_rows, 2 * match_width) or empty
  // Attention: keys (rotated) and values of the newest tokens, all of them unless there is a window.
  std::int64_t kv_heads = 0, kv_width = 0, window = 0;
  std::vector<T> keys, values;  // (rows, kv_heads * kv_width)

  bool attention() const { return kv_heads > 0; }
};

// One pass through a layer: training over packed sequences, or, with a state, the next tokens of one sequence.
template <class T>
struct Pass {
  std::int64_t tokens = 0;                   // N
  std::span<const std::int64_t> cu_seqlens;  // from 0 to N; {0, N} with a state
  std::int64_t position = 0;                 // of the first token, with a state
  std::span<const std::int64_t> offsets;     // without: empty, or the position of each sequence's first token
  LayerState<T>* state = nullptr;            // advanced by N tokens
  Arena* keep = nullptr;                     // lives until backward of this layer
  Arena* scratch = nullptr;                  // lives until the call returns
  int threads = 0;
};

template <class T>
class Mixer {
 public:
  virtual ~Mixer() = default;
  // y += mixer(x); both (N, D). Remembers what backward needs in pass.keep.
  virtual void forward(const Pass<T>& pass, const T* x, T* y) = 0;
  // From dy (N, D): writes dx (N, D) and adds to the gradients of the parameters. Follows forward, without a state, on
  // the same x; may overwrite what forward kept.
  virtual void backward(const Pass<T>& pass, const T* x, const T* dy, T* dx) = 0;
  // Of an empty sequence. Throws Error when the mixer has no streaming form.
  virtual LayerState<T> new_state() const = 0;
};

// The mixer whose parameters are called prefix + the names of its list.
template <class T>
std::unique_ptr<Mixer<T>> make_mamba2(const ModelConfig& config, const ParameterStore<T>& store,
                                      const std::string& prefix);
template <class T>
std::unique_ptr<Mixer<T>> make_gated_deltanet(const ModelConfig& config, const ParameterStore<T>& store,
                                              const std::string& prefix);
template <class T>
std::unique_ptr<Mixer<T>> make_linear(const ModelConfig& config, const ParameterStore<T>& store,
                                      const std::string& prefix);
// kind: one that is_attention.
template <class T>
std::unique_ptr<Mixer<T>> make_attention(MixerKind kind, const ModelConfig& config, const ParameterStore<T>& store,
                                         const std::string& prefix);
template <class T>
std::unique_ptr<Mixer<T>> make_mosa(const ModelConfig& config, const ParameterStore<T>& store,
                                    const std::string& prefix);

}  // namespace loglinear::nn
