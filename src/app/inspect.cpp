#include "app/inspect.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>

#include "app/checkpoint.hpp"
#include "app/generate.hpp"
#include "base/error.hpp"
#include "io/config.hpp"
#include "io/safetensors.hpp"
#include "loglinear/state_file.hpp"
#include "nn/families.hpp"

namespace loglinear::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

void add_stats(const io::SafetensorsFile& file, const io::TensorInfo& info, ordered_json& entry) {
  double low = std::numeric_limits<double>::infinity(), high = -low, squares = 0;
  std::int64_t finite = 0;
  for (const double x : file.read_as<double>(info.name)) {
    if (!std::isfinite(x)) continue;
    ++finite;
    low = std::min(low, x);
    high = std::max(high, x);
    squares += x * x;
  }
  if (finite > 0) {
    entry["min"] = low;
    entry["max"] = high;
    entry["rms"] = std::sqrt(squares / static_cast<double>(finite));
  }
  entry["non_finite"] = info.elements - finite;
}

void add_tensors(const io::SafetensorsFile& file, bool stats, ordered_json& report) {
  std::uint64_t bytes = 0;
  ordered_json list = ordered_json::array();
  for (const io::TensorInfo& info : file.tensors()) {
    ordered_json entry{
        {"name", info.name}, {"dtype", io::name_of(info.element)}, {"shape", info.shape}, {"bytes", info.bytes}};
    if (stats && io::is_float(info.element)) add_stats(file, info, entry);
    list.push_back(std::move(entry));
    bytes += info.bytes;
  }
  report["bytes"] = bytes;
  if (!file.metadata().empty()) report["metadata"] = file.metadata();
  report["tensors"] = std::move(list);
}

// The blocks of tokens that a state holds a matrix for, oldest first: those of the slots of these bits, up to
// `boundary`.
ordered_json live_slots(const std::vector<int>& bits, std::int64_t boundary) {
  ordered_json slots = ordered_json::array();
  std::int64_t first = 0;
  for (const int bit : bits) {
    const std::int64_t end = boundary >> bit << bit;  // where the next smaller block begins
    slots.push_back({{"bit", bit}, {"first", first}, {"tokens", end - first}});
    first = end;
  }
  return slots;
}

std::int64_t parse_position(const io::SafetensorsFile& file) {
  const auto found = file.metadata().find("position");
  std::int64_t position = -1;
  if (found != file.metadata().end()) {
    const std::string& text = found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), position);
    if (error != std::errc{} || end != text.data() + text.size()) position = -1;
  }
  if (position < 0) fail("inspect", "{}: the metadata gives no position", file.name());
  return position;
}

ordered_json inspect_context(const io::SafetensorsFile& file) {
  ordered_json report{{"kind", "context"}, {"path", file.name()}};
  const auto value = [&](const std::string& key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  const std::string family_name = value("family");
  report["family"] = family_name;
  const nn::Family* family = nn::find_family(family_name);
  if (family == nullptr) fail("inspect", "{}: unknown family '{}'", file.name(), family_name);
  const std::int64_t position = parse_position(file);
  report["position"] = position;
  std::uint64_t bytes = 0;
  for (const io::TensorInfo& info : file.tensors())
    if (info.name.starts_with("state.")) bytes += info.bytes;
  report["state_bytes"] = bytes;
  if (!nn::is_attention(family->mixer)) {
    report["rule"] = name_of(family->mixer == nn::MixerKind::gated_deltanet ? Rule::gated_delta : Rule::scalar_decay);
    // Every layer has the same slots: those of the first one.
    std::vector<int> bits;
    std::int64_t open = 0;
    for (int bit = 62; bit >= 0; --bit)
      if (std::any_of(file.tensors().begin(), file.tensors().end(), [&](const io::TensorInfo& info) {
            return info.name.starts_with("state.layers.") && info.name.ends_with(fmt::format(".state.bit{}", bit));
          }))
        bits.push_back(bit);
    for (const io::TensorInfo& info : file.tensors())
      if (info.name.ends_with(".state.open.k") && info.shape.size() == 3) open = info.shape[1];
    report["live_slots"] = live_slots(bits, position - open);
    report["open_tokens"] = open;
  }
  report["fingerprint"] = value("fingerprint");
  return report;
}

ordered_json inspect_state(const io::Path& path) {
  const State state = load_state(path);
  std::vector<int> bits;
  for (const State::Slot& slot : state.slots()) bits.push_back(slot.bit);
  return {{"kind", "state"},
          {"path", path.string()},
          {"rule", name_of(state.rule())},
          {"dtype", name_of(state.dtype())},
          {"heads", state.heads()},
          {"key_width", state.key_width()},
          {"value_width", state.value_width()},
          {"position", state.position()},
          {"state_bytes", state.bytes()},
          {"chunk", state.chunk()},
          {"live_slots", live_slots(bits, state.boundary())},
          {"open_tokens", state.open_tokens()}};
}

ordered_json inspect_folder(const io::Path& path, bool stats) {
  const fs::path folder = find_checkpoint(path);
  ordered_json report{{"kind", "checkpoint"}, {"path", folder.string()}};
  const fs::path config_path = folder / "config.json";
  nn::ModelConfig config;
  try {
    config = nn::config_from_text(io::read_file(config_path, 1 << 24));
  } catch (const Error& error) {
    fail("inspect", "{}: {}", config_path.string(), error.what());
  }
  report["family"] = config.family;
  const io::SafetensorsFile file = io::SafetensorsFile::open(folder);
  std::int64_t parameters = 0;
  const std::vector<nn::ParameterInfo> wanted = nn::parameter_list(config);
  for (const nn::ParameterInfo& parameter : wanted) parameters += file.expect(parameter.name, parameter.shape).elements;
  if (file.tensors().size() != wanted.size())
    fail("inspect", "{}: {} tensors, but a model of its config.json has {}", file.name(), file.tensors().size(),
         wanted.size());
  report["parameters"] = parameters;
  if (const fs::path trainer = folder / "trainer.json"; fs::exists(trainer)) {
    const nlohmann::json state = io::parse_json(io::read_file(trainer, 1 << 24), trainer.string());
    if (state.is_object() && state.contains("step")) report["step"] = state["step"];
  }
  if (folder != path) {
    ordered_json names = ordered_json::array();
    for (const fs::path& checkpoint : list_checkpoints(path)) names.push_back(checkpoint.filename().string());
    if (!names.empty()) report["checkpoints"] = names;
  }
  report["config"] = nn::to_json(config);
  add_tensors(file, stats, report);
  return report;
}

std::string shape_text(const ordered_json& shape) {
  std::string text = "(";
  for (const auto& size : shape) text += (text.size() > 1 ? ", " : "") + size.dump();
  return text + ")";
}

std::string bytes_text(double bytes) {
  const char* unit = "bytes";
  for (const char* larger : {"KiB", "MiB", "GiB"}) {
    if (bytes < 1024) break;
    bytes /= 1024;
    unit = larger;
  }
  return std::string(unit) == "bytes" ? fmt::format("{:.0f} bytes", bytes) : fmt::format("{:.1f} {}", bytes, unit);
}

}  // namespace

ordered_json inspect(const io::Path& path, bool stats) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return inspect_folder(path, stats);
  const io::SafetensorsFile file = io::SafetensorsFile::open(path);
  const auto format = file.metadata().find("format");
  const std::string kind = format == file.metadata().end() ? "" : format->second;
  ordered_json report = kind == kContextFormat      ? inspect_context(file)
                        : kind == "loglinear.state" ? inspect_state(path)
                                                    : ordered_json{{"kind", "safetensors"}, {"path", file.name()}};
  add_tensors(file, stats, report);
  return report;
}

std::string to_text(const ordered_json& report) {
  std::string text;
  for (const auto& [key, value] : report.items()) {
    if (key == "tensors") continue;
    std::string shown;
    if (key == "bytes" || key == "state_bytes") {
      shown = fmt::format("{} ({})", value.dump(), bytes_text(value.get<double>()));
    } else if (key == "live_slots") {
      shown = std::to_string(value.size());
      for (const auto& slot : value)
        shown += fmt::format("{} {}..{}", shown.find(':') == std::string::npos ? ": tokens" : ",",
                             slot["first"].get<std::int64_t>(),
                             slot["first"].get<std::int64_t>() + slot["tokens"].get<std::int64_t>() - 1);
    } else {
      shown = value.is_string() ? value.get<std::string>() : value.dump();
    }
    text += fmt::format("{:<12} {}\n", key, shown);
  }
  const ordered_json& tensors = report.at("tensors");
  text += fmt::format("{:<12} {}\n", "tensors", tensors.size());
  std::size_t width = 0;
  for (const auto& tensor : tensors) width = std::max(width, tensor["name"].get_ref<const std::string&>().size());
  for (const auto& tensor : tensors) {
    std::string line = fmt::format("  {:<{}}  {:<4} {}", tensor["name"].get_ref<const std::string&>(), width,
                                   tensor["dtype"].get_ref<const std::string&>(), shape_text(tensor["shape"]));
    if (tensor.contains("rms"))
      line += fmt::format("  min {:.4g}  max {:.4g}  rms {:.4g}", tensor["min"].get<double>(),
                          tensor["max"].get<double>(), tensor["rms"].get<double>());
    if (tensor.contains("non_finite") && tensor["non_finite"] != 0)
      line += fmt::format("  not finite: {}", tensor["non_finite"].dump());
    text += line + "\n";
  }
  return text;
}

}  // namespace loglinear::app
