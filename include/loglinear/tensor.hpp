#pragma once
// Element types and non-owning strided views: how arrays are handed to the operators.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

namespace loglinear {

enum class DType { f32, bf16, f64 };

// "f32", "bf16", "f64".
const char* name_of(DType dtype);
// Bytes of one element.
std::size_t size_of(DType dtype);

// The upper 16 bits of a float32. Conversion from float rounds to nearest, ties to even; NaN stays NaN.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  explicit bfloat16(float x) {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<std::uint16_t>(nan ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
  explicit operator double() const { return static_cast<float>(*this); }
};

template <class T>
inline constexpr DType dtype_of = std::is_same_v<std::remove_const_t<T>, float>      ? DType::f32
                                  : std::is_same_v<std::remove_const_t<T>, bfloat16> ? DType::bf16
                                                                                     : DType::f64;

// A view of an array of up to four dimensions. Strides are in elements. It owns nothing; data may be null when the
// array is absent or has no elements.
template <class Pointer>
struct BasicTensor {
  static constexpr int kMaxRank = 4;

  Pointer data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> stride{};

  BasicTensor() = default;

  // A dense row-major array of the given shape.
  template <class T>
  BasicTensor(T* values, std::initializer_list<std::int64_t> dims)
      : data(values), dtype(dtype_of<T>), rank(static_cast<int>(dims.size())) {
    static_assert(std::is_same_v<std::remove_const_t<T>, float> || std::is_same_v<std::remove_const_t<T>, double> ||
                      std::is_same_v<std::remove_const_t<T>, bfloat16>,
                  "an element is a float, a double or a bfloat16");
    int i = 0;
    for (std::int64_t d : dims)
      if (i < kMaxRank) shape[i++] = d;
    std::int64_t step = 1;
    for (int d = (rank < kMaxRank ? rank : kMaxRank) - 1; d >= 0; --d) {
      stride[d] = step;
      step *= shape[d];
    }
  }

  // The same with explicit strides, in elements. The operators ask for the last one to be 1.
  template <class T>
  BasicTensor(T* values, std::initializer_list<std::int64_t> dims, std::initializer_list<std::int64_t> strides)
      : BasicTensor(values, dims) {
    int i = 0;
    for (std::int64_t s : strides)
      if (i < kMaxRank) stride[i++] = s;
  }

  // Any view reads as a constant one.
  template <class Other>
  requires(std::is_same_v<Pointer, const void*>&& std::is_same_v<Other, void*>) BasicTensor(const BasicTensor<Other>& o)
      : data(o.data), dtype(o.dtype), rank(o.rank), shape(o.shape), stride(o.stride) {}

  bool present() const { return rank > 0; }
};

using Tensor = BasicTensor<void*>;
using ConstTensor = BasicTensor<const void*>;

}  // namespace loglinear
