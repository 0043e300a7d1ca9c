#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "loglinear/matmul.hpp"
#include "op_testing.hpp"
#include "sanitized.hpp"

namespace loglinear::testing {
namespace {

constexpr Transpose kNo = Transpose::no, kYes = Transpose::yes;

template <class T>
struct Problem {
  Transpose a_t, b_t;
  std::int64_t M, N, K;
  Grid<T> a, b, c;

  Problem(Transpose a_t_, Transpose b_t_, std::int64_t M_, std::int64_t N_, std::int64_t K_, std::int64_t padding = 0)
      : a_t(a_t_),
        b_t(b_t_),
        M(M_),
        N(N_),
        K(K_),
        a(a_t == kYes ? K : M, a_t == kYes ? M : K, padding),
        b(b_t == kYes ? N : K, b_t == kYes ? K : N, padding),
        c(M, N, padding) {
    Random random(11, static_cast<std::uint64_t>(M * 1000003 + N * 1009 + K));
    a.fill(random);
    b.fill(random);
    c.fill(random);
  }
  double a_at(std::int64_t m, std::int64_t k) const { return a_t == kYes ? a(k, m) : a(m, k); }
  double b_at(std::int64_t k, std::int64_t n) const { return b_t == kYes ? b(n, k) : b(k, n); }

  Grid<T> run(T beta, int threads = 0) const {
    Grid<T> out = c;
    if (beta == 0) out.fill(std::numeric_limits<double>::quiet_NaN());
    matmul<T>(a_t, b_t, M, N, K, a.ptr(), a.stride, b.ptr(), b.stride, beta, out.ptr(), out.stride, threads);
    return out;
  }
  Grid<double> definition(double beta) const {
    Grid<double> out(M, N);
    for (std::int64_t m = 0; m < M; ++m)
      for (std::int64_t n = 0; n < N; ++n) {
        double sum = beta == 0 ? 0 : beta * static_cast<double>(c(m, n));
        for (std::int64_t k = 0; k < K; ++k) sum += a_at(m, k) * b_at(k, n);
        out(m, n) = sum;
      }
    return out;
  }
};

template <class T>
class Matmul : public ::testing::Test {};
TYPED_TEST_SUITE(Matmul, Floats);

TYPED_TEST(Matmul, definition) {
  using T = TypeParam;
  const std::int64_t shapes[][3] = {{1, 1, 1},     {1, 7, 5},       {5, 1, 9},    {3, 4, 0},
                                    {0, 4, 3},     {4, 0, 3},       {17, 33, 65}, {128, 256, 8},
                                    {129, 257, 7}, {130, 300, 150}, {260, 70, 3}, {1025, 1601, 20}};
  for (const auto& [M, N, K] : shapes)
    for (Transpose a_t : {kNo, kYes})
      for (Transpose b_t : {kNo, kYes})
        for (double beta : {0.0, 1.0})
          for (std::int64_t padding : {0, 3}) {
            if (kSanitized && M > 100 && (beta == 0.0 || padding == 0 || a_t != b_t)) continue;
            const Problem<T> p(a_t, b_t, M, N, K, padding);
            expect_close(p.run(static_cast<T>(beta)), p.definition(beta), sizeof(T) == 4 ? 2e-5 : 1e-13, "c");
          }
}

RC_GTEST_PROP(MatmulProperty, random_shapes, ()) {
  const auto size = rc::gen::inRange<std::int64_t>(0, 300);
  const std::int64_t M = *size, N = *size, K = *rc::gen::inRange<std::int64_t>(0, 90);
  const Problem<float> p(*rc::gen::arbitrary<bool>() ? kYes : kNo, *rc::gen::arbitrary<bool>() ? kYes : kNo, M, N, K,
                         *rc::gen::inRange<std::int64_t>(0, 5));
  const double beta = *rc::gen::element(0.0, 1.0);
  expect_close(p.run(static_cast<float>(beta)), p.definition(beta), 2e-5, "c");
  RC_ASSERT(!::testing::Test::HasFailure());
}

// Forward, input gradient and weight gradient of a projection, the last with thousands of tokens to sum over.
TYPED_TEST(Matmul, bits_do_not_depend_on_threads) {
  using T = TypeParam;
  const std::int64_t tokens = kSanitized ? 300 : sizeof(T) == 4 ? 5000 : 700;
  for (const Problem<T>& p : {Problem<T>(kNo, kYes, tokens, 300, 129), Problem<T>(kNo, kNo, tokens, 129, 300),
                              Problem<T>(kYes, kNo, 300, 129, tokens), Problem<T>(kYes, kNo, 512, 512, tokens),
                              Problem<T>(kYes, kNo, 1030, 2049, tokens / 20), Problem<T>(kNo, kYes, 1, 1000, 256),
                              Problem<T>(kNo, kYes, 7, 1000, 256), Problem<T>(kYes, kYes, 200, 300, 100)})
    for (T beta : {T(0), T(1)}) {
      if (kSanitized && beta == T(0)) continue;
      expect_same_for_threads([&](int threads) { return std::vector<std::vector<T>>{p.run(beta, threads).data}; });
    }
}

TYPED_TEST(Matmul, the_default_number_of_threads_is_no_exception) {
  using T = TypeParam;
  const Problem<T> p(kYes, kNo, 300, 200, 3000);
  EXPECT_TRUE(same_bits(p.run(T(1), 0).data, p.run(T(1), 1).data));
}

TYPED_TEST(Matmul, nan_stays_in_its_row_and_column) {
  using T = TypeParam;
  for (Transpose a_t : {kNo, kYes})
    for (Transpose b_t : {kNo, kYes}) {
      Problem<T> p(a_t, b_t, 150, 270, 40);
      const Grid<T> clean = p.run(T(0));
      (a_t == kYes ? p.a(3, 77) : p.a(77, 3)) = std::numeric_limits<T>::quiet_NaN();
      (b_t == kYes ? p.b(260, 9) : p.b(9, 260)) = std::numeric_limits<T>::infinity();
      const Grid<T> dirty = p.run(T(0));
      for (std::int64_t m = 0; m < 150; ++m)
        for (std::int64_t n = 0; n < 270; ++n) {
          if (m == 77)
            EXPECT_TRUE(std::isnan(dirty(m, n)));
          else if (n == 260)
            EXPECT_FALSE(std::isfinite(dirty(m, n)));
          else
            EXPECT_EQ(dirty(m, n), clean(m, n));
        }
    }
}

TEST(Matmul, errors) {
  float x[16] = {};
  const auto call = [&](std::int64_t M, std::int64_t N, std::int64_t K, const float* a, std::int64_t lda,
                        std::int64_t ldb, float beta, std::int64_t ldc) {
    return [=, &x] { matmul<float>(kNo, kNo, M, N, K, a, lda, x, ldb, beta, x + 8, ldc); };
  };
  expect_error(call(-1, 2, 2, x, 2, 2, 0, 2), "size");
  expect_error(call(2, 2, 2, x, 1, 2, 0, 2), "a: row stride 1");
  expect_error(call(2, 2, 2, x, 2, 1, 0, 2), "b: row stride 1");
  expect_error(call(2, 2, 2, x, 2, 2, 0, 1), "c: row stride 1");
  expect_error(call(2, 2, 2, nullptr, 2, 2, 0, 2), "a is null");
  expect_error(call(2, 2, 2, x, 2, 2, 0.5f, 2), "beta");
  expect_error(call(std::int64_t{1} << 40, std::int64_t{1} << 40, 2, x, 2, 2, 0, 2), "overflow");
}

}  // namespace
}  // namespace loglinear::testing
