#pragma once
// States as part of a larger safetensors file, for instance one for each layer of a model. The file of one state alone
// is include/loglinear/state_file.hpp: the same with an empty prefix.
//
// Tensors: for every live slot "<prefix>slot.<bit>.matrix" (H, K, V) F32 or F64 and "<prefix>slot.<bit>.log_decay" (H)
// F64; where there are open tokens, n of them, "<prefix>open.k" (G, n, K), "<prefix>open.v" (H, n, V), "<prefix>open.g"
// and for rules with beta "<prefix>open.beta" (H, n), of the states' type. Metadata: "<prefix>format" =
// "loglinear.state", "<prefix>version" = "2", "<prefix>rule", "<prefix>dtype" (f32, f64), "<prefix>heads",
// "<prefix>key_width", "<prefix>value_width", "<prefix>chunk", "<prefix>position", and with open tokens
// "<prefix>groups", decimal.

#include <map>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "loglinear/state.hpp"
#include "loglinear/state_file.hpp"

namespace loglinear::io {

// Appends the state's tensors and metadata. The views refer to the state's own memory and to what is appended to
// `memory`, which must stay alive and unchanged until they are written.
void append_state(const State& state, const std::string& prefix, std::vector<TensorView>& tensors,
                  std::map<std::string, std::string>& metadata, std::vector<std::vector<std::byte>>& memory);

// Reads the state of that prefix back. Error, naming the file and the prefix, when anything is missing or contradicts
// the rest, also when there is a tensor "<prefix>slot.*" or "<prefix>open.*" that the position does not account for.
State read_state(const SafetensorsFile& file, const std::string& prefix);

}  // namespace loglinear::io
