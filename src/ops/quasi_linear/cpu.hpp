#pragma once
// The kernels of quasi-linear attention on rows of one head; which instruction set runs is chosen at run time.
//
// Matrices in scratch memory have rows row_stride(width) apart. What a kernel does to the columns of v does not depend
// on which of them it is given: callers may cut them.

#include <cstdint>

#include "base/padding.hpp"
#include "loglinear/quasi_linear.hpp"

namespace loglinear::quasi_linear {

// One head's columns in rows of an array.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0;

  T* operator[](std::int64_t row) const { return data + row * stride; }
};

template <class T>
struct Inputs {
  Feature feature = Feature::silu;
  std::int64_t K = 0, V = 0;
  Rows<const T> q, k, v, dout;  // dout: of a backward
};

// What is summed over the rows of a head.
enum class Sum {
  state,           // z (K, V)  of phi(k) v^T
  transposed,      // z (V, K)  the same
  query_gradient,  // z (V, K)  of dout phi(q)^T
};

// z (rows z_stride apart) += sign * the sum over rows [begin, begin + count), 64 rows at a time.
template <class T>
void add_rows(const Inputs<T>& in, Sum sum, T sign, std::int64_t z_stride, std::int64_t begin, std::int64_t count,
              T* z);

// out of rows [begin, begin + count); z (K, V).
template <class T>
void read_rows(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const T* z, Rows<T> out);

// Gradients of rows [begin, begin + count); z (V, K) the transposed state, w (V, K) the sum query_gradient, and its
// transpose (K, V).
template <class T>
void backward_rows(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const T* z, const T* w,
                   const T* w_transposed, Rows<T> dq, Rows<T> dk, Rows<T> dv);

// to (columns, rows) = the transpose of from (rows, columns).
template <class T>
void transpose_matrix(std::int64_t rows, std::int64_t columns, const T* from, T* to);

// Frees scratch memory that the thread keeps beyond what its next piece needs.
void trim_scratch();

}  // namespace loglinear::quasi_linear
