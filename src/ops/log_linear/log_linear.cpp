// Checks and dispatch of log-linear attention. The arithmetic is in chunk-inl.h.

#include "loglinear/log_linear.hpp"

#include <algorithm>
#include <bit>
#include <deque>
#include <limits>
#include <new>

#include "base/cpu_features.hpp"
#include "base/error.hpp"
#include "base/padding.hpp"
#include "base/parallel.hpp"
#include "base/pool.hpp"
#include "base/rows.hpp"
#include "base/state_access.hpp"
#include "ops/log_linear/check.hpp"
#include "ops/log_linear/cpu.hpp"
#include "ops/log_linear/element.hpp"
#include "rules/rules.hpp"

namespace loglinear::log_linear {
namespace {

std::shared_ptr<Buffer> new_matrix(const Sizes& s) {
  return std::make_shared<Buffer>(static_cast<std::size_t>(s.H * s.K * s.V) * size_of(s.state_dtype));
}

// Slots to be written: `live` of the sequence. One that stands for the tokens of an initial slot shares its matrix
// where that cannot have changed: only its decay grows.
std::vector<cpu::FinalSlot> slots_for(const Sizes& s, const Sequence& sequence, const std::vector<LiveSlot>& live,
                                      bool changed) {
  std::vector<cpu::FinalSlot> slots;
  for (const LiveSlot& one : live) {
    const bool shared = one.initial >= 0 && !changed;
    slots.push_back({{one.bit, shared ? sequence.initial->slots()[one.initial].matrix : new_matrix(s),
                      std::vector<double>(s.H, 0.0)},
                     shared});
  }
  return slots;
}

// `count` rows of open tokens from token `first` of the sequence on; tokens before 0 are those of its initial state.
std::shared_ptr<State::Open> open_rows(const ForwardArgs& args, const Sizes& s, const Sequence& sequence,
                                       const State& like, std::int64_t first, std::int64_t count) {
  std::shared_ptr<State::Open> open = like.new_open(s.G);
  const auto fill = [&]<class T>(T) {
    const auto rows = [&](const ConstTensor& x, const Buffer* from, Buffer& to, std::int64_t heads,
                          std::int64_t width) {
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t i = 0; i < count; ++i) {
          T* row = reinterpret_cast<T*>(to.data()) + (h * sequence.chunk + i) * width;
          const std::int64_t t = first + i;
          if (t < 0)
            std::copy_n(reinterpret_cast<const T*>(from->data()) + (h * sequence.chunk + sequence.open + t) * width,
                        width, row);
          else
            get_row(x, offset(x, sequence.batch, sequence.first + t, h), width, row);
        }
    };
    const State::Open* from = sequence.open_rows;
    rows(args.k, from ? &from->k : nullptr, open->k, s.G, s.K);
    rows(args.v, from ? &from->v : nullptr, open->v, s.H, s.V);
    rows(args.g, from ? &from->g : nullptr, open->g, s.H, 1);
    if (has_beta(args.rule)) rows(args.beta, from ? &from->beta : nullptr, open->beta, s.H, 1);
  };
  s.state_dtype == DType::f64 ? fill(double()) : fill(float());
  return open;
}

// The state after the sequence, its matrices still to be written.
cpu::FinalState final_state_for(const ForwardArgs& args, const Sizes& s, const Sequence& sequence) {
  const std::int64_t full = sequence.full_chunks(), rest = (sequence.open + sequence.tokens) % sequence.chunk;
  const State like(args.rule, s.H, s.K, s.V, s.state_dtype, sequence.chunk);
  cpu::FinalState state;
  state.slots = slots_for(s, sequence, live_slots(sequence, s.L, full), erases(args.rule) && full > 0);
  if (rest > 0) state.open = open_rows(args, s, sequence, like, sequence.tokens - rest, rest);
  if (full > 0 && sequence.initial && StateAccess::keeps_before(*sequence.initial)) {
    state.before = slots_for(s, sequence, live_slots(sequence, s.L, full - 1), erases(args.rule) && full > 1);
    state.before_open = open_rows(args, s, sequence, like, sequence.tokens - rest - sequence.chunk, sequence.chunk);
    // What the last chunk left as it was is one matrix.
    for (std::size_t i = 0; !erases(args.rule) && i + 1 < state.slots.size(); ++i) {
      state.slots[i].slot.matrix = state.before[i].slot.matrix;
      state.slots[i].shared = true;
    }
  }
  return state;
}

std::vector<State::Slot> written(std::vector<cpu::FinalSlot>&& from) {
  std::vector<State::Slot> slots;
  for (cpu::FinalSlot& slot : from) slots.push_back(std::move(slot.slot));
  return slots;
}

State state_of(Rule rule, const Sizes& s, int chunk, std::int64_t position, cpu::FinalState&& from) {
  State state(rule, s.H, s.K, s.V, s.state_dtype, chunk);
  state.assign(position, written(std::move(from.slots)), std::move(from.open));
  if (from.before_open)
    StateAccess::before(state) = std::make_shared<const StateAccess::Before>(
        StateAccess::Before{written(std::move(from.before)), std::move(from.before_open)});
  return state;
}

// Threads worth waking for so many multiply-adds: below some ten microseconds of work one is faster.
int threads_for(int threads, double multiply_adds) { return multiply_adds < 3e5 ? 1 : std::min(threads, 1 << 16); }

// Into how many parts of the columns a head is cut: as few as give every thread the same number of parts. What depends
// on q and k alone is done again for each of them.
std::int64_t column_parts(std::int64_t heads, std::int64_t V, int threads) {
  if (heads >= 4 * threads) return 1;
  const std::int64_t most = std::max<std::int64_t>(1, std::min<std::int64_t>(threads, V / kPad));
  for (std::int64_t parts = 1; parts < most; ++parts)
    if (heads * parts % threads == 0) return parts;
  return most;
}

// Part `part` of `parts`, whole vectors wide; the last ones may be empty.
cpu::Columns columns_of(std::int64_t V, std::int64_t part, std::int64_t parts) {
  const std::int64_t width = padded((V + parts - 1) / parts);
  return {std::min(part * width, V), std::min((part + 1) * width, V)};
}

// Multiply-adds of a call, roughly: enough to choose threads by.
double work_of(const Plan& plan) {
  const Sizes& s = plan.sizes;
  double tokens = 0;
  for (const Sequence& sequence : plan.sequences) tokens += static_cast<double>(sequence.tokens);
  return tokens * static_cast<double>(s.H) *
         (4 * static_cast<double>(s.K) * static_cast<double>(s.V) +
          32 * (static_cast<double>(s.K) + static_cast<double>(s.V)));
}

// The heads of a group in ranges of `length`.
struct Ranges {
  std::int64_t heads = 1, length = 1;  // heads: of a group
  std::int64_t count() const { return (heads + length - 1) / length; }
  std::int64_t first(std::int64_t group, std::int64_t range) const { return group * heads + range * length; }
  std::int64_t last(std::int64_t group, std::int64_t range) const {
    return group * heads + std::min((range + 1) * length, heads);
  }
};

// How many heads of a group a forward takes together. Of one sequence the cut that is done first: a range does for all
// of its heads what costs as much as a third of one. Several sequences may be of different length: so many that every
// thread has several pieces of work.
std::int64_t heads_together(std::int64_t heads, std::int64_t groups, std::int64_t sequences, int threads) {
  if (sequences > 1) return std::clamp<std::int64_t>(sequences * groups * heads / (2 * threads), 1, heads);
  std::int64_t best = heads;
  double least = std::numeric_limits<double>::infinity();
  for (std::int64_t count = 1; count <= heads; ++count) {
    const std::int64_t length = (heads + count - 1) / count, rounds = (groups * count + threads - 1) / threads;
    const double time = static_cast<double>(rounds) * (static_cast<double>(length) + 1.0 / 3);
    if (time < least) least = time, best = length;
  }
  return best;
}

// dq or dk of every group and token: the sums of their ranges, in order. Rows of open tokens go to `opens`, one for
// each sequence, or nowhere.
template <class T>
void sum_ranges(const BackwardArgs& args, const Plan& plan, std::int64_t ranges, std::int64_t rows,
                const std::byte* from, const Tensor& to, const std::vector<Buffer*>& opens) {
  const Sizes& s = plan.sizes;
  std::int64_t first_row = 0;
  for (std::size_t n = 0; n < plan.sequences.size(); ++n) {
    const Sequence& sequence = plan.sequences[n];
    const std::int64_t count = sequence.open + sequence.tokens;
    const int threads = threads_for(args.threads, static_cast<double>(count * s.G * s.K * ranges));
    for_row_blocks(count, s.G * s.K * ranges, threads, [&](std::int64_t begin, std::int64_t end) {
      std::vector<T> sum(s.K);
      for (std::int64_t i = begin; i < end; ++i)
        for (std::int64_t group = 0; group < s.G; ++group) {
          std::fill(sum.begin(), sum.end(), T(0));
          for (std::int64_t range = 0; range < ranges; ++range) {
            const T* part = reinterpret_cast<const T*>(from) + ((group * ranges + range) * rows + first_row + i) * s.K;
            for (std::int64_t a = 0; a < s.K; ++a) sum[a] += part[a];
          }
          if (const std::int64_t t = i - sequence.open; t >= 0)
            put_row(to, offset(to, sequence.batch, sequence.first + t, group), s.K, sum.data());
          else if (opens[n])
            std::copy(sum.begin(), sum.end(),
                      reinterpret_cast<T*>(opens[n]->data()) + (group * sequence.chunk + i) * s.K);
        }
    });
    first_row += count;
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
    for (const Sequence& sequence : plan.sequences) finals.push_back(final_state_for(args, s, sequence));
  // Heads of a group together, and columns apart where there are too few heads for the threads. No cut changes the
  // result.
  const std::int64_t heads = s.H / s.G, all = N * s.H;
  const int threads = threads_for(thread_count(args.threads), work_of(plan));
  const Ranges ranges{heads, heads_together(heads, s.G, N, threads)};
  const std::int64_t count = ranges.count(), parts = column_parts(all, s.V, threads);
  parallel_for(N * s.G * count * parts, threads, [&](std::int64_t i) {
    const std::int64_t part = i % parts, range = i / parts % count, group = i / (parts * count) % s.G,
                       n = i / (parts * count * s.G);
    const cpu::Columns columns = columns_of(s.V, part, parts);
    if (columns.first == columns.last) return;
    cpu::forward_heads(args, plan, plan.sequences[n], ranges.first(group, range), ranges.last(group, range), columns,
                       finals.empty() ? nullptr : &finals[n]);
  });
  for (std::size_t n = 0; n < finals.size(); ++n) {
    const Sequence& sequence = plan.sequences[n];
    const bool keeps = sequence.initial && StateAccess::keeps_before(*sequence.initial);
    // Without a full chunk among the tokens what was kept before is still what comes before.
    const auto before = keeps && sequence.full_chunks() == 0 ? StateAccess::before(*sequence.initial) : nullptr;
    State state = state_of(args.rule, s, sequence.chunk, sequence.end(), std::move(finals[n]));
    if (before) StateAccess::before(state) = before;
    StateAccess::keeps_before(state) = keeps;
    args.final_state[n] = std::move(state);
  }
}

// The sequences of a backward; where they are too few for the threads, cut into spans. A span is a call of its own,
// with the state before it and the gradient in the one after it.
struct Spans {
  Plan plan;
  std::vector<const State*> dfinal;        // null for zero
  std::vector<cpu::FinalState*> dinitial;  // null when not wanted
  std::deque<State> states;                // at the cuts
};

// The places to cut: as many spans as there are threads for each range of heads.
std::vector<std::vector<cpu::Cut>> choose_cuts(const Plan& plan, std::int64_t ranges, int threads) {
  const Sizes& s = plan.sizes;
  std::int64_t total = 0;
  for (const Sequence& sequence : plan.sequences) total += sequence.open + sequence.tokens;
  std::vector<std::vector<cpu::Cut>> cuts;
  for (const Sequence& sequence : plan.sequences) {
    const std::int64_t tokens = sequence.open + sequence.tokens, unit = cpu::kCutChunks * sequence.chunk,
                       units = tokens / unit,
                       spans = std::min(units, tokens * threads / std::max<std::int64_t>(1, total * s.G * ranges));
    cuts.emplace_back();
    for (std::int64_t i = 1; i < spans; ++i) {
      const std::int64_t before = units * i / spans;
      const std::vector<LiveSlot> live = live_slots(sequence, s.L, before * cpu::kCutChunks);
      cuts.back().push_back(
          {before * unit - sequence.open, slots_for(s, sequence, live, true), slots_for(s, sequence, live, true)});
    }
  }
  return cuts;
}

Spans spans_of(const BackwardArgs& args, Plan plan, const Ranges& ranges, int threads,
               std::vector<cpu::FinalState>& dinitials) {
  const Sizes& s = plan.sizes;
  const std::int64_t N = static_cast<std::int64_t>(plan.sequences.size());
  const auto dfinal = [&](std::int64_t n) { return args.dfinal_state.empty() ? nullptr : &args.dfinal_state[n]; };
  std::vector<std::vector<cpu::Cut>> cuts = choose_cuts(plan, ranges.count(), threads);
  std::vector<std::int64_t> cut;  // the sequences that are
  for (std::int64_t n = 0; n < N; ++n)
    if (!cuts[n].empty()) cut.push_back(n);
  // States and gradients, each for columns of a range of heads.
  const std::int64_t calls = 2 * static_cast<std::int64_t>(cut.size()) * s.G * ranges.count(),
                     parts = column_parts(calls, s.V, threads);
  parallel_for(calls * parts, threads, [&](std::int64_t i) {
    const std::int64_t part = i % parts, range = i / (2 * parts) % ranges.count(),
                       group = i / (2 * parts * ranges.count()) % s.G, n = cut[i / (2 * parts * ranges.count() * s.G)];
    const cpu::Columns columns = columns_of(s.V, part, parts);
    if (columns.first == columns.last) return;
    const std::int64_t first = ranges.first(group, range), last = ranges.last(group, range);
    if (i / parts % 2 == 0)
      cpu::states_at_cuts(args, plan, plan.sequences[n], first, last, columns, cuts[n]);
    else
      cpu::dstates_at_cuts(args, plan, plan.sequences[n], first, last, columns, dfinal(n), cuts[n]);
  });

  Spans spans;
  spans.plan.sizes = s;
  for (std::int64_t n = 0; n < N; ++n) {
    const Sequence& sequence = plan.sequences[n];
    Sequence span = sequence;
    spans.dinitial.push_back(dinitials.empty() ? nullptr : &dinitials[n]);
    for (cpu::Cut& cut : cuts[n]) {
      const std::int64_t position = sequence.position + cut.tokens;
      const auto keep = [&](std::vector<cpu::FinalSlot>& slots) {
        cpu::FinalState state;
        state.slots = std::move(slots);
        return &spans.states.emplace_back(state_of(args.rule, s, sequence.chunk, position, std::move(state)));
      };
      span.tokens = cut.tokens - (span.first - sequence.first);
      spans.plan.sequences.push_back(span);
      spans.dfinal.push_back(keep(cut.dstate));
      span = {sequence.batch, sequence.first + cut.tokens, 0, position, keep(cut.state), sequence.chunk};
      spans.dinitial.push_back(nullptr);
    }
    span.tokens = sequence.first + sequence.tokens - span.first;
    spans.plan.sequences.push_back(span);
    spans.dfinal.push_back(dfinal(n));
  }
  return spans;
}

void backward_checked(const BackwardArgs& args) {
  const Plan whole = check("log_linear.backward", args);
  apply_instruction_set_from_environment();
  const Sizes& s = whole.sizes;
  std::vector<cpu::FinalState> dinitials;
  for (const Sequence& sequence : whole.sequences) {
    if (args.dinitial_state.empty()) break;
    cpu::FinalState d;
    d.slots = slots_for(s, sequence, live_slots(sequence, s.L, 0), true);
    if (sequence.open > 0) d.open = sequence.initial->new_open(s.G);
    dinitials.push_back(std::move(d));
  }

  // dq and dk of a group are sums over its heads. A range of heads adds up in its scratch memory, ranges write a buffer
  // each and are added in order: the cut depends on the shapes alone, so the sum does not depend on the number of
  // threads. Ranges of four heads and more: what a range does for all of its heads costs it as much as one and a half
  // live states of a head.
  const std::int64_t heads = s.H / s.G;
  const Ranges ranges{heads, std::min(heads, std::max<std::int64_t>(4, (heads + 7) / 8))};
  const int threads = threads_for(thread_count(args.threads), 3 * work_of(whole));
  const Spans spans = spans_of(args, whole, ranges, threads, dinitials);
  const std::vector<Sequence>& sequences = spans.plan.sequences;
  const std::int64_t N = static_cast<std::int64_t>(sequences.size()), count = ranges.count();
  const std::size_t element = size_of(s.state_dtype);
  // Rows that are written, read and added to must not be rounded in between.
  const bool direct =
      count == 1 && (s.dtype == s.state_dtype || !cpu::reads_ahead(erases(args.rule), s.dtype, ranges.length));
  std::int64_t rows = 0;
  std::vector<std::int64_t> first_row;  // of each span in a buffer
  for (const Sequence& sequence : sequences) {
    first_row.push_back(rows);
    rows += sequence.open + sequence.tokens;
  }
  const std::int64_t buffer_size = direct ? 0 : rows * s.K;
  const std::size_t bytes = static_cast<std::size_t>(s.G * count * buffer_size) * element;
  Matrix<std::byte> dq, dk;
  if (!direct) dq = Pool<std::byte>::take(bytes), dk = Pool<std::byte>::take(bytes);
  parallel_for(N * s.G * count, threads, [&](std::int64_t i) {
    const std::int64_t n = i / (s.G * count), group = i / count % s.G, range = i % count;
    const std::size_t at = ((group * count + range) * buffer_size + first_row[n] * s.K) * element;
    cpu::BackwardTarget target;
    if (!direct) target = {dq.get() + at, dk.get() + at};
    cpu::backward_heads(args, spans.plan, sequences[n], ranges.first(group, range), ranges.last(group, range),
                        spans.dfinal[n], target, spans.dinitial[n]);
  });
  if (!direct) {
    const std::vector<Buffer*> nowhere(N, nullptr);
    std::vector<Buffer*> opens = nowhere;
    for (std::int64_t n = 0; n < N; ++n)
      if (spans.dinitial[n] && spans.dinitial[n]->open) opens[n] = &spans.dinitial[n]->open->k;
    const auto sum = [&](const Matrix<std::byte>& from, const Tensor& to, const std::vector<Buffer*>& open) {
      s.state_dtype == DType::f64 ? sum_ranges<double>(args, spans.plan, count, rows, from.get(), to, open)
                                  : sum_ranges<float>(args, spans.plan, count, rows, from.get(), to, open);
    };
    sum(dq, args.dq, nowhere);
    sum(dk, args.dk, opens);
    dq = dk = nullptr;
    Pool<std::byte>::trim(kKeepBytes);
  }
  for (std::size_t n = 0; n < dinitials.size(); ++n)
    args.dinitial_state[n] =
        state_of(args.rule, s, whole.sequences[n].chunk, whole.sequences[n].position, std::move(dinitials[n]));
}

// Room for one more open token: the state's own, when a fork shares it a copy.
State::Open& own_open(State& state, const Sizes& s) {
  std::shared_ptr<State::Open>& open = StateAccess::open(state);
  if (!open || (state.open_tokens() == 0 && (open.use_count() > 1 || open->groups != s.G)))
    open = state.new_open(s.G);
  else if (open.use_count() > 1)
    open = std::make_shared<State::Open>(*open);
  if (open->sums.size() == 0) {
    open->sums = Buffer(static_cast<std::size_t>(s.H * state.chunk()) * sizeof(double));
    if (erases(state.rule()))
      open->mix = Buffer(static_cast<std::size_t>(s.H * state.chunk() * state.chunk()) * size_of(s.state_dtype));
    open->derived = 0;
  }
  open->derived = std::min(open->derived, state.open_tokens());
  return *open;
}

// k of the token of batch row b, into row `row` of the open tokens; what belongs to one head is appended with its step.
void append_key(const StepArgs& args, const Sizes& s, std::int64_t b, std::int64_t chunk, std::int64_t row,
                State::Open& open) {
  const auto append = [&]<class T>(T) {
    for (std::int64_t group = 0; group < s.G; ++group)
      get_row(args.k, b * args.k.stride[0] + group * args.k.stride[1], s.K,
              reinterpret_cast<T*>(open.k.data()) + (group * chunk + row) * s.K);
  };
  s.state_dtype == DType::f64 ? append(double()) : append(float());
}

// Folds the chunk of open tokens, which is full.
void fold(const StepArgs& args, const Plan& plan, Sequence sequence, State& state) {
  const Sizes& s = plan.sizes;
  sequence.open = sequence.chunk, sequence.tokens = 0, sequence.open_rows = StateAccess::open(state).get();
  std::shared_ptr<const StateAccess::Before>& before = StateAccess::before(state);
  before = nullptr;
  if (StateAccess::keeps_before(state))
    before = std::make_shared<const StateAccess::Before>(StateAccess::Before{state.slots(), StateAccess::open(state)});
  // Matrices that nobody else holds are written over: those of the same slot, or of one that merges.
  std::vector<State::Slot>& slots = StateAccess::slots(state);
  const std::vector<LiveSlot> live = live_slots(sequence, s.L, 1);
  cpu::FinalState end;
  for (std::size_t i = 0; i < live.size(); ++i) {
    const bool kept = live[i].initial >= 0;
    std::shared_ptr<Buffer> matrix = i < slots.size() ? slots[i].matrix : nullptr;
    const bool shared = kept && !erases(args.rule);
    if (!shared && (!matrix || matrix.use_count() > 2)) matrix = new_matrix(s);
    end.slots.push_back({{live[i].bit, std::move(matrix), std::vector<double>(s.H, 0.0)}, shared});
  }
  const Ranges ranges{s.H / s.G, (s.H / s.G + 7) / 8};
  const std::int64_t count = ranges.count();
  parallel_for(s.G * count, args.threads, [&](std::int64_t i) {
    cpu::fold_heads(args.rule, plan, sequence, ranges.first(i / count, i % count), ranges.last(i / count, i % count),
                    end);
  });
  slots = written(std::move(end.slots));
  if (before) StateAccess::open(state) = nullptr;
}

void step_checked(const StepArgs& args) {
  static thread_local Plan plan_of_thread;  // a step takes no memory once it has been as large
  Plan& plan = plan_of_thread;              // the loops below run on other threads
  check("log_linear.step", args, plan);
  apply_instruction_set_from_environment();
  const Sizes& s = plan.sizes;
  double work = 0;
  for (std::int64_t b = 0; b < s.B; ++b) {
    State& state = args.states[b];
    append_key(args, s, b, state.chunk(), state.open_tokens(), own_open(state, s));
    work += static_cast<double>((state.slots().size() + 1) * s.H * s.K * s.V);
  }
  // As many heads of a group together as leaves every thread a piece of work: they share what depends on q and k alone.
  const std::int64_t heads = s.H / s.G, threads = threads_for(thread_count(args.threads), work);
  const Ranges ranges{heads, std::clamp<std::int64_t>(s.B * s.H / threads, 1, heads)};
  const std::int64_t count = ranges.count();
  parallel_for(s.B * s.G * count, threads, [&](std::int64_t i) {
    const std::int64_t b = i / (s.G * count), group = i / count % s.G, range = i % count;
    cpu::step_heads(args, plan, b, *StateAccess::open(args.states[b]), ranges.first(group, range),
                    ranges.last(group, range));
  });
  for (std::int64_t b = 0; b < s.B; ++b) {
    State& state = args.states[b];
    StateAccess::open(state)->derived = state.open_tokens() + 1;
    if (state.open_tokens() + 1 == state.chunk()) fold(args, plan, plan.sequences[b], state);
    ++StateAccess::position(state);
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
