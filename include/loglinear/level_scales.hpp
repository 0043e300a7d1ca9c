#pragma once
// The scales that a token gives to the levels of the hierarchy, from what a model has learned for some of them.
//
// With z[n, h, j] = level[h, j] * dl[n, h, j], j = 0 .. n - 1 the n levels that training reaches, the scale of level l
// of a token at position t (counted from 0; its levels are 0 and every l with bit l - 1 of t set; m = bit_width(t) the
// largest) is
//
//   share     factor * softplus(z[min(l, n - 1)])
//   stretch   the same as share up to position 2^(n - 1); beyond it levels 0 .. m are stretched over 0 .. n - 1:
//             factor * softplus(z) between its neighbours at l (n - 1) / m, linearly
//   routed    factor * p[l] / mean of p over the token's levels, p[l] = exp(z[min(l, n - 1)]): a softmax over the
//             states that the token reads, times their number
//   content   the same with z[l] = level[j] * (dl[j] + match_factor * matches[l]), j = min(l, n - 1): what the states
//             hold has a say (matches: level_matches.hpp)
//
// share with all levels learned is the published model (arXiv 2506.04761); the others are this library's
// (docs/quality.md measures them). Dtype: T is float or double for everything. Same bits for any number of threads; a
// NaN stays in its row and head. Throws Error before anything is written.

#include <cstdint>

#include "loglinear/error.hpp"

namespace loglinear {

enum class LevelPolicy { share, stretch, routed, content };

struct LevelShape {
  LevelPolicy policy = LevelPolicy::share;
  std::int64_t rows = 0;     // N tokens
  std::int64_t heads = 0;    // H
  std::int64_t levels = 0;   // L, what dl and level have for each head
  std::int64_t learned = 0;  // n, 1 to L: the first of them, which are used
  std::int64_t columns = 0;  // of level_scales and matches: level_columns()
  std::int64_t groups = 0;   // G of matches, divides H; head h has group h / (H / G). Read by content alone
  double match_factor = 1;   // of matches
};

// Levels that the tokens of a sequence of T >= 1 tokens, begun at position 0, read through.
std::int64_t level_count(std::int64_t T);

// Levels that the operator needs scales for, in a call whose tokens are at positions up to `last`: n for share, whose
// last scale serves all older levels. For the others more than there are, so that the operator merges no two of them.
std::int64_t level_columns(LevelPolicy policy, std::int64_t learned, std::int64_t last);

//   dl (N, H * L), head-major, rows dl_stride apart   level (H, L)   level_scales (N, H, columns), written; zero for
//   levels that a token does not have   positions (N), each 0 to 2^62; not read by share   matches (N, G, columns);
//   read by content alone
template <class T>
void level_scales_forward(const LevelShape& shape, const std::int64_t* positions, const T* dl, std::int64_t dl_stride,
                          const T* level, const T* matches, T factor, T* level_scales, int threads = 0);

// ddl (N, H * L) is written, with zeros for levels that are not learned; dlevel (H, L) is added to. dmatches (N, G,
// columns) is written for content and left alone otherwise.
template <class T>
void level_scales_backward(const LevelShape& shape, const std::int64_t* positions, const T* dl, std::int64_t dl_stride,
                           const T* level, const T* matches, T factor, const T* dlevel_scales, T* ddl,
                           std::int64_t ddl_stride, T* dlevel, T* dmatches, int threads = 0);

}  // namespace loglinear
