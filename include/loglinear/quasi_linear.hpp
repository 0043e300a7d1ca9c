#pragma once
// QLA, quasi-linear attention (VISTA, arXiv 2510.22049): a set of seeds (a history) that everything attends to, without
// order and without a normaliser, and candidates that see the seeds and themselves, never each other. The seeds are one
// matrix, Z, to which new ones are added as they come.

#include <cstdint>
#include <span>

#include "loglinear/error.hpp"

namespace loglinear {

// phi, applied to each element of q and k.
enum class Feature {
  silu,         // x / (1 + e^-x)
  shifted_elu,  // x for x >= 1, else e^(x - 1)
};

// Rows of q, k, v and out.
struct QuasiLinearSequence {
  std::int64_t seed_begin = 0, seed_count = 0;
  std::int64_t candidate_begin = 0, candidate_count = 0;
};

struct QuasiLinearShape {
  std::int64_t heads = 0;        // H
  std::int64_t key_width = 0;    // K
  std::int64_t value_width = 0;  // V
  Feature feature = Feature::silu;
};

// For every sequence and head, with phi applied to q and k:
//
//   Z      = Z0 + sum over seeds s of  k[s] v[s]^T         (K, V)
//   out[s] = q[s] Z                                        every seed s, whatever its place
//   out[c] = q[c] Z + (q[c] . k[c]) v[c]                   every candidate c
//
//   q, k           (.., H * K)   rows *_stride elements apart
//   v, out         (.., H * V)   rows *_stride elements apart; out is written for the sequences' rows
//   initial_state  empty, or one pointer a sequence to Z0 (H, K, V); null stands for zeros
//   final_state    empty, or one pointer a sequence: written with Z; null is skipped; may be the same pointers
//
// Candidates are scored from a state alone by a sequence without seeds. The function is not causal: a seed sees those
// after it. T is float or double, sums are in T: over 64 seeds, then from 64 to 64 in order, so that a history cut at
// multiples of 64 seeds gives the same state bit for bit; other cuts differ by rounding. Same bits for any number of
// threads, each sequence bit-equal to a separate call. Time O(rows K V) a head, memory one Z a sequence and head. out
// must not overlap an input. Throws Error on sizes < 1, a negative offset or count, rows that two ranges share, a row
// stride below the row, a list of states of another length, or a null array that has elements.
template <class T>
void quasi_linear_forward(std::span<const QuasiLinearSequence> sequences, const QuasiLinearShape& shape, const T* q,
                          std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v, std::int64_t v_stride,
                          T* out, std::int64_t out_stride, std::span<const T* const> initial_state = {},
                          std::span<T* const> final_state = {}, int threads = 0);

// Starts from Z0 = 0. dq, dk, dv are written for the sequences' rows and must not overlap an input; phi's derivative is
// in them. Same bits for any number of threads, each sequence bit-equal to a separate call.
template <class T>
void quasi_linear_backward(std::span<const QuasiLinearSequence> sequences, const QuasiLinearShape& shape, const T* q,
                           std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v, std::int64_t v_stride,
                           const T* dout, std::int64_t dout_stride, T* dq, std::int64_t dq_stride, T* dk,
                           std::int64_t dk_stride, T* dv, std::int64_t dv_stride, int threads = 0);

enum class SeedUpdate { add, remove };

// Adds the seeds of each sequence to its state, without any output, or takes seeds back that are in it (up to rounding:
// what was added and removed leaves its rounding errors behind). Candidates are not looked at. Adding gives the bits of
// quasi_linear_forward from that state.
//
//   state  one pointer a sequence to Z (H, K, V), read and written; two sequences must not share one
template <class T>
void quasi_linear_update(SeedUpdate update, std::span<const QuasiLinearSequence> sequences,
                         const QuasiLinearShape& shape, const T* k, std::int64_t k_stride, const T* v,
                         std::int64_t v_stride, std::span<T* const> state, int threads = 0);

}  // namespace loglinear
