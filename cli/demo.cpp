#include "app/demo.hpp"

#include <unistd.h>

#include <cstdio>
#include <memory>

#include "commands.hpp"
#include "interrupt.hpp"

namespace loglinear::cli {

void add_demo(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("demo", "train on a text for a few minutes, measure, continue a prompt");
  struct Flags {
    std::string path, out;
    app::DemoSettings settings;
    bool json = false;
  };
  const auto flags = std::make_shared<Flags>();
  command->add_option("PATH", flags->path,
                      "text: a file or a folder (default: the headers of the C++ standard library)");
  command->add_option("--seconds", flags->settings.seconds, "of training")->capture_default_str();
  command->add_option("--out", flags->out, "folder for the model (default: a new one for temporary files)");
  command->add_option("--seed", flags->settings.seed, "of the weights, the order of the text and the sampling")
      ->capture_default_str();
  command->add_option("--threads", flags->settings.threads, "0: all cores")->capture_default_str();
  command->add_flag("--json", flags->json, "one JSON object on standard output, the rest on standard error");
  command->footer(R"(Examples:
  loglinear demo
  loglinear demo book.txt --seconds 60 --out book-model)");
  command->callback([&run, flags] {
    run = [flags] {
      app::DemoSettings settings = flags->settings;
      settings.text = flags->path;
      settings.out = flags->out;
      const Interrupt interrupt;
      app::DemoHooks hooks;
      hooks.terminal = isatty(flags->json ? STDERR_FILENO : STDOUT_FILENO) != 0;
      hooks.print = [json = flags->json](std::string_view text) {
        if (json)
          std::fwrite(text.data(), 1, text.size(), stderr);
        else
          print(text);
      };
      hooks.warn = [](const std::string& text) { std::fprintf(stderr, "[demo] warning: %s\n", text.c_str()); };
      hooks.interrupted = [&] { return interrupt.requested(); };
      const nlohmann::ordered_json report = app::run_demo(settings, hooks);
      if (flags->json) print(report.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
      return report["interrupted"] ? 130 : 0;
    };
  });
}

}  // namespace loglinear::cli
