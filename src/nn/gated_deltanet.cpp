// Gated DeltaNet and log-linear Gated DeltaNet: q k v g a b l from one product, convolution over q k v, unit-length q
// and k, the operator with the gated delta rule, a norm per head, the gate, o_proj.

#include <cmath>

#include "loglinear/l2_norm.hpp"
#include "loglinear/rms_norm.hpp"
#include "nn/log_linear_core.hpp"
#include "nn/projection.hpp"

namespace loglinear::nn {

std::vector<ParameterSpec> gated_deltanet_parameters(const ModelConfig& c) {
  const std::int64_t H = c.num_heads, D = c.hidden_size, keys = H * c.key_width, values = H * c.value_width;
  const bool scales = learns_level_scales(c);
  std::vector<ParameterSpec> specs{{"q_proj.weight", {keys, D}},
                                   {"k_proj.weight", {keys, D}, Init::normal, true},
                                   {"v_proj.weight", {values, D}, Init::normal, true},
                                   {"g_proj.weight", {values, D}, Init::normal, true},
                                   {"a_proj.weight", {H, D}, Init::normal, true},
                                   {"b_proj.weight", {H, D}, Init::normal, true}};
  if (scales) specs.push_back({"l_proj.weight", {H * c.num_levels, D}, Init::normal, true, H * c.num_levels * D});
  for (const ParameterSpec& spec :
       std::vector<ParameterSpec>{{"q_conv1d.weight", {keys, 1, c.conv_width}},
                                  {"k_conv1d.weight", {keys, 1, c.conv_width}, Init::normal, true},
                                  {"v_conv1d.weight", {values, 1, c.conv_width}, Init::normal, true},
                                  {"A_log", {H}, Init::log_uniform},
                                  {"dt_bias", {H}, Init::dt_bias},
                                  {"o_norm.weight", {c.value_width}, Init::ones},
                                  {"o_proj.weight", {D, values}, Init::residual}})
    specs.push_back(spec);
  if (scales) specs.push_back({"L", {H, c.num_levels}, level_init(c), false, H * c.num_levels});
  for (const ParameterSpec& spec : match_parameters(c)) specs.push_back(spec);
  return specs;
}

namespace {

template <class T>
class GatedDeltaNet final : public Mixer<T> {
 public:
  GatedDeltaNet(const ModelConfig& c, const ParameterStore<T>& store, const std::string& prefix)
      : config_(c),
        in_proj_{store.find(prefix + "q_proj.weight"), dl_at_ + (learns_level_scales(c) ? H_ * c.num_levels : 0),
                 c.hidden_size},
        out_proj_{store.find(prefix + "o_proj.weight"), c.hidden_size, values_},
        conv_{conv_channels_, c.conv_width, store.find(prefix + "q_conv1d.weight"), {}},
        dt_bias_(store.find(prefix + "dt_bias")),
        A_log_(store.find(prefix + "A_log")),
        norm_(store.find(prefix + "o_norm.weight")),
        scales_(c, store, prefix, 1 / key_scale_) {}

  void forward(const Pass<T>& pass, const T* x, T* out) override {
    const std::int64_t N = pass.tokens, R = in_proj_.out;
    z_ = pass.keep->template take<T>(N * R);
    qkv_ = pass.keep->template take<T>(N * conv_channels_);
    qk_ = pass.keep->template take<T>(N * 2 * keys_);
    g_ = pass.keep->template take<T>(N * H_);
    beta_ = pass.keep->template take<T>(N * H_);
    o_ = pass.keep->template take<T>(N * values_);

    in_proj_.forward(N, x, T{0}, z_, pass.threads);
    conv_.forward(pass, z_, R, qkv_);
    l2_norm_forward(N, H_, K_, qkv_, conv_channels_, key_scale_, qk_, 2 * keys_, pass.threads);
    l2_norm_forward(N, H_, K_, qkv_ + keys_, conv_channels_, T{1}, qk_ + keys_, 2 * keys_, pass.threads);
    delta_gates_forward(N, H_, z_ + a_at_, R, z_ + b_at_, R, dt_bias_.value, A_log_.value, g_, beta_, pass.threads);
    log_linear::ForwardArgs args;
    set_inputs(args, N);
    args.level_scales = scales_.forward(pass, x, z_ + dl_at_, R, args.q, args.k);
    args.out = Tensor(o_, {1, N, H_, V_});
    run_log_linear(args, pass);

    const ArenaScope scope(*pass.scratch);
    out_proj_.forward(N, gated(pass), T{1}, out, pass.threads);
  }

  void backward(const Pass<T>& pass, const T* x, const T* dout, T* dx) override {
    const ArenaScope scope(*pass.scratch);
    const std::int64_t N = pass.tokens, R = in_proj_.out;
    T* dz = pass.scratch->template take<T>(N * R);
    T* dqkv = pass.scratch->template take<T>(N * conv_channels_);
    T* do_ = pass.scratch->template take<T>(N * values_);
    T* dg = pass.scratch->template take<T>(N * H_);
    T* dbeta = pass.scratch->template take<T>(N * H_);
    {
      const ArenaScope inner_scope(*pass.scratch);
      out_proj_.backward_weight(N, gated(pass), dout, pass.threads);
    }
    out_proj_.backward_input(N, dout, do_, pass.threads);
    rms_norm_backward<T>(NormGate::after, N, H_, V_, o_, values_, z_ + gate_at_, R, norm_.value, config_.norm_eps, do_,
                         values_, T{0}, do_, values_, dz + gate_at_, R, norm_.grad, pass.threads);

    log_linear::BackwardArgs args;
    set_inputs(args, N);
    args.level_scales = scales_.scales();
    args.dout = ConstTensor(do_, {1, N, H_, V_});
    args.dq = slice(dqkv, N, K_, conv_channels_);
    args.dk = slice(dqkv + keys_, N, K_, conv_channels_);
    args.dv = slice(dqkv + 2 * keys_, N, V_, conv_channels_);
    args.dg = Tensor(dg, {1, N, H_});
    args.dbeta = Tensor(dbeta, {1, N, H_});
    args.dlevel_scales = scales_.gradient(pass);
    run_log_linear_backward(args, pass);
    const bool begun = scales_.backward(pass, x, z_ + dl_at_, R, args, dz + dl_at_, R, dx);

    l2_norm_backward(N, H_, K_, qkv_, conv_channels_, key_scale_, dqkv, conv_channels_, dqkv, conv_channels_,
                     pass.threads);
    l2_norm_backward(N, H_, K_, qkv_ + keys_, conv_channels_, T{1}, dqkv + keys_, conv_channels_, dqkv + keys_,
                     conv_channels_, pass.threads);
    delta_gates_backward(N, H_, z_ + a_at_, R, z_ + b_at_, R, dt_bias_.value, A_log_.value, dg, dbeta, dz + a_at_, R,
                         dz + b_at_, R, dt_bias_.grad, A_log_.grad, pass.threads);
    conv_.backward(pass, z_, R, dqkv, dz, R);
    in_proj_.backward_weight(N, x, dz, pass.threads);
    in_proj_.backward_input(N, dz, dx, pass.threads, begun ? T{1} : T{0});
  }

  LayerState<T> new_state() const override {
    return new_log_linear_state<T>(Rule::gated_delta, config_, H_, conv_channels_);
  }

 private:
  // (1, N, H, width) inside rows of `stride` elements.
  template <class U>
  auto slice(U* data, std::int64_t N, std::int64_t width, std::int64_t stride) const {
    return BasicTensor<std::conditional_t<std::is_const_v<U>, const void*, void*>>(data, {1, N, H_, width},
                                                                                   {N * stride, stride, width, 1});
  }

  // What forward and backward read alike.
  template <class Args>
  void set_inputs(Args& args, std::int64_t N) const {
    args.rule = Rule::gated_delta;
    args.q = slice(qk_, N, K_, 2 * keys_);
    args.k = slice(qk_ + keys_, N, K_, 2 * keys_);
    args.v = slice(qkv_ + 2 * keys_, N, V_, conv_channels_);
    args.g = ConstTensor(g_, {1, N, H_});
    args.beta = ConstTensor(beta_, {1, N, H_});
  }

  // RMSNorm(o) * silu(gate): cheaper to make again in backward than to keep.
  const T* gated(const Pass<T>& pass) const {
    T* out = pass.scratch->template take<T>(pass.tokens * values_);
    rms_norm_forward<T>(NormGate::after, pass.tokens, H_, V_, o_, values_, z_ + gate_at_, in_proj_.out, norm_.value,
                        config_.norm_eps, out, values_, pass.threads);
    return out;
  }

  ModelConfig config_;
  std::int64_t H_ = config_.num_heads, K_ = config_.key_width, V_ = config_.value_width;
  std::int64_t keys_ = H_ * K_, values_ = H_ * V_, conv_channels_ = 2 * keys_ + values_;
  // Where things are in the projection: q k v (the convolution's input) | gate | a | b | l.
  std::int64_t gate_at_ = conv_channels_, a_at_ = gate_at_ + values_, b_at_ = a_at_ + H_, dl_at_ = b_at_ + H_;
  T key_scale_ = 1 / std::sqrt(static_cast<T>(K_));  // on q; the published model divides the level scales by it again
  Projection<T> in_proj_, out_proj_;
  ShortConv<T> conv_;
  Weight<T> dt_bias_, A_log_, norm_;
  LevelScales<T> scales_;

  T* z_ = nullptr;     // (N, R) the projection
  T* qkv_ = nullptr;   // (N, conv_channels)
  T* qk_ = nullptr;    // (N, 2, H, K) of unit length, q times K^-0.5
  T* g_ = nullptr;     // (N, H)
  T* beta_ = nullptr;  // (N, H)
  T* o_ = nullptr;     // (N, H, V) before the norm
};

}  // namespace

template <class T>
std::unique_ptr<Mixer<T>> make_gated_deltanet(const ModelConfig& config, const ParameterStore<T>& store,
                                              const std::string& prefix) {
  return std::make_unique<GatedDeltaNet<T>>(config, store, prefix);
}

template std::unique_ptr<Mixer<float>> make_gated_deltanet(const ModelConfig&, const ParameterStore<float>&,
                                                           const std::string&);
template std::unique_ptr<Mixer<double>> make_gated_deltanet(const ModelConfig&, const ParameterStore<double>&,
                                                            const std::string&);

}  // namespace loglinear::nn
