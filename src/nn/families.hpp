#pragma once
// The one list of model families.

#include <string_view>

namespace loglinear::nn {

enum class MixerKind { mamba2, gated_deltanet, attention };

struct Family {
  const char* name;        // ModelConfig::family
  const char* model_type;  // what config.json says; reading accepts name and alias as well
  const char* alias;
  MixerKind mixer;
  bool log_linear;  // level scales are learned; otherwise one level of scale one
};

inline constexpr Family kFamilies[] = {
    {"log_linear_mamba2", "log_linear_mamba2", "hattention", MixerKind::mamba2, true},
    {"mamba2", "mamba2", "", MixerKind::mamba2, false},
    {"log_linear_gated_deltanet", "h_gated_deltanet", "", MixerKind::gated_deltanet, true},
    {"gated_deltanet", "gated_deltanet", "", MixerKind::gated_deltanet, false},
    {"transformer", "transformer", "", MixerKind::attention, false},
};

// Null when there is no such family.
inline constexpr const Family* find_family(std::string_view name) {
  for (const Family& family : kFamilies)
    if (name == family.name) return &family;
  return nullptr;
}

}  // namespace loglinear::nn
