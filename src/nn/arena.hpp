#pragma once
// Memory for activations: taken in order, given back all at once, kept from step to step.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/large_pages.hpp"

namespace loglinear::nn {

class Arena {
 public:
  struct Mark {
    std::size_t block = 0, used = 0;
  };

  // n elements, 64-byte aligned, uninitialised; valid until a release() to an earlier mark. Throws Error when memory is
  // exhausted.
  template <class T>
  T* take(std::int64_t n) {
    std::size_t bytes = 0;
    if (n < 0 || __builtin_mul_overflow(static_cast<std::size_t>(n), sizeof(T), &bytes) || bytes > kMaxBytes)
      fail("model", "activations of {} elements are more than can be addressed", n);
    return reinterpret_cast<T*>(take_bytes((bytes + kAlign - 1) / kAlign * kAlign));
  }

  Mark mark() const { return at_; }

  void release(Mark mark) { at_ = mark; }

 private:
  static constexpr std::size_t kAlign = 64, kFirst = std::size_t{1} << 20, kMaxBytes = std::size_t{1} << 60;
  struct Block {
    LargeArray<std::byte> data;
    std::size_t size = 0;
  };

  std::byte* take_bytes(std::size_t bytes) {
    if (at_.block == 0 && at_.used == 0 && blocks_.size() > 1) join_blocks();
    while (at_.block < blocks_.size() && blocks_[at_.block].size - at_.used < bytes) at_ = {at_.block + 1, 0};
    if (at_.block == blocks_.size()) add_block(bytes > kFirst ? bytes : kFirst);
    std::byte* p = blocks_[at_.block].data.get() + at_.used;
    at_.used += bytes;
    return p;
  }

  // Nothing is taken: what did not fit one block last time is one block from now on.
  void join_blocks() {
    std::size_t total = 0;
    for (const Block& block : blocks_) total += block.size;
    blocks_.clear();
    add_block(total);
  }

  void add_block(std::size_t bytes) {
    LargeArray<std::byte> data = new_large_array<std::byte>(bytes);
    if (!data) fail("model", "out of memory: {} bytes for activations", bytes);
    blocks_.push_back({std::move(data), bytes});
  }

  std::vector<Block> blocks_;
  Mark at_;
};

// Gives back, at the end of a scope, what was taken in it.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace loglinear::nn
