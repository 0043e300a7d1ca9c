#include "base/peak.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/peak.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "base/parallel.hpp"

HWY_BEFORE_NAMESPACE();
namespace loglinear {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// `rounds` times twelve independent multiply-adds. Returns the operations done; `sink` keeps the compiler honest.
double multiply_adds(std::int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  const auto a = hn::Set(d, 0.999f), b = hn::Set(d, 0.001f);
  // Distinct starting values from outside: equal chains would be merged into one.
  const auto start = [&](int i) HWY_ATTR { return hn::Set(d, sink[i]); };
  auto x0 = start(0), x1 = start(1), x2 = start(2), x3 = start(3), x4 = start(4), x5 = start(5), x6 = start(6),
       x7 = start(7);
  auto x8 = start(8), x9 = start(9), x10 = start(10), x11 = start(11);
  for (std::int64_t i = 0; i < rounds; ++i) {
    x0 = hn::MulAdd(x0, a, b), x1 = hn::MulAdd(x1, a, b), x2 = hn::MulAdd(x2, a, b), x3 = hn::MulAdd(x3, a, b);
    x4 = hn::MulAdd(x4, a, b), x5 = hn::MulAdd(x5, a, b), x6 = hn::MulAdd(x6, a, b), x7 = hn::MulAdd(x7, a, b);
    x8 = hn::MulAdd(x8, a, b), x9 = hn::MulAdd(x9, a, b), x10 = hn::MulAdd(x10, a, b), x11 = hn::MulAdd(x11, a, b);
  }
  const auto all =
      hn::Add(hn::Add(hn::Add(x0, x1), hn::Add(x2, x3)),
              hn::Add(hn::Add(hn::Add(x4, x5), hn::Add(x6, x7)), hn::Add(hn::Add(x8, x9), hn::Add(x10, x11))));
  *sink = hn::GetLane(hn::SumOfLanes(d, all));
  return 2.0 * 12.0 * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(d));
}

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace loglinear {

HWY_EXPORT(multiply_adds);

double measure_fma_peak(int threads) {
  const int count = thread_count(threads);
  std::vector<float> sinks(count * 16);  // a cache line each
  for (int i = 0; i < count * 16; ++i) sinks[i] = 1.0f / static_cast<float>(i + 1);
  double best = 0;
  for (int run = 0; run < 10; ++run) {
    std::vector<double> done(count);
    const auto start = std::chrono::steady_clock::now();
    parallel_for(count, count,
                 [&](std::int64_t i) { done[i] = HWY_DYNAMIC_DISPATCH(multiply_adds)(4'000'000, &sinks[i * 16]); });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    double sum = 0;
    for (double d : done) sum += d;
    best = std::max(best, sum / seconds);
  }
  return best;
}

}  // namespace loglinear
#endif
