#pragma once
// A bias added to every row: the few projections that have one.

#include <cstdint>

#include "loglinear/error.hpp"

namespace loglinear {

// y[r, c] += bias[c]        y (rows, width), rows y_stride elements apart; bias (width)
//
// T is float or double. Same bits for any number of threads. Throws Error on a negative size, a row stride below width,
// or a null array that has elements.
template <class T>
void bias_forward(std::int64_t rows, std::int64_t width, const T* bias, T* y, std::int64_t y_stride, int threads = 0);

// dbias (width) is ADDED to: the sum of dy over the rows, in blocks of rows fixed by the shape.
template <class T>
void bias_backward(std::int64_t rows, std::int64_t width, const T* dy, std::int64_t dy_stride, T* dbias,
                   int threads = 0);

}  // namespace loglinear
