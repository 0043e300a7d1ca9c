#pragma once
// The chunk kernel and the step kernel on the CPU, one head at a time; which instruction set runs is chosen at run
// time.

#include <cstdint>
#include <memory>
#include <vector>

#include "base/cpu_features.hpp"
#include "ops/log_linear/check.hpp"
#include "rules/rules.hpp"

namespace loglinear::log_linear::cpu {

// A slot that a call makes: its decays are allocated, and its matrix.
struct FinalSlot {
  State::Slot slot;
  bool shared = false;  // the matrix is another state's own and is not written
};

// Where the state of one sequence goes.
struct FinalState {
  std::vector<FinalSlot> slots;
  std::shared_ptr<State::Open> open;  // null when there are no open tokens
  // Slots before the last full chunk and the tokens of it; empty when not wanted.
  std::vector<FinalSlot> before;
  std::shared_ptr<State::Open> before_open;
};

// Columns [first, last) of the values.
struct Columns {
  std::int64_t first = 0, last = 0;
};

// Heads [first, last) of one group of one sequence. final_state: null when not wanted. Heads, sequences and columns are
// independent of each other; those that come together share the work on q and k, with the same bits.
void forward_heads(const ForwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                   std::int64_t last, Columns columns, FinalState* final_state);

// A place where backward may be cut into spans that are computed apart: after `tokens` tokens of a sequence, which end
// a multiple of kCutChunks chunks (open tokens included).
struct Cut {
  std::int64_t tokens = 0;
  std::vector<FinalSlot> state, dstate;  // the state there, and the gradient in it
};
// Every so many chunks backward forgets what it has added up over the chunks of a sequence but for the states and their
// gradients, so that no cut changes the result.
inline constexpr std::int64_t kCutChunks = 8;

// The states at the cuts of a sequence, and the gradients in them, in heads and columns as in forward_heads.
void states_at_cuts(const BackwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                    std::int64_t last, Columns columns, std::vector<Cut>& cuts);
void dstates_at_cuts(const BackwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                     std::int64_t last, Columns columns, const State* dfinal, std::vector<Cut>& cuts);

// Where the gradients of q and k go: an (open + tokens, K) array per range of heads in the type of the states, or the
// tensors themselves.
struct BackwardTarget {
  void* dq = nullptr;  // null: write straight into args.dq and args.dk
  void* dk = nullptr;
};
// Whether the backward of a range of so many heads reads states while it makes them (docs/algorithm.md, 6.1): dq is
// then written, read again and added to. Not where products are bfloat16 ones, which would spoil the flow.
inline bool reads_ahead(bool erases, DType dtype, std::int64_t heads) {
  return !erases && heads > 1 && (dtype != DType::bf16 || bf16_unit() == Bf16Unit::none);
}

// Heads as in forward_heads. dfinal: null for zero. dinitial: null when not wanted.
void backward_heads(const BackwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                    std::int64_t last, const State* dfinal, const BackwardTarget& target, FinalState* dinitial);

// Folds the full chunk of open tokens of sequence.initial into slots: heads [first, last) of one group. The matrices of
// the final slots may be those of the initial ones.
void fold_heads(Rule rule, const Plan& plan, const Sequence& sequence, std::int64_t first, std::int64_t last,
                FinalState& final_state);

// One token of heads [first, last) of one group of the sequence in row b, which is row number sequence.open of its open
// tokens already. Brings what is derived of the rows before it up to date, and the row itself.
void step_heads(const StepArgs& args, const Plan& plan, std::int64_t b, State::Open& open, std::int64_t first,
                std::int64_t last);

// Name of the instruction set that the calls above run with ("AVX2", ...).
const char* instruction_set();

}  // namespace loglinear::log_linear::cpu
