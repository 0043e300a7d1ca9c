#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "app/task.hpp"
#include "base/error.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "io/safetensors.hpp"
#include "io/text.hpp"
#include "io/utf8.hpp"

namespace loglinear::cli {
namespace {

constexpr const char* kTaskDetails =
    R"(An example is a function of the settings, --data, --seed and its index alone. docs/tasks.md has one of each task.

JSON lines: {task, index, seed, length, tokens, targets, answers}. Position i of tokens predicts targets[i], -1 where
nothing is scored; each answer has begin and end (positions whose targets it is), evidence (where it stood before), depth
(0 begin, 1 just before the question) and tokens. Tasks of bytes also have text and answer.
packed: one safetensors file with tokens and targets (N) I32, cu_seqlens (n + 1) I64 where examples begin and end, answers
(m, 3) I64: begin, end, evidence as positions of tokens; the settings are its metadata.

Examples:
  loglinear task --list
  loglinear task needle_multikey --show --depth 0.5
  loglinear task mqar --count 1000 --seed 1 > recall.jsonl
  loglinear task passkey --length 16384 --data book.txt --count 100 --out passkey.jsonl
  loglinear task copy --count 0 | head -n 5
  loglinear task mqar --count 4096 --format packed --out recall.safetensors)";

constexpr std::int64_t kMostExamples = std::int64_t{1} << 32;
constexpr std::int64_t kMostSeed = std::int64_t{1} << 53;
constexpr std::int64_t kMostPacked = std::int64_t{1} << 30;  // tokens that are held in memory
constexpr std::size_t kBuffer = 1 << 16;

struct TaskFlags {
  app::TaskSettings settings;
  std::int64_t count = 1, index = 0;
  std::optional<std::int64_t> seed;  // default: 1, of held-out examples 0 as in eval
  std::vector<std::string> data;
  std::string out, format = "jsonl";
  bool list = false, show = false, held_out = false;
};

// "length 256, vocab 8192, items 16, alpha 0.01"
std::string settings_text(const app::TaskInfo& info, const app::TaskSettings& settings) {
  std::string text;
  app::for_each_task_setting(settings, [&](const std::string& name, const auto& value, const auto&...) {
    if (name == "depth" ? value < 0 : value == 0) return;
    if (name == "min-length" && settings.min_length == settings.length) return;
    if (name == "min-items" && settings.min_items == settings.items) return;
    if (name == "vocab" && info.bytes) return;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, value);
  });
  return text;
}

std::string list_text() {
  std::string text;
  for (const app::TaskInfo& info : app::task_list()) {
    app::TaskSettings settings;
    settings.name = info.name;
    text += fmt::format("{:<19}{}{}\n{:<19}{}\n", info.name, info.help, info.needs_text ? " (needs --data)" : "", "",
                        settings_text(info, app::resolved(settings)));
  }
  return text;
}

struct Example {
  app::Batch batch;
  std::vector<app::Answer> answers;

  void make(const app::Task& task, std::uint64_t seed, std::int64_t index) {
    batch.clear();
    answers.clear();
    task.add_example(seed, static_cast<std::uint64_t>(index), batch, &answers);
  }
  std::span<const std::int32_t> tokens(const app::Answer& answer) const {
    return std::span(batch.targets).subspan(answer.begin, answer.end - answer.begin);
  }
};

std::string bytes_of(std::span<const std::int32_t> tokens) { return {tokens.begin(), tokens.end()}; }

std::string json_line(const app::Task& task, std::uint64_t seed, std::int64_t index, const Example& example) {
  nlohmann::ordered_json line{{"task", task.info().name},
                              {"index", index},
                              {"seed", seed},
                              {"length", example.batch.tokens.size()},
                              {"tokens", example.batch.tokens},
                              {"targets", example.batch.targets}};
  nlohmann::ordered_json answers = nlohmann::ordered_json::array();
  std::string asked;
  for (const app::Answer& answer : example.answers) {
    const auto tokens = example.tokens(answer);
    answers.push_back({{"begin", answer.begin},
                       {"end", answer.end},
                       {"evidence", answer.evidence},
                       {"depth", answer.depth()},
                       {"tokens", std::vector<std::int32_t>(tokens.begin(), tokens.end())}});
    if (task.info().bytes) asked += (asked.empty() ? "" : " ") + bytes_of(tokens);
  }
  line["answers"] = std::move(answers);
  if (task.info().bytes) {
    line["text"] = bytes_of(example.batch.tokens);
    line["answer"] = asked;
  }
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

// For people: evidence in [ ], what has to follow in { }.
std::string shown(const app::Task& task, std::int64_t index, const Example& example) {
  const bool bytes = task.info().bytes;
  const auto length = static_cast<std::int64_t>(example.batch.tokens.size());
  std::vector<std::string> before(example.batch.tokens.size() + 1), after(before);
  for (const app::Answer& answer : example.answers) {
    before[answer.evidence] += "[";
    after[answer.evidence + (bytes ? answer.end - answer.begin - 1 : 0)] += "]";
  }
  std::string text =
      fmt::format("{}, example {}: {} {}, [evidence] and {{what has to follow}}\n{}\n\n", task.info().name, index,
                  length, bytes ? "bytes" : "tokens", settings_text(task.info(), task.settings()));
  std::size_t next = 0;     // answer
  std::int64_t until = -1;  // the bytes up to here have been shown as an answer
  for (std::int64_t i = 0; i < length; ++i) {
    const std::int32_t token = example.batch.tokens[i], target = example.batch.targets[i];
    if (!bytes) {
      text += fmt::format("{}{}{}{}", i > 0 ? " " : "", before[i], token, after[i]);
      if (target >= 0) text += fmt::format(" {{{}}}", target);
      continue;
    }
    if (i > until) text += before[i] + static_cast<char>(token) + after[i];
    if (next < example.answers.size() && i == example.answers[next].begin) {
      text += "{" + bytes_of(example.tokens(example.answers[next])) + "}";
      until = example.answers[next++].end;
    }
  }
  text += "\n\n";
  constexpr std::size_t kMostListed = 20;
  for (std::size_t i = 0; i < std::min(example.answers.size(), kMostListed); ++i) {
    const app::Answer& answer = example.answers[i];
    const auto tokens = example.tokens(answer);
    text += fmt::format("{} at position {}, evidence at {}, depth {:.2f}\n",
                        bytes ? "\"" + bytes_of(tokens) + "\"" : fmt::format("{}", fmt::join(tokens, " ")),
                        answer.begin, answer.evidence, answer.depth());
  }
  if (example.answers.size() > kMostListed)
    text += fmt::format("... and {} more\n", example.answers.size() - kMostListed);
  text += fmt::format("guessing would be right with probability {:.3g}\n", task.chance());
  return io::replace_malformed(text);
}

void write_packed(const TaskFlags& flags, const app::Task& task, const app::Text* text, std::uint64_t seed,
                  const Example& all) {
  std::vector<std::int64_t> answers;
  for (const app::Answer& answer : all.answers)
    answers.insert(answers.end(), {answer.begin, answer.end, answer.evidence});
  const auto size = [](const auto& values) { return static_cast<std::int64_t>(values.size()); };
  const io::TensorView tensors[] = {
      io::view_of<std::int32_t>("tokens", {size(all.batch.tokens)}, all.batch.tokens),
      io::view_of<std::int32_t>("targets", {size(all.batch.targets)}, all.batch.targets),
      io::view_of<std::int64_t>("cu_seqlens", {size(all.batch.cu_seqlens)}, all.batch.cu_seqlens),
      io::view_of<std::int64_t>("answers", {size(all.answers), 3}, answers)};
  std::map<std::string, std::string> metadata{
      {"format", "loglinear.task"},           {"task", task.info().name},
      {"seed", std::to_string(seed)},         {"index", std::to_string(flags.index)},
      {"count", std::to_string(flags.count)}, {"chance", fmt::format("{}", task.chance())}};
  app::for_each_task_setting(task.settings(), [&](const std::string& name, const auto& value, const auto&...) {
    metadata[name] = fmt::format("{}", value);
  });
  if (text) {
    metadata["text_bytes"] = std::to_string(text->bytes());
    metadata["text_xxh3"] = fmt::format("{:016x}", text->hash());
  }
  io::write_safetensors(flags.out, tensors, metadata);
}

int run_task(const TaskFlags& flags) {
  if (flags.list) {
    print(list_text());
    return 0;
  }
  const auto need = [](const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (!(value >= low && value <= high)) fail_usage("task", "--{}: got {}, need {} to {}", name, value, low, high);
  };
  if (flags.settings.name.empty()) fail_usage("task", "NAME: which task? --list shows them");
  const bool packed = flags.format == "packed";
  need("index", flags.index, 0, kMostExamples - 1);
  need("count", flags.count, 0, kMostExamples - flags.index);
  const std::int64_t chosen = flags.seed.value_or(flags.held_out ? 0 : 1);
  need("seed", chosen, 0, kMostSeed - 1);
  if (flags.show && (packed || !flags.out.empty())) fail_usage("task", "--show: prints, without --format or --out");
  if (packed && flags.out.empty()) fail_usage("task", "--format packed: needs --out FILE");
  if (!flags.out.empty() && flags.count == 0) fail_usage("task", "--count: got 0, without end, but --out needs one");

  std::optional<app::Text> text;
  const app::TaskSettings settings = app::resolved(flags.settings);  // before a text is read for nothing
  if (!flags.data.empty()) {
    if (!app::find_task(settings.name)->bytes) fail_usage("task", "--data: {} is not made from a text", settings.name);
    text.emplace(io::read_text(std::vector<io::Path>(flags.data.begin(), flags.data.end())).documents);
  }
  const app::Task task(settings, text ? &*text : nullptr);
  if (packed && flags.count > kMostPacked / settings.length)
    fail_usage("task", "--count: got {}, but a packed file holds at most {} tokens", flags.count, kMostPacked);

  const std::uint64_t seed = (flags.held_out ? app::kHeldOutSeed : 0) + static_cast<std::uint64_t>(chosen);
  const std::int64_t end = flags.count == 0 ? kMostExamples : flags.index + flags.count;
  Example example;
  if (flags.out.empty()) {
    std::string buffer;
    for (std::int64_t index = flags.index; index < end; ++index) {
      example.make(task, seed, index);
      if (flags.show && index > flags.index) buffer += "\n";
      buffer += flags.show ? shown(task, index, example) : json_line(task, seed, index, example);
      if (buffer.size() >= kBuffer || index + 1 == end) print(buffer), buffer.clear();
    }
    return 0;
  }

  const Interrupt interrupt;
  const auto interrupted = [] {
    std::fprintf(stderr, "[task] interrupted: no file is written\n");
    return 130;
  };
  io::AtomicFile file(flags.out);  // known to be writable before the work
  for (std::int64_t index = flags.index; index < end; ++index) {
    if (interrupt.requested()) return interrupted();
    if (packed) {
      task.add_example(seed, static_cast<std::uint64_t>(index), example.batch, &example.answers);
    } else {
      example.make(task, seed, index);
      file.write(json_line(task, seed, index, example));
    }
  }
  if (packed) {
    write_packed(flags, task, text ? &*text : nullptr, seed, example);
  } else {
    file.commit();
  }
  return 0;
}

}  // namespace

void add_task(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("task", "recall, passkey, needle and copy tasks as data, by a seed");
  const auto flags = std::make_shared<TaskFlags>();
  command->add_option("NAME", flags->settings.name, "which task, see --list");
  command->add_flag("--list", flags->list, "the tasks, what they are and their defaults");
  command->add_flag("--show", flags->show, "print examples for people to read");
  command->add_option("--count", flags->count, "examples; 0: without end")->capture_default_str();
  command->add_option("--seed", flags->seed, "of the examples; default: 1, with --held-out 0");
  command->add_option("--index", flags->index, "of the first example")->capture_default_str();
  command->add_flag("--held-out", flags->held_out,
                    "the examples that eval --task --seed scores, which no training has");
  command->add_option("--data", flags->data, "text files or folders: of text_recall, and the haystack of needles")
      ->type_name("PATH");
  command->add_option("--out", flags->out, "write to FILE, whole or not at all; default: standard output")
      ->type_name("FILE");
  command->add_option("--format", flags->format, "of the file: JSON lines, or packed: safetensors")
      ->check(CLI::IsMember({"jsonl", "packed"}))
      ->capture_default_str();
  app::for_each_task_setting(flags->settings,
                             [&](const std::string& name, auto& value, double, double, const char* help) {
                               command->add_option("--" + name, value, help)->group("The task");
                             });
  command->footer(kTaskDetails);
  command->callback([&run, flags] { run = [flags] { return run_task(*flags); }; });
}

}  // namespace loglinear::cli
