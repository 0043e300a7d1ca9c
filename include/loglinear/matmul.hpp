#pragma once
// Dense matrix products: the projections of a layer and their gradients.

#include <cstdint>

#include "loglinear/error.hpp"

namespace loglinear {

enum class Transpose : bool { no, yes };

// C = op(A) op(B) + beta C, every matrix row-major. T is float (oneDNN) or double (a plain loop, for checks).
//
//   op(A)  (M, K)   a is (M, K) with rows lda apart, or (K, M) when transposed
//   op(B)  (K, N)   b is (K, N) with rows ldb apart, or (N, K) when transposed
//   C      (M, N)   rows ldc apart; written, not read, when beta = 0
//
// beta is 0 or 1. Sizes may be zero: K = 0 leaves beta C. C must not overlap A or B. threads: 0 is what OpenMP would
// use. A layer with weight (out, in), as checkpoints store it:
//
//   forward            y  (rows, out) = x (rows, in) W^T         no, yes     M rows  N out  K in
//   input gradient     dx (rows, in)  = dy (rows, out) W         no, no      M rows  N in   K out
//   weight gradient    dW (out, in)  += dy^T x                   yes, no     M out   N in   K rows    beta 1
//
// Determinism: the same bits from run to run and for any number of threads. C is cut into tiles by its shape alone, and
// a tile is computed by one thread. A NaN in a row of op(A) reaches that row of C only; in a column of op(B), that
// column only. Throws Error on a negative size, a row stride below the row, a null matrix that has elements, or another
// beta.
template <class T>
void matmul(Transpose a_transposed, Transpose b_transposed, std::int64_t M, std::int64_t N, std::int64_t K, const T* a,
            std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc, int threads = 0);

extern template void matmul(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t,
                            const float*, std::int64_t, float, float*, std::int64_t, int);
extern template void matmul(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, const double*, std::int64_t,
                            const double*, std::int64_t, double, double*, std::int64_t, int);

}  // namespace loglinear
