#pragma once
// Rows of scratch matrices are padded so that kernels need no masks.

#include <cstdint>

namespace loglinear {

// Elements. At least one vector of any instruction set that we compile for (AVX-512: 16 floats).
inline constexpr std::int64_t kPad = 16;

constexpr std::int64_t padded(std::int64_t n) { return (n + kPad - 1) / kPad * kPad; }

}  // namespace loglinear
