// The hybrid of MoSA (Piękos et al., arXiv 2505.00315): dense heads with softmax attention and rotary embedding, and
// routed heads that choose their tokens, all writing to the residual stream.

#include "loglinear/mosa.hpp"
#include "base/error.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"
#include "loglinear/flash_attention.hpp"
#include "loglinear/rotary.hpp"
#include "nn/attention_core.hpp"
#include "nn/projection.hpp"

namespace loglinear::nn {

std::vector<ParameterSpec> mosa_parameters(const ModelConfig& c) {
  const std::int64_t D = c.hidden_size, E = c.routed_heads, d = c.key_width, dense = c.dense_heads * d;
  return {{"q_proj.weight", {dense, D}},
          {"k_proj.weight", {dense, D}, Init::normal, true},
          {"v_proj.weight", {dense, D}, Init::normal, true},
          {"o_proj.weight", {D, dense}, Init::residual},
          {"router.weight", {D, E}},
          {"routed_qkv.weight", {E, D, 3 * d}},
          // Its bound is that of D inputs: about as many as H heads have, for a token is chosen by few.
          {"routed_out.weight", {E, d, D}, Init::residual}};
}

namespace {

template <class T>
class Mosa final : public Mixer<T> {
 public:
  Mosa(const ModelConfig& c, const ParameterStore<T>& store, const std::string& prefix)
      : config_(c),
        in_proj_{store.find(prefix + "q_proj.weight"), 3 * dense_, D_},
        out_proj_{store.find(prefix + "o_proj.weight"), D_, dense_},
        router_(store.find(prefix + "router.weight")),
        routed_qkv_(store.find(prefix + "routed_qkv.weight")),
        routed_out_(store.find(prefix + "routed_out.weight")) {}

  void forward(const Pass<T>& pass, const T* x, T* out) override {
    const std::int64_t N = pass.tokens, R = in_proj_.out;
    qkv_ = pass.keep->template take<T>(N * R);
    o_ = pass.keep->template take<T>(N * dense_);
    log_sums_ = pass.keep->template take<T>(N * config_.dense_heads);

    in_proj_.forward(N, x, T{0}, qkv_, pass.threads);
    rotate(Rotation::forward, pass, qkv_);
    flash_attention_forward<T>(packed_sequences(pass), dense_shape(), qkv_, R, qkv_ + dense_, R, qkv_ + 2 * dense_, R,
                               o_, dense_, log_sums_, pass.threads);
    out_proj_.forward(N, o_, T{1}, out, pass.threads);

    const ArenaScope scope(*pass.scratch);
    T* routed = pass.scratch->template take<T>(N * D_);
    mosa_forward<T>(pass.cu_seqlens, routed_shape(), weights(), x, D_, routed, D_, nullptr, pass.threads);
    add(pass, routed, out);
  }

  void backward(const Pass<T>& pass, const T* x, const T* dout, T* dx) override {
    const ArenaScope scope(*pass.scratch);
    const std::int64_t N = pass.tokens, R = in_proj_.out;
    T* dqkv = pass.scratch->template take<T>(N * R);
    T* do_ = pass.scratch->template take<T>(N * dense_);
    T* routed = pass.scratch->template take<T>(N * D_);
    out_proj_.backward_weight(N, o_, dout, pass.threads);
    out_proj_.backward_input(N, dout, do_, pass.threads);
    flash_attention_backward<T>(packed_sequences(pass), dense_shape(), qkv_, R, qkv_ + dense_, R, qkv_ + 2 * dense_, R,
                                o_, dense_, log_sums_, do_, dense_, dqkv, R, dqkv + dense_, R, dqkv + 2 * dense_, R,
                                pass.threads);
    rotate(Rotation::inverse, pass, dqkv);
    in_proj_.backward_weight(N, x, dqkv, pass.threads);
    in_proj_.backward_input(N, dqkv, dx, pass.threads);
    mosa_backward<T>(pass.cu_seqlens, routed_shape(), weights(), x, D_, dout, D_, routed, D_,
                     {router_.grad, routed_qkv_.grad, routed_out_.grad}, pass.threads);
    add(pass, routed, dx);
  }

  LayerState<T> new_state() const override {
    fail("model", "mosa has no streaming form: a head chooses among all tokens of a sequence, those to come included");
  }

 private:
  AttentionShape dense_shape() const {
    AttentionShape shape;
    shape.heads = shape.kv_heads = config_.dense_heads;
    shape.key_width = shape.value_width = width_;
    shape.window = config_.window;
    return shape;
  }
  MosaShape routed_shape() const {
    MosaShape shape;
    shape.model_width = D_;
    shape.heads = config_.routed_heads;
    shape.head_width = width_;
    shape.sparsity = config_.sparsity;
    return shape;
  }
  MosaWeights<T> weights() const { return {router_.value, routed_qkv_.value, routed_out_.value}; }

  // Queries and keys, which lie side by side.
  void rotate(Rotation direction, const Pass<T>& pass, T* qkv) const {
    rotary(direction, pass.cu_seqlens, {}, 2 * config_.dense_heads, width_, config_.rope_theta, qkv, in_proj_.out, qkv,
           in_proj_.out, pass.threads);
  }
  void add(const Pass<T>& pass, const T* x, T* y) const {
    for_row_blocks(pass.tokens, D_, pass.threads, [&](std::int64_t begin, std::int64_t end) {
      vec::add_scaled((end - begin) * D_, T{1}, x + begin * D_, y + begin * D_);
    });
  }

  ModelConfig config_;
  std::int64_t D_ = config_.hidden_size, width_ = config_.key_width, dense_ = config_.dense_heads * width_;
  Projection<T> in_proj_, out_proj_;
  Weight<T> router_, routed_qkv_, routed_out_;

  T* qkv_ = nullptr;       // (N, 3 dense) rotated q | k | v of the dense heads
  T* o_ = nullptr;         // (N, dense)
  T* log_sums_ = nullptr;  // (N, dense heads)
};

}  // namespace

template <class T>
std::unique_ptr<Mixer<T>> make_mosa(const ModelConfig& config, const ParameterStore<T>& store,
                                    const std::string& prefix) {
  return std::make_unique<Mosa<T>>(config, store, prefix);
}

template std::unique_ptr<Mixer<float>> make_mosa(const ModelConfig&, const ParameterStore<float>&, const std::string&);
template std::unique_ptr<Mixer<double>> make_mosa(const ModelConfig&, const ParameterStore<double>&,
                                                  const std::string&);

}  // namespace loglinear::nn
