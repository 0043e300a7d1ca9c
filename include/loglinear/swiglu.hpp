#pragma once
// The gated middle of the MLP (Shazeer, arXiv 2002.05202).

#include <cstdint>

#include "loglinear/error.hpp"

namespace loglinear {

// out = gate * sigmoid(gate) * up
//
//   gate, up, out and their gradients   (rows, width), rows *_stride elements apart
//
// T is float or double. out may be gate or up with the same stride. Elements are independent; the same bits for any
// number of threads. Throws Error on a negative size, a row stride below width, or a null array that has elements.
template <class T>
void swiglu_forward(std::int64_t rows, std::int64_t width, const T* gate, std::int64_t gate_stride, const T* up,
                    std::int64_t up_stride, T* out, std::int64_t out_stride, int threads = 0);

// dgate and dup are written; they may be gate, up or dout with the same strides (but not each other).
template <class T>
void swiglu_backward(std::int64_t rows, std::int64_t width, const T* gate, std::int64_t gate_stride, const T* up,
                     std::int64_t up_stride, const T* dout, std::int64_t dout_stride, T* dgate,
                     std::int64_t dgate_stride, T* dup, std::int64_t dup_stride, int threads = 0);

}  // namespace loglinear
