#include "app/bench/run.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include <fmt/format.h>

#include "app/bench/model.hpp"
#include "app/bench/op.hpp"
#include "base/cpu_features.hpp"
#include "base/error.hpp"
#include "base/machine.hpp"
#include "base/parallel.hpp"
#include "base/peak.hpp"
#include "ops/log_linear/cpu.hpp"

namespace loglinear::app::bench {
namespace {

constexpr const char* kWhere = "bench";
constexpr std::int64_t kLastPosition = std::int64_t{1} << 40;

void check(const Settings& s) {
  const auto one_of = [](const char* flag, const std::string& value, std::initializer_list<const char*> known) {
    for (const char* name : known)
      if (value.empty() || value == name) return;
    std::string names;
    for (const char* name : known) names += std::string(names.empty() ? "" : ", ") + name;
    fail_usage(kWhere, "{}: got \"{}\", need one of {}", flag, value, names);
  };
  one_of("what to measure", s.what, {"op", "step", "train"});
  one_of("--form", s.form, {"forward", "backward"});
  for (const std::string& model : s.models) one_of("--model", model, {"demo", "130M"});
  if (s.threads < 0 || s.threads > 4096) fail_usage(kWhere, "--threads: got {}, need 0 to 4096", s.threads);
  if (s.chunk != 0 && (s.chunk < 1 || s.chunk > 256 || !std::has_single_bit(static_cast<unsigned>(s.chunk))))
    fail_usage(kWhere, "--chunk: got {}, need 0 or a power of two up to 256", s.chunk);
  if (!(s.seconds > 0 && s.seconds <= 3600))
    fail_usage(kWhere, "--seconds: got {}, need more than 0 and at most 3600", s.seconds);
  if (!(s.tolerance > 0 && s.tolerance <= 1))
    fail_usage(kWhere, "--tolerance: got {}, need more than 0 and at most 1", s.tolerance);
  if (s.seed < 0) fail_usage(kWhere, "--seed: got {}, need at least 0", s.seed);
  for (const std::int64_t p : s.positions)
    if (p < kPositionUnit || p > kLastPosition || p % kPositionUnit != 0)
      fail_usage(kWhere, "--position: got {}, need a multiple of {} up to 2^40", p, kPositionUnit);
}

std::vector<Bandwidth> measure_memory(int threads, double seconds) {
  const std::vector<CacheLevel> levels = cache_levels();
  std::vector<Bandwidth> memory;
  const auto add = [&](std::string name, double capacity, std::int64_t bytes_per_thread) {
    memory.push_back(
        {std::move(name), capacity, measure_read_bandwidth(threads, bytes_per_thread, seconds), bytes_per_thread});
  };
  std::int64_t inner = 0;  // bytes a thread has in the level before
  for (const CacheLevel& level : levels) {
    const std::int64_t sharing = std::min(threads, level.shared_by), mine = level.bytes / sharing;
    // Half of it, for neighbours want room too, and of a large one less, as states are small; but well beyond what the
    // level before could serve.
    const std::int64_t most = inner > 0 ? std::min(mine / 2, 8 * inner) : mine / 2;
    if (mine > inner)
      add(fmt::format("L{}", level.level), static_cast<double>(mine) * threads,
          std::max(most, std::min(2 * inner, mine)));
    inner = std::max(inner, mine);
  }
  // Far more than the caches hold. A gigabyte says it all.
  const std::int64_t total = std::clamp<std::int64_t>(4 * inner * threads, 64 << 20, 1 << 30);
  add("DRAM", std::numeric_limits<double>::infinity(), total / threads);
  return memory;
}

Peaks measure_peaks(const Settings& s) {
  Peaks peaks;
  peaks.threads = thread_count(s.threads);
  peaks.isa = instruction_set_name(log_linear::cpu::instruction_set());
  peaks.dtype = s.dtype;
  const double seconds = std::clamp(s.seconds, 0.02, 0.3);
  peaks.fma = measure_fma_peak(peaks.threads, s.dtype, seconds);
  if (bf16_unit() != Bf16Unit::none) peaks.bf16 = PeakMeter::bf16_products(peaks.threads).measure(seconds);
  peaks.memory = measure_memory(peaks.threads, seconds);
  return peaks;
}

std::vector<Rule> rules_of(const Settings& s) {
  if (s.rule) return {*s.rule};
  return {std::begin(kRules), std::end(kRules)};
}

// What is measured when nobody says what: the shapes of the models of the paper, and wide heads.
std::vector<Shape> op_shapes(const Settings& s, Rule rule) {
  if (!s.shapes.empty()) return s.shapes;
  std::vector<Shape> shapes;
  for (const std::int64_t T : {4096, 16384, 65536}) shapes.push_back({.T = T});
  if (has_beta(rule))
    shapes.push_back({.T = 4096, .H = 6, .K = 192, .V = 384});
  else
    shapes.push_back({.T = 16384, .G = 16});
  return shapes;
}

// Long backward passes are left to those who ask for them.
bool too_long_by_default(const Settings& s, Rule rule, const Shape& shape, bool backward) {
  return s.shapes.empty() && shape.T > 16384 && (backward || has_beta(rule));
}

std::string name_of_case(const OpCase& c, const char* form) {
  const Shape& s = c.shape;
  return fmt::format("{} {} {} B={} {}={} H={} G={} K={} V={} L={}", name_of(c.rule), form, name_of(c.dtype), s.B,
                     c.position < 0 ? "T" : "position", c.position < 0 ? s.T : c.position, s.H, s.G, s.K, s.V, s.L);
}

class Run {
 public:
  Run(const Settings& settings, const Hooks& hooks) : s_(settings), hooks_(hooks) {}

  Outcome run() {
    check(s_);
    // Everything that can be known to be wrong is known before minutes of measuring.
    const bool all = s_.what.empty();
    if (all || s_.what == "op") list_op();
    if (all || s_.what == "step") list_step();
    started("limits of the machine");
    peaks_ = measure_peaks(s_);
    if (hooks_.peaks) hooks_.peaks(peaks_);
    const std::int64_t resident = resident_bytes();
    for (Item& item : items_) {
      started(name_of_case(item.c, item.form));
      item.c.resident_before = resident;
      try {
        item.c.peaks = &peaks_;
        add(item.measure(item.c));
      } catch (const WrongResult& wrong) {
        ++outcome_.wrong;
        if (hooks_.wrong) hooks_.wrong(name_of_case(item.c, item.form) + ": the result is wrong: " + wrong.what());
      }
    }
    if (all || s_.what == "train") {
      // Models train in float32.
      const double model_peak = s_.dtype == DType::f64 ? measure_fma_peak(peaks_.threads) : peaks_.fma;
      for (ModelCase& c : model_cases()) {
        if (!s_.models.empty() && std::find(s_.models.begin(), s_.models.end(), c.name) == s_.models.end()) continue;
        started("model " + c.name);
        c.threads = s_.threads;
        c.seconds = s_.seconds;
        c.seed = static_cast<std::uint64_t>(s_.seed);
        for (Row& row : measure_model(c)) {
          row.peak_gflops = 1e-9 * model_peak;
          if (std::isfinite(row.gflops)) row.percent = 100 * row.gflops / row.peak_gflops;
          add(std::move(row));
        }
      }
    }
    return std::move(outcome_);
  }

 private:
  struct Item {
    OpCase c;
    const char* form;
    Row (*measure)(const OpCase&);
  };

  OpCase base(Rule rule) const {
    OpCase c;
    c.rule = rule;
    c.dtype = s_.dtype;
    c.chunk = s_.chunk, c.threads = s_.threads;
    c.seed = static_cast<std::uint64_t>(s_.seed);
    c.seconds = s_.seconds, c.tolerance = s_.tolerance;
    return c;
  }
  void list(const OpCase& c, const char* form, Row (*measure)(const OpCase&), double bytes) {
    if (const double memory = static_cast<double>(memory_bytes()); memory > 0 && bytes > 0.9 * memory)
      fail(kWhere, "{} needs {:.1f} GiB, this machine has {:.1f}", name_of_case(c, form), bytes / (1 << 30),
           memory / (1 << 30));
    items_.push_back({c, form, measure});
  }
  void list_op() {
    for (const Rule rule : rules_of(s_))
      for (const Shape& shape : op_shapes(s_, rule)) {
        OpCase c = base(rule);
        c.shape = resolved(shape, rule);
        if (s_.form != "backward" && !too_long_by_default(s_, rule, shape, false))
          list(c, "forward", measure_forward, forward_bytes(c));
        if (s_.form != "forward" && !too_long_by_default(s_, rule, shape, true))
          list(c, "backward", measure_backward, backward_bytes(c));
      }
  }
  void list_step() {
    std::vector<std::int64_t> positions = s_.positions;
    if (positions.empty()) positions = {1 << 10, 15 << 10, (1 << 20) - 256};
    for (const Rule rule : rules_of(s_))
      for (Shape shape : s_.shapes.empty() ? std::vector<Shape>{Shape{}} : s_.shapes)
        for (const std::int64_t position : positions) {
          OpCase c = base(rule);
          c.position = position;
          shape.T = position + kPositionUnit;  // as many levels as there are then
          c.shape = resolved(shape, rule);
          list(c, "step", measure_step, step_bytes(c));
        }
  }

  void started(const std::string& what) const {
    if (hooks_.started) hooks_.started(what);
  }
  void add(Row row) {
    if (!std::isfinite(row.peak_gflops)) row.peak_gflops = 1e-9 * peaks_.fma;
    if (peaks_.bf16 > 0) row.peak_bf16_gflops = 1e-9 * peaks_.bf16;
    if (hooks_.row) hooks_.row(row);
    outcome_.rows.push_back(std::move(row));
  }

  const Settings& s_;
  const Hooks& hooks_;
  std::vector<Item> items_;
  Peaks peaks_;
  Outcome outcome_;
};

}  // namespace

Outcome run(const Settings& settings, const Hooks& hooks) {
  // The variable would be read at the first call of the operator, and undo what is asked for here.
  apply_instruction_set_from_environment();
  if (!settings.isa.empty()) force_instruction_set(settings.isa);
  return Run(settings, hooks).run();
}

}  // namespace loglinear::app::bench
