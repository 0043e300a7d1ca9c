#pragma once
// What the operators on softmax attention share: which rows belong to a sequence, and the sizes of a call.

#include <cstdint>

namespace loglinear {

// One sequence: its queries are the LAST q_count positions of its keys, so query i has position k_count - q_count + i
// among keys 0 .. k_count - 1. In training q_count = k_count; in decoding the keys and values are a cache and k_count
// > q_count.
struct AttentionSequence {
  std::int64_t q_begin = 0, q_count = 0;  // rows of q, out
  std::int64_t k_begin = 0, k_count = 0;  // rows of k, v
};

// The query at position p of its sequence sees key s of that sequence when
//
//   causal       s <= p,  and with a window w > 0 only  p - s < w: the newest w keys, its own included
//   not causal   any s,   and with a window w > 0 only |p - s| < w: w - 1 keys on either side and its own
struct AttentionShape {
  std::int64_t heads = 0;        // H
  std::int64_t kv_heads = 0;     // G, divides H; head h reads group h / (H / G)
  std::int64_t key_width = 0;    // K
  std::int64_t value_width = 0;  // V
  double scale = 0;              // of q . k; 0: K^-0.5
  std::int64_t window = 0;       // 0: no window
  bool causal = true;
};

}  // namespace loglinear
