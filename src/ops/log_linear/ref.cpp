#include "ops/log_linear/ref.hpp"

#include "base/error.hpp"
#include "base/state_access.hpp"
#include "ops/log_linear/check.hpp"
#include "ops/log_linear/element.hpp"

namespace loglinear::log_linear {
namespace {

// (open + tokens, width) of head h as scalars S; the rows of open tokens from `open` (heads, C, width), or zero.
template <class S>
std::vector<S> gather(const ConstTensor& x, const Sequence& sequence, std::int64_t h, std::int64_t width,
                      const Buffer* open) {
  std::vector<S> out((sequence.open + sequence.tokens) * width);
  for (std::int64_t i = 0; open && i < sequence.open * width; ++i) {
    const std::int64_t at = h * sequence.chunk * width + i;
    out[i] = static_cast<S>(x.dtype == DType::f64 ? reinterpret_cast<const double*>(open->data())[at]
                                                  : reinterpret_cast<const float*>(open->data())[at]);
  }
  for (std::int64_t t = 0; t < sequence.tokens; ++t)
    for (std::int64_t i = 0; i < width; ++i)
      out[(sequence.open + t) * width + i] = get<S>(x, offset(x, sequence.batch, sequence.first + t, h) + i);
  return out;
}

// The rows of tokens of the call.
template <class S>
void scatter(const Tensor& x, const Sequence& sequence, std::int64_t h, std::int64_t width,
             const std::vector<S>& values) {
  for (std::int64_t t = 0; t < sequence.tokens; ++t)
    for (std::int64_t i = 0; i < width; ++i)
      put<S>(x, offset(x, sequence.batch, sequence.first + t, h) + i, values[(sequence.open + t) * width + i]);
}

// Rows [first, first + count) of head h into open tokens (heads, C, width) of the type of states.
template <class S>
void put_open(Buffer& to, DType dtype, std::int64_t chunk, std::int64_t h, std::int64_t width,
              const std::vector<S>& values, std::int64_t first, std::int64_t count) {
  for (std::int64_t i = 0; i < count * width; ++i) {
    const double value = static_cast<double>(values[first * width + i]);
    if (dtype == DType::f64)
      reinterpret_cast<double*>(to.data())[h * chunk * width + i] = value;
    else
      reinterpret_cast<float*>(to.data())[h * chunk * width + i] = static_cast<float>(value);
  }
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
State state_of(Rule rule, const Sizes& s, int chunk, std::int64_t position, const std::vector<ref::Blocks<S>>& heads,
               std::shared_ptr<State::Open> open) {
  State state(rule, s.H, s.K, s.V, s.state_dtype, chunk);
  std::vector<State::Slot> slots;
  for (std::size_t n = 0; n < heads[0].size(); ++n) {
    const std::size_t size = static_cast<std::size_t>(s.H * s.K * s.V) * size_of(s.state_dtype);
    State::Slot slot{heads[0][n].bit, std::make_shared<Buffer>(size), std::vector<double>(s.H, 0.0)};
    for (std::int64_t h = 0; h < s.H; ++h)
      put_open(*slot.matrix, s.state_dtype, 1, h, s.K * s.V, heads[h][n].matrix, 0, 1);
    slots.push_back(std::move(slot));
  }
  state.assign(position, std::move(slots), std::move(open));
  return state;
}

template <class S, class Args>
ref::Head<S> head_of(const Args& a, const Sizes& s, const Sequence& sequence, std::int64_t h) {
  const std::int64_t group = h / (s.H / s.G);
  const State::Open* open = sequence.open_rows;
  ref::Head<S> x;
  x.T = sequence.open + sequence.tokens, x.K = s.K, x.V = s.V, x.L = s.L;
  x.last_bit = last_bit(sequence.chunk, s.L);
  x.settled = sequence.full_chunks() * sequence.chunk;
  x.q = gather<S>(a.q, sequence, group, s.K, nullptr);
  x.k = gather<S>(a.k, sequence, group, s.K, open ? &open->k : nullptr);
  x.v = gather<S>(a.v, sequence, h, s.V, open ? &open->v : nullptr);
  x.g = gather<S>(a.g, sequence, h, 1, open ? &open->g : nullptr);
  x.beta =
      has_beta(a.rule) ? gather<S>(a.beta, sequence, h, 1, open ? &open->beta : nullptr) : std::vector<S>(x.T, S(1));
  x.level_scales = gather<S>(a.level_scales, sequence, h, s.L, nullptr);
  x.initial = blocks_of<S>(sequence.initial, h);
  return x;
}

template <class S>
void forward(const ForwardArgs& a, const Plan& plan) {
  const Sizes& s = plan.sizes;
  std::vector<State> finals;
  for (const Sequence& sequence : plan.sequences) {
    std::vector<ref::Blocks<S>> final_blocks(s.H);
    const std::shared_ptr<State::Open> open = State(a.rule, s.H, s.K, s.V, s.state_dtype, sequence.chunk).new_open(s.G);
    for (std::int64_t h = 0; h < s.H; ++h) {
      const ref::Head<S> x = head_of<S>(a, s, sequence, h);
      with_rule(a.rule,
                [&]<class Rule>() { scatter(a.out, sequence, h, s.V, ref::forward<Rule>(x, final_blocks[h])); });
      const auto keep = [&](Buffer& to, std::int64_t head, std::int64_t width, const std::vector<S>& rows) {
        put_open(to, s.state_dtype, sequence.chunk, head, width, rows, x.settled, x.T - x.settled);
      };
      keep(open->k, h / (s.H / s.G), s.K, x.k);
      keep(open->v, h, s.V, x.v);
      keep(open->g, h, 1, x.g);
      if (has_beta(a.rule)) keep(open->beta, h, 1, x.beta);
    }
    if (!a.final_state.empty())
      finals.push_back(state_of(a.rule, s, sequence.chunk, sequence.end(), final_blocks, open));
  }
  for (std::size_t n = 0; n < finals.size(); ++n) a.final_state[n] = std::move(finals[n]);
}

// What the final state's open tokens have for a gradient is added to that of the last tokens, which they are.
template <class S>
void add_open(const Buffer& from, DType dtype, std::int64_t chunk, std::int64_t h, std::int64_t width,
              std::vector<S>& values, std::int64_t first) {
  for (std::size_t i = first * width; i < values.size(); ++i) {
    const std::int64_t at = h * chunk * width + static_cast<std::int64_t>(i) - first * width;
    values[i] += static_cast<S>(dtype == DType::f64 ? reinterpret_cast<const double*>(from.data())[at]
                                                    : reinterpret_cast<const float*>(from.data())[at]);
  }
}

template <class S>
void backward(const BackwardArgs& a, const Plan& plan) {
  const Sizes& s = plan.sizes;
  std::vector<State> dinitials;
  for (std::size_t n = 0; n < plan.sequences.size(); ++n) {
    const Sequence& sequence = plan.sequences[n];
    const std::int64_t rows = sequence.open + sequence.tokens, settled = sequence.full_chunks() * sequence.chunk;
    const State* dfinal = a.dfinal_state.empty() ? nullptr : &a.dfinal_state[n];
    const State::Open* dlast = dfinal && rows > settled ? dfinal->open().get() : nullptr;
    const std::shared_ptr<State::Open> dopen =
        State(a.rule, s.H, s.K, s.V, s.state_dtype, sequence.chunk).new_open(s.G);
    std::vector<ref::Blocks<S>> dinitial(s.H);
    const auto add_last = [&](const Buffer& from, std::int64_t head, std::int64_t width, std::vector<S>& values) {
      add_open(from, s.state_dtype, sequence.chunk, head, width, values, settled);
    };
    const auto keep_open = [&](Buffer& to, std::int64_t head, std::int64_t width, const std::vector<S>& values) {
      put_open(to, s.state_dtype, sequence.chunk, head, width, values, 0, sequence.open);
    };
    for (std::int64_t group = 0; group < s.G; ++group) {
      std::vector<S> dq(rows * s.K, S(0)), dk(rows * s.K, S(0));
      for (std::int64_t h = group * (s.H / s.G); h < (group + 1) * (s.H / s.G); ++h) {
        const ref::Head<S> x = head_of<S>(a, s, sequence, h);
        ref::Gradients<S> d = with_rule(a.rule, [&]<class Rule>() {
          return ref::backward<Rule>(x, gather<S>(a.dout, sequence, h, s.V, nullptr), blocks_of<S>(dfinal, h));
        });
        for (std::size_t i = 0; i < dq.size(); ++i) dq[i] += d.dq[i], dk[i] += d.dk[i];
        if (dlast) {
          add_last(dlast->v, h, s.V, d.dv);
          add_last(dlast->g, h, 1, d.dg);
          if (has_beta(a.rule)) add_last(dlast->beta, h, 1, d.dbeta);
        }
        scatter(a.dv, sequence, h, s.V, d.dv);
        scatter(a.dg, sequence, h, 1, d.dg);
        if (has_beta(a.rule)) scatter(a.dbeta, sequence, h, 1, d.dbeta);
        scatter(a.dlevel_scales, sequence, h, s.L, d.dlevel_scales);
        keep_open(dopen->v, h, s.V, d.dv);
        keep_open(dopen->g, h, 1, d.dg);
        if (has_beta(a.rule)) keep_open(dopen->beta, h, 1, d.dbeta);
        dinitial[h] = std::move(d.dinitial);
      }
      if (dlast) add_last(dlast->k, group, s.K, dk);
      scatter(a.dq, sequence, group, s.K, dq);
      scatter(a.dk, sequence, group, s.K, dk);
      keep_open(dopen->k, group, s.K, dk);
    }
    if (!a.dinitial_state.empty())
      dinitials.push_back(state_of(a.rule, s, sequence.chunk, sequence.position, dinitial, dopen));
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
