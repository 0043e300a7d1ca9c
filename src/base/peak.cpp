#include "base/peak.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/peak.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#include "base/bf16_matrix.hpp"
#include "base/cpu_features.hpp"
#include "base/error.hpp"
#include "base/parallel.hpp"

HWY_BEFORE_NAMESPACE();
namespace loglinear {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// `rounds` times twelve independent multiply-adds. Returns the operations done; `sink` keeps the compiler honest.
template <class T>
double multiply_adds(std::int64_t rounds, T* sink) {
  const hn::ScalableTag<T> d;
  const auto a = hn::Set(d, T(0.999)), b = hn::Set(d, T(0.001));
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

double multiply_adds_f32(std::int64_t rounds, float* sink) { return multiply_adds<float>(rounds, sink); }
double multiply_adds_f64(std::int64_t rounds, double* sink) { return multiply_adds<double>(rounds, sink); }

// Reads `count` words, a multiple of kReadWords, `rounds` times; eight independent sums, so that loads alone limit it.
std::uint32_t read_words(std::int64_t rounds, const std::uint32_t* words, std::int64_t count) {
  const hn::ScalableTag<std::uint32_t> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  auto x0 = hn::Zero(d), x1 = x0, x2 = x0, x3 = x0, x4 = x0, x5 = x0, x6 = x0, x7 = x0;
  for (std::int64_t r = 0; r < rounds; ++r)
    for (const std::uint32_t *p = words, *end = words + count; p < end; p += 8 * N) {
      x0 = hn::Add(x0, hn::Load(d, p)), x1 = hn::Add(x1, hn::Load(d, p + N));
      x2 = hn::Add(x2, hn::Load(d, p + 2 * N)), x3 = hn::Add(x3, hn::Load(d, p + 3 * N));
      x4 = hn::Add(x4, hn::Load(d, p + 4 * N)), x5 = hn::Add(x5, hn::Load(d, p + 5 * N));
      x6 = hn::Add(x6, hn::Load(d, p + 6 * N)), x7 = hn::Add(x7, hn::Load(d, p + 7 * N));
    }
  x0 = hn::Add(hn::Add(hn::Add(x0, x1), hn::Add(x2, x3)), hn::Add(hn::Add(x4, x5), hn::Add(x6, x7)));
  return hn::GetLane(hn::SumOfLanes(d, x0));
}

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace loglinear {

HWY_EXPORT(multiply_adds_f32);
HWY_EXPORT(multiply_adds_f64);
HWY_EXPORT(read_words);

namespace {

// What a round of read_words takes at most: eight of the widest vectors that any instruction set has (256 bytes).
constexpr std::int64_t kReadWords = 8 * 256 / 4;

// How long a run lasts: enough for starting threads not to count, and no longer: on a busy machine some runs then find
// the processors free.
constexpr double kRun = 3e-3;

template <class F>
double seconds_of(const F& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <class T, class Chain>
auto chains(int threads, const Chain& chain) {
  constexpr std::int64_t kLine = 64;  // sinks lie lines apart
  auto sinks = std::make_shared<std::vector<T>>(static_cast<std::size_t>(threads * kLine));
  for (std::size_t i = 0; i < sinks->size(); ++i) (*sinks)[i] = T(1) / static_cast<T>(i + 1);
  return [=](std::int64_t i, std::int64_t rounds) { return chain(1000 * rounds, sinks->data() + i * kLine); };
}

}  // namespace

PeakMeter::PeakMeter(int threads, Work work) : threads_(threads), work_(std::move(work)) {
  // One thread, and the shortest of three: a thread may be away for longer than all of its work takes.
  for (double shortest = 0; rounds_ < std::int64_t{1} << 40; rounds_ *= 2) {
    for (int i = 0; i < 3; ++i) {
      const double elapsed = seconds_of([&] { work_(0, rounds_); });
      shortest = i ? std::min(shortest, elapsed) : elapsed;
    }
    if (shortest >= kRun / 2) break;
  }
}

double PeakMeter::measure(double seconds) const {
  std::vector<double> done(static_cast<std::size_t>(threads_));
  double best = 0, spent = 0;
  for (int i = 0; i < 3 || spent < seconds; ++i) {
    const double elapsed = seconds_of([&] {
      parallel_for(threads_, threads_, [&](std::int64_t t) { done[static_cast<std::size_t>(t)] = work_(t, rounds_); });
    });
    spent += elapsed;
    best = std::max(best, std::accumulate(done.begin(), done.end(), 0.0) / elapsed);
  }
  return best;
}

PeakMeter PeakMeter::multiply_adds(int threads, DType dtype) {
  const int count = thread_count(threads);
  if (dtype == DType::f64)
    return {count, chains<double>(count, [](std::int64_t rounds, double* sink) {
              return HWY_DYNAMIC_DISPATCH(multiply_adds_f64)(rounds, sink);
            })};
  return {count, chains<float>(count, [](std::int64_t rounds, float* sink) {
            return HWY_DYNAMIC_DISPATCH(multiply_adds_f32)(rounds, sink);
          })};
}

PeakMeter PeakMeter::bf16_products(int threads) {
  if (bf16_unit() == Bf16Unit::none) fail("peak", "this instruction set multiplies no bfloat16");
  return {thread_count(threads), [unit = bf16_unit()](std::int64_t, std::int64_t rounds) {
            const bf16::Scope scope(unit);
            return bf16::multiply_registers(100 * rounds);
          }};
}

PeakMeter PeakMeter::reads(int threads, std::int64_t bytes) {
  const int count = thread_count(threads);
  const std::int64_t words = std::max<std::int64_t>(1, bytes / 4 / kReadWords) * kReadWords;
  struct Buffer {
    hwy::AlignedFreeUniquePtr<std::uint32_t[]> words;
    std::uint32_t sum = 0;
  };
  auto buffers = std::make_shared<std::vector<Buffer>>(static_cast<std::size_t>(count));
  parallel_for(count, count, [&](std::int64_t i) {
    auto& buffer = (*buffers)[static_cast<std::size_t>(i)].words;
    buffer = hwy::AllocateAligned<std::uint32_t>(static_cast<std::size_t>(words));
    if (!buffer) throw std::bad_alloc();
    std::fill_n(buffer.get(), words, 1u);  // pages that were never written are all one page of zeros
  });
  // A run takes at least a few microseconds even when a buffer lies in the first level.
  const std::int64_t least = std::max<std::int64_t>(1, (1 << 16) / words);
  return {count, [=](std::int64_t i, std::int64_t rounds) {
            Buffer& buffer = (*buffers)[static_cast<std::size_t>(i)];
            buffer.sum += HWY_DYNAMIC_DISPATCH(read_words)(rounds * least, buffer.words.get(), words);
            return static_cast<double>(rounds * least * words * 4);
          }};
}

}  // namespace loglinear
#endif
