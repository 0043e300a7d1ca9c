#pragma once
// The kernels of MoSA, one piece of work at a time; which instruction set runs is chosen at run time.

#include <cstdint>
#include <span>
#include <vector>

#include "base/padding.hpp"
#include "loglinear/mosa.hpp"

namespace loglinear::mosa {

// Matrices of all heads, rows padded for the matrix kernel.
template <class T>
struct Panels {
  const T* data = nullptr;
  std::int64_t stride = 0;  // of rows
  std::int64_t step = 0;    // from one head to the next

  const T* of(std::int64_t head) const { return data + head * step; }
};

// What the pieces of one call share.
template <class T>
struct Plan {
  std::span<const std::int64_t> cu_seqlens;
  MosaShape shape;
  const T* x = nullptr;
  std::int64_t x_stride = 0;
  Panels<T> router, qkv, out;        // (D, E), (E, D, 3 d), (E, d, D)
  std::vector<std::int64_t> rows;    // (S + 1): where the choice of a sequence begins among the R of every head
  std::vector<T> scores;             // (E, N): r
  std::vector<std::int64_t> chosen;  // (E, R)
  std::vector<double> turns, leaps;  // cosines and sines of 0 .. kLeap - 1 positions, and of multiples of kLeap

  std::int64_t N() const { return cu_seqlens.back(); }
  std::int64_t R() const { return rows.back(); }
  // Pairs of columns that the rotary embedding turns.
  std::int64_t pairs() const { return shape.head_width / 4; }
  // A row of queries, keys and values side by side.
  std::int64_t qkv_stride() const { return row_stride(3 * shape.head_width); }
  // A row of their gradients and, last, that of the router's product.
  std::int64_t gradient_width() const { return 3 * shape.head_width + 1; }
  std::int64_t gradient_stride() const { return row_stride(gradient_width()); }
  std::int64_t attended_stride() const { return row_stride(shape.head_width); }
};

inline constexpr std::int64_t kLeap = 64;  // positions

// scores of rows [begin, end) of x.
template <class T>
void route(const Plan<T>& plan, std::int64_t begin, std::int64_t end, T* scores);

// attended (k, d), rows attended_stride apart: r[I] * A of one sequence and head.
template <class T>
void attend(const Plan<T>& plan, std::int64_t sequence, std::int64_t head, T* attended);

// Rows of y for the positions [first, last) of a sequence: the sum over the heads that chose a token of the head's row
// (width) for it, among `rows` (E, R, stride), times the head's matrix (width, D).
template <class T>
void gather_heads(const Plan<T>& plan, std::int64_t sequence, std::int64_t first, std::int64_t last, std::int64_t width,
                  const T* rows, std::int64_t stride, const Panels<T>& matrices, T* y, std::int64_t y_stride);

// Everything of one head's backward but the way back to x, for which it leaves the gradients of its products in `rows`
// (R, gradient_stride). out_transposed (E, D, d).
template <class T>
void backward_head(const Plan<T>& plan, std::int64_t head, const T* dy, std::int64_t dy_stride,
                   const Panels<T>& out_transposed, T* rows, const MosaGradients<T>& gradients);

// to (columns, rows), rows `stride` apart, = the transpose of a dense (rows, columns).
template <class T>
void transpose_matrix(std::int64_t rows, std::int64_t columns, const T* from, T* to, std::int64_t stride);

// Frees scratch memory that the thread keeps beyond what its next piece needs.
void trim_scratch();

}  // namespace loglinear::mosa
