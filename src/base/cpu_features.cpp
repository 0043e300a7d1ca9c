#include "base/cpu_features.hpp"

#include <hwy/highway.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <cstdlib>
#include <iterator>
#include <mutex>

#include "base/error.hpp"

namespace loglinear {
namespace {

struct Named {
  const char* name;
  std::int64_t target;
  Bf16Unit bf16 = Bf16Unit::none;
};

// Highway's targets under the names that people use, best first. What multiplies bfloat16 comes on top of one.
constexpr Named kNames[] = {{"amx", HWY_AVX3, Bf16Unit::tiles},
                            {"avx512_bf16", HWY_AVX3, Bf16Unit::dot},
                            {"avx512", HWY_AVX3},
                            {"avx2", HWY_AVX2},
                            {"neon", HWY_NEON},
                            {"baseline", HWY_STATIC_TARGET}};

#if defined(__x86_64__)
bool has_dot() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
}

// Tiles are state that the operating system has to save, and Linux does so for who asks.
bool has_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!has_dot() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx >> 22 & 1) || !(edx >> 24 & 1))
    return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Intel's CPUs multiply-add in float32 at least as fast as they take these dot products (and in half the time from
// Sapphire Rapids on, whose way to multiply bfloat16 is AMX): there nobody gets them who does not ask.
bool dot_is_fast() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && ebx != signature_INTEL_ebx;
}
#else
bool has_dot() { return false; }
bool has_tiles() { return false; }
bool dot_is_fast() { return false; }
#endif

bool available(const Named& n) {
  // Once, before anything is forced: Highway forgets what it chose whenever it is told what to support.
  static const std::int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  static const bool dot = has_dot(), tiles = has_tiles();
  return (targets & n.target) != 0 && (n.bf16 != Bf16Unit::dot || dot) && (n.bf16 != Bf16Unit::tiles || tiles);
}

// The best unless one is named.
const Named& best() {
  for (const Named& n : kNames)
    if (available(n) && (n.bf16 != Bf16Unit::dot || dot_is_fast())) return n;
  return kNames[std::size(kNames) - 1];
}

const Named* forced = nullptr;

// The first name of what Highway calls a target: compiled for AVX2, as for ARM, the baseline is not a set of its own.
std::string name_of(const std::string& highway_name, Bf16Unit bf16) {
  for (const Named& n : kNames)
    if (highway_name == hwy::TargetName(n.target) && n.bf16 == bf16) return n.name;
  std::string name = highway_name;
  for (char& c : name)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return name;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Named& n : kNames)
    if (available(n) && name_of(hwy::TargetName(n.target), n.bf16) == n.name) names.push_back(n.name);
  return names;
}

Bf16Unit bf16_unit() {
  static const Bf16Unit unit = best().bf16;
  return forced ? forced->bf16 : unit;
}

std::string instruction_set_name(const std::string& highway_name) { return name_of(highway_name, bf16_unit()); }

void force_instruction_set(const std::string& wanted) {
  const char* from_environment = std::getenv("LOGLINEAR_ISA");
  const std::string name = !wanted.empty() ? wanted : from_environment ? from_environment : "";
  const Named* found = nullptr;
  std::string known;
  for (const Named& n : kNames) {
    known += std::string(known.empty() ? "" : ", ") + n.name;
    if (name == n.name) found = &n;
  }
  if (!name.empty() && !found) fail_usage("cpu", "instruction set: got \"{}\", known are {}", name, known);
  if (found && !available(*found)) fail_usage("cpu", "instruction set: this CPU lacks {}", name);
  forced = found;
  hwy::SetSupportedTargetsForTest(forced ? forced->target : 0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

void apply_instruction_set_from_environment() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (!forced) force_instruction_set("");
  });
}

}  // namespace loglinear
