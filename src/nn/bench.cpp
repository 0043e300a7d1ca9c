// Time of a training step and of a decoding step of every family: byte vocabulary, D 256, 4 layers. A training step is
// forward and backward of 4096 tokens in one sequence; the optimizer is not in it.

#include <benchmark/benchmark.h>

#include "base/random.hpp"
#include "nn/model.hpp"

namespace loglinear::nn {
namespace {

ModelConfig config_of(const std::string& family) {
  ModelConfig c;
  c.family = family;
  if (family.ends_with("gated_deltanet")) {  // H K = 3/4 D, V = 2 K, as in the paper
    c.num_heads = 4;
    c.key_width = 48;
    c.value_width = 96;
  } else if (family == "transformer") {
    c.num_heads = 4;
  }
  return c;
}

std::vector<std::int32_t> random_tokens(std::int64_t count) {
  Random random(1, 0);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<std::int32_t>(random.below(256)));
  return tokens;
}

void train_step(benchmark::State& state, const std::string& family) {
  const std::int64_t N = state.range(0);
  Model<float> model(config_of(family));
  model.threads = static_cast<int>(state.range(1));
  model.initialise(1);
  const std::vector<std::int32_t> tokens = random_tokens(N);
  const std::int64_t cu_seqlens[] = {0, N};
  model.loss(tokens, tokens, cu_seqlens, true, 1.0);  // the first step takes the memory for its activations
  for (auto _ : state)
    benchmark::DoNotOptimize(model.loss(tokens, tokens, cu_seqlens, true, 1.0 / static_cast<double>(N)));
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(N), benchmark::Counter::kIsIterationInvariantRate);
}

void decode_step(benchmark::State& state, const std::string& family) {
  Model<float> model(config_of(family));
  model.threads = static_cast<int>(state.range(1));
  model.initialise(1);
  const std::vector<std::int32_t> tokens = random_tokens(state.range(0));
  std::vector<float> logits(256);
  DecodeState context = model.new_state();
  model.read(context, tokens, logits);
  std::size_t i = 0;
  for (auto _ : state) model.read(context, {&tokens[i++ % tokens.size()], 1}, logits);
  state.counters["tokens/s"] = benchmark::Counter(1, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["state_bytes"] = static_cast<double>(context.bytes());
}

const bool registered = [] {
  for (const std::string& family : family_names()) {
    benchmark::RegisterBenchmark(("train_step/" + family).c_str(),
                                 [family](benchmark::State& state) { train_step(state, family); })
        ->ArgNames({"tokens", "threads"})
        ->Args({4096, 1})
        ->Args({4096, 0})
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
    benchmark::RegisterBenchmark(("decode_step/" + family).c_str(),
                                 [family](benchmark::State& state) { decode_step(state, family); })
        ->ArgNames({"position", "threads"})
        ->Args({4096, 1})
        ->Unit(benchmark::kMicrosecond)
        ->UseRealTime();
    benchmark::RegisterBenchmark(("smoke/train_step/" + family).c_str(),
                                 [family](benchmark::State& state) { train_step(state, family); })
        ->Args({100, 0})
        ->Iterations(1);
  }
  return true;
}();

}  // namespace
}  // namespace loglinear::nn
