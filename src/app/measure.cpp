#include "app/measure.hpp"

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>
#include <thread>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "app/progress.hpp"
#include "base/machine.hpp"

namespace loglinear::app {
nlohmann::ordered_json json_number(double x) {
  return std::isfinite(x) ? nlohmann::ordered_json(x) : nlohmann::ordered_json();
}

nlohmann::ordered_json json_whole(double x) {
  return std::isfinite(x) ? nlohmann::ordered_json(static_cast<std::int64_t>(std::llround(x)))
                          : nlohmann::ordered_json();
}

double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

Timing timing_of(std::vector<double> ms) {
  Timing t;
  t.runs = static_cast<int>(ms.size());
  if (ms.empty()) return t;
  std::sort(ms.begin(), ms.end());
  const std::size_t half = ms.size() / 2;
  t.median = ms.size() % 2 ? ms[half] : (ms[half - 1] + ms[half]) / 2;
  t.min = ms.front(), t.max = ms.back();
  t.mean = std::accumulate(ms.begin(), ms.end(), 0.0) / static_cast<double>(ms.size());
  return t;
}

Spread spread_of(const std::vector<double>& values) {
  Spread spread;
  if (values.empty()) return spread;
  const double n = static_cast<double>(values.size());
  spread.mean = 0;
  for (const double value : values) spread.mean += value / n;
  double squares = 0;
  for (const double value : values) squares += (value - spread.mean) * (value - spread.mean);
  if (values.size() > 1) spread.deviation = std::sqrt(squares / (n - 1));
  return spread;
}

Timing time_calls(double seconds, const std::function<void()>& call, const std::function<void(double)>& after) {
  std::vector<double> ms;
  const double begin = monotonic_seconds();
  for (;;) {
    const double start = monotonic_seconds();
    call();
    const double now = monotonic_seconds(), spent = now - begin;
    ms.push_back(1e3 * (now - start));
    if (after) after(ms.back());
    if (spent >= seconds && (ms.size() >= 3 || spent >= 3 * seconds)) return timing_of(std::move(ms));
  }
}

void keep_one_heap() {
#if defined(__GLIBC__)
  mallopt(M_ARENA_MAX, 1);
#endif
}

void BesidePeak::took(double rate) {
  const double after = meter_.measure();
  ratios_.push_back(rate / std::max(before_, after));
  before_ = after;
}

double BesidePeak::percent() const { return 100 * timing_of(ratios_).median; }

void release_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

double measure_peak_bytes(const std::function<void()>& call) {
  release_memory();
  const bool counted = reset_peak_resident();
  const std::int64_t before = resident_bytes();
  std::exception_ptr error;
  std::thread([&] {
    try {
      call();
    } catch (...) {
      error = std::current_exception();
    }
  }).join();
  if (error) std::rethrow_exception(error);
  const std::int64_t peak = peak_resident_bytes();
  return counted && before >= 0 && peak >= 0 ? static_cast<double>(std::max<std::int64_t>(0, peak - before)) : kAbsent;
}

}  // namespace loglinear::app
