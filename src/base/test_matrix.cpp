// The small matrix kernel against a plain loop, with every instruction set of this CPU.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/test_matrix.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cstdint>

#include "base/matrix-inl.h"

#ifndef LOGLINEAR_BASE_TEST_MATRIX_CALL_
#define LOGLINEAR_BASE_TEST_MATRIX_CALL_
namespace loglinear::testing {

// The arguments of a product, in types that all instruction sets share.
template <class T>
struct Call {
  std::int64_t M, N, K;
  const T* a;
  std::int64_t a_row, a_col;
  const T* b;
  std::int64_t ldb;
  T* c;
  std::int64_t ldc;
  T alpha = 1, beta = 0;
  const T* row_scale = nullptr;
  int part = 0;
  const T *column_scale = nullptr, *dots_with = nullptr;
  T* dots = nullptr;
};

}  // namespace loglinear::testing
#endif

HWY_BEFORE_NAMESPACE();
namespace loglinear::testing {
namespace HWY_NAMESPACE {

template <class T>
void product(const Call<T>& x) {
  namespace kernel = loglinear::HWY_NAMESPACE;
  kernel::product<T>(x.M, x.N, x.K, x.a, x.a_row, x.a_col, x.b, x.ldb, x.c, x.ldc,
                     {.alpha = x.alpha,
                      .beta = x.beta,
                      .row_scale = x.row_scale,
                      .part = static_cast<loglinear::Part>(x.part),
                      .column_scale = x.column_scale,
                      .dots_with = x.dots_with,
                      .dots = x.dots});
}

void product_f32(const Call<float>& x) { product(x); }
void product_f64(const Call<double>& x) { product(x); }

void transpose_f32(std::int64_t rows, std::int64_t columns, const float* from, std::int64_t ld_from, float* to,
                   std::int64_t ld_to) {
  loglinear::HWY_NAMESPACE::transpose(rows, columns, from, ld_from, to, ld_to);
}
void transpose_f64(std::int64_t rows, std::int64_t columns, const double* from, std::int64_t ld_from, double* to,
                   std::int64_t ld_to) {
  loglinear::HWY_NAMESPACE::transpose(rows, columns, from, ld_from, to, ld_to);
}

}  // namespace HWY_NAMESPACE
}  // namespace loglinear::testing
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cmath>
#include <limits>
#include <vector>

#include "base/cpu_features.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {

HWY_EXPORT(product_f32);
HWY_EXPORT(product_f64);
HWY_EXPORT(transpose_f32);
HWY_EXPORT(transpose_f64);

namespace {

enum Part { kFull, kLowerA, kUpperA, kLowerC };  // as in base/matrix-inl.h

void product(const Call<float>& x) { HWY_DYNAMIC_DISPATCH(product_f32)(x); }
void product(const Call<double>& x) { HWY_DYNAMIC_DISPATCH(product_f64)(x); }

template <class T>
class Matrix : public ::testing::Test {
 protected:
  template <class Body>
  void for_each_instruction_set(const Body& body) {
    for (const std::string& name : instruction_sets()) {
      SCOPED_TRACE(name);
      force_instruction_set(name);
      body();
    }
    force_instruction_set("");
  }

  std::vector<T> numbers(std::int64_t n) {
    std::vector<T> x;
    for (std::int64_t i = 0; i < n; ++i) x.push_back(static_cast<T>(2 * random_.uniform() - 1));
    return x;
  }

  Random random_{7, 0};
};
TYPED_TEST_SUITE(Matrix, Floats);

// Entries of A that a part leaves out.
bool left_out(int part, std::int64_t m, std::int64_t k) {
  return (part == kLowerA && k > m) || (part == kUpperA && k < m);
}

TYPED_TEST(Matrix, ProductsEqualAPlainLoop) {
  using T = TypeParam;
  struct Shape {
    std::int64_t M, N, K;
  };
  const Shape shapes[] = {{1, 1, 1},    {5, 3, 7},    {6, 16, 4},   {7, 17, 9},    {12, 33, 16},  {13, 48, 64},
                          {64, 64, 64}, {64, 80, 50}, {31, 100, 3}, {10, 128, 40}, {128, 64, 64}, {4, 8, 0}};
  this->for_each_instruction_set([&] {
    for (const Shape& s : shapes)
      for (const int part : {kFull, kLowerA, kUpperA, kLowerC})
        for (const bool transposed : {false, true})
          for (const T beta : {T(0), T(1), T(-0.5)})
            for (const bool scaled : {false, true}) {
              if ((part == kLowerA || part == kUpperA) && s.M != s.K) continue;
              if (part == kLowerC && s.M < s.N) continue;
              const std::int64_t ld = row_stride(s.N), lda = (transposed ? s.M : s.K) + 3;
              std::vector<T> a = this->numbers((transposed ? s.K : s.M) * lda);
              const std::vector<T> b = this->numbers(s.K * ld), before = this->numbers(s.M * ld),
                                   scale = this->numbers(s.M);
              Call<T> call{s.M,      s.N, s.K,     a.data(), transposed ? 1 : lda, transposed ? lda : 1,
                           b.data(), ld,  nullptr, ld};
              call.alpha = T(-2), call.beta = beta, call.part = part;
              if (scaled) call.row_scale = scale.data();
              std::vector<T> c = before;
              for (std::int64_t m = 0; m < s.M; ++m)  // what is left out is not read
                for (std::int64_t k = 0; k < s.K; ++k)
                  if (left_out(part, m, k)) a[m * call.a_row + k * call.a_col] = std::numeric_limits<T>::quiet_NaN();
              if (beta == T(0)) c.assign(c.size(), std::numeric_limits<T>::quiet_NaN());
              call.c = c.data();
              product(call);
              for (std::int64_t m = 0; m < s.M; ++m)
                for (std::int64_t n = 0; n < (part == kLowerC ? m + 1 : s.N); ++n) {
                  if (n >= s.N) break;
                  double sum = 0, size = 1;
                  for (std::int64_t k = 0; k < s.K; ++k) {
                    if (left_out(part, m, k)) continue;
                    const double term = static_cast<double>(a[m * call.a_row + k * call.a_col]) * b[k * ld + n];
                    sum += term, size += 2 * std::abs(term);
                  }
                  const double want =
                      static_cast<double>(beta) * before[m * ld + n] - 2 * sum * (scaled ? scale[m] : 1);
                  const double got = c[m * ld + n];
                  ASSERT_LE(std::abs(got - want),
                            static_cast<double>(s.K + 4) * std::numeric_limits<T>::epsilon() * size)
                      << "M " << s.M << " N " << s.N << " K " << s.K << " part " << part << " transposed " << transposed
                      << " beta " << beta << " scaled " << scaled << " entry " << m << ", " << n;
                }
            }
  });
}

// The epilogue that adds a product with its columns scaled and takes inner products of columns before.
TYPED_TEST(Matrix, ColumnsAreScaledAndMultiplied) {
  using T = TypeParam;
  this->for_each_instruction_set([&] {
    for (const std::int64_t M : {1, 7, 37, 128})
      for (const std::int64_t N : {3, 16, 50, 100}) {
        const std::int64_t K = 21, ld = row_stride(N);
        const std::vector<T> a = this->numbers(M * K), b = this->numbers(K * ld), before = this->numbers(M * ld),
                             with = this->numbers(M * ld), scale = this->numbers(ld), dots_before = this->numbers(ld);
        std::vector<T> c = before, dots = dots_before;
        Call<T> call{M, N, K, a.data(), K, 1, b.data(), ld, c.data(), ld};
        call.beta = 1, call.column_scale = scale.data(), call.dots_with = with.data(), call.dots = dots.data();
        product(call);
        const double bound = static_cast<double>(2 * K * (M + 4)) * std::numeric_limits<T>::epsilon();
        for (std::int64_t n = 0; n < N; ++n) {
          double dot = dots_before[n];
          for (std::int64_t m = 0; m < M; ++m) {
            double sum = 0;
            for (std::int64_t k = 0; k < K; ++k) sum += static_cast<double>(a[m * K + k]) * b[k * ld + n];
            dot += sum * with[m * ld + n];
            ASSERT_NEAR(c[m * ld + n], before[m * ld + n] + scale[n] * sum, bound) << M << " x " << N << ": " << m;
          }
          ASSERT_NEAR(dots[n], dot, bound) << M << " x " << N << ", column " << n;
        }
      }
  });
}

// Row i of a product has the same bits wherever it lies in a tile and however many rows follow.
TYPED_TEST(Matrix, BitsOfARowDependOnNothingElse) {
  using T = TypeParam;
  const std::int64_t M = 64, N = 80, K = 64, ld = row_stride(N);
  const std::vector<T> a = this->numbers(M * K), b = this->numbers(K * ld);
  this->for_each_instruction_set([&] {
    for (const int part : {kFull, kLowerA, kLowerC}) {
      std::vector<T> whole(M * ld);
      Call<T> call{M, N, K, a.data(), K, 1, b.data(), ld, whole.data(), ld};
      call.part = part;
      product(call);
      for (const std::int64_t rows : {1, 5, 10, 37}) {
        for (const std::int64_t first : {0, 1, 8, 23}) {
          if (first > 0 && part != kFull) continue;
          std::vector<T> some(rows * ld);
          call.M = rows, call.a = a.data() + first * K, call.c = some.data();
          if (part == kLowerA) call.K = rows;
          product(call);
          call.K = K;
          for (std::int64_t m = 0; m < rows; ++m)
            for (std::int64_t n = 0; n < (part == kLowerC ? m + 1 : N); ++n)
              ASSERT_EQ(some[m * ld + n], whole[(first + m) * ld + n]) << part << " " << rows << " " << m << " " << n;
        }
      }
    }
  });
}

TYPED_TEST(Matrix, Transposes) {
  using T = TypeParam;
  this->for_each_instruction_set([&] {
    for (const std::int64_t rows : {1, 3, 4, 16, 17, 50})
      for (const std::int64_t columns : {1, 2, 7, 16, 33}) {
        const std::int64_t ld_from = columns + 2, ld_to = row_stride(rows);
        const std::vector<T> from = this->numbers(rows * ld_from);
        std::vector<T> to(columns * ld_to, T(5));
        if constexpr (std::is_same_v<T, float>)
          HWY_DYNAMIC_DISPATCH(transpose_f32)(rows, columns, from.data(), ld_from, to.data(), ld_to);
        else
          HWY_DYNAMIC_DISPATCH(transpose_f64)(rows, columns, from.data(), ld_from, to.data(), ld_to);
        for (std::int64_t c = 0; c < columns; ++c)
          for (std::int64_t r = 0; r < padded(rows); ++r)
            ASSERT_EQ(to[c * ld_to + r], r < rows ? from[r * ld_from + c] : T(0)) << rows << " " << columns;
      }
  });
}

}  // namespace
}  // namespace loglinear::testing
#endif
