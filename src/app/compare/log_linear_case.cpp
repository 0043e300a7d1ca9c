// linear, mamba2, gated_deltanet and the two log-linear mechanisms: one operator, G = H groups, K = V = W.

#include <algorithm>
#include <bit>
#include <cmath>

#include "app/compare/case.hpp"
#include "app/measure.hpp"
#include "loglinear/log_linear.hpp"

namespace loglinear::app::compare {
namespace {

class LogLinearCase final : public Case {
 public:
  LogLinearCase(const Mechanism& m, const Tokens& x, std::int64_t tokens, int thread_count, Rule rule, bool log_linear,
                bool decays)
      : Case(m, x, tokens, thread_count),
        rule_(rule),
        log_linear_(log_linear),
        decays_(decays),
        L_(log_linear ? std::bit_width(static_cast<std::uint64_t>(T)) + 1 : 1) {
    const std::int64_t n = T * H * W;
    inputs.push_back({"q", x.q.data(), n, {}});
    inputs.push_back({"k", x.unit_k.data(), n, {}});
    inputs.push_back({"v", x.v.data(), n, {}});
    if (decays) g_ = add({"g", x.g.data(), T * H, {}});
    if (has_beta(rule)) beta_ = add({"beta", x.beta.data(), T * H, {}});
    if (log_linear) {
      fill(scales_, T * H * L_, x.seed, 10, [](double u) { return u; });
      level_scales_ = add({"level_scales", scales_.data(), T * H * L_, {}});
    } else {
      scales_.assign(static_cast<std::size_t>(T * H), 1.0f);
    }
    if (!decays) no_decay_.assign(static_cast<std::size_t>(T * H), 0.0f);
  }

  void forward() override {
    make_out();
    log_linear::forward(forward_args(T));
  }

  void forward_backward() override {
    forward();
    make_gradients();
    log_linear::BackwardArgs a = args<log_linear::BackwardArgs>(T);
    a.dout = ConstTensor(tokens.dout.data(), {1, T, H, W});
    a.dq = Tensor(inputs[0].gradient.data(), {1, T, H, W});
    a.dk = Tensor(inputs[1].gradient.data(), {1, T, H, W});
    a.dv = Tensor(inputs[2].gradient.data(), {1, T, H, W});
    a.dg = Tensor(gradient(g_, unused_dg_, T * H), {1, T, H});
    if (has_beta(rule_)) a.dbeta = Tensor(gradient(beta_, unused_dg_, T * H), {1, T, H});
    a.dlevel_scales = Tensor(gradient(level_scales_, unused_dscales_, T * H * L_), {1, T, H, L_});
    log_linear::backward(a);
  }

  std::int64_t steps() const override { return 64; }
  void begin_steps(std::int64_t first) override {
    if (begin_ != first) {
      begin_ = first;
      start_ = State(rule_, H, W, W);
      log_linear::ForwardArgs a = forward_args(first);
      a.final_state = {&start_, 1};
      log_linear::forward(a);
    }
    state_ = start_;
  }

  void step(std::int64_t t) override {
    state_bytes_ = static_cast<double>(state_.bytes());
    const std::int64_t row = t * H * W;
    log_linear::StepArgs a;
    a.rule = rule_;
    a.q = ConstTensor(inputs[0].value + row, {1, H, W});
    a.k = ConstTensor(inputs[1].value + row, {1, H, W});
    a.v = ConstTensor(inputs[2].value + row, {1, H, W});
    a.g = ConstTensor(g() + t * H, {1, H});
    if (has_beta(rule_)) a.beta = ConstTensor(tokens.beta.data() + t * H, {1, H});
    a.level_scales = ConstTensor(scales_.data() + t * H * L_, {1, H, L_});
    a.out = Tensor(out.data() + row, {1, H, W});
    a.states = {&state_, 1};
    a.threads = threads;
    log_linear::step(a);
  }

  double state_bytes() const override { return state_bytes_; }

  // From the newest token back: what the query has become by the transitions in between meets each key.
  void definition(const Point& x, std::int64_t t, std::int64_t h, double* row) const override {
    std::vector<double> r(static_cast<std::size_t>(W));
    for (std::int64_t d = 0; d < W; ++d) r[static_cast<std::size_t>(d)] = x(0, (t * H + h) * W + d);
    std::fill_n(row, W, 0.0);
    for (std::int64_t s = t; s >= 0; --s) {
      const std::int64_t at = (s * H + h) * W;
      double meets = 0;
      for (std::int64_t d = 0; d < W; ++d) meets += r[static_cast<std::size_t>(d)] * x(1, at + d);
      if (has_beta(rule_)) meets *= x(beta_, s * H + h);
      const std::int64_t level =
          std::min<std::int64_t>(std::bit_width(static_cast<std::uint64_t>(t) ^ static_cast<std::uint64_t>(s)), L_ - 1);
      const double weight = log_linear_ ? meets * x(level_scales_, (t * H + h) * L_ + level) : meets;
      for (std::int64_t d = 0; d < W; ++d) row[d] += weight * x(2, at + d);
      const double decay = decays_ ? std::exp(x(g_, s * H + h)) : 1;
      for (std::int64_t d = 0; d < W; ++d) {
        double& element = r[static_cast<std::size_t>(d)];
        if (has_beta(rule_)) element -= meets * x(1, at + d);
        element *= decay;
      }
    }
  }

  // Those of the gates and level scales are the widest.
  double gradient_bound() const override { return has_beta(rule_) ? 2e-4 : 5e-5; }

  void forget() override {
    Case::forget();
    unused_dg_ = {}, unused_dscales_ = {};
  }

 private:
  int add(Input input) {
    inputs.push_back(std::move(input));
    return static_cast<int>(inputs.size()) - 1;
  }
  const float* g() const { return decays_ ? tokens.g.data() : no_decay_.data(); }
  // Where the gradient of an input goes, or of what is none here: the operator writes it all the same.
  float* gradient(int input, std::vector<float>& unused, std::int64_t count) {
    if (input >= 0) return inputs[static_cast<std::size_t>(input)].gradient.data();
    unused.resize(static_cast<std::size_t>(count));
    return unused.data();
  }

  template <class Args>
  Args args(std::int64_t count) const {
    Args a;
    a.rule = rule_;
    a.q = ConstTensor(inputs[0].value, {1, count, H, W});
    a.k = ConstTensor(inputs[1].value, {1, count, H, W});
    a.v = ConstTensor(inputs[2].value, {1, count, H, W});
    a.g = ConstTensor(g(), {1, count, H});
    if (has_beta(rule_)) a.beta = ConstTensor(tokens.beta.data(), {1, count, H});
    a.level_scales = ConstTensor(scales_.data(), {1, count, H, L_});
    a.threads = threads;
    return a;
  }
  log_linear::ForwardArgs forward_args(std::int64_t count) {
    auto a = args<log_linear::ForwardArgs>(count);
    a.out = Tensor(out.data(), {1, count, H, W});
    return a;
  }

  const Rule rule_;
  const bool log_linear_, decays_;
  const std::int64_t L_;
  int g_ = -1, beta_ = -1, level_scales_ = -1;  // inputs
  std::vector<float> scales_, no_decay_, unused_dg_, unused_dscales_;
  State start_, state_;
  std::int64_t begin_ = -1;
  double state_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Case> make_log_linear_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads) {
  const std::string_view name = m.name;
  const auto make = [&](Rule rule, bool log_linear, bool decays) {
    return std::make_unique<LogLinearCase>(m, tokens, T, threads, rule, log_linear, decays);
  };
  if (name == "linear") return make(Rule::scalar_decay, false, false);
  if (name == "mamba2") return make(Rule::scalar_decay, false, true);
  if (name == "gated_deltanet") return make(Rule::gated_delta, false, true);
  if (name == "log_linear_mamba2") return make(Rule::scalar_decay, true, true);
  if (name == "log_linear_gated_deltanet") return make(Rule::gated_delta, true, true);
  return nullptr;
}

}  // namespace loglinear::app::compare
