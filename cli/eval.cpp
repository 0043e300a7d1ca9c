#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "app/checkpoint.hpp"
#include "app/evaluate.hpp"
#include "app/progress.hpp"
#include "base/error.hpp"
#include "commands.hpp"
#include "io/text.hpp"

namespace loglinear::cli {
namespace {

constexpr const char* kNotes =
    R"(Every byte is scored once; the byte 0 between documents is context and not scored. Position: bytes of the same
document (or of the same sequence, with --seq-len) before the one that is scored.
--json prints one object: bytes, documents, sequences, bits, bits_per_byte, perplexity (of a byte, 2^bits_per_byte), cut
(whether --max-bytes left text out), positions: a list of {first, last, bytes, bits_per_byte}.

Examples:
  loglinear eval model --data held_out.txt
  loglinear eval model/step-0001000 --data folder --seq-len 1024 --json)";

struct Flags {
  std::string checkpoint;
  std::vector<std::string> data;
  std::int64_t seq_len = 0, max_bytes = 0;
  int threads = 0;
  bool json = false, as_log_linear = false;
};

int run_eval(const Flags& flags) {
  if (flags.seq_len < 0) fail_usage("eval", "--seq-len: got {}, need at least 0", flags.seq_len);
  if (flags.max_bytes < 0) fail_usage("eval", "--max-bytes: got {}, need at least 0", flags.max_bytes);
  if (flags.threads < 0 || flags.threads > 4096) fail_usage("eval", "--threads: got {}, need 0 to 4096", flags.threads);
  const io::Corpus corpus = io::read_text(std::vector<io::Path>(flags.data.begin(), flags.data.end()),
                                          static_cast<std::uint64_t>(flags.max_bytes));
  const auto warn = [](const std::string& text) { std::fprintf(stderr, "[eval] warning: %s\n", text.c_str()); };
  if (corpus.binary_files > 0) warn(fmt::format("{} binary files (with zero bytes) are left out", corpus.binary_files));
  const app::Text text(corpus.documents);
  const auto model = app::load_model<float>(flags.checkpoint, {.as_log_linear = flags.as_log_linear, .warn = warn});
  model->threads = flags.threads;
  if (const std::string future = app::future_warning(model->config()); !future.empty())
    warn(fmt::format("{}; documents longer than {} bytes are scored in windows of that many", future,
                     app::EvaluationOptions{}.batch_tokens));

  app::Console progress(
      [](std::string_view line) { std::fwrite(line.data(), 1, line.size(), stderr), std::fflush(stderr); },
      isatty(STDERR_FILENO) != 0);
  const double begin = app::monotonic_seconds();
  app::EvaluationOptions options;
  options.seq_len = flags.seq_len;
  options.progress = [&](std::int64_t done) {
    const double seconds = app::monotonic_seconds() - begin, part = static_cast<double>(done);
    const double all = static_cast<double>(text.bytes());
    progress.live(fmt::format("{:3.0f} %  {} bytes/s  eta {}", 100 * part / all, app::format_count(part / seconds),
                              app::format_duration(seconds * (all - part) / part)));
  };
  const app::Evaluation result = app::evaluate(*model, text, options);
  progress.clear();

  if (flags.json) {
    nlohmann::ordered_json positions = nlohmann::ordered_json::array();
    for (const app::EvaluationBin& bin : result.bins)
      positions.push_back({{"first", bin.first},
                           {"last", bin.last},
                           {"bytes", bin.bytes},
                           {"bits_per_byte", bin.bits / static_cast<double>(bin.bytes)}});
    const nlohmann::ordered_json object{{"bytes", result.bytes},
                                        {"documents", text.documents()},
                                        {"sequences", result.sequences},
                                        {"bits", result.bits},
                                        {"bits_per_byte", result.bits_per_byte()},
                                        {"perplexity", result.perplexity()},
                                        {"cut", corpus.cut},
                                        {"positions", positions}};
    print(object.dump() + "\n");
    return 0;
  }
  std::string out =
      fmt::format("{} bytes in {} documents{}\nbits per byte  {:.4f}\nperplexity     {:.4f}\n\n{:>24}  {:>10}  {}\n",
                  result.bytes, text.documents(), corpus.cut ? " (cut by --max-bytes)" : "", result.bits_per_byte(),
                  result.perplexity(), "position", "bytes", "bits/byte");
  for (const app::EvaluationBin& bin : result.bins)
    out +=
        fmt::format("{:>24}  {:>10}  {:9.4f}\n",
                    bin.first == bin.last ? fmt::format("{}", bin.first) : fmt::format("{} - {}", bin.first, bin.last),
                    bin.bytes, bin.bits / static_cast<double>(bin.bytes));
  print(out);
  return 0;
}

}  // namespace

void add_eval(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("eval", "bits per byte of a model on text, whole and by position");
  const auto flags = std::make_shared<Flags>();
  command->add_option("CHECKPOINT", flags->checkpoint, "checkpoint or training folder")->required();
  command->add_option("--data", flags->data, "text files, folders, .jsonl files with a \"text\" field")
      ->type_name("PATH")
      ->required();
  command
      ->add_option("--seq-len", flags->seq_len, "cut documents into sequences of this many bytes; 0: whole documents")
      ->capture_default_str();
  command->add_option("--max-bytes", flags->max_bytes, "read this much text at most; 0: all of it")
      ->capture_default_str();
  command->add_flag("--as-log-linear", flags->as_log_linear,
                    "read a mamba2 or gated_deltanet model as the log-linear one with every level scale 1");
  command->add_option("--threads", flags->threads, "0: all cores; never changes the result")->capture_default_str();
  command->add_flag("--json", flags->json, "one JSON object instead of a table");
  command->footer(kNotes);
  command->callback([&run, flags] { run = [flags] { return run_eval(*flags); }; });
}

}  // namespace loglinear::cli
