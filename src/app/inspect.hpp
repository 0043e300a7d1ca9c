#pragma once
// What a file or folder of ours holds.

#include <nlohmann/json.hpp>
#include <string>

#include "io/file.hpp"

namespace loglinear::app {

// Looks at a checkpoint folder, a training folder (its newest checkpoint), a safetensors file, a saved context or a
// saved state, and says in one object:
//
//   kind        "checkpoint", "safetensors", "context" or "state"
//   path, bytes (of all tensors), tensors: [{name, dtype, shape, bytes}], metadata
//   checkpoint  family, parameters, config, step (where training left one), checkpoints (of a training folder)
//   context     family, rule (absent for attention), position, live_slots: [{bit, first, tokens}], state_bytes,
//   fingerprint state       rule, dtype, heads, key_width, value_width, position, live_slots, state_bytes
//
// With stats, every float tensor also has min, max and rms of its finite values and the number of others, non_finite.
// Headers and configuration are checked, weights are read only for stats. Throws Error, one line, for anything damaged,
// missing or of another kind.
nlohmann::ordered_json inspect(const io::Path& path, bool stats);

// The same for people, lines ending with a newline.
std::string to_text(const nlohmann::ordered_json& report);

}  // namespace loglinear::app
