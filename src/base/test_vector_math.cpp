#include "base/vector_math.hpp"

#include "base/cpu_features.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

// Runs body with each instruction set of this CPU, and goes back to the best.
template <class Body>
void for_each_instruction_set(const Body& body) {
  const std::vector<std::string> names = instruction_sets();
  ASSERT_FALSE(names.empty());
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    force_instruction_set(name);
    body();
  }
  force_instruction_set("");
}

template <class T>
class VectorMath : public ::testing::Test {};
TYPED_TEST_SUITE(VectorMath, Floats);

const std::int64_t kLengths[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 129};

// A buffer that ends right behind the last element, so that address checks see a read too far.
template <class T>
std::vector<T> numbers(std::int64_t n, double low, double high, std::uint64_t stream) {
  Random random(7, stream);
  std::vector<T> x;
  for (std::int64_t i = 0; i < n; ++i) x.push_back(static_cast<T>(low + (high - low) * random.uniform()));
  return x;
}

template <class T>
void expect_near(T got, double want, const char* what) {
  if (!(std::abs(static_cast<double>(got) - want) <= kBound<T> * (1 + std::abs(want))))
    ADD_FAILURE() << what << ": got " << got << ", want " << want;
}

TYPED_TEST(VectorMath, elementwise_functions) {
  using T = TypeParam;
  for_each_instruction_set([] {
    for (std::int64_t n : kLengths) {
      std::vector<T> x = numbers<T>(n, -30, 30, 1), m = numbers<T>(n, -2, 2, 2), dy = numbers<T>(n, -2, 2, 3);
      if (n > 3) x[0] = 0, x[1] = T(-500), x[2] = T(500), x[3] = T(-1e-9);
      std::vector<T> y(x.size()), z(x.size());
      vec::sigmoid(n, x.data(), y.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(y[i], sigmoid(x[i]), "sigmoid");
      vec::softplus(n, x.data(), y.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(y[i], softplus(x[i]), "softplus");
      vec::softplus_backward(n, x.data(), dy.data(), y.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(y[i], dy[i] * (x[i] > 20 ? 1 : sigmoid(x[i])), "softplus'");
      vec::silu(n, x.data(), y.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(y[i], silu(x[i]), "silu");
      const auto slope = [](double v) { return sigmoid(v) + v * sigmoid(v) * sigmoid(-v); };
      vec::silu_backward(n, x.data(), dy.data(), y.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(y[i], dy[i] * slope(x[i]), "silu'");
      vec::silu_product(n, x.data(), m.data(), y.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(y[i], silu(x[i]) * m[i], "silu_product");
      vec::silu_product_backward(n, x.data(), m.data(), dy.data(), y.data(), z.data());
      for (std::int64_t i = 0; i < n; ++i) {
        expect_near(y[i], static_cast<double>(dy[i]) * m[i] * slope(x[i]), "silu_product dx");
        expect_near(z[i], dy[i] * silu(x[i]), "silu_product dm");
      }
      z = m;
      vec::add_scaled(n, T(0.75), dy.data(), z.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(z[i], m[i] + 0.75 * dy[i], "add_scaled");
      z = m;
      vec::add_product(n, T(-2), dy.data(), m.data(), z.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(z[i], m[i] - 2.0 * dy[i] * m[i], "add_product");
      z = m;
      const T *left[3] = {dy.data(), nullptr, m.data()}, *right[3] = {m.data(), nullptr, m.data()};
      vec::add_products(n, 3, left, right, z.data());
      for (std::int64_t i = 0; i < n; ++i)
        expect_near(z[i], m[i] + static_cast<double>(dy[i]) * m[i] + static_cast<double>(m[i]) * m[i], "add_products");
      vec::scale(n, T(0.75), dy.data(), z.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(z[i], 0.75 * dy[i], "scale");
      vec::combine(n, T(0.75), dy.data(), T(-3), m.data(), z.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(z[i], 0.75 * dy[i] - 3.0 * m[i], "combine");
      vec::scaled_product(n, T(3), dy.data(), m.data(), z.data());
      for (std::int64_t i = 0; i < n; ++i) expect_near(z[i], 3.0 * dy[i] * m[i], "scaled_product");
    }
  });
}

TYPED_TEST(VectorMath, small_values_keep_their_relative_accuracy) {
  using T = TypeParam;
  for_each_instruction_set([] {
    const double relative = sizeof(T) == 4 ? 1e-6 : 1e-14;
    for (double x : {-10.0, -15.0, -19.5}) {
      const std::vector<T> in(9, static_cast<T>(x));
      std::vector<T> out(9);
      vec::softplus<T>(9, in.data(), out.data());
      for (T y : out) EXPECT_LE(std::abs(y / softplus(x) - 1), relative);
      vec::sigmoid<T>(9, in.data(), out.data());
      for (T y : out) EXPECT_LE(std::abs(y / sigmoid(x) - 1), relative);
    }
  });
}

TYPED_TEST(VectorMath, sums_and_maxima) {
  using T = TypeParam;
  for_each_instruction_set([] {
    for (std::int64_t n : kLengths) {
      const std::vector<T> a = numbers<T>(n, -3, 3, 4), b = numbers<T>(n, -3, 3, 5);
      double dot = 0, sum = 0, largest = -1e30;
      for (std::int64_t i = 0; i < n; ++i) {
        dot += static_cast<double>(a[i]) * b[i];
        sum += std::exp(static_cast<double>(a[i]) - 3);
        largest = std::max(largest, static_cast<double>(a[i]));
      }
      const double error = std::abs(vec::dot(n, a.data(), b.data()) - dot);
      if (!(error <= kBound<T> * (1 + static_cast<double>(n)))) ADD_FAILURE() << "dot " << n;
      if (n > 0) {
        EXPECT_EQ(vec::max(n, a.data()), static_cast<T>(largest));
      }
      std::vector<T> e(a.size());
      expect_near(vec::exp_sum(n, a.data(), T(3), e.data()), sum, "exp_sum");
      EXPECT_EQ(vec::exp_sum<T>(n, a.data(), T(3), nullptr), vec::exp_sum(n, a.data(), T(3), e.data()));
      for (std::int64_t i = 0; i < n; ++i) expect_near(e[i], std::exp(static_cast<double>(a[i]) - 3), "exp");
    }
  });
}

TYPED_TEST(VectorMath, nan_and_infinity) {
  using T = TypeParam;
  for_each_instruction_set([] {
    const T nan = std::numeric_limits<T>::quiet_NaN(), infinity = std::numeric_limits<T>::infinity();
    for (std::int64_t n : {1, 5, 16, 21, 40}) {
      for (std::int64_t at : {std::int64_t{0}, n / 2, n - 1}) {
        std::vector<T> x(static_cast<std::size_t>(n), T(1)), y(x.size());
        x[at] = nan;
        vec::sigmoid(n, x.data(), y.data());
        for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(std::isnan(y[i]), i == at);
        vec::softplus(n, x.data(), y.data());
        for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(std::isnan(y[i]), i == at);
        vec::softplus_backward(n, x.data(), std::vector<T>(x.size(), T(1)).data(), y.data());
        for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(std::isnan(y[i]), i == at);
        vec::silu(n, x.data(), y.data());
        for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(std::isnan(y[i]), i == at);
        EXPECT_TRUE(std::isnan(vec::exp_sum(n, x.data(), T(1), y.data())));
        for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(std::isnan(y[i]), i == at);
        x[at] = -infinity;
        EXPECT_EQ(vec::exp_sum(n, x.data(), T(1), y.data()), static_cast<T>(n - 1));
        EXPECT_EQ(y[at], T(0));
        vec::sigmoid(n, x.data(), y.data());
        EXPECT_EQ(y[at], T(0));
        vec::softplus(n, x.data(), y.data());
        EXPECT_EQ(y[at], T(0));
      }
    }
  });
}

TYPED_TEST(VectorMath, tile_product_of_any_shape) {
  using T = TypeParam;
  for_each_instruction_set([] {
    for (std::int64_t M : {1, 2, 5, 6, 7, 13})
      for (std::int64_t N : {1, 3, 8, 16, 17, 35, 64})
        for (std::int64_t K : {0, 1, 5, 33})
          for (bool transposed : {false, true}) {
            const std::vector<T> a = numbers<T>(M * K, -1, 1, 8), b = numbers<T>(K * N, -1, 1, 9);
            const std::vector<T> before = numbers<T>(M * N, -1, 1, 10);
            std::vector<T> c = before;
            vec::add_tile_product(M, N, K, a.data(), transposed ? 1 : K, transposed ? M : 1, b.data(), N, c.data(), N);
            for (std::int64_t m = 0; m < M; ++m) {
              for (std::int64_t n = 0; n < N; ++n) {
                double want = before[m * N + n];
                for (std::int64_t k = 0; k < K; ++k)
                  want += static_cast<double>(a[transposed ? k * M + m : m * K + k]) * b[k * N + n];
                expect_near(c[m * N + n], want, "tile");
              }
              // A row alone gives the same bits.
              std::vector<T> row(before.begin() + m * N, before.begin() + (m + 1) * N);
              vec::add_tile_product(1, N, K, a.data() + (transposed ? m : m * K), transposed ? 1 : K,
                                    transposed ? M : 1, b.data(), N, row.data(), N);
              EXPECT_TRUE(same_bits(row, std::vector<T>(c.begin() + m * N, c.begin() + (m + 1) * N)));
            }
          }
  });
}

}  // namespace
}  // namespace loglinear::testing
