#pragma once
// Memory of many MiB in large pages, where the system has them: a page that is new to the process costs a fault, and
// one that was not used of late a walk through tables, which rows of a tensor that lie in a page each pay for again and
// again.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace loglinear {

inline constexpr std::size_t kLargePage = std::size_t{2} << 20;

// For memory that nobody has written to yet; what is left of it before and after whole large pages stays as it is. Not
// worth it below a few of them. Advice, so it may fail.
inline void advise_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  if (bytes >= 4 * kLargePage && std::align(kLargePage, kLargePage, memory, bytes))
    ::madvise(memory, bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
}

struct FreeLargeArray {
  void operator()(void* memory) const { std::free(memory); }
};
template <class T>
using LargeArray = std::unique_ptr<T, FreeLargeArray>;

// Uninitialised memory for `count` elements, from the start of a large page on if it fills one, else of a cache line;
// null where there is no more.
template <class T>
LargeArray<T> new_large_array(std::size_t count) {
  const std::size_t bytes = count * sizeof(T), align = bytes >= kLargePage ? kLargePage : 64,
                    whole = (bytes + align - 1) / align * align;
  LargeArray<T> memory(static_cast<T*>(std::aligned_alloc(align, whole)));
#if defined(__linux__)
  if (memory && align == kLargePage) ::madvise(memory.get(), whole, MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace loglinear
