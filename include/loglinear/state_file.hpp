#pragma once
// A decoding state in a safetensors file: what was read of a sequence, to be continued later or elsewhere.

#include <filesystem>

#include "loglinear/error.hpp"
#include "loglinear/state.hpp"

namespace loglinear {

// Writes the state to a file: to a temporary beside it, flushed, renamed. One matrix (H, K, V) of state.dtype() and one
// log decay (H) of F64 for every live slot, and the open tokens, so that load_state gives back the same bits. What
// State::allow_rollback() keeps of the chunk before is left out. Equal states give equal files.
// Throws Error when the file cannot be written; an existing file is unharmed then.
void save_state(const State& state, const std::filesystem::path& path);

// Reads a state written by save_state. Nothing in the file is believed: format, version, rule, position, widths, shapes
// and decays (no NaN, no +infinity) are checked against each other, and
// tensors or metadata of unknown name are refused. Throws Error, naming the file.
State load_state(const std::filesystem::path& path);

}  // namespace loglinear
