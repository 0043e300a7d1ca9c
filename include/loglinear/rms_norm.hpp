#pragma once
// Root-mean-square normalisation (Zhang, Sennrich, arXiv 1910.07467), plain or with a gate.

#include <cstdint>

#include "loglinear/error.hpp"

namespace loglinear {

// Where silu(z) multiplies.
enum class NormGate {
  none,    // y = norm(x) * weight                 z and dz are null
  before,  // y = norm(x * silu(z)) * weight       Mamba-2, heads = 1, width = H * P
  after,   // y = norm(x) * weight * silu(z)       Gated DeltaNet, one norm per head, width = V
};

// norm(u) = u * rsqrt(mean(u^2) + eps) over each run of `width` elements.
//
//   x, z, y, dy, dx, dz   (rows, heads * width), rows *_stride elements apart
//   weight, dweight       (width), shared by the heads
//
// T is float or double; means are summed in T over vector lanes. eps > 0. y may be x with the same stride. Rows are
// independent: a NaN stays in its row and head. Same bits for any number of threads. Throws Error on a negative size,
// width < 1, a row stride below heads * width, eps not > 0, or a null array that has elements.
template <class T>
void rms_norm_forward(NormGate gate, std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x,
                      std::int64_t x_stride, const T* z, std::int64_t z_stride, const T* weight, double eps, T* y,
                      std::int64_t y_stride, int threads = 0);

// Recomputes the norms from x and z. dx is written when dx_beta = 0 and added to when dx_beta = 1 (a residual stream's
// gradient); dz is written; dweight is ADDED to, in blocks of rows fixed by the shape. dx may be dy, and dz may be z,
// with the same strides.
template <class T>
void rms_norm_backward(NormGate gate, std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x,
                       std::int64_t x_stride, const T* z, std::int64_t z_stride, const T* weight, double eps,
                       const T* dy, std::int64_t dy_stride, T dx_beta, T* dx, std::int64_t dx_stride, T* dz,
                       std::int64_t dz_stride, T* dweight, int threads = 0);

}  // namespace loglinear
