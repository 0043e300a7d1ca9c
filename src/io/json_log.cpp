#include "io/json_log.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>

#include "base/error.hpp"

namespace loglinear::io {
namespace {

[[noreturn]] void fail_path(const char* doing, const Path& path) {
  fail("json_log", "cannot {} {}: {}", doing, path.string(), std::generic_category().message(errno));
}

// The byte at a place, which exists.
char byte_at(int fd, const Path& path, std::uint64_t place) {
  char c = 0;
  if (::pread(fd, &c, 1, static_cast<off_t>(place)) != 1) fail_path("read", path);
  return c;
}

// Length of the whole lines in the first `size` bytes.
std::uint64_t whole_lines(int fd, const Path& path, std::uint64_t size) {
  char block[4096];
  while (size > 0) {
    const std::uint64_t count = std::min<std::uint64_t>(size, sizeof(block));
    if (::pread(fd, block, count, static_cast<off_t>(size - count)) != static_cast<ssize_t>(count))
      fail_path("read", path);
    for (std::uint64_t i = count; i > 0; --i)
      if (block[i - 1] == '\n') return size - count + i;
    size -= count;
  }
  return 0;
}

}  // namespace

JsonLog::JsonLog(const Path& path, std::optional<std::uint64_t> keep_bytes) : path_(path) {
  struct stat status;
  if (::stat(path.c_str(), &status) == 0) regular_ = S_ISREG(status.st_mode);
  fd_ = ::open(path.c_str(), (regular_ ? O_RDWR : O_WRONLY) | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0) fail_path("write", path);
  if (!regular_) return;
  try {
    if (::fstat(fd_, &status) != 0) fail_path("read", path);
    const std::uint64_t length = static_cast<std::uint64_t>(status.st_size);
    size_ = whole_lines(fd_, path, std::min(length, keep_bytes.value_or(length)));
    for (const std::uint64_t place : {std::uint64_t{0}, size_})
      if (place < length && byte_at(fd_, path, place) != '{')
        fail("json_log", "{}: exists and is not a JSON-lines log; it is left alone", path.string());
    if (size_ < length && ::ftruncate(fd_, static_cast<off_t>(size_)) != 0) fail_path("write", path);
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

JsonLog::~JsonLog() { ::close(fd_); }

void JsonLog::write(const nlohmann::json& object) {
  write_line(object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void JsonLog::write(const nlohmann::ordered_json& object) {
  write_line(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

void JsonLog::write_line(std::string line) {
  line += '\n';
  for (std::size_t done = 0; done < line.size();) {
    const ssize_t n = ::write(fd_, line.data() + done, line.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int cause = errno;
      if (regular_ && ::ftruncate(fd_, static_cast<off_t>(size_)) != 0) errno = cause;
      errno = cause;
      fail_path("write", path_);
    }
    done += static_cast<std::size_t>(n);
  }
  size_ += line.size();
}

}  // namespace loglinear::io
