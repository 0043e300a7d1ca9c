#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "app/checkpoint.hpp"
#include "app/evaluate.hpp"
#include "app/evaluation/report.hpp"
#include "app/progress.hpp"
#include "app/settings.hpp"
#include "base/error.hpp"
#include "commands.hpp"
#include "io/file.hpp"
#include "io/text.hpp"

namespace loglinear::cli {
namespace {

constexpr const char* kEvalNotes =
    R"(On text every byte is scored once; the byte 0 between documents is context and not scored. Position: bytes of the
same document (or of the same sequence, with --seq-len) before the one that is scored. With --stride sequences overlap, and
those bytes are scored that have been in each part of a sequence, of so many bytes, once in each: then the loss by position
does not depend on which bytes happen to stand there, but only on how much of the text before them was read.
--json prints one object: bytes (scored), documents, sequences, places (where each byte was scored; 1 without --stride), bits,
bits_per_byte, perplexity (of a byte, 2^bits_per_byte), cut (whether --max-bytes left text out), positions: a list of
{first, last, bytes, bits_per_byte}.

On a task (loglinear task --help has the list) an answer is right when each of its tokens is the most probable one. Depth:
where what is asked for stood, from 0 (beginning) to 1 (just before the question). What is not given is as in the training
of the checkpoint, when that was on the same task, but all examples of a row have its full length and number of items,
whatever --min-length, --min-items and --item-length the training mixed (its own validation has that mix, and so another
accuracy); lengths are then 1, 2, 4 and 8 times the trained one. The interval (Wilson) takes answers as independent of
each other. Examples are held out: no training sees them. Those of text_recall are new as far as --data is.
--json prints one object: task, examples, cells: a list of {length, items, depth_first, depth_last, answers, right,
accuracy}, totals: a list of {length, items, answers, right, accuracy, accuracy_low, accuracy_high, loss (nats of a
scored token), chance}; accuracy is null where nothing was asked for.

Examples:
  loglinear eval model --data held_out.txt
  loglinear eval model/step-0001000 --data folder --seq-len 1024 --json
  loglinear eval model --data book.txt --bins 4 --html book.html
  loglinear eval model --data book.txt --seq-len 4096 --stride 512 --max-bytes 500000
  loglinear eval model --task mqar --length 256,512,1024 --items 4,16,64
  loglinear eval model --task passkey --data haystack.txt --examples 100 --html passkey.html)";

constexpr std::int64_t kMostScored = std::int64_t{1} << 40;

struct EvalFlags {
  std::string checkpoint, html;
  std::vector<std::string> data;
  std::int64_t seq_len = 0, stride = 0, max_bytes = 0, bins = 1;
  std::int64_t threads = 0;
  std::int64_t trained_levels = 0;
  std::string level_policy;
  bool json = false, as_log_linear = false;

  app::TaskSettings task;  // as given; only options that were given count
  std::vector<std::int64_t> lengths, items;
  std::int64_t examples = 256, seed = 0;
  std::vector<std::pair<std::string, CLI::Option*>> text_options, task_options;
};

void warn(const std::string& text) { std::fprintf(stderr, "[eval] warning: %s\n", text.c_str()); }

app::Console progress_console() {
  return app::Console(
      [](std::string_view line) { std::fwrite(line.data(), 1, line.size(), stderr), std::fflush(stderr); },
      isatty(STDERR_FILENO) != 0);
}

io::Corpus read_text(const EvalFlags& flags) {
  io::Corpus corpus = io::read_text(std::vector<io::Path>(flags.data.begin(), flags.data.end()),
                                    static_cast<std::uint64_t>(flags.max_bytes));
  if (corpus.binary_files > 0) warn(fmt::format("{} binary files (with zero bytes) are left out", corpus.binary_files));
  return corpus;
}

std::unique_ptr<nn::Model<float>> load(const EvalFlags& flags) {
  auto model = app::load_model<float>(flags.checkpoint, {.as_log_linear = flags.as_log_linear,
                                                         .level_policy = flags.level_policy,
                                                         .trained_levels = flags.trained_levels,
                                                         .warn = warn});
  model->threads = static_cast<int>(flags.threads);
  return model;
}

void write_page(const EvalFlags& flags, const nlohmann::ordered_json& object, const nn::Model<float>& model) {
  if (flags.html.empty()) return;
  const std::optional<app::TrainSettings> training = app::training_settings(flags.checkpoint);
  const app::ModelNote note{flags.checkpoint, model.config().family, model.parameter_count(),
                            training ? training->seq_len : 0};
  io::write_file_atomic(flags.html, app::to_html(object, note, command_line()));
}

int eval_text(const EvalFlags& flags) {
  const io::Corpus corpus = read_text(flags);
  const app::Text text(corpus.documents);
  const auto model = load(flags);
  if (const std::string future = app::future_warning(model->config()); !future.empty())
    warn(fmt::format("{}; documents longer than {} bytes are scored in windows of that many", future,
                     app::EvaluationOptions{}.batch_tokens));

  app::Console progress = progress_console();
  const double begin = app::monotonic_seconds();
  app::EvaluationOptions options;
  options.seq_len = flags.seq_len;
  options.bins_per_doubling = flags.bins;
  options.stride = flags.stride;
  options.progress = [&](std::int64_t done_bytes, std::int64_t all_bytes) {
    const double seconds = app::monotonic_seconds() - begin;
    const double part = static_cast<double>(done_bytes), all = static_cast<double>(all_bytes);
    progress.live(fmt::format("{:3.0f} %  {} bytes/s  eta {}", 100 * part / all, app::format_count(part / seconds),
                              app::format_duration(seconds * (all - part) / part)));
  };
  const app::Evaluation result = app::evaluate(*model, text, options);
  progress.clear();

  const nlohmann::ordered_json object = app::to_json(result, corpus.cut);
  print(flags.json ? object.dump() + "\n" : app::to_text(result, corpus.cut));
  write_page(flags, object, *model);
  return 0;
}

int eval_task(const EvalFlags& flags) {
  const app::TaskInfo* info = app::find_task(flags.task.name);
  if (!info) fail_usage("eval", "--task: there is no {}, only {}", flags.task.name, fmt::join(app::task_names(), ", "));
  if (!info->bytes && !flags.data.empty())
    fail_usage("eval", "--data: the examples of {} are not made from text", info->name);
  const std::optional<app::TrainSettings> training = app::training_settings(flags.checkpoint);
  // As trained where nothing else is said; a row has examples of one length and one number of items.
  app::TaskSettings task{.name = flags.task.name};
  const bool as_trained = training && training->task.name == task.name;
  if (as_trained) task = app::scored_task_of(*training);
  nlohmann::json given;
  app::for_each_task_setting(flags.task, [&](const std::string& name, const auto& value, const auto&...) {
    for (const auto& option : flags.task_options)
      if (option.first == name && option.second->count() > 0) given[name] = value;
  });
  app::for_each_task_setting(task, [&](const std::string& name, auto& value, double low, double high, const char*) {
    if (!given.contains(name)) return;
    value = given.at(name);
    if (!(value >= low && value <= high)) fail_usage("eval", "--{}: got {}, need {} to {}", name, value, low, high);
  });
  app::TaskEvaluationOptions options;
  const auto distinct = [](const std::vector<std::int64_t>& values) {  // in their order
    std::vector<std::int64_t> once;
    for (const std::int64_t value : values)
      if (std::ranges::find(once, value) == once.end()) once.push_back(value);
    return once;
  };
  options.lengths = distinct(flags.lengths);
  if (options.lengths.empty() && as_trained)
    for (const std::int64_t times : {1, 2, 4, 8}) options.lengths.push_back(times * training->seq_len);
  if (options.lengths.empty()) options.lengths = {0};
  options.items = distinct(flags.items);
  if (options.items.empty()) options.items = {task.items};
  options.score.examples = flags.examples;
  options.score.seed += static_cast<std::uint64_t>(flags.seed);

  std::optional<app::Text> text;
  if (!flags.data.empty()) text.emplace(read_text(flags).documents);
  if (as_trained && !training->data.empty() && !text)
    warn("this model was trained on examples made from text; these are made without, --data gives one");
  const auto model = load(flags);
  if (const std::string future = app::future_warning(model->config()); !future.empty()) warn(future);

  app::Console progress = progress_console();
  options.progress = [&](const app::TaskSettings& row, std::int64_t index, std::int64_t rows, std::int64_t done) {
    progress.live(
        fmt::format("{} of {}: length {}, {} of {} examples", index + 1, rows, row.length, done, flags.examples));
  };
  const app::TaskEvaluation result = app::evaluate_task(*model, task, text ? &*text : nullptr, options);
  progress.clear();

  const nlohmann::ordered_json object = app::to_json(result);
  print(flags.json ? object.dump() + "\n" : app::to_text(result));
  write_page(flags, object, *model);
  return 0;
}

int run_eval(const EvalFlags& flags) {
  const auto need = [](const char* flag, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value < low || value > high) fail_usage("eval", "{}: got {}, need {} to {}", flag, value, low, high);
  };
  constexpr std::int64_t kMost = std::int64_t{1} << 50;
  need("--seq-len", flags.seq_len, 0, kMost);
  need("--stride", flags.stride, 0, kMost);
  need("--max-bytes", flags.max_bytes, 0, kMost);
  need("--bins", flags.bins, 1, 1 << 16);
  need("--threads", flags.threads, 0, 4096);
  need("--examples", flags.examples, 1, kMostScored);
  need("--seed", flags.seed, 0, std::int64_t{1} << 53);
  for (const std::int64_t length : flags.lengths) need("--length", length, 1, 1'000'000'000);
  for (const std::int64_t items : flags.items) need("--items", items, 1, 10'000'000);
  const bool task = !flags.task.name.empty();
  if (!task && flags.data.empty()) fail_usage("eval", "--data is missing: text to score (or give a --task)");
  if (flags.max_bytes > 0 && flags.data.empty()) fail_usage("eval", "--max-bytes: of --data, which is missing");
  for (const auto& [name, option] : task ? flags.text_options : flags.task_options)
    if (option->count() > 0)
      fail_usage("eval", "--{}: {}", name, task ? "of text, not of a --task" : "only a --task has it");
  if (flags.stride > 0 && flags.seq_len == 0) fail_usage("eval", "--stride: needs a --seq-len");
  if (flags.stride > 0 && flags.seq_len % flags.stride != 0)
    fail_usage("eval", "--stride: got {}, need what divides --seq-len, {}", flags.stride, flags.seq_len);
  // Known before minutes of scoring, not after them.
  if (!flags.html.empty()) io::AtomicFile(flags.html).write("");
  return task ? eval_task(flags) : eval_text(flags);
}

}  // namespace

void add_eval(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("eval", "bits per byte of a model on text, or its accuracy on a task");
  const auto flags = std::make_shared<EvalFlags>();
  command->add_option("CHECKPOINT", flags->checkpoint, "checkpoint or training folder")->required();
  command
      ->add_option(
          "--data", flags->data,
          "text files, folders, .jsonl files with a \"text\" field; of a task: what its examples are made from")
      ->type_name("PATH");
  command->add_option("--max-bytes", flags->max_bytes, "read this much text at most; 0: all of it")
      ->capture_default_str();
  command->add_option(
      "--level-policy", flags->level_policy,
      "read levels in this way: share, stretch, routed or content; default: the model's (share and stretch differ "
      "beyond the trained levels only, any other change is one of trained levels too)");
  command->add_option("--trained-levels", flags->trained_levels, "levels that have scales of their own; 0: the model's")
      ->capture_default_str();
  command->add_flag("--as-log-linear", flags->as_log_linear,
                    "read a mamba2 or gated_deltanet model as the log-linear one with every level scale 1");
  command->add_option("--threads", flags->threads, "0: all cores; never changes the result")->capture_default_str();
  command->add_flag("--json", flags->json, "one JSON object instead of a table");
  command->add_option("--html", flags->html, "write a page with charts to FILE, complete in itself")->type_name("FILE");

  const auto add = [&](auto& options, const std::string& name, auto& value, const std::string& help) {
    CLI::Option* option = command->add_option("--" + name, value, help);
    option->group(&options == &flags->text_options ? "Text" : "Task");
    options.emplace_back(name, option);
    return option;
  };
  add(flags->text_options, "seq-len", flags->seq_len,
      "cut documents into sequences of this many bytes; 0: whole documents")
      ->capture_default_str();
  add(flags->text_options, "stride", flags->stride,
      "with --seq-len: begin a sequence every so many bytes, so that each position has the same bytes; 0: do not")
      ->capture_default_str();
  add(flags->text_options, "bins", flags->bins, "loss by position: cut 2-3, 4-7, 8-15, ... into so many parts each")
      ->capture_default_str();
  command
      ->add_option("--task", flags->task.name,
                   fmt::format("score answers of this task: {}", fmt::join(app::task_names(), ", ")))
      ->group("Task");
  add(flags->task_options, "length", flags->lengths, "tokens of an example; several: a row each")
      ->delimiter(',')
      ->type_name("T,T,...");
  add(flags->task_options, "items", flags->items,
      "pairs of mqar and mqar_scattered, symbols to copy, keys of a needle task; several: a block each")
      ->delimiter(',')
      ->type_name("N,N,...");
  app::for_each_task_setting(flags->task, [&](const std::string& name, auto& value, double, double, const char* help) {
    if (name != "length" && name != "items" && name != "min-length" && name != "min-items" && name != "item-length" &&
        name != "item-power")
      add(flags->task_options, name, value, help);
  });
  add(flags->task_options, "examples", flags->examples, "of a row")->capture_default_str();
  add(flags->task_options, "seed", flags->seed, "of the examples")->capture_default_str();
  command->footer(kEvalNotes);
  command->callback([&run, flags] { run = [flags] { return run_eval(*flags); }; });
}

}  // namespace loglinear::cli
