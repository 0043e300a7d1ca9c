// The kernels of Adamas: docs/algorithm.md, section 11.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/adamas/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

#include "base/matrix-inl.h"
#include "base/pool.hpp"
#include "ops/adamas/cpu.hpp"

#ifndef LOGLINEAR_ADAMAS_TABLE
#define LOGLINEAR_ADAMAS_TABLE
namespace loglinear::adamas {

// Distances of two dimensions: row = the query's two codes, column = a key's, both (first + 4 * second).
struct PairTable {
  alignas(16) std::uint8_t rows[16][16];
};
inline constexpr PairTable kPairs = [] {
  PairTable table{};
  const auto gap = [](int a, int b) { return a < b ? b - a : a - b; };
  for (int q = 0; q < 16; ++q)
    for (int k = 0; k < 16; ++k) table.rows[q][k] = static_cast<std::uint8_t>(gap(q & 3, k & 3) + gap(q >> 2, k >> 2));
  return table;
}();

}  // namespace loglinear::adamas
#endif

HWY_BEFORE_NAMESPACE();
namespace loglinear::adamas {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using loglinear::HWY_NAMESPACE::Lanes;
using loglinear::HWY_NAMESPACE::transpose;

// From one element of a token's transform to the next.
std::int64_t apart(std::int64_t count) { return count == 1 ? 1 : padded(count); }

// (K, apart(count)): the transforms of a tile's tokens as columns, so that every step of the transform adds whole
// vectors; a single token lies as it is. The same sums either way.
template <class T>
Matrix<T> transformed(std::int64_t count, std::int64_t K, const T* x, std::int64_t x_stride) {
  const Lanes<T> d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t width = apart(count);
  Matrix<T> memory = Pool<T>::take(static_cast<std::size_t>(K * width));
  T* const z = memory.get();
  if (count == 1)
    std::copy_n(x, K, z);
  else
    transpose<T>(count, K, x, x_stride, z, width);
  for (std::int64_t half = 1; half < K; half *= 2)
    for (std::int64_t first = 0; first < K; first += 2 * half) {
      const std::int64_t end = (first + half) * width;
      std::int64_t i = first * width;
      for (; i + lanes <= end; i += lanes) {
        const auto a = hn::LoadU(d, z + i), b = hn::LoadU(d, z + i + half * width);
        hn::StoreU(hn::Add(a, b), d, z + i);
        hn::StoreU(hn::Sub(a, b), d, z + i + half * width);
      }
      for (; i < end; ++i) {
        const T a = z[i], b = z[i + half * width];
        z[i] = a + b, z[i + half * width] = a - b;
      }
    }
  const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(K)));
  for (std::int64_t i = 0; i < K * width; ++i) z[i] *= scale;
  return memory;
}

template <class T>
void transform_rows(std::int64_t count, std::int64_t K, const T* x, std::int64_t x_stride, T* y,
                    std::int64_t y_stride) {
  const Matrix<T> z = transformed(count, K, x, x_stride);
  for (std::int64_t t = 0; t < count; ++t)
    for (std::int64_t i = 0; i < K; ++i) y[t * y_stride + i] = z.get()[i * apart(count) + t];
}

template <class T>
void encode_rows(std::int64_t count, std::int64_t K, const T* x, std::int64_t x_stride,
                 const std::array<double, 3>& thresholds, std::int64_t offset, std::uint8_t* columns,
                 std::int64_t stride) {
  const Lanes<T> d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const Matrix<T> z = transformed(count, K, x, x_stride);
  if (count == 1) {
    for (std::int64_t i = 0; i < K; ++i) {
      std::uint8_t& byte = columns[i / 4 * stride + offset];
      int code = 0;
      for (double threshold : thresholds) code += z.get()[i] > static_cast<T>(threshold);
      byte = static_cast<std::uint8_t>((i % 4 == 0 ? 0 : byte) | code << i % 4 * 2);
    }
    return;
  }
  const auto low = hn::Set(d, static_cast<T>(thresholds[0])), middle = hn::Set(d, static_cast<T>(thresholds[1]));
  const auto high = hn::Set(d, static_cast<T>(thresholds[2]));
  for (std::int64_t column = 0; 4 * column < K; ++column) {
    T bytes[kTile];  // small whole numbers
    for (std::int64_t t = 0; t < count; t += lanes) {
      auto byte = hn::Zero(d), place = hn::Set(d, T(1));
      for (std::int64_t i = 4 * column; i < std::min(K, 4 * column + 4); ++i) {
        const auto value = hn::LoadU(d, z.get() + i * apart(count) + t);
        for (const auto threshold : {low, middle, high})
          byte = hn::Add(byte, hn::IfThenElseZero(hn::Gt(value, threshold), place));
        place = hn::Mul(place, hn::Set(d, T(4)));
      }
      hn::StoreU(byte, d, bytes + t);
    }
    for (std::int64_t t = 0; t < count; ++t)
      columns[column * stride + offset + t] = static_cast<std::uint8_t>(bytes[t]);
  }
}

#if HWY_TARGET == HWY_SCALAR
void compare_block(std::int64_t columns, const std::uint8_t* codes, const std::uint8_t* query,
                   std::uint16_t* distances) {
  std::fill_n(distances, kBlock, std::uint16_t{0});
  for (std::int64_t c = 0; c < columns; ++c)
    for (std::int64_t t = 0; t < kBlock; ++t) {
      const std::uint8_t byte = codes[c * kBlock + t];
      distances[t] = static_cast<std::uint16_t>(distances[t] + kPairs.rows[query[c] & 15][byte & 15] +
                                                kPairs.rows[query[c] >> 4][byte >> 4]);
    }
}
#else
using Bytes = hn::CappedTag<std::uint8_t, 32>;

// A byte of a column is two lookups among 16 entries; 16 columns make at most 192 and fit a byte. The two rows of the
// table are loaded once for several vectors of tokens.
HWY_INLINE void compare_block(std::int64_t columns, const std::uint8_t* codes, const std::uint8_t* query,
                              std::uint16_t* distances) {
  constexpr std::int64_t kColumns = 16;
  constexpr int kVectors = 4;
  const Bytes d;
  const hn::Repartition<std::uint16_t, Bytes> d16;
  const hn::Rebind<std::uint8_t, decltype(d16)> half;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d)), lanes16 = lanes / 2;
  const auto nibble = hn::Set(d, std::uint8_t{15});
  // Multiplied and the upper half taken: a shift would compete with the lookups for their ports.
  const auto sixteenth = hn::Set(d16, static_cast<std::uint16_t>(1 << 12));
  for (std::int64_t part = 0; part < kBlock; part += kVectors * lanes)
    for (std::int64_t first = 0; first < columns; first += kColumns) {
      const std::int64_t last = std::min(columns, first + kColumns);
      hn::Vec<Bytes> sum[kVectors];
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sum[n] = hn::Zero(d);
      for (std::int64_t c = first; c < last; ++c) {
        const auto low = hn::LoadDup128(d, kPairs.rows[query[c] & 15]);
        const auto high = hn::LoadDup128(d, kPairs.rows[query[c] >> 4]);
#pragma GCC unroll 4
        for (int n = 0; n < kVectors; ++n) {
          const auto byte = hn::Load(d, codes + c * kBlock + part + n * lanes);
          const auto upper = hn::BitCast(d, hn::MulHigh(hn::BitCast(d16, byte), sixteenth));
          sum[n] = hn::Add(sum[n], hn::TableLookupBytes(low, hn::And(byte, nibble)));
          sum[n] = hn::Add(sum[n], hn::TableLookupBytes(high, hn::And(upper, nibble)));
        }
      }
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) {
        std::uint16_t* const to = distances + part + n * lanes;
        auto one = hn::PromoteTo(d16, hn::LowerHalf(half, sum[n]));
        auto two = hn::PromoteTo(d16, hn::UpperHalf(half, sum[n]));
        if (first > 0) one = hn::Add(one, hn::LoadU(d16, to)), two = hn::Add(two, hn::LoadU(d16, to + lanes16));
        hn::StoreU(one, d16, to);
        hn::StoreU(two, d16, to + lanes16);
      }
    }
}
#endif

using Halves = hn::CappedTag<std::int16_t, 16>;

}  // namespace

void compare_all(std::int64_t blocks, std::int64_t columns, const std::uint8_t* codes, const std::uint8_t* query,
                 std::uint16_t* distances) {
  for (std::int64_t b = 0; b < blocks; ++b)
    compare_block(columns, codes + b * columns * kBlock, query, distances + b * kBlock);
}

std::int64_t count(std::int64_t n, const std::uint16_t* distances, std::uint16_t limit) {
  const Halves d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int16_t* const values = reinterpret_cast<const std::int16_t*>(distances);
  const auto most = hn::Set(d, static_cast<std::int16_t>(limit));
  std::int64_t larger = 0, i = 0;
  while (i + lanes <= n) {
    // A lane counts down from zero and must not pass its range.
    const std::int64_t end = std::min(n - lanes + 1, i + 30000 * lanes);
    auto sum = hn::Zero(d);
    for (; i < end; i += lanes) sum = hn::Add(sum, hn::VecFromMask(d, hn::Gt(hn::LoadU(d, values + i), most)));
    std::int16_t lane[16];
    hn::StoreU(sum, d, lane);
    for (std::int64_t l = 0; l < lanes; ++l) larger -= lane[l];
  }
  for (; i < n; ++i) larger += values[i] > static_cast<std::int16_t>(limit);
  return n - larger;
}

std::int64_t* gather(std::int64_t n, const std::uint16_t* distances, std::uint16_t limit, std::int64_t skip,
                     std::int64_t* to) {
  const Halves d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto beyond = hn::Set(d, static_cast<std::int16_t>(limit));
  const auto look = [&](std::int64_t i) {
    if (distances[i] < limit || (distances[i] == limit && --skip < 0)) *to++ = i;
  };
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto value = hn::LoadU(d, reinterpret_cast<const std::int16_t*>(distances + i));
    if (hn::AllTrue(d, hn::Gt(value, beyond))) continue;
    for (std::int64_t l = 0; l < lanes; ++l) look(i + l);
  }
  for (; i < n; ++i) look(i);
  return to;
}

void range(std::int64_t n, const std::uint16_t* distances, std::uint16_t* least, std::uint16_t* most) {
  const hn::CappedTag<std::uint16_t, 16> d;
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto low = hn::Set(d, std::uint16_t{65535}), high = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto value = hn::LoadU(d, distances + i);
    low = hn::Min(low, value), high = hn::Max(high, value);
  }
  std::uint16_t lows[16], highs[16];
  hn::StoreU(low, d, lows);
  hn::StoreU(high, d, highs);
  *least = *std::min_element(lows, lows + lanes), *most = *std::max_element(highs, highs + lanes);
  for (; i < n; ++i) *least = std::min(*least, distances[i]), *most = std::max(*most, distances[i]);
}

// One function for each type and kernel: what Highway exports is no template.
#define LOGLINEAR_ADAMAS(T, suffix)                                                                         \
  void transform_##suffix(std::int64_t count, std::int64_t K, const T* x, std::int64_t x_stride, T* y,      \
                          std::int64_t y_stride) {                                                          \
    transform_rows(count, K, x, x_stride, y, y_stride);                                                     \
  }                                                                                                         \
  void encode_##suffix(std::int64_t count, std::int64_t K, const T* x, std::int64_t x_stride,               \
                       const std::array<double, 3>& thresholds, std::int64_t offset, std::uint8_t* columns, \
                       std::int64_t stride) {                                                               \
    encode_rows(count, K, x, x_stride, thresholds, offset, columns, stride);                                \
  }
LOGLINEAR_ADAMAS(float, f32)
LOGLINEAR_ADAMAS(double, f64)
#undef LOGLINEAR_ADAMAS

}  // namespace HWY_NAMESPACE
}  // namespace loglinear::adamas
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace loglinear::adamas {

HWY_EXPORT(compare_all);
HWY_EXPORT(count);
HWY_EXPORT(gather);
HWY_EXPORT(range);

void range_of(std::int64_t n, const std::uint16_t* distances, std::uint16_t* least, std::uint16_t* most) {
  HWY_DYNAMIC_DISPATCH(range)(n, distances, least, most);
}

void compare(std::int64_t blocks, std::int64_t columns, const std::uint8_t* codes, const std::uint8_t* query,
             std::uint16_t* distances) {
  HWY_DYNAMIC_DISPATCH(compare_all)(blocks, columns, codes, query, distances);
}

std::int64_t count_up_to(std::int64_t n, const std::uint16_t* distances, std::uint16_t limit) {
  return HWY_DYNAMIC_DISPATCH(count)(n, distances, limit);
}

std::int64_t* collect(std::int64_t n, const std::uint16_t* distances, std::uint16_t limit, std::int64_t skip,
                      std::int64_t* to) {
  return HWY_DYNAMIC_DISPATCH(gather)(n, distances, limit, skip, to);
}

#define LOGLINEAR_ADAMAS(T, suffix)                                                                                    \
  HWY_EXPORT(transform_##suffix);                                                                                      \
  HWY_EXPORT(encode_##suffix);                                                                                         \
  template <>                                                                                                          \
  void transform(std::int64_t count, std::int64_t K, const T* x, std::int64_t x_stride, T* y, std::int64_t y_stride) { \
    HWY_DYNAMIC_DISPATCH(transform_##suffix)(count, K, x, x_stride, y, y_stride);                                      \
  }                                                                                                                    \
  template <>                                                                                                          \
  void encode(std::int64_t count, std::int64_t K, const T* x, std::int64_t x_stride,                                   \
              const std::array<double, 3>& thresholds, std::int64_t offset, std::uint8_t* columns,                     \
              std::int64_t stride) {                                                                                   \
    HWY_DYNAMIC_DISPATCH(encode_##suffix)(count, K, x, x_stride, thresholds, offset, columns, stride);                 \
  }
LOGLINEAR_ADAMAS(float, f32)
LOGLINEAR_ADAMAS(double, f64)
#undef LOGLINEAR_ADAMAS

}  // namespace loglinear::adamas
#endif
