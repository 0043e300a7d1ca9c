#pragma once
// Loops over one row of contiguous elements that want SIMD: transcendental functions, sums and small products. Compiled
// for every instruction set, the best one is taken at run time. T is float or double. Outputs may be exactly the same
// array as an input, not a shifted one. NaN gives NaN. The order of sums depends on n and the machine's vector width
// only.

#include <cstddef>
#include <cstdint>

namespace loglinear::vec {

// y = 1 / (1 + exp(-x))
template <class T>
void sigmoid(std::int64_t n, const T* x, T* y);

// y = log(1 + exp(x)), and x above 20
template <class T>
void softplus(std::int64_t n, const T* x, T* y);

// dx = dy * (derivative of softplus at x): sigmoid(x), and 1 above 20
template <class T>
void softplus_backward(std::int64_t n, const T* x, const T* dy, T* dx);

// y = silu(x) = x * sigmoid(x)
template <class T>
void silu(std::int64_t n, const T* x, T* y);

// dx = dy * (derivative of silu at x)
template <class T>
void silu_backward(std::int64_t n, const T* x, const T* dy, T* dx);

// y = silu(x) * m
template <class T>
void silu_product(std::int64_t n, const T* x, const T* m, T* y);

// dx = dy * m * (derivative of silu at x);  dm = dy * silu(x)
template <class T>
void silu_product_backward(std::int64_t n, const T* x, const T* m, const T* dy, T* dx, T* dm);

// The largest element; n >= 1. Unspecified when there is a NaN.
template <class T>
T max(std::int64_t n, const T* x);

// y = exp(x - shift), returns the sum of y. y may be null. x - shift must be NaN or <= 0 (up to
// rounding).
template <class T>
T exp_sum(std::int64_t n, const T* x, T shift, T* y);

// sum of a * b
template <class T>
T dot(std::int64_t n, const T* a, const T* b);

// y += s * x
template <class T>
void add_scaled(std::int64_t n, T s, const T* x, T* y);

// y = s * x
template <class T>
void scale(std::int64_t n, T s, const T* x, T* y);

// y = s * a + r * b
template <class T>
void combine(std::int64_t n, T s, const T* a, T r, const T* b, T* y);

// y += s * a * b
template <class T>
void add_product(std::int64_t n, T s, const T* a, const T* b, T* y);

// y += sum over i < count of a[i] * b[i], rows of n elements; rows where b[i] is null are left out.
template <class T>
void add_products(std::int64_t n, std::int64_t count, const T* const* a, const T* const* b, T* y);

// y = s * a * b
template <class T>
void scaled_product(std::int64_t n, T s, const T* a, const T* b, T* y);

// One AdamW update:  m = beta1 m + one_minus_beta1 g;  v = beta2 v + one_minus_beta2 g^2  with  g = grad_scale * grad;
// value = keep * value - rate * m / (sqrt(v * v_correction) + eps)
template <class T>
struct AdamW {
  T grad_scale, beta1, beta2, one_minus_beta1, one_minus_beta2, keep, rate, v_correction, eps;
};
template <class T>
void adamw(std::int64_t n, const AdamW<T>& rates, const T* grad, T* value, T* m, T* v);

// c[m, n] += sum over k of a[m, k] * b[k, n], in the order of k and with one accumulator for each element: the bits of
// an element do not depend on M, N or its place. Element (m, k) of a is a[m * a_row + k * a_column]; rows of b and c
// are ldb and ldc apart. For tiles that fit the first-level cache.
template <class T>
void add_tile_product(std::int64_t M, std::int64_t N, std::int64_t K, const T* a, std::int64_t a_row,
                      std::int64_t a_column, const T* b, std::int64_t ldb, T* c, std::int64_t ldc);

}  // namespace loglinear::vec
