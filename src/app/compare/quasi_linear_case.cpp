// Quasi-linear attention: all but the last eighth of the tokens are the history, those are candidates. A step scores a
// token as a candidate and then adds it to the history.

#include <algorithm>
#include <cmath>

#include "app/compare/case.hpp"
#include "loglinear/quasi_linear.hpp"

namespace loglinear::app::compare {
namespace {

class QuasiLinearCase final : public Case {
 public:
  QuasiLinearCase(const Mechanism& m, const Tokens& x, std::int64_t length, int thread_count)
      : Case(m, x, length, thread_count), R(H * W), seeds_(T - T / 8) {
    const std::int64_t n = T * H * W;
    inputs.push_back({"q", x.q.data(), n, {}});
    inputs.push_back({"k", x.k.data(), n, {}});
    inputs.push_back({"v", x.v.data(), n, {}});
    shape_.heads = H, shape_.key_width = shape_.value_width = W;
  }

  void forward() override {
    make_out();
    const QuasiLinearSequence all = whole();
    quasi_linear_forward<float>({&all, 1}, shape_, in(0), R, in(1), R, in(2), R, out.data(), R, {}, {}, threads);
  }
  void forward_backward() override {
    forward();
    make_gradients();
    const QuasiLinearSequence all = whole();
    quasi_linear_backward<float>({&all, 1}, shape_, in(0), R, in(1), R, in(2), R, tokens.dout.data(), R,
                                 inputs[0].gradient.data(), R, inputs[1].gradient.data(), R, inputs[2].gradient.data(),
                                 R, threads);
  }

  void begin_steps(std::int64_t first) override {
    if (begin_ != first) {
      begin_ = first;
      start_.assign(static_cast<std::size_t>(H * W * W), 0.0f);
      add({0, first, 0, 0}, start_);
    }
    state_ = start_;
  }
  void step(std::int64_t t) override {
    const QuasiLinearSequence candidate{0, 0, t, 1};
    const float* state = state_.data();
    quasi_linear_forward<float>({&candidate, 1}, shape_, in(0), R, in(1), R, in(2), R, out.data(), R, {&state, 1}, {},
                                threads);
    add({t, 1, 0, 0}, state_);
  }
  double state_bytes() const override { return static_cast<double>(state_.size() * sizeof(float)); }

  void definition(const Point& x, std::int64_t t, std::int64_t h, double* row) const override {
    sum(x, t, h, seeds_, row);
    if (t >= seeds_) add_token(x, t, h, t, row);
  }
  void step_definition(const Point& x, std::int64_t t, std::int64_t h, double* row) const override {
    sum(x, t, h, t + 1, row);
  }

 private:
  QuasiLinearSequence whole() const { return {0, seeds_, seeds_, T - seeds_}; }
  const float* in(std::size_t n) const { return inputs[n].value; }
  void add(const QuasiLinearSequence& seeds, std::vector<float>& to) const {
    float* state = to.data();
    quasi_linear_update<float>(SeedUpdate::add, {&seeds, 1}, shape_, in(1), R, in(2), R, {&state, 1}, threads);
  }

  static double phi(double x) { return x / (1 + std::exp(-x)); }
  void add_token(const Point& x, std::int64_t t, std::int64_t h, std::int64_t s, double* row) const {
    double weight = 0;
    for (std::int64_t d = 0; d < W; ++d) weight += phi(x(0, (t * H + h) * W + d)) * phi(x(1, (s * H + h) * W + d));
    for (std::int64_t d = 0; d < W; ++d) row[d] += weight * x(2, (s * H + h) * W + d);
  }
  void sum(const Point& x, std::int64_t t, std::int64_t h, std::int64_t seeds, double* row) const {
    std::fill_n(row, W, 0.0);
    for (std::int64_t s = 0; s < seeds; ++s) add_token(x, t, h, s, row);
  }

  const std::int64_t R, seeds_;
  QuasiLinearShape shape_;
  std::vector<float> start_, state_;
  std::int64_t begin_ = -1;
};

}  // namespace

std::unique_ptr<Case> make_quasi_linear_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads) {
  if (std::string_view(m.name) == "qla") return std::make_unique<QuasiLinearCase>(m, tokens, T, threads);
  return nullptr;
}

}  // namespace loglinear::app::compare
