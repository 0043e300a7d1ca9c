#pragma once
// What log-linear attention remembers of a sequence: the tokens of the chunk it is in, and for what lies before them
// one K x V matrix per head for every set bit of the position.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "loglinear/rule.hpp"
#include "loglinear/tensor.hpp"

namespace loglinear {

// Bytes aligned to a cache line; their content is undefined at first. A cache line of bytes behind the end may be read.
// Throws std::bad_alloc.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  Buffer(const Buffer& other);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (data_) ::operator delete(data_, kAlignment);
  }

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::byte* begin() { return data_; }
  std::byte* end() { return data_ + size_; }
  const std::byte* begin() const { return data_; }
  const std::byte* end() const { return data_ + size_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Tokens in a chunk where nobody asks for another number: a power of two, chosen from the widths.
int default_chunk(std::int64_t key_width, std::int64_t value_width);

// The state of one sequence after `position` tokens, in two parts.
//
// The chunks that are full, `boundary()` tokens, are kept like the digits of a binary counter: one slot for every set
// bit of the boundary, the largest first. The slot of bit j stands for a block of 2^j tokens that ends where the next
// one begins. What is read through the last level of a call is one block as well: the first slot may stand for
// everything before the others. Memory is at most popcount(position / chunk) matrices of H * K * V elements.
//
// The tokens since then, fewer than a chunk, are kept as they are (`open()`): a chunk is folded into the slots when it
// is full. So the state does not depend on how a sequence was cut into calls, and taking back a token costs nothing.
//
// Decay is lazy: a matrix is stored as it was written, and the decay from then to the boundary is kept beside it, one
// number per head, so a rule that does not erase never rewrites old matrices. Copying a State is a fork, by reference:
// the copy shares every matrix and the open tokens until one side replaces them. Nothing here is ever written while it
// is shared.
//
// A State is a value and not synchronised: distinct States may be used from distinct threads, also when they share
// memory.
class State {
 public:
  struct Slot {
    int bit = 0;                     // a block of 2^bit tokens; bit >= log2(chunk)
    std::shared_ptr<Buffer> matrix;  // (H, K, V) of dtype(), row-major, without the decay since written
    std::vector<double> log_decay;   // (H) natural-log decay from then to the boundary, <= 0
  };

  // Room for the tokens of one chunk of C; rows [0, open_tokens()) are in use.
  struct Open {
    std::int64_t groups = 0;  // G
    Buffer k;                 // (G, C, K) of dtype(), as are the next three
    Buffer v;                 // (H, C, V)
    Buffer g;                 // (H, C)
    Buffer beta;              // (H, C); empty for rules without beta
    // What the decoding step derives from the rows above, when it needs it: rows [0, derived) are there.
    std::int64_t derived = 0;
    Buffer sums;  // (H, C) float64, sum of g up to and including each token
    Buffer mix;   // (H, C, C), docs/algorithm.md, section 5.3; only for rules that erase
  };

  State() = default;
  // The empty state, position 0. dtype: f32 or f64; chunk: a power of two up to 256, 0 for default_chunk(). Throws
  // Error on widths < 1, another dtype or another chunk.
  State(Rule rule, std::int64_t heads, std::int64_t key_width, std::int64_t value_width, DType dtype = DType::f32,
        int chunk = 0);

  Rule rule() const { return rule_; }
  DType dtype() const { return dtype_; }
  std::int64_t heads() const { return heads_; }              // H
  std::int64_t key_width() const { return key_width_; }      // K
  std::int64_t value_width() const { return value_width_; }  // V
  int chunk() const { return chunk_; }                       // C
  std::int64_t position() const { return position_; }        // tokens seen so far
  std::int64_t open_tokens() const { return position_ & (chunk_ - 1); }
  std::int64_t boundary() const { return position_ - open_tokens(); }  // tokens in the slots

  // Live slots, oldest tokens first.
  const std::vector<Slot>& slots() const { return slots_; }
  // Null when there are no open tokens.
  std::shared_ptr<const Open> open() const { return open_tokens() ? open_ : nullptr; }

  // First token of the block that slot number `index` stands for.
  std::int64_t block_begin(std::size_t index) const {
    return index == 0 ? 0
                      : (boundary() >> slots_[index].bit << slots_[index].bit) - (std::int64_t{1} << slots_[index].bit);
  }

  // Bytes of the live matrices and their decays and of the open tokens (shared ones counted in full).
  std::size_t bytes() const;

  // Takes back the last n tokens: the state is, bit for bit, the one before them. Throws Error unless 0 <= n <=
  // rollback_limit().
  void rollback(std::int64_t n);
  // Tokens that rollback() can take back now: the open ones, and with allow_rollback() those of the chunk before, as
  // long as it was filled since.
  std::int64_t rollback_limit() const;
  // Keeps, from the next full chunk on, what rollback() needs to go back over the end of a chunk: the tokens of the
  // last full chunk and the slots that it changed. At least a chunk of tokens can then be taken back once so many were
  // read. For a rule that erases this doubles the memory; otherwise it keeps the matrices that were merged last.
  void allow_rollback(bool allow = true);

  // Dense export: the matrix of one live slot, (H, K, V) row-major, with its decay to the boundary applied. Throws
  // Error when the slot is not live.
  std::vector<double> dense(int bit) const;

  // The state at `position`, a multiple of the chunk, whose slots, largest first, hold the given dense (H, K, V)
  // matrices: the inverse of dense(). Throws Error unless there is exactly one matrix of H * K * V elements per set bit
  // of position.
  static State from_dense(Rule rule, std::int64_t heads, std::int64_t key_width, std::int64_t value_width, DType dtype,
                          std::int64_t position, const std::vector<std::vector<double>>& matrices, int chunk = 0);

  // Replaces everything read so far, for the operators and for readers of files. Throws Error unless the slots stand
  // for the tokens before the boundary of `position` as told above, each with a matrix of H * K * V elements of dtype()
  // and H decays, and `open` has the sizes of a chunk when position is none (otherwise it is ignored). What is derived
  // in `open` is made again.
  void assign(std::int64_t position, std::vector<Slot> slots, std::shared_ptr<Open> open);

  // Room for the open tokens of a call with G groups. Throws Error when the sizes cannot be had.
  std::shared_ptr<Open> new_open(std::int64_t groups) const;

 private:
  friend struct StateAccess;  // src/base/state_access.hpp: the operator's step goes on in place

  // What rollback() needs beyond the open tokens: the slots at the boundary before, and the tokens of that chunk.
  struct Before {
    std::vector<Slot> slots;
    std::shared_ptr<Open> open;
  };

  Rule rule_ = Rule::scalar_decay;
  DType dtype_ = DType::f32;
  std::int64_t heads_ = 0, key_width_ = 0, value_width_ = 0, position_ = 0;
  int chunk_ = 1;
  bool keeps_before_ = false;
  std::vector<Slot> slots_;
  std::shared_ptr<Open> open_;
  std::shared_ptr<const Before> before_;  // null: none was kept
};

}  // namespace loglinear
