#pragma once
// Rotary position embedding (Su et al., arXiv 2104.09864), half-rotation layout.

#include <cstdint>
#include <span>

#include "loglinear/error.hpp"

namespace loglinear {

enum class Rotation {
  forward,
  inverse,  // by the opposite angle: also the backward of forward (dx from dy)
};

// For every head and i < width / 2, with angle = position * theta^(-2 i / width):
//
//   y[i]             = x[i] cos(angle) - x[i + width / 2] sin(angle)
//   y[i + width / 2] = x[i + width / 2] cos(angle) + x[i] sin(angle)
//
//   cu_seqlens   (S + 1)              packed sequences, from 0, ascending, empty ones allowed; N = cu_seqlens[S]
//   positions    empty, or (S)        position of each sequence's first token; empty: 0
//   x, y         (N, heads * width)   rows *_stride elements apart; y may be x with the same stride
//
// T is float or double; angles, sines and cosines are taken in float64. width is even, theta > 0, positions >= 0. Same
// bits for any number of threads and any split of a sequence. Throws Error otherwise, and on negative sizes, a row
// stride below the row, or a null array that has elements.
template <class T>
void rotary(Rotation rotation, std::span<const std::int64_t> cu_seqlens, std::span<const std::int64_t> positions,
            std::int64_t heads, std::int64_t width, double theta, const T* x, std::int64_t x_stride, T* y,
            std::int64_t y_stride, int threads = 0);

}  // namespace loglinear
