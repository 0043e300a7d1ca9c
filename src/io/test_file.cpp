#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <random>
#include <thread>

#include "io/file.hpp"
#include "io/testing.hpp"

namespace loglinear::io {
namespace {

namespace fs = std::filesystem;

// No file may grow beyond `bytes` while this lives: how a full disk looks to the writer, without filling one.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_;
};

// Another user while this lives, when the tests run as root, whom permissions do not stop.
class NotRoot {
 public:
  NotRoot() : user_(::geteuid()) {
    if (user_ == 0 && ::seteuid(65534) != 0) throw std::runtime_error("seteuid failed");
  }
  ~NotRoot() {
    if (user_ == 0 && ::seteuid(0) != 0) std::abort();
  }

 private:
  uid_t user_;
};

TEST(File, ReadsWhole) {
  TestFolder folder;
  const std::string contents(700000, 'x');
  put(folder / "a", contents);
  put(folder / "empty", "");
  EXPECT_EQ(read_file(folder / "a"), contents);
  EXPECT_EQ(read_file(folder / "empty"), "");
  EXPECT_EQ(read_file(folder / "a", 700000), contents);
  EXPECT_EQ(read_file_start(folder / "a", 10), "xxxxxxxxxx");
  EXPECT_GT(read_file("/proc/self/status").size(), 100u);  // a file that claims to be empty
}

TEST(File, ReadErrors) {
  TestFolder folder;
  put(folder / "a", "0123456789");
  EXPECT_ERROR(read_file(folder / "none"), "No such file");
  EXPECT_ERROR(read_file(folder.path()), "is a folder");
  EXPECT_ERROR(read_file(folder / "a", 9), "longer than 9 bytes");
  EXPECT_ERROR(read_file("/dev/zero", 1000), "longer than 1000 bytes");
}

TEST(File, UnreadableFile) {
  TestFolder folder;
  put(folder / "secret", "x");
  fs::permissions(folder / "secret", fs::perms::none);
  fs::permissions(folder.path(), fs::perms::all);
  const NotRoot user;
  EXPECT_ERROR(read_file(folder / "secret"), "Permission denied");
}

TEST(AtomicFile, WritesAndReplaces) {
  TestFolder folder;
  write_file_atomic(folder / "a", "one");
  EXPECT_EQ(get(folder / "a"), "one");
  write_file_atomic(folder / "a", [](AtomicFile& file) {
    file.write("two");
    file.write(std::string(100000, '!'));
  });
  EXPECT_EQ(get(folder / "a"), "two" + std::string(100000, '!'));
  write_file_atomic(folder / "empty", "");
  EXPECT_EQ(get(folder / "empty"), "");
  EXPECT_EQ(folder.entries(), 2);
}

TEST(AtomicFile, KeepsModeAndFollowsLinks) {
  TestFolder folder;
  put(folder / "real", "old");
  fs::permissions(folder / "real", fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink("real", folder / "link");
  write_file_atomic(folder / "link", "new");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_EQ(get(folder / "real"), "new");
  EXPECT_EQ(fs::status(folder / "real").permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

TEST(AtomicFile, RelativeToTheCurrentFolder) {
  TestFolder folder;
  const Path before = fs::current_path();
  fs::current_path(folder.path());
  write_file_atomic("plain", "x");
  fs::current_path(before);
  EXPECT_EQ(get(folder / "plain"), "x");
}

TEST(AtomicFile, UncommittedLeavesNoTrace) {
  TestFolder folder;
  put(folder / "a", "old");
  {
    AtomicFile file(folder / "a");
    file.write("new");
  }
  EXPECT_THROW(write_file_atomic(folder / "a",
                                 [](AtomicFile& file) {
                                   file.write("half");
                                   throw std::runtime_error("stop");
                                 }),
               std::runtime_error);
  EXPECT_EQ(get(folder / "a"), "old");
  EXPECT_EQ(folder.entries(), 1);
}

TEST(AtomicFile, Errors) {
  TestFolder folder;
  put(folder / "file", "x");
  EXPECT_ERROR(write_file_atomic(folder.path(), "x"), "is a folder");
  EXPECT_ERROR(write_file_atomic(folder / "none/a", "x"), "No such file");
  EXPECT_ERROR(write_file_atomic(folder / "file/a", "x"), "Not a directory");
  EXPECT_ERROR(write_file_atomic("", "x"), "the path is empty");
  EXPECT_ERROR(write_file_atomic(folder / std::string(300, 'n'), "x"), "too long");
  EXPECT_EQ(folder.entries(), 1);
}

TEST(AtomicFile, NoPermission) {
  TestFolder folder;
  put(folder / "a", "old");
  fs::permissions(folder.path(), fs::perms::owner_all | fs::perms::others_read | fs::perms::others_exec);
  if (::geteuid() != 0) fs::permissions(folder.path(), fs::perms::owner_read | fs::perms::owner_exec);
  {
    const NotRoot user;
    EXPECT_ERROR(write_file_atomic(folder / "a", "new"), "Permission denied");
    EXPECT_ERROR(AtomicFolder(folder / "f"), "Permission denied");
  }
  fs::permissions(folder.path(), fs::perms::owner_all);
  EXPECT_EQ(get(folder / "a"), "old");
  EXPECT_EQ(folder.entries(), 1);
}

TEST(AtomicFile, FullDisk) {
  TestFolder folder;
  put(folder / "a", "old");
  {
    const FileSizeLimit limit(1000);
    EXPECT_ERROR(write_file_atomic(folder / "a", std::string(5000, 'x')), "File too large");
  }
  EXPECT_EQ(get(folder / "a"), "old");
  EXPECT_EQ(folder.entries(), 1);
}

TEST(AtomicFile, DevicesAreWrittenNotReplaced) {
  write_file_atomic("/dev/null", "x");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_ERROR(write_file_atomic("/dev/full", "x"), "No space left on device");
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
}

TEST(AtomicFolder, WritesAndReplacesWhole) {
  TestFolder folder;
  {
    AtomicFolder out(folder / "deep/run/");
    put(out.path() / "a", "1");
    put(out.path() / "sub/b", "2");
    EXPECT_FALSE(fs::exists(folder / "deep/run"));
    out.commit();
  }
  EXPECT_EQ(get(folder / "deep/run/a"), "1");
  EXPECT_EQ(get(folder / "deep/run/sub/b"), "2");
  {
    AtomicFolder out(folder / "deep/run");
    put(out.path() / "c", "3");
    out.commit();
  }
  EXPECT_FALSE(fs::exists(folder / "deep/run/a"));
  EXPECT_EQ(get(folder / "deep/run/c"), "3");
  {
    AtomicFolder out(folder / "deep/run");
    put(out.path() / "lost", "4");
  }
  EXPECT_FALSE(fs::exists(folder / "deep/run/lost"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "deep"), fs::directory_iterator()), 1);
}

TEST(AtomicFolder, Errors) {
  TestFolder folder;
  put(folder / "file", "x");
  EXPECT_ERROR(AtomicFolder(folder / "file"), "is not a folder");
  EXPECT_ERROR(AtomicFolder(folder / "file/sub/run"), "cannot make folder");
  EXPECT_EQ(folder.entries(), 1);
}

TEST(Folder, Removal) {
  TestFolder folder;
  put(folder / "run/a/b", "x");
  remove_folder(folder / "run/");
  remove_folder(folder / "run");
  EXPECT_EQ(folder.entries(), 0);
}

TEST(Stale, OnlyTheRemainsOfTheDeadGo) {
  TestFolder folder;
  put(folder / "a.tmp-1-0", "a dead run's file");
  put(folder / "b.tmp-99-12/x", "a dead run's folder");
  for (const char* name : {"a", "c.tmp-", "c.tmp-1", "c.tmp-1-", "c.tmp--1", ".tmp-1-1", "c.tmp-1-1x", "tmp-1-1"})
    put(folder / name, "not ours");
  AtomicFile file(folder / "mine");
  AtomicFolder run(folder / "run");
  EXPECT_EQ(remove_stale_temporaries(folder.path()), 2);
  EXPECT_EQ(remove_stale_temporaries(folder.path()), 0);
  EXPECT_EQ(folder.entries(), 8 + 2);
  file.commit();
  run.commit();
  EXPECT_TRUE(fs::exists(folder / "mine") && fs::is_directory(folder / "run"));
  EXPECT_EQ(remove_stale_temporaries(folder / "none"), 0);
}

// Kills a writer at arbitrary moments: whoever looks afterwards finds one whole version.
TEST(Killed, OldOrNewNothingElse) {
  TestFolder folder;
  const std::string one(300000, '1'), two(200000, '2');
  const auto write = [&](const std::string& contents) {
    write_file_atomic(folder / "file", contents);
    AtomicFolder out(folder / "run");
    write_file_atomic(out.path() / "x", contents);
    write_file_atomic(out.path() / "y", contents);
    out.commit();
  };
  write(one);
  std::mt19937 random(1);
  for (int i = 0; i < 50; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (;;) {
        write(two);
        write(one);
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const std::string file = get(folder / "file"), x = get(folder / "run/x");
    EXPECT_TRUE(file == one || file == two);
    EXPECT_TRUE(x == one || x == two);
    EXPECT_EQ(x, get(folder / "run/y"));
  }
  remove_stale_temporaries(folder.path());
  EXPECT_EQ(folder.entries(), 2);
}

}  // namespace
}  // namespace loglinear::io
