#pragma once
// How well a query matches the keys of each state that its token reads, the values left aside: what the level policy
// `content` decides by (level_scales.hpp).
//
//   matches[n, g, l] = q[n, g] . (sum of k[s, g] over the tokens s of level l of token n) / sqrt(their number)
//
// for the levels that a token at position t has, 0 (the token itself) and every l with bit l - 1 of t set (2^(l - 1)
// tokens), and 0 for the others. With the root, keys that have nothing to do with the query add up to noise of the same
// size at every level, those beyond the trained length among them. A block of tokens is a level as a whole, so that a
// sum of keys for each set bit of the position is all that a stream has to keep: (log2 T) G K numbers. Keys are not
// decayed: a decay would have to be that of a head, and the states do theirs themselves. About K (2 + popcount(t))
// multiply-adds a token and group.
//
// Source: this library's (docs/algorithm.md, 8.1). Dtype: T is float or double for everything. Parallel over sequences,
// groups and 1024 tokens at a time; same bits for any number of threads, forward also for any cut of a sequence into
// calls. Throws Error before anything is written.

#include <cstdint>
#include <span>
#include <vector>

#include "loglinear/error.hpp"

namespace loglinear {

// The sums of keys of a sequence of `position` tokens: that of bit b at sums + b * G * K, (bit_width(position), G, K),
// zeros for bits that are not set. Of a sequence that begins at `position` without keys all sums may be left out.
template <class T>
struct KeySums {
  std::int64_t position = 0;
  std::vector<T> sums;
};

struct MatchShape {
  std::span<const std::int64_t> cu_seqlens;  // {0, n1, n1 + n2, ...}, the last is N
  std::int64_t groups = 0;                   // G
  std::int64_t key_width = 0;                // K
  std::int64_t columns = 0;                  // of matches, 1 to 64: more than bit_width of any position
};

//   q, k (N, G * K), rows q_stride and k_stride apart   initial: empty (all sequences begin at 0) or one for each
//   sequence   matches (N, G, columns), written   final: empty or one for each sequence, written; may be initial
template <class T>
void level_matches_forward(const MatchShape& shape, const T* q, std::int64_t q_stride, const T* k,
                           std::int64_t k_stride, std::span<const KeySums<T>> initial, T* matches,
                           std::span<KeySums<T>> final, int threads = 0);

// dmatches (N, G, columns)   dq, dk (N, G * K), rows dq_stride and dk_stride apart, are added to. The initial sums are
// constants.
template <class T>
void level_matches_backward(const MatchShape& shape, const T* q, std::int64_t q_stride, const T* k,
                            std::int64_t k_stride, std::span<const KeySums<T>> initial, const T* dmatches, T* dq,
                            std::int64_t dq_stride, T* dk, std::int64_t dk_stride, int threads = 0);

// Takes out of the matches what all keys have in common: the mean key of the tokens up to n is subtracted from every
// key,
//
//   matches[n, g, l] - w[l] (sum over the levels j of n of w[j] matches[n, g, j]),   w[l] = sqrt(tokens of l / (t + 1))
//
// Otherwise the product of q and that mean, times the root of the number of tokens, makes a level match the more the
// larger it is, whatever is in it. w has unit length, so this is a projection and its own adjoint: it turns the
// gradient of what it writes into that of what it read, too.
//   positions (rows), each 0 to 2^62   matches (rows, groups, columns), rewritten; levels that a token does not have
//   are left alone. Throws Error when columns is not above bit_width of every position.
template <class T>
void center_matches(std::int64_t rows, std::int64_t groups, std::int64_t columns, const std::int64_t* positions,
                    T* matches, int threads = 0);

}  // namespace loglinear
