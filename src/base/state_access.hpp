#pragma once
// For the operator: the parts of a State, which its step changes in place, and how the counter of chunks counts.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "loglinear/state.hpp"

namespace loglinear {

inline constexpr int kMaxChunk = 256;

struct StateAccess {
  using Before = State::Before;

  static std::int64_t& position(State& s) { return s.position_; }
  static std::vector<State::Slot>& slots(State& s) { return s.slots_; }
  static std::shared_ptr<State::Open>& open(State& s) { return s.open_; }
  static std::shared_ptr<const Before>& before(State& s) { return s.before_; }
  static const std::shared_ptr<const Before>& before(const State& s) { return s.before_; }
  static bool& keeps_before(State& s) { return s.keeps_before_; }
  static bool keeps_before(const State& s) { return s.keeps_before_; }
};

// The bit of the slot that one chunk of 2^bit tokens fills.
inline int chunk_bit(int chunk) { return std::countr_zero(static_cast<unsigned>(chunk)); }

// Blocks of this bit and larger ones are all read through the last of L levels: the counter keeps them as one.
inline int last_bit(int chunk, std::int64_t L) {
  return static_cast<int>(std::clamp<std::int64_t>(L - 2, chunk_bit(chunk), 62));
}

// What happens when a full chunk is added to live slots: how many of the last ones merge with it, and the bit of the
// slot that they become together. bit_of(i): bit of live slot i, oldest first.
struct Carry {
  std::size_t merged = 0;
  int bit = 0;
};
template <class BitOf>
Carry carry_of(std::size_t live, int chunk_bit, int last_bit, const BitOf& bit_of) {
  Carry carry{0, chunk_bit};
  for (; carry.merged < live; ++carry.merged) {
    if (carry.bit == last_bit) continue;
    if (bit_of(live - 1 - carry.merged) != carry.bit) break;  // a zero digit: here the carry ends
    ++carry.bit;
  }
  return carry;
}

}  // namespace loglinear
