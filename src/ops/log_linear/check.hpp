#pragma once
// What every form of the operator checks before it computes, and the sequences that a call consists of.

#include <cstddef>
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

// One sequence of a call: tokens [first, first + tokens) of batch row `batch`, at absolute position `position`. The
// chunk that it begins in has `open` tokens before them, which the initial state holds.
struct Sequence {
  std::int64_t batch = 0, first = 0, tokens = 0, position = 0;
  const State* initial = nullptr;  // null: the empty state
  int chunk = 0;                   // C
  std::int64_t open = 0;
  const State::Open* open_rows = nullptr;  // of initial; null when there are none

  std::int64_t end() const { return position + tokens; }
  // Chunks that become full.
  std::int64_t full_chunks() const { return (open + tokens) / chunk; }
};

// The slots of a sequence after the first `chunks` chunks that become full in it, oldest first. initial: number of the
// slot of the initial state that stands for the same tokens, or -1.
struct LiveSlot {
  int bit = 0;
  std::ptrdiff_t initial = -1;
};
std::vector<LiveSlot> live_slots(const Sequence& sequence, std::int64_t L, std::int64_t chunks);

struct Plan {
  Sizes sizes;
  std::vector<Sequence> sequences;
};

Plan check(const std::string& where, const ForwardArgs& args);
Plan check(const std::string& where, const BackwardArgs& args);
// Into a plan that is used again.
void check(const std::string& where, const StepArgs& args, Plan& plan);

}  // namespace loglinear::log_linear
