#include "loglinear/state.hpp"

#include <bit>
#include <cmath>

#include "base/error.hpp"

namespace loglinear {
namespace {

// Bits of `position`, largest first.
std::vector<int> live_bits(std::int64_t position) {
  std::vector<int> bits;
  for (int bit = 62; bit >= 0; --bit)
    if (position >> bit & 1) bits.push_back(bit);
  return bits;
}

}  // namespace

State::State(Rule rule, std::int64_t heads, std::int64_t key_width, std::int64_t value_width, DType dtype)
    : rule_(rule), dtype_(dtype), heads_(heads), key_width_(key_width), value_width_(value_width) {
  if (heads < 1 || key_width < 1 || value_width < 1)
    fail("state", "got H = {}, K = {}, V = {}, need at least 1 each", heads, key_width, value_width);
  std::int64_t elements = 0;
  if (__builtin_mul_overflow(heads, key_width, &elements) || __builtin_mul_overflow(elements, value_width, &elements) ||
      elements > std::int64_t{1} << 59)
    fail("state", "H x K x V = {} x {} x {} is too large", heads, key_width, value_width);
  if (dtype == DType::bf16) fail("state", "dtype: got bf16, a state is f32 or f64");
}

std::size_t State::bytes() const {
  std::size_t sum = 0;
  for (const Slot& slot : slots_) sum += slot.matrix->size() + slot.log_decay.size() * sizeof(double);
  return sum;
}

std::vector<double> State::dense(int bit) const {
  for (const Slot& slot : slots_) {
    if (slot.bit != bit) continue;
    const std::int64_t size = key_width_ * value_width_;
    std::vector<double> out(static_cast<std::size_t>(heads_ * size));
    for (std::int64_t h = 0; h < heads_; ++h) {
      const double decay = std::exp(slot.log_decay[h]);
      for (std::int64_t i = h * size; i < (h + 1) * size; ++i)
        out[i] = decay * (dtype_ == DType::f64 ? reinterpret_cast<const double*>(slot.matrix->data())[i]
                                               : reinterpret_cast<const float*>(slot.matrix->data())[i]);
    }
    return out;
  }
  fail("state.dense", "slot {} is not live at position {}", bit, position_);
}

State State::from_dense(Rule rule, std::int64_t heads, std::int64_t key_width, std::int64_t value_width, DType dtype,
                        std::int64_t position, const std::vector<std::vector<double>>& matrices) {
  State state(rule, heads, key_width, value_width, dtype);
  if (position < 0) fail("state.from_dense", "position: got {}, need at least 0", position);
  const std::vector<int> bits = live_bits(position);
  if (matrices.size() != bits.size())
    fail("state.from_dense", "got {} matrices, position {} has {} live slots", matrices.size(), position, bits.size());
  const std::size_t size = static_cast<std::size_t>(heads * key_width * value_width);
  std::vector<Slot> slots;
  for (std::size_t n = 0; n < bits.size(); ++n) {
    if (matrices[n].size() != size)
      fail("state.from_dense", "matrix {}: got {} elements, need H x K x V = {}", n, matrices[n].size(), size);
    Slot slot{bits[n], std::make_shared<std::vector<std::byte>>(size * size_of(dtype)),
              std::vector<double>(heads, 0.0)};
    for (std::size_t i = 0; i < size; ++i) {
      if (dtype == DType::f64)
        reinterpret_cast<double*>(slot.matrix->data())[i] = matrices[n][i];
      else
        reinterpret_cast<float*>(slot.matrix->data())[i] = static_cast<float>(matrices[n][i]);
    }
    slots.push_back(std::move(slot));
  }
  state.assign(position, std::move(slots));
  return state;
}

void State::assign(std::int64_t position, std::vector<Slot> slots) {
  if (position < 0) fail("state", "position: got {}, need at least 0", position);
  const std::vector<int> bits = live_bits(position);
  if (slots.size() != bits.size())
    fail("state", "got {} slots, position {} has {} set bits", slots.size(), position, bits.size());
  const std::size_t size = static_cast<std::size_t>(heads_ * key_width_ * value_width_) * size_of(dtype_);
  for (std::size_t n = 0; n < bits.size(); ++n) {
    const Slot& slot = slots[n];
    if (slot.bit != bits[n])
      fail("state", "slot {}: got bit {}, position {} needs bit {}", n, slot.bit, position, bits[n]);
    if (!slot.matrix || slot.matrix->size() != size)
      fail("state", "slot of bit {}: got {} bytes, need {}", slot.bit, slot.matrix ? slot.matrix->size() : 0, size);
    if (slot.log_decay.size() != static_cast<std::size_t>(heads_))
      fail("state", "slot of bit {}: got {} decays, need one for each of {} heads", slot.bit, slot.log_decay.size(),
           heads_);
  }
  position_ = position;
  slots_ = std::move(slots);
}

}  // namespace loglinear
