// Adamas: the compare of packed codes beside the read bandwidth of the memory that holds so many bytes, measured in the
// same run; then whole decoding steps, and a dense step of the same cache. A compare whose distances are not those of
// the codes, or a choice that is not the definition's, is not reported.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "base/parallel.hpp"
#include "base/peak.hpp"
#include "base/random.hpp"
#include "loglinear/adamas.hpp"
#include "ops/adamas/ref.hpp"

namespace loglinear {
namespace {

// Bytes a second of all threads that read `bytes` together, each a part of its own. Measured at the side of every case.
double bandwidth(std::int64_t bytes) { return PeakMeter::reads(0, bytes / thread_count(0)).measure(0.05); }

struct Cache {
  AdamasShape shape;
  std::int64_t tokens, stride;
  AdamasCodes codes;
  std::vector<float> q;
  std::vector<std::uint16_t> distances;

  Cache(std::int64_t T, std::int64_t H, std::int64_t K, std::int64_t V, std::int64_t budget)
      : shape{.heads = H,
              .kv_heads = H,
              .key_width = K,
              .value_width = V,
              .budget = budget,
              .thresholds = {-0.7, 0, 0.7}},
        tokens(T),
        stride((T + 127) / 128 * 128),
        codes(shape),
        distances(static_cast<std::size_t>(H * stride)) {
    Random random(1, 0);
    q = values(random, H * K);
    // The same 4096 keys over and over: making keys takes longer than what is measured.
    const std::vector<float> k = values(random, std::min<std::int64_t>(T, 4096) * H * K);
    for (std::int64_t at = 0; at < T; at += 4096) codes.append(std::min<std::int64_t>(4096, T - at), k.data(), H * K);
  }
  static std::vector<float> values(Random& random, std::int64_t n) {
    std::vector<float> to(static_cast<std::size_t>(n));
    for (float& value : to) value = static_cast<float>(4 * random.uniform() - 2);
    return to;
  }
  void compare() { adamas_distances<float>(shape, codes, q.data(), distances.data(), stride); }

  bool right() {
    compare();
    const std::int64_t K = shape.key_width;
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      AdamasShape one = shape;
      one.heads = one.kv_heads = 1;
      AdamasCodes query(one);
      query.append(1, q.data() + h * K, K);
      std::vector<int> all;
      for (std::int64_t s = 0; s < tokens; ++s) {
        const int got = distances[h * stride + s];
        all.push_back(got);
        if (s % 97 != 0 && s + 40 < tokens) continue;
        int want = 0;
        for (std::int64_t i = 0; i < K; ++i) want += std::abs(query.code(0, 0, i) - codes.code(s, h, i));
        if (got != want) return false;
      }
      std::vector<std::int64_t> chosen(static_cast<std::size_t>(std::min(shape.budget, tokens)));
      adamas_select(tokens, distances.data() + h * stride, shape.budget, chosen.data());
      if (chosen != adamas::ref::choice(all, shape.budget)) return false;
    }
    return true;
  }
};

void compare(benchmark::State& state, std::int64_t T, std::int64_t H, std::int64_t K) {
  Cache cache(T, H, K, 1, 1024);
  if (!cache.right()) return state.SkipWithError("the distances are not those of the codes");
  // The limit is the best of several runs, so the fastest call is what stands beside it; the mean is busy machines'
  // too.
  double fastest = 1e9;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    cache.compare();
    benchmark::ClobberMemory();
    fastest = std::min(fastest, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  const double bytes = static_cast<double>(T * H * K) / 4;
  state.counters["bytes"] =
      benchmark::Counter(bytes, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::OneK::kIs1000);
  state.counters["fastest"] =
      benchmark::Counter(bytes / fastest, benchmark::Counter::kDefaults, benchmark::Counter::OneK::kIs1000);
  state.counters["fastest_of_bandwidth"] = bytes / fastest / bandwidth(static_cast<std::int64_t>(bytes));
}

void select(benchmark::State& state, std::int64_t T, std::int64_t budget) {
  Cache cache(T, 1, 64, 1, budget);
  if (!cache.right()) return state.SkipWithError("the choice is not that of the definition");
  std::vector<std::int64_t> chosen(static_cast<std::size_t>(budget));
  for (auto _ : state) {
    adamas_select(T, cache.distances.data(), budget, chosen.data());
    benchmark::ClobberMemory();
  }
}

void step(benchmark::State& state, bool dense, std::int64_t T, std::int64_t H, std::int64_t K, std::int64_t budget) {
  Cache cache(T, H, K, K, budget);
  if (!cache.right()) return state.SkipWithError("the distances are not those of the codes");
  if (dense) cache.shape.budget = T;
  Random random(2, 0);
  const std::vector<float> k = Cache::values(random, T * H * K), v = Cache::values(random, T * H * K);
  std::vector<float> out(static_cast<std::size_t>(H * K));
  const AdamasCache<float> one = {&cache.codes, k.data(), v.data()};
  for (auto _ : state) {
    adamas_step<float>(cache.shape, {&one, 1}, cache.q.data(), H * K, H * K, H * K, out.data(), H * K);
    benchmark::ClobberMemory();
  }
}

void register_all() {
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMicrosecond);
  };
  for (const auto& [T, H, K] :
       {std::tuple{1024, 2, 32}, {4096, 16, 64}, {65536, 16, 64}, {65536, 16, 128}, {1048576, 8, 64}})
    add("compare/H" + std::to_string(H) + "_K" + std::to_string(K) + "/" + std::to_string(T),
        [T = T, H = H, K = K](benchmark::State& state) { compare(state, T, H, K); });
  for (std::int64_t T : {1024, 65536})
    add("select/256/" + std::to_string(T), [T](benchmark::State& state) { select(state, T, 256); });
  for (const auto& [T, H] : {std::pair{1024, 2}, {16384, 16}, {65536, 16}})
    for (bool dense : {false, true})
      add(std::string(dense ? "dense" : "step") + "/H" + std::to_string(H) + "_K64_budget256/" + std::to_string(T),
          [T = T, H = H, dense](benchmark::State& state) { step(state, dense, T, H, 64, 256); });
}

const bool registered = (register_all(), true);

}  // namespace
}  // namespace loglinear
