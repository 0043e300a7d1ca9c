#pragma once
// What log-linear attention remembers of a sequence: one K x V matrix per head for every set bit of the position.

#include <cstdint>
#include <memory>
#include <vector>

#include "loglinear/rule.hpp"
#include "loglinear/tensor.hpp"

namespace loglinear {

// The state of one sequence after `position` tokens, like the digits of a binary counter: slot j is live exactly when
// bit j of the position is set, and stands for the block of 2^j tokens that begins at block_begin(j). Memory is
// popcount(position) * H * K * V elements.
//
// Decay is lazy: a matrix is stored as it was written, and the decay since then is kept beside it, one number per head,
// so a scalar-decay step never rewrites old matrices. Copying a State is a fork: the copy shares every matrix by
// reference until one side replaces it. Nothing here is ever written while it is shared.
//
// A State is a value and not synchronised: distinct States may be used from distinct threads, also when they share
// matrices.
class State {
 public:
  struct Slot {
    int bit = 0;                                     // which bit of the position: a block of 2^bit tokens
    std::shared_ptr<std::vector<std::byte>> matrix;  // (H, K, V) of dtype(), row-major, without the decay since written
    std::vector<double> log_decay;                   // (H) natural-log decay since the matrix was written, <= 0
  };

  State() = default;
  // The empty state, position 0. dtype: f32 or f64. Throws Error on widths < 1 or another dtype.
  State(Rule rule, std::int64_t heads, std::int64_t key_width, std::int64_t value_width, DType dtype = DType::f32);

  Rule rule() const { return rule_; }
  DType dtype() const { return dtype_; }
  std::int64_t heads() const { return heads_; }              // H
  std::int64_t key_width() const { return key_width_; }      // K
  std::int64_t value_width() const { return value_width_; }  // V
  std::int64_t position() const { return position_; }        // tokens seen so far

  // Live slots, largest block (oldest tokens) first; exactly one per set bit of position().
  const std::vector<Slot>& slots() const { return slots_; }

  // First token of the block that slot `bit` stands for.
  std::int64_t block_begin(int bit) const { return ((position_ >> bit) - 1) << bit; }

  // Bytes of the live matrices (shared ones counted in full) and their decays.
  std::size_t bytes() const;

  // Dense export: the matrix of one live slot, (H, K, V) row-major, with its decay applied. Throws Error when the slot
  // is not live.
  std::vector<double> dense(int bit) const;

  // The state at `position` whose live slots, largest first, hold the given dense (H, K, V) matrices: the inverse of
  // dense(). Throws Error unless there is exactly one matrix of H * K * V elements per set bit of position.
  static State from_dense(Rule rule, std::int64_t heads, std::int64_t key_width, std::int64_t value_width, DType dtype,
                          std::int64_t position, const std::vector<std::vector<double>>& matrices);

  // Replaces position and slots, for the operators and for readers of files. Throws Error unless the slots are exactly
  // the set bits of position, largest first, each with a matrix of H * K * V elements of dtype() and H decays.
  void assign(std::int64_t position, std::vector<Slot> slots);

 private:
  Rule rule_ = Rule::scalar_decay;
  DType dtype_ = DType::f32;
  std::int64_t heads_ = 0, key_width_ = 0, value_width_ = 0, position_ = 0;
  std::vector<Slot> slots_;
};

}  // namespace loglinear
