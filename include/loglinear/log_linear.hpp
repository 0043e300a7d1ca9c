#pragma once
// Log-linear attention (Guo, Yang, Goel, Xing, Dao, Kim, arXiv 2506.04761): forward, backward and one decoding step.
//
//   out_t = sum over s <= t of  level_scales[t, level(t, s)] * ( q_t^T  A_t A_{t-1} ... A_{s+1}  w_s ) v_s
//   level(t, s) = min(bit_width(t XOR s), L - 1)          positions are absolute and count from 0
//
//   rule          A_t                               w_s
//   scalar_decay  exp(g_t) I                        k_s         log-linear Mamba-2; with L = 1 and scales 1 Mamba-2
//   gated_delta   exp(g_t) (I - beta_t k_t k_t^T)   beta_s k_s  log-linear Gated DeltaNet; k should have unit length
//
// Shapes: B batch, T tokens, G query/key groups, H heads (G divides H; head h uses group h / (H / G)), K key width, V
// value width, L levels. Types: q, k, v, out and their gradients share one dtype, f32, bf16 or f64. g, beta,
// level_scales and their gradients are f32, or f64 when q is f64. States are f32, or f64 when q is f64. Sums are
// carried in float32 (f64: float64).
//
// Every tensor may be strided as long as its last dimension is contiguous (stride 1). Tensors that are written must not
// overlap each other or any input.
//
// Variable length: cu_seqlens = {0, n1, n1 + n2, ...} with B = 1 packs N sequences along T; empty sequences are
// allowed. Without it there are N = B sequences of T tokens. The result for each sequence is bit-equal to a separate
// call.
//
// Cuts: a sequence read in several calls, cut anywhere, gives the same bits as in one (forward); decoding steps leave
// the same bits in the state's matrices. Blocks of tokens that are read through the last of L levels are kept as one,
// so a state can go on with the L that it was made with or with fewer.
//
// Determinism: the same bits from run to run and for any number of threads (but for a head with a NaN or infinity in it
// where bfloat16 is multiplied: what it spoils is rounded otherwise for another number of threads). A NaN or infinity
// in one sequence or head leaves the others bit-equal (through q and k it reaches the heads of its group). Nothing is
// printed. Errors are loglinear::Error and are thrown before anything is written, but for one: when memory runs out on
// the way, what was to be written, states of a step included, is in no state to be used.

#include <cstdint>
#include <span>

#include "loglinear/error.hpp"
#include "loglinear/state.hpp"
#include "loglinear/tensor.hpp"

namespace loglinear::log_linear {

// What happens to tokens so old that their level is L or more.
enum class PastLast {
  share,   // they are read with the last scale, level_scales[.., L - 1]; no token is ever dropped
  refuse,  // Error when a sequence is long enough to have such a token
};

struct ForwardArgs {
  Rule rule = Rule::scalar_decay;
  ConstTensor q, k;          // (B, T, G, K)
  ConstTensor v;             // (B, T, H, V)
  ConstTensor g;             // (B, T, H)     natural-log decay, <= 0; minus infinity forgets everything older
  ConstTensor beta;          // (B, T, H)     write strength; only for rules that have it, otherwise absent
  ConstTensor level_scales;  // (B, T, H, L)  L >= 1
  Tensor out;                // (B, T, H, V)  written

  std::span<const std::int64_t> cu_seqlens;  // empty, or (N + 1)
  std::span<const State> initial_state;      // empty (all sequences start at position 0), or (N)
  std::span<State> final_state;              // empty, or (N), replaced; may be the same objects as initial_state
  PastLast past_last = PastLast::share;
  // Tokens per chunk, a power of two up to 256; 0: that of the initial state, or default_chunk(K, V). Error when the
  // initial state has another. Changes rounding and what a state keeps open.
  int chunk = 0;
  int threads = 0;  // 0: what OpenMP would use
};

// Time O(T log T), memory O(threads * K * V * log T) beyond the arguments, times the heads that a thread takes
// together, which is one, or where heads share keys (G < H) those of a group that fall to one thread. Heads and
// sequences are spread over the threads, and where there are fewer of them, columns of the values. A final state keeps
// allow_rollback() of the initial one. Checks that g <= 0 and is not NaN are the caller's: a positive g is computed as
// if it were the definition as long as nothing overflows.
void forward(const ForwardArgs& args);

struct BackwardArgs {
  Rule rule = Rule::scalar_decay;
  ConstTensor q, k, v, g, beta, level_scales;  // as in forward
  ConstTensor dout;                            // (B, T, H, V) gradient of the loss in out

  Tensor dq, dk;         // (B, T, G, K)     written (not added to), as are all below
  Tensor dv;             // (B, T, H, V)
  Tensor dg;             // (B, T, H)
  Tensor dbeta;          // (B, T, H)        only for rules that have it
  Tensor dlevel_scales;  // (B, T, H, L)     zero for levels that were not read

  std::span<const std::int64_t> cu_seqlens;
  std::span<const State> initial_state;  // as given to forward
  // Gradients of states are taken in what they hold, the dense matrices (State::dense) and the open tokens, and are
  // themselves States: same slots, decays zero, the gradient of an open token's k, v, g, beta in its place.
  std::span<const State> dfinal_state;  // empty (zero), or (N) at the final positions
  std::span<State> dinitial_state;      // empty, or (N), replaced
  PastLast past_last = PastLast::share;
  int chunk = 0;
  int threads = 0;
};

// Recomputes the states instead of keeping them. Where heads share keys (G < H), the rule erases nothing and products
// are not bfloat16 ones, one state of eight chunks is kept; otherwise memory is O(sqrt(T) log T) states a head, or up
// to 32 MiB of states a thread (128 MiB for a rule that erases) where that is more. When H / G > 4, and for bfloat16
// that is not multiplied as such also when G < H and nothing is erased, a copy of dq and dk for every range of heads,
// at most eight. Ranges of heads and sequences are spread over the threads; where those are at most half as many, a
// sequence is cut into as many spans as that leaves threads for it, with two states at each cut.
void backward(const BackwardArgs& args);

struct StepArgs {
  Rule rule = Rule::scalar_decay;
  ConstTensor q, k;          // (B, G, K)
  ConstTensor v;             // (B, H, V)
  ConstTensor g;             // (B, H)
  ConstTensor beta;          // (B, H)
  ConstTensor level_scales;  // (B, H, L)
  Tensor out;                // (B, H, V)   written
  std::span<State> states;   // (B), at any positions, each advanced by one token
  PastLast past_last = PastLast::share;
  int threads = 0;
};

// One token for each of B sequences, which may be at different positions. Reads the live states, at most
// popcount(position / chunk), and the tokens of the open chunk, and writes none of them; every chunk-th token folds its
// chunk into the states (docs/algorithm.md, section 4.1). Takes no memory once as large a step was made, but for a copy
// of the open tokens when a fork shares them, and when a chunk is folded: short lists, the matrices by which the state
// grows, and with allow_rollback() room for the next open tokens.
void step(const StepArgs& args);

}  // namespace loglinear::log_linear
