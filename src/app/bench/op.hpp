#pragma once
// The log-linear operator: correct first, then timed.

#include <cstdint>

#include "app/bench/row.hpp"

namespace loglinear::app::bench {

struct OpCase {
  Rule rule = Rule::scalar_decay;
  DType dtype = DType::f32;
  Shape shape;                 // resolved
  std::int64_t position = -1;  // of steps: where the first one is, a multiple of kPositionUnit
  int chunk = 0, threads = 0;
  std::uint64_t seed = 1;
  double seconds = 1;    // of timing
  double tolerance = 1;  // factor on the bounds of docs/numerics.md
  std::int64_t resident_before = -1;
  const Peaks* peaks = nullptr;  // of the run; steps ask it which level of memory they are read from
};

// States are made from dense matrices, one for every set bit of the position: no bit below the longest chunk may be
// set.
inline constexpr std::int64_t kPositionUnit = 256;

// The bytes that a case holds while it is measured; steps: with what their states are made from.
double forward_bytes(const OpCase& c);
double backward_bytes(const OpCase& c);
double step_bytes(const OpCase& c);

// Each throws WrongResult when a result is further than the bounds of docs/numerics.md from
//
//   measure_forward    the definition in float64, for the first tokens; a forward of all but the last tokens and a step
//                      for each of these, for the last
//   measure_backward   the same two, for the gradients that no later token reaches (q, level_scales) and all that no
//                      earlier token reaches; and every gradient of a call of its own on the first tokens
//   measure_step       the definition in float64 from the same state, over more steps than a chunk has tokens
//
// and otherwise the row.
Row measure_forward(const OpCase& c);
Row measure_backward(const OpCase& c);
Row measure_step(const OpCase& c);

}  // namespace loglinear::app::bench
