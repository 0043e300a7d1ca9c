#include "loglinear/adamw.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

template <class T>
class AdamW : public ::testing::Test {};
TYPED_TEST_SUITE(AdamW, Floats);

AdamWArgs settings() {
  AdamWArgs args;
  args.learning_rate = 0.01, args.beta1 = 0.9, args.beta2 = 0.95, args.eps = 1e-8, args.weight_decay = 0.1;
  args.grad_scale = 0.5;
  return args;
}

template <class T>
std::vector<T> numbers(std::int64_t n, std::uint64_t stream) {
  Random random(18, stream);
  std::vector<T> x;
  for (std::int64_t i = 0; i < n; ++i) x.push_back(static_cast<T>(2 * random.uniform() - 1));
  return x;
}

TYPED_TEST(AdamW, follows_the_definition_for_several_steps) {
  using T = TypeParam;
  for (std::int64_t n : {0, 1, 7, 16, 33, 20000}) {
    std::vector<T> value = numbers<T>(n, 1), m(value.size()), v(value.size());
    std::vector<double> want(value.begin(), value.end()), want_m(value.size()), want_v(value.size());
    for (std::int64_t step = 1; step <= 4; ++step) {
      AdamWArgs args = settings();
      args.step = step;
      const std::vector<T> grad = numbers<T>(n, static_cast<std::uint64_t>(10 + step));
      adamw_step<T>(n, value.data(), grad.data(), m.data(), v.data(), args);
      for (std::int64_t i = 0; i < n; ++i) {
        const double g = 0.5 * static_cast<double>(grad[i]);
        want_m[i] = 0.9 * want_m[i] + 0.1 * g;
        want_v[i] = 0.95 * want_v[i] + 0.05 * g * g;
        const double first = want_m[i] / (1 - std::pow(0.9, step)), second = want_v[i] / (1 - std::pow(0.95, step));
        want[i] = want[i] - 0.01 * 0.1 * want[i] - 0.01 * first / (std::sqrt(second) + 1e-8);
      }
    }
    for (std::int64_t i = 0; i < n; ++i) {
      ASSERT_LE(std::abs(static_cast<double>(value[i]) - want[i]), kBound<T>) << i;
      ASSERT_LE(std::abs(static_cast<double>(m[i]) - want_m[i]), kBound<T>) << i;
      ASSERT_LE(std::abs(static_cast<double>(v[i]) - want_v[i]), kBound<T>) << i;
    }
  }
}

TYPED_TEST(AdamW, a_zero_gradient_only_decays) {
  std::vector<TypeParam> value(5, 2), grad(5), m(5), v(5);
  adamw_step<TypeParam>(5, value.data(), grad.data(), m.data(), v.data(), settings());
  for (TypeParam x : value) EXPECT_LE(std::abs(x - 2 * (1 - 0.001)), kBound<TypeParam>);
}

TYPED_TEST(AdamW, same_bits_for_any_number_of_threads) {
  using T = TypeParam;
  const std::int64_t n = 100001;
  const std::vector<T> start = numbers<T>(n, 1), grad = numbers<T>(n, 2);
  expect_same_for_threads([&](int threads) {
    std::vector<T> value = start, m = grad, v(start.size(), T(0.5));
    adamw_step<T>(n, value.data(), grad.data(), m.data(), v.data(), settings(), threads);
    return std::vector{value, m, v};
  });
  expect_same_for_threads(
      [&](int threads) { return std::vector<std::vector<double>>{{sum_of_squares<T>(n, start.data(), threads)}}; });
}

TYPED_TEST(AdamW, sum_of_squares) {
  using T = TypeParam;
  EXPECT_EQ(sum_of_squares<T>(0, nullptr), 0.0);
  for (std::int64_t n : {1, 7, 8, 9, 16384, 16385, 50000}) {
    const std::vector<T> x = numbers<T>(n, 3);
    long double want = 0;
    for (T value : x) want += static_cast<long double>(value) * value;
    EXPECT_LE(std::abs(sum_of_squares<T>(n, x.data()) - static_cast<double>(want)), 1e-13 * static_cast<double>(want));
  }
  const std::vector<float> large(3, 1e38f);
  EXPECT_LE(std::abs(sum_of_squares<float>(3, large.data()) / 3e76 - 1), 1e-6);  // no overflow
}

TYPED_TEST(AdamW, all_finite) {
  using T = TypeParam;
  std::vector<T> x = numbers<T>(40000, 4);
  EXPECT_TRUE(all_finite<T>(40000, x.data()));
  EXPECT_TRUE(all_finite<T>(0, nullptr));
  for (T bad :
       {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity()})
    for (std::size_t at : {std::size_t{0}, std::size_t{20000}, std::size_t{39999}}) {
      const T before = x[at];
      x[at] = bad;
      EXPECT_FALSE(all_finite<T>(40000, x.data()));
      EXPECT_FALSE(std::isfinite(sum_of_squares<T>(40000, x.data())));
      x[at] = before;
    }
  x[0] = std::numeric_limits<T>::max();
  EXPECT_TRUE(all_finite<T>(40000, x.data()));
}

TEST(AdamW, errors) {
  float x[4] = {};
  const auto call = [&](auto change) {
    return [&x, change] {
      AdamWArgs args = settings();
      change(args);
      adamw_step<float>(1, x, x + 1, x + 2, x + 3, args);
    };
  };
  expect_error(call([](AdamWArgs& a) { a.step = 0; }), "step");
  expect_error(call([](AdamWArgs& a) { a.beta1 = 1; }), "beta");
  expect_error(call([](AdamWArgs& a) { a.beta2 = -0.1; }), "beta");
  expect_error(call([](AdamWArgs& a) { a.learning_rate = std::nan(""); }), "learning_rate");
  expect_error(call([](AdamWArgs& a) { a.weight_decay = -1; }), "weight_decay");
  expect_error(call([](AdamWArgs& a) { a.grad_scale = INFINITY; }), "grad_scale");
  expect_error([&] { adamw_step<float>(1, x, nullptr, x, x, settings()); }, "grad is null");
  expect_error([&] { adamw_step<float>(-1, x, x, x, x, settings()); }, "size");
  expect_error([&] { sum_of_squares<float>(1, nullptr); }, "null");
  expect_error([&] { all_finite<float>(-1, x); }, "size");
}

}  // namespace
}  // namespace loglinear::testing
