// Quasi-linear attention, forward and backward, and one streaming update, beside the multiply-add peak of the same run.
// Useful work: K V multiply-adds for a seed into the state and for every row out of it; a backward is two forwards. A
// result that the definition in float64 does not confirm, on the first rows, is not reported.

#include <benchmark/benchmark.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/peak.hpp"
#include "base/random.hpp"
#include "loglinear/quasi_linear.hpp"
#include "ops/quasi_linear/ref.hpp"

namespace loglinear {
namespace {

enum class Form { forward, backward, candidates_from_state };

struct Problem {
  QuasiLinearShape shape;
  std::vector<QuasiLinearSequence> sequences;
  std::vector<float> q, k, v, out;

  Problem(std::int64_t seeds, std::int64_t candidates, std::int64_t H, std::int64_t K, std::int64_t V)
      : shape{.heads = H, .key_width = K, .value_width = V}, sequences{{0, seeds, seeds, candidates}} {
    Random random(1, 0);
    const auto fill = [&](std::vector<float>& to, std::int64_t n) {
      to.resize(static_cast<std::size_t>(n));
      for (float& value : to) value = static_cast<float>(random.normal());
    };
    const std::int64_t rows = seeds + candidates;
    fill(q, rows * H * K), fill(k, rows * H * K), fill(v, rows * H * V);
    out.assign(v.size(), 0.0f);
  }
  std::int64_t key_row() const { return shape.heads * shape.key_width; }
  std::int64_t value_row() const { return shape.heads * shape.value_width; }
  void forward(std::span<const float* const> initial = {}, std::span<float* const> final = {}) {
    quasi_linear_forward<float>(sequences, shape, q.data(), key_row(), k.data(), key_row(), v.data(), value_row(),
                                out.data(), value_row(), initial, final);
  }
  bool right() const {
    constexpr std::int64_t kSeeds = 70, kCandidates = 5;
    Problem few(kSeeds, kCandidates, shape.heads, shape.key_width, shape.value_width);
    few.forward();
    const auto copy = [](const std::vector<float>& from) { return std::vector<double>(from.begin(), from.end()); };
    std::vector<double> state(static_cast<std::size_t>(shape.heads * shape.key_width * shape.value_width), 0.0);
    const std::vector<double> want =
        quasi_linear::ref::forward<double>(few.sequences, shape, copy(few.q), copy(few.k), copy(few.v), state);
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      difference += (few.out[i] - want[i]) * (few.out[i] - want[i]);
      size += want[i] * want[i];
    }
    return std::sqrt(difference / size) <= 5e-6;
  }
};

void run(benchmark::State& state, Form form, std::int64_t seeds, std::int64_t candidates, std::int64_t H,
         std::int64_t K, std::int64_t V) {
  Problem p(seeds, candidates, H, K, V);
  if (!p.right()) return state.SkipWithError("the result is not that of the definition");
  std::vector<float> z(static_cast<std::size_t>(H * K * V)), dq(p.q.size()), dk(p.k.size()), dv(p.v.size());
  float* const written[] = {z.data()};
  const float* const read[] = {z.data()};
  double rows = static_cast<double>(2 * seeds + candidates);
  if (form == Form::candidates_from_state) {
    p.forward({}, written);
    p.sequences[0].seed_count = 0;
    rows = static_cast<double>(candidates);
  }
  for (auto _ : state) {
    if (form == Form::backward)
      quasi_linear_backward<float>(p.sequences, p.shape, p.q.data(), p.key_row(), p.k.data(), p.key_row(), p.v.data(),
                                   p.value_row(), p.v.data(), p.value_row(), dq.data(), p.key_row(), dk.data(),
                                   p.key_row(), dv.data(), p.value_row());
    else
      p.forward(form == Form::forward ? std::span<const float* const>() : read);
    benchmark::ClobberMemory();
  }
  const double operations = (form == Form::backward ? 2 : 1) * 2 * rows * static_cast<double>(H * K * V);
  state.counters["flops"] = benchmark::Counter(operations, benchmark::Counter::kIsIterationInvariantRate);
  const double peak = measure_fma_peak(0, DType::f32, 0.02);  // at the side of every case
  state.counters["of_peak"] = benchmark::Counter(operations / peak, benchmark::Counter::kIsIterationInvariantRate);
}

void register_all() {
  struct Shape {
    const char* name;
    std::int64_t seeds, candidates, H, K, V;
  };
  const Shape shapes[] = {
      {"smoke/1024", 100, 30, 2, 16, 16},
      {"seeds4096_candidates512_H16_K64_V64", 4096, 512, 16, 64, 64},
      {"seeds16384_candidates2048_H16_K128_V128", 16384, 2048, 16, 128, 128},
  };
  const std::pair<const char*, Form> forms[] = {{"forward/", Form::forward},
                                                {"backward/", Form::backward},
                                                {"candidates_from_state/", Form::candidates_from_state}};
  for (const Shape& s : shapes)
    for (const auto& [name, form] : forms)
      benchmark::RegisterBenchmark(
          (name + std::string(s.name)).c_str(),
          [=, form = form](benchmark::State& state) { run(state, form, s.seeds, s.candidates, s.H, s.K, s.V); })
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
}

const bool registered = (register_all(), true);

}  // namespace
}  // namespace loglinear
