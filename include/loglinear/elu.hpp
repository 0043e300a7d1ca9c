#pragma once
// The positive feature map of linear attention (Katharopoulos et al., arXiv 2006.16236): elu(x) + 1.

#include <cstdint>

#include "loglinear/error.hpp"

namespace loglinear {

// y = x + 1 for x > 0, exp(x) otherwise: positive (until exp underflows, below about -100 in float32), monotonic, with
// a continuous derivative.
//
//   x, y, dy, dx   (rows, width), rows *_stride elements apart
//
// T is float or double. y may be x with the same stride. Elements are independent; a NaN stays where it is. Same bits
// for any number of threads. Throws Error on a negative size, a row stride below width, or a null array that has
// elements.
template <class T>
void elu_plus_one_forward(std::int64_t rows, std::int64_t width, const T* x, std::int64_t x_stride, T* y,
                          std::int64_t y_stride, int threads = 0);

// From y, the output of forward: dx = dy * min(y, 1), for the derivative is 1 where y > 1 and y itself otherwise. dx is
// written; it may be dy with the same stride.
template <class T>
void elu_plus_one_backward(std::int64_t rows, std::int64_t width, const T* y, std::int64_t y_stride, const T* dy,
                           std::int64_t dy_stride, T* dx, std::int64_t dx_stride, int threads = 0);

}  // namespace loglinear
