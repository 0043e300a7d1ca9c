#pragma once
// Aligned scratch memory: matrices of one size, handed out and taken back, kept by the thread for its next call.

#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <vector>

#include "base/large_pages.hpp"

namespace loglinear {

// A matrix that its holders share; the last one gives it back to the pool of its thread.
template <class T>
using Matrix = std::shared_ptr<T>;

// What a thread keeps of its scratch memory for its next call.
inline constexpr std::size_t kKeepBytes = std::size_t{64} << 20;

// Pools belong to a thread and are never locked: a Matrix must be released on the thread that took it.
template <class T>
class Pool {
 public:
  // Uninitialised memory for `count` elements, aligned to a vector.
  static Matrix<T> take(std::size_t count) {
    count = std::max<std::size_t>(count, 1);
    Spares& entry = spares()[count];
    entry.used = true;
    std::vector<hwy::AlignedFreeUniquePtr<T[]>>& spare = entry.list;
    if (spare.empty()) {
      spare.push_back(hwy::AllocateAligned<T>(count));
      if (!spare.back()) throw std::bad_alloc();
      advise_large_pages(spare.back().get(), count * sizeof(T));
    }
    T* memory = spare.back().release();
    spare.pop_back();
    return Matrix<T>(memory, [count](T* p) {
      spares()[count].used = true;
      spares()[count].list.emplace_back(p, hwy::AlignedFreer());
    });
  }

  // Bytes that this thread keeps.
  static std::size_t kept() {
    std::size_t bytes = 0;
    for (const auto& [count, entry] : spares()) bytes += entry.list.size() * count * sizeof(T);
    return bytes;
  }

  // Frees what this thread keeps beyond `bytes`, sizes that were not in use since the last time before others. Called
  // at the end of every piece of parallel work, so that scratch stays bounded.
  static void trim(std::size_t bytes) {
    std::size_t kept = Pool::kept();
    for (const bool used : {false, true})
      for (auto& [count, entry] : spares())
        for (; entry.used == used && !entry.list.empty() && kept > bytes; kept -= count * sizeof(T))
          entry.list.pop_back();
    std::erase_if(spares(), [](const auto& each) { return each.second.list.empty(); });
    for (auto& [count, entry] : spares()) entry.used = false;
  }

 private:
  struct Spares {
    std::vector<hwy::AlignedFreeUniquePtr<T[]>> list;
    bool used = false;  // since the last trim
  };
  static std::map<std::size_t, Spares>& spares() {
    static thread_local std::map<std::size_t, Spares> all;
    return all;
  }
};

}  // namespace loglinear
