#pragma once
// UTF-8 in pieces: text that arrives byte by byte leaves in whole characters.

#include <cstddef>
#include <string>
#include <string_view>

namespace loglinear::io {

// True when the bytes are well-formed UTF-8 (no overlong forms, surrogates or values above U+10FFFF).
bool is_utf8(std::string_view bytes);

// Length of the longest prefix that does not end inside a character: all of it, less a last character of which only a
// valid beginning is there. Bytes that can be no part of a character count as characters of their own.
std::size_t whole_characters(std::string_view bytes);

// The bytes with everything malformed replaced by U+FFFD, one for each maximal part (Unicode 15, section 3.9).
std::string replace_malformed(std::string_view bytes);

// A foreign name for an error message: in double quotes, on one line (control characters, quotes and backslashes
// escaped, malformed bytes replaced), cut after 100 bytes.
std::string in_quotes(std::string_view bytes);

// Gives out whole characters of a stream.
class Utf8Stream {
 public:
  enum class Malformed {
    keep,     // the bytes given are the bytes that come out
    replace,  // malformed ones come out as U+FFFD, so that all output together is valid UTF-8
  };
  explicit Utf8Stream(Malformed policy = Malformed::replace) : policy_(policy) {}

  // Takes bytes, gives the characters that are now complete. At most 3 bytes are held back.
  std::string push(std::string_view bytes);
  // The end of the stream: what was held back, an unfinished character (malformed).
  std::string finish();

 private:
  Malformed policy_;
  std::string held_;
};

}  // namespace loglinear::io
