#pragma once
// `loglinear compare`: every mechanism at every length, within a time.

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "app/compare/fit.hpp"
#include "app/compare/mechanisms.hpp"

namespace loglinear::app::compare {

struct Settings {
  std::vector<std::string> mechanisms;  // empty: all
  std::vector<std::int64_t> lengths = {1024, 2048, 4096, 8192, 16384, 32768, 65536};
  std::int64_t heads = 4, width = 64;
  int threads = 0;
  double budget = 150;   // seconds for everything
  double seconds = 0;    // of timing a case; 0: chosen from the budget
  double tolerance = 1;  // (0, 1]: the part of the bounds of docs/numerics.md that is allowed
  std::int64_t seed = 1;
};

// What a row has a number for.
enum Field { kForward, kForwardBackward, kStep, kPeak, kForwardBackwardPeak, kState, kFields };

struct Number {
  double value = kAbsent;  // NaN: the mechanism cannot do it, or it could be neither measured nor extrapolated
  bool extrapolated = false;
};

struct Row {
  const Mechanism* mechanism = nullptr;
  std::int64_t T = 0;
  std::array<Number, kFields> numbers;
  // Distances from the definition in float64: of the forward (of a step where there is no forward), of the steps, of
  // the gradients. NaN where nothing was measured.
  double error = kAbsent, step_error = kAbsent, gradient_error = kAbsent;
  bool extrapolated() const;  // any of its numbers
};

// Of one mechanism over all its lengths.
struct Summary {
  const Mechanism* mechanism = nullptr;
  std::array<Fit, kFields> fits;
  std::array<Crossover, 3> crossovers;  // of the times, against flash attention
  double time_exponent() const;         // of the forward, of the step where there is no forward
};

struct Machine {
  std::string cpu, isa;
  int cores = 1, threads = 1;
  double memory_bytes = 0, peak_gflops = 0;  // peak: multiply-adds in float32, measured in the run
};

struct Outcome {
  Machine machine;
  std::vector<Row> rows;           // by length, then in the order of the list
  std::vector<Summary> summaries;  // in the order of the list
  double seconds = 0;              // that it took
  int wrong = 0;                   // mechanisms that lost rows because a result is wrong
  bool interrupted = false;
};

struct Hooks {
  std::function<void(const std::string& what, double seconds)> started;  // before each case; seconds: spent so far
  std::function<void(const std::string&)> wrong;                         // a result is wrong
  std::function<bool()> interrupted;                                     // asked between cases
};

// A case is a mechanism, a length and one of: forward, forward and backward, steps. What the next case of a mechanism
// takes is predicted from its last ones, and the cheapest case of all is run next, so that what is cheap reaches every
// length and the rest of the time goes to what is not. A case that would not end within the budget, or not fit into
// four fifths of the memory that is free, is left out, and so are the longer ones; rows of these are extrapolated.
//
// Before a case is timed its results are compared with the definition in float64, as told in docs/performance.md; a
// mechanism whose result is wrong has no row at that length nor at a longer one.
//
// Throws Error of kind usage for settings that make no sense.
Outcome run(const Settings& settings, const Hooks& hooks = {});

}  // namespace loglinear::app::compare
