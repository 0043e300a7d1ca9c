#include "app/inspect.hpp"

#include <memory>

#include "commands.hpp"

namespace loglinear::cli {

void add_inspect(CLI::App& app, Run& run) {
  CLI::App* command =
      app.add_subcommand("inspect", "show what a checkpoint, a safetensors file or a saved state holds");
  struct Flags {
    std::string path;
    bool stats = false, json = false;
  };
  const auto flags = std::make_shared<Flags>();
  command->add_option("PATH", flags->path, "checkpoint or training folder, .safetensors file, saved state")->required();
  command->add_flag("--stats", flags->stats, "min, max and root mean square of every float tensor");
  command->add_flag("--json", flags->json, "one JSON object");
  command->footer(R"(Examples:
  loglinear inspect model --stats
  loglinear inspect context.safetensors --json)");
  command->callback([&run, flags] {
    run = [flags] {
      const nlohmann::ordered_json report = app::inspect(flags->path, flags->stats);
      print(flags->json ? report.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"
                        : app::to_text(report));
      return 0;
    };
  });
}

}  // namespace loglinear::cli
