// Adamas: a decoding step on a cache of keys, values and codes.

#include <algorithm>
#include <bit>
#include <cmath>

#include "app/compare/case.hpp"
#include "base/error.hpp"
#include "loglinear/adamas.hpp"

namespace loglinear::app::compare {
namespace {

class AdamasCase final : public Case {
 public:
  AdamasCase(const Mechanism& m, const Tokens& x, std::int64_t length, int thread_count)
      : Case(m, x, length, thread_count), R(H * W) {
    const std::int64_t n = T * H * W;
    inputs.push_back({"q", x.q.data(), n, {}});
    inputs.push_back({"k", x.k.data(), n, {}});
    inputs.push_back({"v", x.v.data(), n, {}});
    shape_.heads = shape_.kv_heads = H;
    shape_.key_width = shape_.value_width = W;
    shape_.budget = kAdamasBudget;
    // The paper's are for the keys of its models. These have variance 1, before
    // and after the transform: four codes that are about equally frequent.
    shape_.thresholds = {-0.7, 0, 0.7};
    codes_.emplace(shape_);
  }

  void begin_steps(std::int64_t first) override {
    if (begin_ != first) {
      begin_ = first;
      start_.emplace(shape_);
      start_->append(first, inputs[1].value, R, threads);
    }
    codes_ = start_;
  }
  void step(std::int64_t t) override {
    state_bytes_ = static_cast<double>(codes_->bytes()) + 4.0 * static_cast<double>(2 * t * R);
    codes_->append(1, inputs[1].value + t * R, R, threads);
    const AdamasCache<float> cache{&*codes_, inputs[1].value, inputs[2].value};
    adamas_step<float>(shape_, {&cache, 1}, inputs[0].value + t * R, R, R, R, out.data() + t * R, R, threads);
  }
  double state_bytes() const override { return state_bytes_; }

  void definition(const Point& x, std::int64_t t, std::int64_t h, double* row) const override {
    const std::vector<double> q = turned(x, 0, t, h);
    std::vector<std::pair<int, std::int64_t>> order;  // distance, and of equal ones the newer first
    for (std::int64_t s = 0; s < t; ++s) {
      const std::vector<double> k = turned(x, 1, s, h);
      int distance = 0;
      for (std::int64_t d = 0; d < W; ++d) {
        const auto n = static_cast<std::size_t>(d);
        // Where rounding decides what the code of a key is, it is what the
        // operator says.
        const int code = near_threshold(k[n]) ? codes_->code(s, h, d) : code_of(k[n]);
        distance += std::abs(code_of(q[n]) - code);
      }
      order.emplace_back(distance, -s);
    }
    std::sort(order.begin(), order.end());
    order.resize(std::min<std::size_t>(order.size(), static_cast<std::size_t>(kAdamasBudget - 1)));
    order.emplace_back(0, -t);
    std::fill_n(row, W, 0.0);
    double weights = 0;
    for (const auto& [distance, s] : order) {
      const std::int64_t at = (-s * H + h) * W;
      double score = 0;
      for (std::int64_t d = 0; d < W; ++d) score += x(0, (t * H + h) * W + d) * x(1, at + d);
      const double weight = std::exp(score / std::sqrt(static_cast<double>(W)));
      weights += weight;
      for (std::int64_t d = 0; d < W; ++d) row[d] += weight * x(2, at + d);
    }
    for (std::int64_t d = 0; d < W; ++d) row[d] /= weights;
  }

 private:
  int code_of(double x) const {
    return static_cast<int>(std::count_if(shape_.thresholds.begin(), shape_.thresholds.end(),
                                          [&](double threshold) { return threshold < x; }));
  }
  bool near_threshold(double x) const {
    return std::any_of(shape_.thresholds.begin(), shape_.thresholds.end(),
                       [&](double threshold) { return std::abs(x - threshold) < 1e-5; });
  }
  // A row of head h by the orthonormal Hadamard transform.
  std::vector<double> turned(const Point& x, int input, std::int64_t t, std::int64_t h) const {
    std::vector<double> y(static_cast<std::size_t>(W));
    for (std::int64_t d = 0; d < W; ++d) y[static_cast<std::size_t>(d)] = x(input, (t * H + h) * W + d);
    for (std::size_t half = 1; half < y.size(); half *= 2)
      for (std::size_t i = 0; i < y.size(); ++i)
        if (!(i & half)) {
          const double a = y[i], b = y[i + half];
          y[i] = a + b, y[i + half] = a - b;
        }
    for (double& element : y) element /= std::sqrt(static_cast<double>(W));
    return y;
  }

  const std::int64_t R;
  AdamasShape shape_;
  std::optional<AdamasCodes> start_, codes_;
  std::int64_t begin_ = -1;
  double state_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Case> make_adamas_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads) {
  if (std::string_view(m.name) == "adamas") return std::make_unique<AdamasCase>(m, tokens, T, threads);
  return nullptr;
}

}  // namespace loglinear::app::compare
