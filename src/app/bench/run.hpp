#pragma once
// `loglinear bench`: which cases, the limits of the machine, and one after the other.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "app/bench/row.hpp"

namespace loglinear::app::bench {

struct Settings {
  std::string what;  // "op", "step", "train"; empty: all three
  std::optional<Rule> rule;
  std::vector<Shape> shapes;            // empty: a list for each rule
  std::string form;                     // of op: "forward" or "backward"; empty: both
  std::vector<std::int64_t> positions;  // of step; empty: with 1, 4 and 12 live states
  std::vector<std::string> models;      // of train; empty: all
  DType dtype = DType::f32;
  std::string isa;  // empty: the best that the CPU has, or what LOGLINEAR_ISA says
  int threads = 0, chunk = 0;
  double seconds = 1;    // of timing, a case
  double tolerance = 1;  // (0, 1]: the part of the bounds of docs/numerics.md that is allowed
  std::int64_t seed = 1;
};

struct Hooks {
  std::function<void(const Peaks&)> peaks;             // before the first row
  std::function<void(Row&)> row;                       // as soon as it is there; may complete it
  std::function<void(const std::string&)> wrong;       // a case that gets no row because its result is wrong
  std::function<void(std::string_view what)> started;  // for whoever waits
};

struct Outcome {
  std::vector<Row> rows;
  int wrong = 0;
};

// Throws Error: kind usage for settings that make no sense, failure when a case does not fit into memory. The
// instruction set of the settings stays in force afterwards.
Outcome run(const Settings& settings, const Hooks& hooks = {});

}  // namespace loglinear::app::bench
