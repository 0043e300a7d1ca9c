// Mamba-2 and log-linear Mamba-2: zxbcdtdl = in_proj(x), convolution over x B C, the operator with scalar decay, the
// skip D, the gated norm, out_proj.

#include "loglinear/rms_norm.hpp"
#include "nn/log_linear_core.hpp"
#include "nn/projection.hpp"

namespace loglinear::nn {

std::vector<ParameterSpec> mamba2_parameters(const ModelConfig& c) {
  const std::int64_t H = c.num_heads, inner = H * c.value_width, conv = inner + 2 * c.num_groups * c.key_width;
  const bool scales = learns_level_scales(c);
  std::vector<ParameterSpec> specs{{"in_proj.weight",
                                    {inner + conv + H + (scales ? H * c.num_levels : 0), c.hidden_size},
                                    Init::normal,
                                    false,
                                    scales ? H * c.num_levels * c.hidden_size : 0},
                                   {"conv1d.weight", {conv, 1, c.conv_width}},
                                   {"conv1d.bias", {conv}, Init::zeros},
                                   {"dt_bias", {H}, Init::dt_bias},
                                   {"A_log", {H}, Init::log_index},
                                   {"D", {H}, Init::ones},
                                   {"norm.weight", {inner}, Init::ones},
                                   {"out_proj.weight", {c.hidden_size, inner}, Init::residual}};
  if (scales) specs.push_back({"L", {H, c.num_levels}, level_init(c), false, H * c.num_levels});
  for (const ParameterSpec& spec : match_parameters(c)) specs.push_back(spec);
  return specs;
}

namespace {

template <class T>
class Mamba2 final : public Mixer<T> {
 public:
  Mamba2(const ModelConfig& c, const ParameterStore<T>& store, const std::string& prefix)
      : config_(c),
        in_proj_{store.find(prefix + "in_proj.weight"), mamba2_parameters(c).front().shape[0], c.hidden_size},
        out_proj_{store.find(prefix + "out_proj.weight"), c.hidden_size, inner_},
        conv_{conv_channels_, c.conv_width, store.find(prefix + "conv1d.weight"), store.find(prefix + "conv1d.bias")},
        dt_bias_(store.find(prefix + "dt_bias")),
        A_log_(store.find(prefix + "A_log")),
        D_(store.find(prefix + "D")),
        norm_(store.find(prefix + "norm.weight")),
        scales_(c, store, prefix, T{1}) {}

  void forward(const Pass<T>& pass, const T* x, T* out) override {
    const std::int64_t N = pass.tokens;
    z_ = pass.keep->template take<T>(N * in_proj_.out);
    xbc_ = pass.keep->template take<T>(N * conv_channels_);
    v_ = pass.keep->template take<T>(N * inner_);
    g_ = pass.keep->template take<T>(N * H_);
    y_ = pass.keep->template take<T>(N * inner_);

    in_proj_.forward(N, x, T{0}, z_, pass.threads);
    conv_.forward(pass, z_ + conv_at_, in_proj_.out, xbc_);
    mamba2_gates_forward(N, H_, P_, z_ + dt_at_, in_proj_.out, dt_bias_.value, A_log_.value, xbc_, conv_channels_, g_,
                         v_, inner_, pass.threads);
    log_linear::ForwardArgs args;
    args.rule = Rule::scalar_decay;
    args.q = keys(xbc_ + q_at_, N);
    args.k = keys(xbc_ + k_at_, N);
    args.v = ConstTensor(v_, {1, N, H_, P_});
    args.g = ConstTensor(g_, {1, N, H_});
    args.level_scales = scales_.forward(pass, x, z_ + dl_at_, in_proj_.out, args.q, args.k);
    args.out = Tensor(y_, {1, N, H_, P_});
    run_log_linear(args, pass);
    skip_forward(N, H_, P_, xbc_, conv_channels_, D_.value, y_, inner_, pass.threads);

    const ArenaScope scope(*pass.scratch);
    out_proj_.forward(N, normed(pass), T{1}, out, pass.threads);
  }

  void backward(const Pass<T>& pass, const T* x, const T* dout, T* dx) override {
    const ArenaScope scope(*pass.scratch);
    const std::int64_t N = pass.tokens, R = in_proj_.out;
    T* dz = pass.scratch->template take<T>(N * R);  // of the whole projection
    T* dxbc = pass.scratch->template take<T>(N * conv_channels_);
    T* dy = pass.scratch->template take<T>(N * inner_);
    T* dg = pass.scratch->template take<T>(N * H_);
    {
      const ArenaScope inner_scope(*pass.scratch);
      out_proj_.backward_weight(N, normed(pass), dout, pass.threads);
    }
    out_proj_.backward_input(N, dout, dy, pass.threads);
    rms_norm_backward<T>(NormGate::before, N, 1, inner_, y_, inner_, z_, R, norm_.value, config_.norm_eps, dy, inner_,
                         T{0}, dy, inner_, dz, R, norm_.grad, pass.threads);

    log_linear::BackwardArgs args;
    args.rule = Rule::scalar_decay;
    args.q = keys(xbc_ + q_at_, N);
    args.k = keys(xbc_ + k_at_, N);
    args.v = ConstTensor(v_, {1, N, H_, P_});
    args.g = ConstTensor(g_, {1, N, H_});
    args.level_scales = scales_.scales();
    args.dout = ConstTensor(dy, {1, N, H_, P_});
    args.dq = keys(dxbc + q_at_, N);
    args.dk = keys(dxbc + k_at_, N);
    args.dv = Tensor(dxbc, {1, N, H_, P_}, {N * conv_channels_, conv_channels_, P_, 1});
    args.dg = Tensor(dg, {1, N, H_});
    args.dlevel_scales = scales_.gradient(pass);
    run_log_linear_backward(args, pass);

    // dv becomes the gradient of x in place, then D adds its part.
    mamba2_gates_backward(N, H_, P_, z_ + dt_at_, R, dt_bias_.value, A_log_.value, xbc_, conv_channels_, dg, dxbc,
                          conv_channels_, dz + dt_at_, R, dxbc, conv_channels_, dt_bias_.grad, A_log_.grad,
                          pass.threads);
    skip_backward(N, H_, P_, xbc_, conv_channels_, D_.value, dy, inner_, dxbc, conv_channels_, D_.grad, pass.threads);
    const bool begun = scales_.backward(pass, x, z_ + dl_at_, R, args, dz + dl_at_, R, dx);
    conv_.backward(pass, z_ + conv_at_, R, dxbc, dz + conv_at_, R);
    in_proj_.backward_weight(N, x, dz, pass.threads);
    in_proj_.backward_input(N, dz, dx, pass.threads, begun ? T{1} : T{0});
  }

  LayerState<T> new_state() const override {
    return new_log_linear_state<T>(Rule::scalar_decay, config_, config_.num_groups, conv_channels_);
  }

 private:
  // (1, N, G, K) inside the convolution's output.
  template <class U>
  auto keys(U* data, std::int64_t N) const {
    const std::int64_t G = config_.num_groups, K = config_.key_width;
    return BasicTensor<std::conditional_t<std::is_const_v<U>, const void*, void*>>(
        data, {1, N, G, K}, {N * conv_channels_, conv_channels_, K, 1});
  }

  // RMSNorm(y * silu(z)): cheaper to make again in backward than to keep.
  const T* normed(const Pass<T>& pass) const {
    T* out = pass.scratch->template take<T>(pass.tokens * inner_);
    rms_norm_forward<T>(NormGate::before, pass.tokens, 1, inner_, y_, inner_, z_, in_proj_.out, norm_.value,
                        config_.norm_eps, out, inner_, pass.threads);
    return out;
  }

  ModelConfig config_;
  std::int64_t H_ = config_.num_heads, P_ = config_.value_width, inner_ = H_ * P_;
  std::int64_t groups_ = config_.num_groups * config_.key_width, conv_channels_ = inner_ + 2 * groups_;
  // Where things are: in the projection z | x B C | dt | dl, in the convolution's output x | B | C.
  std::int64_t conv_at_ = inner_, dt_at_ = conv_at_ + conv_channels_, dl_at_ = dt_at_ + H_;
  std::int64_t k_at_ = inner_, q_at_ = inner_ + groups_;
  Projection<T> in_proj_, out_proj_;
  ShortConv<T> conv_;
  Weight<T> dt_bias_, A_log_, D_, norm_;
  LevelScales<T> scales_;

  T* z_ = nullptr;    // (N, R) the projection
  T* xbc_ = nullptr;  // (N, conv_channels)
  T* v_ = nullptr;    // (N, H, P) x * dt
  T* g_ = nullptr;    // (N, H)
  T* y_ = nullptr;    // (N, H, P) before the norm
};

}  // namespace

template <class T>
std::unique_ptr<Mixer<T>> make_mamba2(const ModelConfig& config, const ParameterStore<T>& store,
                                      const std::string& prefix) {
  return std::make_unique<Mamba2<T>>(config, store, prefix);
}

template std::unique_ptr<Mixer<float>> make_mamba2(const ModelConfig&, const ParameterStore<float>&,
                                                   const std::string&);
template std::unique_ptr<Mixer<double>> make_mamba2(const ModelConfig&, const ParameterStore<double>&,
                                                    const std::string&);

}  // namespace loglinear::nn
