// Checks and dispatch of log-linear attention. The arithmetic is in chunk-inl.h.

#include "loglinear/log_linear.hpp"

#include <algorithm>
#include <bit>
#include <new>

#include "base/cpu_features.hpp"
#include "base/error.hpp"
#include "base/parallel.hpp"
#include "ops/log_linear/check.hpp"
#include "ops/log_linear/cpu.hpp"
#include "ops/log_linear/element.hpp"
#include "rules/rules.hpp"

namespace loglinear::log_linear {
namespace {

std::shared_ptr<std::vector<std::byte>> new_matrix(const Sizes& s) {
  return std::make_shared<std::vector<std::byte>>(static_cast<std::size_t>(s.H * s.K * s.V) * size_of(s.state_dtype));
}

// Slots for the set bits of `position`. With `from`: a slot whose block lives on unchanged shares its matrix (rules
// that do not erase: only the decay grows).
cpu::FinalState slots_for(const Sizes& s, std::int64_t position, const Sequence* from, Rule rule) {
  cpu::FinalState state;
  for (int bit = 62; bit >= 0; --bit) {
    if (!(position >> bit & 1)) continue;
    State::Slot slot{bit, nullptr, std::vector<double>(s.H, 0.0)};
    if (from && from->initial && (!erases(rule) || from->tokens == 0))
      for (const State::Slot& old : from->initial->slots())
        if (old.bit == bit && from->position >> (bit + 1) == position >> (bit + 1)) slot.matrix = old.matrix;
    state.shared.push_back(slot.matrix != nullptr);
    if (!slot.matrix) slot.matrix = new_matrix(s);
    state.slots.push_back(std::move(slot));
  }
  return state;
}

State state_of(Rule rule, const Sizes& s, std::int64_t position, cpu::FinalState&& from) {
  State state(rule, s.H, s.K, s.V, s.state_dtype);
  state.assign(position, std::move(from.slots));
  return state;
}

// Threads worth waking for so many multiply-adds: below some ten microseconds of work one is faster.
int threads_for(int threads, double multiply_adds) { return multiply_adds < 3e5 ? 1 : threads; }

// Multiply-adds of a call, roughly: enough to choose threads by.
double work_of(const Plan& plan) {
  const Sizes& s = plan.sizes;
  double tokens = 0;
  for (const Sequence& sequence : plan.sequences) tokens += static_cast<double>(sequence.tokens);
  return tokens * static_cast<double>(s.H) * static_cast<double>(4 * s.K * s.V + plan.chunk * (s.K + s.V) / 2);
}

// dq and dk of every group and token: the sums of their ranges, in order.
template <class T>
void sum_ranges(const BackwardArgs& args, const Plan& plan, std::int64_t ranges, std::int64_t tokens,
                const std::byte* from, const Tensor& to) {
  const Sizes& s = plan.sizes;
  std::int64_t row = 0;
  for (const Sequence& sequence : plan.sequences) {
    parallel_for(sequence.tokens, threads_for(args.threads, static_cast<double>(sequence.tokens * s.G * s.K * ranges)),
                 [&](std::int64_t t) {
                   std::vector<T> sum(s.K);
                   for (std::int64_t group = 0; group < s.G; ++group) {
                     std::fill(sum.begin(), sum.end(), T(0));
                     for (std::int64_t range = 0; range < ranges; ++range) {
                       const T* part =
                           reinterpret_cast<const T*>(from) + ((group * ranges + range) * tokens + row + t) * s.K;
                       for (std::int64_t a = 0; a < s.K; ++a) sum[a] += part[a];
                     }
                     const std::int64_t at = offset(to, sequence.batch, sequence.first + t, group);
                     for (std::int64_t a = 0; a < s.K; ++a) put<T>(to, at + a, sum[a]);
                   }
                 });
    row += sequence.tokens;
  }
}

// The library has one error type: running out of memory becomes it.
template <class Body>
void guarded(const char* where, const Body& body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    fail(where, "out of memory");
  }
}

void forward_checked(const ForwardArgs& args) {
  const Plan plan = check("log_linear.forward", args);
  apply_instruction_set_from_environment();
  const Sizes& s = plan.sizes;
  const std::int64_t N = static_cast<std::int64_t>(plan.sequences.size());
  std::vector<cpu::FinalState> finals;
  if (!args.final_state.empty())
    for (const Sequence& sequence : plan.sequences)
      finals.push_back(slots_for(s, sequence.position + sequence.tokens, &sequence, args.rule));
  // As many heads of a group together as leaves every thread several pieces of work. No cut changes the result.
  const std::int64_t heads = s.H / s.G, wanted = 2 * thread_count(args.threads);
  const std::int64_t per_range = std::clamp<std::int64_t>(N * s.H / wanted, 1, heads),
                     ranges = (heads + per_range - 1) / per_range;
  parallel_for(N * s.G * ranges, threads_for(args.threads, work_of(plan)), [&](std::int64_t i) {
    const std::int64_t n = i / (s.G * ranges), group = i / ranges % s.G, first = group * heads + i % ranges * per_range;
    cpu::forward_heads(args, plan, plan.sequences[n], first, std::min(first + per_range, (group + 1) * heads),
                       finals.empty() ? nullptr : &finals[n]);
  });
  for (std::int64_t n = 0; n < static_cast<std::int64_t>(finals.size()); ++n)
    args.final_state[n] =
        state_of(args.rule, s, plan.sequences[n].position + plan.sequences[n].tokens, std::move(finals[n]));
}

void backward_checked(const BackwardArgs& args) {
  const Plan plan = check("log_linear.backward", args);
  apply_instruction_set_from_environment();
  const Sizes& s = plan.sizes;
  const std::int64_t N = static_cast<std::int64_t>(plan.sequences.size());
  std::vector<cpu::FinalState> dinitials;
  if (!args.dinitial_state.empty())
    for (const Sequence& sequence : plan.sequences)
      dinitials.push_back(slots_for(s, sequence.position, nullptr, args.rule));

  // dq and dk of a group are sums over its heads. A range of heads adds up in a buffer of its own, ranges are added in
  // order: the cut depends on the shapes alone, so the sum does not depend on the number of threads.
  const std::int64_t heads = s.H / s.G;
  const std::int64_t per_range = (heads + 7) / 8, ranges = (heads + per_range - 1) / per_range;
  const std::size_t element = size_of(s.state_dtype);
  const bool direct = heads == 1;
  std::int64_t tokens = 0;
  std::vector<std::int64_t> first_row;  // of each sequence in a buffer
  for (const Sequence& sequence : plan.sequences) {
    first_row.push_back(tokens);
    tokens += sequence.tokens;
  }
  const std::int64_t buffer_size = direct ? 0 : tokens * s.K;
  std::vector<std::byte> dq(s.G * ranges * buffer_size * element), dk(dq.size());
  parallel_for(N * s.G * ranges, threads_for(args.threads, 3 * work_of(plan)), [&](std::int64_t i) {
    const std::int64_t n = i / (s.G * ranges), group = i / ranges % s.G, range = i % ranges;
    const std::int64_t first = group * heads + range * per_range,
                       last = std::min(first + per_range, (group + 1) * heads);
    const std::size_t at = ((group * ranges + range) * buffer_size + first_row[n] * s.K) * element;
    for (std::int64_t h = first; h < last; ++h) {
      cpu::BackwardTarget target;
      if (!direct) target = {dq.data() + at, dk.data() + at, h > first};
      cpu::backward_head(args, plan, plan.sequences[n], h, args.dfinal_state.empty() ? nullptr : &args.dfinal_state[n],
                         target, dinitials.empty() ? nullptr : &dinitials[n]);
    }
  });
  if (!direct)
    for (const auto& [from, to] : {std::pair{dq.data(), args.dq}, std::pair{dk.data(), args.dk}})
      s.state_dtype == DType::f64 ? sum_ranges<double>(args, plan, ranges, tokens, from, to)
                                  : sum_ranges<float>(args, plan, ranges, tokens, from, to);
  for (std::int64_t n = 0; n < static_cast<std::int64_t>(dinitials.size()); ++n)
    args.dinitial_state[n] = state_of(args.rule, s, plan.sequences[n].position, std::move(dinitials[n]));
}

void step_checked(const StepArgs& args) {
  const Plan plan = check("log_linear.step", args);
  apply_instruction_set_from_environment();
  const Sizes& s = plan.sizes;
  for (std::int64_t i = 0; i < s.B; ++i)
    for (std::int64_t j = 0; j < i; ++j)
      if (&args.states[i] == &args.states[j]) fail("log_linear.step", "states: {} and {} are the same object", j, i);

  std::vector<std::vector<State::Slot>> slots(s.B);
  std::vector<std::shared_ptr<std::vector<std::byte>>> fresh(s.B);
  for (std::int64_t b = 0; b < s.B; ++b) {
    fresh[b] = new_matrix(s);
    for (const State::Slot& slot : args.states[b].slots()) {
      slots[b].push_back(slot);
      // A rule that erases rewrites every live matrix: one that a fork shares is copied first.
      if (erases(args.rule) && slot.matrix.use_count() > 2)
        slots[b].back().matrix = std::make_shared<std::vector<std::byte>>(*slot.matrix);
    }
  }
  double work = 0;
  for (const auto& live : slots) work += static_cast<double>((live.size() + 1) * s.H * s.K * s.V);
  parallel_for(s.B * s.H, threads_for(args.threads, work), [&](std::int64_t i) {
    const std::int64_t b = i / s.H;
    cpu::step_head(args, s, b, i % s.H, args.states[b].position(), slots[b], fresh[b]->data());
  });
  for (std::int64_t b = 0; b < s.B; ++b) {
    const std::int64_t position = args.states[b].position();
    const int carry = std::countr_one(static_cast<std::uint64_t>(position));
    slots[b].resize(slots[b].size() - carry);
    for (State::Slot& slot : slots[b])
      for (std::int64_t h = 0; h < s.H; ++h) {
        const std::int64_t at = b * args.g.stride[0] + h * args.g.stride[1];
        slot.log_decay[h] += bounded_decay(get<double>(args.g, at));
      }
    slots[b].push_back({carry, fresh[b], std::vector<double>(s.H, 0.0)});
    args.states[b].assign(position + 1, std::move(slots[b]));
  }
}

}  // namespace

void forward(const ForwardArgs& args) {
  guarded("log_linear.forward", [&] { forward_checked(args); });
}

void backward(const BackwardArgs& args) {
  guarded("log_linear.backward", [&] { backward_checked(args); });
}

void step(const StepArgs& args) {
  guarded("log_linear.step", [&] { step_checked(args); });
}

}  // namespace loglinear::log_linear
