// Speed of the operator against the fused multiply-add peak of the cores it runs on, measured in the same run.
//
//   build/bench/bench_log_linear --benchmark_filter='forward/.*'
//
// of_peak counts useful work only (docs/algorithm.md, section 7): causal halves once, live slots only.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/log_linear/bench.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace loglinear {
namespace HWY_NAMESPACE {

// Floating-point operations of `rounds` rounds over independent chains, enough of them to hide the latency of an FMA.
double fma_rounds(long rounds, float* sink) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> d;
  const auto a = hn::Set(d, 0.999f), b = hn::Set(d, 1e-3f);
  auto x0 = a, x1 = a, x2 = a, x3 = a, x4 = a, x5 = a, x6 = a, x7 = a, x8 = a, x9 = a;
  for (long i = 0; i < rounds; ++i) {
    x0 = hn::MulAdd(x0, a, b), x1 = hn::MulAdd(x1, a, b), x2 = hn::MulAdd(x2, a, b), x3 = hn::MulAdd(x3, a, b);
    x4 = hn::MulAdd(x4, a, b), x5 = hn::MulAdd(x5, a, b), x6 = hn::MulAdd(x6, a, b), x7 = hn::MulAdd(x7, a, b);
    x8 = hn::MulAdd(x8, a, b), x9 = hn::MulAdd(x9, a, b);
  }
  const auto sum = hn::Add(hn::Add(hn::Add(x0, x1), hn::Add(x2, x3)),
                           hn::Add(hn::Add(x4, x5), hn::Add(hn::Add(x6, x7), hn::Add(x8, x9))));
  *sink = hn::GetLane(sum);
  return 20.0 * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(d));
}

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <bit>
#include <chrono>
#include <string>
#include <vector>

#include "base/parallel.hpp"
#include "base/random.hpp"
#include "benchmark/benchmark.h"
#include "loglinear/log_linear.hpp"

namespace loglinear {
namespace {

HWY_EXPORT(fma_rounds);

// Operations per second of all cores together, the best of a few tries.
double peak() {
  static const double best = [] {
    double best = 0;
    const int threads = thread_count(0);
    for (int attempt = 0; attempt < 5; ++attempt) {
      std::vector<double> work(threads);
      std::vector<float> sinks(threads);
      const auto begin = std::chrono::steady_clock::now();
      parallel_for(threads, threads,
                   [&](std::int64_t i) { work[i] = HWY_DYNAMIC_DISPATCH(fma_rounds)(20'000'000, &sinks[i]); });
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      benchmark::DoNotOptimize(sinks.data());
      double all = 0;
      for (double w : work) all += w;
      best = std::max(best, all / seconds);
    }
    return best;
  }();
  return best;
}

// Useful operations (2 a multiply-add) of one forward call, chunks of 64.
double forward_work(Rule rule, double T, double H, double K, double V) {
  constexpr double C = 64;
  double chunk = C * C * (K + V) / 2 + C * K * V;
  double slot = C * K * V;
  if (has_beta(rule)) {
    chunk += C * C * K / 2 + C * C * C / 3 + C * C * (K + V) / 2;
    slot *= 3;
  }
  double live = 0;
  for (std::uint64_t z = 0; z < static_cast<std::uint64_t>(T / C); ++z) live += std::popcount(z);
  return 2 * H * (chunk * T / C + slot * live);
}

struct Problem {
  std::int64_t T, H, G = 1, K, V, L = 15;
  Rule rule;
  std::vector<float> q, k, v, g, beta, scales, dout, out, dq, dk, dv, dg, dbeta, dscales;

  Problem(Rule rule, std::int64_t T, std::int64_t H, std::int64_t K, std::int64_t V)
      : T(T), H(H), K(K), V(V), rule(rule) {
    const auto draw = [&](std::uint64_t stream, std::int64_t n, float scale) {
      Random random(1, stream);
      std::vector<float> x(n);
      for (float& value : x) value = scale * static_cast<float>(random.normal());
      return x;
    };
    q = draw(1, T * G * K, 0.1f), k = draw(2, T * G * K, 0.08f), v = draw(3, T * H * V, 1.0f);
    g = draw(4, T * H, 0.1f), beta = draw(5, T * H, 0.5f), scales = draw(6, T * H * L, 0.5f);
    for (float& x : g) x = -x * x;
    for (float& x : beta) x = x * x;
    out.resize(T * H * V);
  }

  log_linear::ForwardArgs forward() {
    log_linear::ForwardArgs a;
    a.rule = rule;
    a.q = Tensor(q.data(), {1, T, G, K});
    a.k = Tensor(k.data(), {1, T, G, K});
    a.v = Tensor(v.data(), {1, T, H, V});
    a.g = Tensor(g.data(), {1, T, H});
    if (has_beta(rule)) a.beta = Tensor(beta.data(), {1, T, H});
    a.level_scales = Tensor(scales.data(), {1, T, H, L});
    a.out = Tensor(out.data(), {1, T, H, V});
    return a;
  }

  log_linear::BackwardArgs backward() {
    dout = out, dq = q, dk = k, dv = v, dg = g, dbeta = beta, dscales = scales;
    const log_linear::ForwardArgs f = forward();
    log_linear::BackwardArgs a;
    a.rule = rule, a.q = f.q, a.k = f.k, a.v = f.v, a.g = f.g, a.beta = f.beta, a.level_scales = f.level_scales;
    a.dout = Tensor(dout.data(), {1, T, H, V});
    a.dq = Tensor(dq.data(), {1, T, G, K});
    a.dk = Tensor(dk.data(), {1, T, G, K});
    a.dv = Tensor(dv.data(), {1, T, H, V});
    a.dg = Tensor(dg.data(), {1, T, H});
    if (has_beta(rule)) a.dbeta = Tensor(dbeta.data(), {1, T, H});
    a.dlevel_scales = Tensor(dscales.data(), {1, T, H, L});
    return a;
  }
};

void run_forward(benchmark::State& bench, Rule rule, std::int64_t T, std::int64_t H, std::int64_t K, std::int64_t V) {
  Problem problem(rule, T, H, K, V);
  const log_linear::ForwardArgs args = problem.forward();
  for (auto _ : bench) log_linear::forward(args);
  const double work = forward_work(rule, static_cast<double>(T), static_cast<double>(H), static_cast<double>(K),
                                   static_cast<double>(V));
  const double done = work * static_cast<double>(bench.iterations());
  bench.counters["flops"] = benchmark::Counter(done, benchmark::Counter::kIsRate);
  bench.counters["of_peak"] = benchmark::Counter(done / peak(), benchmark::Counter::kIsRate);
  bench.counters["tokens"] =
      benchmark::Counter(static_cast<double>(T * bench.iterations()), benchmark::Counter::kIsRate);
}

void run_backward(benchmark::State& bench, Rule rule, std::int64_t T, std::int64_t H, std::int64_t K, std::int64_t V) {
  Problem problem(rule, T, H, K, V);
  log_linear::forward(problem.forward());
  const log_linear::BackwardArgs args = problem.backward();
  for (auto _ : bench) log_linear::backward(args);
  bench.counters["tokens"] =
      benchmark::Counter(static_cast<double>(T * bench.iterations()), benchmark::Counter::kIsRate);
}

// One token at a position with as many live slots as there can be up to there.
void run_step(benchmark::State& bench, Rule rule, std::int64_t T, std::int64_t H, std::int64_t K, std::int64_t V) {
  Problem problem(rule, T, H, K, V);
  State state(rule, H, K, V);
  log_linear::ForwardArgs args = problem.forward();
  args.final_state = {&state, 1};
  log_linear::forward(args);
  log_linear::StepArgs step;
  step.rule = rule;
  step.q = Tensor(problem.q.data(), {1, 1, K});
  step.k = Tensor(problem.k.data(), {1, 1, K});
  step.v = Tensor(problem.v.data(), {1, H, V});
  step.g = Tensor(problem.g.data(), {1, H});
  if (has_beta(rule)) step.beta = Tensor(problem.beta.data(), {1, H});
  step.level_scales = Tensor(problem.scales.data(), {1, H, problem.L});
  step.out = Tensor(problem.out.data(), {1, H, V});
  State next;
  step.states = {&next, 1};
  for (auto _ : bench) {
    next = state;
    log_linear::step(step);
  }
  bench.counters["states"] = static_cast<double>(state.slots().size());
}

void add_all() {
  benchmark::RegisterBenchmark("peak_of_the_cores", [](benchmark::State& bench) {
    for (auto _ : bench) benchmark::DoNotOptimize(peak());
    bench.counters["flops"] = peak();
  })->Iterations(1);
  for (const Rule rule : kRules) {
    const std::string name = name_of(rule);
    const std::int64_t V = has_beta(rule) ? 128 : 64;
    const auto add = [&](const std::string& what, auto run, std::int64_t T, std::int64_t H, std::int64_t K,
                         std::int64_t width) {
      benchmark::RegisterBenchmark((what + "/" + name + "/T:" + std::to_string(T)).c_str(),
                                   [=](benchmark::State& bench) { run(bench, rule, T, H, K, width); })
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
    };
    for (const std::int64_t T : {1024, 4096, 16384, 65536}) add("forward", run_forward, T, 16, 128, V);
    for (const std::int64_t T : {1024, 4096, 16384}) add("backward", run_backward, T, 16, 128, V);
    for (const std::int64_t T : {1024 - 1, 16384 - 1}) add("step", run_step, T, 16, 128, V);
    add("smoke_forward", run_forward, 100, 2, 16, 16);
    add("smoke_backward", run_backward, 100, 2, 16, 16);
    add("smoke_step", run_step, 100, 2, 16, 16);
  }
}

const bool kAdded = (add_all(), true);

}  // namespace
}  // namespace loglinear
#endif
