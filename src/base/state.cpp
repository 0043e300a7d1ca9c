#include "loglinear/state.hpp"

#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.hpp"
#include "base/large_pages.hpp"
#include "base/state_access.hpp"

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

Buffer::Buffer(std::size_t bytes)
    : data_(bytes ? static_cast<std::byte*>(::operator new(bytes + 64, kAlignment)) : nullptr), size_(bytes) {
  advise_large_pages(data_, bytes);
}

Buffer::Buffer(const Buffer& other) : Buffer(other.size_) {
  if (size_) std::memcpy(data_, other.data_, size_);
}

int default_chunk(std::int64_t key_width, std::int64_t value_width) {
  // A chunk costs C (K + V) / 2 a token inside and K V log2(T / C) / 2 across: wide heads are worth longer chunks.
  const double size = static_cast<double>(key_width) * static_cast<double>(value_width);
  return size >= 192 * 256 ? 128 : size < 32 * 32 ? 32 : 64;
}

State::State(Rule rule, std::int64_t heads, std::int64_t key_width, std::int64_t value_width, DType dtype, int chunk)
    : rule_(rule), dtype_(dtype), heads_(heads), key_width_(key_width), value_width_(value_width) {
  if (heads < 1 || key_width < 1 || value_width < 1)
    fail("state", "got H = {}, K = {}, V = {}, need at least 1 each", heads, key_width, value_width);
  std::int64_t elements = 0;
  if (__builtin_mul_overflow(heads, key_width, &elements) || __builtin_mul_overflow(elements, value_width, &elements) ||
      elements > std::int64_t{1} << 59)
    fail("state", "H x K x V = {} x {} x {} is too large", heads, key_width, value_width);
  if (dtype == DType::bf16) fail("state", "dtype: got bf16, a state is f32 or f64");
  if (chunk != 0 && (chunk < 1 || chunk > kMaxChunk || !std::has_single_bit(static_cast<unsigned>(chunk))))
    fail("state", "chunk: got {}, need a power of two up to {}", chunk, kMaxChunk);
  chunk_ = chunk != 0 ? chunk : default_chunk(key_width, value_width);
}

std::size_t State::bytes() const {
  std::size_t sum = 0;
  for (const Slot& slot : slots_) sum += slot.matrix->size() + slot.log_decay.size() * sizeof(double);
  if (open_tokens() > 0) {
    const std::int64_t numbers =
        open_->groups * key_width_ + heads_ * value_width_ + heads_ * (has_beta(rule_) ? 2 : 1);
    sum += static_cast<std::size_t>(open_tokens() * numbers) * size_of(dtype_);
  }
  return sum;
}

std::int64_t State::rollback_limit() const { return open_tokens() + (before_ ? chunk_ : 0); }

void State::rollback(std::int64_t n) {
  if (n < 0 || n > rollback_limit())
    fail("state.rollback", "got {} tokens, can take back 0 to {}", n, rollback_limit());
  if (n > open_tokens()) {
    slots_ = before_->slots;
    open_ = before_->open;
    before_ = nullptr;
  }
  position_ -= n;
}

void State::allow_rollback(bool allow) {
  keeps_before_ = allow;
  if (!allow) before_ = nullptr;
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
                        std::int64_t position, const std::vector<std::vector<double>>& matrices, int chunk) {
  State state(rule, heads, key_width, value_width, dtype, chunk);
  if (position < 0 || position % state.chunk_ != 0)
    fail("state.from_dense", "position: got {}, need a multiple of the chunk, {}", position, state.chunk_);
  const std::vector<int> bits = live_bits(position);
  if (matrices.size() != bits.size())
    fail("state.from_dense", "got {} matrices, position {} has {} live slots", matrices.size(), position, bits.size());
  const std::size_t size = static_cast<std::size_t>(heads * key_width * value_width);
  std::vector<Slot> slots;
  for (std::size_t n = 0; n < bits.size(); ++n) {
    if (matrices[n].size() != size)
      fail("state.from_dense", "matrix {}: got {} elements, need H x K x V = {}", n, matrices[n].size(), size);
    Slot slot{bits[n], std::make_shared<Buffer>(size * size_of(dtype)), std::vector<double>(heads, 0.0)};
    for (std::size_t i = 0; i < size; ++i) {
      if (dtype == DType::f64)
        reinterpret_cast<double*>(slot.matrix->data())[i] = matrices[n][i];
      else
        reinterpret_cast<float*>(slot.matrix->data())[i] = static_cast<float>(matrices[n][i]);
    }
    slots.push_back(std::move(slot));
  }
  state.assign(position, std::move(slots), nullptr);
  return state;
}

std::shared_ptr<State::Open> State::new_open(std::int64_t groups) const {
  const auto bytes = [&](std::int64_t a, std::int64_t b, std::size_t element) {
    std::int64_t n = 0;
    if (__builtin_mul_overflow(a, b, &n) || __builtin_mul_overflow(n, static_cast<std::int64_t>(chunk_), &n) || n < 0 ||
        n > std::int64_t{1} << 59)
      fail("state", "the tokens of a chunk, {} x {} x {}, are too large", a, b, chunk_);
    return static_cast<std::size_t>(n) * element;
  };
  const std::size_t element = size_of(dtype_);
  auto open = std::make_shared<Open>();
  open->groups = groups;
  open->k = Buffer(bytes(groups, key_width_, element));
  open->v = Buffer(bytes(heads_, value_width_, element));
  open->g = Buffer(bytes(heads_, 1, element));
  if (has_beta(rule_)) open->beta = Buffer(bytes(heads_, 1, element));
  return open;
}

void State::assign(std::int64_t position, std::vector<Slot> slots, std::shared_ptr<Open> open) {
  if (position < 0) fail("state", "position: got {}, need at least 0", position);
  const std::int64_t boundary = position & ~(std::int64_t{chunk_} - 1);
  const auto refuse = [&] {
    std::string bits;
    for (const Slot& slot : slots) bits += (bits.empty() ? "" : ", ") + std::to_string(slot.bit);
    fail("state", "slots: got bits ({}), which do not count the {} tokens before the open chunk", bits, boundary);
  };
  if (slots.empty()
          ? boundary != 0
          : slots.front().bit < chunk_bit(chunk_) || slots.front().bit > 62 || boundary >> slots.front().bit == 0)
    refuse();
  // The first slot may stand for several digits; below it there is one for each set bit.
  std::int64_t rest = slots.empty() ? 0 : boundary & ((std::int64_t{1} << slots.front().bit) - 1);
  for (std::size_t n = slots.size(); n-- > 1; rest &= rest - 1)
    if (rest == 0 || slots[n].bit != std::countr_zero(static_cast<std::uint64_t>(rest))) refuse();
  if (rest != 0) refuse();
  const std::size_t size = static_cast<std::size_t>(heads_ * key_width_ * value_width_) * size_of(dtype_);
  for (const Slot& slot : slots) {
    if (!slot.matrix || slot.matrix->size() != size)
      fail("state", "slot of bit {}: got {} bytes, need {}", slot.bit, slot.matrix ? slot.matrix->size() : 0, size);
    if (slot.log_decay.size() != static_cast<std::size_t>(heads_))
      fail("state", "slot of bit {}: got {} decays, need one for each of {} heads", slot.bit, slot.log_decay.size(),
           heads_);
  }
  if (position == boundary) {
    open = nullptr;
  } else {
    if (!open) fail("state", "open tokens: got none, position {} has {}", position, position - boundary);
    if (open->groups < 1 || heads_ % open->groups != 0)
      fail("state", "open tokens: got G = {} groups, which do not divide H = {} heads", open->groups, heads_);
    const std::size_t rows = static_cast<std::size_t>(chunk_) * size_of(dtype_);
    const std::size_t H = static_cast<std::size_t>(heads_), G = static_cast<std::size_t>(open->groups);
    if (open->k.size() != rows * G * static_cast<std::size_t>(key_width_) ||
        open->v.size() != rows * H * static_cast<std::size_t>(value_width_) || open->g.size() != rows * H ||
        open->beta.size() != (has_beta(rule_) ? rows * H : 0))
      fail("state", "open tokens: not the sizes of a chunk of {}", chunk_);
    open->derived = 0, open->sums = {}, open->mix = {};
  }
  position_ = position;
  slots_ = std::move(slots);
  open_ = std::move(open);
  before_ = nullptr;
}

}  // namespace loglinear
