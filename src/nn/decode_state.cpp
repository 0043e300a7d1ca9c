#include "nn/decode_state.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "base/error.hpp"

namespace loglinear::nn {

DecodeState::DecodeState() = default;
DecodeState::DecodeState(const DecodeState& other) : impl(other.impl ? other.impl->clone() : nullptr) {}
DecodeState::DecodeState(DecodeState&&) noexcept = default;
DecodeState& DecodeState::operator=(const DecodeState& other) {
  if (this != &other) impl = other.impl ? other.impl->clone() : nullptr;
  return *this;
}
DecodeState& DecodeState::operator=(DecodeState&&) noexcept = default;
DecodeState::~DecodeState() = default;

std::int64_t DecodeState::position() const { return impl ? impl->position : 0; }
std::size_t DecodeState::bytes() const { return impl ? impl->bytes() : 0; }
std::vector<StateTensor> DecodeState::save() const { return impl ? impl->save() : std::vector<StateTensor>(); }

namespace {

template <class U>
StateTensor pack(std::string name, std::vector<std::int64_t> shape, const U* data) {
  StateTensor tensor{std::move(name), std::move(shape), dtype_of<U>, {}};
  tensor.bytes.resize(static_cast<std::size_t>(element_count(tensor.shape)) * sizeof(U));
  if (!tensor.bytes.empty()) std::memcpy(tensor.bytes.data(), data, tensor.bytes.size());
  return tensor;
}

std::string shown(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (std::int64_t d : shape) text += (text.empty() ? "" : ", ") + std::to_string(d);
  return "(" + text + ")";
}

// The arrays of open tokens, of which a saved state has the rows in use.
struct OpenArray {
  const char* name;
  Buffer State::Open::*rows;
  std::int64_t heads, width;
};
template <class T>
std::vector<OpenArray> open_arrays(const LayerState<T>& layer) {
  const State& state = layer.state;
  std::vector<OpenArray> arrays = {{"state.open.k", &State::Open::k, layer.groups, state.key_width()},
                                   {"state.open.v", &State::Open::v, state.heads(), state.value_width()},
                                   {"state.open.g", &State::Open::g, state.heads(), 1}};
  if (has_beta(state.rule())) arrays.push_back({"state.open.beta", &State::Open::beta, state.heads(), 1});
  return arrays;
}

template <class T>
std::vector<std::int64_t> key_sums_shape(const LayerState<T>& layer, std::int64_t position) {
  const auto bits = static_cast<std::int64_t>(std::bit_width(static_cast<std::uint64_t>(position)));
  return {bits, layer.match_groups, layer.match_width};
}

// Hands out the tensors of a saved state by name, each once, checked.
class Shelf {
 public:
  explicit Shelf(const std::vector<StateTensor>& tensors) {
    for (const StateTensor& tensor : tensors)
      if (!by_name_.emplace(tensor.name, &tensor).second) fail("state", "{} is there twice", tensor.name);
  }

  template <class U>
  std::vector<U> take(const std::string& name, const std::vector<std::int64_t>& shape) {
    const StateTensor& tensor = find(name);
    if (tensor.shape != shape)
      fail("state", "{}: got shape {}, this model has {}", name, shown(tensor.shape), shown(shape));
    if (tensor.dtype != dtype_of<U>)
      fail("state", "{}: got {}, this model has {}", name, name_of(tensor.dtype), name_of(dtype_of<U>));
    std::size_t size = sizeof(U);
    for (std::int64_t d : shape)
      if (__builtin_mul_overflow(size, static_cast<std::size_t>(d), &size)) size = SIZE_MAX;
    if (tensor.bytes.size() != size)
      fail("state", "{}: got {} bytes for shape {}", name, tensor.bytes.size(), shown(shape));
    const std::size_t count = size / sizeof(U);
    std::vector<U> values(count);
    if (count > 0) std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
    by_name_.erase(name);
    return values;
  }

  bool has(const std::string& name) const { return by_name_.count(name) > 0; }

  void expect_empty() const {
    if (!by_name_.empty()) fail("state", "{}: this model has no such tensor", by_name_.begin()->first);
  }

 private:
  const StateTensor& find(const std::string& name) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) fail("state", "{} is missing", name);
    return *found->second;
  }

  std::map<std::string, const StateTensor*> by_name_;
};

}  // namespace

template <class T>
std::size_t DecodeStateOf<T>::bytes() const {
  std::size_t total = 0;
  for (const LayerState<T>& layer : layers)
    total += (layer.conv.size() + layer.match_conv.size() + layer.keys.size() + layer.values.size() +
              layer.key_sums.sums.size()) *
                 sizeof(T) +
             (layer.attention() ? 0 : layer.state.bytes());
  return total;
}

template <class T>
std::vector<StateTensor> DecodeStateOf<T>::save() const {
  const double position_value = static_cast<double>(position);
  std::vector<StateTensor> tensors{pack("position", {1}, &position_value)};
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerState<T>& layer = layers[i];
    const std::string prefix = "layers." + std::to_string(i) + ".";
    if (layer.attention()) {
      const std::int64_t rows = static_cast<std::int64_t>(layer.keys.size()) / (layer.kv_heads * layer.kv_width);
      tensors.push_back(pack(prefix + "keys", {rows, layer.kv_heads, layer.kv_width}, layer.keys.data()));
      tensors.push_back(pack(prefix + "values", {rows, layer.kv_heads, layer.kv_width}, layer.values.data()));
      continue;
    }
    tensors.push_back(pack(prefix + "conv", {layer.conv_rows, layer.conv_channels}, layer.conv.data()));
    const State& state = layer.state;
    if (!layer.match_conv.empty())
      tensors.push_back(pack(prefix + "match_conv", {layer.conv_rows, 2 * layer.match_width}, layer.match_conv.data()));
    if (layer.match_groups > 0 && position > 0)
      tensors.push_back(pack(prefix + "key_sums", key_sums_shape(layer, position), layer.key_sums.sums.data()));
    for (const State::Slot& slot : state.slots()) {
      const std::string name = prefix + "state.bit" + std::to_string(slot.bit);
      tensors.push_back(pack(name, {state.heads(), state.key_width(), state.value_width()},
                             reinterpret_cast<const T*>(slot.matrix->data())));
      tensors.push_back(pack(name + ".log_decay", {state.heads()}, slot.log_decay.data()));
    }
    const std::int64_t rows = state.open_tokens();
    for (const OpenArray& array : open_arrays(layer)) {
      if (rows == 0) break;
      std::vector<T> packed;
      for (std::int64_t h = 0; h < array.heads; ++h) {
        const T* from =
            reinterpret_cast<const T*>(((*state.open()).*array.rows).data()) + h * state.chunk() * array.width;
        packed.insert(packed.end(), from, from + rows * array.width);
      }
      tensors.push_back(pack(prefix + array.name, {array.heads, rows, array.width}, packed.data()));
    }
  }
  return tensors;
}

template <class T>
void DecodeStateOf<T>::load(const std::vector<StateTensor>& tensors) {
  Shelf shelf(tensors);
  const double position_value = shelf.take<double>("position", {1})[0];
  // 2^53: every integer up to there is a double.
  if (!(position_value >= 0 && position_value <= 0x1p53) || position_value != std::floor(position_value))
    fail("state", "position: got {}, need a count of tokens", position_value);
  position = static_cast<std::int64_t>(position_value);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    LayerState<T>& layer = layers[i];
    const std::string prefix = "layers." + std::to_string(i) + ".";
    if (layer.attention()) {
      const std::int64_t rows = layer.window > 0 ? std::min(layer.window, position) : position;
      // A lying position must not become an allocation: the tensor's own size is checked before.
      layer.keys = shelf.take<T>(prefix + "keys", {rows, layer.kv_heads, layer.kv_width});
      layer.values = shelf.take<T>(prefix + "values", {rows, layer.kv_heads, layer.kv_width});
      continue;
    }
    layer.conv = shelf.take<T>(prefix + "conv", {layer.conv_rows, layer.conv_channels});
    State& state = layer.state;
    if (!layer.match_conv.empty())
      layer.match_conv = shelf.take<T>(prefix + "match_conv", {layer.conv_rows, 2 * layer.match_width});
    if (layer.match_groups > 0 && position > 0)
      layer.key_sums = {position, shelf.take<T>(prefix + "key_sums", key_sums_shape(layer, position))};
    std::vector<State::Slot> slots;
    for (int bit = 62; bit >= 0; --bit) {
      const std::string name = prefix + "state.bit" + std::to_string(bit);
      if (!shelf.has(name)) continue;
      const std::vector<T> matrix = shelf.take<T>(name, {state.heads(), state.key_width(), state.value_width()});
      State::Slot slot;
      slot.bit = bit;
      slot.matrix = std::make_shared<Buffer>(matrix.size() * sizeof(T));
      std::memcpy(slot.matrix->data(), matrix.data(), slot.matrix->size());
      slot.log_decay = shelf.take<double>(name + ".log_decay", {state.heads()});
      for (const double decay : slot.log_decay)
        if (!(decay < std::numeric_limits<double>::infinity()))
          fail("state", "{}.log_decay: holds {}, which is no log decay", name, decay);
      slots.push_back(std::move(slot));
    }
    const std::int64_t chunk = state.chunk(), rows = position % chunk;
    std::shared_ptr<State::Open> open;
    for (const OpenArray& array : open_arrays(layer)) {
      if (rows == 0) break;
      const std::vector<T> packed = shelf.take<T>(prefix + array.name, {array.heads, rows, array.width});
      if (!open) open = state.new_open(layer.groups);
      for (std::int64_t h = 0; h < array.heads; ++h)
        std::copy_n(packed.data() + h * rows * array.width, rows * array.width,
                    reinterpret_cast<T*>(((*open).*array.rows).data()) + h * chunk * array.width);
    }
    state.assign(position, std::move(slots), std::move(open));
  }
  shelf.expect_empty();
}

template struct DecodeStateOf<float>;
template struct DecodeStateOf<double>;

}  // namespace loglinear::nn
