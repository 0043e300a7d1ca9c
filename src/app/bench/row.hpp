#pragma once
// What a benchmark of `loglinear bench` measures and what it says about it.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "app/measure.hpp"
#include "base/machine.hpp"
#include "loglinear/rule.hpp"
#include "loglinear/state.hpp"
#include "loglinear/tensor.hpp"

namespace loglinear::app::bench {

// Sizes of a call; 0: chosen by resolved(). T is not read for steps.
struct Shape {
  std::int64_t B = 1, T = 4096, H = 16, G = 0, K = 128, V = 0, L = 0;
};

// "T=4096,H=16,G=1,K=128,V=64": any of B T H G K V L, each once, in any order. Throws Error of kind usage naming the
// key that is unknown, given twice or not a number in range.
Shape parse_shape(const std::string& text);

// The shape with G (scalar_decay 1, else H), V (scalar_decay 64, else 128) and L (as many levels as T tokens can use,
// and one) filled in. Throws Error of kind usage when G does not divide H.
Shape resolved(Shape shape, Rule rule);

// Multiply-adds of one forward of a resolved shape, as docs/algorithm.md, section 7, counts useful work.
double useful_work(Rule rule, const Shape& shape);
// Multiply-adds of one decoding step of a resolved shape with `live` matrices a head.
double useful_step_work(Rule rule, const Shape& shape, int live);

// A level of memory and how fast `threads` threads read it together.
struct Bandwidth {
  std::string name;           // "L1", "L2", "L3", "DRAM"
  double capacity = kAbsent;  // bytes that the threads have of it together; infinite for DRAM
  double bytes_per_second = 0;
  std::int64_t buffer = 0;  // bytes that each thread read to find out
};

// What the machine can do, measured in the run.
struct Peaks {
  int threads = 1;
  std::string isa;
  DType dtype = DType::f32;
  double fma = 0;   // operations a second: float64 for f64, else float32
  double bf16 = 0;  // those of bfloat16 instructions; 0 when the instruction set has none
  std::vector<Bandwidth> memory;

  // The nearest level that holds so many bytes.
  const Bandwidth& level_of(double bytes) const;
};

// One case. A number that was not measured or makes no sense there is NaN, a text empty.
struct Row {
  std::string op = "log_linear";  // or "model"
  std::string model;              // "demo", "130M"
  std::string rule, form;         // form: forward, backward, step; of a model: train, generate
  std::string dtype, isa;
  int threads = 1;
  Shape shape;
  std::int64_t position = -1;  // of the first step that was timed
  int chunk = 0;               // as it was asked for
  int runs = 0;
  double ms = kAbsent, ms_min = kAbsent, ms_max = kAbsent, ms_mean = kAbsent;  // ms is the median
  double peak_bf16_gflops = kAbsent;                                           // of the run
  double gflops = kAbsent, peak_gflops = kAbsent;  // useful work; of a model what its dense products reach
  double gbs = kAbsent, peak_gbs = kAbsent;        // live states over time, and what `memory` allows
  std::string memory;
  // Of peak_gbs for steps, else of peak_gflops. Of the operator: the median over the calls of their speed over the peak
  // measured beside each, and the peak is what gives that percent of the median speed.
  double percent = kAbsent;
  double live_bytes = kAbsent;  // of steps: live states on average, which memory has to hold
  double state_bytes = kAbsent, argument_bytes = kAbsent, peak_bytes = kAbsent;
  double tokens_per_s = kAbsent, parameters = kAbsent;
  std::vector<std::pair<std::string, double>> shares;  // percent of a training step by operator, largest first
  double against_ms = kAbsent, change_percent = kAbsent;
};

}  // namespace loglinear::app::bench
