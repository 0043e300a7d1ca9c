#pragma once
// The one error type of the library.

#include <stdexcept>
#include <string>

namespace loglinear {

// Everything the library refuses is thrown as this. what() is one line, "[where] what is wrong", for instance
// "[log_linear.forward] level_scales: got L = 0, need at least 1". The library itself prints nothing and never aborts.
class Error : public std::runtime_error {
 public:
  // usage: the caller asked for something that does not exist or is out of range (a flag, a configuration key): a
  // program should exit with 2. failure: everything else (bad data, bad shapes, a full disk): exit with 1.
  enum class Kind { failure, usage };

  Error(const std::string& where, const std::string& message, Kind kind = Kind::failure)
      : std::runtime_error("[" + where + "] " + message), kind_(kind) {}

  Kind kind() const { return kind_; }

 private:
  Kind kind_;
};

}  // namespace loglinear
