#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "base/machine.hpp"
#include "base/peak.hpp"

namespace loglinear {
namespace {

namespace fs = std::filesystem;

// A folder as /sys/devices/system/cpu/cpu0/cache.
class Caches : public testing::Test {
 protected:
  Caches() : folder_(fs::temp_directory_path() / ("loglinear-machine-" + std::to_string(getpid()))) {
    fs::create_directories(folder_);
  }
  ~Caches() override { fs::remove_all(folder_); }
  void cache(int index, const char* level, const char* type, const char* size, const char* shared) {
    const fs::path at = folder_ / ("index" + std::to_string(index));
    fs::create_directories(at);
    std::ofstream(at / "level") << level << "\n";
    std::ofstream(at / "type") << type << "\n";
    std::ofstream(at / "size") << size << "\n";
    std::ofstream(at / "shared_cpu_list") << shared << "\n";
  }
  fs::path folder_;
};

TEST_F(Caches, AreReadAsTheSystemDescribesThem) {
  cache(0, "1", "Data", "48K", "0,64");
  cache(1, "1", "Instruction", "32K", "0,64");
  cache(2, "2", "Unified", "2048K", "0,64");
  cache(3, "3", "Unified", "105M", "0-31,64-95");
  const std::vector<CacheLevel> levels = cache_levels(folder_.string());
  ASSERT_EQ(levels.size(), 3u);
  EXPECT_EQ(levels[0].level, 1);
  EXPECT_EQ(levels[0].bytes, 48 << 10);
  EXPECT_EQ(levels[0].shared_by, 2);
  EXPECT_EQ(levels[1].bytes, 2 << 20);
  EXPECT_EQ(levels[2].level, 3);
  EXPECT_EQ(levels[2].bytes, 105 << 20);
  EXPECT_EQ(levels[2].shared_by, 64);
}

TEST_F(Caches, WhatMakesNoSenseIsLeftOut) {
  cache(0, "1", "Data", "32K", "0");
  cache(1, "2", "Unified", "-5K", "0");
  cache(2, "3", "Unified", "32768K", "3-1");
  cache(3, "4", "Unified", "16X", "0");
  cache(4, "9", "Unified", "16K", "0");
  cache(5, "2", "Unified", "99999999999999999999K", "0");
  const std::vector<CacheLevel> levels = cache_levels(folder_.string());
  ASSERT_EQ(levels.size(), 1u);
  EXPECT_EQ(levels[0].bytes, 32 << 10);
}

TEST_F(Caches, WithoutAnyThereIsSomethingToGoOnWith) {
  const std::vector<CacheLevel> levels = cache_levels((folder_ / "missing").string());
  ASSERT_EQ(levels.size(), 3u);
  for (std::size_t i = 0; i < levels.size(); ++i) {
    EXPECT_EQ(levels[i].level, static_cast<int>(i) + 1);
    EXPECT_GT(levels[i].bytes, 0);
    EXPECT_GE(levels[i].shared_by, 1);
  }
}

TEST_F(Caches, TheProcessorHasAName) {
  std::ofstream(folder_ / "cpuinfo") << "processor\t: 0\nmodel name\t: A CPU of 3 GHz\nflags\t: x\nmodel name\t: B\n";
  EXPECT_EQ(cpu_model((folder_ / "cpuinfo").string()), "A CPU of 3 GHz");
  std::ofstream(folder_ / "other") << "model name\nmodel name\t:\n";
  EXPECT_EQ(cpu_model((folder_ / "other").string()), "unknown processor");
  EXPECT_EQ(cpu_model((folder_ / "missing").string()), "unknown processor");
  EXPECT_GE(processors(), 1);
}

#if !defined(LOGLINEAR_SANITIZED)  // a sanitizer keeps freed memory
TEST(Memory, ThePeakIsThatSinceItWasForgotten) {
  constexpr std::int64_t kBytes = 64 << 20;
  const auto use = [] {
    std::vector<char> memory(kBytes);
    std::memset(memory.data(), 1, memory.size());
    volatile char* first = memory.data();
    return *first;
  };
  const std::int64_t before = resident_bytes();
  ASSERT_GT(before, 0);
  ASSERT_EQ(use(), 1);
  EXPECT_GE(peak_resident_bytes(), before + kBytes / 2);
  if (!reset_peak_resident()) GTEST_SKIP() << "the peak cannot be reset here";
  EXPECT_LT(peak_resident_bytes(), before + kBytes / 2);
  ASSERT_EQ(use(), 1);
  EXPECT_GE(peak_resident_bytes(), before + kBytes / 2);
}
#endif

TEST(Peaks, AreNumbers) {
  for (const double rate : {measure_fma_peak(1, DType::f32, 0.01), measure_fma_peak(2, DType::f64, 0.01),
                            measure_read_bandwidth(1, 100, 0.01), measure_read_bandwidth(2, 1 << 20, 0.01)}) {
    EXPECT_TRUE(std::isfinite(rate));
    EXPECT_GT(rate, 0);
  }
}

}  // namespace
}  // namespace loglinear
