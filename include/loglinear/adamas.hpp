#pragma once
// Adamas (arXiv 2510.18413): decoding that attends to the few tokens of a key/value cache whose keys look most like the
// query in 2 bits a dimension. Needs no training.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "loglinear/error.hpp"

namespace loglinear {

struct AdamasShape {
  std::int64_t heads = 0;                           // H
  std::int64_t kv_heads = 0;                        // G, divides H; head h reads group h / (H / G)
  std::int64_t key_width = 0;                       // K, a power of two, at most 8192
  std::int64_t value_width = 0;                     // V
  double scale = 0;                                 // of q . k; 0: K^-0.5
  std::int64_t budget = 0;                          // tokens that a head attends to, at least 1
  std::array<double, 3> thresholds = {-10, 0, 10};  // ascending
};

// y = H x for every head of every row, H the orthonormal Hadamard matrix in its natural order: H[i, j] = (-1)^(number
// of ones in i & j) / sqrt(width). It is its own inverse, and turning q and k by it leaves q . k as it is.
//
//   x, y  (rows, heads * width)   rows *_stride elements apart; y may be x with the same stride
//
// width is a power of two. T is float or double, sums are in T. Same bits for any number of threads. Throws Error on
// another width, a negative size, a row stride below the row, or a null array that has elements.
template <class T>
void hadamard(std::int64_t rows, std::int64_t heads, std::int64_t width, const T* x, std::int64_t x_stride, T* y,
              std::int64_t y_stride, int threads = 0);

// The keys of a cache, 2 bits a dimension: code(x) = how many thresholds lie strictly below x, for the elements of H k
// (a NaN has code 0). A value: a copy is independent of its source. K / 4 bytes a token and group, in blocks of 128
// tokens; K below 4 takes a byte.
class AdamasCodes {
 public:
  // No tokens. Throws Error for a shape that adamas_step would refuse.
  explicit AdamasCodes(const AdamasShape& shape);

  // Adds the keys of new tokens, after any rotary embedding: k (tokens, G * K), rows k_stride elements apart. T is
  // float or double and its transform is computed in T. Same bits however tokens are cut into calls, and for any number
  // of threads. Throws Error on a negative count, a row stride below G * K, or a null array that has elements.
  template <class T>
  void append(std::int64_t tokens, const T* k, std::int64_t k_stride, int threads = 0);

  std::int64_t tokens() const { return tokens_; }
  // Of the codes, the unused end of the last block included.
  std::size_t bytes() const;
  // 0 .. 3. token < tokens(), group < G, dimension < K: not checked.
  int code(std::int64_t token, std::int64_t group, std::int64_t dimension) const;

  std::int64_t kv_heads() const { return static_cast<std::int64_t>(groups_.size()); }
  std::int64_t key_width() const { return key_width_; }
  const std::array<double, 3>& thresholds() const { return thresholds_; }

  // Four dimensions, lowest bits first, of 128 tokens. Block b of a group is its columns b * ceil(K / 4) and on.
  struct alignas(64) Column {
    std::array<std::uint8_t, 128> bytes;
  };
  std::span<const Column> columns(std::int64_t group) const { return groups_[static_cast<std::size_t>(group)]; }

 private:
  std::int64_t key_width_, tokens_ = 0;
  std::array<double, 3> thresholds_;
  std::vector<std::vector<Column>> groups_;
};

// distances[h, s] = sum over dimensions of |code(H q[h]) - code of token s|: the true distance, 0 .. 3 K. (The authors'
// kernel counts a pair (1, 2) as 3 by a bit trick, where the definition gives 1.)
//
//   q          (H * K)
//   distances  (H, stride)  written for the tokens; stride >= tokens, a multiple of 128; what is beyond the tokens of a
//                           row is unspecified
//
// Throws Error for codes of another shape, or a stride too small.
template <class T>
void adamas_distances(const AdamasShape& shape, const AdamasCodes& codes, const T* q, std::uint16_t* distances,
                      std::int64_t stride, int threads = 0);

// The tokens that a head attends to: the newest, and of the others the budget - 1 of smallest distance; of equal ones
// the newer. Ascending, min(budget, tokens) of them.
//
//   distances  (tokens)                   each below 2^15; not read, and may be null, when the budget covers all tokens
//   chosen     room for min(budget, tokens)
//
// Time O(tokens log(range of the distances)). Throws Error when tokens < 0, budget < 1 or a distance is out of range.
void adamas_select(std::int64_t tokens, const std::uint16_t* distances, std::int64_t budget, std::int64_t* chosen);

// A sequence in decoding: its cache, the newest token included.
template <class T>
struct AdamasCache {
  const AdamasCodes* codes = nullptr;
  const T* k = nullptr;  // (tokens, G * K)
  const T* v = nullptr;  // (tokens, G * V)
};

// One decoding step of every sequence b. With I the choice of adamas_select for the distances of the head's query:
//
//   out[b, h] = sum over s in I of  softmax_s(scale * q[b, h] . k[s, g]) * v[s, g]
//
//   q     (B, H * K)   rows q_stride elements apart; after any rotary embedding, like the keys
//   k, v               rows of the caches k_stride and v_stride elements apart
//   out   (B, H * V)   rows out_stride elements apart; written
//
// Attention is exact and in T on what is chosen. When the budget covers all tokens of a sequence it is dense attention,
// with the bits of any other budget that does. A choice is discrete: rounding of T can move it where distances change.
// Same bits for any number of threads, each sequence bit-equal to a separate call. Time O(tokens K / 4) bytes compared,
// then O(budget (K + V)), a head; memory O(tokens) a thread. Throws Error on sizes < 1, a key width that is no power of
// two, G not dividing H, a scale that is negative or not finite, a budget < 1, thresholds that do not ascend, codes of
// another shape or without tokens, a row stride below the row, or a null array.
template <class T>
void adamas_step(const AdamasShape& shape, std::span<const AdamasCache<T>> caches, const T* q, std::int64_t q_stride,
                 std::int64_t k_stride, std::int64_t v_stride, T* out, std::int64_t out_stride, int threads = 0);

}  // namespace loglinear
