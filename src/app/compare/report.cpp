#include "app/compare/report.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "app/progress.hpp"

namespace loglinear::app::compare {
namespace {

using nlohmann::ordered_json;

std::string format_time(double ms) { return format_milliseconds(ms); }

struct Column {
  Field field;
  const char* key;   // in JSON
  const char* name;  // in the table
  int width;
  std::string (*text)(double);
  bool bytes;
};
constexpr Column kColumns[] = {
    {kForward, "forward_ms", "forward ms", 12, format_time, false},
    {kForwardBackward, "forward_backward_ms", "fwd + bwd ms", 14, format_time, false},
    {kStep, "step_ms", "step ms", 10, format_time, false},
    {kPeak, "peak_bytes", "peak memory", 13, format_bytes, true},
    {kForwardBackwardPeak, "forward_backward_peak_bytes", "with backward", 14, format_bytes, true},
    {kState, "state_bytes", "state", 12, format_bytes, true},
};

std::string exponent_text(double x) { return std::isfinite(x) ? fmt::format("{:.2f}", x) : "-"; }
std::string error_text(double x) { return std::isfinite(x) ? fmt::format("{:.1e}", x) : "-"; }

std::string crossover_text(const Crossover& c) {
  switch (c.kind) {
    case Crossover::Kind::below:
      return fmt::format("below {:.0f}", c.T);
    case Crossover::Kind::at:
      return fmt::format("{:.0f}", c.T);
    case Crossover::Kind::never:
      return "never in range";
    case Crossover::Kind::none:
      break;
  }
  return "-";
}
ordered_json crossover_json(const Crossover& c) {
  return c.kind == Crossover::Kind::none ? ordered_json()
                                         : ordered_json{{"text", crossover_text(c)}, {"T", json_number(c.T)}};
}

const Summary& summary_of(const Outcome& outcome, const Mechanism* m) {
  return *std::find_if(outcome.summaries.begin(), outcome.summaries.end(),
                       [&](const Summary& s) { return s.mechanism == m; });
}

ordered_json row_json(const Row& row, const Summary& summary) {
  const auto number = [&](Field field) {
    const double x = row.numbers[field].value;
    return field < kPeak ? json_number(x) : json_whole(x);
  };
  ordered_json extrapolated = ordered_json::array();
  for (const Column& column : kColumns)
    if (row.numbers[column.field].extrapolated) extrapolated.push_back(column.key);
  return {{"mechanism", row.mechanism->name},
          {"T", row.T},
          {"forward_ms", number(kForward)},
          {"forward_backward_ms", number(kForwardBackward)},
          {"step_ms", number(kStep)},
          {"peak_bytes", number(kPeak)},
          {"state_bytes", number(kState)},
          {"time_exponent", json_number(summary.time_exponent())},
          {"error", json_number(row.error)},
          {"extrapolated", row.extrapolated()},
          {"extrapolated_keys", extrapolated},
          {"forward_backward_peak_bytes", number(kForwardBackwardPeak)},
          {"step_error", json_number(row.step_error)},
          {"gradient_error", json_number(row.gradient_error)},
          {"memory_exponent", json_number(summary.fits[kPeak].exponent)}};
}

ordered_json summary_json(const Summary& s) {
  return {{"mechanism", s.mechanism->name},
          {"time_exponent", json_number(s.time_exponent())},
          {"forward_exponent", json_number(s.fits[kForward].exponent)},
          {"forward_backward_exponent", json_number(s.fits[kForwardBackward].exponent)},
          {"step_exponent", json_number(s.fits[kStep].exponent)},
          {"memory_exponent", json_number(s.fits[kPeak].exponent)},
          {"state_exponent", json_number(s.fits[kState].exponent)},
          {"crossover_forward", crossover_json(s.crossovers[kForward])},
          {"crossover_forward_backward", crossover_json(s.crossovers[kForwardBackward])},
          {"crossover_step", crossover_json(s.crossovers[kStep])}};
}

std::string header(const Outcome& outcome, const Settings& s) {
  const Machine& m = outcome.machine;
  return fmt::format(
      "machine    {}, {} cores, {:.1f} GFLOP/s multiply-adds in float32\n"
      "threads    {} ({})\n"
      "shape      {} heads of width {}, float32, one sequence\n",
      m.cpu, m.cores, m.peak_gflops, m.threads, m.isa, s.heads, s.width);
}

// The best of a column among those shown; what was extrapolated does not compete with what was measured.
double best_of(const std::vector<const Row*>& rows, Field field) {
  double best = kAbsent;
  for (const Row* row : rows) {
    const Number& number = row->numbers[field];
    if (std::isfinite(number.value) && !number.extrapolated && !(best <= number.value)) best = number.value;
  }
  return best;
}

}  // namespace

ordered_json to_json(const Outcome& outcome, const Settings& settings, const std::string& command) {
  const Machine& m = outcome.machine;
  ordered_json rows = ordered_json::array(), summaries = ordered_json::array(), mechanisms = ordered_json::array();
  for (const Row& row : outcome.rows) rows.push_back(row_json(row, summary_of(outcome, row.mechanism)));
  for (const Summary& s : outcome.summaries) summaries.push_back(summary_json(s));
  for (const ordered_json& each : mechanisms_json())
    if (std::any_of(outcome.summaries.begin(), outcome.summaries.end(),
                    [&](const Summary& s) { return each["name"] == s.mechanism->name; }))
      mechanisms.push_back(each);
  return {{"machine",
           {{"cpu", m.cpu},
            {"cores", m.cores},
            {"threads", m.threads},
            {"isa", m.isa},
            {"memory_bytes", json_whole(m.memory_bytes)},
            {"peak_gflops", json_number(m.peak_gflops)}}},
          {"command", command},
          {"rows", rows},
          {"summary", summaries},
          {"mechanisms", mechanisms},
          {"settings",
           {{"heads", settings.heads},
            {"width", settings.width},
            {"dtype", "f32"},
            {"seed", settings.seed},
            {"budget", settings.budget},
            {"seconds", json_number(outcome.seconds)},
            {"interrupted", outcome.interrupted}}}};
}

std::string to_text(const Outcome& outcome, const Settings& settings) {
  std::string out = header(outcome, settings);
  bool any_extrapolated = false;
  for (auto begin = outcome.rows.begin(); begin != outcome.rows.end();) {
    const std::int64_t T = begin->T;
    std::vector<const Row*> rows;
    for (; begin != outcome.rows.end() && begin->T == T; ++begin) rows.push_back(&*begin);
    out += fmt::format("\nT = {}\n{:<26}", T, "mechanism");
    for (const Column& column : kColumns) out += fmt::format("{:>{}}", column.name, column.width);
    out += fmt::format("{:>10}\n", "error");
    for (const Row* row : rows) {
      out += fmt::format("{:<26}", row->mechanism->name);
      for (const Column& column : kColumns) {
        const Number& number = row->numbers[column.field];
        const bool best = !number.extrapolated && number.value <= best_of(rows, column.field);
        any_extrapolated |= number.extrapolated && std::isfinite(number.value);
        const char* mark = !std::isfinite(number.value) ? "" : number.extrapolated ? "~" : best ? "*" : "";
        out += fmt::format("{:>{}}", mark + column.text(number.value), column.width);
      }
      out += fmt::format("{:>10}\n", error_text(row->error));
    }
  }
  out += fmt::format("\n{:<26}{:>10}{:>12}{:>8}{:>9}   {}\n{:<26}{:>10}{:>12}{:>8}{:>9}   {:<16}{:<16}{}\n", "",
                     "exponents:", "", "", "", "no slower than flash from T on:", "mechanism", "forward", "fwd + bwd",
                     "step", "memory", "forward", "fwd + bwd", "step");
  for (const Summary& s : outcome.summaries) {
    std::string line = fmt::format(
        "{:<26}{:>10}{:>12}{:>8}{:>9}   {:<16}{:<16}{}", s.mechanism->name, exponent_text(s.fits[kForward].exponent),
        exponent_text(s.fits[kForwardBackward].exponent), exponent_text(s.fits[kStep].exponent),
        exponent_text(s.fits[kPeak].exponent), crossover_text(s.crossovers[kForward]),
        crossover_text(s.crossovers[kForwardBackward]), crossover_text(s.crossovers[kStep]));
    out += line + "\n";
  }
  out += "\n* best of the column at that length   - cannot do it or not measured";
  if (any_extrapolated) out += "   ~ extrapolated: it did not fit into the time or the memory";
  return out +
         fmt::format("\n{} in {}\n", outcome.interrupted ? "interrupted" : "done", format_duration(outcome.seconds));
}

std::string list_text() {
  std::string out = fmt::format("{:<26}{:<12}{:<8}{:<40}{}\n", "name", "time", "memory", "streaming state",
                                "forward train stream causal  computes, source");
  for (const Mechanism& m : mechanisms()) {
    const auto mark = [](bool b) { return b ? "yes" : "-"; };
    out += fmt::format("{:<26}{:<12}{:<8}{:<40}{:<8}{:<6}{:<7}{:<8}{}; {}\n", m.name, m.time, m.memory, m.state,
                       mark(m.forward), mark(m.train), mark(m.stream), mark(m.causal), m.computes, m.source);
  }
  return out;
}

}  // namespace loglinear::app::compare
