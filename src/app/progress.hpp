#pragma once
// Lines for people: aligned interval lines, and on a terminal one line that is rewritten in place.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace loglinear::app {

// "59 s", "12:34", "1:02:03", "3d 04:05:06"; "?" when it is not a finite number >= 0.
std::string format_duration(double seconds);
// "950", "12.3k", "1.25M".
std::string format_count(double count);
// "512 B", "1.5 KiB", "20.0 GiB"; "-" when it is not finite.
std::string format_bytes(double bytes);
// Three or four digits, whatever the size: "0.0123", "12.34", "1234.5"; "-" when it is not finite.
std::string format_milliseconds(double ms);

// Seconds on a clock that never goes back.
double monotonic_seconds();

class Console {
 public:
  // print may be empty (prints nothing). terminal: print reaches a terminal, so that live() may rewrite its line.
  Console(std::function<void(std::string_view)> print, bool terminal) : print_(std::move(print)), terminal_(terminal) {}

  // A whole line, in place of the live one.
  void line(const std::string& text);
  // Replaces the live line, at most ten times a second; nothing where there is no terminal.
  void live(const std::string& text);
  // Removes the live line.
  void clear();

 private:
  std::function<void(std::string_view)> print_;
  bool terminal_;
  bool shown_ = false;
  double last_ = -1;
};

}  // namespace loglinear::app
