#pragma once
// MoSA, mixture of sparse attention (Piękos et al., arXiv 2505.00315): heads that each choose the tokens they attend
// among.

#include <cstdint>
#include <span>

#include "loglinear/error.hpp"

namespace loglinear {

struct MosaShape {
  std::int64_t model_width = 0;  // D
  std::int64_t heads = 0;        // E
  std::int64_t head_width = 0;   // d
  std::int64_t sparsity = 0;     // a head chooses about one token in so many, at least 1
  bool first_token = false;      // every head chooses token 0 of every sequence, as one of its k
  double theta = 10000;          // base of the rotary embedding
};

// Tokens that a head chooses of a sequence of T: min(max(T / sparsity, 2), T), the quotient rounded down. Throws Error
// when T < 0 or sparsity < 1.
std::int64_t mosa_choice(std::int64_t T, std::int64_t sparsity);

template <class T>
struct MosaWeights {
  const T* router = nullptr;  // W_r   (D, E)
  const T* qkv = nullptr;     // W_QKV (E, D, 3 d): columns of queries, of keys, of values
  const T* out = nullptr;     // W_O   (E, d, D)
};

// Gradients of the weights, in their shapes. ADDED to.
template <class T>
struct MosaGradients {
  T* router = nullptr;
  T* qkv = nullptr;
  T* out = nullptr;
};

// For every sequence X (T, D) and head e, with k = mosa_choice(T, sparsity):
//
//   r    = sigmoid(X W_r[:, e])
//   I    = the k tokens of largest r; of equal ones the earlier. A NaN counts as larger than every number.
//   Q, K, V = X[I] W_QKV[e]; the rotary embedding turns the first 2 floor(d / 4) columns of Q and K by the positions
//          that the tokens have in the sequence (half-rotation, angle position * theta^(-2 i / width))
//   A    = softmax(Q K^T / sqrt(d) where I_b <= I_a, else nothing) V
//   y[I] += r[I] * A W_O[e]
//
// A token that no head chose has y = 0.
//
// **The choice looks at the whole sequence**: whether a token is chosen depends on tokens after it. Attention among the
// chosen is causal in their positions, but y[t] is not a function of x[0 .. t]. So there is no decoding form, and none
// is offered: a causal rule of choice is not part of the paper. As the mixer of a language model it says what MoSA
// learns when it scores whole sequences, with what it sees of the future through the choice.
//
//   cu_seqlens  (S + 1)   packed sequences: rows cu_seqlens[s] .. cu_seqlens[s + 1] - 1; from 0, ascending, empty
//                         sequences allowed; N = cu_seqlens[S]
//   x, y        (N, D)    rows *_stride elements apart; y is written, must not overlap x
//   chosen      (E, sum over s of k_s) or null: written with the positions in their sequences, ascending, sequence
//                         after sequence
//
// A hybrid with dense heads is a sum: let this write y and the projection of the dense heads be added to it. T is float
// or double; sums are in T. Time O(T D E) for the choice and O(k D d + k^2 d) a head, memory O(N (E + D) + k), and O(k
// d) a thread, beyond the arguments. Same bits for any number of threads (a token sums its heads in order), and each
// sequence bit-equal to a separate call. Throws Error on sizes < 1, a theta that is not positive, cu_seqlens that does
// not start at 0 or descends, a row stride below D, or a null array that has elements.
template <class T>
void mosa_forward(std::span<const std::int64_t> cu_seqlens, const MosaShape& shape, const MosaWeights<T>& weights,
                  const T* x, std::int64_t x_stride, T* y, std::int64_t y_stride, std::int64_t* chosen = nullptr,
                  int threads = 0);

// Chooses as forward does, from the same arguments, and computes its products again. dx (N, D) is written, gradients
// are added to, head by head and sequence by sequence. The gradient reaches the router only through the factor r[I]:
// the choice itself has none. dx must not overlap x or dy. Same bits for any number of threads; dx of a sequence is
// bit-equal to a separate call.
template <class T>
void mosa_backward(std::span<const std::int64_t> cu_seqlens, const MosaShape& shape, const MosaWeights<T>& weights,
                   const T* x, std::int64_t x_stride, const T* dy, std::int64_t dy_stride, T* dx,
                   std::int64_t dx_stride, const MosaGradients<T>& gradients, int threads = 0);

}  // namespace loglinear
