#pragma once
// The chunk kernel and the step kernel on the CPU, one head at a time; which instruction set runs is chosen at run
// time.

#include <cstdint>
#include <vector>

#include "ops/log_linear/check.hpp"

namespace loglinear::log_linear::cpu {

// Where the state of one sequence goes. Slots have their decays allocated, and their matrices unless shared with the
// initial state.
struct FinalState {
  std::vector<State::Slot> slots;
  std::vector<bool> shared;  // the matrix is the initial state's own and is not written
};

// Heads [first, last) of one group of one sequence. final_state: null when not wanted. Heads and sequences are
// independent of each other; heads that come together share the work on q and k, with the same bits.
void forward_heads(const ForwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                   std::int64_t last, FinalState* final_state);

// Where the gradients of q and k go: a (tokens, K) array per range of heads in the type of the states, or the tensors
// themselves.
struct BackwardTarget {
  void* dq = nullptr;  // (tokens, K) null: write straight into args.dq and args.dk
  void* dk = nullptr;
  bool add = false;  // to what is there (a later head of the range)
};
// dfinal: null for zero. dinitial: null when not wanted.
void backward_head(const BackwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t h,
                   const State* dfinal, const BackwardTarget& target, FinalState* dinitial);

// One token of head h of the sequence in row b, at `position`, whose live slots are given. The new slot's matrix is
// written to `fresh` (H, K, V); for rules that erase, the matrices of the slots are updated in place: nobody else may
// hold them. Decays are the caller's to update.
void step_head(const StepArgs& args, const Sizes& sizes, std::int64_t b, std::int64_t h, std::int64_t position,
               const std::vector<State::Slot>& slots, std::byte* fresh);

// Name of the instruction set that the calls above run with ("AVX2", ...).
const char* instruction_set();

}  // namespace loglinear::log_linear::cpu
