#pragma once
// The short causal convolution in front of the mixers: depthwise, a few tokens wide, followed by silu.

#include <cstdint>
#include <span>

#include "loglinear/error.hpp"

namespace loglinear {

// For every sequence and channel, with x before the sequence's start taken from its initial state (or zero):
//
//   u[t, c] = bias[c] + sum over i < width of weight[c, i] * x[t - (width - 1) + i, c]       the last tap is token t
//   y[t, c] = u * sigmoid(u)
//
//   cu_seqlens     (S + 1)             packed sequences: rows cu_seqlens[s] .. cu_seqlens[s + 1] - 1; from 0,
//   ascending,
//                                      empty sequences allowed
//   x, y           (N, channels)       N = cu_seqlens[S]; rows *_stride elements apart; must not overlap
//   weight         (channels, width)   as checkpoints store it (channels, 1, width)
//   bias           (channels) or null
//   initial_state  empty, or (S) pointers to (width - 1, channels), the inputs before the sequence, oldest first; a
//   null
//                  pointer stands for zeros
//   final_state    empty, or (S) pointers to (width - 1, channels): written with the last width - 1 inputs; null is
//                  skipped; may be the same pointers as initial_state
//
// Decoding is the same call: one-token sequences with states. T is float or double. 1 <= width <= 16. Bit-equal to one
// call for each sequence, to a sequence cut in pieces from state to state, and for any number of threads. Throws Error
// on a negative size, a width out of range, a row stride below channels, cu_seqlens that does not start at 0 or
// descends, a state list of another length, or a null array that has elements.
template <class T>
void short_conv_forward(std::span<const std::int64_t> cu_seqlens, std::int64_t channels, std::int64_t width, const T* x,
                        std::int64_t x_stride, const T* weight, const T* bias, std::span<const T* const> initial_state,
                        T* y, std::int64_t y_stride, std::span<T* const> final_state, int threads = 0);

// Sequences start from zeros. dx is written (it must not overlap x or dy); dweight (channels, width) and dbias
// (channels; null exactly when bias is null) are ADDED to, summed over blocks of rows fixed by the shape.
template <class T>
void short_conv_backward(std::span<const std::int64_t> cu_seqlens, std::int64_t channels, std::int64_t width,
                         const T* x, std::int64_t x_stride, const T* weight, const T* bias, const T* dy,
                         std::int64_t dy_stride, T* dx, std::int64_t dx_stride, T* dweight, T* dbias, int threads = 0);

}  // namespace loglinear
