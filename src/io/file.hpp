#pragma once
// Files and folders that are either wholly there or not there at all.
//
// Everything is written to a temporary name beside its target, flushed to the disk (fsync) and renamed, so that a
// reader, a full disk or kill -9 at any moment meets the old contents or the new ones and nothing in between. While a
// temporary is being written its owner holds a lock on it (flock), which the kernel drops when the process dies: that
// is how remove_stale_temporaries tells the remains of a dead run from the work of a living one.
//
// Every function throws loglinear::Error, one line with the path and the reason of the operating system ("No space left
// on device"), and leaves the target as it was. A process under a file size limit (ulimit -f) must ignore SIGXFSZ to
// get the error in place of the signal.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace loglinear::io {

using Path = std::filesystem::path;

// More than this is not read into memory at once unless the caller asks for it.
inline constexpr std::uint64_t kReadLimit = std::uint64_t{4} << 30;

// All bytes of a file, a pipe or a device. Error when it is missing, a folder, unreadable or longer than `limit` bytes
// (nothing beyond limit + 1 bytes is read, whatever the file claims about its size).
std::string read_file(const Path& path, std::uint64_t limit = kReadLimit);

// The first bytes of the same, at most `count`: shorter only when the file is.
std::string read_file_start(const Path& path, std::uint64_t count);

// A file under construction. Until commit() the target is untouched; destroyed without commit(), no trace is left.
//
// A symbolic link is followed, an existing target's permissions are kept. A target that exists and is neither a file
// nor a folder (/dev/null, a pipe) is written directly, since it cannot be replaced.
class AtomicFile {
 public:
  // Creates the temporary. Error when the folder is missing or not writable, or when the target is a folder.
  explicit AtomicFile(const Path& target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t bytes);
  void write(std::span<const std::byte> bytes) { write(bytes.data(), bytes.size()); }
  void write(std::string_view text) { write(text.data(), text.size()); }

  // Flushes the file, renames it onto the target and flushes the folder. Once, and nothing is written afterwards.
  void commit();

 private:
  Path target_, temporary_;  // temporary_ is empty when the target is written directly or after commit()
  int fd_ = -1;
};

// AtomicFile around one call: writer(AtomicFile&) writes the contents. Whatever it throws passes through and leaves the
// target as it was.
template <class Writer>
void write_file_atomic(const Path& target, Writer&& writer) requires std::is_invocable_v<Writer, AtomicFile&> {
  AtomicFile file(target);
  std::forward<Writer>(writer)(file);
  file.commit();
}
// The same for contents that are at hand.
void write_file_atomic(const Path& target, std::string_view contents);

// A folder under construction: write any files below path(), then commit(). An existing target folder is replaced
// whole. Destroyed without commit(), no trace is left.
class AtomicFolder {
 public:
  // Creates the temporary folder beside the target. Missing parents of the target are made. Error when the target
  // exists and is not a folder.
  explicit AtomicFolder(const Path& target);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  // Where to write: "<target>.tmp-<process>-<number>".
  const Path& path() const { return temporary_; }

  // Flushes every file and folder below path(), renames it onto the target and flushes the parent.
  void commit();

 private:
  Path target_, temporary_;
  int fd_ = -1;  // of the temporary folder, locked
};

// Removes the temporary files and folders that dead processes left directly in `folder`; those of living ones stay.
// Gives the number removed. A missing folder has none. Safe to call from several processes at once.
int remove_stale_temporaries(const Path& folder);

// Removes a folder and all below it so that no half-removed folder is ever visible under its name: it is renamed to a
// temporary name first. A missing folder is fine.
void remove_folder(const Path& folder);

}  // namespace loglinear::io
