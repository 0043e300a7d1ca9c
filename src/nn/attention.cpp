// Causal softmax attention with rotary embedding: the Transformer baseline, the hybrid layers of Gated DeltaNet, and
// the same layer with the other operators of its kind.

#include <algorithm>

#include "loglinear/bias.hpp"
#include "loglinear/flash_attention.hpp"
#include "loglinear/rotary.hpp"
#include "loglinear/sparse_attention.hpp"
#include "loglinear/standard_attention.hpp"
#include "nn/attention_core.hpp"
#include "nn/mixer.hpp"
#include "nn/projection.hpp"

namespace loglinear::nn {

// Query heads of a softmax layer.
static std::int64_t attention_heads(const ModelConfig& c) { return c.attn_heads > 0 ? c.attn_heads : c.num_heads; }

std::vector<ParameterSpec> attention_parameters(const ModelConfig& c) {
  const std::int64_t D = c.hidden_size, kv = D / attention_heads(c) * c.kv_heads;
  std::vector<ParameterSpec> specs{{"q_proj.weight", {D, D}},
                                   {"k_proj.weight", {kv, D}, Init::normal, true},
                                   {"v_proj.weight", {kv, D}, Init::normal, true}};
  if (c.qkv_bias) {
    specs.push_back({"q_proj.bias", {D}, Init::zeros});
    specs.push_back({"k_proj.bias", {kv}, Init::zeros, true});
    specs.push_back({"v_proj.bias", {kv}, Init::zeros, true});
  }
  specs.push_back({"o_proj.weight", {D, D}, Init::residual});
  return specs;
}

namespace {

template <class T>
class Attention final : public Mixer<T> {
 public:
  Attention(MixerKind kind, const ModelConfig& c, const ParameterStore<T>& store, const std::string& prefix)
      : kind_(kind),
        config_(c),
        in_proj_{store.find(prefix + "q_proj.weight"), D_ + 2 * kv_, D_},
        out_proj_{store.find(prefix + "o_proj.weight"), D_, D_},
        bias_(c.qkv_bias ? store.find(prefix + "q_proj.bias") : Weight<T>{}) {}

  void forward(const Pass<T>& pass, const T* x, T* out) override {
    const std::int64_t N = pass.tokens, R = in_proj_.out;
    qkv_ = pass.keep->template take<T>(N * R);
    o_ = pass.keep->template take<T>(N * D_);

    in_proj_.forward(N, x, T{0}, qkv_, pass.threads);
    if (bias_.value) bias_forward(N, R, bias_.value, qkv_, R, pass.threads);
    const std::int64_t first[] = {pass.position};
    const auto positions = pass.state ? std::span<const std::int64_t>(first) : std::span<const std::int64_t>();
    rotary(Rotation::forward, pass.cu_seqlens, positions, H_, width_, config_.rope_theta, qkv_, R, qkv_, R,
           pass.threads);
    rotary(Rotation::forward, pass.cu_seqlens, positions, config_.kv_heads, width_, config_.rope_theta, qkv_ + k_at_, R,
           qkv_ + k_at_, R, pass.threads);
    if (pass.state)
      attend_to_cache(pass);
    else
      attend(pass, packed_sequences(pass), qkv_ + k_at_, R, qkv_ + v_at_, R);
    out_proj_.forward(N, o_, T{1}, out, pass.threads);
  }

  void backward(const Pass<T>& pass, const T* x, const T* dout, T* dx) override {
    const ArenaScope scope(*pass.scratch);
    const std::int64_t N = pass.tokens, R = in_proj_.out;
    T* dqkv = pass.scratch->template take<T>(N * R);
    T* do_ = pass.scratch->template take<T>(N * D_);
    out_proj_.backward_weight(N, o_, dout, pass.threads);
    out_proj_.backward_input(N, dout, do_, pass.threads);
    const T *k = qkv_ + k_at_, *v = qkv_ + v_at_;
    T *dk = dqkv + k_at_, *dv = dqkv + v_at_;
    const std::vector<AttentionSequence> sequences = packed_sequences(pass);
    if (kind_ == MixerKind::standard)
      standard_attention_backward<T>(sequences, shape(), qkv_, R, k, R, v, R, kept_, do_, D_, dqkv, R, dk, R, dv, R,
                                     pass.threads);
    else if (kind_ == MixerKind::flash)
      flash_attention_backward<T>(sequences, shape(), qkv_, R, k, R, v, R, o_, D_, kept_, do_, D_, dqkv, R, dk, R, dv,
                                  R, pass.threads);
    else
      sparse_attention_backward<T>(sequences, shape(), pattern(), qkv_, R, k, R, v, R, o_, D_, kept_, do_, D_, dqkv, R,
                                   dk, R, dv, R, pass.threads);
    rotary(Rotation::inverse, pass.cu_seqlens, {}, H_, width_, config_.rope_theta, dqkv, R, dqkv, R, pass.threads);
    rotary(Rotation::inverse, pass.cu_seqlens, {}, config_.kv_heads, width_, config_.rope_theta, dqkv + k_at_, R,
           dqkv + k_at_, R, pass.threads);
    if (bias_.value) bias_backward(N, R, dqkv, R, bias_.grad, pass.threads);
    in_proj_.backward_weight(N, x, dqkv, pass.threads);
    in_proj_.backward_input(N, dqkv, dx, pass.threads);
  }

  LayerState<T> new_state() const override {
    LayerState<T> state;
    state.kv_heads = config_.kv_heads;
    state.kv_width = width_;
    state.window = kind_ == MixerKind::local_strided ? 0 : config_.window;  // a strided key may be any old one
    return state;
  }

 private:
  AttentionShape shape() const {
    AttentionShape shape;
    shape.heads = H_;
    shape.kv_heads = config_.kv_heads;
    shape.key_width = shape.value_width = width_;
    if (!sparse()) shape.window = config_.window;
    return shape;
  }
  SparsePattern pattern() const { return {config_.window, config_.stride}; }
  bool sparse() const { return kind_ == MixerKind::sliding_window || kind_ == MixerKind::local_strided; }

  // o_ from the queries of the pass and any keys and values, and for a pass without a state what backward needs.
  void attend(const Pass<T>& pass, std::span<const AttentionSequence> sequences, const T* k, std::int64_t k_stride,
              const T* v, std::int64_t v_stride) {
    Arena& arena = pass.state ? *pass.scratch : *pass.keep;
    const std::int64_t R = in_proj_.out;
    kept_ = arena.template take<T>(kind_ == MixerKind::standard ? standard_attention_elements(sequences, shape())
                                                                : pass.tokens * H_);
    if (kind_ == MixerKind::standard)
      standard_attention_forward<T>(sequences, shape(), qkv_, R, k, k_stride, v, v_stride, o_, D_, kept_, pass.threads);
    else if (kind_ == MixerKind::flash)
      flash_attention_forward<T>(sequences, shape(), qkv_, R, k, k_stride, v, v_stride, o_, D_, kept_, pass.threads);
    else
      sparse_attention_forward<T>(sequences, shape(), pattern(), qkv_, R, k, k_stride, v, v_stride, o_, D_, kept_,
                                  pass.threads);
  }

  void attend_to_cache(const Pass<T>& pass) {
    LayerState<T>& state = *pass.state;
    const std::int64_t N = pass.tokens, R = in_proj_.out;
    for (std::int64_t t = 0; t < N; ++t) {
      const T* k = qkv_ + t * R + k_at_;
      const T* v = qkv_ + t * R + v_at_;
      state.keys.insert(state.keys.end(), k, k + kv_);
      state.values.insert(state.values.end(), v, v + kv_);
    }
    const std::int64_t rows = static_cast<std::int64_t>(state.keys.size()) / kv_;
    const AttentionSequence sequence{0, N, 0, rows};
    const ArenaScope scope(*pass.scratch);
    attend(pass, {&sequence, 1}, state.keys.data(), kv_, state.values.data(), kv_);
    if (state.window > 0 && rows > state.window)
      for (std::vector<T>* cache : {&state.keys, &state.values})
        cache->erase(cache->begin(), cache->begin() + (rows - state.window) * kv_);
  }

  MixerKind kind_;
  ModelConfig config_;
  std::int64_t D_ = config_.hidden_size, H_ = attention_heads(config_), width_ = D_ / H_;
  std::int64_t kv_ = config_.kv_heads * width_, k_at_ = D_, v_at_ = D_ + kv_;  // in rows of q | k | v
  Projection<T> in_proj_, out_proj_;
  Weight<T> bias_;

  T* qkv_ = nullptr;   // (N, D + 2 kv) rotated
  T* o_ = nullptr;     // (N, D)
  T* kept_ = nullptr;  // log_sums (N, H); of standard attention its probabilities
};

}  // namespace

template <class T>
std::unique_ptr<Mixer<T>> make_attention(MixerKind kind, const ModelConfig& config, const ParameterStore<T>& store,
                                         const std::string& prefix) {
  return std::make_unique<Attention<T>>(kind, config, store, prefix);
}

template std::unique_ptr<Mixer<float>> make_attention(MixerKind, const ModelConfig&, const ParameterStore<float>&,
                                                      const std::string&);
template std::unique_ptr<Mixer<double>> make_attention(MixerKind, const ModelConfig&, const ParameterStore<double>&,
                                                       const std::string&);

}  // namespace loglinear::nn
