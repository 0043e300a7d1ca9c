#include "io/file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <vector>

#include "base/error.hpp"

namespace loglinear::io {
namespace {

namespace fs = std::filesystem;

std::string reason(int error) { return std::error_code(error, std::generic_category()).message(); }

[[noreturn]] void fail_path(const char* where, const char* doing, const Path& path, int error) {
  fail(where, "cannot {} {}: {}", doing, path.string(), reason(error));
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  operator int() const { return fd_; }

 private:
  int fd_;
};

Path parent_of(const Path& path) { return path.has_parent_path() ? path.parent_path() : Path("."); }

// The path without a trailing slash and with a symbolic link at its end followed.
Path resolved(Path path, const char* where) {
  if (path.empty()) fail(where, "the path is empty");
  if (!path.has_filename() && path.has_relative_path()) path = path.parent_path();
  std::error_code error;
  if (fs::is_symlink(path, error) || path.filename() == "." || path.filename() == "..") {
    const Path target = fs::canonical(path, error);
    if (!error) return target;
  }
  return path;
}

Path temporary_name(const Path& target) {
  static std::atomic<unsigned> counter{0};
  return target.string() + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter++);
}

bool is_temporary_name(const std::string& name) {
  const auto digits_before = [&](std::size_t end) {
    std::size_t begin = end;
    while (begin > 0 && name[begin - 1] >= '0' && name[begin - 1] <= '9') --begin;
    return begin;
  };
  const std::size_t number = digits_before(name.size());
  if (number == name.size() || number == 0 || name[number - 1] != '-') return false;
  const std::size_t process = digits_before(number - 1);
  constexpr std::string_view kMark = ".tmp-";
  return process < number - 1 && process > kMark.size() &&
         name.compare(process - kMark.size(), kMark.size(), kMark) == 0;
}

// Locks what was just created. False when a cleaner of another process took it away in between. File systems without
// locks go without: nobody can take the lock there, so nobody removes the temporary.
bool hold(int fd, const Path& path) {
  while (::flock(fd, LOCK_EX) != 0 && errno == EINTR) {
  }
  struct stat mine, there;
  return ::fstat(fd, &mine) == 0 && ::lstat(path.c_str(), &there) == 0 && mine.st_ino == there.st_ino &&
         mine.st_dev == there.st_dev;
}

// Folders that cannot be flushed (EINVAL on some network file systems) are no reason to fail: the rename is still
// atomic.
void flush_folder(const Path& folder) {
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd < 0) {
    if (errno == EACCES) return;  // a folder one may write to but not list
    fail_path("file.write", "open", folder, errno);
  }
  if (::fsync(fd) != 0 && errno != EINVAL && errno != EROFS) fail_path("file.write", "flush", folder, errno);
}

void flush_tree(const Path& folder) {
  std::error_code error;
  for (fs::recursive_directory_iterator i(folder, error), end; !error && i != end; i.increment(error)) {
    if (i->is_symlink()) continue;
    if (i->is_directory()) {
      flush_folder(i->path());
    } else {
      const Descriptor fd(::open(i->path().c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
      if (fd < 0) fail_path("file.write", "open", i->path(), errno);
      if (::fsync(fd) != 0 && errno != EINVAL && errno != EROFS) fail_path("file.write", "flush", i->path(), errno);
    }
  }
  if (error) fail("file.write", "cannot list {}: {}", folder.string(), error.message());
  flush_folder(folder);
}

}  // namespace

std::string read_file_start(const Path& path, std::uint64_t count) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd < 0) fail_path("file.read", "open", path, errno);
  struct stat status;
  if (::fstat(fd, &status) != 0) fail_path("file.read", "read", path, errno);
  if (S_ISDIR(status.st_mode)) fail("file.read", "{} is a folder, need a file", path.string());
  try {
    std::string contents;
    // The size is a hint: files of /proc say 0, and any file may grow or shrink meanwhile.
    contents.reserve(std::min<std::uint64_t>(count, S_ISREG(status.st_mode) ? status.st_size : 0));
    std::vector<char> block(1 << 18);
    while (contents.size() < count) {
      const ssize_t n = ::read(fd, block.data(), std::min<std::uint64_t>(block.size(), count - contents.size()));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail_path("file.read", "read", path, errno);
      if (n == 0) break;
      contents.append(block.data(), static_cast<std::size_t>(n));
    }
    return contents;
  } catch (const std::bad_alloc&) {
    fail("file.read", "{}: not enough memory to read it", path.string());
  } catch (const std::length_error&) {
    fail("file.read", "{}: not enough memory to read it", path.string());
  }
}

std::string read_file(const Path& path, std::uint64_t limit) {
  struct stat status;
  const bool too_long = ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
                        static_cast<std::uint64_t>(status.st_size) > limit;
  std::string contents;
  if (!too_long) contents = read_file_start(path, limit == UINT64_MAX ? limit : limit + 1);
  if (too_long || contents.size() > limit) fail("file.read", "{}: longer than {} bytes", path.string(), limit);
  return contents;
}

AtomicFile::AtomicFile(const Path& target) : target_(resolved(target, "file.write")) {
  struct stat status;
  const bool exists = ::stat(target_.c_str(), &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) fail("file.write", "{} is a folder, need a file name", target.string());
  if (exists && !S_ISREG(status.st_mode)) {
    fd_ = ::open(target_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) fail_path("file.write", "write", target_, errno);
    return;
  }
  for (;;) {
    temporary_ = temporary_name(target_);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno == EEXIST) continue;
    if (fd_ < 0) fail_path("file.write", "write", target_, errno);
    if (hold(fd_, temporary_)) break;
    ::close(fd_);
  }
  if (exists) {
    // Best effort: only root may give files away, and the mode does not matter to the contents.
    if (::fchown(fd_, status.st_uid, status.st_gid) != 0) errno = 0;
    if (::fchmod(fd_, status.st_mode & 07777) != 0) errno = 0;
  }
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  if (fd_ >= 0) ::close(fd_);
}

void AtomicFile::write(const void* data, std::size_t bytes) {
  if (fd_ < 0) fail("file.write", "{}: already closed", target_.string());
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, next, std::min<std::size_t>(bytes, std::size_t{1} << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_path("file.write", "write", target_, errno);
    next += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

void AtomicFile::commit() {
  if (fd_ < 0) fail("file.write", "{}: already closed", target_.string());
  // Pipes and devices have nothing to flush and say EINVAL.
  if (::fsync(fd_) != 0 && !(temporary_.empty() || errno == EINVAL || errno == EROFS))
    fail_path("file.write", "write", target_, errno);
  if (!temporary_.empty()) {
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail_path("file.write", "write", target_, errno);
    temporary_.clear();
  }
  const int fd = fd_;
  fd_ = -1;
  struct stat status;
  const bool regular = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode);
  if (::close(fd) != 0 && errno != EINTR) fail_path("file.write", "write", target_, errno);
  if (regular) flush_folder(parent_of(target_));
}

void write_file_atomic(const Path& target, std::string_view contents) {
  AtomicFile file(target);
  file.write(contents);
  file.commit();
}

AtomicFolder::AtomicFolder(const Path& target) : target_(resolved(target, "file.write")) {
  std::error_code error;
  const fs::file_status status = fs::status(target_, error);
  if (fs::exists(status) && !fs::is_directory(status)) fail("file.write", "{} is not a folder", target.string());
  fs::create_directories(parent_of(target_), error);
  if (error) fail("file.write", "cannot make folder {}: {}", parent_of(target_).string(), error.message());
  for (;;) {
    temporary_ = temporary_name(target_);
    if (::mkdir(temporary_.c_str(), 0777) != 0) {
      if (errno == EEXIST) continue;
      fail_path("file.write", "make folder", target_, errno);
    }
    fd_ = ::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ >= 0 && hold(fd_, temporary_)) break;
    if (fd_ < 0 && errno != ENOENT) {
      const int cause = errno;
      ::rmdir(temporary_.c_str());
      fail_path("file.write", "make folder", target_, cause);
    }
    if (fd_ >= 0) ::close(fd_);
  }
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
  if (fd_ >= 0) ::close(fd_);
}

void AtomicFolder::commit() {
  if (temporary_.empty()) fail("file.write", "{}: already closed", target_.string());
  flush_tree(temporary_);
  std::error_code ignored;
  if (!fs::exists(target_, ignored)) {
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail_path("file.write", "write", target_, errno);
  } else if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) == 0) {
    fs::remove_all(temporary_, ignored);  // now the old folder; what cannot be removed is left to the next cleaning
  } else if (errno == EINVAL || errno == ENOSYS) {
    // A file system that cannot exchange two names: for a moment the target is missing.
    const Path old = temporary_name(target_);
    if (::rename(target_.c_str(), old.c_str()) != 0) fail_path("file.write", "write", target_, errno);
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
      const int cause = errno;
      if (::rename(old.c_str(), target_.c_str()) != 0)
        fail("file.write", "{} is now {}", target_.string(), old.string());
      fail_path("file.write", "write", target_, cause);
    }
    fs::remove_all(old, ignored);
  } else {
    fail_path("file.write", "write", target_, errno);
  }
  temporary_.clear();
  flush_folder(parent_of(target_));
  ::close(fd_);
  fd_ = -1;
}

int remove_stale_temporaries(const Path& folder) {
  std::error_code error;
  std::vector<Path> found;
  for (fs::directory_iterator i(folder.empty() ? Path(".") : folder, error), end; !error && i != end;
       i.increment(error))
    if (is_temporary_name(i->path().filename().string())) found.push_back(i->path());
  if (error && error != std::errc::no_such_file_or_directory)
    fail("file.clean", "cannot list {}: {}", folder.string(), error.message());
  int removed = 0;
  for (const Path& path : found) {
    const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (fd < 0 || ::flock(fd, LOCK_EX | LOCK_NB) != 0) continue;
    if (fs::remove_all(path, error) > 0 && !error) ++removed;
  }
  return removed;
}

void remove_folder(const Path& folder) {
  const Path target = !folder.has_filename() && folder.has_relative_path() ? folder.parent_path() : folder;
  const Path doomed = temporary_name(target);
  if (::rename(target.c_str(), doomed.c_str()) != 0) {
    if (errno == ENOENT) return;
    fail_path("file.remove", "remove", folder, errno);
  }
  std::error_code error;
  fs::remove_all(doomed, error);
  if (error) fail("file.remove", "cannot remove {}: {}", doomed.string(), error.message());
}

}  // namespace loglinear::io
