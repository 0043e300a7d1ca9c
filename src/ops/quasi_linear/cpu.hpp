#pragma once
// The kernels of quasi-linear attention on rows of neighbouring heads; which instruction set runs is chosen at run
// time.
//
// A row holds all heads, so rows of one head lie far apart: a kernel is given as many heads as its scratch memory has
// room for in cache. Matrices of a head have rows row_stride(width) apart.

#include <cstdint>

#include "base/padding.hpp"
#include "loglinear/quasi_linear.hpp"

namespace loglinear::quasi_linear {

// The columns of the first head in rows of an array; those of the others follow.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0;

  T* operator[](std::int64_t row) const { return data + row * stride; }
};

template <class T>
struct Inputs {
  Feature feature = Feature::silu;
  std::int64_t heads = 1, K = 0, V = 0;
  Rows<const T> q, k, v, dout;  // dout: of a backward
};

// A matrix for each head.
template <class T>
struct Matrices {
  T* data = nullptr;
  std::int64_t stride = 0;  // of rows
  std::int64_t step = 0;    // from one head to the next

  T* of(std::int64_t head) const { return data + head * step; }
};

// What is summed over rows.
enum class Sum {
  state,           // (K, V)  of phi(k) v^T
  transposed,      // (V, K)  the same
  query_gradient,  // (V, K)  of dout phi(q)^T
};

// z += sign * the sum over rows [begin, begin + count), 64 rows at a time.
template <class T>
void add_rows(const Inputs<T>& in, Sum sum, T sign, std::int64_t begin, std::int64_t count, const Matrices<T>& z);

// out of rows [begin, begin + count); z (K, V).
template <class T>
void read_rows(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const Matrices<T>& z,
               Rows<T> out);

// Gradients of rows [begin, begin + count); z (V, K) the transposed state, w (V, K) the sum query_gradient, and its
// transpose (K, V).
template <class T>
void backward_rows(const Inputs<T>& in, bool candidates, std::int64_t begin, std::int64_t count, const Matrices<T>& z,
                   const Matrices<T>& w, const Matrices<T>& w_transposed, Rows<T> dq, Rows<T> dk, Rows<T> dv);

// to (columns, rows) = the transpose of from (rows, columns).
template <class T>
void transpose_matrix(std::int64_t rows, std::int64_t columns, const T* from, T* to);

// Frees scratch memory that the thread keeps beyond what its next piece needs.
void trim_scratch();

}  // namespace loglinear::quasi_linear
