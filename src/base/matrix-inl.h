// The small matrix kernel: products of matrices that live in cache, for every instruction set (Highway), float and
// double.
//
// Included once per instruction set from a .cpp that uses hwy/foreach_target.h, hence the toggled guard.

#if defined(LOGLINEAR_BASE_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOGLINEAR_BASE_MATRIX_INL_H_
#undef LOGLINEAR_BASE_MATRIX_INL_H_
#else
#define LOGLINEAR_BASE_MATRIX_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/padding.hpp"
#include "base/product.hpp"

HWY_BEFORE_NAMESPACE();
namespace loglinear {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Vectors of at most kPad elements, so that a padded row is a whole number of vectors on every instruction set.
template <class T>
using Lanes = hn::CappedTag<T, static_cast<std::size_t>(kPad)>;

// A tile of C has as many rows, for its width in vectors, as leave its sums, the vectors of B and one of A in
// registers; kTileVectors is the widest.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_NEON
inline constexpr int kTileVectors = 4;  // of 32 registers: 24 sums, 4 of B, 1 of A
constexpr int tile_rows(int) { return 6; }
#undef LOGLINEAR_WIDEST_PANEL
#define LOGLINEAR_WIDEST_PANEL(how, T) LOGLINEAR_PRODUCT_PANEL(how, T, 4)
#else
inline constexpr int kTileVectors = 3;  // of 16 registers: 12 sums, 3 of B, 1 of A
constexpr int tile_rows(int vectors) { return vectors == 3 ? 4 : 6; }
#undef LOGLINEAR_WIDEST_PANEL
#define LOGLINEAR_WIDEST_PANEL(how, T)
#endif

// Elements from one row of n to the next, as row_stride(), but that rows which a panel takes whole lie one after the
// other, where hardware foresees them.
template <class T>
std::int64_t panel_stride(std::int64_t n) {
  return padded(n) <= kTileVectors * static_cast<std::int64_t>(hn::Lanes(Lanes<T>())) ? padded(n) : row_stride(n);
}

// The diagonal block of a triangular A, row by row.
template <bool kLower, class T, class Vec, int Rows, int Vectors>
HWY_INLINE void product_diagonal(const T* a, std::int64_t a_row, std::int64_t a_col, const T* b, std::int64_t ldb,
                                 Vec (&sum)[Rows][Vectors]) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
#pragma GCC unroll 8
  for (int k = 0; k < Rows; ++k) {
    Vec bk[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) bk[j] = hn::LoadU(d, b + k * ldb + j * N);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      if (kLower ? r < k : r > k) continue;
      const Vec ak = hn::Set(d, a[r * a_row + k * a_col]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sum[r][j] = hn::MulAdd(ak, bk[j], sum[r][j]);
    }
  }
}

// sum += A B for the columns [first, last) of A.
template <class T, class Vec, int Rows, int Vectors>
HWY_INLINE void product_columns(std::int64_t first, std::int64_t last, const T* HWY_RESTRICT a, std::int64_t a_row,
                                std::int64_t a_col, const T* HWY_RESTRICT b, std::int64_t ldb,
                                Vec (&sum)[Rows][Vectors]) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  a += first * a_col;
  b += first * ldb;
#pragma GCC unroll 4
  for (std::int64_t k = first; k < last; ++k) {
    Vec bk[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) bk[j] = hn::LoadU(d, b + j * N);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec ak = hn::Set(d, a[r * a_row]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sum[r][j] = hn::MulAdd(ak, bk[j], sum[r][j]);
    }
    a += a_col;
    b += ldb;
  }
}

// One tile: Rows x (Vectors * lanes) of C at row m.
template <class T, int Rows, int Vectors>
HWY_INLINE void product_tile(std::int64_t m, std::int64_t K, const T* HWY_RESTRICT a, std::int64_t a_row,
                             std::int64_t a_col, const T* HWY_RESTRICT b, std::int64_t ldb, T* HWY_RESTRICT c,
                             std::int64_t ldc, const Epilogue<T>& e) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  using Vec = hn::Vec<Lanes<T>>;
  Vec sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sum[r][j] = hn::Zero(d);

  a += m * a_row;
  if (e.part == Part::upper_a) product_diagonal<false>(a + m * a_col, a_row, a_col, b + m * ldb, ldb, sum);
  constexpr std::int64_t kStep = 8;  // columns of A, after which lines may be asked for
  const std::int64_t last = e.part == Part::lower_a ? m : K;
  for (std::int64_t k = e.part == Part::upper_a ? m + Rows : 0; k < last; k += kStep) {
    if (e.prefetch) e.prefetch->work(kStep * Rows * Vectors * N);
    product_columns(k, std::min(k + kStep, last), a, a_row, a_col, b, ldb, sum);
  }
  if (e.part == Part::lower_a) product_diagonal<true>(a + m * a_col, a_row, a_col, b + m * ldb, ldb, sum);

  c += m * ldc;
  if (e.dots) {
    const T* with = e.dots_with + m * ldc;
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      const Vec scale = hn::LoadU(d, e.column_scale + j * N);
      Vec dots = hn::LoadU(d, e.dots + j * N);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        T* to = c + r * ldc + j * N;
        dots = hn::MulAdd(sum[r][j], hn::LoadU(d, with + r * ldc + j * N), dots);
        hn::StoreU(hn::MulAdd(scale, sum[r][j], hn::LoadU(d, to)), d, to);
      }
      hn::StoreU(dots, d, e.dots + j * N);
    }
    return;
  }
  const Vec beta = hn::Set(d, e.beta);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const Vec scale = hn::Set(d, e.row_scale ? e.alpha * e.row_scale[m + r] : e.alpha);
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sum[r][j] = hn::Mul(scale, sum[r][j]);
  }
  if (e.beta != T(0))
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sum[r][j] = hn::MulAdd(beta, hn::LoadU(d, c + r * ldc + j * N), sum[r][j]);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) hn::StoreU(sum[r][j], d, c + r * ldc + j * N);
}

// Columns of C as wide as `Vectors` vectors, rows from m on: tiles, and a lower one at the end.
template <class T, int Vectors>
HWY_NOINLINE void product_panel(std::int64_t m, std::int64_t M, std::int64_t K, const T* a, std::int64_t a_row,
                                std::int64_t a_col, const T* b, std::int64_t ldb, T* c, std::int64_t ldc,
                                const Epilogue<T>& e) {
  constexpr int kRows = tile_rows(Vectors);
  static_assert(kRows == 4 || kRows == 6);
  for (; m + kRows <= M; m += kRows) product_tile<T, kRows, Vectors>(m, K, a, a_row, a_col, b, ldb, c, ldc, e);
  switch (M - m) {
    case 5:
      if constexpr (kRows > 5) product_tile<T, 5, Vectors>(m, K, a, a_row, a_col, b, ldb, c, ldc, e);
      break;
    case 4:
      if constexpr (kRows > 4) product_tile<T, 4, Vectors>(m, K, a, a_row, a_col, b, ldb, c, ldc, e);
      break;
    case 3:
      return product_tile<T, 3, Vectors>(m, K, a, a_row, a_col, b, ldb, c, ldc, e);
    case 2:
      return product_tile<T, 2, Vectors>(m, K, a, a_row, a_col, b, ldb, c, ldc, e);
    case 1:
      return product_tile<T, 1, Vectors>(m, K, a, a_row, a_col, b, ldb, c, ldc, e);
  }
}

// Every operator multiplies with these: src/base/matrix.cpp compiles them, once for all.
#define LOGLINEAR_PRODUCT_PANEL(how, T, vectors)                                                                     \
  how void product_panel<T, vectors>(std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, std::int64_t, \
                                     const T*, std::int64_t, T*, std::int64_t, const Epilogue<T>&);
#define LOGLINEAR_PRODUCT_PANELS_OF(how, T) \
  LOGLINEAR_PRODUCT_PANEL(how, T, 1)        \
  LOGLINEAR_PRODUCT_PANEL(how, T, 2)        \
  LOGLINEAR_PRODUCT_PANEL(how, T, 3)        \
  LOGLINEAR_WIDEST_PANEL(how, T)
#define LOGLINEAR_PRODUCT_PANELS(how) LOGLINEAR_PRODUCT_PANELS_OF(how, float) LOGLINEAR_PRODUCT_PANELS_OF(how, double)
LOGLINEAR_PRODUCT_PANELS(extern template)

// C (M, N) = beta C + alpha diag(row_scale) A B for A (M, K) at a[m * a_row + k * a_col] (any strides: a transpose
// costs nothing), B (K, N) and C (M, N) row-major with rows padded to whole vectors (kPad): padding columns are
// computed like the others and mean nothing. Every entry is one sum over k in order, so it does not depend on the tile
// that it falls into.
template <class T>
void product(std::int64_t M, std::int64_t N, std::int64_t K, const T* a, std::int64_t a_row, std::int64_t a_col,
             const T* b, std::int64_t ldb, T* c, std::int64_t ldc, const Epilogue<T>& e = {}) {
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(Lanes<T>()));
  Epilogue<T> own = e;  // of a panel: what belongs to columns begins at its first
  // Rows [m, end) of `left` vectors of columns from the first one on.
  const auto panels = [&](std::int64_t m, std::int64_t end, std::int64_t left) {
    for (std::int64_t n = 0; left > 0;) {
      // As wide as can be, but no single vector at the end where two narrower panels do.
      const std::int64_t width =
          left == kTileVectors + 1 ? kTileVectors - 1 : std::min<std::int64_t>(left, kTileVectors);
      // Rows above the first column have nothing of the lower triangle.
      const std::int64_t first = e.part == Part::lower_c ? std::max(m, std::min(n, end)) : m;
      if (e.dots) own.column_scale = e.column_scale + n, own.dots_with = e.dots_with + n, own.dots = e.dots + n;
      if constexpr (kTileVectors == 4)
        if (width == 4) product_panel<T, 4>(first, end, K, a, a_row, a_col, b + n, ldb, c + n, ldc, own);
      if (width == 3) product_panel<T, 3>(first, end, K, a, a_row, a_col, b + n, ldb, c + n, ldc, own);
      if (width == 2) product_panel<T, 2>(first, end, K, a, a_row, a_col, b + n, ldb, c + n, ldc, own);
      if (width == 1) product_panel<T, 1>(first, end, K, a, a_row, a_col, b + n, ldb, c + n, ldc, own);
      n += width * lanes, left -= width;
    }
  };
  const std::int64_t vectors = (N + lanes - 1) / lanes;
  if (e.part != Part::lower_c || kTileVectors < 4) return panels(0, M, vectors);
  // Wide panels would be half above the diagonal: a tile of rows at a time, no further than its diagonal.
  constexpr std::int64_t kRows = tile_rows(kTileVectors);
  for (std::int64_t m = 0; m < M; m += kRows) {
    const std::int64_t end = std::min(m + kRows, M);
    panels(m, end, std::min(vectors, (end + lanes - 1) / lanes));
  }
}

#if HWY_TARGET == HWY_SCALAR
template <class T>
inline constexpr std::int64_t kTransposeColumns = 1;

// to = the column of whole vectors of rows.
template <class T>
HWY_INLINE void transpose_columns(const T* HWY_RESTRICT from, std::int64_t, T* HWY_RESTRICT to, std::int64_t) {
  *to = *from;
}
#else
// Columns that fill 128 bits: as many are transposed together, in registers, for as many rows as a vector has lanes.
template <class T>
inline constexpr std::int64_t kTransposeColumns = 16 / sizeof(T);

// 128 bits of each of some rows: of the first kTransposeColumns rows at `rows` apart, if d has so many blocks.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> load_blocks(D d, const T* HWY_RESTRICT from, std::int64_t rows) {
  if constexpr (hn::MaxLanes(d) * sizeof(T) == 16) {
    return hn::LoadU(d, from);
  } else {
    const hn::Half<D> half;
    const std::int64_t blocks = static_cast<std::int64_t>(hn::Lanes(half) * sizeof(T)) / 16;
    return hn::Combine(d, load_blocks(half, from + blocks * rows, rows), load_blocks(half, from, rows));
  }
}

// to (kTransposeColumns, lanes) = from (lanes, kTransposeColumns)^T. Within every 128 bits a block of as many rows and
// columns; the blocks of a vector are those of the rows in order.
HWY_INLINE void transpose_columns(const float* HWY_RESTRICT from, std::int64_t ld_from, float* HWY_RESTRICT to,
                                  std::int64_t ld_to) {
  const Lanes<float> d;
  const hn::Repartition<double, decltype(d)> pairs;
  const auto r0 = load_blocks(d, from, 4 * ld_from), r1 = load_blocks(d, from + ld_from, 4 * ld_from);
  const auto r2 = load_blocks(d, from + 2 * ld_from, 4 * ld_from), r3 = load_blocks(d, from + 3 * ld_from, 4 * ld_from);
  const auto a = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1));  // columns 0 and 1 of rows 0 and 1
  const auto b = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3));
  const auto p = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
  const auto q = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, a, b)), d, to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, a, b)), d, to + ld_to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, p, q)), d, to + 2 * ld_to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, p, q)), d, to + 3 * ld_to);
}

HWY_INLINE void transpose_columns(const double* HWY_RESTRICT from, std::int64_t ld_from, double* HWY_RESTRICT to,
                                  std::int64_t ld_to) {
  const Lanes<double> d;
  const auto r0 = load_blocks(d, from, 2 * ld_from), r1 = load_blocks(d, from + ld_from, 2 * ld_from);
  hn::StoreU(hn::InterleaveLower(d, r0, r1), d, to);
  hn::StoreU(hn::InterleaveUpper(d, r0, r1), d, to + ld_to);
}
#endif

// to (columns, rows) = from (rows, columns)^T; padding of `to` up to a whole vector is zero.
template <class T>
HWY_NOINLINE void transpose(std::int64_t rows, std::int64_t columns, const T* HWY_RESTRICT from, std::int64_t ld_from,
                            T* HWY_RESTRICT to, std::int64_t ld_to) {
  constexpr std::int64_t kColumns = kTransposeColumns<T>;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(Lanes<T>()));
  const std::int64_t whole_rows = rows / lanes * lanes, whole_columns = columns / kColumns * kColumns;
  for (std::int64_t r = 0; r < whole_rows; r += lanes)
    for (std::int64_t c = 0; c < whole_columns; c += kColumns)
      transpose_columns(from + r * ld_from + c, ld_from, to + c * ld_to + r, ld_to);
  for (std::int64_t c = 0; c < columns; ++c)
    for (std::int64_t r = c < whole_columns ? whole_rows : 0; r < rows; ++r) to[c * ld_to + r] = from[r * ld_from + c];
  if (const std::int64_t end = padded(rows); end > rows)
    for (std::int64_t c = 0; c < columns; ++c)
      std::memset(to + c * ld_to + rows, 0, static_cast<std::size_t>(end - rows) * sizeof(T));
}

// inverse (n, n) = (I + N)^-1 for N = the strictly lower part of `below`; zeros above the diagonal. Forward
// substitution.
template <class T>
HWY_NOINLINE void unit_lower_inverse(std::int64_t n, std::int64_t ld, const T* HWY_RESTRICT below,
                                     T* HWY_RESTRICT inverse) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t t = 0; t < n; ++t) {
    T* row = inverse + t * ld;
    std::memset(row, 0, static_cast<std::size_t>(padded(n)) * sizeof(T));
    row[t] = T(1);
    for (std::int64_t j = 0; j <= t; j += N) {  // columns j.. of row t = e_t - sum over s < t of N_ts row s
      auto sum = hn::Load(d, row + j);
      for (std::int64_t s = j; s < t; ++s)
        sum = hn::NegMulAdd(hn::Set(d, below[t * ld + s]), hn::LoadU(d, inverse + s * ld + j), sum);
      hn::Store(sum, d, row + j);
    }
  }
}

// The kernel as an object, for the rules (which are not compiled per instruction set themselves).
template <class T>
struct MatrixKernel {
  static Epilogue<T> upper_a() { return {.part = Part::upper_a}; }
  static Epilogue<T> lower_c() { return {.part = Part::lower_c}; }
  static void product(std::int64_t M, std::int64_t N, std::int64_t K, const T* a, std::int64_t a_row,
                      std::int64_t a_col, const T* b, std::int64_t ldb, T* c, std::int64_t ldc, const Epilogue<T>& e) {
    HWY_NAMESPACE::product(M, N, K, a, a_row, a_col, b, ldb, c, ldc, e);
  }
  static void transpose(std::int64_t rows, std::int64_t columns, const T* from, std::int64_t ld_from, T* to,
                        std::int64_t ld_to) {
    HWY_NAMESPACE::transpose(rows, columns, from, ld_from, to, ld_to);
  }
  static void unit_lower_inverse(std::int64_t n, std::int64_t ld, const T* below, T* inverse) {
    HWY_NAMESPACE::unit_lower_inverse(n, ld, below, inverse);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#endif
