// Level matches, forward and backward, beside the multiply-add peak of the same run. Useful work is
// level_matches.hpp's: a token takes K multiply-adds for each level that it has and 2 K for the sums of keys; a
// backward is two forwards. A result that the definition in float64, pair by pair, does not confirm on the first tokens
// is not reported.

#include "loglinear/level_matches.hpp"

#include <benchmark/benchmark.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "base/peak.hpp"
#include "base/random.hpp"

namespace loglinear {
namespace {

struct Problem {
  std::int64_t T, G, K, columns;
  std::vector<std::int64_t> cu;  // B sequences of T tokens
  std::vector<float> q, k, matches;

  Problem(std::int64_t B, std::int64_t T_, std::int64_t G_, std::int64_t K_)
      : T(T_), G(G_), K(K_), columns(std::bit_width(static_cast<std::uint64_t>(T_)) + 1) {
    for (std::int64_t b = 0; b <= B; ++b) cu.push_back(b * T);
    Random random(1, 0);
    for (std::vector<float>* x : {&q, &k}) {
      x->resize(static_cast<std::size_t>(B * T * G * K));
      for (float& value : *x) value = static_cast<float>(random.normal());
    }
    matches.resize(static_cast<std::size_t>(B * T * G * columns));
  }
  MatchShape shape() const { return {cu, G, K, columns}; }
  void forward() { level_matches_forward<float>(shape(), q.data(), G * K, k.data(), G * K, {}, matches.data(), {}); }

  bool right() const {
    Problem few(1, std::min<std::int64_t>(T, 100), G, K);
    few.forward();
    double difference = 0, size = 0;
    for (std::int64_t t = 0; t < few.T; ++t)
      for (std::int64_t g = 0; g < G; ++g) {
        std::vector<double> want(static_cast<std::size_t>(few.columns), 0.0), tokens = want;
        for (std::int64_t s = 0; s <= t; ++s) {
          const std::size_t level = static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(t ^ s)));
          const float *query = &few.q[static_cast<std::size_t>((t * G + g) * K)],
                      *key = &few.k[static_cast<std::size_t>((s * G + g) * K)];
          tokens[level] += 1;
          for (std::int64_t i = 0; i < K; ++i) want[level] += static_cast<double>(query[i]) * key[i];
        }
        for (std::size_t l = 0; l < want.size(); ++l) {
          const double expected = tokens[l] > 0 ? want[l] / std::sqrt(tokens[l]) : 0;
          const double error = few.matches[static_cast<std::size_t>((t * G + g) * few.columns) + l] - expected;
          difference += error * error, size += expected * expected;
        }
      }
    return std::sqrt(difference / size) <= 5e-6;
  }
  double operations() const {
    double rows = 0;  // of K
    for (std::int64_t t = 0; t < T; ++t) rows += 2 + std::popcount(static_cast<std::uint64_t>(t));
    return 2 * rows * static_cast<double>(K * G) * static_cast<double>(cu.size() - 1);
  }
};

void run(benchmark::State& state, bool backward, std::int64_t B, std::int64_t T, std::int64_t G, std::int64_t K) {
  Problem p(B, T, G, K);
  if (!p.right()) return state.SkipWithError("the result is not that of the definition");
  std::vector<float> dq(p.q.size()), dk(p.k.size());
  p.forward();
  for (auto _ : state) {
    if (backward)
      level_matches_backward<float>(p.shape(), p.q.data(), G * K, p.k.data(), G * K, {}, p.matches.data(), dq.data(),
                                    G * K, dk.data(), G * K);
    else
      p.forward();
    benchmark::ClobberMemory();
  }
  const double operations = (backward ? 2 : 1) * p.operations();
  state.counters["flops"] = benchmark::Counter(operations, benchmark::Counter::kIsIterationInvariantRate);
  const double peak = measure_fma_peak(0, DType::f32, 0.02);  // at the side of every case
  state.counters["of_peak"] = benchmark::Counter(operations / peak, benchmark::Counter::kIsIterationInvariantRate);
}

void register_all() {
  struct Shape {
    const char* name;
    std::int64_t B, T, G, K;
  };
  const Shape shapes[] = {
      {"smoke/1024", 2, 100, 2, 20},
      {"B8_T512_G1_K64", 8, 512, 1, 64},
      {"B1_T16384_G1_K128", 1, 16384, 1, 128},
      {"B1_T16384_G16_K128", 1, 16384, 16, 128},
  };
  for (const Shape& s : shapes)
    for (bool backward : {false, true})
      benchmark::RegisterBenchmark((std::string(backward ? "backward/" : "forward/") + s.name).c_str(),
                                   [=](benchmark::State& state) { run(state, backward, s.B, s.T, s.G, s.K); })
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
}

const bool registered = (register_all(), true);

}  // namespace
}  // namespace loglinear
