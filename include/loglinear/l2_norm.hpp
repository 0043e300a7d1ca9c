#pragma once
// Unit-length queries and keys of Gated DeltaNet.

#include <cstdint>

#include "loglinear/error.hpp"

namespace loglinear {

// y = x * rsqrt(sum(x^2) + 1e-6) * scale over each run of `width` elements.
//
//   x, y, dy, dx   (rows, heads * width), rows *_stride elements apart
//
// T is float or double. y may be x with the same stride. Rows and heads are independent. Same bits for any number of
// threads. Throws Error on a negative size, width < 1, a row stride below heads * width, or a null array that has
// elements.
template <class T>
void l2_norm_forward(std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x, std::int64_t x_stride,
                     T scale, T* y, std::int64_t y_stride, int threads = 0);

// From x, the input of forward. dx is written; it may be dy with the same stride.
template <class T>
void l2_norm_backward(std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x, std::int64_t x_stride,
                      T scale, const T* dy, std::int64_t dy_stride, T* dx, std::int64_t dx_stride, int threads = 0);

}  // namespace loglinear
