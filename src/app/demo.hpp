#pragma once
// From a text to a model that continues it, in a few minutes: training, a rival, a checkpoint, a prompt, the state.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "io/file.hpp"
#include "nn/model.hpp"

namespace loglinear::app {

struct DemoSettings {
  io::Path text;         // a file or a folder; empty: the headers of the C++ standard library (default_demo_text)
  io::Path out;          // training folder; empty: a new folder for temporary files
  double seconds = 180;  // of training; (0, 86400]
  std::int64_t seed = 1;
  std::int64_t threads = 0;  // 0: all cores
};

// The newest /usr/include/c++/<version>. Throws Error when there is none.
io::Path default_demo_text();

// The model that it trains.
nn::ModelConfig demo_model();

struct DemoHooks {
  std::function<void(std::string_view)> print;   // text for the console
  std::function<void(const std::string&)> warn;  // one line
  std::function<bool()> interrupted;
  bool terminal = false;  // print may rewrite its last line
};

// Trains a byte-level log-linear Mamba-2 on the text for settings.seconds (less on a small text, which is read only so
// often that it is not learnt by heart), with a part held out; scores the held-out part with it and with the order-2
// byte model fitted on the same training text; reads the checkpoint back from disk; continues a prompt from the
// held-out text; and measures the decoding state there beside the keys and values of a Transformer of the same width
// and depth that has read the same bytes. Says what it does through the hooks.
//
// Returns {text, bytes, train_bytes, steps, tokens_read, train_seconds, held_out_bytes, bits_per_byte,
// order2_bits_per_byte, checkpoint, prompt, continuation, tokens_per_second, position, state_bytes, live_blocks,
// transformer_bytes, interrupted}; after an interruption only what was reached.
//
// Text beyond the first 64 MiB is left out. Throws Error when there is less text than a few sequences, as read_text
// does, and as train does.
nlohmann::ordered_json run_demo(const DemoSettings& settings, const DemoHooks& hooks = {});

}  // namespace loglinear::app
