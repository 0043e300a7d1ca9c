#include "app/generate.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "app/checkpoint.hpp"
#include "app/settings.hpp"
#include "base/error.hpp"
#include "commands.hpp"
#include "interrupt.hpp"

namespace loglinear::cli {
namespace {

struct GenerateFlags {
  std::string checkpoint, dash, prompt, prompt_file, state_load, state_save;
  bool has_prompt = false, json = false;
  int threads = 0;
  std::int64_t seed = 0;
  app::GenerateSettings settings;
};

// Standard input is a prompt when text was redirected or piped into it, not when it is a terminal or /dev/null.
bool input_is_piped() {
  struct stat status {};
  return fstat(STDIN_FILENO, &status) == 0 &&
         (S_ISFIFO(status.st_mode) || S_ISREG(status.st_mode) || S_ISSOCK(status.st_mode));
}

std::string read_input() {
  std::string text, piece(1 << 16, '\0');
  while (text.size() <= io::kReadLimit) {
    const ssize_t n = ::read(STDIN_FILENO, piece.data(), piece.size());
    if (n == 0) return text;
    if (n > 0) text.append(piece, 0, static_cast<std::size_t>(n));
    if (n < 0 && errno != EINTR) fail("generate", "standard input: {}", std::strerror(errno));
  }
  fail("generate", "standard input: longer than {} bytes", io::kReadLimit);
}

std::string prompt_of(const GenerateFlags& flags) {
  if (flags.has_prompt) return flags.prompt;
  if (flags.dash == "-" || flags.prompt_file == "-") return read_input();
  if (!flags.prompt_file.empty()) return io::read_file(flags.prompt_file);
  if (flags.state_load.empty() && input_is_piped()) return read_input();
  return "";
}

void check_flags(const GenerateFlags& flags) {
  if (!flags.dash.empty() && flags.dash != "-")
    fail_usage("generate", "unexpected argument '{}': a prompt is given with --prompt, --prompt-file or -", flags.dash);
  if (!flags.dash.empty() + flags.has_prompt + !flags.prompt_file.empty() > 1)
    fail_usage("generate", "give one prompt: --prompt, --prompt-file or -");
  if (flags.threads < 0 || flags.threads > 4096)
    fail_usage("generate", "threads: got {}, need 0 (all cores) to 4096", flags.threads);
  // Numbers too long for their type arrive as the largest there is: the limit catches those too.
  constexpr std::int64_t kMost = 1'000'000'000'000'000;
  if (flags.settings.max_tokens < 0 || flags.settings.max_tokens > kMost)
    fail_usage("generate", "max-tokens: got {}, need 0 to {}", flags.settings.max_tokens, kMost);
  if (flags.seed < 0 || flags.seed > kMost) fail_usage("generate", "seed: got {}, need 0 to {}", flags.seed, kMost);
  app::check(flags.settings.sampler);
  app::TextStream(flags.settings.stop);
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double per_second(double count, double seconds) { return seconds > 0 ? count / seconds : 0; }

int run_generate(const GenerateFlags& flags) {
  check_flags(flags);
  const std::string prompt = prompt_of(flags);
  const auto model = app::load_model<float>(flags.checkpoint);
  model->threads = flags.threads;
  app::Context context =
      flags.state_load.empty() ? app::new_context(*model) : app::load_context(flags.state_load, *model);

  const std::optional<app::TrainSettings> training = app::training_settings(flags.checkpoint);
  context.separator = !training || training->task.name.empty();

  const Interrupt interrupt;
  bool closed = false;  // nobody reads the text any more: stop, but still save
  std::optional<Error> unwritable;
  const auto stop = [&] { return interrupt.requested() || closed || unwritable; };
  const auto give = [&](std::string_view text) {
    if (flags.json) return;
    try {
      print(text);
    } catch (const OutputClosed&) {
      closed = true;
    } catch (const Error& error) {
      unwritable = error;
    }
  };

  // Text that an earlier run kept back cannot be continued by tokens once something else has been read.
  std::string kept;
  if (!prompt.empty()) give(kept = app::take_pending(context));
  auto begin = std::chrono::steady_clock::now();
  const std::size_t read = app::read_text_into(*model, context, prompt, stop);
  const double prompt_seconds = seconds_since(begin);

  begin = std::chrono::steady_clock::now();
  app::Generation result;
  if (read < prompt.size()) {
    result.reason = app::StopReason::interrupted;
  } else {
    result = app::generate(*model, context, flags.settings, !flags.state_save.empty(), {give, stop});
  }
  const double seconds = seconds_since(begin);
  if (!flags.state_save.empty()) app::save_context(flags.state_save, *model, context);
  if (unwritable) throw *unwritable;

  const auto tokens = static_cast<double>(result.tokens.size());
  const double prompt_rate = per_second(static_cast<double>(read), prompt_seconds), rate = per_second(tokens, seconds);
  if (flags.json) {
    const nlohmann::ordered_json object{{"text", kept + result.text},
                                        {"tokens", result.tokens.size()},
                                        {"token_ids", result.tokens},
                                        {"stop_reason", name_of(result.reason)},
                                        {"prompt_tokens", read},
                                        {"prompt_tokens_per_second", prompt_rate},
                                        {"tokens_per_second", rate},
                                        {"position", context.state.position()},
                                        {"state_bytes", context.state.bytes()}};
    print(object.dump() + "\n");
  } else if (!closed) {
    if (isatty(STDOUT_FILENO)) print("\n");
    if (isatty(STDERR_FILENO))
      std::fprintf(stderr, "[%s] prompt %zu bytes, %.0f/s; text %zu bytes, %.0f/s; state %.1f KiB at position %lld\n",
                   name_of(result.reason), read, prompt_rate, result.tokens.size(), rate,
                   static_cast<double>(context.state.bytes()) / 1024, static_cast<long long>(context.state.position()));
  }
  return interrupt.requested() ? 130 : 0;
}

}  // namespace

void add_generate(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("generate", "continue a text");
  const auto flags = std::make_shared<GenerateFlags>();
  app::GenerateSettings& settings = flags->settings;
  app::SamplerSettings& sampler = settings.sampler;
  command->add_option("CHECKPOINT", flags->checkpoint, "checkpoint or training folder")->required();
  command->add_option("INPUT", flags->dash, "-: the prompt is standard input");
  CLI::Option* prompt = command->add_option("--prompt", flags->prompt, "the text to continue; may be empty");
  command->add_option("--prompt-file", flags->prompt_file, "file with the text to continue; -: standard input");
  command->add_option("--max-tokens", settings.max_tokens, "bytes to generate at most")->capture_default_str();
  command
      ->add_option_function<std::string>(
          "--stop", [flags](const std::string& text) { flags->settings.stop.push_back(text); },
          "end before this text (may be given several times)")
      ->trigger_on_parse();
  command->add_option("--temperature", sampler.temperature, "0: always the most likely byte")->capture_default_str();
  command->add_option("--top-k", sampler.top_k, "keep the k most likely bytes; 0: all")->capture_default_str();
  command->add_option("--top-p", sampler.top_p, "keep the fewest most likely bytes that reach probability p")
      ->capture_default_str();
  command->add_option("--min-p", sampler.min_p, "keep bytes at least this times as likely as the most likely")
      ->capture_default_str();
  command
      ->add_option("--repetition-penalty", sampler.repetition_penalty,
                   "divides positive logits of recent bytes and multiplies negative ones; 1: none")
      ->capture_default_str();
  command->add_option("--repetition-window", sampler.repetition_window, "how many recent bytes are penalised")
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "of the sampling; the same seed gives the same text")
      ->capture_default_str();
  command->add_option("--state-save", flags->state_save, "file to write the state after the last byte to");
  command->add_option("--state-load", flags->state_load, "file with a saved state to go on from");
  command->add_option("--threads", flags->threads, "0: all cores; never changes the text")->capture_default_str();
  command->add_flag("--json", flags->json, "one JSON object at the end instead of text as it comes");
  command->footer(
      R"(Without a prompt, text piped into standard input is the prompt; without any, the model begins a document.
The separator that training puts between documents is read before a prompt and ends the text when it is drawn; before the
prompt of a model that was trained on a task there is none, as in its examples.
Ctrl-C ends the text early; the state is saved all the same.

Examples:
  loglinear generate model --prompt "It was" --max-tokens 500
  loglinear generate model --prompt-file book.txt --max-tokens 0 --state-save book.state
  loglinear generate model --state-load book.state --stop "." --temperature 0
  git log | loglinear generate model)");
  command->callback([&run, flags, prompt] {
    flags->has_prompt = prompt->count() > 0;
    flags->settings.seed = static_cast<std::uint64_t>(flags->seed);
    run = [flags] { return run_generate(*flags); };
  });
}

}  // namespace loglinear::cli
