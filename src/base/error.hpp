#pragma once
// Throwing the library's error with a formatted message.

#include <fmt/format.h>

#include "loglinear/error.hpp"

namespace loglinear {

template <class... Args>
[[noreturn]] void fail(const std::string& where, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(where, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
[[noreturn]] void fail_usage(const std::string& where, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(where, fmt::format(format, std::forward<Args>(args)...), Error::Kind::usage);
}

}  // namespace loglinear
