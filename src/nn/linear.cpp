// Linear attention (Katharopoulos et al., arXiv 2006.16236): q k v from one product, convolution over them, the feature
// map elu + 1 on q and k, the operator without decay and with one level, a norm per head, o_proj.

#include "loglinear/elu.hpp"
#include "loglinear/rms_norm.hpp"
#include "nn/log_linear_core.hpp"
#include "nn/projection.hpp"

namespace loglinear::nn {

std::vector<ParameterSpec> linear_parameters(const ModelConfig& c) {
  const std::int64_t H = c.num_heads, D = c.hidden_size, keys = H * c.key_width, values = H * c.value_width;
  return {{"q_proj.weight", {keys, D}},
          {"k_proj.weight", {keys, D}, Init::normal, true},
          {"v_proj.weight", {values, D}, Init::normal, true},
          {"q_conv1d.weight", {keys, 1, c.conv_width}},
          {"k_conv1d.weight", {keys, 1, c.conv_width}, Init::normal, true},
          {"v_conv1d.weight", {values, 1, c.conv_width}, Init::normal, true},
          {"o_norm.weight", {c.value_width}, Init::ones},
          {"o_proj.weight", {D, values}, Init::residual}};
}

namespace {

template <class T>
class Linear final : public Mixer<T> {
 public:
  Linear(const ModelConfig& c, const ParameterStore<T>& store, const std::string& prefix)
      : config_(c),
        in_proj_{store.find(prefix + "q_proj.weight"), channels_, c.hidden_size},
        out_proj_{store.find(prefix + "o_proj.weight"), c.hidden_size, values_},
        conv_{channels_, c.conv_width, store.find(prefix + "q_conv1d.weight"), {}},
        norm_(store.find(prefix + "o_norm.weight")) {}

  void forward(const Pass<T>& pass, const T* x, T* out) override {
    const std::int64_t N = pass.tokens;
    z_ = pass.keep->template take<T>(N * channels_);
    qkv_ = pass.keep->template take<T>(N * channels_);
    o_ = pass.keep->template take<T>(N * values_);

    in_proj_.forward(N, x, T{0}, z_, pass.threads);
    conv_.forward(pass, z_, channels_, qkv_);
    elu_plus_one_forward(N, 2 * keys_, qkv_, channels_, qkv_, channels_, pass.threads);
    log_linear::ForwardArgs args;
    set_inputs(args, N);
    args.out = Tensor(o_, {1, N, H_, V_});
    run_log_linear(args, pass);

    const ArenaScope scope(*pass.scratch);
    out_proj_.forward(N, normed(pass), T{1}, out, pass.threads);
  }

  void backward(const Pass<T>& pass, const T* x, const T* dout, T* dx) override {
    const ArenaScope scope(*pass.scratch);
    const std::int64_t N = pass.tokens;
    T* dz = pass.scratch->template take<T>(N * channels_);
    T* dqkv = pass.scratch->template take<T>(N * channels_);
    T* do_ = pass.scratch->template take<T>(N * values_);
    T* unused = pass.scratch->template take<T>(2 * N * H_);  // of the decay and the scale, which are constants
    {
      const ArenaScope inner_scope(*pass.scratch);
      out_proj_.backward_weight(N, normed(pass), dout, pass.threads);
    }
    out_proj_.backward_input(N, dout, do_, pass.threads);
    rms_norm_backward<T>(NormGate::none, N, H_, V_, o_, values_, nullptr, 0, norm_.value, config_.norm_eps, do_,
                         values_, T{0}, do_, values_, nullptr, 0, norm_.grad, pass.threads);

    log_linear::BackwardArgs args;
    set_inputs(args, N);
    args.dout = ConstTensor(do_, {1, N, H_, V_});
    args.dq = slice(dqkv, N, K_);
    args.dk = slice(dqkv + keys_, N, K_);
    args.dv = slice(dqkv + 2 * keys_, N, V_);
    args.dg = Tensor(unused, {1, N, H_});
    args.dlevel_scales = Tensor(unused + N * H_, {1, N, H_, 1});
    run_log_linear_backward(args, pass);

    elu_plus_one_backward(N, 2 * keys_, qkv_, channels_, dqkv, channels_, dqkv, channels_, pass.threads);
    conv_.backward(pass, z_, channels_, dqkv, dz, channels_);
    in_proj_.backward_weight(N, x, dz, pass.threads);
    in_proj_.backward_input(N, dz, dx, pass.threads);
  }

  LayerState<T> new_state() const override {
    return new_log_linear_state<T>(Rule::scalar_decay, config_, H_, channels_);
  }

 private:
  // (1, N, H, width) inside the rows q | k | v.
  template <class U>
  auto slice(U* data, std::int64_t N, std::int64_t width) const {
    return BasicTensor<std::conditional_t<std::is_const_v<U>, const void*, void*>>(
        data, {1, N, H_, width}, {N * channels_, channels_, width, 1});
  }

  // What forward and backward read alike: no decay, one level of scale one.
  template <class Args>
  void set_inputs(Args& args, std::int64_t N) const {
    args.rule = Rule::scalar_decay;
    args.q = slice(qkv_, N, K_);
    args.k = slice(qkv_ + keys_, N, K_);
    args.v = slice(qkv_ + 2 * keys_, N, V_);
    args.g = ConstTensor(zeros_.data(), {1, N, H_}, {0, 0, 1});
    args.level_scales = ConstTensor(&one_, {1, N, H_, 1}, {0, 0, 0, 1});
  }

  // RMSNorm(o): cheaper to make again in backward than to keep.
  const T* normed(const Pass<T>& pass) const {
    T* out = pass.scratch->template take<T>(pass.tokens * values_);
    rms_norm_forward<T>(NormGate::none, pass.tokens, H_, V_, o_, values_, nullptr, 0, norm_.value, config_.norm_eps,
                        out, values_, pass.threads);
    return out;
  }

  ModelConfig config_;
  std::int64_t H_ = config_.num_heads, K_ = config_.key_width, V_ = config_.value_width;
  std::int64_t keys_ = H_ * K_, values_ = H_ * V_, channels_ = 2 * keys_ + values_;
  Projection<T> in_proj_, out_proj_;
  ShortConv<T> conv_;
  Weight<T> norm_;
  std::vector<T> zeros_ = std::vector<T>(static_cast<std::size_t>(H_), T{0});
  T one_ = T{1};

  T* z_ = nullptr;    // (N, channels) the projection
  T* qkv_ = nullptr;  // (N, channels) phi(q) | phi(k) | v
  T* o_ = nullptr;    // (N, H, V) before the norm
};

}  // namespace

template <class T>
std::unique_ptr<Mixer<T>> make_linear(const ModelConfig& config, const ParameterStore<T>& store,
                                      const std::string& prefix) {
  return std::make_unique<Linear<T>>(config, store, prefix);
}

template std::unique_ptr<Mixer<float>> make_linear(const ModelConfig&, const ParameterStore<float>&,
                                                   const std::string&);
template std::unique_ptr<Mixer<double>> make_linear(const ModelConfig&, const ParameterStore<double>&,
                                                    const std::string&);

}  // namespace loglinear::nn
