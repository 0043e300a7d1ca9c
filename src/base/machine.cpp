#include "base/machine.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string_view>
#include <thread>

namespace loglinear {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The number that a text begins with, -1 when it begins with none; `rest` is what follows it.
std::int64_t number_at(std::string_view text, std::string_view* rest = nullptr) {
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 0) return -1;
  if (rest) *rest = text.substr(static_cast<std::size_t>(end - text.data()));
  return value;
}

// "0-3,8" holds 5 processors.
int count_of(std::string_view list) {
  std::int64_t count = 0;
  while (!list.empty()) {
    std::string_view rest;
    const std::int64_t first = number_at(list, &rest);
    if (first < 0) return 0;
    std::int64_t last = first;
    if (!rest.empty() && rest[0] == '-') last = number_at(rest.substr(1), &rest);
    if (last < first || last > 1 << 20) return 0;
    count += last - first + 1;
    if (!rest.empty() && rest[0] != ',') return 0;
    list = rest.empty() ? rest : rest.substr(1);
  }
  return static_cast<int>(count);
}

// A field of a file like /proc/self/status that is given in kB.
std::int64_t bytes_in(const char* path, std::string_view field) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(field) || line.size() <= field.size() || line[field.size()] != ':') continue;
    const std::size_t digits = line.find_first_of("0123456789");
    const std::int64_t kilobytes = digits == std::string::npos ? -1 : number_at(std::string_view(line).substr(digits));
    return kilobytes < 0 ? -1 : kilobytes * 1024;
  }
  return -1;
}

}  // namespace

std::vector<CacheLevel> cache_levels(const std::string& folder) {
  std::vector<CacheLevel> levels;
  for (int i = 0; i < 16; ++i) {
    const std::string index = folder + "/index" + std::to_string(i) + "/";
    const std::string type = first_line(index + "type");
    if (type != "Data" && type != "Unified") continue;
    std::string_view unit;
    const std::string size = first_line(index + "size");
    const std::int64_t level = number_at(first_line(index + "level")), bytes = number_at(size, &unit);
    const int shared = count_of(first_line(index + "shared_cpu_list"));
    const std::int64_t factor = unit == "K" ? 1 << 10 : unit == "M" ? 1 << 20 : unit.empty() ? 1 : 0;
    if (level < 1 || level > 8 || bytes < 1 || bytes > 1 << 24 || factor == 0 || shared < 1) continue;
    levels.push_back({static_cast<int>(level), bytes * factor, shared});
  }
  std::sort(levels.begin(), levels.end(), [](const auto& a, const auto& b) { return a.level < b.level; });
  const auto same = [](const auto& a, const auto& b) { return a.level == b.level; };
  levels.erase(std::unique(levels.begin(), levels.end(), same), levels.end());
  if (levels.empty()) levels = {{1, 32 << 10, 1}, {2, 1 << 20, 1}, {3, 32 << 20, processors()}};
  return levels;
}

std::string cpu_model(const std::string& path) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name"))
      if (const std::size_t at = line.find_first_not_of(" \t", line.find(':') + 1);
          line.find(':') != std::string::npos && at != std::string::npos)
        return line.substr(at);
  return "unknown processor";
}

int processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::int64_t memory_bytes() {
  const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? static_cast<std::int64_t>(pages) * size : -1;
}

std::int64_t available_memory_bytes() { return bytes_in("/proc/meminfo", "MemAvailable"); }

std::int64_t resident_bytes() { return bytes_in("/proc/self/status", "VmRSS"); }
std::int64_t peak_resident_bytes() { return bytes_in("/proc/self/status", "VmHWM"); }

bool reset_peak_resident() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  return file.good();
}

}  // namespace loglinear
