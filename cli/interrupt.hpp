#pragma once
// Ctrl-C as a question that the program asks, instead of a death.

#include <csignal>

namespace loglinear::cli {

// While one lives, the first SIGINT or SIGTERM only sets a flag; a second one ends the program as it would without. To
// be made on the main thread, to which the kernel gives these signals first.
//
// The handler has a stack of its own because it may interrupt oneDNN's generated matrix products, which keep values
// below the stack pointer, further than the 128 bytes that the ABI leaves to them (seen with Debian 12's oneDNN: a
// handler on the common stack ruined the heap in about 3 of 100 interrupts of a training).
class Interrupt {
 public:
  Interrupt() {
    flag() = 0;
    alignas(64) static char memory[1 << 16];
    stack_t stack{};
    stack.ss_sp = memory;
    stack.ss_size = sizeof memory;
    sigaltstack(&stack, nullptr);
    struct sigaction action {};
    action.sa_handler = [](int) { flag() = 1; };
    action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_ONSTACK | SA_RESTART;
    sigaction(SIGINT, &action, &old_int_);
    sigaction(SIGTERM, &action, &old_term_);
  }
  ~Interrupt() {
    sigaction(SIGINT, &old_int_, nullptr);
    sigaction(SIGTERM, &old_term_, nullptr);
  }
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  bool requested() const { return flag() != 0; }

 private:
  static volatile std::sig_atomic_t& flag() {
    static volatile std::sig_atomic_t value = 0;
    return value;
  }
  struct sigaction old_int_ {
  }, old_term_{};
};

}  // namespace loglinear::cli
