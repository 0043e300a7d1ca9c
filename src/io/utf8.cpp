#include "io/utf8.hpp"

#include <fmt/format.h>

namespace loglinear::io {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

struct Part {
  enum Kind { whole, malformed, unfinished } kind;
  std::size_t length;
};

// The character (or the maximal malformed part) at the beginning of `bytes`, which is not empty. Unicode 15, table 3-7.
Part first_part(std::string_view bytes) {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned lead = at(0);
  if (lead < 0x80) return {Part::whole, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Part::malformed, 1};
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Part::unfinished, i};
    unsigned low = 0x80, high = 0xbf;
    if (i == 1) {
      if (lead == 0xe0) low = 0xa0;   // overlong
      if (lead == 0xed) high = 0x9f;  // surrogates
      if (lead == 0xf0) low = 0x90;   // overlong
      if (lead == 0xf4) high = 0x8f;  // above U+10FFFF
    }
    if (at(i) < low || at(i) > high) return {Part::malformed, i};
  }
  return {Part::whole, length};
}

}  // namespace

bool is_utf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const Part part = first_part(bytes);
    if (part.kind != Part::whole) return false;
    bytes.remove_prefix(part.length);
  }
  return true;
}

std::size_t whole_characters(std::string_view bytes) {
  // An unfinished character is at most 3 bytes, and begins at the last byte that is not a continuation.
  for (std::size_t back = 1; back <= 3 && back <= bytes.size(); ++back) {
    const std::size_t begin = bytes.size() - back;
    if ((static_cast<unsigned char>(bytes[begin]) & 0xc0) == 0x80) continue;
    return first_part(bytes.substr(begin)).kind == Part::unfinished ? begin : bytes.size();
  }
  return bytes.size();
}

std::string replace_malformed(std::string_view bytes) {
  std::string result;
  result.reserve(bytes.size());
  while (!bytes.empty()) {
    const Part part = first_part(bytes);
    result += part.kind == Part::whole ? bytes.substr(0, part.length) : kReplacement;
    bytes.remove_prefix(part.length);
  }
  return result;
}

std::string in_quotes(std::string_view bytes) {
  constexpr std::size_t kLongest = 100;
  const bool cut = bytes.size() > kLongest;
  if (cut) bytes = bytes.substr(0, whole_characters(bytes.substr(0, kLongest)));
  std::string result = "\"";
  for (const char c : replace_malformed(bytes)) {
    if (c == '"' || c == '\\')
      (result += '\\') += c;
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      result += c;
  }
  return result + (cut ? "...\"" : "\"");
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::string out = held_.substr(0, whole_characters(held_));
  held_.erase(0, out.size());
  return policy_ == Malformed::replace ? replace_malformed(out) : out;
}

std::string Utf8Stream::finish() {
  std::string out;
  out.swap(held_);
  return policy_ == Malformed::replace ? replace_malformed(out) : out;
}

}  // namespace loglinear::io
