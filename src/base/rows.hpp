#pragma once
// What operators on rows share: argument checks, loops over blocks of rows, and sums over rows that no number of
// threads can change.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/error.hpp"
#include "base/parallel.hpp"

namespace loglinear {

// Sizes a call is made of: each >= 0 and their product an array that can exist. Returns the product.
inline std::int64_t check_sizes(const char* where, std::initializer_list<std::int64_t> sizes) {
  std::int64_t product = 1;
  for (std::int64_t n : sizes) {
    if (n < 0) fail(where, "got a size of {}, need at least 0", n);
    if (__builtin_mul_overflow(product, std::max<std::int64_t>(n, 1), &product) ||
        product > std::numeric_limits<std::int64_t>::max() / 16)
      fail(where, "sizes overflow");
  }
  return std::any_of(sizes.begin(), sizes.end(), [](std::int64_t n) { return n == 0; }) ? 0 : product;
}

// An array of `rows` rows of `width` elements, `stride` apart.
inline void check_rows(const char* where, const char* name, std::int64_t rows, std::int64_t width, const void* data,
                       std::int64_t stride) {
  if (rows == 0 || width == 0) return;
  if (stride < width) fail(where, "{}: row stride {} is below the row of {}", name, stride, width);
  if (stride > std::numeric_limits<std::int64_t>::max() / 16 / rows) fail(where, "{}: sizes overflow", name);
  if (!data) fail(where, "{} is null", name);
}

// A dense array of n elements.
inline void check_array(const char* where, const char* name, std::int64_t n, const void* data) {
  if (n > 0 && !data) fail(where, "{} is null", name);
}

// Packed sequences: {0, n1, n1 + n2, ...}. Returns the number of rows.
inline std::int64_t check_cu_seqlens(const char* where, std::span<const std::int64_t> cu_seqlens) {
  if (cu_seqlens.empty() || cu_seqlens[0] != 0) fail(where, "cu_seqlens must start with 0");
  for (std::size_t s = 1; s < cu_seqlens.size(); ++s)
    if (cu_seqlens[s] < cu_seqlens[s - 1])
      fail(where, "cu_seqlens descends from {} to {}", cu_seqlens[s - 1], cu_seqlens[s]);
  return cu_seqlens.back();
}

// Calls body(begin, end) for blocks of about 16384 elements that cover 0 .. rows - 1. For work on rows that do not know
// each other.
template <class Body>
void for_row_blocks(std::int64_t rows, std::int64_t width, int threads, const Body& body) {
  const std::int64_t block = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, width));
  parallel_for((rows + block - 1) / block, threads,
               [&](std::int64_t i) { body(i * block, std::min(rows, (i + 1) * block)); });
}

// Adds to sums (width) what the rows contribute: body(begin, end, part) adds the rows' contributions to part (width),
// which starts at zero. At most 64 blocks, cut by the number of rows alone and added in order.
template <class T, class Body>
void add_row_sums(std::int64_t rows, std::int64_t width, T* sums, int threads, const Body& body) {
  if (rows == 0) return;
  const std::int64_t block = std::max<std::int64_t>(32, (rows + 63) / 64), blocks = (rows + block - 1) / block;
  std::vector<T> parts(static_cast<std::size_t>(blocks * width), T(0));
  parallel_for(blocks, threads,
               [&](std::int64_t i) { body(i * block, std::min(rows, (i + 1) * block), parts.data() + i * width); });
  for (std::int64_t i = 0; i < blocks; ++i)
    for (std::int64_t c = 0; c < width; ++c) sums[c] += parts[static_cast<std::size_t>(i * width + c)];
}

}  // namespace loglinear
