#pragma once
// The definition of log-linear attention as a loop over tokens, for one head of one sequence, forward and backward, for
// any scalar type (float, double, std::complex<double>). Too simple to be wrong: everything else is held against it.

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "loglinear/log_linear.hpp"
#include "rules/rules.hpp"

namespace loglinear::log_linear {

// The same contracts as forward() and backward(), computed by the definition: in float64 when q is f64, else in
// float32. One head at a time, states kept at every 64th token. `chunk` only says what the states look like.
void ref_forward(const ForwardArgs& args);
void ref_backward(const BackwardArgs& args);

namespace ref {

// A block of 2^bit tokens and its dense (K, V) matrix.
template <class S>
struct Block {
  int bit = 0;
  std::vector<S> matrix;
};

// The live blocks of a sequence, largest first, like the digits of a binary counter.
template <class S>
using Blocks = std::vector<Block<S>>;

// One head of one sequence. Its first tokens may be those that were open in the initial state: nothing is asked of
// them.
template <class S>
struct Head {
  std::int64_t T = 0, K = 0, V = 0, L = 0;
  int last_bit = 62;            // blocks of this bit and larger are read through one level and kept as one
  std::int64_t settled = 0;     // the final blocks are those after so many tokens
  std::vector<S> q, k;          // (T, K)
  std::vector<S> v;             // (T, V)
  std::vector<S> g, beta;       // (T)      beta: ones for rules without it
  std::vector<S> level_scales;  // (T, L)
  Blocks<S> initial;            // those before the first token
};

template <class S>
struct Gradients {
  std::vector<S> dq, dk, dv, dg, dbeta, dlevel_scales;
  Blocks<S> dinitial;
};

inline std::int64_t level_of_bit(int bit, std::int64_t L) { return std::min<std::int64_t>(bit + 1, L - 1); }

// Token t acts on every live block: S <- exp(g) (erase S).
template <class Rule, class S>
void transition(const Head<S>& x, std::int64_t t, Blocks<S>& blocks) {
  using std::exp;
  const S alpha = exp(x.g[t]);
  for (Block<S>& block : blocks) {
    Rule::erase(x.K, x.V, &x.k[t * x.K], x.beta[t], block.matrix.data());
    for (S& e : block.matrix) e *= alpha;
  }
}

// The counter takes in one token: the new block merges with every block of a trailing one bit.
template <class S>
void increment(int last_bit, Blocks<S>& blocks, std::vector<S> written) {
  int bit = 0;
  while (!blocks.empty() && (bit == last_bit || blocks.back().bit == bit)) {
    for (std::size_t i = 0; i < written.size(); ++i) written[i] += blocks.back().matrix[i];
    blocks.pop_back();
    if (bit < last_bit) ++bit;
  }
  blocks.push_back({bit, std::move(written)});
}

// The outer product w_t v_t^T that token t writes.
template <class Rule, class S>
std::vector<S> write(const Head<S>& x, std::int64_t t) {
  std::vector<S> w(x.K), written(x.K * x.V);
  Rule::write(x.K, &x.k[t * x.K], x.beta[t], w.data());
  for (std::int64_t a = 0; a < x.K; ++a)
    for (std::int64_t b = 0; b < x.V; ++b) written[a * x.V + b] = w[a] * x.v[t * x.V + b];
  return written;
}

// q_t^T M for a (K, V) matrix, added to out (V) with a weight.
template <class S>
void read(const Head<S>& x, std::int64_t t, const std::vector<S>& matrix, S weight, S* out) {
  for (std::int64_t a = 0; a < x.K; ++a)
    for (std::int64_t b = 0; b < x.V; ++b) out[b] += weight * x.q[t * x.K + a] * matrix[a * x.V + b];
}

// Returns out (T, V) and puts the final blocks into `final_blocks`.
template <class Rule, class S>
std::vector<S> forward(const Head<S>& x, Blocks<S>& final_blocks) {
  std::vector<S> out(x.T * x.V, S(0));
  Blocks<S> blocks = x.initial;
  for (std::int64_t t = 0; t < x.T; ++t) {
    if (t == x.settled) final_blocks = blocks;
    transition<Rule>(x, t, blocks);
    std::vector<S> written = write<Rule>(x, t);
    read(x, t, written, x.level_scales[t * x.L], &out[t * x.V]);
    for (const Block<S>& block : blocks)
      read(x, t, block.matrix, x.level_scales[t * x.L + level_of_bit(block.bit, x.L)], &out[t * x.V]);
    increment(x.last_bit, blocks, std::move(written));
  }
  if (x.settled == x.T) final_blocks = std::move(blocks);
  return out;
}

// The adjoint of forward. dfinal: the gradient of each final block, or empty (zero). States are recomputed from copies
// kept every kStride tokens.
template <class Rule, class S>
Gradients<S> backward(const Head<S>& x, const std::vector<S>& dout, const Blocks<S>& dfinal) {
  using std::exp;
  constexpr std::int64_t kStride = 64;
  const std::int64_t K = x.K, V = x.V, L = x.L;
  Gradients<S> d{std::vector<S>(x.T * K, S(0)),
                 std::vector<S>(x.T * K, S(0)),
                 std::vector<S>(x.T * V, S(0)),
                 std::vector<S>(x.T, S(0)),
                 std::vector<S>(x.T, S(0)),
                 std::vector<S>(x.T * L, S(0)),
                 {}};

  std::vector<Blocks<S>> kept;
  Blocks<S> blocks = x.initial;
  for (std::int64_t t = 0; t < x.T; ++t) {
    if (t % kStride == 0) kept.push_back(blocks);
    transition<Rule>(x, t, blocks);
    increment(x.last_bit, blocks, write<Rule>(x, t));
  }
  Blocks<S> dblocks;  // of the blocks after the tokens that the loop below has not gone back over
  for (const Block<S>& block : blocks) dblocks.push_back({block.bit, std::vector<S>(K * V, S(0))});
  const auto add_final = [&](std::int64_t tokens) {
    for (std::size_t n = 0; tokens == x.settled && n < dfinal.size(); ++n)
      for (std::int64_t i = 0; i < K * V; ++i) dblocks[n].matrix[i] += dfinal[n].matrix[i];
  };

  for (std::int64_t first = (x.T - 1) / kStride * kStride; x.T > 0 && first >= 0; first -= kStride) {
    const std::int64_t last = std::min(x.T, first + kStride);
    std::vector<Blocks<S>> before;  // the blocks that each token of the stride found
    blocks = kept[first / kStride];
    for (std::int64_t t = first; t < last; ++t) {
      before.push_back(blocks);
      transition<Rule>(x, t, blocks);
      increment(x.last_bit, blocks, write<Rule>(x, t));
    }
    for (std::int64_t t = last - 1; t >= first; --t) {
      const S *q = &x.q[t * K], *k = &x.k[t * K], *v = &x.v[t * V], *dout_t = &dout[t * V];
      const Blocks<S>& old = before[t - first];

      add_final(t + 1);
      // Increment: what was written, and every block merged with it, receive the gradient of the merged block.
      std::vector<S> dwritten = dblocks.back().matrix;
      dblocks.pop_back();
      for (std::size_t n = dblocks.size(); n < old.size(); ++n) dblocks.push_back({old[n].bit, dwritten});

      // Reads.
      std::vector<S> written = write<Rule>(x, t);
      Blocks<S> now = old;
      transition<Rule>(x, t, now);
      const auto read_backward = [&](const std::vector<S>& matrix, std::int64_t level, std::vector<S>& dmatrix) {
        const S weight = x.level_scales[t * L + level];
        for (std::int64_t a = 0; a < K; ++a)
          for (std::int64_t b = 0; b < V; ++b) {
            d.dlevel_scales[t * L + level] += q[a] * matrix[a * V + b] * dout_t[b];
            d.dq[t * K + a] += weight * matrix[a * V + b] * dout_t[b];
            dmatrix[a * V + b] += weight * q[a] * dout_t[b];
          }
      };
      read_backward(written, 0, dwritten);
      for (std::size_t n = 0; n < now.size(); ++n)
        read_backward(now[n].matrix, level_of_bit(now[n].bit, L), dblocks[n].matrix);

      // Write.
      std::vector<S> w(K), dw(K, S(0));
      Rule::write(K, k, x.beta[t], w.data());
      for (std::int64_t a = 0; a < K; ++a)
        for (std::int64_t b = 0; b < V; ++b) {
          dw[a] += dwritten[a * V + b] * v[b];
          d.dv[t * V + b] += dwritten[a * V + b] * w[a];
        }
      Rule::write_backward(K, k, x.beta[t], dw.data(), &d.dk[t * K], d.dbeta[t]);

      // Transition: now = alpha * erase(old).
      const S alpha = exp(x.g[t]);
      for (std::size_t n = 0; n < now.size(); ++n) {
        for (std::int64_t i = 0; i < K * V; ++i) {
          d.dg[t] += dblocks[n].matrix[i] * now[n].matrix[i];
          dblocks[n].matrix[i] *= alpha;
        }
        Rule::erase_backward(K, V, k, x.beta[t], old[n].matrix.data(), dblocks[n].matrix.data(), &d.dk[t * K],
                             d.dbeta[t]);
      }
    }
  }
  add_final(0);
  d.dinitial = std::move(dblocks);
  return d;
}

}  // namespace ref
}  // namespace loglinear::log_linear
