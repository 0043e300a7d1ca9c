#include "app/bench/op.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <memory>
#include <type_traits>

#include <fmt/format.h>

#include "app/progress.hpp"
#include "base/cpu_features.hpp"
#include "base/parallel.hpp"
#include "base/random.hpp"
#include "base/state_access.hpp"
#include "loglinear/log_linear.hpp"
#include "ops/log_linear/cpu.hpp"
#include "ops/log_linear/ref.hpp"

namespace loglinear::app::bench {
namespace {

constexpr std::int64_t kLastTokens = 40;  // from within a chunk to the end
constexpr std::int64_t kSteps = kPositionUnit;

std::int64_t chunk_of(const OpCase& c) { return c.chunk > 0 ? c.chunk : default_chunk(c.shape.K, c.shape.V); }
// Some chunks, several live states, an end within a chunk.
std::int64_t first_tokens(const OpCase& c) {
  return std::min<std::int64_t>(c.shape.T, std::max<std::int64_t>(200, 3 * chunk_of(c) + 8));
}
// More than a chunk, so that one is folded.
std::int64_t checked_steps(const OpCase& c) { return std::max<std::int64_t>(70, chunk_of(c) + 6); }

// Gates and states are of this type.
template <class T>
using GateOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
double to_double(T x) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return static_cast<double>(static_cast<float>(x));
  else
    return static_cast<double>(x);
}

// The arrays of a call of T tokens and, wanted, those of its gradients.
template <class T>
struct Arrays {
  using Gate = GateOf<T>;
  Shape s;
  Rule rule;
  std::vector<T> q, k, v, out, dout, dq, dk, dv;
  std::vector<Gate> g, beta, scales, dg, dbeta, dscales;

  // Keys have about unit length, as gated delta asks for.
  Arrays(Rule r, const Shape& shape, std::uint64_t seed, bool gradients) : s(shape), rule(r) {
    const std::int64_t keys = s.B * s.T * s.G * s.K, values = s.B * s.T * s.H * s.V, gates = s.B * s.T * s.H;
    const double unit = std::sqrt(12.0 / static_cast<double>(s.K));
    fill(q, keys, seed, 0, [](double u) { return u - 0.5; });
    fill(k, keys, seed, 1, [&](double u) { return (u - 0.5) * unit; });
    fill(v, values, seed, 2, [](double u) { return u - 0.5; });
    fill(g, gates, seed, 3, [](double u) { return -0.01 * u; });
    if (has_beta(rule)) fill(beta, gates, seed, 4, [](double u) { return u; });
    // One level is plain linear attention: every scale is one.
    fill(scales, gates * s.L, seed, 5, [&](double u) { return s.L == 1 ? 1.0 : u; });
    if (!gradients) {
      out.resize(v.size());
      return;
    }
    fill(dout, values, seed, 6, [](double u) { return u - 0.5; });
    dq.resize(q.size()), dk.resize(k.size()), dv.resize(v.size());
    dg.resize(g.size()), dbeta.resize(beta.size()), dscales.resize(scales.size());
  }

  template <class Args>
  Args inputs() const {
    Args a;
    a.rule = rule;
    a.q = ConstTensor(q.data(), {s.B, s.T, s.G, s.K}), a.k = ConstTensor(k.data(), {s.B, s.T, s.G, s.K});
    a.v = ConstTensor(v.data(), {s.B, s.T, s.H, s.V}), a.g = ConstTensor(g.data(), {s.B, s.T, s.H});
    if (has_beta(rule)) a.beta = ConstTensor(beta.data(), {s.B, s.T, s.H});
    a.level_scales = ConstTensor(scales.data(), {s.B, s.T, s.H, s.L});
    return a;
  }
  log_linear::ForwardArgs forward_args() {
    auto a = inputs<log_linear::ForwardArgs>();
    // A backward has no output: what is checked there may be written over a gradient of the same shape.
    a.out = Tensor((out.empty() ? dv : out).data(), {s.B, s.T, s.H, s.V});
    return a;
  }
  log_linear::BackwardArgs backward_args() {
    auto a = inputs<log_linear::BackwardArgs>();
    a.dout = ConstTensor(dout.data(), {s.B, s.T, s.H, s.V});
    a.dq = Tensor(dq.data(), {s.B, s.T, s.G, s.K}), a.dk = Tensor(dk.data(), {s.B, s.T, s.G, s.K});
    a.dv = Tensor(dv.data(), {s.B, s.T, s.H, s.V}), a.dg = Tensor(dg.data(), {s.B, s.T, s.H});
    if (has_beta(rule)) a.dbeta = Tensor(dbeta.data(), {s.B, s.T, s.H});
    a.dlevel_scales = Tensor(dscales.data(), {s.B, s.T, s.H, s.L});
    return a;
  }
};

// The tensors of a call by name, inputs and results.
template <class F>
void each_input(auto& a, const F& f) {
  f(a.q), f(a.k), f(a.v), f(a.g), f(a.level_scales);
  if (a.beta.present()) f(a.beta);
}
template <class F>
void each_result(log_linear::ForwardArgs& a, const F& f) {
  f("out", a.out);
}
template <class F>
void each_result(log_linear::BackwardArgs& a, const F& f) {
  f("dq", a.dq), f("dk", a.dk), f("dv", a.dv), f("dg", a.dg), f("dlevel_scales", a.dlevel_scales);
  if (a.dbeta.present()) f("dbeta", a.dbeta);
}

template <class Pointer>
BasicTensor<Pointer> narrowed(BasicTensor<Pointer> x, int dimension, std::int64_t begin, std::int64_t count) {
  using Byte = std::conditional_t<std::is_same_v<Pointer, void*>, std::byte, const std::byte>;
  x.data = static_cast<Byte*>(x.data) +
           static_cast<std::size_t>(begin * x.stride[static_cast<std::size_t>(dimension)]) * size_of(x.dtype);
  x.shape[static_cast<std::size_t>(dimension)] = count;
  return x;
}

// The same call on tokens [begin, begin + count) alone, all results included.
template <class Args>
Args on_tokens(Args a, std::int64_t begin, std::int64_t count) {
  const auto cut = [&](auto& x) { x = narrowed(x, 1, begin, count); };
  each_input(a, cut);
  each_result(a, [&](const char*, Tensor& x) { cut(x); });
  if constexpr (std::is_same_v<Args, log_linear::BackwardArgs>) cut(a.dout);
  return a;
}

template <class Args>
Args on_sequences(Args a, std::int64_t count) {
  const auto cut = [&](auto& x) { x = narrowed(x, 0, 0, count); };
  each_input(a, cut);
  each_result(a, [&](const char*, Tensor& x) { cut(x); });
  if constexpr (std::is_same_v<Args, log_linear::BackwardArgs>) cut(a.dout);
  return a;
}

// Token t of every sequence as a step.
log_linear::StepArgs step_args(const log_linear::ForwardArgs& a, std::int64_t t) {
  const auto token = [&](auto x) {
    x = narrowed(x, 1, t, 1);
    for (std::size_t d = 1; d + 1 < static_cast<std::size_t>(x.rank); ++d)
      x.shape[d] = x.shape[d + 1], x.stride[d] = x.stride[d + 1];
    --x.rank;
    return x;
  };
  log_linear::StepArgs step;
  step.rule = a.rule;
  step.q = token(a.q), step.k = token(a.k), step.v = token(a.v), step.g = token(a.g);
  if (a.beta.present()) step.beta = token(a.beta);
  step.level_scales = token(a.level_scales);
  step.out = token(a.out);
  step.threads = a.threads;
  return step;
}

// The elements of a tensor, row-major.
std::vector<double> values(const ConstTensor& x) {
  std::vector<double> all;
  const auto element = [&](std::int64_t at) {
    switch (x.dtype) {
      case DType::f32:
        return to_double(static_cast<const float*>(x.data)[at]);
      case DType::bf16:
        return to_double(static_cast<const bfloat16*>(x.data)[at]);
      case DType::f64:
        break;
    }
    return static_cast<const double*>(x.data)[at];
  };
  std::array<std::int64_t, ConstTensor::kMaxRank> n = x.shape, s = x.stride;
  for (std::size_t d = static_cast<std::size_t>(x.rank); d < n.size(); ++d) n[d] = 1, s[d] = 0;
  for (std::int64_t a = 0; a < n[0]; ++a)
    for (std::int64_t b = 0; b < n[1]; ++b)
      for (std::int64_t c = 0; c < n[2]; ++c)
        for (std::int64_t d = 0; d < n[3]; ++d) all.push_back(element(a * s[0] + b * s[1] + c * s[2] + d * s[3]));
  return all;
}

using Results = std::map<std::string, std::vector<double>>;

template <class Args>
Results results(Args a) {
  Results all;
  each_result(a, [&](const char* name, Tensor& x) { all[name] = values(x); });
  return all;
}

// The same call by the definition in float64.
template <class Args>
Results definition(Args a, std::span<const State> initial) {
  std::vector<std::unique_ptr<std::vector<double>>> held;
  const auto converted = [&](auto& x) {
    held.push_back(std::make_unique<std::vector<double>>(values(x)));
    x.data = held.back()->data();
    x.dtype = DType::f64;
    std::int64_t step = 1;
    for (std::size_t d = static_cast<std::size_t>(x.rank); d-- > 0;) x.stride[d] = step, step *= x.shape[d];
  };
  each_input(a, converted);
  each_result(a, [&](const char*, Tensor& x) { converted(x); });
  a.initial_state = initial;
  if constexpr (std::is_same_v<Args, log_linear::BackwardArgs>) {
    converted(a.dout);
    log_linear::ref_backward(a);
  } else {
    log_linear::ref_forward(a);
  }
  return results(a);
}

bool multiplies_bf16(const OpCase& c) { return c.dtype == DType::bf16 && bf16_unit() != Bf16Unit::none; }

// docs/numerics.md
double bound_of(const OpCase& c, const std::string& name) {
  const bool gate = name == "dg" || name == "dbeta" || name == "dlevel_scales";
  const double rule = has_beta(c.rule) ? 4 : 1;
  switch (c.dtype) {
    case DType::f64:
      return 1e-12;
    case DType::bf16:
      return name == "out" ? 3e-3 : gate ? 1e-2 : 5e-3;
    case DType::f32:
      break;
  }
  return name == "out" ? 5e-6 : rule * (gate ? 5e-5 : 1e-5);
}

// Throws WrongResult unless every tensor of `want` is close to its like in `got`. sides: how many of the two carry
// errors.
void compare(const OpCase& c, const char* what, const Results& got, const Results& want, int sides) {
  for (const auto& [name, expected] : want) {
    const double error = relative_error(got.at(name), expected), bound = c.tolerance * sides * bound_of(c, name);
    if (!(error <= bound))
      throw WrongResult(fmt::format("{} is {:.2g} from {}, allowed are {:.2g}", name, error, what, bound));
  }
}

Row row_of(const OpCase& c, const char* form) {
  Row row;
  row.rule = name_of(c.rule);
  row.form = form;
  row.dtype = name_of(c.dtype);
  row.isa = instruction_set_name(log_linear::cpu::instruction_set());
  row.threads = thread_count(c.threads);
  row.shape = c.shape;
  row.chunk = c.chunk;
  return row;
}

void take(Row& row, const Timing& t) {
  row.runs = t.runs;
  row.ms = t.median, row.ms_min = t.min, row.ms_max = t.max, row.ms_mean = t.mean;
}

// Times calls that do so many useful multiply-adds and takes the most memory that was resident during them.
template <class Call>
void time_and_weigh(const OpCase& c, double work, Row& row, const Call& call) {
  release_memory();
  const PeakMeter meter =
      multiplies_bf16(c) ? PeakMeter::bf16_products(c.threads) : PeakMeter::multiply_adds(c.threads, c.dtype);
  const bool counted = c.resident_before >= 0 && reset_peak_resident();
  BesidePeak peak(meter);
  take(row, time_calls(c.seconds, call, [&](double ms) { peak.took(2e3 * work / ms); }));
  row.gflops = 2e-6 * work / row.ms;
  row.percent = peak.percent(), row.peak_gflops = 100 * row.gflops / row.percent;
  if (const std::int64_t peak = peak_resident_bytes(); counted && peak >= 0)
    row.peak_bytes = static_cast<double>(std::max<std::int64_t>(0, peak - c.resident_before));
  row.tokens_per_s = static_cast<double>(c.shape.B * c.shape.T) / (1e-3 * row.ms);
}

double bytes_of(const std::vector<State>& states) {
  double bytes = 0;
  for (const State& state : states) bytes += static_cast<double>(state.bytes());
  return bytes;
}

// The states after all but the last `last` tokens, empty ones when there are no others.
std::vector<State> states_before_last(const OpCase& c, log_linear::ForwardArgs a, std::int64_t last) {
  const Shape& s = c.shape;
  const DType dtype = c.dtype == DType::f64 ? DType::f64 : DType::f32;
  std::vector<State> states;
  for (std::int64_t b = 0; b < s.B; ++b) states.emplace_back(c.rule, s.H, s.K, s.V, dtype, c.chunk);
  if (last == s.T) return states;
  a = on_tokens(a, 0, s.T - last);
  a.final_state = states;
  log_linear::forward(a);
  return states;
}

template <class T>
Row forward(const OpCase& c) {
  const Shape& s = c.shape;
  Arrays<T> arrays(c.rule, s, c.seed, false);
  log_linear::ForwardArgs a = arrays.forward_args();
  a.chunk = c.chunk, a.threads = c.threads;
  Row row = row_of(c, "forward");
  {
    const std::int64_t first = first_tokens(c), last = std::min(s.T, kLastTokens);
    const log_linear::ForwardArgs begin = on_sequences(on_tokens(a, 0, first), std::min<std::int64_t>(s.B, 2)),
                                  end = on_tokens(a, s.T - last, last);
    log_linear::forward(a);
    const Results got_begin = results(begin), got_end = results(end);
    compare(c, "the definition in float64", got_begin, definition(begin, {}), 1);
    std::vector<State> states = states_before_last(c, a, last);
    for (std::int64_t t = s.T - last; t < s.T; ++t) {
      log_linear::StepArgs step = step_args(a, t);
      step.states = states;
      log_linear::step(step);
    }
    // A call that multiplies bfloat16 rounds its operands besides what both round, their outputs.
    compare(c, "that of single steps", got_end, results(end), multiplies_bf16(c) ? 2 : 1);
    row.state_bytes = bytes_of(states);
  }
  row.argument_bytes = forward_bytes(c);
  time_and_weigh(c, useful_work(c.rule, s), row, [&] { log_linear::forward(a); });
  return row;
}

template <class T>
Row backward(const OpCase& c) {
  const Shape& s = c.shape;
  Arrays<T> arrays(c.rule, s, c.seed, true);
  log_linear::BackwardArgs a = arrays.backward_args();
  a.chunk = c.chunk, a.threads = c.threads;
  Row row = row_of(c, "backward");
  {
    const std::int64_t first = first_tokens(c), last = std::min(s.T, kLastTokens);
    const log_linear::BackwardArgs begin = on_sequences(on_tokens(a, 0, first), std::min<std::int64_t>(s.B, 2));
    log_linear::BackwardArgs end = on_tokens(a, s.T - last, last);
    log_linear::backward(a);
    Results got_begin = results(begin);
    const Results got_end = results(end), want = definition(begin, {});
    // No later token reaches these two: what the first tokens alone give is what they are.
    compare(c, "the definition in float64", got_begin,
            {{"dq", want.at("dq")}, {"dlevel_scales", want.at("dlevel_scales")}}, 1);
    log_linear::backward(begin);
    compare(c, "the definition in float64", results(begin), want, 1);

    log_linear::ForwardArgs f = arrays.forward_args();
    f.chunk = c.chunk, f.threads = c.threads;
    std::vector<State> states = states_before_last(c, f, last);
    end.initial_state = states;
    log_linear::backward(end);
    compare(c, "that of the last tokens alone", got_end, results(end), 2);
    f = on_tokens(f, s.T - last, last);
    f.initial_state = states, f.final_state = states;
    log_linear::forward(f);
    row.state_bytes = bytes_of(states);
  }
  row.argument_bytes = backward_bytes(c);
  time_and_weigh(c, 2 * useful_work(c.rule, s), row, [&] { log_linear::backward(a); });
  return row;
}

// A state of sequence b at the position, of matrices as tokens would have left them.
State state_at(const OpCase& c, DType dtype, std::int64_t b) {
  const Shape& s = c.shape;
  std::vector<std::vector<double>> matrices;
  for (std::uint64_t bits = static_cast<std::uint64_t>(c.position); bits; bits &= bits - 1) {
    std::vector<double>& matrix = matrices.emplace_back();
    fill(matrix, s.H * s.K * s.V, c.seed, 100 + 64 * static_cast<std::uint64_t>(b) + matrices.size(),
         [](double u) { return u - 0.5; });
  }
  State state = State::from_dense(c.rule, s.H, s.K, s.V, dtype, c.position, matrices, c.chunk);
  // What is read through the last of L levels is one matrix.
  std::vector<State::Slot> slots = state.slots();
  const int last = last_bit(state.chunk(), s.L);
  const auto merged =
      std::find_if(slots.begin(), slots.end(), [&](const State::Slot& slot) { return slot.bit < last; });
  if (merged - slots.begin() > 1) slots.erase(slots.begin() + 1, merged);
  if (merged != slots.begin()) slots.front().bit = last;
  state.assign(c.position, std::move(slots), nullptr);
  return state;
}

std::vector<State> states_at(const OpCase& c, DType dtype, std::int64_t count) {
  std::vector<State> states;
  for (std::int64_t b = 0; b < count; ++b) states.push_back(state_at(c, dtype, b));
  return states;
}

template <class T>
Row step(const OpCase& c) {
  Shape s = c.shape;
  s.T = std::max(kSteps, checked_steps(c));
  Arrays<T> arrays(c.rule, s, c.seed, false);
  log_linear::ForwardArgs a = arrays.forward_args();
  a.threads = c.threads;
  const DType dtype = dtype_of<GateOf<T>>;
  std::vector<State> states = states_at(c, dtype, s.B);
  const auto step_at = [&](std::int64_t t) {
    log_linear::StepArgs step = step_args(a, t);
    step.states = states;
    return step;
  };

  for (std::int64_t t = 0; t < checked_steps(c); ++t) log_linear::step(step_at(t));
  {
    const std::int64_t sequences = std::min<std::int64_t>(s.B, 2);
    const log_linear::ForwardArgs checked = on_sequences(on_tokens(a, 0, checked_steps(c)), sequences);
    compare(c, "the definition in float64", results(checked), definition(checked, states_at(c, DType::f64, sequences)),
            1);
  }

  Row row = row_of(c, "step");
  states.clear();
  states = states_at(c, dtype, s.B);
  row.state_bytes = bytes_of(states);
  const Bandwidth& level = c.peaks->level_of(row.state_bytes);
  const PeakMeter meter = PeakMeter::reads(c.threads, level.buffer);
  BesidePeak peak(meter);
  std::vector<double> ms, rate;
  double bytes = 0, spent = 0, work = 0;
  while (spent < 1e3 * c.seconds || ms.empty()) {
    if (!ms.empty()) states.clear(), states = states_at(c, dtype, s.B);
    const std::size_t before = rate.size();
    for (std::int64_t t = 0; t < kSteps; ++t) {
      const log_linear::StepArgs args = step_at(t);
      work += useful_step_work(c.rule, s, static_cast<int>(states[0].slots().size()));
      const double live = bytes_of(states), start = monotonic_seconds();
      log_linear::step(args);
      const double elapsed = 1e3 * (monotonic_seconds() - start);
      ms.push_back(elapsed), rate.push_back(1e3 * live / elapsed);
      bytes += live, spent += elapsed;
    }
    peak.took(timing_of({rate.begin() + static_cast<std::ptrdiff_t>(before), rate.end()}).median);
  }
  row.shape.T = 1;
  row.position = c.position;
  const double steps = static_cast<double>(ms.size());
  row.live_bytes = bytes / steps;
  take(row, timing_of(std::move(ms)));
  row.gbs = 1e-9 * timing_of(std::move(rate)).median;
  row.memory = level.name;
  row.percent = peak.percent(), row.peak_gbs = 100 * row.gbs / row.percent;
  row.gflops = 2e-6 * work / steps / row.ms;
  row.tokens_per_s = static_cast<double>(s.B) / (1e-3 * row.ms_mean);
  return row;
}

template <class F>
Row dispatch(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(bfloat16{});
    case DType::f32:
      break;
  }
  return f(float{});
}

}  // namespace

double forward_bytes(const OpCase& c) {
  const Shape& s = c.shape;
  const double element = static_cast<double>(size_of(c.dtype)), gate = c.dtype == DType::f64 ? 8 : 4;
  const double B = static_cast<double>(s.B), T = static_cast<double>(s.T), G = static_cast<double>(s.G);
  const double H = static_cast<double>(s.H), K = static_cast<double>(s.K), V = static_cast<double>(s.V);
  return B * T *
         (element * (2 * G * K + 2 * H * V) + gate * H * (static_cast<double>(s.L) + (has_beta(c.rule) ? 2 : 1)));
}

// Every input but dout has its gradient, and dout stands where out stood.
double backward_bytes(const OpCase& c) {
  const double out = static_cast<double>(c.shape.B) * static_cast<double>(c.shape.T) *
                     static_cast<double>(c.shape.H * c.shape.V) * static_cast<double>(size_of(c.dtype));
  return 2 * forward_bytes(c) - out;
}

double step_bytes(const OpCase& c) {
  const Shape& s = c.shape;
  const double matrix = static_cast<double>(s.H * s.K * s.V);
  const double element = c.dtype == DType::f64 ? 8 : 4,
               live = std::popcount(static_cast<std::uint64_t>(c.position)) + 9;
  OpCase tokens = c;
  tokens.shape.T = kSteps;
  return forward_bytes(tokens) + static_cast<double>(s.B) * matrix * live * element + 8 * live * matrix;
}

Row measure_forward(const OpCase& c) {
  return dispatch(c.dtype, [&](auto t) { return forward<decltype(t)>(c); });
}
Row measure_backward(const OpCase& c) {
  return dispatch(c.dtype, [&](auto t) { return backward<decltype(t)>(c); });
}
Row measure_step(const OpCase& c) {
  return dispatch(c.dtype, [&](auto t) { return step<decltype(t)>(c); });
}

}  // namespace loglinear::app::bench
