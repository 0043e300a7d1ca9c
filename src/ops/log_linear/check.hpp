#pragma once
// What every form of the operator checks before it computes, and the sequences that a call consists of.

#include <cstdint>
#include <string>
#include <vector>

#include "loglinear/log_linear.hpp"

namespace loglinear::log_linear {

struct Sizes {
  std::int64_t B = 0, T = 0, G = 0, H = 0, K = 0, V = 0, L = 0;
  DType dtype = DType::f32;        // of q, k, v, out
  DType state_dtype = DType::f32;  // of gates, scales and states
};

// One sequence of a call: tokens [first, first + tokens) of batch row `batch`, at absolute position `position`.
struct Sequence {
  std::int64_t batch = 0, first = 0, tokens = 0, position = 0;
  const State* initial = nullptr;  // null: the empty state
};

struct Plan {
  Sizes sizes;
  int chunk = 0;  // C
  std::vector<Sequence> sequences;
};

Plan check(const std::string& where, const ForwardArgs& args);
Plan check(const std::string& where, const BackwardArgs& args);
Plan check(const std::string& where, const StepArgs& args);

}  // namespace loglinear::log_linear
