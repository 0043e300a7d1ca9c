// Softmax attention over all pairs or some, G = H heads of keys and values.

#include <cmath>

#include "app/compare/case.hpp"
#include "loglinear/flash_attention.hpp"
#include "loglinear/sparse_attention.hpp"
#include "loglinear/standard_attention.hpp"

namespace loglinear::app::compare {
namespace {

// What the three have in common: a call is a sequence of the inputs, and the same with what backward needs.
class AttentionCase : public Case {
 public:
  AttentionCase(const Mechanism& m, const Tokens& x, std::int64_t tokens, int thread_count)
      : Case(m, x, tokens, thread_count), R(H * W) {
    const std::int64_t n = T * H * W;
    inputs.push_back({"q", x.q.data(), n, {}});
    inputs.push_back({"k", x.k.data(), n, {}});
    inputs.push_back({"v", x.v.data(), n, {}});
    shape.heads = shape.kv_heads = H;
    shape.key_width = shape.value_width = W;
  }

  void forward() override {
    make_out();
    attend({0, T, 0, T}, false);
  }
  void forward_backward() override {
    make_out();
    attend({0, T, 0, T}, true);
    make_gradients();
    backward({0, T, 0, T});
  }
  void step(std::int64_t t) override { attend({t, 1, 0, t + 1}, false); }

  void definition(const Point& x, std::int64_t t, std::int64_t h, double* row) const override {
    const auto n = static_cast<std::size_t>(W);
    std::vector<double> q(n), sums(n);
    for (std::int64_t d = 0; d < W; ++d) q[static_cast<std::size_t>(d)] = x(0, (t * H + h) * W + d);
    const double scale = 1 / std::sqrt(static_cast<double>(W));
    double weights = 0;
    for (std::int64_t s = 0; s <= t; ++s) {
      if (!sees(t, s)) continue;
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

 protected:
  // With `trains`: what backward needs is kept.
  virtual void attend(const AttentionSequence& sequence, bool trains) = 0;
  virtual void backward(const AttentionSequence& sequence) = 0;
  // Whether the token at t sees the one at s <= t.
  virtual bool sees(std::int64_t, std::int64_t) const { return true; }

  const float* in(std::size_t n) const { return inputs[n].value; }
  float* gradient(std::size_t n) { return inputs[n].gradient.data(); }
  float* make_log_sums(bool trains) {
    if (trains) log_sums.resize(static_cast<std::size_t>(T * H));
    return trains ? log_sums.data() : nullptr;
  }

  const std::int64_t R;  // elements from a token to the next
  AttentionShape shape;
  std::vector<float> log_sums;
};

class StandardCase final : public AttentionCase {
 public:
  using AttentionCase::AttentionCase;

 private:
  void attend(const AttentionSequence& s, bool) override {
    const std::int64_t elements = standard_attention_elements({&s, 1}, shape);
    if (elements > count_) {
      probabilities_ = nullptr;
      probabilities_.reset(new float[static_cast<std::size_t>(elements)]);  // written whole by the call
      count_ = elements;
    }
    standard_attention_forward<float>({&s, 1}, shape, in(0), R, in(1), R, in(2), R, out.data(), R, probabilities_.get(),
                                      threads);
  }
  void backward(const AttentionSequence& s) override {
    standard_attention_backward<float>({&s, 1}, shape, in(0), R, in(1), R, in(2), R, probabilities_.get(),
                                       tokens.dout.data(), R, gradient(0), R, gradient(1), R, gradient(2), R, threads);
  }

  std::unique_ptr<float[]> probabilities_;
  std::int64_t count_ = 0;
};

class FlashCase final : public AttentionCase {
 public:
  using AttentionCase::AttentionCase;

 private:
  void attend(const AttentionSequence& s, bool trains) override {
    flash_attention_forward<float>({&s, 1}, shape, in(0), R, in(1), R, in(2), R, out.data(), R, make_log_sums(trains),
                                   threads);
  }
  void backward(const AttentionSequence& s) override {
    flash_attention_backward<float>({&s, 1}, shape, in(0), R, in(1), R, in(2), R, out.data(), R, log_sums.data(),
                                    tokens.dout.data(), R, gradient(0), R, gradient(1), R, gradient(2), R, threads);
  }
};

class SparseCase final : public AttentionCase {
 public:
  SparseCase(const Mechanism& m, const Tokens& x, std::int64_t tokens, int thread_count, SparsePattern pattern)
      : AttentionCase(m, x, tokens, thread_count), pattern_(pattern) {}

 private:
  void attend(const AttentionSequence& s, bool trains) override {
    sparse_attention_forward<float>({&s, 1}, shape, pattern_, in(0), R, in(1), R, in(2), R, out.data(), R,
                                    make_log_sums(trains), threads);
  }
  void backward(const AttentionSequence& s) override {
    sparse_attention_backward<float>({&s, 1}, shape, pattern_, in(0), R, in(1), R, in(2), R, out.data(), R,
                                     log_sums.data(), tokens.dout.data(), R, gradient(0), R, gradient(1), R,
                                     gradient(2), R, threads);
  }
  bool sees(std::int64_t t, std::int64_t s) const override {
    return t - s < pattern_.window || (pattern_.stride > 0 && (t - s) % pattern_.stride == 0);
  }

  const SparsePattern pattern_;
};

}  // namespace

std::unique_ptr<Case> make_attention_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads) {
  const std::string_view name = m.name;
  if (name == "standard") return std::make_unique<StandardCase>(m, tokens, T, threads);
  if (name == "flash") return std::make_unique<FlashCase>(m, tokens, T, threads);
  if (name == "sliding_window")
    return std::make_unique<SparseCase>(m, tokens, T, threads, SparsePattern{.window = kWindow});
  if (name == "local_strided") {
    const std::int64_t root = std::llround(std::sqrt(static_cast<double>(T)));
    return std::make_unique<SparseCase>(m, tokens, T, threads, SparsePattern{.window = root, .stride = root});
  }
  return nullptr;
}

}  // namespace loglinear::app::compare
