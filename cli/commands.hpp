#pragma once
// The subcommands. Each has a file of its own, cli/<name>.cpp, that turns its flags into one call into src/app.

#include <functional>
#include <string>
#include <string_view>

#include <CLI/CLI.hpp>

namespace loglinear::cli {

// What a command does once the whole command line has been read; the value is the exit code. Throws Error.
using Run = std::function<int()>;

// Each adds its subcommand, flags and help (ending with examples, CLI::App::footer) to `app`, and sets `run` in the
// subcommand's callback, doing no work there. Flags live in a std::shared_ptr that the lambdas hold.
void add_train(CLI::App& app, Run& run);
void add_eval(CLI::App& app, Run& run);
void add_generate(CLI::App& app, Run& run);
void add_inspect(CLI::App& app, Run& run);
void add_task(CLI::App& app, Run& run);
void add_op(CLI::App& app, Run& run);
void add_bench(CLI::App& app, Run& run);
void add_compare(CLI::App& app, Run& run);
void add_recipe(CLI::App& app, Run& run);
void add_demo(CLI::App& app, Run& run);

// What the user typed, quoted as a shell would want it again.
const std::string& command_line();

// Thrown by print when the reader of standard output has gone away: the program ends quietly, as `head` expects.
struct OutputClosed {};

// Writes text to standard output at once, unbuffered. Throws OutputClosed, or Error when it cannot be written.
void print(std::string_view text);

}  // namespace loglinear::cli
