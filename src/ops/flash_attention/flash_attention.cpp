#include "loglinear/flash_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/attention.hpp"
#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

// Keys are cut in tiles counted from the first key of the sequence, so that a query meets the same sums in the same
// order however its sequence is split into calls.
constexpr std::int64_t kKeyTile = 64, kQueryTile = 128;

using attention::Range;

// Which keys a query sees.
struct Mask {
  Mask(const AttentionSequence& seq, const AttentionShape& shape)
      : offset(seq.k_count - seq.q_count), lags(attention::lags_of(shape)) {}
  std::int64_t offset;  // position of query 0 among the keys
  attention::Lags lags;

  // Keys of [first, first + count) that query i sees, counted from `first`.
  Range keys(std::int64_t i, std::int64_t first, std::int64_t count) const {
    const std::int64_t position = offset + i;
    return {std::max<std::int64_t>(0, position - lags.high - first), std::min(count, position - lags.low + 1 - first)};
  }
  // Queries of [first, first + count) that see key s, counted from `first`.
  Range queries(std::int64_t s, std::int64_t first, std::int64_t count) const {
    return {std::max<std::int64_t>(0, s + lags.low - offset - first),
            std::min(count, s + lags.high + 1 - offset - first)};
  }
};

struct Item {
  std::size_t sequence;
  std::int64_t head;   // or group
  std::int64_t first;  // query or key
};

// c (M, N) += A B with A (M, K), where row m of A is zero outside range(m). Rows are only cut short where that can be
// seen: a zero times an infinity or NaN of B.
template <class T, class RangeOf>
void add_masked_product(std::int64_t M, std::int64_t N, std::int64_t K, bool masked, const RangeOf& range, const T* a,
                        std::int64_t a_row, std::int64_t a_column, const T* b, std::int64_t ldb, T* c,
                        std::int64_t ldc) {
  bool finite = true;
  if (masked)
    for (std::int64_t k = 0; k < K && finite; ++k) {
      int bad = 0;
      for (std::int64_t n = 0; n < N; ++n) bad |= !(std::abs(b[k * ldb + n]) <= std::numeric_limits<T>::max());
      finite = !bad;
    }
  if (finite) return vec::add_tile_product(M, N, K, a, a_row, a_column, b, ldb, c, ldc);
  for (std::int64_t m = 0; m < M; ++m)
    if (const Range r = range(m); !r.empty())
      vec::add_tile_product(1, N, r.end - r.begin, a + m * a_row + r.begin * a_column, a_row, a_column,
                            b + r.begin * ldb, ldb, c + m * ldc, ldc);
}

// to (width, kKeyTile) = the transpose of `count` rows, further columns zero.
template <class T>
void transpose(std::int64_t count, std::int64_t width, const T* from, std::int64_t stride, T* to) {
  for (std::int64_t i = 0; i < width; ++i) {
    for (std::int64_t s = 0; s < count; ++s) to[i * kKeyTile + s] = from[s * stride + i];
    std::fill(to + i * kKeyTile + count, to + (i + 1) * kKeyTile, T(0));
  }
}

template <class T>
void scale_rows(std::int64_t count, std::int64_t width, T scale, const T* from, std::int64_t stride, T* to) {
  for (std::int64_t r = 0; r < count; ++r) vec::scale(width, scale, from + r * stride, to + r * width);
}

// out (rows, kKeyTile) = a (rows, width) times a transposed tile.
template <class T>
void tile_dots(std::int64_t rows, std::int64_t width, const T* a, std::int64_t a_stride, const T* transposed, T* out) {
  std::fill_n(out, rows * kKeyTile, T(0));
  vec::add_tile_product(rows, kKeyTile, width, a, a_stride, 1, transposed, kKeyTile, out, kKeyTile);
}

}  // namespace

template <class T>
void flash_attention_forward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                             std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                             std::int64_t v_stride, T* out, std::int64_t out_stride, T* log_sums, int threads) {
  const TimedOperator timed("flash_attention");
  constexpr const char* where = "flash_attention.forward";
  attention::check(where, sequences, shape, false);
  const std::int64_t H = shape.heads, G = shape.kv_heads, K = shape.key_width, V = shape.value_width;
  const auto [q_rows, k_rows] = attention::extent(sequences);
  check_rows(where, "q", q_rows, H * K, q, q_stride);
  check_rows(where, "k", k_rows, G * K, k, k_stride);
  check_rows(where, "v", k_rows, G * V, v, v_stride);
  check_rows(where, "out", q_rows, H * V, out, out_stride);

  std::vector<Item> items;
  for (std::size_t s = 0; s < sequences.size(); ++s)
    for (std::int64_t first = 0; first < sequences[s].q_count; first += kQueryTile)
      for (std::int64_t h = 0; h < H; ++h) items.push_back({s, h, first});
  const T scale = static_cast<T>(attention::scale_of(shape));

  parallel_for(static_cast<std::int64_t>(items.size()), threads, [&](std::int64_t i) {
    // Late queries have the most keys: they go first.
    const Item& item = items[items.size() - 1 - static_cast<std::size_t>(i)];
    const std::size_t s = item.sequence;
    const std::int64_t h = item.head, first = item.first;
    const AttentionSequence& seq = sequences[s];
    const std::int64_t rows = std::min(kQueryTile, seq.q_count - first), group = h / (H / G);
    const Mask mask(seq, shape);
    std::vector<T> scratch(static_cast<std::size_t>(rows * (K + V + kKeyTile + 2) + K * kKeyTile));
    T* queries = scratch.data();         // (rows, K), scaled
    T* sums = queries + rows * K;        // (rows, V), relative to exp(peak)
    T* scores = sums + rows * V;         // (rows, kKeyTile)
    T* peak = scores + rows * kKeyTile;  // (rows)
    T* weight = peak + rows;             // (rows), sum of exp(score - peak)
    T* keys = weight + rows;             // (K, kKeyTile)
    scale_rows(rows, K, scale, q + (seq.q_begin + first) * q_stride + h * K, q_stride, queries);
    std::fill_n(peak, rows, -std::numeric_limits<T>::infinity());

    const std::int64_t oldest = mask.keys(first, 0, seq.k_count).begin,
                       last = mask.keys(first + rows - 1, 0, seq.k_count).end;
    for (std::int64_t begin = oldest / kKeyTile * kKeyTile; begin < last; begin += kKeyTile) {
      const std::int64_t count = std::min(kKeyTile, seq.k_count - begin);
      transpose(count, K, k + (seq.k_begin + begin) * k_stride + group * K, k_stride, keys);
      tile_dots(rows, K, queries, K, keys, scores);
      bool masked = false;
      for (std::int64_t r = 0; r < rows; ++r) {
        T* row = scores + r * kKeyTile;
        const Range seen = mask.keys(first + r, begin, count);
        masked |= seen.begin > 0 || seen.end < count;
        if (seen.empty()) {
          std::fill_n(row, kKeyTile, T(0));
          continue;
        }
        std::fill(row, row + seen.begin, -std::numeric_limits<T>::infinity());
        std::fill(row + seen.end, row + kKeyTile, -std::numeric_limits<T>::infinity());
        const T before = peak[r];
        peak[r] = std::max(before, vec::max(kKeyTile, row));
        const T fade = std::exp(before - peak[r]);
        weight[r] = weight[r] * fade + vec::exp_sum(kKeyTile, row, peak[r], row);
        if (fade != 1) vec::scale(V, fade, sums + r * V, sums + r * V);
      }
      add_masked_product(
          rows, V, count, masked, [&](std::int64_t r) { return mask.keys(first + r, begin, count); }, scores, kKeyTile,
          1, v + (seq.k_begin + begin) * v_stride + group * V, v_stride, sums, V);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t n = seq.q_begin + first + r;
      vec::scale(V, T(1) / weight[r], sums + r * V, out + n * out_stride + h * V);
      if (log_sums) log_sums[n * H + h] = peak[r] + std::log(weight[r]);
    }
  });
}

template <class T>
void flash_attention_backward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                              std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                              std::int64_t v_stride, const T* out, std::int64_t out_stride, const T* log_sums,
                              const T* dout, std::int64_t dout_stride, T* dq, std::int64_t dq_stride, T* dk,
                              std::int64_t dk_stride, T* dv, std::int64_t dv_stride, int threads) {
  const TimedOperator timed("flash_attention");
  constexpr const char* where = "flash_attention.backward";
  attention::check(where, sequences, shape, true);
  const std::int64_t H = shape.heads, G = shape.kv_heads, K = shape.key_width, V = shape.value_width;
  const auto [q_rows, k_rows] = attention::extent(sequences);
  check_rows(where, "q", q_rows, H * K, q, q_stride);
  check_rows(where, "k", k_rows, G * K, k, k_stride);
  check_rows(where, "v", k_rows, G * V, v, v_stride);
  check_rows(where, "out", q_rows, H * V, out, out_stride);
  check_rows(where, "log_sums", q_rows, H, log_sums, H);
  check_rows(where, "dout", q_rows, H * V, dout, dout_stride);
  check_rows(where, "dq", q_rows, H * K, dq, dq_stride);
  check_rows(where, "dk", k_rows, G * K, dk, dk_stride);
  check_rows(where, "dv", k_rows, G * V, dv, dv_stride);
  const T scale = static_cast<T>(attention::scale_of(shape));

  // probabilities (rows, kKeyTile) and the gradient of the scores, dscores, for a tile of queries and one of keys.
  // Returns whether any pair is masked.
  const auto tile = [&](const AttentionSequence& seq, const Mask& mask, std::int64_t h, std::int64_t first,
                        std::int64_t rows, std::int64_t begin, std::int64_t count, const T* queries, const T* keys,
                        const T* values, T* probabilities, T* dscores) {
    const std::int64_t n = seq.q_begin + first;
    tile_dots(rows, K, queries, K, keys, probabilities);
    tile_dots(rows, V, dout + n * dout_stride + h * V, dout_stride, values, dscores);
    bool masked = false;
    for (std::int64_t r = 0; r < rows; ++r) {
      T *row = probabilities + r * kKeyTile, *drow = dscores + r * kKeyTile;
      const Range seen = mask.keys(first + r, begin, count);
      masked |= seen.begin > 0 || seen.end < count;
      if (!seen.empty()) {
        vec::exp_sum(seen.end - seen.begin, row + seen.begin, log_sums[(n + r) * H + h], row + seen.begin);
        const T mean = vec::dot(V, dout + (n + r) * dout_stride + h * V, out + (n + r) * out_stride + h * V);
        for (std::int64_t s = seen.begin; s < seen.end; ++s) drow[s] = row[s] * (drow[s] - mean);
      }
      const std::int64_t from = seen.empty() ? kKeyTile : seen.begin, to = seen.empty() ? kKeyTile : seen.end;
      for (T* p : {row, drow}) {
        std::fill(p, p + from, T(0));
        std::fill(p + to, p + kKeyTile, T(0));
      }
    }
    return masked;
  };

  std::vector<Item> items;
  for (std::size_t s = 0; s < sequences.size(); ++s)
    for (std::int64_t first = 0; first < sequences[s].q_count; first += kQueryTile)
      for (std::int64_t h = 0; h < H; ++h) items.push_back({s, h, first});
  parallel_for(static_cast<std::int64_t>(items.size()), threads, [&](std::int64_t i) {
    const Item& item = items[items.size() - 1 - static_cast<std::size_t>(i)];
    const std::size_t s = item.sequence;
    const std::int64_t h = item.head, first = item.first;
    const AttentionSequence& seq = sequences[s];
    const std::int64_t rows = std::min(kQueryTile, seq.q_count - first), group = h / (H / G);
    const Mask mask(seq, shape);
    std::vector<T> scratch(static_cast<std::size_t>(rows * (2 * K + 2 * kKeyTile) + (K + V) * kKeyTile));
    T* queries = scratch.data();
    T* sums = queries + rows * K;
    T* probabilities = sums + rows * K;
    T* dscores = probabilities + rows * kKeyTile;
    T* keys = dscores + rows * kKeyTile;
    T* values = keys + K * kKeyTile;
    scale_rows(rows, K, scale, q + (seq.q_begin + first) * q_stride + h * K, q_stride, queries);
    const std::int64_t oldest = mask.keys(first, 0, seq.k_count).begin,
                       last = mask.keys(first + rows - 1, 0, seq.k_count).end;
    for (std::int64_t begin = oldest / kKeyTile * kKeyTile; begin < last; begin += kKeyTile) {
      const std::int64_t count = std::min(kKeyTile, seq.k_count - begin);
      const T* key_rows = k + (seq.k_begin + begin) * k_stride + group * K;
      transpose(count, K, key_rows, k_stride, keys);
      transpose(count, V, v + (seq.k_begin + begin) * v_stride + group * V, v_stride, values);
      const bool masked = tile(seq, mask, h, first, rows, begin, count, queries, keys, values, probabilities, dscores);
      add_masked_product(
          rows, K, count, masked, [&](std::int64_t r) { return mask.keys(first + r, begin, count); }, dscores, kKeyTile,
          1, key_rows, k_stride, sums, K);
    }
    for (std::int64_t r = 0; r < rows; ++r)
      vec::scale(K, scale, sums + r * K, dq + (seq.q_begin + first + r) * dq_stride + h * K);
  });

  items.clear();
  for (std::size_t s = 0; s < sequences.size(); ++s)
    for (std::int64_t begin = 0; begin < sequences[s].k_count; begin += kKeyTile)
      for (std::int64_t group = 0; group < G; ++group) items.push_back({s, group, begin});
  // Early keys have the most queries.
  parallel_for(static_cast<std::int64_t>(items.size()), threads, [&](std::int64_t i) {
    const Item& item = items[static_cast<std::size_t>(i)];
    const std::size_t s = item.sequence;
    const std::int64_t group = item.head, begin = item.first;
    const AttentionSequence& seq = sequences[s];
    const std::int64_t count = std::min(kKeyTile, seq.k_count - begin);
    const Mask mask(seq, shape);
    std::vector<T> scratch(static_cast<std::size_t>(kQueryTile * (K + 2 * kKeyTile) + 2 * (K + V) * kKeyTile));
    T* queries = scratch.data();
    T* probabilities = queries + kQueryTile * K;
    T* dscores = probabilities + kQueryTile * kKeyTile;
    T* keys = dscores + kQueryTile * kKeyTile;
    T* values = keys + K * kKeyTile;
    T* dkeys = values + V * kKeyTile;   // (count, K)
    T* dvalues = dkeys + K * kKeyTile;  // (count, V)
    transpose(count, K, k + (seq.k_begin + begin) * k_stride + group * K, k_stride, keys);
    transpose(count, V, v + (seq.k_begin + begin) * v_stride + group * V, v_stride, values);
    const std::int64_t from = mask.queries(begin, 0, seq.q_count).begin,
                       to = mask.queries(begin + count - 1, 0, seq.q_count).end;
    for (std::int64_t h = group * (H / G); h < (group + 1) * (H / G); ++h)
      for (std::int64_t first = from; first < to; first += kQueryTile) {
        const std::int64_t rows = std::min(kQueryTile, to - first), n = seq.q_begin + first;
        scale_rows(rows, K, scale, q + n * q_stride + h * K, q_stride, queries);
        const bool masked =
            tile(seq, mask, h, first, rows, begin, count, queries, keys, values, probabilities, dscores);
        const auto range = [&](std::int64_t c) { return mask.queries(begin + c, first, rows); };
        add_masked_product(count, V, rows, masked, range, probabilities, 1, kKeyTile, dout + n * dout_stride + h * V,
                           dout_stride, dvalues, V);
        add_masked_product(count, K, rows, masked, range, dscores, 1, kKeyTile, queries, K, dkeys, K);
      }
    for (std::int64_t c = 0; c < count; ++c) {
      std::copy_n(dkeys + c * K, K, dk + (seq.k_begin + begin + c) * dk_stride + group * K);
      std::copy_n(dvalues + c * V, V, dv + (seq.k_begin + begin + c) * dv_stride + group * V);
    }
  });
}

#define LOGLINEAR_FLASH_ATTENTION(T)                                                                             \
  template void flash_attention_forward(std::span<const AttentionSequence>, const AttentionShape&, const T*,     \
                                        std::int64_t, const T*, std::int64_t, const T*, std::int64_t, T*,        \
                                        std::int64_t, T*, int);                                                  \
  template void flash_attention_backward(std::span<const AttentionSequence>, const AttentionShape&, const T*,    \
                                         std::int64_t, const T*, std::int64_t, const T*, std::int64_t, const T*, \
                                         std::int64_t, const T*, const T*, std::int64_t, T*, std::int64_t, T*,   \
                                         std::int64_t, T*, std::int64_t, int);
LOGLINEAR_FLASH_ATTENTION(float)
LOGLINEAR_FLASH_ATTENTION(double)
#undef LOGLINEAR_FLASH_ATTENTION

}  // namespace loglinear
