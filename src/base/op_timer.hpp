#pragma once
// Where the wall time of a larger computation goes, by operator.
//
// An operator's entry point holds a TimedOperator. Nothing is measured unless the calling thread is inside the life of
// an OperatorTimes; otherwise the cost is one load and one comparison. Threads that an operator starts inside are part
// of its time.

#include <chrono>
#include <map>
#include <string>

namespace loglinear {

class OperatorTimes {
 public:
  struct Sum {
    double seconds = 0;     // wall time
    double operations = 0;  // as the operator counts them; 0 where it does not
    long calls = 0;
  };

  // Measures the operators that this thread calls from here on, instead of the OperatorTimes that did so before.
  OperatorTimes() : before_(current_) { current_ = this; }
  ~OperatorTimes() { current_ = before_; }
  OperatorTimes(const OperatorTimes&) = delete;
  OperatorTimes& operator=(const OperatorTimes&) = delete;

  const std::map<std::string, Sum>& sums() const { return sums_; }

 private:
  friend class TimedOperator;
  static inline thread_local OperatorTimes* current_ = nullptr;

  OperatorTimes* before_;
  bool busy_ = false;  // an operator that another one calls is part of that one
  std::map<std::string, Sum> sums_;
};

// Adds its life to the sum called `name`.
class TimedOperator {
 public:
  explicit TimedOperator(const char* name, double operations = 0) : times_(OperatorTimes::current_) {
    if (!times_) return;
    if (times_->busy_) {
      times_ = nullptr;
      return;
    }
    times_->busy_ = true;
    name_ = name;
    operations_ = operations;
    start_ = std::chrono::steady_clock::now();
  }
  ~TimedOperator() {
    if (!times_) return;
    times_->busy_ = false;
    OperatorTimes::Sum& sum = times_->sums_[name_];
    sum.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    sum.operations += operations_;
    ++sum.calls;
  }
  TimedOperator(const TimedOperator&) = delete;
  TimedOperator& operator=(const TimedOperator&) = delete;

 private:
  OperatorTimes* times_;
  const char* name_ = nullptr;
  double operations_ = 0;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace loglinear
