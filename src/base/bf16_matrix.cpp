// Intrinsics instead of Highway: the version that we build with has neither instruction. Compiled for every x86-64, run
// where cpu_features finds them.

#include "base/bf16_matrix.hpp"

#include "base/error.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace loglinear::bf16 {
namespace {

#define LOGLINEAR_DOT __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define LOGLINEAR_TILES \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16"), noinline))

// A tile of A is 16 rows of 32 elements, a tile of B 16 rows of 16 pairs, each pair two rows of one column of B, and a
// tile of C 16 x 16: what one instruction of AMX takes, and as good for the dot product. Operands are packed tile after
// tile.
constexpr std::int64_t kSide = 16, kDepth = 32, kTile = kSide * kDepth;

std::int64_t tiles(std::int64_t n, std::int64_t side) { return (n + side - 1) / side; }

// Rows of B that are not finite.
thread_local std::vector<std::int64_t> not_finite;

// 16 pairs of two rows of 16, each (lower, upper).
LOGLINEAR_DOT inline __m512i pairs_of(__m512 lower, __m512 upper) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(upper, lower));
}

// x less what is left of it in bfloat16. (Zero for what is not finite.)
LOGLINEAR_DOT inline __m512 rest_of(__m512 x) {
  const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16);
  const __mmask16 finite = _mm512_fpclass_ps_mask(x, 0x99) ^ 0xffff;
  return _mm512_maskz_sub_ps(finite, x, _mm512_castsi512_ps(wide));
}

// The rests of two vectors. seen: gathers the bits of all of them.
struct Rests {
  __m512 first, second;
};
LOGLINEAR_DOT inline Rests rests_of(__m512 x, __m512 y, __m512i& seen) {
  const Rests rests{rest_of(x), rest_of(y)};
  seen = _mm512_or_si512(seen, _mm512_castps_si512(_mm512_or_ps(rests.first, rests.second)));
  return rests;
}

LOGLINEAR_DOT inline bool any(__m512i x) { return _mm512_test_epi32_mask(x, x) != 0; }

LOGLINEAR_DOT inline __mmask16 first(std::int64_t n) {
  return n >= 16 ? __mmask16{0xffff} : n <= 0 ? __mmask16{0} : static_cast<__mmask16>((1u << n) - 1);
}

// to (16 rows of 16 words) = the transpose of rows of 16 words.
LOGLINEAR_DOT inline void store_transposed(const __m512i (&x)[16], std::uint16_t* to) {
  __m512i y[16], z[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // z[i + j]: column 4 q + j of rows i .. i + 3, for every quarter q
    z[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    z[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    z[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    z[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(z[j], z[j + 4], 0x88), b = _mm512_shuffle_i32x4(z[j], z[j + 4], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(z[j + 8], z[j + 12], 0x88),
                  d = _mm512_shuffle_i32x4(z[j + 8], z[j + 12], 0xdd);
    _mm512_store_si512(to + 32 * j, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_store_si512(to + 32 * (j + 4), _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_store_si512(to + 32 * (j + 8), _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_store_si512(to + 32 * (j + 12), _mm512_shuffle_i32x4(b, d, 0xdd));
  }
}

// Tiles of depth [first, last) that row tile m of A has anything in.
struct Range {
  std::int64_t first, last;
};
Range depth_of(Part part, std::int64_t m, std::int64_t depth) {
  return {part == Part::upper_a ? m * kSide / kDepth : 0,
          part == Part::lower_a ? std::min(depth, m * kSide / kDepth + 1) : depth};
}

// A with unit stride along k.
template <bool kRest>
LOGLINEAR_DOT void pack_rows(std::int64_t M, std::int64_t K, const float* a, std::int64_t a_row, Part part,
                             Packed& to) {
  const std::int64_t depth = tiles(K, kDepth);
  __m512i seen = _mm512_setzero_si512();
  for (std::int64_t mt = 0; mt < tiles(M, kSide); ++mt) {
    const Range range = depth_of(part, mt, depth);
    for (std::int64_t r = 0; r < kSide; ++r) {
      const std::int64_t m = mt * kSide + r;
      const std::int64_t from = m < M && part == Part::upper_a ? m : 0,
                         end = m < M ? (part == Part::lower_a ? m + 1 : K) : 0;
      for (std::int64_t kt = range.first; kt < range.last; ++kt) {
        const std::int64_t k = kt * kDepth;
        const auto load = [&](std::int64_t at) LOGLINEAR_DOT {
          return _mm512_maskz_loadu_ps(first(end - at) & ~first(from - at), a + m * a_row + at);
        };
        const __m512 x0 = load(k), x1 = load(k + 16);
        const std::int64_t at = (mt * depth + kt) * kTile + r * kDepth;
        _mm512_store_si512(to.high + at, (__m512i)_mm512_cvtne2ps_pbh(x1, x0));
        if constexpr (kRest) {
          const Rests rests = rests_of(x0, x1, seen);
          _mm512_store_si512(to.rest + at, (__m512i)_mm512_cvtne2ps_pbh(rests.second, rests.first));
        }
      }
    }
  }
  if (kRest && !any(seen)) to.rest = nullptr;
}

// A with unit stride along m.
template <bool kRest>
LOGLINEAR_DOT void pack_columns(std::int64_t M, std::int64_t K, const float* a, std::int64_t a_col, Part part,
                                Packed& to) {
  const std::int64_t depth = tiles(K, kDepth);
  __m512i seen = _mm512_setzero_si512();
  for (std::int64_t mt = 0; mt < tiles(M, kSide); ++mt) {
    const Range range = depth_of(part, mt, depth);
    for (std::int64_t kt = range.first; kt < range.last; ++kt) {
      const std::int64_t m = mt * kSide;
      const auto load = [&](std::int64_t k) LOGLINEAR_DOT {
        __mmask16 mask = k < K ? first(M - m) : __mmask16{0};
        if (part == Part::lower_a) mask &= ~first(k - m);  // rows from k on
        if (part == Part::upper_a) mask &= first(k + 1 - m);
        return _mm512_maskz_loadu_ps(mask, a + k * a_col + m);
      };
      __m512i high[kSide], rest[kSide];
#pragma GCC unroll 16
      for (int p = 0; p < kSide; ++p) {
        const __m512 x0 = load(kt * kDepth + 2 * p), x1 = load(kt * kDepth + 2 * p + 1);
        high[p] = pairs_of(x0, x1);
        if constexpr (kRest) {
          const Rests rests = rests_of(x0, x1, seen);
          rest[p] = pairs_of(rests.first, rests.second);
        }
      }
      store_transposed(high, to.high + (mt * depth + kt) * kTile);
      if constexpr (kRest) store_transposed(rest, to.rest + (mt * depth + kt) * kTile);
    }
  }
  if (kRest && !any(seen)) to.rest = nullptr;
}

// B. keep_out: rows that are not finite become zero and go to `not_finite`.
template <bool kRest>
LOGLINEAR_DOT void pack_b_rows(std::int64_t K, std::int64_t N, const float* b, std::int64_t ldb, bool keep_out,
                               Packed& to) {
  const std::int64_t depth = tiles(K, kDepth), columns = tiles(N, kSide);
  not_finite.clear();
  if (keep_out)
    for (std::int64_t k = 0; k < K; ++k) {
      __mmask16 bad = 0;
      for (std::int64_t n = 0; n < columns; ++n) {
        const __mmask16 wanted = first(N - n * kSide);
        bad |= _mm512_mask_fpclass_ps_mask(wanted, _mm512_loadu_ps(b + k * ldb + n * kSide), 0x99);
      }
      if (bad) not_finite.push_back(k);
    }
  const auto out = [&](std::int64_t k) {
    return k >= K || (!not_finite.empty() && std::binary_search(not_finite.begin(), not_finite.end(), k));
  };
  __m512i seen = _mm512_setzero_si512();
  for (std::int64_t kt = 0; kt < depth; ++kt)
    for (std::int64_t p = 0; p < kSide; ++p) {
      const std::int64_t k = kt * kDepth + 2 * p;
      const float *b0 = b + k * ldb, *b1 = b0 + ldb;
      const __mmask16 m0 = out(k) ? 0 : 0xffff, m1 = out(k + 1) ? 0 : 0xffff;
      for (std::int64_t n = 0; n < columns; ++n) {
        const __m512 x0 = _mm512_maskz_loadu_ps(m0, b0 + n * kSide), x1 = _mm512_maskz_loadu_ps(m1, b1 + n * kSide);
        const std::int64_t at = (n * depth + kt) * kTile + p * kDepth;
        _mm512_store_si512(to.high + at, pairs_of(x0, x1));
        if constexpr (kRest) {
          const Rests rests = rests_of(x0, x1, seen);
          _mm512_store_si512(to.rest + at, pairs_of(rests.first, rests.second));
        }
      }
    }
  if (kRest && !any(seen)) to.rest = nullptr;
}

// A block of up to 2 x 2 tiles of C, 32 floats from row to row.
constexpr std::int64_t kBlock = 2 * kSide;

// The first tiles of depth of an operand's first row (column) of tiles.
struct Pass {
  const std::uint16_t *a, *b;
};

// sums (Rows x Columns tiles) = the sum of A B over `count` tiles of depth and over the passes; the second row (column)
// of tiles lies a_next (b_next) after the first.
template <int Rows, int Columns>
LOGLINEAR_DOT void dot_block(std::int64_t count, const Pass* passes, int n_passes, std::int64_t a_next,
                             std::int64_t b_next, float* sums, Prefetch* soon) {
  constexpr int kRows = 8;
  for (int row = 0; row < Rows * kSide; row += kRows) {
    __m512 x[kRows][Columns];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int n = 0; n < Columns; ++n) x[r][n] = _mm512_setzero_ps();
    for (const Pass* pass = passes; pass < passes + n_passes; ++pass) {
      const std::uint16_t* a = pass->a + row / kSide * a_next + row % kSide * kDepth;
      for (std::int64_t kt = 0; kt < count; ++kt) {
        if (soon) soon->work(kRows * Columns * kSide * kDepth);
#pragma GCC unroll 2
        for (int p = 0; p < kSide; ++p) {
          __m512i bp[Columns];
#pragma GCC unroll 2
          for (int n = 0; n < Columns; ++n) bp[n] = _mm512_load_si512(pass->b + n * b_next + kt * kTile + p * kDepth);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            std::int32_t pair;
            __builtin_memcpy(&pair, a + kt * kTile + r * kDepth + 2 * p, 4);
            const __m512i ar = _mm512_set1_epi32(pair);
#pragma GCC unroll 2
            for (int n = 0; n < Columns; ++n) x[r][n] = _mm512_dpbf16_ps(x[r][n], (__m512bh)ar, (__m512bh)bp[n]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int n = 0; n < Columns; ++n) _mm512_store_ps(sums + (row + r) * kBlock + n * kSide, x[r][n]);
  }
}

template <int Rows, int Columns>
LOGLINEAR_TILES void tile_block(std::int64_t count, const Pass* passes, int n_passes, std::int64_t a_next,
                                std::int64_t b_next, float* sums, Prefetch* soon) {
  constexpr long kRow = 64, kSums = kBlock * sizeof(float);  // bytes
  if (soon) soon->work(Rows * Columns * kSide * kSide * count * kDepth);
  _tile_zero(0);
  if constexpr (Columns == 2) _tile_zero(1);
  if constexpr (Rows == 2) _tile_zero(2);
  if constexpr (Rows == 2 && Columns == 2) _tile_zero(3);
  for (const Pass* pass = passes; pass < passes + n_passes; ++pass) {
    const std::uint16_t *a = pass->a, *b = pass->b;
    for (std::int64_t kt = 0; kt < count; ++kt, a += kTile, b += kTile) {
      _tile_loadd(4, a, kRow);
      _tile_loadd(6, b, kRow);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (Columns == 2) {
        _tile_loadd(7, b + b_next, kRow);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (Rows == 2) {
        _tile_loadd(5, a + a_next, kRow);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (Columns == 2) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums, kSums);
  if constexpr (Columns == 2) _tile_stored(1, sums + kSide, kSums);
  if constexpr (Rows == 2) _tile_stored(2, sums + kSide * kBlock, kSums);
  if constexpr (Rows == 2 && Columns == 2) _tile_stored(3, sums + kSide * kBlock + kSide, kSums);
}

using Block = void (*)(std::int64_t, const Pass*, int, std::int64_t, std::int64_t, float*, Prefetch*);
// [rows - 1][columns - 1]
constexpr Block kDotBlocks[2][2] = {{dot_block<1, 1>, dot_block<1, 2>}, {dot_block<2, 1>, dot_block<2, 2>}};
constexpr Block kTileBlocks[2][2] = {{tile_block<1, 1>, tile_block<1, 2>}, {tile_block<2, 1>, tile_block<2, 2>}};

// Rows [m, m + rows) and columns [n, n + columns), whole vectors, of C.
LOGLINEAR_DOT void finish_block(std::int64_t m, std::int64_t rows, std::int64_t n, std::int64_t columns,
                                const float* sums, float* c, std::int64_t ldc, const Epilogue<float>& e) {
  if (e.dots) {
    for (std::int64_t j = 0; j < columns; j += kSide) {
      const __m512 scale = _mm512_loadu_ps(e.column_scale + n + j);
      __m512 dots = _mm512_loadu_ps(e.dots + n + j);
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t at = (m + r) * ldc + n + j;
        const __m512 x = _mm512_load_ps(sums + r * kBlock + j);
        dots = _mm512_fmadd_ps(x, _mm512_loadu_ps(e.dots_with + at), dots);
        _mm512_storeu_ps(c + at, _mm512_fmadd_ps(scale, x, _mm512_loadu_ps(c + at)));
      }
      _mm512_storeu_ps(e.dots + n + j, dots);
    }
    return;
  }
  const __m512 beta = _mm512_set1_ps(e.beta);
  for (std::int64_t r = 0; r < rows; ++r) {
    const __m512 scale = _mm512_set1_ps(e.row_scale ? e.alpha * e.row_scale[m + r] : e.alpha);
    float* to = c + (m + r) * ldc + n;
    for (std::int64_t j = 0; j < columns; j += kSide) {
      __m512 x = _mm512_mul_ps(scale, _mm512_load_ps(sums + r * kBlock + j));
      if (e.beta != 0) x = _mm512_fmadd_ps(beta, _mm512_loadu_ps(to + j), x);
      _mm512_storeu_ps(to + j, x);
    }
  }
}

// Rows of B that are not finite, for the rows of A that have them.
void add_row(std::int64_t M, std::int64_t N, std::int64_t k, const float* a, std::int64_t a_row, const float* b,
             float* c, std::int64_t ldc, const Epilogue<float>& e) {
  for (std::int64_t m = e.part == Part::lower_a ? k : 0; m < (e.part == Part::lower_a ? M : std::min(M, k + 1)); ++m) {
    const float by = (e.row_scale ? e.alpha * e.row_scale[m] : e.alpha) * a[m * a_row];
    for (std::int64_t n = 0; n < N; ++n) c[m * ldc + n] += by * b[n];
  }
}

thread_local Bf16Unit unit = Bf16Unit::none;

LOGLINEAR_TILES void configure_tiles() {
  struct {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = kSide;
  __asm__ volatile("" : : "r"(&config) : "memory");  // GCC 12 takes the intrinsic for one that reads eight bytes
  _tile_loadconfig(&config);
}

LOGLINEAR_TILES void release_tiles() { _tile_release(); }

LOGLINEAR_TILES double multiply_tiles(std::int64_t rounds) {
  alignas(64) static constexpr std::uint16_t kZeros[kTile] = {};
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, kZeros, 64);
  _tile_loadd(5, kZeros, 64);
  for (std::int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  return 2.0 * 4 * kSide * kSide * kDepth * static_cast<double>(rounds);
}

LOGLINEAR_DOT __attribute__((noinline)) double multiply_dots(std::int64_t rounds) {
  constexpr int kSums = 24;
  __m512i one = _mm512_set1_epi16(0x3f80);
  __m512 x[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) x[i] = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < rounds; ++i) {
    __asm__ volatile("" : "+v"(one));  // one product a round and sum: no compiler sees through it
#pragma GCC unroll 24
    for (int j = 0; j < kSums; ++j) {
      x[j] = _mm512_dpbf16_ps(x[j], (__m512bh)one, (__m512bh)one);
      __asm__ volatile("" : "+v"(x[j]));
    }
  }
  return 2.0 * kSums * kDepth * static_cast<double>(rounds);
}

Packed take(std::int64_t outer, std::int64_t K, bool rest) {
  const std::int64_t size = tiles(outer, kSide) * tiles(K, kDepth) * kTile;
  Packed packed;
  packed.memory = Pool<std::uint16_t>::take(static_cast<std::size_t>(rest ? 2 * size : size));
  packed.high = packed.memory.get();
  if (rest) packed.rest = packed.high + size;
  return packed;
}

Packed pack_a_part(std::int64_t M, std::int64_t K, const float* a, std::int64_t a_row, std::int64_t a_col, Part part,
                   bool rest) {
  Packed to = take(M, K, rest);
  if (a_col == 1)
    rest ? pack_rows<true>(M, K, a, a_row, part, to) : pack_rows<false>(M, K, a, a_row, part, to);
  else
    rest ? pack_columns<true>(M, K, a, a_col, part, to) : pack_columns<false>(M, K, a, a_col, part, to);
  return to;
}

Packed pack_b_part(std::int64_t K, std::int64_t N, const float* b, std::int64_t ldb, bool keep_out, bool rest) {
  Packed to = take(N, K, rest);
  rest ? pack_b_rows<true>(K, N, b, ldb, keep_out, to) : pack_b_rows<false>(K, N, b, ldb, keep_out, to);
  return to;
}

}  // namespace

Scope::Scope(Bf16Unit wanted) : unit_(wanted) {
  unit = wanted;
  if (unit_ == Bf16Unit::tiles) configure_tiles();
}

Scope::~Scope() {
  if (unit_ == Bf16Unit::tiles) release_tiles();
  unit = Bf16Unit::none;
}

Packed pack_a(std::int64_t M, std::int64_t K, const float* a, std::int64_t a_row, std::int64_t a_col, bool rest) {
  return pack_a_part(M, K, a, a_row, a_col, Part::full, rest);
}

Packed pack_b(std::int64_t K, std::int64_t N, const float* b, std::int64_t ldb, bool rest) {
  return pack_b_part(K, N, b, ldb, false, rest);
}

void product(std::int64_t M, std::int64_t N, std::int64_t K, const Packed& a, const Packed& b, float* c,
             std::int64_t ldc, const Epilogue<float>& e, Rest rest) {
  const bool a_rest = a.rest && of_a(rest), b_rest = b.rest && of_b(rest);
  const auto& blocks = unit == Bf16Unit::tiles ? kTileBlocks : kDotBlocks;
  const std::int64_t rows = tiles(M, kSide), columns = tiles(N, kSide), depth = tiles(K, kDepth), next = depth * kTile;
  // A block is finished while the next one is computed: what tiles store cannot be loaded at once.
  alignas(64) float sums[2][kBlock * kBlock];
  struct {
    std::int64_t m = 0, rows = 0, n = 0, columns = 0;
  } last;
  int now = 0;
  const auto finish_last = [&] { finish_block(last.m, last.rows, last.n, last.columns, sums[1 - now], c, ldc, e); };
  for (std::int64_t n = 0; n < columns; n += 2)
    for (std::int64_t m = 0; m < rows; m += 2) {
      const std::int64_t block_rows = std::min<std::int64_t>(2, rows - m),
                         block_columns = std::min<std::int64_t>(2, columns - n);
      if (e.part == Part::lower_c && n >= m + block_rows) continue;
      const Range range = depth_of(e.part, m, depth);  // a tile is as deep as two are high: both rows have the same
      const std::int64_t at_a = m * next + range.first * kTile, at_b = n * next + range.first * kTile;
      Pass passes[3] = {{a.high + at_a, b.high + at_b}};
      int n_passes = 1;
      if (b_rest) passes[n_passes++] = {a.high + at_a, b.rest + at_b};
      if (a_rest) passes[n_passes++] = {a.rest + at_a, b.high + at_b};
      blocks[block_rows - 1][block_columns - 1](range.last - range.first, passes, n_passes, next, next, sums[now],
                                                e.prefetch);
      finish_last();
      last = {m * kSide, std::min(M - m * kSide, block_rows * kSide), n * kSide, block_columns * kSide};
      now = 1 - now;
    }
  finish_last();
}

void product(std::int64_t M, std::int64_t N, std::int64_t K, const float* a, std::int64_t a_row, std::int64_t a_col,
             const float* b, std::int64_t ldb, float* c, std::int64_t ldc, const Epilogue<float>& e, Rest rest) {
  const bool triangle = e.part == Part::lower_a || e.part == Part::upper_a;
  const Packed pa = pack_a_part(M, K, a, a_row, a_col, e.part, of_a(rest));
  const Packed pb = pack_b_part(K, N, b, ldb, triangle, of_b(rest));
  product(M, N, K, pa, pb, c, ldc, e, rest);
  if (!triangle) return;
  for (const std::int64_t k : not_finite) add_row(M, N, k, a + k * a_col, a_row, b + k * ldb, c, ldc, e);
}

double multiply_registers(std::int64_t rounds) {
  return unit == Bf16Unit::tiles ? multiply_tiles(rounds) : multiply_dots(rounds);
}

}  // namespace loglinear::bf16

#else

namespace loglinear::bf16 {

Scope::Scope(Bf16Unit unit) : unit_(unit) {}
Scope::~Scope() = default;

[[noreturn]] void refuse() { fail("bf16", "this CPU multiplies no bfloat16"); }

Packed pack_a(std::int64_t, std::int64_t, const float*, std::int64_t, std::int64_t, bool) { refuse(); }
Packed pack_b(std::int64_t, std::int64_t, const float*, std::int64_t, bool) { refuse(); }
void product(std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t, std::int64_t, const float*,
             std::int64_t, float*, std::int64_t, const Epilogue<float>&, Rest) {
  refuse();
}
void product(std::int64_t, std::int64_t, std::int64_t, const Packed&, const Packed&, float*, std::int64_t,
             const Epilogue<float>&, Rest) {
  refuse();
}
double multiply_registers(std::int64_t) { refuse(); }

}  // namespace loglinear::bf16

#endif
