// One token of one head: docs/algorithm.md, section 4. Compiled once per instruction set.

#if defined(LOGLINEAR_OPS_LOG_LINEAR_STEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOGLINEAR_OPS_LOG_LINEAR_STEP_INL_H_
#undef LOGLINEAR_OPS_LOG_LINEAR_STEP_INL_H_
#else
#define LOGLINEAR_OPS_LOG_LINEAR_STEP_INL_H_
#endif

#include <array>

#include "ops/log_linear/chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace loglinear {
namespace HWY_NAMESPACE {

// sum[r] += x[r] times row r of B, for Rows rows, Vectors vectors of columns, the last possibly not full.
template <int Rows, int Vectors, class Mask, class T, class Vec>
HWY_INLINE void add_rows(const T* HWY_RESTRICT x, const T* HWY_RESTRICT b, std::int64_t ldb, Mask last,
                         Vec (&sum)[Rows][Vectors]) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const Vec xr = hn::Set(d, x[r]);
#pragma GCC unroll 8
    for (int j = 0; j + 1 < Vectors; ++j) sum[r][j] = hn::MulAdd(xr, hn::LoadU(d, b + r * ldb + j * N), sum[r][j]);
    sum[r][Vectors - 1] = hn::MulAdd(xr, hn::MaskedLoad(last, d, b + r * ldb + (Vectors - 1) * N), sum[r][Vectors - 1]);
  }
}

// y (n) = x^T B, or added to y, for up to Vectors vectors of columns of B (M, n), the last vector possibly not full.
// Rows are taken several at a time where few columns would leave the multipliers waiting.
template <int Vectors, class T>
HWY_INLINE void row_times_columns(std::int64_t M, std::int64_t n, const T* HWY_RESTRICT x, const T* HWY_RESTRICT b,
                                  std::int64_t ldb, T* HWY_RESTRICT y, bool add) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  using Vec = hn::Vec<Lanes<T>>;
  constexpr int kRows = 8 / Vectors;
  const auto last = hn::FirstN(d, static_cast<std::size_t>(n - (Vectors - 1) * N));
  Vec sum[kRows][Vectors], rest[1][Vectors];
#pragma GCC unroll 8
  for (int j = 0; j < Vectors; ++j) {
    rest[0][j] = hn::Zero(d);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r][j] = hn::Zero(d);
  }
  std::int64_t m = 0;
  for (; m + kRows <= M; m += kRows) add_rows<kRows, Vectors>(x + m, b + m * ldb, ldb, last, sum);
  for (; m < M; ++m) add_rows<1, Vectors>(x + m, b + m * ldb, ldb, last, rest);
#pragma GCC unroll 8
  for (int j = 0; j < Vectors; ++j) {
    Vec total = rest[0][j];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) total = hn::Add(total, sum[r][j]);
    T* to = y + j * N;  // y is padded
    hn::StoreU(add ? hn::Add(hn::LoadU(d, to), total) : total, d, to);
  }
}

// y (n, padded to whole vectors) = x^T B, or added to y, for x (M), B (M, n) with rows ldb apart.
template <class T>
HWY_NOINLINE void row_times(std::int64_t M, std::int64_t n, const T* x, const T* b, std::int64_t ldb, T* y, bool add) {
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(Lanes<T>()));
  // Rows wider than the sums that fit in registers are taken in blocks, or memory would be read with a gap in each row.
  const std::int64_t block = n > 8 * N ? 16 : M;
  for (std::int64_t m = 0; m < M; m += block) {
    const std::int64_t rows = std::min(block, M - m);
    const bool onto = add || m > 0;
    for (std::int64_t j = 0; j < n;) {
      const std::int64_t left = n - j;
      const T* at = b + m * ldb + j;
      if (left > 7 * N)
        row_times_columns<8>(rows, std::min(left, 8 * N), x + m, at, ldb, y + j, onto), j += 8 * N;
      else if (left > 3 * N)
        row_times_columns<4>(rows, std::min(left, 4 * N), x + m, at, ldb, y + j, onto), j += 4 * N;
      else if (left > N)
        row_times_columns<2>(rows, std::min(left, 2 * N), x + m, at, ldb, y + j, onto), j += 2 * N;
      else
        row_times_columns<1>(rows, left, x + m, at, ldb, y + j, onto), j += N;
    }
  }
}

// y[x][i] = x . row i of B (rows, n), whose rows are n apart, for several x, padded with zeros: B is read once.
template <std::size_t Count, class T>
HWY_NOINLINE void rows_times(std::int64_t rows, std::int64_t n, const T* HWY_RESTRICT b, std::array<const T*, Count> x,
                             std::array<T*, Count> y) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d)), whole = n / N * N;
  using Vec = hn::Vec<Lanes<T>>;
  const auto last = hn::FirstN(d, static_cast<std::size_t>(n - whole));
  constexpr int kRows = 4;
  for (std::int64_t i = 0; i < rows; i += kRows) {
    const T* row[kRows];  // past the end: the last one again
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) row[r] = b + std::min(i + r, rows - 1) * n;
    Vec sum[Count][kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (std::size_t c = 0; c < Count; ++c) sum[c][r] = hn::Zero(d);
    for (std::int64_t j = 0; j < whole; j += N)
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec entries = hn::LoadU(d, row[r] + j);
#pragma GCC unroll 2
        for (std::size_t c = 0; c < Count; ++c) sum[c][r] = hn::MulAdd(hn::LoadU(d, x[c] + j), entries, sum[c][r]);
      }
    if (whole < n)
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec entries = hn::MaskedLoad(last, d, row[r] + whole);
#pragma GCC unroll 2
        for (std::size_t c = 0; c < Count; ++c) sum[c][r] = hn::MulAdd(hn::LoadU(d, x[c] + whole), entries, sum[c][r]);
      }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      if (i + r < rows)
#pragma GCC unroll 2
        for (std::size_t c = 0; c < Count; ++c) y[c][i + r] = hn::GetLane(hn::SumOfLanes(d, sum[c][r]));
  }
}

// y[x] (n, padded to whole vectors) = x^T B for two x and the lower triangle of B (n, n), whose rows are ldb apart.
template <class T>
HWY_NOINLINE void lower_times(std::int64_t n, std::array<const T*, 2> x, const T* HWY_RESTRICT b, std::int64_t ldb,
                              std::array<T*, 2> y) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  using Vec = hn::Vec<Lanes<T>>;
  constexpr int kRows = 4;
  for (std::int64_t j = 0; j < n; j += N) {  // what stands above the diagonal in these columns is zero
    const auto columns = hn::FirstN(d, static_cast<std::size_t>(n - j));
    Vec sum[2][kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sum[0][r] = sum[1][r] = hn::Zero(d);
    std::int64_t m = j;
    for (; m + kRows <= n; m += kRows)
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec entries = hn::MaskedLoad(columns, d, b + (m + r) * ldb + j);
        sum[0][r] = hn::MulAdd(hn::Set(d, x[0][m + r]), entries, sum[0][r]);
        sum[1][r] = hn::MulAdd(hn::Set(d, x[1][m + r]), entries, sum[1][r]);
      }
    for (; m < n; ++m) {
      const Vec entries = hn::MaskedLoad(columns, d, b + m * ldb + j);
      sum[0][0] = hn::MulAdd(hn::Set(d, x[0][m]), entries, sum[0][0]);
      sum[1][0] = hn::MulAdd(hn::Set(d, x[1][m]), entries, sum[1][0]);
    }
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c)
      hn::StoreU(hn::Add(hn::Add(sum[c][0], sum[c][1]), hn::Add(sum[c][2], sum[c][3])), d, y[c] + j);
  }
}

// Heads [first, last) of one group, for the token that becomes row `sequence.open` of the open tokens. Its k, which all
// ranges of a group read, is there.
template <class Rule, class T>
void step_heads(const StepArgs& args, const Plan& plan, std::int64_t b, State::Open& open, std::int64_t first,
                std::int64_t last) {
  const Sizes& s = plan.sizes;
  const Sequence& sequence = plan.sequences[b];
  const std::int64_t K = s.K, V = s.V, C = sequence.chunk, n = sequence.open, rows = n + 1;
  const std::int64_t group = first / (s.H / s.G), Cp = padded(C), Kp = padded(K), Vp = padded(V), Lp = padded(s.L);
  const auto part = [](Buffer& x, std::int64_t at) { return reinterpret_cast<T*>(x.data()) + at; };
  static thread_local Buffer scratch;  // a step allocates nothing once it has been as large
  const std::int64_t heads = last - first, mixes = Rule::kErases ? heads : 0;
  const std::size_t bytes = static_cast<std::size_t>((4 + mixes) * Cp + 4 * Kp + Vp + heads * Lp) * sizeof(T);
  if (scratch.size() < bytes) scratch = Buffer(bytes);
  T *kk = part(scratch, 0), *qk = kk + Cp, *p = qk + Cp, *decay = p + Cp, *mixed = decay + Cp;
  T *q = mixed + mixes * Cp, *key = q + Kp, *qe = key + Kp, *scaled = qe + Kp, *out = scaled + Kp, *scales = out + Vp;

  const auto append = [&](const ConstTensor& x, Buffer& to, std::int64_t width) {
    for (std::int64_t h = first; h < last; ++h)
      log_linear::get_row(x, b * x.stride[0] + h * x.stride[1], width, part(to, (h * C + n) * width));
  };
  append(args.v, open.v, V);
  append(args.g, open.g, 1);
  if (has_beta(args.rule)) append(args.beta, open.beta, 1);

  const T* k = part(open.k, group * C * K);
  load_rows(args.q, b, group, 0, 1, K, q, Kp);
  if constexpr (!Rule::kErases) rows_times<1, T>(rows, K, k, {q}, {qk});
  for (std::int64_t r = open.derived; r < rows; ++r) {  // more than row n only where a call left rows open
    if constexpr (Rule::kErases) {
      std::copy(k + r * K, k + (r + 1) * K, key);
      std::fill(key + K, key + Kp, T(0));
      rows_times<2, T>(r + 1, K, k, {key, q}, {kk, qk});
    }
    for (std::int64_t h = first; h < last; ++h) {
      double* sums = reinterpret_cast<double*>(open.sums.data()) + h * C;
      sums[r] = (r > 0 ? sums[r - 1] : 0) + log_linear::bounded_decay(part(open.g, h * C)[r]);
      if constexpr (Rule::kErases) {  // mix = (I + N)^-1 diag(beta), row by row
        T *mix = part(open.mix, h * C * C), *row = mix + r * C, *weights = mixed + (h - first) * Cp;
        const T beta = part(open.beta, h * C)[r];
        lower_times<T>(r, {kk, qk}, mix, C, {p, weights});
        for (std::int64_t j = 0; j < r; ++j) row[j] = -beta * p[j], weights[j] += qk[r] * row[j];
        row[r] = beta, weights[r] = qk[r] * beta;
        std::fill(row + r + 1, row + C, T(0));
      }
    }
  }

  load_rows(args.level_scales, b, first, 0, heads, s.L, scales, Lp);  // all at once: each row is one wait for memory
  for (std::int64_t h = first; h < last; ++h) {
    const auto scale = [&](std::int64_t level) { return scales[(h - first) * Lp + std::min(level, s.L - 1)]; };
    // Among the open tokens.
    const double* sums = reinterpret_cast<const double*>(open.sums.data()) + h * C;
    for (std::int64_t j = 0; j < rows; ++j) decay[j] = static_cast<T>(sums[n] - sums[j]);
    for (std::int64_t j = rows; j < padded(rows); ++j) decay[j] = T(0);
    exp_all(rows, decay, decay);
    const T *weights = qk, *query = q;
    if constexpr (Rule::kErases) {
      weights = mixed + (h - first) * Cp, query = qe;
      row_times(rows, K, weights, k, K, qe, false);
      for (std::int64_t a = 0; a < K; ++a) qe[a] = q[a] - qe[a];
    }
    // Tokens of one level lie beside each other: those that differ from n in a set bit of it and agree above.
    const auto weigh = [&](std::int64_t from, std::int64_t end, T by) {
      for (std::int64_t j = from; j < end; ++j) p[j] = by * weights[j] * decay[j];
    };
    weigh(n, rows, scale(0));
    for (std::uint64_t rest = static_cast<std::uint64_t>(n); rest > 0; rest &= rest - 1)
      weigh(static_cast<std::int64_t>(rest & (rest - 1)), static_cast<std::int64_t>(rest),
            scale(std::countr_zero(rest) + 1));
    row_times(rows, V, p, part(open.v, h * C * V), V, out, false);
    // From the states before them.
    for (const State::Slot& slot : args.states[b].slots()) {
      const T weight = static_cast<T>(std::exp(slot.log_decay[h] + sums[n])) * scale(slot.bit + 1);
      for (std::int64_t a = 0; a < K; ++a) scaled[a] = weight * query[a];
      row_times(K, V, scaled, part(*slot.matrix, h * K * V), V, out, true);
    }
    store_rows(args.out, b, h, 0, 1, V, out, Vp);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#endif
