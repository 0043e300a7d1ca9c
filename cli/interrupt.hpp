#pragma once
// Ctrl-C as a question that the program asks, instead of a death.

#include <csignal>

namespace loglinear::cli {

// While one lives, the first SIGINT or SIGTERM only sets a flag; a second one ends the program as it would without.
class Interrupt {
 public:
  Interrupt() {
    flag() = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { flag() = 1; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
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
