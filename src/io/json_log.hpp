#pragma once
// A log of JSON lines that survives a killed writer.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>

#include "io/file.hpp"

namespace loglinear::io {

// Appends one JSON object a line. Each line goes to the file in one write as soon as it is given (to the kernel; it
// survives the death of the process, not of the machine).
class JsonLog {
 public:
  // Opens for appending, creating the file (not its folder). A last line without its newline, half-written when a
  // former writer died, is removed. With keep_bytes the file is cut to that length (if longer) before: a run resumed
  // from a checkpoint gives the size() it had there, so that steps it repeats are not logged twice. Error when the file
  // cannot be opened, or when it is no JSON-lines log (its first byte, or that of the line to be removed, is not '{'):
  // someone else's file is left alone.
  explicit JsonLog(const Path& path, std::optional<std::uint64_t> keep_bytes = std::nullopt);
  ~JsonLog();
  JsonLog(const JsonLog&) = delete;
  JsonLog& operator=(const JsonLog&) = delete;

  // Writes one line. NaN and infinity become null, bytes that are not UTF-8 become U+FFFD. Error when it cannot be
  // written; a part of the line that was written is taken back then.
  void write(const nlohmann::json& object);
  void write(const nlohmann::ordered_json& object);

  // Bytes of whole lines in the file.
  std::uint64_t size() const { return size_; }

 private:
  void write_line(std::string line);

  Path path_;
  int fd_ = -1;
  bool regular_ = true;  // not a pipe or a device
  std::uint64_t size_ = 0;
};

}  // namespace loglinear::io
