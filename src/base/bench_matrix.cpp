// The small matrix kernel on the shapes of a chunk (docs/algorithm.md, section 5), one thread, beside the multiply-add
// peak measured in the same run and, where CMake found libxsmm, beside that library's generated kernels. A product that
// does not match a plain loop is not reported. Triangles count the multiply-adds that are wanted, no others.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/bench_matrix.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "base/matrix-inl.h"

HWY_BEFORE_NAMESPACE();
namespace loglinear::bench {
namespace HWY_NAMESPACE {

using loglinear::Part;

// Not a template and with an integer for the part, so that one pointer serves every instruction set.
void product(int part, std::int64_t M, std::int64_t N, std::int64_t K, const float* a, std::int64_t a_row,
             std::int64_t a_col, const float* b, float* c) {
  Epilogue<float> epilogue;
  epilogue.part = static_cast<Part>(part);
  loglinear::HWY_NAMESPACE::product<float>(M, N, K, a, a_row, a_col, b, row_stride(N), c, row_stride(N), epilogue);
}

static_assert(static_cast<int>(Part::full) == 0 && static_cast<int>(Part::lower_a) == 1);
static_assert(static_cast<int>(Part::upper_a) == 2 && static_cast<int>(Part::lower_c) == 3);

}  // namespace HWY_NAMESPACE
}  // namespace loglinear::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <benchmark/benchmark.h>
#ifdef LOGLINEAR_HAVE_LIBXSMM
#include <libxsmm.h>
#endif

#include <algorithm>
#include <cmath>
#include <string>

#include "base/peak.hpp"
#include "base/pool.hpp"
#include "base/random.hpp"

namespace loglinear::bench {

HWY_EXPORT(product);

namespace {

enum class Triangle { none, lower_a, upper_a, lower_c };  // in the order of Part

struct Shape {
  const char* name;
  std::int64_t M, N, K;
  Triangle triangle;
  bool transposed;  // A lies in memory as (K, M)
};

constexpr Shape kShapes[] = {
    {"scores_and_read_64x64x128", 64, 64, 128, Triangle::none, false},
    {"scores_lower_c_64x64x128", 64, 64, 128, Triangle::lower_c, false},
    {"inside_64x64x64", 64, 64, 64, Triangle::none, false},
    {"inside_lower_a_64x64x64", 64, 64, 64, Triangle::lower_a, false},
    {"inside_upper_a_64x64x64", 64, 64, 64, Triangle::upper_a, true},
    {"read_64x128x128", 64, 128, 128, Triangle::none, false},
    {"write_128x64x64", 128, 64, 64, Triangle::none, true},
    {"write_128x128x64", 128, 128, 64, Triangle::none, true},
};

// Multiply-adds that are wanted.
double work(const Shape& s) {
  const double M = static_cast<double>(s.M), N = static_cast<double>(s.N), K = static_cast<double>(s.K);
  switch (s.triangle) {
    case Triangle::lower_c:
      return M * (M + 1) / 2 * K;
    case Triangle::lower_a:
    case Triangle::upper_a:
      return M * (M + 1) / 2 * N;
    case Triangle::none:
      break;
  }
  return M * N * K;
}

double peak() {
  static const double value = measure_fma_peak(1);
  return value;
}

struct Data {
  const Shape& shape;
  // Aligned as the operators' scratch memory is.
  Matrix<float> a, b, c;

  explicit Data(const Shape& s)
      : shape(s), a(take(s.M * s.K)), b(take(s.K * row_stride(s.N))), c(take(s.M * row_stride(s.N))) {
    Random random(1, 0);
    std::generate_n(a.get(), s.M * s.K, [&] { return static_cast<float>(random.uniform() - 0.5); });
    std::generate_n(b.get(), s.K * row_stride(s.N), [&] { return static_cast<float>(random.uniform() - 0.5); });
    std::fill_n(c.get(), s.M * row_stride(s.N), NAN);
    // Zero where a triangular matrix has nothing: what knows no triangles may multiply by it.
    for (std::int64_t m = 0; m < s.M; ++m)
      for (std::int64_t k = 0; k < s.K; ++k)
        if ((s.triangle == Triangle::lower_a && k > m) || (s.triangle == Triangle::upper_a && k < m))
          a.get()[m * a_row() + k * a_col()] = 0;
  }

  static Matrix<float> take(std::int64_t count) { return Pool<float>::take(static_cast<std::size_t>(count)); }

  std::int64_t a_row() const { return shape.transposed ? 1 : shape.K; }
  std::int64_t a_col() const { return shape.transposed ? shape.M : 1; }

  // Whether c is what a plain loop says, where it is wanted.
  bool right() const {
    double difference = 0, size = 0;
    for (std::int64_t m = 0; m < shape.M; ++m)
      for (std::int64_t n = 0; n < (shape.triangle == Triangle::lower_c ? m + 1 : shape.N); ++n) {
        double sum = 0;
        for (std::int64_t k = 0; k < shape.K; ++k)
          sum += static_cast<double>(a.get()[m * a_row() + k * a_col()]) * b.get()[k * row_stride(shape.N) + n];
        const double error = c.get()[m * row_stride(shape.N) + n] - sum;
        difference += error * error, size += sum * sum;
      }
    return std::sqrt(difference / size) <= 1e-6;
  }
};

template <class Run>
void measure(benchmark::State& state, const Shape& shape, Run&& run) {
  Data data(shape);
  run(data);
  if (!data.right()) return state.SkipWithError("the result is wrong");
  for (auto _ : state) {
    run(data);
    benchmark::ClobberMemory();
  }
  state.counters["flops"] = benchmark::Counter(2 * work(shape), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["peak"] = peak();
  state.counters["of_peak"] =
      benchmark::Counter(2 * work(shape) / peak(), benchmark::Counter::kIsIterationInvariantRate);
}

void ours(benchmark::State& state, const Shape& shape) {
  measure(state, shape, [&](Data& d) {
    HWY_DYNAMIC_DISPATCH(product)
    (static_cast<int>(shape.triangle), shape.M, shape.N, shape.K, d.a.get(), d.a_row(), d.a_col(), d.b.get(),
     d.c.get());
  });
}

#ifdef LOGLINEAR_HAVE_LIBXSMM
// Its matrices are column-major, so it computes C^T = B^T A^T. It knows neither triangles nor a transposed second
// operand, so a transposed A is transposed before the clock starts: its figures there leave out work that ours does.
void libxsmm(benchmark::State& state, const Shape& shape) {
  const auto M = static_cast<libxsmm_blasint>(shape.N), N = static_cast<libxsmm_blasint>(shape.M);
  const auto K = static_cast<libxsmm_blasint>(shape.K), ld = static_cast<libxsmm_blasint>(row_stride(shape.N));
  const float alpha = 1, beta = 0;
  const int flags = LIBXSMM_GEMM_FLAG_NONE;
  const libxsmm_smmfunction kernel = libxsmm_smmdispatch(M, N, K, &ld, &K, &ld, &alpha, &beta, &flags, nullptr);
  if (kernel == nullptr) return state.SkipWithError("libxsmm has no kernel for this CPU and shape");
  const Data from(shape);
  Data packed(shape);
  if (shape.transposed)
    for (std::int64_t m = 0; m < shape.M; ++m)
      for (std::int64_t k = 0; k < shape.K; ++k) packed.a.get()[m * shape.K + k] = from.a.get()[k * shape.M + m];
  measure(state, shape, [&](Data& d) { kernel(d.b.get(), packed.a.get(), d.c.get()); });
}
#endif

[[maybe_unused]] const bool registered = [] {
  for (const Shape& shape : kShapes) {
    benchmark::RegisterBenchmark((std::string("ours/") + shape.name).c_str(), ours, shape);
#ifdef LOGLINEAR_HAVE_LIBXSMM
    benchmark::RegisterBenchmark((std::string("libxsmm/") + shape.name).c_str(), libxsmm, shape);
#endif
  }
  return true;
}();

}  // namespace
}  // namespace loglinear::bench
#endif
