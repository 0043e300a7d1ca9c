// Softmax attention: G = H heads of keys and values.

#include <cmath>

#include "app/compare/case.hpp"
#include "loglinear/softmax_attention.hpp"

namespace loglinear::app::compare {
namespace {

class FlashCase final : public Case {
 public:
  FlashCase(const Mechanism& m, const Tokens& x, std::int64_t tokens, int thread_count)
      : Case(m, x, tokens, thread_count) {
    const std::int64_t n = T * H * W;
    inputs.push_back({"q", x.q.data(), n, {}});
    inputs.push_back({"k", x.k.data(), n, {}});
    inputs.push_back({"v", x.v.data(), n, {}});
    shape_.heads = shape_.kv_heads = H;
    shape_.key_width = shape_.value_width = W;
  }

  void forward() override {
    make_out();
    attend({0, T, 0, T}, nullptr);
  }

  void forward_backward() override {
    make_out();
    log_sums_.resize(static_cast<std::size_t>(T * H));
    const AttentionSequence whole{0, T, 0, T};
    attend(whole, log_sums_.data());
    make_gradients();
    const std::int64_t R = H * W;
    softmax_attention_backward<float>({&whole, 1}, shape_, inputs[0].value, R, inputs[1].value, R, inputs[2].value, R,
                                      out.data(), R, log_sums_.data(), tokens.dout.data(), R, inputs[0].gradient.data(),
                                      R, inputs[1].gradient.data(), R, inputs[2].gradient.data(), R, threads);
  }

  void step(std::int64_t t) override { attend({t, 1, 0, t + 1}, nullptr); }

  void definition(const Point& x, std::int64_t t, std::int64_t h, double* row) const override {
    const auto n = static_cast<std::size_t>(W);
    std::vector<double> q(n), sums(n);
    for (std::int64_t d = 0; d < W; ++d) q[static_cast<std::size_t>(d)] = x(0, (t * H + h) * W + d);
    const double scale = 1 / std::sqrt(static_cast<double>(W));
    double weights = 0;
    for (std::int64_t s = 0; s <= t; ++s) {
      const std::int64_t at = (s * H + h) * W;
      double score = 0;
      for (std::int64_t d = 0; d < W; ++d) score += q[static_cast<std::size_t>(d)] * x(1, at + d);
      // Queries and keys have variance 1, so scores are a few at most: nothing overflows.
      const double weight = std::exp(scale * score);
      weights += weight;
      for (std::int64_t d = 0; d < W; ++d) sums[static_cast<std::size_t>(d)] += weight * x(2, at + d);
    }
    for (std::int64_t d = 0; d < W; ++d) row[d] = sums[static_cast<std::size_t>(d)] / weights;
  }

  void forget() override {
    Case::forget();
    log_sums_ = {};
  }

 private:
  void attend(const AttentionSequence& sequence, float* log_sums) {
    const std::int64_t R = H * W;
    softmax_attention_forward<float>({&sequence, 1}, shape_, inputs[0].value, R, inputs[1].value, R, inputs[2].value, R,
                                     out.data(), R, log_sums, threads);
  }

  AttentionShape shape_;
  std::vector<float> log_sums_;
};

}  // namespace

std::unique_ptr<Case> make_attention_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads) {
  if (std::string_view(m.name) == "flash") return std::make_unique<FlashCase>(m, tokens, T, threads);
  return nullptr;
}

}  // namespace loglinear::app::compare
