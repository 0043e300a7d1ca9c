#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>

#include <fmt/format.h>

#include "app/progress.hpp"
#include "app/recipe.hpp"
#include "base/error.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "io/file.hpp"

namespace loglinear::cli {
namespace {

constexpr const char* kRecipeNotes =
    R"(FILE says which models are trained, how, and what is measured after each; docs/recipes.md describes it, and recipes/ has
those of the tables in docs/quality.md. Every training has one thread and --jobs of them run at once; a value is the same
whatever --jobs is. In OUT each has a folder as `loglinear train` makes it, with its result.json. What has ended is not done
again, so the same command goes on after Ctrl-C (which saves, exit code 130), and measures what a changed recipe adds.
OUT/results.jsonl gets a line for every measurement, OUT/table.md is the table of the last call and names its command.

--set replaces what the recipe says: in [settings], in every case and stage, and a list of [sweep] (VALUE may be a list in
JSON); --set stage2.lr=1e-3 is for the second stage alone.
--json writes {title, command, machine, seed, seeds, seconds, rows: [{case, sweep, settings, before (of the stages before the
last), trainings: [{folder, seed, ended, diverged, steps, tokens, parameters, seconds}], scores: [{label, unit, definition,
values, mean, spread}]}]}; accuracies are parts of one.

Examples:
  loglinear recipe recipes/recall.toml --out recall
  loglinear recipe recipes/recall.toml --out look --seeds 1 --set steps=20 --only 'mamba2-16'
  loglinear recipe recipes/position.toml --data books --out position --json position.json)";

struct RecipeFlags {
  std::string file, json;
  app::RecipeOptions options;
  app::RecipeRun run;
  std::string out;
  bool dry_run = false, seeds_given = false, examples_given = false;
};

int run_recipe(const RecipeFlags& flags, bool json) {
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    if (value < least) fail_usage("recipe", "{}: got {}, need at least {}", name, value, least);
  };
  at_least("--jobs", flags.run.jobs, 0);
  if (flags.run.jobs > 4096) fail_usage("recipe", "--jobs: got {}, need 0 to 4096", flags.run.jobs);
  if (flags.seeds_given) at_least("--seeds", flags.options.seeds, 1);
  at_least("--seed", flags.options.seed, -1);
  if (flags.examples_given) at_least("--examples", flags.options.examples, 1);
  if (flags.options.examples > 1 << 24)
    fail_usage("recipe", "--examples: got {}, need 1 to 2^24", flags.options.examples);
  if (flags.options.seeds > 1000) fail_usage("recipe", "--seeds: got {}, need 1 to 1000", flags.options.seeds);
  const app::Recipe recipe = app::read_recipe(flags.file, flags.options);
  if (flags.dry_run) {
    print(app::recipe_plan_text(recipe));
    return 0;
  }
  if (flags.out.empty()) fail_usage("recipe", "--out is missing: the folder for the trainings");
  const bool json_alone = json && (flags.json.empty() || flags.json == "-");
  if (json && !json_alone) io::AtomicFile(flags.json).write("");  // known before hours of training, not after them

  app::Console progress(
      [](std::string_view line) { std::fwrite(line.data(), 1, line.size(), stderr), std::fflush(stderr); },
      isatty(STDERR_FILENO) != 0);
  const Interrupt interrupt;
  app::RecipeHooks hooks;
  hooks.interrupted = [&] { return interrupt.requested(); };
  hooks.line = [&](const std::string& text) { progress.line(text); };
  hooks.warn = [&](const std::string& text) {
    progress.clear();
    std::fprintf(stderr, "[recipe] warning: %s\n", text.c_str());
  };
  hooks.progress = [&](const app::RecipeProgress& p) {
    std::string text = fmt::format("{} of {}  eta {}", p.done, p.all, app::format_duration(p.eta_seconds));
    for (const std::string& name : p.running) text += "  " + name;
    progress.live(text);
  };
  app::RecipeRun run = flags.run;
  run.out = flags.out;
  run.command = command_line();
  const app::RecipeResult result = app::run_recipe(recipe, run, hooks);
  progress.clear();
  if (result.interrupted) {
    std::fprintf(stderr, "[recipe] interrupted: the same command goes on; what is done is in %s\n",
                 (run.out / "table.md").c_str());
    return 130;
  }
  if (!json_alone) print(app::recipe_text(recipe, result, command_line()));
  if (json) {
    const std::string text = app::recipe_json(recipe, result, command_line())
                                 .dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) +
                             "\n";
    if (json_alone)
      print(text);
    else
      io::write_file_atomic(flags.json, text);
  }
  return 0;
}

}  // namespace

void add_recipe(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("recipe", "the trainings that a table needs, and the table");
  const auto flags = std::make_shared<RecipeFlags>();
  command->add_option("FILE", flags->file, "recipe, .toml or .json")->required();
  command->add_option("--out", flags->out, "folder for the trainings and their results");
  command->add_option("--jobs", flags->run.jobs, "trainings at once, of one thread each; 0: as many as processors")
      ->capture_default_str();
  const CLI::Option* seeds =
      command->add_option("--seeds", flags->options.seeds, "trainings of each model; default: the recipe's");
  command->add_option("--seed", flags->options.seed, "of the first of them, the others follow; default: the recipe's");
  command->add_option("--set", flags->options.set, "a setting of `loglinear train`, for all trainings; repeatable")
      ->type_name("SETTING=VALUE")
      ->allow_extra_args(false);
  command->add_option("--data", flags->options.data, "text files or folders to train on")->type_name("PATH");
  const CLI::Option* examples =
      command->add_option("--examples", flags->options.examples, "of each task that is scored; default: the recipe's");
  command->add_option("--only", flags->options.only, "only trainings whose name has a match of this regular expression")
      ->type_name("REGEX");
  command->add_flag("--dry-run", flags->dry_run, "only list the trainings and the tokens that each reads");
  const CLI::Option* json =
      command->add_option("--json", flags->json, "write JSON to FILE; - or no FILE: only JSON, on standard output")
          ->expected(0, 1)
          ->type_name("[FILE]");
  command->footer(kRecipeNotes);
  command->callback([&run, flags, json, seeds, examples] {
    flags->seeds_given = seeds->count() > 0, flags->examples_given = examples->count() > 0;
    run = [flags, json] { return run_recipe(*flags, json->count() > 0); };
  });
}

}  // namespace loglinear::cli
