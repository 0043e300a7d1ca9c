#pragma once
// Products of float32 matrices on the instructions that multiply bfloat16: sums are float32, the operands are rounded
// to bfloat16, or taken as the sum of two. x86-64 has two such instructions: a dot product of pairs (AVX512-BF16), and
// one of whole tiles (AMX).

#include <cstdint>

#include "base/cpu_features.hpp"
#include "base/pool.hpp"
#include "base/product.hpp"

namespace loglinear::bf16 {

// While it lives, products of this thread run on `unit`; none for Bf16Unit::none. The tiles of AMX are configured once
// for all of them.
class Scope {
 public:
  explicit Scope(Bf16Unit unit);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  Bf16Unit unit_;
};

// Of which operand of a product what rounding takes away is kept, as another bfloat16: that makes its rounding 2^-17 in
// place of 2^-9, for another product unless there is nothing to keep.
enum class Rest { none, a, b, both };
constexpr bool of_a(Rest rest) { return rest == Rest::a || rest == Rest::both; }
constexpr bool of_b(Rest rest) { return rest == Rest::b || rest == Rest::both; }

// An operand as the instructions take it, for several products. Belongs to the thread that made it.
struct Packed {
  Matrix<std::uint16_t> memory;
  std::uint16_t *high = nullptr, *rest = nullptr;  // rest: null when there is none

  explicit operator bool() const { return high != nullptr; }
};
// A (M, K) at a[m * a_row + k * a_col]; one of the strides is 1.
Packed pack_a(std::int64_t M, std::int64_t K, const float* a, std::int64_t a_row, std::int64_t a_col, bool rest);
// B (K, N).
Packed pack_b(std::int64_t K, std::int64_t N, const float* b, std::int64_t ldb, bool rest);

// C (M, N) = beta C + alpha diag(row_scale) A B, as product() of base/matrix-inl.h, but A has unit stride along one of
// its dimensions. Needs a Scope. Every entry is one sum over k in an order that depends on K alone.
void product(std::int64_t M, std::int64_t N, std::int64_t K, const float* a, std::int64_t a_row, std::int64_t a_col,
             const float* b, std::int64_t ldb, float* c, std::int64_t ldc, const Epilogue<float>& e, Rest rest);
// The same with packed operands, all of A; of their rests those that `rest` names.
void product(std::int64_t M, std::int64_t N, std::int64_t K, const Packed& a, const Packed& b, float* c,
             std::int64_t ldc, const Epilogue<float>& e, Rest rest);

// `rounds` times a few independent products of operands in registers, for those who measure a peak: returns the
// operations done. Needs a Scope.
double multiply_registers(std::int64_t rounds);

}  // namespace loglinear::bf16
