// MoSA: H heads of width W in a model of width H W. Its input is one array of tokens, and its projections are part of
// it, because they are computed of the chosen tokens alone.

#include <algorithm>
#include <cmath>

#include "app/compare/case.hpp"
#include "app/measure.hpp"
#include "loglinear/mosa.hpp"

#include <fmt/format.h>

namespace loglinear::app::compare {
namespace {

class MosaCase final : public Case {
 public:
  MosaCase(const Mechanism& m, const Tokens& x, std::int64_t length, int thread_count)
      : Case(m, x, length, thread_count), D(H * W), k_(mosa_choice(T, kMosaSparsity)) {
    shape_.model_width = D, shape_.heads = H, shape_.head_width = W, shape_.sparsity = kMosaSparsity;
    const auto weights = [&](std::vector<float>& w, std::int64_t count, std::uint64_t stream, std::int64_t fan_in) {
      const double unit = std::sqrt(12.0 / static_cast<double>(fan_in));
      fill(w, count, x.seed, stream, [&](double u) { return (u - 0.5) * unit; });
    };
    weights(router_, D * H, 20, D), weights(qkv_, H * D * 3 * W, 21, D), weights(out_, H * W * D, 22, W);
    inputs.push_back({"x", x.q.data(), T * D, {}});
    inputs.push_back({"router", router_.data(), D * H, {}});
    inputs.push_back({"qkv", qkv_.data(), H * D * 3 * W, {}});
    inputs.push_back({"o", out_.data(), H * W * D, {}});
    chosen_.resize(static_cast<std::size_t>(H * k_));
  }

  void forward() override {
    make_out();
    const std::int64_t ends[] = {0, T};
    mosa_forward<float>(ends, shape_, weights(), tokens.q.data(), D, out.data(), D, chosen_.data(), threads);
  }

  void forward_backward() override {
    forward();
    make_gradients();
    for (std::size_t n = 1; n < inputs.size(); ++n) std::ranges::fill(inputs[n].gradient, 0.0f);  // they are added to
    const std::int64_t ends[] = {0, T};
    mosa_backward<float>(ends, shape_, weights(), tokens.q.data(), D, tokens.dout.data(), D, inputs[0].gradient.data(),
                         D, {inputs[1].gradient.data(), inputs[2].gradient.data(), inputs[3].gradient.data()}, threads);
  }

  // Columns h W .. of row t. Which tokens are chosen is taken from the operator (check_more looks at that): in float64
  // two that are nearly equal may be the other way round.
  void definition(const Point& x, std::int64_t t, std::int64_t h, double* row) const override {
    std::fill_n(row, W, 0.0);
    const auto n = static_cast<std::size_t>(W);
    for (std::int64_t e = 0; e < H; ++e) {
      const std::int64_t *first = chosen_.data() + e * k_, *last = first + k_;
      if (!std::binary_search(first, last, t)) continue;
      const std::vector<double> q = rotated(x, e, 0, t);
      std::vector<double> sums(n);
      double weights = 0;
      for (const std::int64_t* s = first; s != last && *s <= t; ++s) {
        const std::vector<double> k = rotated(x, e, 1, *s), v = projected(x, e, 2, *s);
        double score = 0;
        for (std::size_t d = 0; d < n; ++d) score += q[d] * k[d];
        const double weight = std::exp(score / std::sqrt(static_cast<double>(W)));
        weights += weight;
        for (std::size_t d = 0; d < n; ++d) sums[d] += weight * v[d];
      }
      const double factor = 1 / (1 + std::exp(-score_of(x, e, t))) / weights;
      for (std::int64_t a = 0; a < W; ++a)
        for (std::int64_t c = 0; c < W; ++c)
          row[c] += factor * sums[static_cast<std::size_t>(a)] * x(3, (e * W + a) * D + h * W + c);
    }
  }
  int query() const override { return -1; }  // x is the keys as well
  // The definition projects anew for each row.
  std::int64_t gradient_tokens() const override { return std::clamp<std::int64_t>(80 * 256 / D, 20, 80); }

  // A row that is not zero.
  std::int64_t checked_token(std::int64_t t, std::int64_t h) const override {
    const std::int64_t *first = chosen_.data() + h * k_, *found = std::lower_bound(first, first + k_, t);
    return found != first + k_ ? *found : found[-1];
  }

  // No token that was left out has a larger score than one that was chosen, but for rounding.
  void check_more() const override {
    const Point x{inputs};
    for (std::int64_t e = 0; e < H; ++e) {
      const std::int64_t *first = chosen_.data() + e * k_, *last = first + k_;
      double least = 1e300, most = -1e300;
      std::int64_t found = 0;
      for (std::int64_t t = 0; t < T; ++t) {
        const double score = score_of(x, e, t);
        if (std::binary_search(first, last, t))
          least = std::min(least, score), ++found;
        else
          most = std::max(most, score);
      }
      if (!(found == k_ && most <= least + 1e-5))
        throw WrongResult(
            fmt::format("mosa T={}: the result is wrong: head {} chose {} tokens, need the best {}", T, e, found, k_));
    }
  }

 private:
  MosaWeights<float> weights() const { return {router_.data(), qkv_.data(), out_.data()}; }

  double score_of(const Point& x, std::int64_t e, std::int64_t t) const {
    double sum = 0;
    for (std::int64_t c = 0; c < D; ++c) sum += x(0, t * D + c) * x(1, c * H + e);
    return sum;
  }
  // Queries (part 0), keys (1) or values (2) of head e and token t.
  std::vector<double> projected(const Point& x, std::int64_t e, std::int64_t part, std::int64_t t) const {
    std::vector<double> row(static_cast<std::size_t>(W));
    for (std::int64_t c = 0; c < D; ++c) {
      const double value = x(0, t * D + c);
      const std::int64_t at = (e * D + c) * 3 * W + part * W;
      for (std::int64_t d = 0; d < W; ++d) row[static_cast<std::size_t>(d)] += value * x(2, at + d);
    }
    return row;
  }
  std::vector<double> rotated(const Point& x, std::int64_t e, std::int64_t part, std::int64_t t) const {
    std::vector<double> row = projected(x, e, part, t);
    const std::int64_t width = 2 * (W / 4), half = width / 2;
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(t) * std::pow(shape_.theta, -2.0 * static_cast<double>(i) / static_cast<double>(width));
      double &a = row[static_cast<std::size_t>(i)], &b = row[static_cast<std::size_t>(i + half)];
      const double old = a;
      a = old * std::cos(angle) - b * std::sin(angle);
      b = b * std::cos(angle) + old * std::sin(angle);
    }
    return row;
  }

  const std::int64_t D, k_;
  MosaShape shape_;
  std::vector<float> router_, qkv_, out_;
  std::vector<std::int64_t> chosen_;
};

}  // namespace

std::unique_ptr<Case> make_mosa_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads) {
  if (std::string_view(m.name) == "mosa") return std::make_unique<MosaCase>(m, tokens, T, threads);
  return nullptr;
}

}  // namespace loglinear::app::compare
