#pragma once
// What this machine can do at most, measured: the yardstick of every benchmark. All of it is the best of several short
// runs with the instruction set that the kernels use.

#include <cstdint>

#include "loglinear/tensor.hpp"

namespace loglinear {

// Operations a second (a multiply-add counts as two) of `threads` threads (0: what OpenMP would use) that only
// multiply-add in registers, in float64 for f64, else in float32. seconds: what the measurement may take, about.
double measure_fma_peak(int threads, DType dtype = DType::f32, double seconds = 0.2);

// Bytes a second that `threads` threads together only read, each from a buffer of its own of `bytes` bytes that it
// reads over and over. Throws std::bad_alloc.
double measure_read_bandwidth(int threads, std::int64_t bytes, double seconds = 0.2);

}  // namespace loglinear
