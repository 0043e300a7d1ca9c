// The kernel of softmax attention: docs/algorithm.md, section 9.
//
// Scores of a tile are kept transposed, a row for each key and a column for each query: then the softmax of a query
// goes down a column, in one lane, and no sum depends on which queries share the tile. Every product is one of the
// small matrix kernel, whose entries are one sum in order each.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/attention.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/attention-inl.h"
#include "base/attention.hpp"
#include "base/cpu_features.hpp"
#include "base/exp-inl.h"
#include "base/matrix-inl.h"
#include "base/padding.hpp"
#include "base/vector_math.hpp"

HWY_BEFORE_NAMESPACE();
namespace loglinear::attention::HWY_NAMESPACE {

using loglinear::HWY_NAMESPACE::kScorePerNatural;
using loglinear::HWY_NAMESPACE::score_exp;

template <class T>
inline constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Panels of a forward whose queries see no more keys than kNarrowReach are kNarrowPanel wide.
constexpr std::int64_t kNarrowReach = 512, kNarrowPanel = 16;

// Which keys of a tile the columns of a panel see. Column c sees [from[c], to[c]).
template <class T>
struct Visible {
  std::int64_t begin = 0, end = 0;  // all that any sees
  bool masked = false;              // some see less
  alignas(64) T from[kQueryPanel], to[kQueryPanel];

  // position(c) does not fall.
  template <class Position>
  Visible(const Strip<T>& strip, std::int64_t columns, const Position& position, std::int64_t first,
          std::int64_t count) {
    const Range low = strip.keys(position(0), first, count), high = strip.keys(position(columns - 1), first, count);
    begin = low.begin, end = high.end;
    masked = low.end != end || high.begin != begin;
    if (!masked) return;
    for (std::int64_t c = 0; c < kQueryPanel; ++c) {
      const Range seen = strip.keys(position(std::min(c, columns - 1)), first, count);
      from[c] = static_cast<T>(seen.begin), to[c] = static_cast<T>(seen.end);
    }
  }
  bool empty() const { return begin >= end; }
  Range keys(std::int64_t c) const {
    if (!masked) return {begin, end};
    return {static_cast<std::int64_t>(from[c]), static_cast<std::int64_t>(to[c])};
  }
  // The columns that see key j.
  Range columns(std::int64_t j, std::int64_t count) const {
    Range r{0, count};
    while (!r.empty() && !(keys(r.begin).begin <= j && j < keys(r.begin).end)) ++r.begin;
    while (!r.empty() && !(keys(r.end - 1).begin <= j && j < keys(r.end - 1).end)) --r.end;
    return r;
  }
};

// Scores (keys, kQueryPanel) become exp(score - peak); peak and weight of each column move on, fade is what earlier
// sums have to be multiplied with. Returns whether any fade is not 1.
template <class T>
HWY_NOINLINE bool soften(std::int64_t columns, const Visible<T>& visible, T* HWY_RESTRICT scores, T* HWY_RESTRICT peak,
                         T* HWY_RESTRICT weight, T* HWY_RESTRICT fade) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  const auto low = hn::Set(d, -kInfinity<T>), one = hn::Set(d, T(1));
  bool moved = false;
  for (std::int64_t c = 0; c < columns; c += N) {
    auto most = low;
    if (visible.masked) {
      const auto from = hn::Load(d, visible.from + c), to = hn::Load(d, visible.to + c);
      auto j = hn::Set(d, static_cast<T>(visible.begin));
      for (std::int64_t s = visible.begin; s < visible.end; ++s, j = hn::Add(j, one)) {
        T* at = scores + s * kQueryPanel + c;
        const auto x = hn::IfThenElse(hn::And(hn::Ge(j, from), hn::Lt(j, to)), hn::LoadU(d, at), low);
        hn::StoreU(x, d, at);
        most = hn::Max(most, x);
      }
    } else {
      for (std::int64_t s = visible.begin; s < visible.end; ++s)
        most = hn::Max(most, hn::LoadU(d, scores + s * kQueryPanel + c));
    }
    const auto before = hn::LoadU(d, peak + c), after = hn::Max(before, most);
    // A column that has not seen a key yet: nothing minus infinity.
    const auto shift = hn::IfThenZeroElse(hn::Eq(after, low), after);
    auto sum = hn::Zero(d);
    for (std::int64_t s = visible.begin; s < visible.end; ++s) {
      T* at = scores + s * kQueryPanel + c;
      const auto x = score_exp(d, hn::Sub(hn::LoadU(d, at), shift));
      hn::StoreU(x, d, at);
      sum = hn::Add(sum, x);
    }
    const auto factor = score_exp(d, hn::Sub(before, shift));
    hn::StoreU(after, d, peak + c);
    hn::StoreU(hn::MulAdd(hn::LoadU(d, weight + c), factor, sum), d, weight + c);
    hn::StoreU(factor, d, fade + c);
    moved |= !hn::AllTrue(d, hn::Eq(factor, one));
  }
  return moved;
}

// probabilities (keys, kQueryPanel), scores before, = exp(score - log_sum); dscores *= probabilities after `mean` is
// taken from it; zeros where a column does not see the key.
template <class T>
HWY_NOINLINE void adjoint_of_softmax(std::int64_t columns, const Visible<T>& visible, T* HWY_RESTRICT probabilities,
                                     T* HWY_RESTRICT dscores, const T* HWY_RESTRICT log_sums,
                                     const T* HWY_RESTRICT means) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  const auto one = hn::Set(d, T(1));
  for (std::int64_t c = 0; c < columns; c += N) {
    const auto shift = hn::LoadU(d, log_sums + c), mean = hn::LoadU(d, means + c);
    const auto row = [&](std::int64_t s, auto&& mask) HWY_ATTR {
      T *p_at = probabilities + s * kQueryPanel + c, *ds_at = dscores + s * kQueryPanel + c;
      const auto p = mask(score_exp(d, hn::Sub(hn::LoadU(d, p_at), shift)));
      hn::StoreU(p, d, p_at);
      hn::StoreU(mask(hn::Mul(p, hn::Sub(hn::LoadU(d, ds_at), mean))), d, ds_at);
    };
    if (!visible.masked) {
      for (std::int64_t s = visible.begin; s < visible.end; ++s) row(s, [](auto x) HWY_ATTR { return x; });
      continue;
    }
    const auto from = hn::Load(d, visible.from + c), to = hn::Load(d, visible.to + c);
    auto j = hn::Set(d, static_cast<T>(visible.begin));
    for (std::int64_t s = visible.begin; s < visible.end; ++s, j = hn::Add(j, one)) {
      const auto sees = hn::And(hn::Ge(j, from), hn::Lt(j, to));
      row(s, [&](auto x) HWY_ATTR { return hn::IfThenElseZero(sees, x); });
    }
  }
}

// The first key tile that a query sees at all; tiles are counted from the first key of the strip, so that a query meets
// the same sums in the same order however its sequence is cut into calls.
template <class T>
std::int64_t first_tile(const Strip<T>& strip, std::int64_t position) {
  return strip.keys(position, 0, strip.k_count).begin / kKeyTile * kKeyTile;
}

// What the columns first .. first + count - 1 of a call have summed so far.
template <class T>
struct Sums {
  Sums(Scratch<T>& scratch, std::int64_t heads_, std::int64_t V_, std::int64_t first_, std::int64_t count_)
      : heads(heads_), V(V_), ld(row_stride(V_)), first(first_), count(count_) {
    const std::int64_t n = whole(count);
    values = scratch.take(n * ld);
    peak = scratch.take(n), weight = scratch.take(n), fade = scratch.take(n);
  }
  // Columns of whole panels.
  static std::int64_t whole(std::int64_t count) { return (count + kQueryPanel - 1) / kQueryPanel * kQueryPanel; }
  std::int64_t query(std::int64_t c) const { return (first + c) / heads; }
  std::int64_t head(std::int64_t c) const { return (first + c) % heads; }

  void start(const Online<T>& online) {
    const std::int64_t n = whole(count);
    std::fill_n(peak, n, -kInfinity<T>);
    std::fill_n(weight, n, T(0));
    std::memset(values, 0, static_cast<std::size_t>(n * ld) * sizeof(T));
    if (!online.resume) return;
    for (std::int64_t c = 0; c < count; ++c) {
      const std::int64_t stat = query(c) * online.stat_stride + head(c);
      peak[c] = online.peak[stat], weight[c] = online.weight[stat];
      if (weight[c] == 0) continue;  // nothing seen: out was not written
      std::memcpy(values + c * ld, online.out + query(c) * online.out_stride + head(c) * V,
                  static_cast<std::size_t>(V) * sizeof(T));
    }
  }
  // What columns [c0, c0 + width) had shrinks to their new peaks.
  void shrink(std::int64_t c0, std::int64_t width) {
    for (std::int64_t c = c0; c < c0 + width; ++c)
      if (fade[c] != T(1)) scale_row(V, fade[c], values + c * ld, values + c * ld);
  }
  void finish(const Online<T>& online) const {
    for (std::int64_t c = 0; c < count; ++c) {
      const std::int64_t stat = query(c) * online.stat_stride + head(c);
      scale_row(V, online.finish ? T(1) / weight[c] : T(1), values + c * ld,
                online.out + query(c) * online.out_stride + head(c) * V);
      if (!online.finish) online.peak[stat] = peak[c], online.weight[stat] = weight[c];
      if (online.finish && online.log_sums)
        online.log_sums[stat] = peak[c] * static_cast<T>(1 / kScorePerNatural<T>) + std::log(weight[c]);
    }
  }

  std::int64_t heads, V, ld, first, count;
  T *values, *peak, *weight, *fade;  // values (columns, V), relative to exp(peak)
};

template <class T>
void forward_columns(const Strip<T>& strip, const Online<T>& online, std::int64_t first_column,
                     std::int64_t last_column) {
  const std::int64_t R = strip.heads, K = strip.K, V = strip.V, columns = last_column - first_column;
  const std::int64_t ldk = row_stride(K), ldv = row_stride(V);
  const std::int64_t whole = Sums<T>::whole(columns);
  Scratch<T> scratch(whole * (padded(K) + ldv + 3) + kKeyTile * (kQueryPanel + ldk + ldv));
  Sums<T> sums(scratch, R, V, first_column, columns);
  T* queries = scratch.take(whole * padded(K));  // a panel: (K, kQueryPanel), scaled
  T* scores = scratch.take(kKeyTile * kQueryPanel);
  T *keys = scratch.take(kKeyTile * ldk), *values = scratch.take(kKeyTile * ldv);

  const T factor = static_cast<T>(strip.scale * kScorePerNatural<T>);
  static_assert(kQueryPanel <= kKeyTile);
  for (std::int64_t c0 = 0; c0 < columns; c0 += kQueryPanel) {
    const std::int64_t width = std::min(kQueryPanel, columns - c0);
    for (std::int64_t c = 0; c < width; ++c)
      scale_row(K, factor, strip.q + sums.query(c0 + c) * strip.q_stride + sums.head(c0 + c) * K, keys + c * ldk);
    transpose(width, K, keys, ldk, queries + c0 * padded(K), kQueryPanel);
  }
  sums.start(online);

  // Narrow panels lose less at the edges of what they see, wide ones less between.
  const std::int64_t reach = std::min(strip.k_count, strip.lags.high - strip.lags.low + 1);
  const std::int64_t panel = reach <= kNarrowReach ? kNarrowPanel : kQueryPanel;
  static_assert(kQueryPanel % kNarrowPanel == 0);
  const std::int64_t oldest = strip.offset + sums.query(0), newest = strip.offset + sums.query(columns - 1);
  const std::int64_t end = strip.keys(newest, 0, strip.k_count).end;
  for (std::int64_t first = first_tile(strip, oldest); first < end; first += kKeyTile) {
    const std::int64_t count = std::min(kKeyTile, strip.k_count - first);
    copy_rows(count, K, strip.k + first * strip.k_stride, strip.k_stride, keys, ldk);
    copy_rows(count, V, strip.v + first * strip.v_stride, strip.v_stride, values, ldv);
    int finite = -1;  // of the values; not known yet
    for (std::int64_t c0 = 0; c0 < columns; c0 += panel) {
      const std::int64_t width = std::min(panel, columns - c0);
      const Visible<T> visible(
          strip, width, [&](std::int64_t c) { return strip.offset + sums.query(c0 + c); }, first, count);
      if (visible.empty()) continue;
      const std::int64_t from = visible.begin, seen = visible.end - visible.begin;
      T* const to = sums.values + c0 * ldv;
      product(seen, width, K, keys + from * ldk, ldk, 1,
              queries + c0 / kQueryPanel * kQueryPanel * padded(K) + c0 % kQueryPanel, kQueryPanel,
              scores + from * kQueryPanel, kQueryPanel);
      if (soften(width, visible, scores, sums.peak + c0, sums.weight + c0, sums.fade + c0)) sums.shrink(c0, width);
      if (visible.masked && finite < 0) finite = all_finite(count, V, values, ldv);
      if (visible.masked && !finite)
        add_product_within(width, V, scores, 1, kQueryPanel, values, ldv, to, ldv,
                           [&](std::int64_t c) { return visible.keys(c); });
      else
        product<T>(width, V, seen, scores + from * kQueryPanel, 1, kQueryPanel, values + from * ldv, ldv, to, ldv,
                   {.beta = T(1)});
    }
  }
  sums.finish(online);
}

// ---- one query ------------------------------------------------------------------------------------------------------
//
// Bound by the reading of keys and values: all groups of a call go through a tile together, so that memory is read in
// whole rows. Scores are sums in the order of the matrix kernel,
// with lanes for keys.

// Vectors of at most 256 bits, transposed in registers.
template <class T>
using SquareLanes = hn::CappedTag<T, 32 / sizeof(T)>;

template <class T>
inline constexpr int kSquare = static_cast<int>(hn::MaxLanes(SquareLanes<T>()));

template <class T, class Vec>
HWY_INLINE void transpose_square(Vec (&r)[kSquare<T>]) {
#if HWY_TARGET != HWY_SCALAR
  constexpr int N = kSquare<T>;
  if constexpr (N > 1) {
    const SquareLanes<T> d;
    Vec t[N];
    // Element pairs of neighbouring rows, within blocks of 128 bits.
#pragma GCC unroll 8
    for (int i = 0; i < N; i += 2) {
      t[i] = hn::InterleaveLower(d, r[i], r[i + 1]);
      t[i + 1] = hn::InterleaveUpper(d, r[i], r[i + 1]);
    }
    if constexpr (sizeof(T) == 4) {
      const hn::Repartition<double, SquareLanes<T>> pairs;
      Vec u[N];
#pragma GCC unroll 8
      for (int i = 0; i < N; i += 4)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const auto a = hn::BitCast(pairs, t[i + half]), b = hn::BitCast(pairs, t[i + 2 + half]);
          u[i + 2 * half] = hn::BitCast(d, hn::InterleaveLower(pairs, a, b));
          u[i + 2 * half + 1] = hn::BitCast(d, hn::InterleaveUpper(pairs, a, b));
        }
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) t[i] = u[i];
    }
    constexpr int kHalf = 16 / sizeof(T);  // elements of a block
    if constexpr (N == 2 * kHalf) {
#pragma GCC unroll 8
      for (int i = 0; i < kHalf; ++i) {
        r[i] = hn::ConcatLowerLower(d, t[i + kHalf], t[i]);
        r[i + kHalf] = hn::ConcatUpperUpper(d, t[i + kHalf], t[i]);
      }
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) r[i] = t[i];
    }
  }
#else
  (void)r;
#endif
}

// scores[j * kQueryPanel + m] = query m . key j for M queries and all j < count, rows ld apart and zero up to a whole
// vector.
template <int M, class T>
HWY_NOINLINE void dots(std::int64_t count, std::int64_t K, const T* HWY_RESTRICT queries, const T* HWY_RESTRICT keys,
                       std::int64_t ld, T* HWY_RESTRICT scores) {
  const SquareLanes<T> d;
  constexpr int N = kSquare<T>, kBlocks = M == 1 ? 4 : M == 2 ? 2 : 1;  // enough sums at once to hide their latency
  static_assert(32 % (kBlocks * N) == 0);
  using Vec = hn::Vec<SquareLanes<T>>;
  for (std::int64_t j = 0; j < count; j += kBlocks * N) {
    Vec sum[kBlocks][M];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sum[b][m] = hn::Zero(d);
    for (std::int64_t k = 0; k < K; k += N)
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) {
        Vec r[N];
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) r[i] = hn::LoadU(d, keys + (j + b * N + i) * ld + k);
        transpose_square<T>(r);
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
          for (int m = 0; m < M; ++m) sum[b][m] = hn::MulAdd(hn::Set(d, queries[m * ld + k + i]), r[i], sum[b][m]);
      }
    HWY_ALIGN T lanes[N];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        hn::Store(sum[b][m], d, lanes);
        const std::int64_t at = j + b * N;
        for (std::int64_t i = 0; i < std::min<std::int64_t>(N, count - at); ++i)
          scores[(at + i) * kQueryPanel + m] = lanes[i];
      }
  }
}

// to (groups * R, ld) += p * rows (Rows, groups * V), where p[j * kQueryPanel + c] is the weight of row j for column c.
template <int Rows, class T>
HWY_INLINE void add_weighted_rows(std::int64_t groups, std::int64_t R, std::int64_t V, const T* HWY_RESTRICT p,
                                  const T* HWY_RESTRICT rows, std::int64_t stride, T* HWY_RESTRICT to,
                                  std::int64_t ld) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d)), whole = V / N * N;
  HWY_ALIGN T tail[Rows * kPad] = {};
  for (std::int64_t c = 0; c < groups * R; ++c) {
    const T* const from = rows + c / R * V;
    T* const sums = to + c * ld;
    hn::Vec<Lanes<T>> weight[Rows];
#pragma GCC unroll 4
    for (int j = 0; j < Rows; ++j) weight[j] = hn::Set(d, p[j * kQueryPanel + c]);
    for (std::int64_t i = 0; i < whole; i += N) {
      auto sum = hn::LoadU(d, sums + i);
#pragma GCC unroll 4
      for (int j = 0; j < Rows; ++j) sum = hn::MulAdd(weight[j], hn::LoadU(d, from + j * stride + i), sum);
      hn::StoreU(sum, d, sums + i);
    }
    if (whole == V) continue;
    auto sum = hn::LoadU(d, sums + whole);
#pragma GCC unroll 4
    for (int j = 0; j < Rows; ++j) {
      std::memcpy(tail + j * kPad, from + j * stride + whole, static_cast<std::size_t>(V - whole) * sizeof(T));
      sum = hn::MulAdd(weight[j], hn::LoadU(d, tail + j * kPad), sum);
    }
    hn::StoreU(sum, d, sums + whole);
  }
}

// The only query of `groups` groups, whose strips follow `strip` as their columns do: at most kQueryPanel heads.
template <class T>
void forward_one_query(const Strip<T>& strip, const Online<T>& online, std::int64_t groups) {
  constexpr std::int64_t kPiece = 32;  // rows of keys that are copied at once
  static_assert(kKeyTile % kPiece == 0);
  const std::int64_t R = strip.heads, K = strip.K, V = strip.V, columns = groups * R;
  const std::int64_t ldk = row_stride(K), ldv = row_stride(V);
  Scratch<T> scratch(kQueryPanel * (ldk + 2 * ldv + 3) + kKeyTile * kQueryPanel + groups * kPiece * ldk);
  Sums<T> sums(scratch, columns, V, 0, columns);
  T *queries = scratch.take(kQueryPanel * ldk), *of_tile = scratch.take(kQueryPanel * ldv);
  T *scores = scratch.take(kKeyTile * kQueryPanel), *keys = scratch.take(groups * kPiece * ldk);
  std::memset(queries, 0, static_cast<std::size_t>(kQueryPanel * ldk) * sizeof(T));
  std::memset(scores, 0, static_cast<std::size_t>(kKeyTile * kQueryPanel) * sizeof(T));  // columns of no head
  std::memset(keys, 0, static_cast<std::size_t>(groups * kPiece * ldk) * sizeof(T));     // rows' padding
  for (std::int64_t c = 0; c < columns; ++c)
    scale_row(K, static_cast<T>(strip.scale * kScorePerNatural<T>), strip.q + c * K, queries + c * ldk);
  sums.start(online);

  const Range all = strip.keys(strip.offset, 0, strip.k_count);
  for (std::int64_t first = first_tile(strip, strip.offset); first < all.end; first += kKeyTile) {
    const Visible<T> visible(
        strip, 1, [&](std::int64_t) { return strip.offset; }, first, std::min(kKeyTile, strip.k_count - first));
    const std::int64_t from = first + visible.begin, seen = visible.end - visible.begin;
    for (std::int64_t at = 0; at < seen; at += kPiece) {
      const std::int64_t rows = std::min(kPiece, seen - at);
      const T* const source = strip.k + (from + at) * strip.k_stride;
      for (std::int64_t j = 0; j < rows; ++j)
        for (std::int64_t g = 0; g < groups; ++g)
          std::memcpy(keys + (g * kPiece + j) * ldk, source + j * strip.k_stride + g * K,
                      static_cast<std::size_t>(K) * sizeof(T));
      for (std::int64_t g = 0; g < groups; ++g) {
        const T* const rows_of_group = keys + g * kPiece * ldk;
        for (std::int64_t h = 0; h < R;) {
          const T* const q = queries + (g * R + h) * ldk;
          T* const to = scores + (visible.begin + at) * kQueryPanel + g * R + h;
          switch (R - h) {
            case 1:
              dots<1>(rows, K, q, rows_of_group, ldk, to), h += 1;
              break;
            case 2:
              dots<2>(rows, K, q, rows_of_group, ldk, to), h += 2;
              break;
            case 3:
              dots<3>(rows, K, q, rows_of_group, ldk, to), h += 3;
              break;
            default:
              dots<4>(rows, K, q, rows_of_group, ldk, to), h += 4;
          }
        }
      }
    }
    if (soften(columns, visible, scores, sums.peak, sums.weight, sums.fade)) sums.shrink(0, columns);
    // The tile's sum on its own, as the matrix kernel has it.
    std::memset(of_tile, 0, static_cast<std::size_t>(columns * ldv) * sizeof(T));
    const T* const p = scores + visible.begin * kQueryPanel;
    const T* const values = strip.v + from * strip.v_stride;
    std::int64_t j = 0;
    for (; j + 4 <= seen; j += 4)
      add_weighted_rows<4>(groups, R, V, p + j * kQueryPanel, values + j * strip.v_stride, strip.v_stride, of_tile,
                           ldv);
    for (; j < seen; ++j)
      add_weighted_rows<1>(groups, R, V, p + j * kQueryPanel, values + j * strip.v_stride, strip.v_stride, of_tile,
                           ldv);
    for (std::int64_t i = 0; i < columns * ldv; ++i) sums.values[i] += of_tile[i];
  }
  sums.finish(online);
}

template <class T>
void backward_range(const Strip<T>& strip, const Adjoint<T>& adjoint, Range queries, Range keys) {
  const std::int64_t R = strip.heads, K = strip.K, V = strip.V, count = queries.end - queries.begin;
  const std::int64_t ldk = row_stride(K), ldv = row_stride(V);
  const std::int64_t block = std::min(kKeyBlock, (keys.end - keys.begin + kKeyTile - 1) / kKeyTile * kKeyTile);
  Scratch<T> scratch(2 * block * (ldk + ldv) +
                     kQueryPanel * (3 * ldk + 2 * ldv + padded(K) + padded(V) + 2 * kKeyTile + 2) + count * R);
  const auto take = [&](std::int64_t n) { return scratch.take(n); };
  T *key_rows = take(block * ldk), *value_rows = take(block * ldv);
  T *dkeys = take(block * ldk), *dvalues = take(block * ldv);
  T *query_rows = take(kQueryPanel * ldk), *dout_rows = take(kQueryPanel * ldv), *dqueries = take(kQueryPanel * ldk);
  T* scaled = take(kQueryPanel * std::max(ldk, ldv));
  T *query_panel = take(kQueryPanel * padded(K)), *dout_panel = take(kQueryPanel * padded(V));  // transposed, scaled
  T *probabilities = take(kKeyTile * kQueryPanel), *dscores = take(kKeyTile * kQueryPanel);
  T *log_sums = take(kQueryPanel), *means = take(kQueryPanel), *all_means = take(count * R);

  const T scale = static_cast<T>(strip.scale), factor = static_cast<T>(strip.scale * kScorePerNatural<T>);
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t h = 0; h < R; ++h) {
      const std::int64_t n = queries.begin + i;
      all_means[i * R + h] = scale * vec::dot(V, adjoint.dout + n * adjoint.dout_stride + h * V,
                                              adjoint.out + n * adjoint.out_stride + h * V);
      if (adjoint.dq && !adjoint.add) std::fill_n(adjoint.dq + n * adjoint.dq_stride + h * K, K, T(0));
    }

  for (std::int64_t b0 = keys.begin; b0 < keys.end; b0 += block) {
    const std::int64_t rows = std::min(block, keys.end - b0);
    copy_rows(rows, K, strip.k + b0 * strip.k_stride, strip.k_stride, key_rows, ldk);
    copy_rows(rows, V, strip.v + b0 * strip.v_stride, strip.v_stride, value_rows, ldv);
    if (adjoint.dk) {
      std::memset(dkeys, 0, static_cast<std::size_t>(rows * ldk) * sizeof(T));
      std::memset(dvalues, 0, static_cast<std::size_t>(rows * ldv) * sizeof(T));
    }
    int keys_finite[kKeyBlock / kKeyTile];
    std::fill_n(keys_finite, kKeyBlock / kKeyTile, -1);
    const Range seeing = strip.queries(b0, b0 + rows - 1);
    const std::int64_t q0 = std::max(queries.begin, seeing.begin / kQueryPanel * kQueryPanel);
    for (std::int64_t h = 0; h < R; ++h)
      for (std::int64_t first = q0; first < std::min(queries.end, seeing.end); first += kQueryPanel) {
        const std::int64_t width = std::min(kQueryPanel, queries.end - first);
        const T* const q = strip.q + first * strip.q_stride + h * K;
        const T* const dout = adjoint.dout + first * adjoint.dout_stride + h * V;
        T* const dq = adjoint.dq ? adjoint.dq + first * adjoint.dq_stride + h * K : nullptr;
        copy_rows(width, K, q, strip.q_stride, query_rows, ldk);
        copy_rows(width, V, dout, adjoint.dout_stride, dout_rows, ldv);
        for (std::int64_t c = 0; c < width; ++c) scale_row(K, factor, query_rows + c * ldk, scaled + c * ldk);
        transpose(width, K, scaled, ldk, query_panel, kQueryPanel);
        for (std::int64_t c = 0; c < width; ++c) scale_row(V, scale, dout_rows + c * ldv, scaled + c * ldv);
        transpose(width, V, scaled, ldv, dout_panel, kQueryPanel);
        for (std::int64_t c = 0; c < kQueryPanel; ++c) {
          const std::int64_t i = first + std::min(c, width - 1);
          log_sums[c] = adjoint.log_sums[i * adjoint.stat_stride + h] * static_cast<T>(kScorePerNatural<T>);
          means[c] = all_means[(i - queries.begin) * R + h];
        }
        if (dq) copy_rows(width, K, dq, adjoint.dq_stride, dqueries, ldk);
        int queries_finite = -1, douts_finite = -1;

        for (std::int64_t t0 = 0; t0 < rows; t0 += kKeyTile) {
          const std::int64_t in_tile = std::min(kKeyTile, rows - t0);
          const Visible<T> visible(
              strip, width, [&](std::int64_t c) { return strip.offset + first + c; }, b0 + t0, in_tile);
          if (visible.empty()) continue;
          const std::int64_t from = visible.begin, seen = visible.end - from, at = t0 + from;
          T *const p = probabilities + from * kQueryPanel, *const ds = dscores + from * kQueryPanel;
          product(seen, width, K, key_rows + at * ldk, ldk, 1, query_panel, kQueryPanel, p, kQueryPanel);
          product(seen, width, V, value_rows + at * ldv, ldv, 1, dout_panel, kQueryPanel, ds, kQueryPanel);
          adjoint_of_softmax(width, visible, probabilities, dscores, log_sums, means);
          const bool masked = visible.masked;
          const Epilogue<T> add{.beta = T(1)};
          if (dq) {
            int& finite = keys_finite[t0 / kKeyTile];
            if (masked && finite < 0) finite = all_finite(in_tile, K, key_rows + t0 * ldk, ldk);
            if (masked && !finite)
              add_product_within(width, K, dscores, 1, kQueryPanel, key_rows + t0 * ldk, ldk, dqueries, ldk,
                                 [&](std::int64_t c) { return visible.keys(c); });
            else
              product(width, K, seen, ds, 1, kQueryPanel, key_rows + at * ldk, ldk, dqueries, ldk, add);
          }
          if (!adjoint.dk) continue;
          if (masked && queries_finite < 0) {
            queries_finite = all_finite(width, K, query_rows, ldk);
            douts_finite = all_finite(width, V, dout_rows, ldv);
          }
          const auto columns = [&](std::int64_t j) { return visible.columns(from + j, width); };
          if (masked && !douts_finite)
            add_product_within(seen, V, p, kQueryPanel, 1, dout_rows, ldv, dvalues + at * ldv, ldv, columns);
          else
            product(seen, V, width, p, kQueryPanel, 1, dout_rows, ldv, dvalues + at * ldv, ldv, add);
          if (masked && !queries_finite)
            add_product_within(seen, K, ds, kQueryPanel, 1, query_rows, ldk, dkeys + at * ldk, ldk, columns);
          else
            product(seen, K, width, ds, kQueryPanel, 1, query_rows, ldk, dkeys + at * ldk, ldk, add);
        }
        if (dq)
          for (std::int64_t c = 0; c < width; ++c)
            std::memcpy(dq + c * adjoint.dq_stride, dqueries + c * ldk, static_cast<std::size_t>(K) * sizeof(T));
      }
    if (adjoint.dk)
      for (std::int64_t r = 0; r < rows; ++r) {
        T* dk = adjoint.dk + (b0 + r) * adjoint.dk_stride;
        T* dv = adjoint.dv + (b0 + r) * adjoint.dv_stride;
        for (std::int64_t c = 0; c < K; ++c) dk[c] = (adjoint.add ? dk[c] : T(0)) + dkeys[r * ldk + c];
        for (std::int64_t c = 0; c < V; ++c) dv[c] = (adjoint.add ? dv[c] : T(0)) + dvalues[r * ldv + c];
      }
  }
}

void forward_f32(const Strip<float>& s, const Online<float>& o, std::int64_t a, std::int64_t b) {
  forward_columns(s, o, a, b);
}
void forward_f64(const Strip<double>& s, const Online<double>& o, std::int64_t a, std::int64_t b) {
  forward_columns(s, o, a, b);
}
void query_f32(const Strip<float>& s, const Online<float>& o, std::int64_t groups) { forward_one_query(s, o, groups); }
void query_f64(const Strip<double>& s, const Online<double>& o, std::int64_t groups) {
  forward_one_query(s, o, groups);
}
void backward_f32(const Strip<float>& s, const Adjoint<float>& a, Range q, Range k) { backward_range(s, a, q, k); }
void backward_f64(const Strip<double>& s, const Adjoint<double>& a, Range q, Range k) { backward_range(s, a, q, k); }
const char* instruction_set_here() { return hwy::TargetName(HWY_TARGET); }

}  // namespace loglinear::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace loglinear::attention {

HWY_EXPORT(forward_f32);
HWY_EXPORT(forward_f64);
HWY_EXPORT(query_f32);
HWY_EXPORT(query_f64);
HWY_EXPORT(backward_f32);
HWY_EXPORT(backward_f64);
HWY_EXPORT(instruction_set_here);

namespace {

void prepare() { apply_instruction_set_from_environment(); }

}  // namespace

template <>
void forward(const Strip<float>& strip, const Online<float>& online, std::int64_t first, std::int64_t last) {
  prepare();
  HWY_DYNAMIC_DISPATCH(forward_f32)(strip, online, first, last);
  trim_scratch<float>();
}

template <>
void forward(const Strip<double>& strip, const Online<double>& online, std::int64_t first, std::int64_t last) {
  prepare();
  HWY_DYNAMIC_DISPATCH(forward_f64)(strip, online, first, last);
  trim_scratch<double>();
}

template <>
void forward_query(const Strip<float>& strip, const Online<float>& online, std::int64_t groups) {
  prepare();
  HWY_DYNAMIC_DISPATCH(query_f32)(strip, online, groups);
  trim_scratch<float>();
}

template <>
void forward_query(const Strip<double>& strip, const Online<double>& online, std::int64_t groups) {
  prepare();
  HWY_DYNAMIC_DISPATCH(query_f64)(strip, online, groups);
  trim_scratch<double>();
}

template <>
void backward(const Strip<float>& strip, const Adjoint<float>& adjoint, Range queries, Range keys) {
  prepare();
  HWY_DYNAMIC_DISPATCH(backward_f32)(strip, adjoint, queries, keys);
  trim_scratch<float>();
}

template <>
void backward(const Strip<double>& strip, const Adjoint<double>& adjoint, Range queries, Range keys) {
  prepare();
  HWY_DYNAMIC_DISPATCH(backward_f64)(strip, adjoint, queries, keys);
  trim_scratch<double>();
}

const char* instruction_set() {
  prepare();
  return HWY_DYNAMIC_DISPATCH(instruction_set_here)();
}

}  // namespace loglinear::attention
#endif
