// MoSA, forward and backward, beside the multiply-add peak of the same run. Useful work is the products of
// docs/algorithm.md, section 10: the choice, then for each head projections of the chosen tokens and attention among
// them, causal half counted once; a backward is two forwards less the choice's second. A result that the float64
// definition does not confirm, on a first sequence of the same widths, is not reported.

#include <benchmark/benchmark.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/peak.hpp"
#include "base/random.hpp"
#include "loglinear/mosa.hpp"
#include "ops/mosa/ref.hpp"

namespace loglinear {
namespace {

struct Problem {
  MosaShape shape;
  std::vector<std::int64_t> cu;
  std::vector<float> router, qkv, out, x, y;

  Problem(std::int64_t T, std::int64_t D, std::int64_t E, std::int64_t d, std::int64_t sparsity)
      : shape{.model_width = D, .heads = E, .head_width = d, .sparsity = sparsity}, cu{0, T} {
    Random random(1, 0);
    const auto fill = [&](std::vector<float>& to, std::int64_t n, double scale) {
      to.resize(static_cast<std::size_t>(n));
      for (float& value : to) value = static_cast<float>(scale * random.normal());
    };
    const double w = 1 / std::sqrt(static_cast<double>(D));
    fill(router, D * E, w), fill(qkv, E * D * 3 * d, w), fill(out, E * d * D, w), fill(x, T * D, 1);
    y.resize(x.size());
  }
  MosaWeights<float> weights() const { return {router.data(), qkv.data(), out.data()}; }
  void forward() {
    mosa_forward<float>(cu, shape, weights(), x.data(), shape.model_width, y.data(), shape.model_width);
  }

  bool right() const {
    Problem few = *this;
    few.cu = {0, std::min<std::int64_t>(cu[1], 64)};
    const auto copy = [](const std::vector<float>& from) { return std::vector<double>(from.begin(), from.end()); };
    const std::vector<double> want =
        mosa::ref::forward<double>({few.cu, shape, copy(router), copy(qkv), copy(out), copy(x)});
    few.forward();
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      difference += (few.y[i] - want[i]) * (few.y[i] - want[i]);
      size += want[i] * want[i];
    }
    return std::sqrt(difference / size) <= 1e-5;
  }
  double operations() const {
    const double T = static_cast<double>(cu[1]), k = static_cast<double>(mosa_choice(cu[1], shape.sparsity));
    const double D = static_cast<double>(shape.model_width), d = static_cast<double>(shape.head_width);
    return 2 * static_cast<double>(shape.heads) * (T * D + k * D * 4 * d + k * (k + 1) / 2 * 2 * d);
  }
};

void run(benchmark::State& state, bool backward, std::int64_t T, std::int64_t D, std::int64_t E, std::int64_t d,
         std::int64_t sparsity) {
  Problem p(T, D, E, d, sparsity);
  if (!p.right()) return state.SkipWithError("the result is not that of the definition");
  std::vector<float> dx(p.x.size()), drouter(p.router.size()), dqkv(p.qkv.size()), dout(p.out.size());
  for (auto _ : state) {
    if (backward)
      mosa_backward<float>(p.cu, p.shape, p.weights(), p.x.data(), D, p.x.data(), D, dx.data(), D,
                           {drouter.data(), dqkv.data(), dout.data()});
    else
      p.forward();
    benchmark::ClobberMemory();
  }
  const double choice = 2.0 * static_cast<double>(T) * static_cast<double>(D * E);
  const double operations = backward ? 2 * p.operations() - 2 * choice : p.operations();
  state.counters["flops"] = benchmark::Counter(operations, benchmark::Counter::kIsIterationInvariantRate);
  const double peak = measure_fma_peak(0, DType::f32, 0.02);  // at the side of every case
  state.counters["of_peak"] = benchmark::Counter(operations / peak, benchmark::Counter::kIsIterationInvariantRate);
}

void register_all() {
  struct Shape {
    const char* name;
    std::int64_t T, D, E, d, sparsity;
  };
  const Shape shapes[] = {
      {"smoke/1024", 96, 32, 2, 16, 4},
      {"T4096_D512_E16_d64_s16", 4096, 512, 16, 64, 16},
      {"T16384_D512_E16_d64_s16", 16384, 512, 16, 64, 16},
  };
  for (const Shape& s : shapes)
    for (bool backward : {false, true})
      benchmark::RegisterBenchmark(
          (std::string(backward ? "backward/" : "forward/") + s.name).c_str(),
          [=](benchmark::State& state) { run(state, backward, s.T, s.D, s.E, s.d, s.sparsity); })
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
}

const bool registered = (register_all(), true);

}  // namespace
}  // namespace loglinear
