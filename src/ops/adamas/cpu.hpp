#pragma once
// The kernels of Adamas; which instruction set runs is chosen at run time.

#include <array>
#include <cstdint>

namespace loglinear::adamas {

inline constexpr std::int64_t kBlock = 128;  // tokens whose codes lie together
inline constexpr std::int64_t kTile = 32;    // tokens that are transformed together

// y (count, K) = the Hadamard transform of `count` <= kTile rows of K, a power of two.
template <class T>
void transform(std::int64_t count, std::int64_t K, const T* x, std::int64_t x_stride, T* y, std::int64_t y_stride);

// The codes of `count` <= kTile rows of K as bytes offset .. offset + count - 1 of columns that are `stride` bytes
// each.
template <class T>
void encode(std::int64_t count, std::int64_t K, const T* x, std::int64_t x_stride,
            const std::array<double, 3>& thresholds, std::int64_t offset, std::uint8_t* columns, std::int64_t stride);

// distances of the tokens of `blocks` blocks of `columns` columns each to a query: a block of its own with one token,
// of which `query` is given (columns) bytes.
void compare(std::int64_t blocks, std::int64_t columns, const std::uint8_t* codes, const std::uint8_t* query,
             std::uint16_t* distances);

// The smallest and the largest of n distances, 65535 and 0 of none.
void range_of(std::int64_t n, const std::uint16_t* distances, std::uint16_t* least, std::uint16_t* most);

// How many of n distances, all below 2^15, are at most `limit`.
std::int64_t count_up_to(std::int64_t n, const std::uint16_t* distances, std::uint16_t limit);

// Indices of the distances below `limit`, and of those equal to it, but for the first `skip`. Ascending; returns the
// end.
std::int64_t* collect(std::int64_t n, const std::uint16_t* distances, std::uint16_t limit, std::int64_t skip,
                      std::int64_t* to);

}  // namespace loglinear::adamas
