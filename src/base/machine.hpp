#pragma once
// The machine as the operating system describes it, and the memory of this process.

#include <cstdint>
#include <string>
#include <vector>

namespace loglinear {

// A level of memory that holds data, nearest first.
struct CacheLevel {
  int level = 1;           // 1, 2, 3, ...
  std::int64_t bytes = 0;  // of one instance
  int shared_by = 1;       // processors that share an instance
};

// From `folder`/index*: those of the first processor. What cannot be read or makes no sense is left out; when nothing
// is left, 32 KiB and 1 MiB of its own for each processor and 32 MiB that all share.
std::vector<CacheLevel> cache_levels(const std::string& folder = "/sys/devices/system/cpu/cpu0/cache");

// Model name of the first processor, "unknown processor" where the system does not say.
std::string cpu_model(const std::string& file = "/proc/cpuinfo");
// Processors that this process may run on.
int processors();

// Memory of the machine, in bytes; -1 where the system does not say.
std::int64_t memory_bytes();
// What of it programs could still have, the system's caches given up; -1 where the system does not say.
std::int64_t available_memory_bytes();

// Memory of this process, in bytes; -1 where the system does not say.
std::int64_t resident_bytes();       // now
std::int64_t peak_resident_bytes();  // at most since reset_peak_resident()
// Forgets the peak so far. False where the system does not allow that.
bool reset_peak_resident();

}  // namespace loglinear
