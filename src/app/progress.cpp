#include "app/progress.hpp"

#include <chrono>
#include <cmath>

#include <fmt/format.h>

namespace loglinear::app {

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e11) return "?";
  const auto s = static_cast<std::int64_t>(std::llround(seconds));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}d {:02}:{:02}:{:02}", s / 86400, s / 3600 % 24, s / 60 % 60, s % 60);
}

std::string format_count(double count) {
  if (!(std::abs(count) < 1e18)) return "?";
  if (count < 999.5) return fmt::format("{:.0f}", count);
  if (count < 999.5e3) return fmt::format("{:.3g}k", count / 1e3);
  if (count < 999.5e6) return fmt::format("{:.3g}M", count / 1e6);
  return fmt::format("{:.4g}G", count / 1e9);
}

std::string format_bytes(double bytes) {
  if (!std::isfinite(bytes)) return "-";
  const char* units[] = {"B", "KiB", "MiB", "GiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit < 3) bytes /= 1024, ++unit;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, units[unit]);
}

std::string format_milliseconds(double ms) {
  if (!std::isfinite(ms)) return "-";
  return fmt::format("{:.{}f}", ms, ms >= 100 ? 1 : ms >= 10 ? 2 : ms >= 1 ? 3 : 4);
}

double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Console::line(const std::string& text) {
  if (!print_) return;
  print_((shown_ ? "\r\x1b[K" : "") + text + "\n");
  shown_ = false;
}

void Console::live(const std::string& text) {
  if (!print_ || !terminal_) return;
  const double now = monotonic_seconds();
  if (last_ >= 0 && now - last_ < 0.1) return;
  last_ = now;
  // Long lines would wrap, and a wrapped line cannot be taken back.
  print_("\r\x1b[K" + text.substr(0, 79));
  shown_ = true;
}

void Console::clear() {
  if (shown_) print_("\r\x1b[K");
  shown_ = false;
}

}  // namespace loglinear::app
