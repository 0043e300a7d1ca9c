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

std::string quality_note(const QualityResult& q) {
  const QualitySettings& s = q.settings;
  std::string text = fmt::format(
      "{} layers of width {}, {} heads, {} steps of {} tokens, mean and standard deviation of {} seeds; recall of {} "
      "pairs in {} tokens (guessing: {:.3f})",
      s.layers, s.hidden_size, s.heads, s.steps, s.batch_tokens, s.seeds, s.recall.items, s.recall.length, q.chance);
  if (q.held_out_bytes > 0)
    text += fmt::format("; text: {} trained on, {} held out", format_bytes(static_cast<double>(q.train_bytes)),
                        format_bytes(static_cast<double>(q.held_out_bytes)));
  return text;
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

ordered_json quality_json(const QualityResult& q) {
  const auto add = [](ordered_json& row, const std::string& key, const QualityScore& score) {
    ordered_json values = ordered_json::array();
    for (const double value : score.values) values.push_back(json_number(value));
    const bool any = !score.values.empty();
    row[key] = any ? json_number(score.mean) : ordered_json();
    row[key + "_spread"] = any ? json_number(score.spread) : ordered_json();
    row[key + "_values"] = values;
  };
  ordered_json rows = ordered_json::array();
  for (const QualityRow& r : q.rows) {
    ordered_json row{{"mechanism", r.mixer}, {"parameters", r.recall.parameters}, {"sees_future", r.sees_future}};
    add(row, "recall_accuracy", r.recall);
    add(row, "bits_per_byte", r.bits_per_byte);
    rows.push_back(row);
  }
  const QualitySettings& s = q.settings;
  return {{"note", quality_note(q)},
          {"rows", rows},
          {"chance", json_number(q.chance)},
          {"seeds", s.seeds},
          {"steps", s.steps},
          {"batch_tokens", s.batch_tokens},
          {"layers", s.layers},
          {"hidden_size", s.hidden_size},
          {"heads", s.heads},
          {"recall", {{"vocab", s.recall.vocab}, {"length", s.recall.length}, {"pairs", s.recall.items}}},
          {"train_bytes", q.train_bytes},
          {"held_out_bytes", q.held_out_bytes}};
}

std::string quality_text(const QualityResult& q) {
  const auto best = [&](const QualityScore QualityRow::*score, bool most) {
    double value = kAbsent;
    for (const QualityRow& row : q.rows)
      if (const QualityScore& s = row.*score; !s.values.empty() && !row.sees_future)
        if (!(most ? s.mean <= value : s.mean >= value) && std::isfinite(s.mean)) value = s.mean;
    return value;
  };
  const double recall = best(&QualityRow::recall, true), bits = best(&QualityRow::bits_per_byte, false);
  const auto text = [](const QualityScore& s, double best) {
    if (s.values.empty()) return std::string("-");
    const std::string spread = std::isfinite(s.spread) ? fmt::format(" +- {:.3f}", s.spread) : "";
    return std::isfinite(s.mean) ? fmt::format("{}{:.3f}{}", s.mean == best ? "*" : "", s.mean, spread) : "diverged";
  };
  std::string out = fmt::format("quality    {}\n{:<26}{:>12}{:>20}{:>20}\n", quality_note(q), "mechanism", "parameters",
                                "recall accuracy", "bits per byte");
  bool any_sees_future = false;
  for (const QualityRow& row : q.rows) {
    any_sees_future |= row.sees_future;
    out += fmt::format("{:<26}{:>12}{:>20}{:>20}{}\n", row.mixer, row.recall.parameters,
                       text(row.recall, row.sees_future ? kAbsent : recall),
                       text(row.bits_per_byte, row.sees_future ? kAbsent : bits), row.sees_future ? "  !" : "");
  }
  if (any_sees_future)
    out += "! sees later tokens through its choice: no number of a causal language model, and not marked\n";
  return out;
}

std::string list_text() {
  const auto mark = [](bool b) { return b ? "yes" : "-"; };
  std::string out = fmt::format("{:<26}{:<16}{:<10}{:<36}{:<9}{:<7}{:<8}{}\n", "name", "time", "memory",
                                "streaming state", "forward", "train", "stream", "causal");
  for (const Mechanism& m : mechanisms())
    out += fmt::format("{:<26}{:<16}{:<10}{:<36}{:<9}{:<7}{:<8}{}\n", m.name, m.time, m.memory, m.state,
                       mark(m.forward), mark(m.train), mark(m.stream), mark(m.causal));
  out += "\n";
  for (const Mechanism& m : mechanisms())
    out += fmt::format("{:<26}{}: {}\n{:<26}{}\n", m.name, m.title, m.computes, "", m.source);
  return out;
}

}  // namespace loglinear::app::compare
