#pragma once
// Rows of scratch matrices are padded so that kernels need no masks.

#include <cstdint>

namespace loglinear {

// Elements. At least one vector of any instruction set that we compile for (AVX-512: 16 floats).
inline constexpr std::int64_t kPad = 16;

constexpr std::int64_t padded(std::int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// Elements from one row of n to the next: an odd number of kPad, so that a panel of a few columns, read row after row,
// falls into all sets of a cache. Rows a power of two apart would share a few.
constexpr std::int64_t row_stride(std::int64_t n) { return padded(n) % (2 * kPad) == 0 ? padded(n) + kPad : padded(n); }

}  // namespace loglinear
