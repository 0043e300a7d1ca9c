#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "app/settings.hpp"
#include "app/train.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "loglinear/error.hpp"

namespace loglinear::cli {
namespace {

constexpr const char* kTrainNotes =
    R"(Configuration file: keys are the names of the flags, with - or _; lists for --data and --val-data. TrainFlags win.
Text: every file is a document, every line of a .jsonl or .ndjson file another. A byte 0 stands between documents.
Task: examples 0, 1, 2, ... of --seed, at most --seq-len tokens each, as many as fit into --batch-tokens; loglinear task
shows them. The vocabulary of the model is the task's. A validation is the part of held-out answers that are right; of
--data, where examples are made from it, a part is held out for them.
Files: OUT/step-0000200/{config.json, model.safetensors, optimizer.safetensors, trainer.json}, the last two kept, and
OUT/log.jsonl, one object a line: type (train, validation, skipped), step, loss (nats of a scored token), bits_per_byte
(of text), accuracy, answers, right (of a task, validation), best (so far), lr, grad_norm,
tokens_per_second, eta_seconds, elapsed_seconds, tokens, epoch, skipped; a number that is not finite is null.
Ctrl-C ends the step, saves and exits with 130; again: exits at once.

Examples:
  loglinear train --data book.txt --out model
  loglinear train --data src docs/notes.jsonl --out model --mixer log_linear_gated_deltanet --minutes 10
  loglinear train --task mqar --vocab 256 --items 16 --min-items 2 --seq-len 128 --out recall
  loglinear train --task passkey --data haystack.txt --seq-len 512 --out keys
  loglinear train --config run.toml --out model --lr 1e-3
  loglinear train --from model --data letters.txt --out letters --lr 5e-4 --steps 200
  loglinear train --out model --resume)";

struct TrainFlags {
  app::TrainSettings values;                                  // as given; only options that were given count
  std::vector<std::pair<std::string, CLI::Option*>> options;  // every flag that is a setting
  std::string config;
};

int run_train(const TrainFlags& flags) {
  nlohmann::json given = nlohmann::json::object();
  app::for_each_setting(flags.values, [&](const std::string& name, const auto& value, const auto&...) {
    for (const auto& [option, pointer] : flags.options)
      if (option == name && pointer->count() > 0) given[name] = value;
  });
  const app::TrainSettings settings = app::resolve_settings(given, flags.config);

  const Interrupt interrupt;
  app::TrainHooks hooks;
  hooks.terminal = isatty(STDOUT_FILENO) != 0;
  hooks.warn = [](const std::string& text) { std::fprintf(stderr, "[train] warning: %s\n", text.c_str()); };
  // Lines that nobody can read any more are no reason to lose a training.
  hooks.print = [&hooks, closed = false](std::string_view text) mutable {
    if (closed) return;
    try {
      print(text);
    } catch (const OutputClosed&) {
      closed = true;
    } catch (const Error& error) {
      closed = true;
      hooks.warn(std::string(error.what()) + "; the training goes on");
    }
  };
  hooks.interrupted = [&] { return interrupt.requested(); };
  const app::TrainResult result = app::train(settings, hooks);
  if (!result.interrupted) return 0;
  std::fprintf(stderr, "[train] stopped at step %lld, saved in %s; go on with: loglinear train --out %s --resume\n",
               static_cast<long long>(result.step), result.checkpoint.c_str(), settings.out.c_str());
  return 130;
}

}  // namespace

void add_train(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("train", "train a language model on the bytes of text, or on a task");
  const auto flags = std::make_shared<TrainFlags>();
  command->add_option("--config", flags->config, "file.toml or file.json with settings")->group("Run");
  app::for_each_setting(flags->values, [&](const std::string& name, auto& value, const app::SettingRange&,
                                           const char* group, const char* help) {
    CLI::Option* option = nullptr;
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(value)>, bool>) {
      option = command->add_flag("--" + name, value, help);
    } else {
      // --family: what --mixer was called before there were this many.
      option = command->add_option(name == "mixer" ? "--mixer,--family" : "--" + name, value, help);
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(value)>, std::vector<std::string>>)
        option->type_name("PATH");
      else if (name != "out" && name != "min-lr" && name != "scales-lr" && name != "task" && name != "from")
        option->capture_default_str();
    }
    option->group(group);
    flags->options.emplace_back(name, option);
  });
  command->footer(kTrainNotes);
  command->callback([&run, flags] { run = [flags] { return run_train(*flags); }; });
}

}  // namespace loglinear::cli
