#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>

#include <fmt/format.h>

#include "app/compare/report.hpp"
#include "app/measure.hpp"
#include "app/progress.hpp"
#include "base/error.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "io/file.hpp"
#include "nn/families.hpp"

namespace loglinear::cli {
namespace {

namespace compare = app::compare;

constexpr const char* kCompareDetails =
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
               gradients are checked on a call of 80 tokens at most, those of the queries also in the sample. A mechanism that
               is further off than docs/numerics.md allows has no row there, and the exit code is 1.
~              extrapolated by that fit: the call would not end within --budget, or not fit into the memory. The
               cheapest call that is left is always made next, so what is cheap reaches every length.

--quality first trains the same small model with each mechanism that can be trained as its mixer, with the same tokens and
steps: on multi-query associative recall (keys and values first, queries later; the part of queries that are answered) and,
with --data, on text (bits per byte of what is held out). It takes as long as it takes, --budget is not for it.

--json writes an object {machine, command, rows, ...}; each row has the keys mechanism T forward_ms forward_backward_ms
step_ms peak_bytes state_bytes time_exponent error extrapolated and more, null where there is no number.

Examples:
  loglinear compare
  loglinear compare --mechanisms flash,log_linear_mamba2 --lengths 1024,4096,16384 --budget 20
  loglinear compare --json rows.json --html page.html
  loglinear compare --quality --data book.txt --html page.html
  loglinear compare --list)";

struct CompareFlags {
  compare::Settings settings;
  compare::QualitySettings quality;
  std::string json, html;
  bool list = false, with_quality = false;
};

compare::QualityResult run_quality(const CompareFlags& flags, app::Console& progress,
                                   const std::function<bool()>& interrupted) {
  compare::QualitySettings settings = flags.quality;
  settings.seed = flags.settings.seed, settings.threads = flags.settings.threads;
  for (const std::string& name : flags.settings.mechanisms)
    if (nn::find_family(name)) settings.mixers.push_back(name);
  if (settings.mixers.empty() && !flags.settings.mechanisms.empty())
    fail_usage("compare", "--quality: none of the mechanisms can be trained as a mixer, only {}", nn::family_list());
  compare::QualityHooks hooks;
  hooks.interrupted = interrupted;
  hooks.warn = [&](const std::string& line) {
    progress.clear();
    std::fprintf(stderr, "[compare] warning: %s\n", line.c_str());
  };
  hooks.progress = [&](const compare::QualityProgress& p) {
    progress.live(fmt::format("{} of {}  {} {} seed {}  step {} of {}  eta {}", p.training + 1, p.trainings, p.mixer,
                              p.task, p.seed, p.step, p.steps, app::format_duration(p.eta_seconds)));
  };
  return compare::run_quality(settings, hooks);
}

int run_compare(const CompareFlags& flags, bool json) {
  if (flags.list) {
    print(json ? compare::mechanisms_json().dump(1) + "\n" : compare::list_text());
    return 0;
  }
  if (!flags.with_quality && !flags.quality.data.empty()) fail_usage("compare", "--data: only --quality reads text");
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
  app::keep_one_heap();
  // First, because it may refuse its settings, and whoever waits for trainings waits for the measurements as well.
  std::optional<compare::QualityResult> quality;
  if (flags.with_quality) {
    quality = run_quality(flags, progress, hooks.interrupted);
    progress.clear();
    if (!json_alone) print(compare::quality_text(*quality) + "\n");
  }
  const auto interrupted = [] {
    std::fprintf(stderr, "[compare] interrupted: no file is written\n");
    return 130;
  };
  if (quality && quality->interrupted) return interrupted();
  const compare::Outcome outcome = compare::run(flags.settings, hooks);
  progress.clear();
  if (!json_alone) print(compare::to_text(outcome, flags.settings));
  if (outcome.interrupted) return interrupted();

  nlohmann::ordered_json object = compare::to_json(outcome, flags.settings, command_line());
  if (quality) object["quality"] = compare::quality_json(*quality);
  const auto dump = [&] { return object.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"; };
  if (json_alone) print(dump());
  if (!flags.json.empty()) io::write_file_atomic(flags.json, dump());
  if (!flags.html.empty()) io::write_file_atomic(flags.html, compare::to_html(object));
  return outcome.wrong > 0 ? 1 : 0;
}

}  // namespace

void add_compare(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("compare", "every attention mechanism side by side: time, memory, error");
  const auto flags = std::make_shared<CompareFlags>();
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
  command->add_flag("--quality", flags->with_quality, "train each mechanism as a mixer: recall and bits per byte");
  command->add_option("--data", flags->quality.data, "of --quality: text files or folders")->type_name("PATH");
  command->add_option("--seeds", flags->quality.seeds, "of --quality: trainings of each mechanism on each task")
      ->capture_default_str();
  command->add_option("--steps", flags->quality.steps, "of --quality: of a training")->capture_default_str();
  command->footer(kCompareDetails);
  command->callback([&run, flags, json] { run = [flags, json] { return run_compare(*flags, json->count() > 0); }; });
}

}  // namespace loglinear::cli
