#include "base/parallel.hpp"

#include <atomic>
#include <stdexcept>
#include <vector>

#include "gtest/gtest.h"

namespace loglinear {
namespace {

TEST(Parallel, EveryItemExactlyOnce) {
  for (std::int64_t n : {0, 1, 2, 3, 64, 1000})
    for (int threads : {0, 1, 2, 4, 7}) {
      std::vector<int> seen(n, 0);
      parallel_for(n, threads, [&](std::int64_t i) { ++seen[i]; });
      EXPECT_EQ(seen, std::vector<int>(n, 1)) << n << " items, " << threads << " threads";
    }
}

TEST(Parallel, AnExceptionReachesTheCallerAndTheOtherItemsStillRun) {
  for (int threads : {2, 4}) {
    std::atomic<int> done = 0;
    const auto body = [&](std::int64_t i) {
      if (i % 10 == 3) throw std::runtime_error("item");
      ++done;
    };
    EXPECT_THROW(parallel_for(100, threads, body), std::runtime_error);
    EXPECT_EQ(done, 90);
  }
  EXPECT_THROW(parallel_for(1, 1, [](std::int64_t) { throw std::runtime_error("item"); }), std::runtime_error);
}

TEST(Parallel, ThreadCount) {
  EXPECT_EQ(thread_count(3), 3);
  EXPECT_GE(thread_count(0), 1);
}

}  // namespace
}  // namespace loglinear
