#pragma once
// The user's text: a file, a folder of files, or JSON lines.

#include <cstdint>
#include <string>
#include <vector>

#include "io/file.hpp"

namespace loglinear::io {

struct Corpus {
  std::vector<std::string> documents;  // bytes, none empty, in the order they were found
  std::uint64_t bytes = 0;             // sum of their sizes
  std::int64_t files = 0;              // files that gave at least one document
  std::int64_t binary_files = 0;       // skipped in a folder: they hold NUL bytes
  std::int64_t empty_files = 0;        // skipped in a folder
  bool cut = false;                    // byte_limit ended the reading early
};

// Reads text from a path:
//   a file         one document: its bytes as they are
//   *.jsonl        (or .ndjson) one document a line, the text of the field "text"; blank lines and empty texts are
//   skipped a folder       every file below it, JSON lines among them, by names in byte order, folders in place. Hidden
//   names are
//                  skipped, symbolic links are followed, a folder that was already visited is not visited again, what
//                  is not a file (sockets, dangling links) is skipped, files that hold NUL bytes are skipped and
//                  counted.
// byte_limit > 0 ends the reading at that many bytes: the last document is cut at a character boundary.
//
// Error, one line with the path (and the line number in JSON lines), when the path is missing or empty, a file cannot
// be read, a single file holds NUL bytes, a JSON line is malformed or has no "text", a folder has no text, or the whole
// is more than half of the machine's memory and no byte_limit was given. The result depends on names and contents only.
Corpus read_text(const Path& path, std::uint64_t byte_limit = 0);

// The same for several paths, one after another.
Corpus read_text(const std::vector<Path>& paths, std::uint64_t byte_limit = 0);

struct TextSplit {
  std::vector<std::string> train, held_out;  // documents, none empty
};

// Divides documents into two parts, about `fraction` (0 <= fraction < 1) of the bytes held out, always the same way for
// the same documents. With many documents (at least 20) whole ones are held out, picked by a hash of their bytes, in
// their original order. With few, or where whole ones do not come near the fraction, it is the tail of the text, cut at
// the end of a line where one is near and never inside a character. Error when fraction is out of range or, for
// fraction > 0, when the text is too short for both parts to hold a byte.
TextSplit split_text(std::vector<std::string> documents, double fraction);

}  // namespace loglinear::io
