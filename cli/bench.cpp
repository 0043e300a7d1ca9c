#include <unistd.h>

#include <cstdio>
#include <memory>

#include <fmt/format.h>

#include "app/bench/report.hpp"
#include "app/bench/run.hpp"
#include "app/progress.hpp"
#include "base/error.hpp"
#include "commands.hpp"

namespace loglinear::cli {
namespace {

namespace bench = app::bench;

constexpr const char* kBenchDetails =
    R"(op: the operator, forward and backward. step: single decoding steps from a position on. train: a training step and
generation of whole models. Without one of them: all three, about three minutes.
Each case of op and step is first compared with the definition in float64; a case whose result is further from it than
docs/numerics.md allows gets no row, and the exit code is 1. Times are medians. GFLOP/s count useful work only (docs/algorithm.md,
section 7), GB/s of a step the bytes of its live states, and "of peak" is measured against what the same run found the
machine to be capable of.
--json prints an array of rows with the keys op rule form dtype isa threads B T G H K V L ms gflops peak_gflops percent
state_bytes and more; null where there is no number.

Examples:
  loglinear bench
  loglinear bench op --rule scalar_decay --shape T=16384,H=16,G=1,K=128,V=64 --form forward
  loglinear bench step --position 15360 --shape H=16,K=128,V=128,B=8 --rule gated_delta
  loglinear bench op --isa avx2 --json > before.json && loglinear bench op --isa avx2 --against before.json)";

struct BenchFlags {
  bench::Settings settings;
  std::string rule, dtype = "f32", against;
  std::vector<std::string> shapes;
  bool json = false;
};

int run_bench(const BenchFlags& flags) {
  bench::Settings settings = flags.settings;
  if (!flags.rule.empty()) settings.rule = rule_from_name(flags.rule);
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
    if (flags.dtype == name_of(dtype)) settings.dtype = dtype;
  for (const std::string& shape : flags.shapes) settings.shapes.push_back(bench::parse_shape(shape));
  std::vector<bench::Earlier> earlier;
  if (!flags.against.empty()) earlier = bench::read_earlier(flags.against);

  app::Console progress(
      [](std::string_view line) { std::fwrite(line.data(), 1, line.size(), stderr), std::fflush(stderr); },
      isatty(STDERR_FILENO) != 0);
  const auto note = [&](const std::string& line) {
    progress.clear();
    std::fprintf(stderr, "%s\n", line.c_str());
  };
  std::unique_ptr<bench::Row> previous;
  bench::Hooks hooks;
  hooks.started = [&](std::string_view what) { progress.live(fmt::format("measuring {}", what)); };
  hooks.wrong = [&](const std::string& what) { note("[bench] " + what); };
  hooks.peaks = [&](const bench::Peaks& peaks) {
    progress.clear();
    if (!flags.json) print(bench::header(peaks));
  };
  std::vector<std::string> fresh;  // rows that the earlier run did not have
  hooks.row = [&](bench::Row& row) {
    if (!flags.against.empty() && !bench::set_change(row, earlier)) fresh.push_back(bench::earlier_of(row).name);
    progress.clear();
    if (!flags.json) print(bench::table_lines(previous.get(), row));
    previous = std::make_unique<bench::Row>(row);
  };
  const bench::Outcome outcome = bench::run(settings, hooks);
  progress.clear();
  if (flags.json) print(bench::to_json(outcome.rows).dump(1) + "\n");
  if (!flags.against.empty()) {
    std::string only;
    for (const std::string& name : fresh) only += "only here: " + name + "\n";
    for (const std::string& name : bench::only_earlier(outcome.rows, earlier))
      only += "only in " + flags.against + ": " + name + "\n";
    if (flags.json)
      std::fwrite(only.data(), 1, only.size(), stderr);
    else if (!only.empty())
      print("\n" + only);
  }
  return outcome.wrong > 0 ? 1 : 0;
}

}  // namespace

void add_bench(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("bench", "time the operator and the models beside what the machine can do");
  const auto flags = std::make_shared<BenchFlags>();
  bench::Settings& settings = flags->settings;
  std::vector<std::string> rules;
  for (const Rule rule : kRules) rules.push_back(name_of(rule));
  command->add_option("WHAT", settings.what, "op, step or train; default: all of them")
      ->check(CLI::IsMember({"op", "step", "train"}));
  command->add_option("--rule", flags->rule, "of op and step; default: every rule")->check(CLI::IsMember(rules));
  command
      ->add_option("--shape", flags->shapes,
                   "sizes of a case of op and step; G defaults to 1 (gated_delta: H), V to 64 (gated_delta: 128), L to "
                   "all levels; "
                   "L=1: plain linear attention; steps do not read T; may be given several times")
      ->type_name("T=4096,H=16,G=1,K=128,V=64,L=13,B=1")
      ->allow_extra_args(false);
  command->add_option("--form", settings.form, "of op; default: both")->check(CLI::IsMember({"forward", "backward"}));
  command
      ->add_option("--position", settings.positions,
                   "of step: tokens before it, a multiple of 256; may be given several times; default: 1024, 15360 and "
                   "1048320 with 1, 4 and 12 live states")
      ->allow_extra_args(false);
  command->add_option("--model", settings.models, "of train: demo or 130M; default: both")
      ->check(CLI::IsMember({"demo", "130M"}))
      ->allow_extra_args(false);
  command->add_option("--dtype", flags->dtype, "of q, k, v and the results of op and step; models train in f32")
      ->check(CLI::IsMember({"f32", "bf16", "f64"}))
      ->capture_default_str();
  command->add_option("--threads", settings.threads, "0: all cores")->capture_default_str();
  command->add_option("--isa", settings.isa,
                      "amx, avx512_bf16, avx512, avx2, neon or baseline; default: the best that this CPU has");
  command->add_option("--chunk", settings.chunk, "tokens in a chunk, a power of two up to 256; 0: chosen")
      ->capture_default_str();
  command->add_option("--seconds", settings.seconds, "of timing a case, after it was checked")->capture_default_str();
  command
      ->add_option("--tolerance", settings.tolerance, "part of the bounds of docs/numerics.md that is allowed, up to 1")
      ->capture_default_str();
  command->add_option("--seed", settings.seed, "of the random numbers")->capture_default_str();
  command->add_flag("--json", flags->json, "only an array of rows on standard output");
  command->add_option("--against", flags->against, "an earlier --json output: show what changed, in percent")
      ->type_name("FILE");
  command->footer(kBenchDetails);
  command->callback([&run, flags] { run = [flags] { return run_bench(*flags); }; });
}

}  // namespace loglinear::cli
