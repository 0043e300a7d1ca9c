#pragma once
// Runs the program as a user would.

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

namespace loglinear::tests {

inline std::string file_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// An empty folder, removed at the end.
class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "loglinear_test_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }
  // Writes a file and gives its path.
  std::string file(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

struct Limits {
  std::optional<std::uint64_t> file_bytes;  // RLIMIT_FSIZE, as `ulimit -f`
};

struct Outcome {
  int code = -1;  // 128 + signal when it was killed
  std::string out, err;
};

// A running program, its output in files below `folder`.
class Process {
 public:
  Process(const std::vector<std::string>& arguments, const std::filesystem::path& folder, const Limits& limits = {})
      : folder_(folder) {
    pid_ = fork();
    if (pid_ != 0) return;
    const int in = open("/dev/null", O_RDONLY);
    const int out = open((folder / "stdout").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    const int err = open((folder / "stderr").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(in, 0), dup2(out, 1), dup2(err, 2);
    if (limits.file_bytes) {
      const rlimit limit{*limits.file_bytes, *limits.file_bytes};
      setrlimit(RLIMIT_FSIZE, &limit);
    }
    std::vector<char*> argv = {const_cast<char*>(LOGLINEAR_PROGRAM)};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    execv(LOGLINEAR_PROGRAM, argv.data());
    _exit(127);
  }

  void signal(int number) const { ::kill(pid_, number); }
  // Whether it has ended; does not wait.
  bool ended() {
    if (!done_ && waitpid(pid_, &status_, WNOHANG) == pid_) done_ = true;
    return done_;
  }
  Outcome wait() {
    if (!done_) waitpid(pid_, &status_, 0);
    done_ = true;
    Outcome outcome;
    outcome.code = WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
    outcome.out = file_text(folder_ / "stdout");
    outcome.err = file_text(folder_ / "stderr");
    return outcome;
  }

 private:
  std::filesystem::path folder_;
  pid_t pid_ = -1;
  int status_ = 0;
  bool done_ = false;
};

inline Outcome run(const std::vector<std::string>& arguments, const Limits& limits = {}) {
  const Scratch scratch;
  return Process(arguments, scratch.path(), limits).wait();
}

// What every refusal looks like: exit code, nothing on standard output that could be taken for a result, and exactly
// one line on standard error, beginning with '['. Empty when it is so, otherwise what is wrong.
inline std::string not_one_clear_line(const Outcome& outcome, int code) {
  const std::string shown = "exit " + std::to_string(outcome.code) + ", stderr: " + outcome.err;
  if (outcome.code != code) return "expected exit " + std::to_string(code) + ": " + shown;
  if (outcome.err.size() < 10 || outcome.err[0] != '[' || outcome.err.find("] ") == std::string::npos)
    return "no clear line: " + shown;
  if (outcome.err.find('\n') != outcome.err.size() - 1) return "not exactly one line: " + shown;
  return "";
}

}  // namespace loglinear::tests
