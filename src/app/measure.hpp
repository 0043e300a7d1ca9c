#pragma once
// Time, memory and distance: what the benchmarks of `loglinear bench` and `loglinear compare` measure with.

#include <cstdint>
#include <functional>
#include <limits>
#include <stdexcept>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/parallel.hpp"
#include "base/peak.hpp"
#include "base/random.hpp"

namespace loglinear::app {

// A number that was not measured or makes no sense.
inline constexpr double kAbsent = std::numeric_limits<double>::quiet_NaN();

// null where the number is absent or not finite; whole: rounded, of things or bytes.
nlohmann::ordered_json json_number(double x);
nlohmann::ordered_json json_whole(double x);

// The result of a case is not what it has to be: there is nothing to report about its speed.
class WrongResult : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// |got - want| / |want| in the 2-norm, |got| where want is zero; NaN where either has one.
double relative_error(const std::vector<double>& got, const std::vector<double>& want);

// Times of repeated calls, in milliseconds.
struct Timing {
  int runs = 0;
  double median = kAbsent, min = kAbsent, max = kAbsent, mean = kAbsent;
};
Timing timing_of(std::vector<double> ms);
// Calls `call` for about so many seconds, and at least three times unless that takes more than three times as long.
// `after`, if there is one, gets the milliseconds of each.
Timing time_calls(double seconds, const std::function<void()>& call, const std::function<void(double)>& after = {});

// Mean and sample standard deviation; the mean of no values, and the deviation of fewer than two, are absent.
struct Spread {
  double mean = kAbsent, deviation = kAbsent;
};
Spread spread_of(const std::vector<double>& values);

// The part of a peak that calls reached, on a machine whose peak moves: measured before and after each of them, the
// larger of the two counts.
class BesidePeak {
 public:
  explicit BesidePeak(const PeakMeter& meter) : meter_(meter), before_(meter.measure()) {}
  // After a call that did so many units a second.
  void took(double rate);
  // 100 times the median of rate over peak.
  double percent() const;

 private:
  const PeakMeter& meter_;
  double before_;
  std::vector<double> ratios_;
};

// From here on all threads share one heap, if it is called before there are others: of those of threads the allocator
// keeps what was freed resident, and a call that takes it again seems to take nothing.
void keep_one_heap();
// Gives what was freed back to the system, so that resident memory is what is in use.
void release_memory();

// The most bytes that became resident while `call` ran once, on a thread of its own: operators keep scratch for the
// next call of their thread, and a new thread has none. Counts all of it only after keep_one_heap(). What the call
// throws is thrown here. NaN where the system does not say.
double measure_peak_bytes(const std::function<void()>& call);

// Appends values to x until it has `count`; value number i is draw(u), u uniform in [0, 1) and a function of (seed,
// stream, i) alone.
template <class T, class Draw>
void fill(std::vector<T>& x, std::int64_t count, std::uint64_t seed, std::uint64_t stream, const Draw& draw) {
  const std::int64_t begin = static_cast<std::int64_t>(x.size());
  if (count <= begin) return;
  x.resize(static_cast<std::size_t>(count));
  const Random random(seed, stream);
  constexpr std::int64_t kBlock = 1 << 16;
  parallel_for((count - begin + kBlock - 1) / kBlock, 0, [&](std::int64_t block) {
    const std::int64_t first = begin + block * kBlock;
    for (std::int64_t i = first; i < std::min(count, first + kBlock); ++i)
      x[static_cast<std::size_t>(i)] = static_cast<T>(
          static_cast<float>(draw(static_cast<double>(random.at(static_cast<std::uint64_t>(i)) >> 11) * 0x1p-53)));
  });
}

}  // namespace loglinear::app
