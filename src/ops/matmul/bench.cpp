// Dense products of a training step beside the multiply-add peak of the same run. With LOGLINEAR_BLAS=libblis.so.4 (or
// libopenblas.so.0, any library with cblas_sgemm) the same products through that library too, after a check that both
// agree.

#include <benchmark/benchmark.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdlib>
#include <vector>

#include "base/peak.hpp"
#include "base/random.hpp"
#include "loglinear/matmul.hpp"

namespace loglinear {
namespace {

using Sgemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);

Sgemm rival() {
  static const Sgemm call = [] {
    const char* name = std::getenv("LOGLINEAR_BLAS");
    void* library = name ? dlopen(name, RTLD_NOW | RTLD_LOCAL) : nullptr;
    return library ? reinterpret_cast<Sgemm>(dlsym(library, "cblas_sgemm")) : nullptr;
  }();
  return call;
}

double peak() {
  static const double value = measure_fma_peak(0);
  return value;
}

// C (M, N) = op(A) op(B) (+ C when it is a weight gradient, the one product with A transposed).
void products(benchmark::State& state, bool with_rival, bool a_t, bool b_t, std::int64_t M, std::int64_t N,
              std::int64_t K) {
  if (with_rival && !rival()) return state.SkipWithError("LOGLINEAR_BLAS names no library with cblas_sgemm");
  Random random(1, 0);
  std::vector<float> a(M * K), b(K * N), c(M * N, 0.0f), other(M * N, 0.0f);
  for (std::vector<float>* x : {&a, &b})
    for (float& e : *x) e = static_cast<float>(random.uniform() - 0.5);
  const std::int64_t lda = a_t ? M : K, ldb = b_t ? K : N;
  const float beta = a_t ? 1.0f : 0.0f;
  const auto ours = [&](std::vector<float>& to) {
    matmul<float>(a_t ? Transpose::yes : Transpose::no, b_t ? Transpose::yes : Transpose::no, M, N, K, a.data(), lda,
                  b.data(), ldb, beta, to.data(), N);
  };
  const auto theirs = [&](std::vector<float>& to) {
    rival()(101, a_t ? 112 : 111, b_t ? 112 : 111, static_cast<int>(M), static_cast<int>(N), static_cast<int>(K), 1.0f,
            a.data(), static_cast<int>(lda), b.data(), static_cast<int>(ldb), beta, to.data(), static_cast<int>(N));
  };
  if (with_rival) {
    ours(c);
    theirs(other);
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < c.size(); ++i) {
      difference += (c[i] - other[i]) * (c[i] - other[i]);
      norm += c[i] * c[i];
    }
    if (!(std::sqrt(difference / norm) <= 1e-5)) return state.SkipWithError("the results differ");
  }
  for (auto _ : state) with_rival ? theirs(other) : ours(c);
  const double flops = 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K);
  state.counters["flops"] = benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] = benchmark::Counter(flops / peak(), benchmark::Counter::kIsIterationInvariantRate);
}

void register_all() {
  struct Shape {
    const char* name;
    bool a_t, b_t;
    std::int64_t M, N, K;
  };
  const Shape shapes[] = {
      {"smoke/1024", false, true, 16, 16, 16},
      {"forward/4096x256to1312", false, true, 4096, 1312, 256},
      {"input_gradient/4096x1312to256", false, false, 4096, 256, 1312},
      {"weight_gradient/1312x256over4096", true, false, 1312, 256, 4096},
      {"forward/2048x1536to4096", false, true, 2048, 4096, 1536},
      {"input_gradient/2048x4096to1536", false, false, 2048, 1536, 4096},
      {"weight_gradient/4096x1536over8192", true, false, 4096, 1536, 8192},
  };
  for (const Shape& s : shapes)
    for (bool with_rival : {false, true}) {
      if (with_rival && !rival()) continue;
      const std::string name = std::string(with_rival ? "rival/" : "ours/") + s.name;
      benchmark::RegisterBenchmark(
          name.c_str(), [=](benchmark::State& state) { products(state, with_rival, s.a_t, s.b_t, s.M, s.N, s.K); })
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
    }
}

const bool registered = (register_all(), true);

}  // namespace
}  // namespace loglinear
