// Time of log-linear attention beside the multiply-add peak measured in the same run. Useful work is counted by the
// formula of docs/algorithm.md, section 7; a result that does not match the reference is not reported.

#include <benchmark/benchmark.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <vector>

#include "base/parallel.hpp"
#include "base/peak.hpp"
#include "base/random.hpp"
#include "loglinear/log_linear.hpp"
#include "ops/log_linear/ref.hpp"

namespace loglinear {
namespace {

double peak() {
  static const double value = measure_fma_peak(0);
  return value;
}

struct Data {
  std::int64_t T, G, H, K, V, L;
  Rule rule;
  std::vector<float> q, k, v, g, beta, scales, out, dout, dq, dk, dv, dg, dbeta, dscales;

  Data(Rule r, std::int64_t T_, std::int64_t G_, std::int64_t H_, std::int64_t K_, std::int64_t V_)
      : T(T_), G(G_), H(H_), K(K_), V(V_), L(std::bit_width(static_cast<std::uint64_t>(T_)) + 1), rule(r) {
    Random random(1, 0);
    const auto fill = [&](std::vector<float>& x, std::int64_t n, auto&& draw) {
      x.resize(n);
      for (float& e : x) e = static_cast<float>(draw());
    };
    fill(q, T * G * K, [&] { return random.uniform() - 0.5; });
    fill(k, T * G * K, [&] { return (random.uniform() - 0.5) * std::sqrt(12.0 / K); });
    fill(v, T * H * V, [&] { return random.uniform() - 0.5; });
    fill(dout, T * H * V, [&] { return random.uniform() - 0.5; });
    fill(g, T * H, [&] { return -0.01 * random.uniform(); });
    fill(beta, T * H, [&] { return random.uniform(); });
    fill(scales, T * H * L, [&] { return random.uniform(); });
    out.resize(v.size()), dv.resize(v.size()), dq.resize(q.size()), dk.resize(k.size());
    dg.resize(g.size()), dbeta.resize(g.size()), dscales.resize(scales.size());
  }

  log_linear::ForwardArgs forward_args() {
    log_linear::ForwardArgs a;
    a.rule = rule;
    a.q = ConstTensor(q.data(), {1, T, G, K}), a.k = ConstTensor(k.data(), {1, T, G, K});
    a.v = ConstTensor(v.data(), {1, T, H, V}), a.g = ConstTensor(g.data(), {1, T, H});
    a.level_scales = ConstTensor(scales.data(), {1, T, H, L});
    if (has_beta(rule)) a.beta = ConstTensor(beta.data(), {1, T, H});
    a.out = Tensor(out.data(), {1, T, H, V});
    return a;
  }

  log_linear::BackwardArgs backward_args() {
    const log_linear::ForwardArgs f = forward_args();
    log_linear::BackwardArgs a;
    a.rule = f.rule, a.q = f.q, a.k = f.k, a.v = f.v, a.g = f.g, a.beta = f.beta, a.level_scales = f.level_scales;
    a.dout = ConstTensor(dout.data(), {1, T, H, V});
    a.dq = Tensor(dq.data(), {1, T, G, K}), a.dk = Tensor(dk.data(), {1, T, G, K}),
    a.dv = Tensor(dv.data(), {1, T, H, V});
    a.dg = Tensor(dg.data(), {1, T, H}), a.dlevel_scales = Tensor(dscales.data(), {1, T, H, L});
    if (has_beta(rule)) a.dbeta = Tensor(dbeta.data(), {1, T, H});
    return a;
  }
};

// Multiply-adds of one forward, a token and head, with chunks of C.
double forward_work(Rule rule, std::int64_t T, double K, double V, double C, double G_over_H) {
  const double live = T > C ? std::log2(T / C) / 2 : 0;
  double work = G_over_H * C * K / 2 + C * V / 2 + K * V * (1 + live);
  if (has_beta(rule)) work += C * K / 2 + C * C / 3 + C * (K + V) / 2 + 2 * live * K * V;
  return work;
}

bool right(Data& d) {
  // The first tokens against the definition: chunk boundaries and several live states are among them.
  const std::int64_t T = std::min<std::int64_t>(d.T, 200);
  Data small = d;
  log_linear::forward(d.forward_args());
  std::vector<float> got(d.out.begin(), d.out.begin() + T * d.H * d.V);
  log_linear::ForwardArgs a = small.forward_args();
  for (ConstTensor* x : {&a.q, &a.k, &a.v, &a.g, &a.beta, &a.level_scales})
    if (x->present()) x->shape[1] = T;
  a.out.shape[1] = T;
  log_linear::ref_forward(a);
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - small.out[i]) * (got[i] - small.out[i]);
    norm += small.out[i] * small.out[i];
  }
  return std::sqrt(difference / norm) <= 2e-5;
}

void report(benchmark::State& state, double work) {
  state.counters["flops"] = benchmark::Counter(2 * work, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["peak"] = peak();
  state.counters["of_peak"] = benchmark::Counter(2 * work / peak(), benchmark::Counter::kIsIterationInvariantRate);
}

void forward(benchmark::State& state, Rule rule, std::int64_t G, std::int64_t H, std::int64_t K, std::int64_t V) {
  Data d(rule, state.range(0), G, H, K, V);
  if (!right(d)) return state.SkipWithError("the result is wrong");
  for (auto _ : state) log_linear::forward(d.forward_args());
  report(state, d.T * H * forward_work(rule, d.T, K, V, 64, static_cast<double>(G) / H));
}

void backward(benchmark::State& state, Rule rule, std::int64_t G, std::int64_t H, std::int64_t K, std::int64_t V) {
  Data d(rule, state.range(0), G, H, K, V);
  if (!right(d)) return state.SkipWithError("the result is wrong");
  for (auto _ : state) log_linear::backward(d.backward_args());
  state.counters["forward_flops"] =
      benchmark::Counter(2 * d.T * H * forward_work(rule, d.T, K, V, 64, static_cast<double>(G) / H),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void step(benchmark::State& state, Rule rule, std::int64_t H, std::int64_t K, std::int64_t V) {
  const std::int64_t position = state.range(0);
  Data d(rule, 64, 1, H, K, V);
  std::vector<std::vector<double>> matrices(std::popcount(static_cast<std::uint64_t>(position)),
                                            std::vector<double>(H * K * V, 0.01));
  const State start = State::from_dense(rule, H, K, V, DType::f32, position, matrices);
  std::vector<State> states = {start};
  log_linear::StepArgs a;
  a.rule = rule;
  a.q = ConstTensor(d.q.data(), {1, 1, K}), a.k = ConstTensor(d.k.data(), {1, 1, K}),
  a.v = ConstTensor(d.v.data(), {1, H, V});
  a.g = ConstTensor(d.g.data(), {1, H}), a.level_scales = ConstTensor(d.scales.data(), {1, H, d.L});
  if (has_beta(rule)) a.beta = ConstTensor(d.beta.data(), {1, H});
  a.out = Tensor(d.out.data(), {1, H, V});
  a.states = states;
  for (auto _ : state) log_linear::step(a);
  state.counters["state_bytes"] = static_cast<double>(start.bytes());
}

BENCHMARK_CAPTURE(forward, scalar_decay_H16_G1_K128_V64, Rule::scalar_decay, 1, 16, 128, 64)
    ->RangeMultiplier(4)
    ->Range(1024, 65536)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(forward, gated_delta_H16_K128_V128, Rule::gated_delta, 16, 16, 128, 128)
    ->RangeMultiplier(4)
    ->Range(1024, 16384)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(backward, scalar_decay_H16_G1_K128_V64, Rule::scalar_decay, 1, 16, 128, 64)
    ->RangeMultiplier(4)
    ->Range(1024, 16384)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(backward, gated_delta_H16_K128_V128, Rule::gated_delta, 16, 16, 128, 128)
    ->RangeMultiplier(4)
    ->Range(1024, 16384)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, scalar_decay_H16_K128_V64, Rule::scalar_decay, 16, 128, 64)
    ->Arg(1023)
    ->Arg(1024)
    ->Arg(1 << 20)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(step, gated_delta_H16_K128_V128, Rule::gated_delta, 16, 128, 128)
    ->Arg(1023)
    ->Arg(1024)
    ->Arg(1 << 20)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace loglinear
