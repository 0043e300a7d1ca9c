// The program: reads the command line, calls one command, and turns whatever happens into one line and an exit code:
// 0 done, 1 failed, 2 wrong usage, 130 interrupted.

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>
#include <string>

#include <unistd.h>

#include "base/error.hpp"
#include "commands.hpp"

namespace loglinear::cli {

void print(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(STDOUT_FILENO, text.data(), text.size());
    if (n >= 0) {
      text.remove_prefix(static_cast<std::size_t>(n));
    } else if (errno == EPIPE) {
      throw OutputClosed{};
    } else if (errno != EINTR) {
      fail("loglinear", "cannot write to standard output: {}", std::strerror(errno));
    }
  }
}

namespace {

std::string typed;

std::string quoted(const std::string& word) {
  if (!word.empty() &&
      word.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./,=:+@%") ==
          std::string::npos)
    return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace

const std::string& command_line() { return typed; }

namespace {

constexpr const char* kExamples = R"(Examples:
  loglinear train --data book.txt --out model        train on a text file
  loglinear train --out model --data book.txt --resume
                                                     go on where it stopped
  loglinear eval model --data other.txt              bits per byte on another text
  loglinear generate model --prompt "Once upon"      continue a text
  loglinear COMMAND --help                           every flag of a command)";

// One line on standard error, whatever the message holds.
int report(std::string message, int code) {
  for (char& c : message)
    if (c == '\n' || c == '\r') c = ' ';
  std::fprintf(stderr, "%s\n", message.c_str());
  return code;
}

int run(int argc, char** argv) {
  typed = "loglinear";
  for (int i = 1; i < argc; ++i) typed += " " + quoted(argv[i]);
  CLI::App app{"loglinear: language models with log-linear attention, trained and run on the CPU", "loglinear"};
  app.set_version_flag("--version", "loglinear " LOGLINEAR_VERSION);
  app.require_subcommand(0, 1);
  app.footer(kExamples);
  Run command;
  for (const auto add :
       {add_train, add_eval, add_generate, add_inspect, add_task, add_op, add_bench, add_compare, add_recipe, add_demo})
    add(app, command);

  std::string where = "loglinear";
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& done) {  // --help, --version
    app.exit(done);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (const auto chosen = app.get_subcommands(); !chosen.empty()) where += " " + chosen.front()->get_name();
    return report("[" + where + "] " + error.what(), 2);
  }
  if (!command) {
    print(app.help());
    return 2;
  }
  where += " " + app.get_subcommands().front()->get_name();
  try {
    return command();
  } catch (const Error& error) {
    return report(error.what(), error.kind() == Error::Kind::usage ? 2 : 1);
  } catch (const OutputClosed&) {
    return 0;
  } catch (const std::bad_alloc&) {
    return report("[" + where + "] out of memory", 1);
  } catch (const std::exception& error) {
    return report("[" + where + "] " + error.what(), 1);
  }
}

// Threads of GNU's OpenMP that wait for others spin, by default for milliseconds: beside any other work on the machine
// the program would be up to four times slower (docs/performance.md, Threads). The runtime reads for how long before
// main() begins, so the program starts once more, with a tenth of a millisecond, unless the user has said something.
void spin_briefly(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error || ::setenv("GOMP_SPINCOUNT", "10000", 1) != 0) return;
  ::execv(self.c_str(), argv);  // comes back only where it cannot be done: then it is as slow as it is
}

}  // namespace
}  // namespace loglinear::cli

int main(int argc, char** argv) {
  loglinear::cli::spin_briefly(argv);
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of write, not the end of a training run
  std::signal(SIGXFSZ, SIG_IGN);  // likewise a file that may not grow
  try {
    return loglinear::cli::run(argc, argv);
  } catch (const loglinear::cli::OutputClosed&) {
    return 0;
  } catch (const std::exception& error) {
    return loglinear::cli::report(std::string("[loglinear] ") + error.what(), 1);
  }
}
