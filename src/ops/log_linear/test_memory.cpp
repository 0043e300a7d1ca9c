// What a decoding step takes from the heap: nothing, but for the matrices by which the state itself grows.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "ops/log_linear/test_problem.hpp"

#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // take() hands out what free() takes back

namespace {

std::atomic<long> taken = 0;

void* take(std::size_t bytes, std::size_t alignment) {
  ++taken;
  void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t bytes) { return take(bytes, 16); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return take(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace loglinear::testing {
namespace {

TEST(Memory, AStepTakesNone) {
  for (Rule rule : kRules) {
    const std::int64_t B = 2, T = 90, chunk = 16;
    Problem<float> p({.rule = rule, .B = B, .T = T, .G = 1, .H = 2, .K = 24, .V = 40, .L = 9}, 6);
    std::vector<State> states(B, State(rule, 2, 24, 40, DType::f32, chunk));
    for (std::int64_t t = 0; t < T; ++t) {
      log_linear::StepArgs s = step_args(p.forward_args(), t);
      s.states = states;
      const long before = taken;
      log_linear::step(s);
      const bool folds = t % chunk == chunk - 1, begins = t == 0;
      if (!folds && !begins) {
        EXPECT_EQ(taken - before, 0) << name_of(rule) << " token " << t;
      }
    }
  }
}

}  // namespace
}  // namespace loglinear::testing
