#pragma once
// What the operators on softmax attention share: the checks of their arguments, and which keys a query sees.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "base/rows.hpp"
#include "loglinear/attention.hpp"

namespace loglinear::attention {

struct Range {
  std::int64_t begin = 0, end = 0;
  bool empty() const { return begin >= end; }
};

// Keys and queries that see each other: those with low <= (position of the query) - (position of the key) <= high.
struct Lags {
  static constexpr std::int64_t kUnbounded = std::int64_t{1} << 60;
  std::int64_t low = 0, high = kUnbounded;
};

inline Lags lags_of(const AttentionShape& shape) {
  const std::int64_t reach = shape.window > 0 ? shape.window - 1 : Lags::kUnbounded;
  return {shape.causal ? 0 : -reach, reach};
}

inline double scale_of(const AttentionShape& shape) {
  return shape.scale > 0 ? shape.scale : 1 / std::sqrt(static_cast<double>(shape.key_width));
}

// One past the last query row (begin) and key row (end) of any sequence.
inline Range extent(std::span<const AttentionSequence> sequences) {
  Range rows;
  for (const AttentionSequence& s : sequences) {
    if (s.q_count > 0) rows.begin = std::max(rows.begin, s.q_begin + s.q_count);
    if (s.k_count > 0) rows.end = std::max(rows.end, s.k_begin + s.k_count);
  }
  return rows;
}

// separate_keys: as a backward needs it, which writes the keys' rows.
inline void check(const char* where, std::span<const AttentionSequence> sequences, const AttentionShape& shape,
                  bool separate_keys) {
  const std::int64_t H = shape.heads, G = shape.kv_heads, K = shape.key_width, V = shape.value_width;
  if (H < 1 || G < 1 || K < 1 || V < 1) fail(where, "heads, groups and widths must be at least 1");
  if (H % G != 0) fail(where, "{} key/value heads do not divide {} heads", G, H);
  constexpr std::int64_t kTiles = 4096;  // rows of scratch
  check_sizes(where, {H, K, kTiles});
  check_sizes(where, {H, V, kTiles});
  if (!(shape.scale >= 0 && std::isfinite(shape.scale)))
    fail(where, "scale is {}, need a finite number >= 0", shape.scale);
  if (shape.window < 0) fail(where, "window is {}, need at least 0", shape.window);
  std::int64_t q_end = 0, k_end = 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const auto [q_begin, q_count, k_begin, k_count] = sequences[i];
    constexpr std::int64_t kLimit = std::int64_t{1} << 56;
    if (q_begin < 0 || q_count < 0 || k_begin < 0 || k_count < 0 || q_begin > kLimit || q_count > kLimit ||
        k_begin > kLimit || k_count > kLimit)
      fail(where, "sequence {}: an offset or count is out of range", i);
    if (k_count < q_count) fail(where, "sequence {}: {} keys for {} queries", i, k_count, q_count);
    if (q_begin < q_end) fail(where, "sequence {}: its queries overlap the sequence before or are out of order", i);
    if (separate_keys && k_begin < k_end)
      fail(where, "sequence {}: its keys overlap the sequence before or are out of order", i);
    q_end = q_begin + q_count;
    k_end = k_begin + k_count;
  }
}

}  // namespace loglinear::attention
