#include <unistd.h>

#include <cstdio>
#include <memory>

#include <fmt/format.h>

#include "app/compare/report.hpp"
#include "app/progress.hpp"
#include "base/error.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "io/file.hpp"

namespace loglinear::cli {
namespace {

namespace compare = app::compare;

constexpr const char* kDetails =
    R"(For every mechanism and length: the time of a forward call and of forward and backward together (medians), of one
decoding step there (the mean of those that end with token T: 64 of the log-linear operator, which folds tokens into its
state now and then, 8 of the others), memory, and the exponent fitted to each over the longest lengths. All get the same queries, keys and values of
--heads heads (as many of keys as of queries), float32, one sequence, and are causal where they can be. mosa gets the
queries as its tokens and projects them itself; of qla the last eighth of the tokens are candidates.

peak memory    what became resident while the call ran once on a new thread: its outputs and all its scratch, inputs
               not counted. "with backward": the same of forward and backward, gradients included.
state          what has to be kept of the tokens before the last one to read it.
error          distance from the definition in float64, |x - y| / |y|, in a sample of 12 rows (a token of a head) of the
               call itself, the first and last token among them. It is taken before anything is timed, for steps as well;
               gradients are checked on a call of 130 tokens, those of the queries also in the sample. A mechanism that
               is further off than docs/numerics.md allows has no row there, and the exit code is 1.
~              extrapolated by that fit: the call would not end within --budget, or not fit into the memory. The
               cheapest call that is left is always made next, so what is cheap reaches every length.

--json writes an object {machine, command, rows, ...}; each row has the keys mechanism T forward_ms forward_backward_ms
step_ms peak_bytes state_bytes time_exponent error extrapolated and more, null where there is no number.

Examples:
  loglinear compare
  loglinear compare --mechanisms flash,log_linear_mamba2 --lengths 1024,4096,16384 --budget 20
  loglinear compare --json rows.json --html page.html
  loglinear compare --list)";

struct Flags {
  compare::Settings settings;
  std::string json, html;
  bool list = false;
};

int run_compare(const Flags& flags, bool json) {
  if (flags.list) {
    print(json ? compare::mechanisms_json().dump(1) + "\n" : compare::list_text());
    return 0;
  }
  const bool json_alone = json && flags.json.empty();
  // Known before minutes of measuring, not after them.
  for (const std::string& path : {flags.json, flags.html})
    if (!path.empty()) io::AtomicFile(path).write("");

  app::Console progress(
      [](std::string_view line) { std::fwrite(line.data(), 1, line.size(), stderr), std::fflush(stderr); },
      isatty(STDERR_FILENO) != 0);
  const Interrupt interrupt;
  compare::Hooks hooks;
  hooks.started = [&](const std::string& what, double seconds) {
    progress.live(fmt::format("{:3.0f} of {:.0f} s  {}", seconds, flags.settings.budget, what));
  };
  hooks.wrong = [&](const std::string& what) {
    progress.clear();
    std::fprintf(stderr, "[compare] %s\n", what.c_str());
  };
  hooks.interrupted = [&] { return interrupt.requested(); };
  const compare::Outcome outcome = compare::run(flags.settings, hooks);
  progress.clear();

  const nlohmann::ordered_json object = compare::to_json(outcome, flags.settings, command_line());
  if (!json_alone) print(compare::to_text(outcome, flags.settings));
  if (outcome.interrupted) {
    std::fprintf(stderr, "[compare] interrupted: no file is written\n");
    return 130;
  }
  const auto dump = [&] { return object.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"; };
  if (json_alone) print(dump());
  if (!flags.json.empty()) io::write_file_atomic(flags.json, dump());
  if (!flags.html.empty()) io::write_file_atomic(flags.html, compare::to_html(object));
  return outcome.wrong > 0 ? 1 : 0;
}

}  // namespace

void add_compare(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("compare", "every attention mechanism side by side: time, memory, error");
  const auto flags = std::make_shared<Flags>();
  compare::Settings& settings = flags->settings;
  command->add_flag("--list", flags->list, "the mechanisms and what they are; with --json as JSON");
  command->add_option("--mechanisms", settings.mechanisms, "which, separated by commas; default: all (see --list)")
      ->delimiter(',')
      ->type_name("A,B,...");
  command->add_option("--lengths", settings.lengths, "tokens, separated by commas")
      ->delimiter(',')
      ->type_name("T,T,...")
      ->default_str("1024,2048,...,65536");
  command->add_option("--heads", settings.heads, "H, as many of keys and values as of queries")->capture_default_str();
  command->add_option("--width", settings.width, "of a head: K = V")->capture_default_str();
  command->add_option("--threads", settings.threads, "0: all cores")->capture_default_str();
  command->add_option("--budget", settings.budget, "seconds that measuring may take")->capture_default_str();
  command->add_option("--seconds", settings.seconds, "of timing a case; 0: chosen from the budget")
      ->capture_default_str();
  command
      ->add_option("--tolerance", settings.tolerance, "part of the bounds of docs/numerics.md that is allowed, up to 1")
      ->capture_default_str();
  command->add_option("--seed", settings.seed, "of the random numbers")->capture_default_str();
  const CLI::Option* json =
      command->add_option("--json", flags->json, "write JSON to FILE; without one: only JSON, on standard output")
          ->expected(0, 1)
          ->type_name("[FILE]");
  command->add_option("--html", flags->html, "write a page with charts to FILE, complete in itself")->type_name("FILE");
  command->footer(kDetails);
  command->callback([&run, flags, json] { run = [flags, json] { return run_compare(*flags, json->count() > 0); }; });
}

}  // namespace loglinear::cli
