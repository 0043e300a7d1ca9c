#pragma once
// The one list of the mechanisms that `loglinear compare` sets side by side: its command line, its tests, its cases and
// docs/mechanisms.md all read it. A mixer of `loglinear train --mixer` (nn::kFamilies) has the name of its mechanism.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace loglinear::app::compare {

// Of a call: tokens, heads, and the width of keys and values of a head.
struct Sizes {
  std::int64_t T = 0, H = 4, W = 64;
};

// Parameters that a user may not change: what a row of the comparison is measured with.
inline constexpr std::int64_t kWindow = 256;        // of sliding_window, tokens
inline constexpr std::int64_t kMosaSparsity = 16;   // a head of mosa chooses T / 16 tokens
inline constexpr std::int64_t kAdamasBudget = 128;  // tokens that adamas keeps

struct Mechanism {
  const char* name;      // on the command line and in JSON
  const char* title;     // for people
  const char* computes;  // the rule, in a line
  const char* time;      // order of the work of a call in T tokens
  const char* memory;    // order of what a forward call takes beyond its inputs
  const char* state;     // what has to be kept of T tokens to read one more; "-" when it does not stream
  const char* source;    // the paper
  bool forward = true;   // computes whole sequences; otherwise only one token after others that are cached
  bool train = true;     // has a backward
  bool stream = true;    // one token at a time, from a state
  bool causal = true;    // no token sees a later one
  // Bytes of that state in float32 before the last of T tokens is read; 0 when it does not stream.
  double (*state_bytes)(const Sizes&);
};

std::span<const Mechanism> mechanisms();
// Null when there is none of that name.
const Mechanism* find_mechanism(std::string_view name);
// "standard, flash, ...": every name, for messages.
std::string mechanism_names();

// The list as a table of docs/mechanisms.md, and as JSON: an array of objects with the fields above
// and `mixer`: whether models can have it as their mixer.
std::string mechanisms_markdown();
nlohmann::ordered_json mechanisms_json();

}  // namespace loglinear::app::compare
