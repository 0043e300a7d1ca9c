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
    std::vector<hwy::AlignedFreeUniquePtr<T[]>>& spare = spares()[count];
    if (spare.empty()) {
      spare.push_back(hwy::AllocateAligned<T>(count));
      if (!spare.back()) throw std::bad_alloc();
      advise_large_pages(spare.back().get(), count * sizeof(T));
    }
    T* memory = spare.back().release();
    spare.pop_back();
    return Matrix<T>(memory, [count](T* p) { spares()[count].emplace_back(p, hwy::AlignedFreer()); });
  }

  // Frees what this thread keeps beyond `bytes`. Called at the end of every piece of parallel work, so that scratch
  // stays bounded.
  static void trim(std::size_t bytes) {
    std::size_t kept = 0;
    for (auto& [count, spare] : spares()) {
      while (!spare.empty() && kept + spare.size() * count * sizeof(T) > bytes) spare.pop_back();
      kept += spare.size() * count * sizeof(T);
    }
  }

 private:
  static std::map<std::size_t, std::vector<hwy::AlignedFreeUniquePtr<T[]>>>& spares() {
    static thread_local std::map<std::size_t, std::vector<hwy::AlignedFreeUniquePtr<T[]>>> all;
    return all;
  }
};

}  // namespace loglinear
