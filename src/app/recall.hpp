#pragma once
// Multi-query associative recall (Arora et al., "Zoology", arXiv 2312.04927, section 4 and appendix; the synthetic task
// of arXiv 2506.04761): key-value pairs are shown once, later a key comes again and its value has to follow.

#include <cstdint>

#include "app/data.hpp"

namespace loglinear::app {

// One example is `length` tokens of 0 .. vocab - 1:
//
//   k_1 v_1 k_2 v_2 ... k_n v_n   then, in what is left, every key once more at a place of its own, and filler
//
// Keys are distinct tokens of 1 .. vocab / 2 - 1, values distinct tokens of vocab / 2 .. 2 (vocab / 2) - 1, filler is
// the token 0: what a token is for can be told from the token. What is left, from 2 * pairs on, is cut into slots of
// two tokens, numbered from 1; the slots of the queries are drawn without replacement with probability proportional to
// slot^(alpha - 1): a power law, so that with a small alpha most keys return soon and a few late. A key stands in the
// first token of its slot. Targets are the value of the key at the queries, -1 (not scored) everywhere else.
struct RecallTask {
  std::int64_t vocab = 256;   // >= 4
  std::int64_t length = 128;  // tokens of an example, >= 4 * pairs
  std::int64_t pairs = 16;    // 1 to vocab / 2 - 1; as many queries
  double alpha = 0.01;        // of the power law, > 0; 1: uniform

  bool operator==(const RecallTask&) const = default;
};

// Throws Error (usage) naming what is out of range.
void check(const RecallTask& task);

// Appends example `index` of `seed` to the batch, as a sequence of its own: a pure function of its arguments. Examples
// of different indices are independent draws. The task has been checked.
void add_example(const RecallTask& task, std::uint64_t seed, std::uint64_t index, Batch& batch);

}  // namespace loglinear::app
