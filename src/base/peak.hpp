#pragma once
// What this machine can do at most, measured: the yardstick of every benchmark. All of it is the best of several short
// runs with the instruction set that the kernels use.

#include <cstdint>
#include <functional>

#include "loglinear/tensor.hpp"

namespace loglinear {

// One limit of the machine, ready to be measured again and again: a machine that others use as well is not equally fast
// all the time, so what is compared with a limit wants it measured at its side.
class PeakMeter {
 public:
  // Operations (a multiply-add counts as two) that `threads` threads (0: what OpenMP would use) do when they only
  // multiply-add in registers, in float64 for f64, else in float32.
  static PeakMeter multiply_adds(int threads, DType dtype = DType::f32);
  // The same of products on bfloat16 instructions with operands in registers. Throws Error when bf16_unit() is none.
  static PeakMeter bf16_products(int threads);
  // Bytes that `threads` threads together read when they only read, each from a buffer of its own of `bytes` bytes,
  // over and over. Throws std::bad_alloc.
  static PeakMeter reads(int threads, std::int64_t bytes);

  // Units a second: the best of short runs (a few milliseconds) that take about `seconds` together, three at least.
  double measure(double seconds = 0) const;

 private:
  // Does so many rounds on thread i and returns how many units those were.
  using Work = std::function<double(std::int64_t i, std::int64_t rounds)>;
  PeakMeter(int threads, Work work);

  int threads_;
  Work work_;
  std::int64_t rounds_ = 1;  // of a run
};

// The same limits for those who want them once.
inline double measure_fma_peak(int threads, DType dtype = DType::f32, double seconds = 0.2) {
  return PeakMeter::multiply_adds(threads, dtype).measure(seconds);
}
inline double measure_read_bandwidth(int threads, std::int64_t bytes, double seconds = 0.2) {
  return PeakMeter::reads(threads, bytes).measure(seconds);
}

}  // namespace loglinear
