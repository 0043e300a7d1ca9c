#include "io/state_file.hpp"

#include <algorithm>
#include <bit>
#include <charconv>
#include <limits>
#include <optional>
#include <set>

#include "base/error.hpp"
#include "io/utf8.hpp"

namespace loglinear::io {
namespace {

constexpr const char* kWhere = "state_file";
constexpr const char* kFormat = "loglinear.state";
constexpr const char* kVersion = "1";
constexpr const char* kKeys[] = {"format", "version", "rule", "dtype", "heads", "key_width", "value_width", "position"};

// Heads and widths beyond this are no state of anyone's; their product cannot overflow below.
constexpr std::int64_t kLargestWidth = 1 << 20;

class Reader {
 public:
  Reader(const SafetensorsFile& file, const std::string& prefix) : file_(file), prefix_(prefix) {}

  const std::string& text(const std::string& key) const {
    const auto found = file_.metadata().find(prefix_ + key);
    if (found == file_.metadata().end())
      fail(kWhere, "{}: no state: metadata {} is missing", file_.name(), in_quotes(prefix_ + key));
    return found->second;
  }

  std::int64_t integer(const std::string& key, std::int64_t min, std::int64_t max) const {
    const std::string& value = text(key);
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc() || end != value.data() + value.size() || number < min || number > max)
      refuse(key, fmt::format("an integer from {} to {}", min, max));
    return number;
  }

  [[noreturn]] void refuse(const std::string& key, const std::string& need) const {
    fail(kWhere, "{}: metadata {} is {}, need {}", file_.name(), in_quotes(prefix_ + key), in_quotes(text(key)), need);
  }

  const TensorInfo& tensor(const std::string& name, Element element, std::initializer_list<std::int64_t> shape) const {
    const TensorInfo& info = file_.expect(name, std::span(shape.begin(), shape.size()));
    if (info.element != element)
      fail(kWhere, "{}: tensor {}: got {}, need {}", file_.name(), in_quotes(name), name_of(info.element),
           name_of(element));
    return info;
  }

 private:
  const SafetensorsFile& file_;
  const std::string& prefix_;
};

std::string slot_name(const std::string& prefix, int bit, const char* part) {
  return fmt::format("{}slot.{}.{}", prefix, bit, part);
}

}  // namespace

void append_state(const State& state, const std::string& prefix, std::vector<TensorView>& tensors,
                  std::map<std::string, std::string>& metadata) {
  const std::int64_t heads = state.heads(), key_width = state.key_width(), value_width = state.value_width();
  if (heads < 1) fail(kWhere, "the state is empty: it has no heads");
  for (const State::Slot& slot : state.slots()) {
    tensors.push_back({slot_name(prefix, slot.bit, "matrix"),
                       state.dtype() == DType::f64 ? Element::F64 : Element::F32,
                       {heads, key_width, value_width},
                       *slot.matrix});
    tensors.push_back(view_of<double>(slot_name(prefix, slot.bit, "log_decay"), {heads}, slot.log_decay));
  }
  metadata[prefix + "format"] = kFormat;
  metadata[prefix + "version"] = kVersion;
  metadata[prefix + "rule"] = loglinear::name_of(state.rule());
  metadata[prefix + "dtype"] = loglinear::name_of(state.dtype());
  metadata[prefix + "heads"] = std::to_string(heads);
  metadata[prefix + "key_width"] = std::to_string(key_width);
  metadata[prefix + "value_width"] = std::to_string(value_width);
  metadata[prefix + "position"] = std::to_string(state.position());
}

State read_state(const SafetensorsFile& file, const std::string& prefix) {
  const Reader reader(file, prefix);
  if (reader.text("format") != kFormat) reader.refuse("format", in_quotes(kFormat));
  if (reader.text("version") != kVersion) reader.refuse("version", in_quotes(kVersion));
  const std::optional<Rule> rule = rule_from_name(reader.text("rule"));
  if (!rule) reader.refuse("rule", "the name of a rule");
  const std::string& dtype = reader.text("dtype");
  if (dtype != "f32" && dtype != "f64") reader.refuse("dtype", "f32 or f64");
  const bool wide = dtype == "f64";
  const std::int64_t heads = reader.integer("heads", 1, kLargestWidth);
  const std::int64_t key_width = reader.integer("key_width", 1, kLargestWidth);
  const std::int64_t value_width = reader.integer("value_width", 1, kLargestWidth);
  const std::int64_t position = reader.integer("position", 0, std::numeric_limits<std::int64_t>::max());

  std::set<std::string> known;
  std::vector<State::Slot> slots;
  for (int bit = 62; bit >= 0; --bit) {
    if (!((position >> bit) & 1)) continue;
    const std::string matrix = slot_name(prefix, bit, "matrix"), log_decay = slot_name(prefix, bit, "log_decay");
    const TensorInfo& info = reader.tensor(matrix, wide ? Element::F64 : Element::F32, {heads, key_width, value_width});
    reader.tensor(log_decay, Element::F64, {heads});
    State::Slot slot;
    slot.bit = bit;
    slot.matrix = std::make_shared<std::vector<std::byte>>(info.bytes);
    file.bytes_into(matrix, *slot.matrix);
    slot.log_decay = file.read_as<double>(log_decay);
    for (const double decay : slot.log_decay)
      if (!(decay < std::numeric_limits<double>::infinity()))
        fail(kWhere, "{}: tensor {}: holds {}, which is no log decay", file.name(), in_quotes(log_decay), decay);
    slots.push_back(std::move(slot));
    known.insert(matrix);
    known.insert(log_decay);
  }
  for (const TensorInfo& tensor : file.tensors())
    if (tensor.name.starts_with(prefix + "slot.") && !known.count(tensor.name))
      fail(kWhere, "{}: tensor {}: a state at position {} has no such slot", file.name(), in_quotes(tensor.name),
           position);

  State state(*rule, heads, key_width, value_width, wide ? DType::f64 : DType::f32);
  state.assign(position, std::move(slots));
  return state;
}

}  // namespace loglinear::io

namespace loglinear {

void save_state(const State& state, const std::filesystem::path& path) {
  std::vector<io::TensorView> tensors;
  std::map<std::string, std::string> metadata;
  io::append_state(state, "", tensors, metadata);
  io::write_safetensors(path, tensors, metadata);
}

State load_state(const std::filesystem::path& path) {
  const io::SafetensorsFile file = io::SafetensorsFile::open(path);
  State state = io::read_state(file, "");
  for (const auto& [key, value] : file.metadata())
    if (std::find(std::begin(io::kKeys), std::end(io::kKeys), key) == std::end(io::kKeys))
      fail(io::kWhere, "{}: unknown metadata {}", file.name(), io::in_quotes(key));
  for (const io::TensorInfo& tensor : file.tensors())
    if (!tensor.name.starts_with("slot."))
      fail(io::kWhere, "{}: unknown tensor {}", file.name(), io::in_quotes(tensor.name));
  return state;
}

}  // namespace loglinear
