#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "app/measure.hpp"
#include "app/progress.hpp"

namespace loglinear::app {
namespace {

TEST(Timings, MedianAndSpread) {
  const Timing odd = timing_of({5, 1, 3});
  EXPECT_EQ(odd.runs, 3);
  EXPECT_EQ(odd.median, 3);
  EXPECT_EQ(odd.min, 1);
  EXPECT_EQ(odd.max, 5);
  EXPECT_EQ(odd.mean, 3);
  EXPECT_EQ(timing_of({4, 1, 2, 100}).median, 3);
  EXPECT_TRUE(std::isnan(timing_of({}).median));
  int calls = 0;
  EXPECT_EQ(time_calls(1e-9, [&] { ++calls; }).runs, calls);
  EXPECT_GE(calls, 1);
}

TEST(Spread, IsThatOfASample) {
  const Spread spread = spread_of({2, 4, 4, 4, 5, 5, 7, 9});
  EXPECT_EQ(spread.mean, 5);
  EXPECT_DOUBLE_EQ(spread.deviation, std::sqrt(32.0 / 7));
  EXPECT_EQ(spread_of({3}).mean, 3);
  EXPECT_TRUE(std::isnan(spread_of({3}).deviation));
  EXPECT_TRUE(std::isnan(spread_of({}).mean));
  EXPECT_TRUE(std::isnan(spread_of({1, kAbsent}).mean) && std::isnan(spread_of({1, kAbsent}).deviation));
}

TEST(Distance, IsRelativeAndFailsOnNan) {
  EXPECT_DOUBLE_EQ(relative_error({3, 4}, {3, 0}), 4.0 / 3);
  EXPECT_EQ(relative_error({2, 0}, {0, 0}), 2);
  EXPECT_TRUE(std::isnan(relative_error({std::numeric_limits<double>::quiet_NaN()}, {1})));
}

TEST(Filling, GoesOnWhereItStopped) {
  std::vector<float> once, grown;
  const auto draw = [](double u) { return u; };
  fill(once, 200000, 3, 4, draw);
  for (const std::int64_t count : {1, 70000, 200000, 5}) fill(grown, count, 3, 4, draw);
  EXPECT_EQ(once, grown);
}

#if !defined(LOGLINEAR_SANITIZED)  // a sanitizer keeps freed memory
TEST(Peaks, AreThoseOfTheCallAlone) {
  keep_one_heap();
  constexpr std::size_t kBytes = 40 << 20;
  const auto use = [](std::size_t bytes) {
    // In pieces of a size that the allocator would rather keep, and freed before the end.
    std::vector<std::vector<char>> pieces;
    for (std::size_t n = 0; n < bytes; n += 1 << 20) pieces.emplace_back(1 << 20, 'x');
  };
  for (const std::size_t bytes : {kBytes, 2 * kBytes, kBytes}) {
    const double peak = measure_peak_bytes([&] { use(bytes); });
    if (std::isnan(peak)) GTEST_SKIP() << "the peak cannot be reset here";
    EXPECT_NEAR(peak / static_cast<double>(bytes), 1, 0.1);
  }
  EXPECT_LT(measure_peak_bytes([] {}), kBytes / 10);
  EXPECT_THROW(measure_peak_bytes([] { throw std::runtime_error("no"); }), std::runtime_error);
}
#endif

TEST(Formats, BytesAndMilliseconds) {
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(20.0 * (1 << 30)), "20.0 GiB");
  EXPECT_EQ(format_bytes(kAbsent), "-");
  EXPECT_EQ(format_milliseconds(0.01234), "0.0123");
  EXPECT_EQ(format_milliseconds(12.345), "12.35");
  EXPECT_EQ(format_milliseconds(1234.56), "1234.6");
  EXPECT_EQ(format_milliseconds(kAbsent), "-");
}

}  // namespace
}  // namespace loglinear::app
