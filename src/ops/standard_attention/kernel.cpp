// Scores, softmax, product with the values, over whole rows of probabilities in memory: as written down, with the
// products through the matrix kernel. Tiles of keys that no query of a block sees are left out.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/standard_attention/kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "base/attention-inl.h"
#include "base/cpu_features.hpp"
#include "base/vector_math.hpp"
#include "ops/standard_attention/kernel.hpp"

HWY_BEFORE_NAMESPACE();
namespace loglinear::standard_attention::HWY_NAMESPACE {

using attention::Range;
using attention::HWY_NAMESPACE::add_product_within;
using attention::HWY_NAMESPACE::all_finite;
using attention::HWY_NAMESPACE::copy_rows;
using attention::HWY_NAMESPACE::scale_row;
using attention::HWY_NAMESPACE::Scratch;
using loglinear::Epilogue;
using loglinear::HWY_NAMESPACE::product;
using loglinear::HWY_NAMESPACE::transpose;

template <class T>
Range seen_by(const attention::Strip<T>& strip, std::int64_t query) {
  return strip.keys(strip.offset + query, 0, strip.k_count);
}

// Whether some query of [first, last) does not see some key of [begin, end).
template <class T>
bool is_masked(const attention::Strip<T>& strip, std::int64_t first, std::int64_t last, std::int64_t begin,
               std::int64_t end) {
  return seen_by(strip, first).end < end || seen_by(strip, last - 1).begin > begin;
}

// c (rows, ldc) = a (rows, width) times the transpose of `count` rows of b: through scratch memory, since the matrix
// kernel writes whole vectors and beyond these columns there may be something else.
template <class T>
void row_products(std::int64_t rows, std::int64_t count, std::int64_t width, const T* a, std::int64_t lda, const T* b,
                  std::int64_t b_stride, T* c, std::int64_t ldc, T* transposed, T* tile) {
  constexpr std::int64_t ld = row_stride(kKeys);
  transpose(count, width, b, b_stride, transposed, ld);
  if (count % kPad == 0) return product(rows, count, width, a, lda, 1, transposed, ld, c, ldc);
  product(rows, count, width, a, lda, 1, transposed, ld, tile, ld);
  for (std::int64_t r = 0; r < rows; ++r)
    std::memcpy(c + r * ldc, tile + r * ld, static_cast<std::size_t>(count) * sizeof(T));
}

template <class T>
void forward_rows(const Head<T>& head, std::int64_t first, std::int64_t last) {
  const attention::Strip<T>& strip = head.strip;
  const std::int64_t K = strip.K, V = strip.V, T_ = strip.k_count, rows = last - first;
  const std::int64_t ldk = row_stride(K), ldv = row_stride(V), ldt = row_stride(kKeys);
  Scratch<T> scratch(kRows * (ldk + ldv + ldt) + padded(K) * ldt + kKeys * ldv);
  T *queries = scratch.take(kRows * ldk), *sums = scratch.take(kRows * ldv), *tile = scratch.take(kRows * ldt);
  T *keys = scratch.take(padded(K) * ldt), *values = scratch.take(kKeys * ldv);
  T* const scores = head.probabilities + first * T_;
  for (std::int64_t r = 0; r < rows; ++r)
    scale_row(K, static_cast<T>(strip.scale), strip.q + (first + r) * strip.q_stride, queries + r * ldk);

  const std::int64_t begin = seen_by(strip, first).begin / kKeys * kKeys, end = seen_by(strip, last - 1).end;
  for (std::int64_t at = begin; at < end; at += kKeys)
    row_products(rows, std::min(kKeys, end - at), K, queries, ldk, strip.k + at * strip.k_stride, strip.k_stride,
                 scores + at, T_, keys, tile);

  for (std::int64_t r = 0; r < rows; ++r) {
    T* const row = scores + r * T_;
    const Range seen = seen_by(strip, first + r);
    const std::int64_t n = seen.end - seen.begin;
    T* const from = row + seen.begin;
    const T sum = vec::exp_sum(n, from, vec::max(n, from), from);
    vec::scale(n, T(1) / sum, from, from);
    std::fill(row, from, T(0));
    std::fill(row + seen.end, row + T_, T(0));
  }

  std::memset(sums, 0, static_cast<std::size_t>(kRows * ldv) * sizeof(T));
  for (std::int64_t at = begin; at < end; at += kKeys) {
    const std::int64_t count = std::min(kKeys, end - at);
    copy_rows(count, V, strip.v + at * strip.v_stride, strip.v_stride, values, ldv);
    if (is_masked(strip, first, last, at, at + count) && !all_finite(count, V, values, ldv))
      add_product_within(rows, V, scores + at, T_, 1, values, ldv, sums, ldv,
                         [&](std::int64_t r) { return strip.keys(strip.offset + first + r, at, count); });
    else
      product<T>(rows, V, count, scores + at, T_, 1, values, ldv, sums, ldv, {.beta = T(1)});
  }
  for (std::int64_t r = 0; r < rows; ++r)
    std::memcpy(head.out + (first + r) * head.out_stride, sums + r * ldv, static_cast<std::size_t>(V) * sizeof(T));
}

// dscores = scale * p * (dp - mean) where `seen`, 0 elsewhere.
template <class T>
void softmax_adjoint_row(std::int64_t count, const Range& seen, T scale, T mean, const T* HWY_RESTRICT p,
                         T* HWY_RESTRICT dp) {
  std::fill_n(dp, seen.begin, T(0));
  for (std::int64_t j = seen.begin; j < seen.end; ++j) dp[j] = scale * p[j] * (dp[j] - mean);
  std::fill(dp + std::max(seen.begin, seen.end), dp + count, T(0));
}

template <class T>
void backward_query_rows(const Head<T>& head, std::int64_t first, std::int64_t last) {
  const attention::Strip<T>& strip = head.strip;
  const std::int64_t K = strip.K, V = strip.V, T_ = strip.k_count, rows = last - first, ld = row_stride(T_);
  const std::int64_t ldk = row_stride(K), ldv = row_stride(V), ldt = row_stride(kKeys);
  Scratch<T> scratch(kRows * (ldk + ldv + ld + ldt) + padded(V) * ldt + kKeys * ldk);
  T *douts = scratch.take(kRows * ldv), *sums = scratch.take(kRows * ldk), *dscores = scratch.take(kRows * ld);
  T *tile = scratch.take(kRows * ldt), *values = scratch.take(padded(V) * ldt), *keys = scratch.take(kKeys * ldk);
  copy_rows(rows, V, head.dout + first * head.dout_stride, head.dout_stride, douts, ldv);
  const std::int64_t begin = seen_by(strip, first).begin / kKeys * kKeys, end = seen_by(strip, last - 1).end;
  for (std::int64_t at = begin; at < end; at += kKeys)
    row_products(rows, std::min(kKeys, end - at), V, douts, ldv, strip.v + at * strip.v_stride, strip.v_stride,
                 dscores + at, ld, values, tile);
  for (std::int64_t r = 0; r < rows; ++r) {
    const Range seen = seen_by(strip, first + r);
    const T* const p = head.probabilities + (first + r) * T_;
    head.means[first + r] = vec::dot(seen.end - seen.begin, p + seen.begin, dscores + r * ld + seen.begin);
    softmax_adjoint_row(T_, seen, static_cast<T>(strip.scale), head.means[first + r], p, dscores + r * ld);
  }
  std::memset(sums, 0, static_cast<std::size_t>(kRows * ldk) * sizeof(T));
  for (std::int64_t at = begin; at < end; at += kKeys) {
    const std::int64_t count = std::min(kKeys, end - at);
    copy_rows(count, K, strip.k + at * strip.k_stride, strip.k_stride, keys, ldk);
    if (is_masked(strip, first, last, at, at + count) && !all_finite(count, K, keys, ldk))
      add_product_within(rows, K, dscores + at, ld, 1, keys, ldk, sums, ldk,
                         [&](std::int64_t r) { return strip.keys(strip.offset + first + r, at, count); });
    else
      product<T>(rows, K, count, dscores + at, ld, 1, keys, ldk, sums, ldk, {.beta = T(1)});
  }
  for (std::int64_t r = 0; r < rows; ++r)
    std::memcpy(head.dq + (first + r) * head.dq_stride, sums + r * ldk, static_cast<std::size_t>(K) * sizeof(T));
}

template <class T>
void backward_key_rows(std::span<const Head<T>> heads, std::int64_t first, std::int64_t last, T* dk,
                       std::int64_t dk_stride, T* dv, std::int64_t dv_stride) {
  const attention::Strip<T>& any = heads[0].strip;
  const std::int64_t K = any.K, V = any.V, T_ = any.k_count, count = last - first;
  const std::int64_t ldk = row_stride(K), ldv = row_stride(V), ldt = row_stride(kKeys);
  Scratch<T> scratch(kKeys * (ldk + ldv) + kRows * (ldk + ldv + ldt) + padded(V) * ldt);
  T *dkeys = scratch.take(kKeys * ldk), *dvalues = scratch.take(kKeys * ldv), *values = scratch.take(padded(V) * ldt);
  T *queries = scratch.take(kRows * ldk), *douts = scratch.take(kRows * ldv), *dscores = scratch.take(kRows * ldt);
  std::memset(dkeys, 0, static_cast<std::size_t>(kKeys * ldk) * sizeof(T));
  std::memset(dvalues, 0, static_cast<std::size_t>(kKeys * ldv) * sizeof(T));
  transpose(count, V, any.v + first * any.v_stride, any.v_stride, values, ldt);
  const Range seeing = any.queries(first, last - 1);
  for (const Head<T>& head : heads) {
    const attention::Strip<T>& strip = head.strip;
    for (std::int64_t at = seeing.begin; at < seeing.end; at += kRows) {
      const std::int64_t rows = std::min(kRows, seeing.end - at);
      const T* const p = head.probabilities + at * T_ + first;
      copy_rows(rows, K, strip.q + at * strip.q_stride, strip.q_stride, queries, ldk);
      copy_rows(rows, V, head.dout + at * head.dout_stride, head.dout_stride, douts, ldv);
      product(rows, count, V, douts, ldv, 1, values, ldt, dscores, ldt);
      for (std::int64_t r = 0; r < rows; ++r)
        softmax_adjoint_row(count, strip.keys(strip.offset + at + r, first, count), static_cast<T>(strip.scale),
                            head.means[at + r], p + r * T_, dscores + r * ldt);
      const bool masked = is_masked(strip, at, at + rows, first, last);
      // Queries of the block that see a key, counted from its first.
      const auto range = [&](std::int64_t j) {
        const Range r = strip.queries(first + j, first + j);
        return Range{std::clamp<std::int64_t>(r.begin - at, 0, rows), std::clamp<std::int64_t>(r.end - at, 0, rows)};
      };
      const Epilogue<T> add{.beta = T(1)};
      if (masked && !all_finite(rows, V, douts, ldv))
        add_product_within(count, V, p, 1, T_, douts, ldv, dvalues, ldv, range);
      else
        product(count, V, rows, p, 1, T_, douts, ldv, dvalues, ldv, add);
      if (masked && !all_finite(rows, K, queries, ldk))
        add_product_within(count, K, dscores, 1, ldt, queries, ldk, dkeys, ldk, range);
      else
        product(count, K, rows, dscores, 1, ldt, queries, ldk, dkeys, ldk, add);
    }
  }
  for (std::int64_t j = 0; j < count; ++j) {
    std::memcpy(dk + (first + j) * dk_stride, dkeys + j * ldk, static_cast<std::size_t>(K) * sizeof(T));
    std::memcpy(dv + (first + j) * dv_stride, dvalues + j * ldv, static_cast<std::size_t>(V) * sizeof(T));
  }
}

#define LOGLINEAR_STANDARD_ATTENTION(T, suffix)                                                                        \
  void forward_##suffix(const Head<T>& h, std::int64_t a, std::int64_t b) { forward_rows(h, a, b); }                   \
  void queries_##suffix(const Head<T>& h, std::int64_t a, std::int64_t b) { backward_query_rows(h, a, b); }            \
  void keys_##suffix(std::span<const Head<T>> h, std::int64_t a, std::int64_t b, T* dk, std::int64_t dk_stride, T* dv, \
                     std::int64_t dv_stride) {                                                                         \
    backward_key_rows(h, a, b, dk, dk_stride, dv, dv_stride);                                                          \
  }
LOGLINEAR_STANDARD_ATTENTION(float, f32)
LOGLINEAR_STANDARD_ATTENTION(double, f64)
#undef LOGLINEAR_STANDARD_ATTENTION

}  // namespace loglinear::standard_attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace loglinear::standard_attention {

#define LOGLINEAR_STANDARD_ATTENTION(T, suffix)                                                    \
  HWY_EXPORT(forward_##suffix);                                                                    \
  HWY_EXPORT(queries_##suffix);                                                                    \
  HWY_EXPORT(keys_##suffix);                                                                       \
  template <>                                                                                      \
  void forward(const Head<T>& head, std::int64_t first, std::int64_t last) {                       \
    apply_instruction_set_from_environment();                                                      \
    HWY_DYNAMIC_DISPATCH(forward_##suffix)(head, first, last);                                     \
    attention::trim_scratch<T>();                                                                  \
  }                                                                                                \
  template <>                                                                                      \
  void backward_queries(const Head<T>& head, std::int64_t first, std::int64_t last) {              \
    apply_instruction_set_from_environment();                                                      \
    HWY_DYNAMIC_DISPATCH(queries_##suffix)(head, first, last);                                     \
    attention::trim_scratch<T>();                                                                  \
  }                                                                                                \
  template <>                                                                                      \
  void backward_keys(std::span<const Head<T>> heads, std::int64_t first, std::int64_t last, T* dk, \
                     std::int64_t dk_stride, T* dv, std::int64_t dv_stride) {                      \
    apply_instruction_set_from_environment();                                                      \
    HWY_DYNAMIC_DISPATCH(keys_##suffix)(heads, first, last, dk, dk_stride, dv, dv_stride);         \
    attention::trim_scratch<T>();                                                                  \
  }
LOGLINEAR_STANDARD_ATTENTION(float, f32)
LOGLINEAR_STANDARD_ATTENTION(double, f64)
#undef LOGLINEAR_STANDARD_ATTENTION

}  // namespace loglinear::standard_attention
#endif
