#include "base/cpu_features.hpp"

#include <hwy/highway.h>

#include <cstdlib>
#include <mutex>

#include "base/error.hpp"

namespace loglinear {
namespace {

struct Named {
  const char* name;
  std::int64_t target;
};

// Highway's targets under the names that people use.
constexpr Named kNames[] = {
    {"avx512", HWY_AVX3}, {"avx2", HWY_AVX2}, {"neon", HWY_NEON}, {"baseline", HWY_STATIC_TARGET}};

std::int64_t available() { return hwy::SupportedTargets() & HWY_TARGETS; }

}  // namespace

std::vector<std::string> instruction_sets() {
  hwy::SetSupportedTargetsForTest(0);
  std::vector<std::string> names;
  for (const Named& n : kNames)
    if (available() & n.target) names.push_back(n.name);
  return names;
}

std::string instruction_set_name(const std::string& highway_name) {
  for (const Named& n : kNames)
    if (highway_name == hwy::TargetName(n.target)) return n.name;
  std::string name = highway_name;
  for (char& c : name)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return name;
}

void force_instruction_set(const std::string& name) {
  hwy::SetSupportedTargetsForTest(0);
  if (!name.empty()) {
    std::string known;
    for (const Named& n : kNames) {
      known += std::string(known.empty() ? "" : ", ") + n.name;
      if (name != n.name) continue;
      if (!(available() & n.target)) fail_usage("cpu", "instruction set: this CPU lacks {}", name);
      hwy::SetSupportedTargetsForTest(n.target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      return;
    }
    fail_usage("cpu", "instruction set: got \"{}\", known are {}", name, known);
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

void apply_instruction_set_from_environment() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (const char* name = std::getenv("LOGLINEAR_ISA"); name && *name) force_instruction_set(name);
  });
}

}  // namespace loglinear
