#pragma once
// The elementwise gates of the two mixers, forward and backward.
//
// Everywhere: N packed tokens, H heads, P channels a head, L levels. Arrays with a *_stride have rows that many
// elements apart (slices of a projection), arrays without are dense. softplus(x) = log(1 + e^x), and x itself above 20.
// T is float or double. Gradients of parameters are ADDED to, summed over blocks of rows fixed by the shape; gradients
// of activations are written unless said otherwise. Same bits for any number of threads; a NaN in a row stays in that
// row (and in the parameters' gradients). A written array must not overlap an input unless said otherwise. Throws Error
// on a negative size, a row stride below the row, or a null array that has elements.

#include <cstdint>

#include "loglinear/error.hpp"

namespace loglinear {

// Mamba-2:  dt = softplus(dt_raw + dt_bias[h]);  g = -exp(A_log[h]) * dt;  v = x * dt
//
//   dt_raw (N, H)   dt_bias, A_log (H)   x, v (N, H * P)   g (N, H)
template <class T>
void mamba2_gates_forward(std::int64_t N, std::int64_t H, std::int64_t P, const T* dt_raw, std::int64_t dt_stride,
                          const T* dt_bias, const T* A_log, const T* x, std::int64_t x_stride, T* g, T* v,
                          std::int64_t v_stride, int threads = 0);

// ddt_raw (N, H) and dx (N, H * P) are written, dx may be dv with the same stride; ddt_bias, dA_log (H) are added to.
template <class T>
void mamba2_gates_backward(std::int64_t N, std::int64_t H, std::int64_t P, const T* dt_raw, std::int64_t dt_stride,
                           const T* dt_bias, const T* A_log, const T* x, std::int64_t x_stride, const T* dg,
                           const T* dv, std::int64_t dv_stride, T* ddt_raw, std::int64_t ddt_stride, T* dx,
                           std::int64_t dx_stride, T* ddt_bias, T* dA_log, int threads = 0);

// Mamba-2's skip:  y += D[h] * x        x, y (N, H * P)   D (H)
template <class T>
void skip_forward(std::int64_t N, std::int64_t H, std::int64_t P, const T* x, std::int64_t x_stride, const T* D, T* y,
                  std::int64_t y_stride, int threads = 0);

// dx is ADDED to (dx += D[h] * dy: call it after mamba2_gates_backward has written dx); dD (H) is added to.
template <class T>
void skip_backward(std::int64_t N, std::int64_t H, std::int64_t P, const T* x, std::int64_t x_stride, const T* D,
                   const T* dy, std::int64_t dy_stride, T* dx, std::int64_t dx_stride, T* dD, int threads = 0);

// Gated DeltaNet:  beta = sigmoid(b);  g = -exp(A_log[h]) * softplus(a + dt_bias[h])
//
//   a, b (N, H)   A_log, dt_bias (H)   beta, g (N, H)
template <class T>
void delta_gates_forward(std::int64_t N, std::int64_t H, const T* a, std::int64_t a_stride, const T* b,
                         std::int64_t b_stride, const T* dt_bias, const T* A_log, T* g, T* beta, int threads = 0);

// da, db (N, H) are written; ddt_bias, dA_log (H) are added to.
template <class T>
void delta_gates_backward(std::int64_t N, std::int64_t H, const T* a, std::int64_t a_stride, const T* b,
                          std::int64_t b_stride, const T* dt_bias, const T* A_log, const T* dg, const T* dbeta, T* da,
                          std::int64_t da_stride, T* db, std::int64_t db_stride, T* ddt_bias, T* dA_log,
                          int threads = 0);

}  // namespace loglinear
