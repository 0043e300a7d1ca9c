#pragma once
// What this machine can do at most, measured: the yardstick of every benchmark.

namespace loglinear {

// float32 operations a second (a multiply-add counts as two) of `threads` threads that only multiply-add in registers,
// with the instruction set that the kernels use. The best of several short runs.
double measure_fma_peak(int threads);

}  // namespace loglinear
