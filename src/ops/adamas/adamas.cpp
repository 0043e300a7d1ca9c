#include "loglinear/adamas.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/cpu_features.hpp"
#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"
#include "ops/adamas/cpu.hpp"

namespace loglinear {
namespace {

using adamas::kBlock;
using adamas::kTile;

constexpr std::int64_t kMaxWidth = 8192, kLimit = 32768;  // of K; of a distance, 3 K at most

bool power_of_two(std::int64_t n) { return n > 0 && std::has_single_bit(static_cast<std::uint64_t>(n)); }

void check(const char* where, const AdamasShape& shape) {
  const auto& [H, G, K, V, scale, budget, thresholds] = shape;
  if (H < 1 || G < 1 || V < 1) fail(where, "heads, groups and widths must be at least 1");
  if (H % G != 0) fail(where, "{} key/value heads do not divide {} heads", G, H);
  if (!power_of_two(K) || K > kMaxWidth) fail(where, "key width is {}, need a power of two up to {}", K, kMaxWidth);
  if (!(scale >= 0 && std::isfinite(scale))) fail(where, "scale is {}, need a finite number >= 0", scale);
  if (budget < 1) fail(where, "budget is {}, need at least 1", budget);
  if (!(thresholds[0] <= thresholds[1] && thresholds[1] <= thresholds[2])) fail(where, "thresholds must ascend");
  check_sizes(where, {H, std::max(K, V), kBlock});
}

void check_codes(const char* where, const AdamasShape& shape, const AdamasCodes& codes) {
  if (codes.kv_heads() != shape.kv_heads || codes.key_width() != shape.key_width ||
      codes.thresholds() != shape.thresholds)
    fail(where, "the codes were made for another shape");
}

// Columns of a block.
std::int64_t columns_of(std::int64_t K) { return (K + 3) / 4; }

// What reads so few bytes is done before other threads have woken up.
int threads_for(std::int64_t bytes, int threads) { return bytes < (std::int64_t{1} << 17) ? 1 : threads; }

// What compare takes of a query: a byte for each column.
template <class T>
void encode_query(const AdamasShape& shape, const T* q, std::vector<std::uint8_t>& query) {
  query.resize(static_cast<std::size_t>(columns_of(shape.key_width)));
  adamas::encode(1, shape.key_width, q, shape.key_width, shape.thresholds, 0, query.data(), 1);
}

const std::uint8_t* bytes_of(std::span<const AdamasCodes::Column> columns) {
  return columns.empty() ? nullptr : columns.front().bytes.data();
}

// out = attention of one head to the chosen tokens.
template <class T>
void attend(const AdamasShape& shape, std::span<const std::int64_t> chosen, const T* q, const T* k,
            std::int64_t k_stride, const T* v, std::int64_t v_stride, std::vector<T>& weights, T* out) {
  const std::int64_t K = shape.key_width, V = shape.value_width, count = static_cast<std::int64_t>(chosen.size());
  const T scale = static_cast<T>(shape.scale > 0 ? shape.scale : 1 / std::sqrt(static_cast<double>(K)));
  weights.resize(chosen.size());
  for (std::int64_t i = 0; i < count; ++i) weights[i] = scale * vec::dot(K, q, k + chosen[i] * k_stride);
  const T sum = vec::exp_sum(count, weights.data(), vec::max(count, weights.data()), weights.data());
  std::fill_n(out, V, T(0));
  for (std::int64_t i = 0; i < count; ++i) vec::add_scaled(V, weights[i], v + chosen[i] * v_stride, out);
  vec::scale(V, T(1) / sum, out, out);
}

}  // namespace

template <class T>
void hadamard(std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x, std::int64_t x_stride, T* y,
              std::int64_t y_stride, int threads) {
  const TimedOperator timed("hadamard");
  constexpr const char* where = "hadamard";
  check_sizes(where, {rows, heads, width, kTile});
  if (!power_of_two(width)) fail(where, "width is {}, need a power of two", width);
  check_rows(where, "x", rows, heads * width, x, x_stride);
  check_rows(where, "y", rows, heads * width, y, y_stride);
  apply_instruction_set_from_environment();
  parallel_for((rows + kTile - 1) / kTile * heads, threads, [&](std::int64_t i) {
    const std::int64_t first = i / heads * kTile, h = i % heads;
    adamas::transform(std::min(kTile, rows - first), width, x + first * x_stride + h * width, x_stride,
                      y + first * y_stride + h * width, y_stride);
  });
}

AdamasCodes::AdamasCodes(const AdamasShape& shape) : key_width_(shape.key_width), thresholds_(shape.thresholds) {
  check("AdamasCodes", shape);
  groups_.resize(static_cast<std::size_t>(shape.kv_heads));
}

template <class T>
void AdamasCodes::append(std::int64_t tokens, const T* k, std::int64_t k_stride, int threads) {
  const TimedOperator timed("adamas");
  constexpr const char* where = "AdamasCodes.append";
  const std::int64_t G = kv_heads(), K = key_width_, columns = columns_of(K);
  check_sizes(where, {tokens, G, K});
  check_rows(where, "k", tokens, G * K, k, k_stride);
  if (tokens > std::numeric_limits<std::int64_t>::max() / 16 / (G * K) - tokens_ - kBlock)
    fail(where, "sizes overflow");
  if (tokens == 0) return;
  apply_instruction_set_from_environment();
  const std::int64_t end = tokens_ + tokens, blocks = (end + kBlock - 1) / kBlock;
  for (std::vector<Column>& group : groups_) group.resize(static_cast<std::size_t>(blocks * columns));
  const std::int64_t first_tile = tokens_ / kTile, tiles = (end + kTile - 1) / kTile - first_tile;
  parallel_for(tiles * G, threads, [&](std::int64_t i) {
    const std::int64_t g = i % G, tile = first_tile + i / G;
    const std::int64_t from = std::max(tokens_, tile * kTile), to = std::min(end, (tile + 1) * kTile);
    adamas::encode(to - from, K, k + (from - tokens_) * k_stride + g * K, k_stride, thresholds_, from % kBlock,
                   groups_[static_cast<std::size_t>(g)][from / kBlock * columns].bytes.data(), kBlock);
  });
  tokens_ = end;
}

std::size_t AdamasCodes::bytes() const {
  std::size_t count = 0;
  for (const std::vector<Column>& group : groups_) count += group.size() * sizeof(Column);
  return count;
}

int AdamasCodes::code(std::int64_t token, std::int64_t group, std::int64_t dimension) const {
  const Column& column = columns(group)[token / kBlock * columns_of(key_width_) + dimension / 4];
  return column.bytes[static_cast<std::size_t>(token % kBlock)] >> dimension % 4 * 2 & 3;
}

template <class T>
void adamas_distances(const AdamasShape& shape, const AdamasCodes& codes, const T* q, std::uint16_t* distances,
                      std::int64_t stride, int threads) {
  const TimedOperator timed("adamas");
  constexpr const char* where = "adamas.distances";
  check(where, shape);
  check_codes(where, shape, codes);
  const std::int64_t H = shape.heads, K = shape.key_width, columns = columns_of(K), T_ = codes.tokens();
  if (stride % kBlock != 0) fail(where, "distances: row stride {} is no multiple of {}", stride, kBlock);
  check_rows(where, "distances", H, T_, distances, stride);
  check_array(where, "q", H * K, q);
  if (T_ == 0) return;
  apply_instruction_set_from_environment();
  constexpr std::int64_t kBlocks = 128;  // of an item
  const std::int64_t blocks = (T_ + kBlock - 1) / kBlock, parts = (blocks + kBlocks - 1) / kBlocks;
  parallel_for(H * parts, threads_for(H * T_ * columns, threads), [&](std::int64_t i) {
    const std::int64_t h = i / parts, first = i % parts * kBlocks;
    std::vector<std::uint8_t> query;
    encode_query(shape, q + h * K, query);
    adamas::compare(std::min(kBlocks, blocks - first), columns,
                    bytes_of(codes.columns(h / (H / shape.kv_heads))) + first * columns * kBlock, query.data(),
                    distances + h * stride + first * kBlock);
  });
}

void adamas_select(std::int64_t tokens, const std::uint16_t* distances, std::int64_t budget, std::int64_t* chosen) {
  constexpr const char* where = "adamas.select";
  if (tokens < 0) fail(where, "tokens is {}, need at least 0", tokens);
  if (budget < 1) fail(where, "budget is {}, need at least 1", budget);
  if (tokens == 0) return;
  check_array(where, "chosen", tokens, chosen);
  if (budget >= tokens) return std::iota(chosen, chosen + tokens, std::int64_t{0});
  check_array(where, "distances", tokens, distances);
  apply_instruction_set_from_environment();
  // The newest has its place. The smallest limit up to which there are enough of the others, by halving the range:
  const std::int64_t others = tokens - 1, wanted = budget - 1;
  if (wanted > 0) {
    std::uint16_t low, high;
    adamas::range_of(others, distances, &low, &high);
    if (high >= kLimit) fail(where, "a distance is {}, need less than {}", high, kLimit);
    std::int64_t up_to_high = others;
    while (low < high) {
      const std::uint16_t middle = static_cast<std::uint16_t>((low + high) / 2);
      const std::int64_t count = adamas::count_up_to(others, distances, middle);
      if (count >= wanted)
        high = middle, up_to_high = count;
      else
        low = static_cast<std::uint16_t>(middle + 1);
    }
    chosen = adamas::collect(others, distances, high, up_to_high - wanted, chosen);
  }
  *chosen = others;
}

template <class T>
void adamas_step(const AdamasShape& shape, std::span<const AdamasCache<T>> caches, const T* q, std::int64_t q_stride,
                 std::int64_t k_stride, std::int64_t v_stride, T* out, std::int64_t out_stride, int threads) {
  const TimedOperator timed("adamas");
  constexpr const char* where = "adamas.step";
  check(where, shape);
  const std::int64_t B = static_cast<std::int64_t>(caches.size()), H = shape.heads, G = shape.kv_heads;
  const std::int64_t K = shape.key_width, V = shape.value_width;
  check_rows(where, "q", B, H * K, q, q_stride);
  check_rows(where, "out", B, H * V, out, out_stride);
  for (const AdamasCache<T>& cache : caches) {
    if (!cache.codes) fail(where, "codes is null");
    check_codes(where, shape, *cache.codes);
    if (cache.codes->tokens() == 0) fail(where, "a cache has no tokens");
    check_rows(where, "k", cache.codes->tokens(), G * K, cache.k, k_stride);
    check_rows(where, "v", cache.codes->tokens(), G * V, cache.v, v_stride);
  }
  apply_instruction_set_from_environment();
  std::int64_t bytes = 0;
  for (const AdamasCache<T>& cache : caches) {
    const std::int64_t tokens = cache.codes->tokens(), chosen = std::min(shape.budget, tokens);
    bytes += H * (tokens * columns_of(K) + chosen * (K + V) * static_cast<std::int64_t>(sizeof(T)));
  }
  parallel_for(B * H, threads_for(bytes, threads), [&](std::int64_t i) {
    const std::int64_t b = i / H, h = i % H, g = h / (H / G);
    const AdamasCache<T>& cache = caches[static_cast<std::size_t>(b)];
    const std::int64_t tokens = cache.codes->tokens(), blocks = (tokens + kBlock - 1) / kBlock;
    // Kept by the thread: a step is too short to ask for memory.
    static thread_local std::vector<std::uint8_t> query;
    static thread_local std::vector<std::uint16_t> distances;
    static thread_local std::vector<std::int64_t> chosen;
    static thread_local std::vector<T> weights;
    const T* const head = q + b * q_stride + h * K;
    chosen.resize(static_cast<std::size_t>(std::min(shape.budget, tokens)));
    if (shape.budget < tokens) {
      distances.resize(static_cast<std::size_t>(blocks * kBlock));
      encode_query(shape, head, query);
      adamas::compare(blocks, columns_of(K), bytes_of(cache.codes->columns(g)), query.data(), distances.data());
    }
    adamas_select(tokens, distances.data(), shape.budget, chosen.data());
    attend<T>(shape, chosen, head, cache.k + g * K, k_stride, cache.v + g * V, v_stride, weights,
              out + b * out_stride + h * V);
  });
}

#define LOGLINEAR_ADAMAS(T)                                                                                            \
  template void hadamard(std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, T*, std::int64_t, int);     \
  template void AdamasCodes::append(std::int64_t, const T*, std::int64_t, int);                                        \
  template void adamas_distances(const AdamasShape&, const AdamasCodes&, const T*, std::uint16_t*, std::int64_t, int); \
  template void adamas_step(const AdamasShape&, std::span<const AdamasCache<T>>, const T*, std::int64_t, std::int64_t, \
                            std::int64_t, T*, std::int64_t, int);
LOGLINEAR_ADAMAS(float)
LOGLINEAR_ADAMAS(double)
#undef LOGLINEAR_ADAMAS

}  // namespace loglinear
