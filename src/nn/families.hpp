#pragma once
// The one list of mixers that the block of a language model can have, each of which makes a family of models.

#include <string>
#include <string_view>

namespace loglinear::nn {

enum class MixerKind {
  mamba2,
  gated_deltanet,
  linear,
  flash,
  standard,
  sliding_window,
  local_strided,
  mosa,
};

struct Family {
  const char* name;        // ModelConfig::family, --mixer; what the comparison calls the mechanism
  const char* model_type;  // what config.json says; reading accepts name and alias as well
  const char* alias;
  MixerKind mixer;
  bool log_linear;  // level scales are learned; otherwise one level of scale one
  bool causal;      // no token's output depends on a later one; otherwise there is no streaming form
};

inline constexpr Family kFamilies[] = {
    {"log_linear_mamba2", "log_linear_mamba2", "hattention", MixerKind::mamba2, true, true},
    {"mamba2", "mamba2", "", MixerKind::mamba2, false, true},
    {"log_linear_gated_deltanet", "h_gated_deltanet", "", MixerKind::gated_deltanet, true, true},
    {"gated_deltanet", "gated_deltanet", "", MixerKind::gated_deltanet, false, true},
    {"linear", "linear", "", MixerKind::linear, false, true},
    {"flash", "transformer", "", MixerKind::flash, false, true},
    {"standard", "standard", "", MixerKind::standard, false, true},
    {"sliding_window", "sliding_window", "", MixerKind::sliding_window, false, true},
    {"local_strided", "local_strided", "", MixerKind::local_strided, false, true},
    {"mosa", "mosa", "", MixerKind::mosa, false, false},
};

// By any of its names. Null when there is no such family.
inline constexpr const Family* find_family(std::string_view name) {
  if (name.empty()) return nullptr;
  for (const Family& family : kFamilies)
    if (name == family.name || name == family.model_type || name == family.alias) return &family;
  return nullptr;
}

// "log_linear_mamba2, mamba2, ...", for messages and help.
inline std::string family_list() {
  std::string list;
  for (const Family& family : kFamilies) list += (list.empty() ? "" : ", ") + std::string(family.name);
  return list;
}

// Softmax attention of all tokens of a sequence, which differ in the operator alone.
inline constexpr bool is_attention(MixerKind kind) {
  return kind == MixerKind::flash || kind == MixerKind::standard || kind == MixerKind::sliding_window ||
         kind == MixerKind::local_strided;
}

}  // namespace loglinear::nn
