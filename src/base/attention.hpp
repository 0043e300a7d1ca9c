#pragma once
// What the operators on softmax attention share: the checks of their arguments, which keys a query sees, and one kernel
// that computes in tiles with an online softmax (docs/algorithm.md, section 9).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/parallel.hpp"
#include "base/pool.hpp"
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

// Queries and keys of one sequence and one group of heads, rows evenly apart: all positions, or one class of positions
// a stride apart. Lags count in rows: query i sees key j when lags.low <= offset + i - j <= lags.high.
template <class T>
struct Strip {
  std::int64_t heads = 0, K = 0, V = 0;  // heads of the group
  double scale = 0;
  const T *q = nullptr, *k = nullptr, *v = nullptr;  // query i of head h: q + i * q_stride + h * K
  std::int64_t q_stride = 0, k_stride = 0, v_stride = 0;
  std::int64_t q_count = 0, k_count = 0, offset = 0;
  Lags lags;
  std::int64_t q_row = 0, k_row = 0, step = 1;  // where the caller's arrays have query 0 and key 0, and how far apart

  // Keys of [first, first + count) that the query at `position` (offset + i) sees, counted from `first`.
  Range keys(std::int64_t position, std::int64_t first, std::int64_t count) const {
    return {std::clamp<std::int64_t>(position - lags.high - first, 0, count),
            std::clamp<std::int64_t>(position - lags.low + 1 - first, 0, count)};
  }
  // Queries i that see any of the keys [first, last].
  Range queries(std::int64_t first, std::int64_t last) const {
    return {std::clamp<std::int64_t>(first + lags.low - offset, 0, q_count),
            std::clamp<std::int64_t>(last + lags.high + 1 - offset, 0, q_count)};
  }
};

template <class T>
struct Inputs {
  const T *q = nullptr, *k = nullptr, *v = nullptr;
  std::int64_t q_stride = 0, k_stride = 0, v_stride = 0;
};

// The checks that all forms share, of q, k, v and `out` (of a backward: its gradient), and the inputs as the kernels
// take them.
template <class T>
Inputs<T> checked_inputs(const char* where, std::span<const AttentionSequence> sequences, const AttentionShape& shape,
                         bool separate_keys, const T* q, std::int64_t q_stride, const T* k, std::int64_t k_stride,
                         const T* v, std::int64_t v_stride, const char* out_name, const T* out,
                         std::int64_t out_stride) {
  check(where, sequences, shape, separate_keys);
  const std::int64_t H = shape.heads, G = shape.kv_heads, K = shape.key_width, V = shape.value_width;
  const auto [q_rows, k_rows] = extent(sequences);
  check_rows(where, "q", q_rows, H * K, q, q_stride);
  check_rows(where, "k", k_rows, G * K, k, k_stride);
  check_rows(where, "v", k_rows, G * V, v, v_stride);
  check_rows(where, out_name, q_rows, H * V, out, out_stride);
  return {q, k, v, q_stride, k_stride, v_stride};
}

// What a backward writes.
template <class T>
void check_gradients(const char* where, std::span<const AttentionSequence> sequences, const AttentionShape& shape,
                     const T* dq, std::int64_t dq_stride, const T* dk, std::int64_t dk_stride, const T* dv,
                     std::int64_t dv_stride) {
  const auto [q_rows, k_rows] = extent(sequences);
  check_rows(where, "dq", q_rows, shape.heads * shape.key_width, dq, dq_stride);
  check_rows(where, "dk", k_rows, shape.kv_heads * shape.key_width, dk, dk_stride);
  check_rows(where, "dv", k_rows, shape.kv_heads * shape.value_width, dv, dv_stride);
}

// The strip of a sequence's positions residue, residue + step, .. for one group; lags in positions.
template <class T>
Strip<T> strip_of(const Inputs<T>& in, const AttentionSequence& seq, const AttentionShape& shape, std::int64_t group,
                  const Lags& lags, std::int64_t step = 1, std::int64_t residue = 0) {
  const std::int64_t K = shape.key_width, V = shape.value_width, R = shape.heads / shape.kv_heads;
  const std::int64_t before = seq.k_count - seq.q_count;  // keys before the first query
  Strip<T> strip;
  strip.heads = R, strip.K = K, strip.V = V, strip.scale = scale_of(shape), strip.step = step;
  strip.k_count = residue < seq.k_count ? (seq.k_count - residue + step - 1) / step : 0;
  strip.offset = residue < before ? std::min(strip.k_count, (before - residue + step - 1) / step) : 0;
  strip.q_count = strip.k_count - strip.offset;
  strip.k_row = seq.k_begin + residue;
  strip.q_row = seq.q_begin + residue + strip.offset * step - before;
  const auto in_steps = [&](std::int64_t lag) { return std::abs(lag) == Lags::kUnbounded ? lag : lag / step; };
  strip.lags = {in_steps(lags.low + (lags.low > 0 ? step - 1 : 0)), in_steps(lags.high)};
  if (strip.k_count == 0) return strip;
  strip.k = in.k + strip.k_row * in.k_stride + group * K, strip.k_stride = in.k_stride * step;
  strip.v = in.v + strip.k_row * in.v_stride + group * V, strip.v_stride = in.v_stride * step;
  if (strip.q_count > 0) strip.q = in.q + strip.q_row * in.q_stride + group * R * K;
  strip.q_stride = in.q_stride * step;
  return strip;
}

// What the kernel works in: panels of queries, tiles of keys, and blocks of tiles in the backward.
inline constexpr std::int64_t kQueryPanel = 48, kKeyTile = 96, kKeyBlock = 3 * kKeyTile;

// Statistics of a row of scores, those of query i of head h at [i * stat_stride + h]: the largest, and the sum of the
// exponentials beside it. In the base of the kernel's exponential.
template <class T>
struct Online {
  T *out = nullptr, *peak = nullptr, *weight = nullptr;
  std::int64_t out_stride = 0, stat_stride = 0;
  T* log_sums = nullptr;  // or null; natural
  bool resume = false;    // out (not yet divided), peak and weight hold what an earlier strip left
  bool finish = true;     // divide, and write log_sums; else write out, peak and weight for a later strip
};

// Columns of work, one for a query and head of the group: column c is query c / heads, head c % heads. A call takes
// some, at best kColumns; they do not depend on each other.
inline constexpr std::int64_t kColumns = 192;
template <class T>
void forward(const Strip<T>& strip, const Online<T>& online, std::int64_t first_column, std::int64_t last_column);

// The same for `groups` groups with a single query, the strips of which follow `strip` (k, v, q and out head by head);
// at most kQueryPanel heads together.
template <class T>
void forward_query(const Strip<T>& strip, const Online<T>& online, std::int64_t groups);

// All of a strip, given for group 0.
template <class T>
struct StripForward {
  Strip<T> strip;
  Online<T> online;
};
template <class T>
void forward(std::span<const StripForward<T>> strips, std::int64_t groups, int threads) {
  struct Item {
    std::size_t strip;
    std::int64_t group, groups;  // of one query
    std::int64_t first;          // column otherwise
  };
  std::vector<Item> items;
  for (std::size_t s = 0; s < strips.size(); ++s) {
    const std::int64_t R = strips[s].strip.heads, columns = strips[s].strip.q_count * R;
    if (strips[s].strip.q_count == 1 && R <= kQueryPanel) {
      const std::int64_t threads_used = thread_count(threads);
      const std::int64_t together = std::min(kQueryPanel / R, (groups + threads_used - 1) / threads_used);
      for (std::int64_t group = 0; group < groups; group += together)
        items.push_back({s, group, std::min(together, groups - group), 0});
    } else {
      for (std::int64_t first = 0; first < columns; first += kColumns)
        for (std::int64_t group = 0; group < groups; ++group) items.push_back({s, group, 0, first});
    }
  }
  parallel_for(static_cast<std::int64_t>(items.size()), threads, [&](std::int64_t i) {
    // Late queries have the most keys: they go first.
    const Item& item = items[items.size() - 1 - static_cast<std::size_t>(i)];
    auto [strip, online] = strips[item.strip];
    const std::int64_t R = strip.heads, group = item.group;
    strip.q += group * R * strip.K, strip.k += group * strip.K, strip.v += group * strip.V;
    online.out += group * R * strip.V;
    if (online.peak) online.peak += group * R, online.weight += group * R;
    if (online.log_sums) online.log_sums += group * R;
    if (item.groups > 0)
      forward_query(strip, online, item.groups);
    else
      forward(strip, online, item.first, std::min(item.first + kColumns, strip.q_count * R));
  });
}

template <class T>
struct Adjoint {
  const T *out = nullptr, *dout = nullptr, *log_sums = nullptr;  // log_sums of query i, head h: [i * stat_stride + h]
  std::int64_t out_stride = 0, dout_stride = 0, stat_stride = 0;
  T *dq = nullptr, *dk = nullptr, *dv = nullptr;  // dq null: not wanted; dk and dv null: not wanted
  std::int64_t dq_stride = 0, dk_stride = 0, dv_stride = 0;
  bool add = false;  // to what dq, dk and dv hold
};

// The part of a call's arrays, given as an Adjoint, that belongs to the strip of one group.
template <class T>
Adjoint<T> adjoint_of(const Adjoint<T>& all, const Strip<T>& strip, std::int64_t group) {
  const std::int64_t R = strip.heads, K = strip.K, V = strip.V, step = strip.step;
  Adjoint<T> a = all;
  if (strip.q_count > 0) {
    a.out += strip.q_row * all.out_stride + group * R * V;
    a.dout += strip.q_row * all.dout_stride + group * R * V;
    a.log_sums += strip.q_row * all.stat_stride + group * R;
    a.dq += strip.q_row * all.dq_stride + group * R * K;
  }
  a.dk += strip.k_row * all.dk_stride + group * K;
  a.dv += strip.k_row * all.dv_stride + group * V;
  for (std::int64_t* stride : {&a.out_stride, &a.dout_stride, &a.stat_stride, &a.dq_stride, &a.dk_stride, &a.dv_stride})
    *stride *= step;
  return a;
}

// Gradients of the pairs of queries [queries.begin, end) and keys [keys.begin, end). Any cut into ranges that begin at
// multiples of kQueryPanel and kKeyTile gives the same bits, as long as each call covers all of the dimension that its
// gradients sum over.
template <class T>
void backward(const Strip<T>& strip, const Adjoint<T>& adjoint, Range queries, Range keys);

// The gradients of strips that share no row of dq, dk or dv.
template <class T>
struct StripAdjoint {
  Strip<T> strip;
  Adjoint<T> adjoint;
};
template <class T>
void backward(std::span<const StripAdjoint<T>> strips, int threads) {
  std::int64_t total = 0, largest = 0;
  for (const auto& [strip, adjoint] : strips) {
    const std::int64_t work = strip.k_count + strip.q_count * std::min(strip.k_count, strip.lags.high - strip.lags.low);
    total += work, largest = std::max(largest, work);
  }
  // A strip in one piece costs five products. In pieces it costs seven, since both passes need the probabilities, and
  // is done when there would be nothing for some thread to do.
  if (thread_count(threads) == 1 || largest <= total / thread_count(threads) + total / 8) {
    parallel_for(static_cast<std::int64_t>(strips.size()), threads, [&](std::int64_t i) {
      const auto& [strip, adjoint] = strips[static_cast<std::size_t>(i)];
      backward(strip, adjoint, {0, strip.q_count}, {0, strip.k_count});
    });
    return;
  }
  struct Item {
    std::size_t strip;
    bool of_keys;
    std::int64_t first;
  };
  std::vector<Item> items;
  for (std::size_t s = 0; s < strips.size(); ++s) {
    for (std::int64_t first = 0; first < strips[s].strip.k_count; first += kKeyBlock) items.push_back({s, true, first});
    for (std::int64_t first = 0; first < strips[s].strip.q_count; first += kColumns) items.push_back({s, false, first});
  }
  parallel_for(static_cast<std::int64_t>(items.size()), threads, [&](std::int64_t i) {
    const auto& [s, of_keys, first] = items[static_cast<std::size_t>(i)];
    const Strip<T>& strip = strips[s].strip;
    Adjoint<T> adjoint = strips[s].adjoint;
    if (of_keys) {
      adjoint.dq = nullptr;
      backward(strip, adjoint, {0, strip.q_count}, {first, std::min(strip.k_count, first + kKeyBlock)});
    } else {
      adjoint.dk = adjoint.dv = nullptr;
      backward(strip, adjoint, {first, std::min(strip.q_count, first + kColumns)}, {0, strip.k_count});
    }
  });
}

// What a thread keeps of its scratch memory for its next call.
template <class T>
void trim_scratch() {
  Pool<T>::trim(std::size_t{16} << 20);
}

// Which instruction set the kernel runs with, as Highway calls it.
const char* instruction_set();

}  // namespace loglinear::attention
