// Products on bfloat16 instructions against a plain loop, with each unit of this CPU.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/bf16_matrix.hpp"
#include "base/cpu_features.hpp"
#include "base/error.hpp"
#include "base/padding.hpp"
#include "base/random.hpp"
#include "loglinear/tensor.hpp"

namespace loglinear::bf16 {
namespace {

class Bf16Matrix : public ::testing::Test {
 protected:
  // Calls body() with every instruction set that multiplies bfloat16.
  template <class Body>
  void for_each_unit(const Body& body) {
    int units = 0;
    for (const std::string& name : instruction_sets()) {
      force_instruction_set(name);
      if (bf16_unit() == Bf16Unit::none) continue;
      SCOPED_TRACE(name);
      const Scope scope(bf16_unit());
      body();
      ++units;
    }
    force_instruction_set("");
    if (units == 0) GTEST_SKIP() << "this CPU multiplies no bfloat16";
  }

  std::vector<float> numbers(std::int64_t n, bool rounded = false) {
    std::vector<float> x;
    for (std::int64_t i = 0; i < n; ++i) {
      const float y = static_cast<float>(2 * random_.uniform() - 1);
      x.push_back(rounded ? static_cast<float>(bfloat16(y)) : y);
    }
    return x;
  }

  Random random_{11, 0};
};

struct Shape {
  std::int64_t M, N, K;
};
constexpr Shape kShapes[] = {{1, 1, 1},    {5, 3, 7},    {16, 16, 32}, {17, 17, 33},  {13, 48, 64},
                             {64, 64, 64}, {64, 80, 50}, {31, 100, 3}, {128, 64, 64}, {64, 128, 128}};

bool left_out(Part part, std::int64_t m, std::int64_t k) {
  return (part == Part::lower_a && k > m) || (part == Part::upper_a && k < m);
}

// What rounding of the operands may leave of a sum whose terms have size `size`.
double bound(Rest rest, bool a_rounded, bool b_rounded, double size) {
  const double one = std::ldexp(1, -8), rest_of_one = std::ldexp(1, -16);
  const double a = a_rounded                               ? 0
                   : rest == Rest::a || rest == Rest::both ? rest_of_one
                                                           : one,
               b = b_rounded                               ? 0
                   : rest == Rest::b || rest == Rest::both ? rest_of_one
                                                           : one;
  return size * (a + b + 1e-6);
}

TEST_F(Bf16Matrix, ProductsEqualAPlainLoop) {
  for_each_unit([&] {
    for (const Shape& s : kShapes)
      for (const Part part : {Part::full, Part::lower_a, Part::upper_a, Part::lower_c})
        for (const bool transposed : {false, true})
          for (const float beta : {0.0f, -0.5f})
            for (const Rest rest : {Rest::none, Rest::a, Rest::b, Rest::both})
              for (const bool rounded : {false, true}) {
                if ((part == Part::lower_a || part == Part::upper_a) && s.M != s.K) continue;
                if (part == Part::lower_c && s.M < s.N) continue;
                const std::int64_t ld = row_stride(s.N), lda = (transposed ? s.M : s.K) + 3,
                                   a_row = transposed ? 1 : lda, a_col = transposed ? lda : 1;
                std::vector<float> a = numbers((transposed ? s.K : s.M) * lda, rounded);
                const std::vector<float> b = numbers(s.K * ld, rounded), scale = numbers(s.M),
                                         before = numbers(s.M * ld);
                for (std::int64_t m = 0; m < s.M; ++m)  // what is left out is not read
                  for (std::int64_t k = 0; k < s.K; ++k)
                    if (left_out(part, m, k)) a[m * a_row + k * a_col] = std::numeric_limits<float>::quiet_NaN();
                std::vector<float> c = before;
                if (beta == 0) c.assign(c.size(), std::numeric_limits<float>::quiet_NaN());
                product(s.M, s.N, s.K, a.data(), a_row, a_col, b.data(), ld, c.data(), ld,
                        {.alpha = -2, .beta = beta, .row_scale = scale.data(), .part = part}, rest);
                for (std::int64_t m = 0; m < s.M; ++m)
                  for (std::int64_t n = 0; n < (part == Part::lower_c ? std::min(m + 1, s.N) : s.N); ++n) {
                    double sum = 0, size = 0;
                    for (std::int64_t k = 0; k < s.K; ++k) {
                      if (left_out(part, m, k)) continue;
                      const double term = static_cast<double>(a[m * a_row + k * a_col]) * b[k * ld + n];
                      sum += term, size += std::abs(term);
                    }
                    const double factor = -2.0 * scale[m], old = beta == 0 ? 0 : beta * before[m * ld + n];
                    ASSERT_NEAR(c[m * ld + n], factor * sum + old,
                                bound(rest, rounded, rounded, std::abs(factor) * size) + 1e-6)
                        << s.M << " " << s.N << " " << s.K << " part " << static_cast<int>(part) << " transposed "
                        << transposed << " rest " << static_cast<int>(rest) << " at " << m << ", " << n;
                  }
              }
  });
}

// Rounding does happen, and a rest takes it away: the bounds above would not notice a product in float32.
TEST_F(Bf16Matrix, OperandsAreRounded) {
  for_each_unit([&] {
    const float a = 1 + std::ldexp(1.0f, -10), b[16] = {1 + std::ldexp(1.0f, -11)};
    float c[16];
    product(1, 1, 1, &a, 1, 1, b, 16, c, 16, {}, Rest::none);
    EXPECT_EQ(c[0], 1.0f);
    product(1, 1, 1, &a, 1, 1, b, 16, c, 16, {}, Rest::a);
    EXPECT_EQ(c[0], a);
    product(1, 1, 1, &a, 1, 1, b, 16, c, 16, {}, Rest::b);
    EXPECT_EQ(c[0], b[0]);
    product(1, 1, 1, &a, 1, 1, b, 16, c, 16, {}, Rest::both);
    EXPECT_EQ(c[0], a + b[0] - 1);
  });
}

TEST_F(Bf16Matrix, PackedOperandsGiveTheSameBits) {
  for_each_unit([&] {
    for (const Shape& s : kShapes)
      for (const Rest rest : {Rest::none, Rest::a, Rest::b, Rest::both}) {
        const std::int64_t ld = row_stride(s.N);
        const std::vector<float> a = numbers(s.M * s.K), b = numbers(s.K * ld);
        std::vector<float> one(s.M * ld), two(s.M * ld);
        product(s.M, s.N, s.K, a.data(), s.K, 1, b.data(), ld, one.data(), ld, {}, rest);
        const Packed packed_a = pack_a(s.M, s.K, a.data(), s.K, 1, true),
                     packed_b = pack_b(s.K, s.N, b.data(), ld, true);
        product(s.M, s.N, s.K, packed_a, packed_b, two.data(), ld, {}, rest);
        EXPECT_EQ(one, two);
      }
  });
}

// A row of the product is the same whatever rows and columns are computed with it, and zeros at the end of the sum
// change nothing.
TEST_F(Bf16Matrix, SumsDoNotDependOnWhatIsBesideThem) {
  for_each_unit([&] {
    constexpr std::int64_t kM = 50, kN = 70, kK = 45;
    const std::int64_t ld = row_stride(kN);
    std::vector<float> a = numbers(kM * kK), b = numbers(kK * ld);
    std::vector<float> all(kM * ld), row(ld);
    product(kM, kN, kK, a.data(), kK, 1, b.data(), ld, all.data(), ld, {}, Rest::both);
    for (const std::int64_t m : {0, 15, 16, 33, 49}) {
      product(1, kN, kK, a.data() + m * kK, kK, 1, b.data(), ld, row.data(), ld, {}, Rest::both);
      for (std::int64_t n = 0; n < kN; ++n) ASSERT_EQ(row[n], all[m * ld + n]);
      product(1, 20, kK, a.data() + m * kK, kK, 1, b.data() + 16, ld, row.data(), ld, {}, Rest::both);
      for (std::int64_t n = 0; n < 20; ++n) ASSERT_EQ(row[n], all[m * ld + 16 + n]);
    }
    for (std::int64_t m = 0; m < kM; ++m)
      for (std::int64_t k = 20; k < kK; ++k) a[m * kK + k] = 0;
    std::vector<float> shorter(kM * ld);
    product(kM, kN, kK, a.data(), kK, 1, b.data(), ld, all.data(), ld, {}, Rest::both);
    product(kM, kN, 20, a.data(), kK, 1, b.data(), ld, shorter.data(), ld, {}, Rest::both);
    for (std::int64_t m = 0; m < kM; ++m)
      for (std::int64_t n = 0; n < kN; ++n) ASSERT_EQ(shorter[m * ld + n], all[m * ld + n]);
  });
}

// Rows of B that a triangle of A leaves out do not reach C, whatever is in them.
TEST_F(Bf16Matrix, WhatIsNotFiniteReachesOnlyItsTriangle) {
  for_each_unit([&] {
    constexpr std::int64_t kSize = 40, kBad = 21;
    const std::int64_t ld = row_stride(kSize);
    for (const Part part : {Part::lower_a, Part::upper_a})
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        const std::vector<float> a = numbers(kSize * kSize);
        std::vector<float> b = numbers(kSize * ld), clean(kSize * ld), c(kSize * ld);
        product(kSize, kSize, kSize, a.data(), kSize, 1, b.data(), ld, clean.data(), ld, {.part = part}, Rest::both);
        b[kBad * ld + 3] = bad;
        product(kSize, kSize, kSize, a.data(), kSize, 1, b.data(), ld, c.data(), ld, {.part = part}, Rest::both);
        for (std::int64_t m = 0; m < kSize; ++m)
          for (std::int64_t n = 0; n < kSize; ++n) {
            const bool reached = part == Part::lower_a ? m >= kBad : m <= kBad;
            if (!reached)
              ASSERT_EQ(c[m * ld + n], clean[m * ld + n]) << m << " " << n;
            else if (n == 3)
              ASSERT_FALSE(std::isfinite(c[m * ld + n])) << m << " " << n;
            else
              ASSERT_NEAR(c[m * ld + n], clean[m * ld + n], 1e-4) << m << " " << n;
          }
      }
  });
}

TEST(Bf16Unit, IsThatOfTheInstructionSet) {
  for (const std::string& name : instruction_sets()) {
    force_instruction_set(name);
    EXPECT_EQ(bf16_unit(), name == "amx"           ? Bf16Unit::tiles
                           : name == "avx512_bf16" ? Bf16Unit::dot
                                                   : Bf16Unit::none)
        << name;
  }
  force_instruction_set("");
}

}  // namespace
}  // namespace loglinear::bf16
