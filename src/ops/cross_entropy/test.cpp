#include "loglinear/cross_entropy.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

template <class T>
struct Problem {
  std::int64_t N, vocab;
  std::vector<std::int32_t> targets;
  Grid<T> logits;

  Problem(std::int64_t N_, std::int64_t vocab_, double spread) : N(N_), vocab(vocab_), logits(N, vocab, 3) {
    Random random(13, static_cast<std::uint64_t>(vocab));
    logits.fill(random, -spread, spread);
    for (std::int64_t n = 0; n < N; ++n)
      targets.push_back(n % 4 == 3 ? -1 : static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(vocab))));
  }
  std::pair<std::vector<double>, Grid<T>> run(T scale, int threads = 0) const {
    std::vector<double> losses(static_cast<std::size_t>(N), std::nan(""));
    Grid<T> dlogits(N, vocab, 2);
    cross_entropy<T>(targets, vocab, logits.ptr(), logits.stride, scale, losses.data(), dlogits.ptr(), dlogits.stride,
                     threads);
    return {losses, dlogits};
  }
};

template <class T>
class CrossEntropy : public ::testing::Test {};
TYPED_TEST_SUITE(CrossEntropy, Floats);

TYPED_TEST(CrossEntropy, definition) {
  using T = TypeParam;
  for (std::int64_t N : {0, 1, 13})
    for (std::int64_t vocab : {1, 3, 16, 257, 1000})
      for (double spread : {1.0, 300.0}) {
        const Problem<T> p(N, vocab, spread);
        const auto [losses, dlogits] = p.run(T(0.25));
        Grid<double> want(N, vocab);
        for (std::int64_t n = 0; n < N; ++n) {
          long double largest = -1e30L, sum = 0;
          for (std::int64_t j = 0; j < vocab; ++j) largest = std::max<long double>(largest, p.logits(n, j));
          for (std::int64_t j = 0; j < vocab; ++j) sum += std::exp(static_cast<long double>(p.logits(n, j)) - largest);
          const std::int32_t y = p.targets[n];
          const double loss = y < 0 ? 0 : static_cast<double>(largest + std::log(sum) - p.logits(n, y));
          EXPECT_LE(std::abs(losses[n] - loss), kBound<T> * (1 + loss)) << n << " of " << vocab;
          for (std::int64_t j = 0; j < vocab; ++j)
            want(n, j) =
                y < 0
                    ? 0
                    : 0.25 * (static_cast<double>(std::exp(static_cast<long double>(p.logits(n, j)) - largest) / sum) -
                              (j == y));
        }
        expect_close(dlogits, want, kBound<T>, "dlogits");
      }
}

TEST(CrossEntropy, gradient) {
  Problem<double> p(9, 17, 3);
  const Grid<double> dlogits = p.run(0.5).second;
  expect_gradient(
      p.logits, dlogits,
      [&] {
        double sum = 0;
        for (double loss : p.run(0.5).first) sum += 0.5 * loss;
        return sum;
      },
      "dlogits");
}

TYPED_TEST(CrossEntropy, in_place_and_without_outputs) {
  using T = TypeParam;
  Problem<T> p(20, 77, 5);
  const auto [losses, dlogits] = p.run(T(2));
  std::vector<double> alone(20);
  cross_entropy<T>(p.targets, 77, p.logits.ptr(), p.logits.stride, T(2), alone.data(), nullptr, 0);
  EXPECT_EQ(alone, losses);
  cross_entropy<T>(p.targets, 77, p.logits.ptr(), p.logits.stride, T(2), nullptr, p.logits.ptr(), p.logits.stride);
  for (std::int64_t n = 0; n < 20; ++n) EXPECT_TRUE(same_row_bits(p.logits, dlogits, n));
}

TYPED_TEST(CrossEntropy, same_bits_for_any_number_of_threads) {
  const Problem<TypeParam> p(900, 131, 4);
  expect_same_for_threads(
      [&](int threads) { return std::vector<std::vector<TypeParam>>{p.run(1, threads).second.data}; });
  expect_same_for_threads([&](int threads) { return std::vector<std::vector<double>>{p.run(1, threads).first}; });
}

TYPED_TEST(CrossEntropy, infinities_and_nan) {
  using T = TypeParam;
  Problem<T> p(12, 40, 2);
  p.targets.assign(12, 1);
  const auto clean = p.run(T(1));
  p.logits(3, 5) = std::numeric_limits<T>::quiet_NaN();
  p.logits(6, 39) = std::numeric_limits<T>::infinity();
  p.logits(8, 0) = -std::numeric_limits<T>::infinity();
  const auto [losses, dlogits] = p.run(T(1));
  for (std::int64_t n = 0; n < 12; ++n) {
    if (n == 3 || n == 6) {
      EXPECT_TRUE(std::isnan(losses[n]));
      EXPECT_TRUE(std::isnan(dlogits(n, 0)));
    } else if (n == 8) {
      EXPECT_TRUE(std::isfinite(losses[n]));
      EXPECT_EQ(dlogits(n, 0), T(0));
    } else {
      EXPECT_EQ(losses[n], clean.first[n]);
      EXPECT_TRUE(same_row_bits(dlogits, clean.second, n));
    }
  }
}

TEST(CrossEntropy, errors) {
  std::vector<float> x(8);
  const std::vector<std::int32_t> good = {0, -1}, high = {0, 4}, low = {0, -2};
  double losses[2];
  const auto call = [&](const std::vector<std::int32_t>& targets, std::int64_t vocab, std::int64_t stride,
                        float* data) {
    return [&, vocab, stride, data] { cross_entropy<float>(targets, vocab, data, stride, 1, losses, data, stride); };
  };
  expect_error(call(high, 4, 4, x.data()), "outside the vocabulary");
  expect_error(call(low, 4, 4, x.data()), "outside the vocabulary");
  expect_error(call(good, 0, 4, x.data()), "vocab");
  expect_error(call(good, 4, 3, x.data()), "stride");
  expect_error(call(good, 4, 4, nullptr), "null");
}

}  // namespace
}  // namespace loglinear::testing
