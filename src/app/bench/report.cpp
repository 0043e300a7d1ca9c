#include "app/bench/report.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "app/progress.hpp"
#include "base/error.hpp"

namespace loglinear::app::bench {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kAgainst = "bench --against";
constexpr std::uint64_t kLongestFile = 64 << 20;

ordered_json text(const std::string& x) { return x.empty() ? ordered_json() : ordered_json(x); }

std::string number_text(double x, int digits) { return std::isfinite(x) ? fmt::format("{:.{}f}", x, digits) : "-"; }
std::string count_text(double x) { return std::isfinite(x) ? format_count(x) : "-"; }

std::string percent_text(double x) { return std::isfinite(x) ? fmt::format("{:.1f} %", x) : "-"; }

std::string shape_text(const Row& r) {
  const Shape& s = r.shape;
  std::string text = s.B > 1 ? fmt::format("B{} ", s.B) : "";
  if (r.position < 0) text += fmt::format("T{} ", s.T);
  return text + fmt::format("H{} G{} K{} V{} L{}", s.H, s.G, s.K, s.V, s.L);
}

struct Column {
  const char* name;
  int width;  // negative: to the left
  std::string (*text)(const Row&);
};

const Column kOpColumns[] = {
    {"rule", -12, [](const Row& r) { return r.rule; }},
    {"form", -8, [](const Row& r) { return r.form; }},
    {"dtype", -5, [](const Row& r) { return r.dtype; }},
    {"shape", -29, [](const Row& r) { return shape_text(r); }},
    {"ms", 8, [](const Row& r) { return format_milliseconds(r.ms); }},
    {"min .. max", 18,
     [](const Row& r) { return format_milliseconds(r.ms_min) + " .. " + format_milliseconds(r.ms_max); }},
    {"GFLOP/s", 7, [](const Row& r) { return number_text(r.gflops, 1); }},
    {"of peak", 7, [](const Row& r) { return percent_text(r.percent); }},
    {"tokens/s", 8, [](const Row& r) { return count_text(r.tokens_per_s); }},
    {"state", 9, [](const Row& r) { return format_bytes(r.state_bytes); }},
    {"in + out", 9, [](const Row& r) { return format_bytes(r.argument_bytes); }},
    {"peak mem", 9, [](const Row& r) { return format_bytes(r.peak_bytes); }},
};
const Column kStepColumns[] = {
    {"rule", -12, [](const Row& r) { return r.rule; }},
    {"form", -8, [](const Row& r) { return r.form; }},
    {"dtype", -5, [](const Row& r) { return r.dtype; }},
    {"shape", -29, [](const Row& r) { return shape_text(r); }},
    {"position", 9, [](const Row& r) { return fmt::format("{}", r.position); }},
    {"ms", 8, [](const Row& r) { return format_milliseconds(r.ms); }},
    {"min .. max", 18,
     [](const Row& r) { return format_milliseconds(r.ms_min) + " .. " + format_milliseconds(r.ms_max); }},
    {"mean ms", 8, [](const Row& r) { return format_milliseconds(r.ms_mean); }},
    {"GB/s", 6, [](const Row& r) { return number_text(r.gbs, 1); }},
    {"of peak", 12, [](const Row& r) { return percent_text(r.percent) + " " + r.memory; }},
    {"tokens/s", 8, [](const Row& r) { return count_text(r.tokens_per_s); }},
    {"state", 9, [](const Row& r) { return format_bytes(r.state_bytes); }},
};
const Column kModelColumns[] = {
    {"model", -12, [](const Row& r) { return r.model; }},
    {"form", -8, [](const Row& r) { return r.form; }},
    {"dtype", -5, [](const Row& r) { return r.dtype; }},
    {"shape", -29, [](const Row& r) { return shape_text(r); }},
    {"params", 7, [](const Row& r) { return count_text(r.parameters); }},
    {"ms", 8, [](const Row& r) { return format_milliseconds(r.ms); }},
    {"min .. max", 18,
     [](const Row& r) { return format_milliseconds(r.ms_min) + " .. " + format_milliseconds(r.ms_max); }},
    {"tokens/s", 8, [](const Row& r) { return count_text(r.tokens_per_s); }},
    {"products GFLOP/s", 16, [](const Row& r) { return number_text(r.gflops, 1); }},
    {"of peak", 7, [](const Row& r) { return percent_text(r.percent); }},
    {"state", 9, [](const Row& r) { return format_bytes(r.state_bytes); }},
};

std::span<const Column> columns_of(const Row& row) {
  if (row.op == "model") return kModelColumns;
  if (row.form == "step") return kStepColumns;
  return kOpColumns;
}

std::string padded(const std::string& text, int width) {
  return width < 0 ? fmt::format("{:<{}}", text, -width) : fmt::format("{:>{}}", text, width);
}

// What makes two rows the same case. Texts and whole numbers only.
const char* kCaseKeys[] = {"op", "model", "rule", "form", "dtype", "isa",      "threads", "B",
                           "T",  "G",     "H",    "K",    "V",     "position", "L",       "chunk"};

Earlier earlier_of(const json& row) {
  Earlier e;
  std::vector<std::string> parts;
  for (const char* key : kCaseKeys) {
    const auto found = row.find(key);
    // Absent and null are one: a file may be from before a key was there.
    const std::string value =
        found == row.end() || found->is_null() ? "" : found->dump(-1, ' ', false, json::error_handler_t::replace);
    e.key += value + "\n";
  }
  const auto word = [&](const char* key) {
    const auto found = row.find(key);
    if (found == row.end() || found->is_null()) return std::string();
    return found->is_string() ? found->get<std::string>() : found->dump(-1, ' ', false, json::error_handler_t::replace);
  };
  for (const char* key : {"op", "model", "rule", "form", "dtype", "isa"})
    if (const std::string w = word(key); !w.empty() && w != "log_linear") e.name += (e.name.empty() ? "" : " ") + w;
  for (const char* key : {"threads", "B", "T", "H", "G", "K", "V", "position"})
    if (const std::string w = word(key); !w.empty()) e.name += std::string(" ") + key + "=" + w;
  if (const auto ms = row.find("ms"); ms != row.end() && ms->is_number()) e.ms = ms->get<double>();
  return e;
}

}  // namespace

ordered_json to_json(const Row& row) {
  const Shape& s = row.shape;
  ordered_json shares;
  for (const auto& [name, percent] : row.shares) shares[name] = json_number(percent);
  return {{"op", row.op},
          {"model", text(row.model)},
          {"rule", row.rule},
          {"form", row.form},
          {"dtype", row.dtype},
          {"isa", row.isa},
          {"threads", row.threads},
          {"B", s.B},
          {"T", s.T},
          {"G", s.G},
          {"H", s.H},
          {"K", s.K},
          {"V", s.V},
          {"L", s.L},
          {"position", row.position < 0 ? ordered_json() : ordered_json(row.position)},
          {"chunk", row.chunk},
          {"runs", row.runs},
          {"ms", json_number(row.ms)},
          {"ms_min", json_number(row.ms_min)},
          {"ms_max", json_number(row.ms_max)},
          {"ms_mean", json_number(row.ms_mean)},
          {"gflops", json_number(row.gflops)},
          {"peak_gflops", json_number(row.peak_gflops)},
          {"peak_bf16_gflops", json_number(row.peak_bf16_gflops)},
          {"gbs", json_number(row.gbs)},
          {"peak_gbs", json_number(row.peak_gbs)},
          {"memory", text(row.memory)},
          {"percent", json_number(row.percent)},
          {"state_bytes", json_whole(row.state_bytes)},
          {"live_bytes", json_whole(row.live_bytes)},
          {"argument_bytes", json_whole(row.argument_bytes)},
          {"peak_bytes", json_whole(row.peak_bytes)},
          {"tokens_per_s", json_number(row.tokens_per_s)},
          {"parameters", json_whole(row.parameters)},
          {"shares", shares},
          {"against_ms", json_number(row.against_ms)},
          {"change_percent", json_number(row.change_percent)}};
}

ordered_json to_json(const std::vector<Row>& rows) {
  ordered_json all = ordered_json::array();
  for (const Row& row : rows) all.push_back(to_json(row));
  return all;
}

std::string header(const Peaks& peaks) {
  std::string out = fmt::format("machine    {}, {} cores\nthreads    {}\nisa        {}\n", cpu_model(), processors(),
                                peaks.threads, peaks.isa);
  out += fmt::format("peaks      {:.1f} GFLOP/s multiply-adds in {}, bfloat16 products: {}\n", 1e-9 * peaks.fma,
                     peaks.dtype == DType::f64 ? "float64" : "float32",
                     peaks.bf16 > 0 ? fmt::format("{:.1f} GFLOP/s", 1e-9 * peaks.bf16) : "absent");
  out += "read       ";
  for (std::size_t i = 0; i < peaks.memory.size(); ++i) {
    const Bandwidth& level = peaks.memory[i];
    out += fmt::format("{}{:.1f} GB/s {}", i ? ", " : "", 1e-9 * level.bytes_per_second, level.name);
    if (std::isfinite(level.capacity)) out += " (" + format_bytes(level.capacity) + ")";
  }
  return out + "\n";
}

std::string table_lines(const Row* previous, const Row& row) {
  const std::span<const Column> columns = columns_of(row);
  std::string out;
  if (!previous || columns_of(*previous).data() != columns.data()) {
    out += "\n";
    for (const Column& column : columns) out += padded(column.name, column.width) + "  ";
    out += "\n";
  }
  for (const Column& column : columns) out += padded(column.text(row), column.width) + "  ";
  if (std::isfinite(row.change_percent))
    out += fmt::format("{:+.1f} % against {} ms", row.change_percent, format_milliseconds(row.against_ms));
  while (out.ends_with(' ')) out.pop_back();
  out += "\n";
  if (!row.shares.empty()) {
    out += "  of the step:";
    for (const auto& [name, percent] : row.shares)
      out += fmt::format(" {} {:.1f} %{}", name, percent, &percent == &row.shares.back().second ? "\n" : ",");
  }
  return out;
}

Earlier earlier_of(const Row& row) { return earlier_of(json(to_json(row))); }

std::vector<Earlier> read_earlier(const io::Path& path) {
  const std::string content = io::read_file(path, kLongestFile);
  const json array = json::parse(content, nullptr, false);
  if (array.is_discarded()) fail(kAgainst, "{}: not JSON", path.string());
  if (!array.is_array()) fail(kAgainst, "{}: need an array of rows, as --json prints", path.string());
  std::vector<Earlier> all;
  for (std::size_t i = 0; i < array.size(); ++i) {
    const json& row = array[i];
    if (!row.is_object()) fail(kAgainst, "{}: row {} is no object", path.string(), i);
    for (const char* key : {"op", "rule", "form", "dtype", "isa"})
      if (!row.contains(key) || !row[key].is_string())
        fail(kAgainst, "{}: row {} has no text \"{}\"", path.string(), i, key);
    for (const char* key : {"threads", "B", "T", "G", "H", "K", "V"})
      if (!row.contains(key) || !row[key].is_number_integer())
        fail(kAgainst, "{}: row {} has no whole number \"{}\"", path.string(), i, key);
    const auto ms = row.find("ms");
    if (ms == row.end() || !(ms->is_null() || (ms->is_number() && ms->get<double>() > 0)))
      fail(kAgainst, "{}: row {} has no time \"ms\" above 0", path.string(), i);
    all.push_back(earlier_of(row));
  }
  return all;
}

bool set_change(Row& row, const std::vector<Earlier>& earlier) {
  const std::string key = earlier_of(row).key;
  bool found = false;
  for (const Earlier& e : earlier) {
    if (e.key != key) continue;
    found = true;
    row.against_ms = e.ms;
    row.change_percent = 100 * (row.ms / e.ms - 1);
  }
  return found;
}

std::vector<std::string> only_earlier(const std::vector<Row>& rows, const std::vector<Earlier>& earlier) {
  std::vector<std::string> keys, names;
  for (const Row& row : rows) keys.push_back(earlier_of(row).key);
  for (const Earlier& e : earlier)
    if (std::find(keys.begin(), keys.end(), e.key) == keys.end()) names.push_back(e.name);
  return names;
}

}  // namespace loglinear::app::bench
