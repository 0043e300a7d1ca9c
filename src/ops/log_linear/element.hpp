#pragma once
// Single elements of strided tensors, converted to and from the type that is computed in.

#include <cstdint>

#include "loglinear/tensor.hpp"

namespace loglinear::log_linear {

// Elements from the start of x to entry (b, t, h) of its first three dimensions.
template <class Pointer>
std::int64_t offset(const BasicTensor<Pointer>& x, std::int64_t b, std::int64_t t, std::int64_t h) {
  return b * x.stride[0] + t * x.stride[1] + h * x.stride[2];
}

template <class S>
S get(const ConstTensor& x, std::int64_t i) {
  switch (x.dtype) {
    case DType::f32:
      return static_cast<S>(static_cast<const float*>(x.data)[i]);
    case DType::bf16:
      return static_cast<S>(static_cast<const bfloat16*>(x.data)[i]);
    case DType::f64:
      return static_cast<S>(static_cast<const double*>(x.data)[i]);
  }
  return S(0);
}

template <class S>
void put(const Tensor& x, std::int64_t i, S value) {
  switch (x.dtype) {
    case DType::f32:
      static_cast<float*>(x.data)[i] = static_cast<float>(value);
      return;
    case DType::bf16:
      static_cast<bfloat16*>(x.data)[i] = bfloat16(static_cast<float>(value));
      return;
    case DType::f64:
      static_cast<double*>(x.data)[i] = static_cast<double>(value);
      return;
  }
}

// n entries that lie beside each other, from entry i on.
template <class S>
void get_row(const ConstTensor& x, std::int64_t i, std::int64_t n, S* out) {
  const auto convert = [&](const auto* from) {
    for (std::int64_t j = 0; j < n; ++j) out[j] = static_cast<S>(from[i + j]);
  };
  switch (x.dtype) {
    case DType::f32:
      return convert(static_cast<const float*>(x.data));
    case DType::bf16:
      return convert(static_cast<const bfloat16*>(x.data));
    case DType::f64:
      return convert(static_cast<const double*>(x.data));
  }
}

template <class S>
void put_row(const Tensor& x, std::int64_t i, std::int64_t n, const S* from) {
  switch (x.dtype) {
    case DType::f32:
      for (std::int64_t j = 0; j < n; ++j) static_cast<float*>(x.data)[i + j] = static_cast<float>(from[j]);
      return;
    case DType::bf16:
      for (std::int64_t j = 0; j < n; ++j)
        static_cast<bfloat16*>(x.data)[i + j] = bfloat16(static_cast<float>(from[j]));
      return;
    case DType::f64:
      for (std::int64_t j = 0; j < n; ++j) static_cast<double*>(x.data)[i + j] = static_cast<double>(from[j]);
      return;
  }
}

// g as the kernels sum it. Below -1e4 the exponential is zero in any type; bounding it there keeps sums of g exact
// enough after a token that wipes the state, minus infinity included. NaN stays NaN.
inline double bounded_decay(double g) { return g < -1e4 ? -1e4 : g; }

}  // namespace loglinear::log_linear
