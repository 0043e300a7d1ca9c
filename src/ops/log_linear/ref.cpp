#include "ops/log_linear/ref.hpp"

#include "base/error.hpp"
#include "ops/log_linear/check.hpp"
#include "ops/log_linear/element.hpp"

namespace loglinear::log_linear {
namespace {

// (tokens, width) of head h as scalars S.
template <class S>
std::vector<S> gather(const ConstTensor& x, const Sequence& sequence, std::int64_t h, std::int64_t width) {
  std::vector<S> out(sequence.tokens * width);
  for (std::int64_t t = 0; t < sequence.tokens; ++t)
    for (std::int64_t i = 0; i < width; ++i)
      out[t * width + i] = get<S>(x, offset(x, sequence.batch, sequence.first + t, h) + i);
  return out;
}

template <class S>
void scatter(const Tensor& x, const Sequence& sequence, std::int64_t h, std::int64_t width,
             const std::vector<S>& values) {
  for (std::int64_t t = 0; t < sequence.tokens; ++t)
    for (std::int64_t i = 0; i < width; ++i)
      put<S>(x, offset(x, sequence.batch, sequence.first + t, h) + i, values[t * width + i]);
}

// Head h of every slot, with its decay.
template <class S>
ref::Blocks<S> blocks_of(const State* state, std::int64_t h) {
  ref::Blocks<S> blocks;
  if (!state) return blocks;
  const std::int64_t size = state->key_width() * state->value_width();
  for (const State::Slot& slot : state->slots()) {
    ref::Block<S> block{slot.bit, std::vector<S>(size)};
    const S decay = std::exp(static_cast<S>(slot.log_decay[h]));
    for (std::int64_t i = 0; i < size; ++i) {
      const std::byte* data = slot.matrix->data();
      block.matrix[i] =
          decay * static_cast<S>(state->dtype() == DType::f64 ? reinterpret_cast<const double*>(data)[h * size + i]
                                                              : reinterpret_cast<const float*>(data)[h * size + i]);
    }
    blocks.push_back(std::move(block));
  }
  return blocks;
}

// A State at `position` from the blocks of every head.
template <class S>
State state_of(Rule rule, const Sizes& s, std::int64_t position, const std::vector<ref::Blocks<S>>& heads) {
  std::vector<std::vector<double>> matrices(heads[0].size());
  for (std::size_t n = 0; n < matrices.size(); ++n)
    for (const ref::Blocks<S>& blocks : heads)
      matrices[n].insert(matrices[n].end(), blocks[n].matrix.begin(), blocks[n].matrix.end());
  return State::from_dense(rule, s.H, s.K, s.V, s.state_dtype, position, matrices);
}

template <class S, class Args>
ref::Head<S> head_of(const Args& a, const Sizes& s, const Sequence& sequence, std::int64_t h) {
  const std::int64_t group = h / (s.H / s.G);
  ref::Head<S> x;
  x.T = sequence.tokens, x.K = s.K, x.V = s.V, x.L = s.L;
  x.position = sequence.position;
  x.q = gather<S>(a.q, sequence, group, s.K);
  x.k = gather<S>(a.k, sequence, group, s.K);
  x.v = gather<S>(a.v, sequence, h, s.V);
  x.g = gather<S>(a.g, sequence, h, 1);
  x.beta = has_beta(a.rule) ? gather<S>(a.beta, sequence, h, 1) : std::vector<S>(sequence.tokens, S(1));
  x.level_scales = gather<S>(a.level_scales, sequence, h, s.L);
  x.initial = blocks_of<S>(sequence.initial, h);
  return x;
}

template <class S>
void forward(const ForwardArgs& a, const Plan& plan) {
  std::vector<State> finals;
  for (const Sequence& sequence : plan.sequences) {
    std::vector<ref::Blocks<S>> final_blocks(plan.sizes.H);
    for (std::int64_t h = 0; h < plan.sizes.H; ++h) {
      const ref::Head<S> x = head_of<S>(a, plan.sizes, sequence, h);
      with_rule(a.rule, [&]<class Rule>() {
        scatter(a.out, sequence, h, plan.sizes.V, ref::forward<Rule>(x, final_blocks[h]));
      });
    }
    if (!a.final_state.empty())
      finals.push_back(state_of(a.rule, plan.sizes, sequence.position + sequence.tokens, final_blocks));
  }
  for (std::size_t n = 0; n < finals.size(); ++n) a.final_state[n] = std::move(finals[n]);
}

template <class S>
void backward(const BackwardArgs& a, const Plan& plan) {
  const Sizes& s = plan.sizes;
  std::vector<State> dinitials;
  for (std::size_t n = 0; n < plan.sequences.size(); ++n) {
    const Sequence& sequence = plan.sequences[n];
    std::vector<ref::Blocks<S>> dinitial(s.H);
    for (std::int64_t group = 0; group < s.G; ++group) {
      std::vector<S> dq(sequence.tokens * s.K, S(0)), dk(sequence.tokens * s.K, S(0));
      for (std::int64_t h = group * (s.H / s.G); h < (group + 1) * (s.H / s.G); ++h) {
        const ref::Head<S> x = head_of<S>(a, s, sequence, h);
        ref::Blocks<S> dfinal = blocks_of<S>(a.dfinal_state.empty() ? nullptr : &a.dfinal_state[n], h);
        ref::Gradients<S> d = with_rule(a.rule, [&]<class Rule>() {
          return ref::backward<Rule>(x, gather<S>(a.dout, sequence, h, s.V), std::move(dfinal));
        });
        for (std::size_t i = 0; i < dq.size(); ++i) dq[i] += d.dq[i], dk[i] += d.dk[i];
        scatter(a.dv, sequence, h, s.V, d.dv);
        scatter(a.dg, sequence, h, 1, d.dg);
        if (has_beta(a.rule)) scatter(a.dbeta, sequence, h, 1, d.dbeta);
        scatter(a.dlevel_scales, sequence, h, s.L, d.dlevel_scales);
        dinitial[h] = std::move(d.dinitial);
      }
      scatter(a.dq, sequence, group, s.K, dq);
      scatter(a.dk, sequence, group, s.K, dk);
    }
    if (!a.dinitial_state.empty()) dinitials.push_back(state_of(a.rule, s, sequence.position, dinitial));
  }
  for (std::size_t n = 0; n < dinitials.size(); ++n) a.dinitial_state[n] = std::move(dinitials[n]);
}

}  // namespace

void ref_forward(const ForwardArgs& args) {
  const Plan plan = check("log_linear.ref_forward", args);
  plan.sizes.state_dtype == DType::f64 ? forward<double>(args, plan) : forward<float>(args, plan);
}

void ref_backward(const BackwardArgs& args) {
  const Plan plan = check("log_linear.ref_backward", args);
  plan.sizes.state_dtype == DType::f64 ? backward<double>(args, plan) : backward<float>(args, plan);
}

}  // namespace loglinear::log_linear
