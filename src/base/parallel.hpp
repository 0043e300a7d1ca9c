#pragma once
// The one parallel loop.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace loglinear {

// Threads a call may use: `threads` if positive, otherwise what OpenMP would use.
inline int thread_count(int threads) { return threads > 0 ? threads : omp_get_max_threads(); }

// Calls body(i) once for every i in [0, n), items handed out one at a time. Each item must write places of its own, so
// that the result cannot depend on the number of threads. The first exception of any item is rethrown here.
template <class Body>
void parallel_for(std::int64_t n, int threads, const Body& body) {
  const int count = static_cast<int>(std::min<std::int64_t>(thread_count(threads), n));
  if (count <= 1) {
    for (std::int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  std::exception_ptr error;
  std::mutex guard;
  const auto item = [&](std::int64_t i) {
    try {
      body(i);
    } catch (...) {
      const std::lock_guard lock(guard);
      if (!error) error = std::current_exception();
    }
  };
#if defined(__SANITIZE_THREAD__)
  // The thread sanitizer cannot see the barriers of OpenMP's runtime; it sees those of std::thread.
  std::atomic<std::int64_t> next = 0;
  std::vector<std::thread> workers;
  for (int w = 0; w < count; ++w)
    workers.emplace_back([&] {
      for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) item(i);
    });
  for (std::thread& worker : workers) worker.join();
#else
  if (n == count) {  // an item for each thread, the same one in every call: what it touched is in that core's cache
#pragma omp parallel for schedule(static, 1) num_threads(count)
    for (std::int64_t i = 0; i < n; ++i) item(i);
  } else {
#pragma omp parallel for schedule(dynamic, 1) num_threads(count)
    for (std::int64_t i = 0; i < n; ++i) item(i);
  }
#endif
  if (error) std::rethrow_exception(error);
}

}  // namespace loglinear
