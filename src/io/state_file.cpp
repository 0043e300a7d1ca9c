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

constexpr const char* kStateFile = "state_file";
constexpr const char* kFormat = "loglinear.state";
constexpr const char* kVersion = "2";
constexpr const char* kKeys[] = {"format",    "version",     "rule",     "dtype", "heads",
                                 "key_width", "value_width", "position", "chunk", "groups"};

// Heads and widths beyond this are no state of anyone's; their product cannot overflow below.
constexpr std::int64_t kLargestWidth = 1 << 20;

class Reader {
 public:
  Reader(const SafetensorsFile& file, const std::string& prefix) : file_(file), prefix_(prefix) {}

  const std::string& text(const std::string& key) const {
    const auto found = file_.metadata().find(prefix_ + key);
    if (found == file_.metadata().end())
      fail(kStateFile, "{}: no state: metadata {} is missing", file_.name(), in_quotes(prefix_ + key));
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
    fail(kStateFile, "{}: metadata {} is {}, need {}", file_.name(), in_quotes(prefix_ + key), in_quotes(text(key)),
         need);
  }

  const TensorInfo& tensor(const std::string& name, Element element, std::initializer_list<std::int64_t> shape) const {
    const TensorInfo& info = file_.expect(name, std::span(shape.begin(), shape.size()));
    if (info.element != element)
      fail(kStateFile, "{}: tensor {}: got {}, need {}", file_.name(), in_quotes(name), name_of(info.element),
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

// The arrays of open tokens: their names, and the rows in use as (heads, rows, width) where the state has (heads, C,
// width).
struct OpenArray {
  const char* name;
  Buffer State::Open::*rows;
  std::int64_t heads, width;
};
std::vector<OpenArray> open_arrays(const State& state, std::int64_t groups) {
  std::vector<OpenArray> arrays = {{"open.k", &State::Open::k, groups, state.key_width()},
                                   {"open.v", &State::Open::v, state.heads(), state.value_width()},
                                   {"open.g", &State::Open::g, state.heads(), 1}};
  if (has_beta(state.rule())) arrays.push_back({"open.beta", &State::Open::beta, state.heads(), 1});
  return arrays;
}

}  // namespace

void append_state(const State& state, const std::string& prefix, std::vector<TensorView>& tensors,
                  std::map<std::string, std::string>& metadata, std::vector<std::vector<std::byte>>& memory) {
  const std::int64_t heads = state.heads(), key_width = state.key_width(), value_width = state.value_width();
  if (heads < 1) fail(kStateFile, "the state is empty: it has no heads");
  for (const State::Slot& slot : state.slots()) {
    tensors.push_back({slot_name(prefix, slot.bit, "matrix"),
                       state.dtype() == DType::f64 ? Element::F64 : Element::F32,
                       {heads, key_width, value_width},
                       std::span<const std::byte>(slot.matrix->begin(), slot.matrix->end())});
    tensors.push_back(view_of<double>(slot_name(prefix, slot.bit, "log_decay"), {heads}, slot.log_decay));
  }
  const std::int64_t rows = state.open_tokens(), groups = rows > 0 ? state.open()->groups : 0;
  for (const OpenArray& array : open_arrays(state, groups)) {
    if (rows == 0) break;
    const std::size_t row = static_cast<std::size_t>(array.width) * size_of(state.dtype());
    std::vector<std::byte>& packed = memory.emplace_back(static_cast<std::size_t>(array.heads * rows) * row);
    for (std::int64_t h = 0; h < array.heads; ++h)
      std::copy_n(((*state.open()).*array.rows).data() + static_cast<std::size_t>(h * state.chunk()) * row,
                  static_cast<std::size_t>(rows) * row, packed.data() + static_cast<std::size_t>(h * rows) * row);
    tensors.push_back({prefix + array.name,
                       state.dtype() == DType::f64 ? Element::F64 : Element::F32,
                       {array.heads, rows, array.width},
                       packed});
  }
  metadata[prefix + "format"] = kFormat;
  metadata[prefix + "version"] = kVersion;
  metadata[prefix + "rule"] = loglinear::name_of(state.rule());
  metadata[prefix + "dtype"] = loglinear::name_of(state.dtype());
  metadata[prefix + "heads"] = std::to_string(heads);
  metadata[prefix + "key_width"] = std::to_string(key_width);
  metadata[prefix + "value_width"] = std::to_string(value_width);
  metadata[prefix + "position"] = std::to_string(state.position());
  metadata[prefix + "chunk"] = std::to_string(state.chunk());
  metadata[prefix + "groups"] = std::to_string(groups);
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

  const std::int64_t chunk = reader.integer("chunk", 1, 256);
  if (!std::has_single_bit(static_cast<std::uint64_t>(chunk))) reader.refuse("chunk", "a power of two up to 256");
  const std::int64_t rows = position % chunk, groups = reader.integer("groups", rows > 0 ? 1 : 0, rows > 0 ? heads : 0);
  const Element element = wide ? Element::F64 : Element::F32;
  State state(*rule, heads, key_width, value_width, wide ? DType::f64 : DType::f32, static_cast<int>(chunk));

  std::set<std::string> known;
  std::vector<State::Slot> slots;
  for (int bit = 62; bit >= 0; --bit) {
    const std::string matrix = slot_name(prefix, bit, "matrix"), log_decay = slot_name(prefix, bit, "log_decay");
    const bool there = std::any_of(file.tensors().begin(), file.tensors().end(),
                                   [&](const TensorInfo& tensor) { return tensor.name == matrix; });
    if (!there) continue;
    const TensorInfo& info = reader.tensor(matrix, element, {heads, key_width, value_width});
    reader.tensor(log_decay, Element::F64, {heads});
    State::Slot slot;
    slot.bit = bit;
    slot.matrix = std::make_shared<Buffer>(info.bytes);
    file.bytes_into(matrix, std::span(slot.matrix->begin(), slot.matrix->end()));
    slot.log_decay = file.read_as<double>(log_decay);
    for (const double decay : slot.log_decay)
      if (!(decay < std::numeric_limits<double>::infinity()))
        fail(kStateFile, "{}: tensor {}: holds {}, which is no log decay", file.name(), in_quotes(log_decay), decay);
    slots.push_back(std::move(slot));
    known.insert(matrix);
    known.insert(log_decay);
  }
  std::shared_ptr<State::Open> open;
  if (rows > 0) {
    // The file has all the rows before memory is taken for a chunk of them.
    for (const OpenArray& array : open_arrays(state, groups))
      reader.tensor(prefix + array.name, element, {array.heads, rows, array.width});
    open = state.new_open(groups);
    for (const OpenArray& array : open_arrays(state, groups)) {
      const std::size_t row = static_cast<std::size_t>(array.width) * size_of(state.dtype());
      std::vector<std::byte> packed(static_cast<std::size_t>(array.heads * rows) * row);
      file.bytes_into(prefix + array.name, packed);
      for (std::int64_t h = 0; h < array.heads; ++h)
        std::copy_n(packed.data() + static_cast<std::size_t>(h * rows) * row, static_cast<std::size_t>(rows) * row,
                    ((*open).*array.rows).data() + static_cast<std::size_t>(h * chunk) * row);
      known.insert(prefix + array.name);
    }
  }
  for (const TensorInfo& tensor : file.tensors())
    if ((tensor.name.starts_with(prefix + "slot.") || tensor.name.starts_with(prefix + "open.")) &&
        !known.count(tensor.name))
      fail(kStateFile, "{}: tensor {}: a state at position {} has no such tensor", file.name(), in_quotes(tensor.name),
           position);
  try {
    state.assign(position, std::move(slots), std::move(open));
  } catch (const Error& error) {
    fail(kStateFile, "{}: {}", file.name(), error.what());
  }
  return state;
}

}  // namespace loglinear::io

namespace loglinear {

void save_state(const State& state, const std::filesystem::path& path) {
  std::vector<io::TensorView> tensors;
  std::map<std::string, std::string> metadata;
  std::vector<std::vector<std::byte>> memory;
  io::append_state(state, "", tensors, metadata, memory);
  io::write_safetensors(path, tensors, metadata);
}

State load_state(const std::filesystem::path& path) {
  const io::SafetensorsFile file = io::SafetensorsFile::open(path);
  State state = io::read_state(file, "");
  for (const auto& [key, value] : file.metadata())
    if (std::find(std::begin(io::kKeys), std::end(io::kKeys), key) == std::end(io::kKeys))
      fail(io::kStateFile, "{}: unknown metadata {}", file.name(), io::in_quotes(key));
  for (const io::TensorInfo& tensor : file.tensors())
    if (!tensor.name.starts_with("slot.") && !tensor.name.starts_with("open."))
      fail(io::kStateFile, "{}: unknown tensor {}", file.name(), io::in_quotes(tensor.name));
  return state;
}

}  // namespace loglinear
