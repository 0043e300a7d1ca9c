#include "app/compare/run.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <optional>

#include <fmt/format.h>

#include "app/compare/case.hpp"
#include "app/measure.hpp"
#include "app/progress.hpp"
#include "base/cpu_features.hpp"
#include "base/error.hpp"
#include "base/machine.hpp"
#include "base/parallel.hpp"
#include "base/peak.hpp"
#include "ops/log_linear/cpu.hpp"

namespace loglinear::app::compare {
namespace {

constexpr const char* kWhere = "compare";
constexpr int kRows = 12;  // in a sample
constexpr std::int64_t kFirstProbe = 256;

void check(const Settings& s) {
  for (const std::string& name : s.mechanisms)
    if (!find_mechanism(name)) fail_usage(kWhere, "--mechanisms: there is no \"{}\", only {}", name, mechanism_names());
  for (std::size_t i = 0; i < s.mechanisms.size(); ++i)
    if (std::find(s.mechanisms.begin(), s.mechanisms.begin() + static_cast<std::ptrdiff_t>(i), s.mechanisms[i]) !=
        s.mechanisms.begin() + static_cast<std::ptrdiff_t>(i))
      fail_usage(kWhere, "--mechanisms: {} is given twice", s.mechanisms[i]);
  if (s.lengths.empty()) fail_usage(kWhere, "--lengths: need at least one");
  for (const std::int64_t T : s.lengths)
    if (T < 1 || T > std::int64_t{1} << 26) fail_usage(kWhere, "--lengths: got {}, need 1 to 2^26", T);
  if (s.heads < 1 || s.heads > 4096) fail_usage(kWhere, "--heads: got {}, need 1 to 4096", s.heads);
  if (s.width < 1 || s.width > 4096) fail_usage(kWhere, "--width: got {}, need 1 to 4096", s.width);
  if (s.threads < 0 || s.threads > 4096) fail_usage(kWhere, "--threads: got {}, need 0 to 4096", s.threads);
  if (!(s.budget > 0 && s.budget <= 1e6))
    fail_usage(kWhere, "--budget: got {}, need more than 0 and at most 1000000 seconds", s.budget);
  if (!(s.seconds >= 0 && s.seconds <= 3600))
    fail_usage(kWhere, "--seconds: got {}, need at least 0 and at most 3600", s.seconds);
  if (!(s.tolerance > 0 && s.tolerance <= 1))
    fail_usage(kWhere, "--tolerance: got {}, need more than 0 and at most 1", s.tolerance);
  if (s.seed < 0) fail_usage(kWhere, "--seed: got {}, need at least 0", s.seed);
}

// The Hadamard transform has no other width.
bool needs_power_of_two(const Mechanism* m) { return std::string_view(m->name) == "adamas"; }

// What one case gave.
struct Result {
  double ms = kAbsent;
  double peak_bytes = kAbsent, state_bytes = kAbsent;
  double error = kAbsent, gradient_error = kAbsent;
  double call_seconds = 0;   // of one call
  double other_seconds = 0;  // making inputs, checking
};

// The cases of one mechanism and one of the three times, length after length.
struct Chain {
  const Mechanism* mechanism;
  Field form;
  std::vector<std::int64_t> lengths;  // probes first
  std::map<std::int64_t, Result> results;
  bool open = true;

  std::int64_t next() const { return lengths[results.size()]; }
};

// The exponent between the last two of the results, which what grows slowly at first does not pull below one.
double local_exponent(const Chain& chain, double Result::*value, double least) {
  if (chain.results.size() < 2) return 2;
  const auto last = std::prev(chain.results.end()), before = std::prev(last);
  const double a = before->second.*value, b = last->second.*value;
  if (!(a > 0 && b > 0)) return 2;
  return std::clamp(std::log(b / a) / std::log(static_cast<double>(last->first) / static_cast<double>(before->first)),
                    least, 2.2);
}

class Run {
 public:
  Run(const Settings& settings, const Hooks& hooks) : s_(settings), hooks_(hooks) {}

  Outcome run() {
    check(s_);
    begin_ = monotonic_seconds();
    lengths_ = s_.lengths;
    std::sort(lengths_.begin(), lengths_.end());
    lengths_.erase(std::unique(lengths_.begin(), lengths_.end()), lengths_.end());
    tokens_ = {.H = s_.heads, .W = s_.width, .seed = static_cast<std::uint64_t>(s_.seed)};
    measure_machine();
    list();
    while (Chain* chain = cheapest()) {
      if (hooks_.interrupted && hooks_.interrupted()) {
        outcome_.interrupted = true;
        break;
      }
      measure(*chain);
    }
    for (const Mechanism* m : chosen_) summarize(*m);
    set_crossovers();
    for (const std::int64_t T : lengths_)
      for (const Mechanism* m : chosen_) add_row(*m, T);
    outcome_.seconds = spent();
    return std::move(outcome_);
  }

 private:
  double spent() const { return monotonic_seconds() - begin_; }

  void started(const std::string& what) const {
    if (hooks_.started) hooks_.started(what, spent());
  }

  void measure_machine() {
    started("limits of the machine");
    Machine& m = outcome_.machine;
    m.cpu = cpu_model(), m.cores = processors(), m.threads = thread_count(s_.threads);
    m.isa = instruction_set_name(log_linear::cpu::instruction_set());
    m.memory_bytes = static_cast<double>(memory_bytes());
    m.peak_gflops = 1e-9 * measure_fma_peak(m.threads, DType::f32, std::clamp(s_.budget / 100, 0.01, 0.3));
  }

  void list() {
    for (const Mechanism& m : mechanisms())
      if (s_.mechanisms.empty() || std::find(s_.mechanisms.begin(), s_.mechanisms.end(), m.name) != s_.mechanisms.end())
        chosen_.push_back(&m);
    if (!std::has_single_bit(static_cast<std::uint64_t>(s_.width))) {
      if (!s_.mechanisms.empty() && std::erase_if(chosen_, needs_power_of_two) > 0)
        fail_usage(kWhere, "--width: adamas needs a power of two, got {}", s_.width);
      std::erase_if(chosen_, needs_power_of_two);
    }
    // Lengths that nobody asked for tell what the next one that somebody did ask for will take: two short calls that
    // were disturbed would not foretell one a thousand times as long.
    std::vector<std::int64_t> all;
    std::int64_t probe = kFirstProbe;
    for (const std::int64_t T : lengths_) {
      for (; 2 * probe <= T; probe *= 4) all.push_back(probe);
      all.push_back(T);
      probe = 4 * T;
    }
    for (const Mechanism* m : chosen_) {
      if (m->forward) chains_.push_back({m, kForward, all, {}});
      if (m->train) chains_.push_back({m, kForwardBackward, all, {}});
      if (m->stream) chains_.push_back({m, kStep, all, {}});
    }
    seconds_ = s_.seconds > 0
                   ? s_.seconds
                   : std::clamp(s_.budget / (3 * static_cast<double>(chains_.size() * all.size())), 1e-3, 1.0);
  }

  // What the next case of a chain will take, about.
  double predicted_seconds(const Chain& chain) const {
    if (chain.results.empty()) return 0;
    const auto& [T, last] = *chain.results.rbegin();
    const double ratio = static_cast<double>(chain.next()) / static_cast<double>(T);
    const double call = last.call_seconds * std::pow(ratio, local_exponent(chain, &Result::call_seconds, 1));
    // One call to check, and those of time_calls.
    return last.other_seconds * ratio + call + std::max({seconds_, call, std::min(3 * call, 3 * seconds_ + call)});
  }
  double predicted_bytes(const Chain& chain) const {
    const std::int64_t T = chain.next();
    // Growing arrays are copied; a case has arrays of its own besides (level scales).
    const double tokens =
        1.5 * tokens_.bytes(T) - tokens_.bytes(static_cast<std::int64_t>(tokens_.g.size()) / s_.heads);
    if (chain.results.empty()) return tokens;
    const auto& [before, last] = *chain.results.rbegin();
    const double ratio = static_cast<double>(T) / static_cast<double>(before);
    const double peak = std::isfinite(last.peak_bytes) ? last.peak_bytes : 0;
    return tokens + peak * std::pow(ratio, local_exponent(chain, &Result::peak_bytes, 1));
  }

  Chain* cheapest() {
    Chain* best = nullptr;
    // Among those that take little, the shorter first: one measurement that was disturbed is to put nothing off for
    // long.
    const double little = s_.budget / 100;
    double least = 0;
    for (Chain& chain : chains_) {
      chain.open = chain.open && chain.results.size() < chain.lengths.size();
      if (!chain.open) continue;
      const double seconds = predicted_seconds(chain);
      const double available = static_cast<double>(available_memory_bytes());
      if (seconds > s_.budget - spent() || (available > 0 && predicted_bytes(chain) > 0.8 * available))
        chain.open = false;
      else if (const double cost = std::max(seconds, little);
               !best || cost < least || (cost == least && chain.next() < best->next()))
        best = &chain, least = cost;
    }
    return best;
  }

  void measure(Chain& chain) {
    const std::int64_t T = chain.next();
    constexpr const char* kForms[] = {"forward", "forward + backward", "steps"};
    started(fmt::format("{} {} T={}", chain.mechanism->name, kForms[chain.form], T));
    const double begin = monotonic_seconds();
    try {
      tokens_.reserve(T);
      const std::unique_ptr<Case> c = make_case(*chain.mechanism, tokens_, T, s_.threads);
      Result result;
      double calls = 0;
      switch (chain.form) {
        case kForward:
          calls = measure_forward(*c, result);
          break;
        case kForwardBackward:
          calls = measure_forward_backward(*c, result);
          break;
        default:
          calls = measure_steps(*c, result);
      }
      result.other_seconds = std::max(0.0, monotonic_seconds() - begin - calls);
      chain.results[T] = result;
    } catch (const WrongResult& wrong) {
      ++outcome_.wrong;
      const auto [at, fresh] = wrong_from_.emplace(chain.mechanism, T);
      if (!fresh) at->second = std::min(at->second, T);
      for (Chain& other : chains_)
        if (other.mechanism == chain.mechanism) other.open = false;
      if (hooks_.wrong) hooks_.wrong(wrong.what());
    } catch (const std::bad_alloc&) {
      chain.open = false;
    }
  }

  // Each gives the seconds that went into calls, which are predicted apart from the rest.
  template <class Call>
  double time(const Call& call, Result& result) const {
    const Timing timing = time_calls(seconds_, call);
    result.ms = timing.median;
    result.call_seconds = 1e-3 * timing.median;
    return 1e-3 * timing.mean * timing.runs + result.call_seconds;
  }

  double measure_forward(Case& c, Result& result) const {
    result.peak_bytes = measure_peak_bytes([&] { c.forward(); });
    result.error = check_rows(c, 0, false, kRows, s_.tolerance);
    return time([&] { c.forward(); }, result);
  }

  double measure_forward_backward(Case& c, Result& result) {
    double& checked = gradient_errors_.try_emplace(&c.mechanism, kAbsent).first->second;
    double checking = 0;  // once, so it says nothing about the next length
    if (std::isnan(checked)) {
      const double begin = monotonic_seconds();
      const std::unique_ptr<Case> small =
          make_case(c.mechanism, tokens_, std::min(c.T, c.gradient_tokens()), s_.threads);
      small->forward_backward();
      checked = check_gradients(*small, s_.tolerance);
      checking = monotonic_seconds() - begin;
    }
    result.peak_bytes = measure_peak_bytes([&] { c.forward_backward(); });
    result.error = check_rows(c, 0, false, kRows, s_.tolerance);
    result.gradient_error = std::max(checked, check_query_gradient(c, kRows, s_.tolerance));
    return checking + time([&] { c.forward_backward(); }, result);
  }

  double measure_steps(Case& c, Result& result) const {
    const std::int64_t first = c.T - std::min(c.T, c.steps());
    c.make_out();
    c.begin_steps(first);
    double spent = 0;
    const auto steps = [&] {
      const double begin = monotonic_seconds();
      for (std::int64_t t = first; t < c.T; ++t) c.step(t);
      const double elapsed = monotonic_seconds() - begin;
      spent += elapsed;
      return 1e3 * elapsed / static_cast<double>(c.T - first);
    };
    if (!c.mechanism.forward) {
      result.peak_bytes = 4.0 * static_cast<double>(c.H * c.W) + measure_peak_bytes([&] { c.step(first); });
      c.begin_steps(first);
    }
    for (std::int64_t t = first; t < c.T; ++t) c.step(t);
    result.state_bytes = c.state_bytes();
    result.error = check_rows(c, first, true, kRows, s_.tolerance);
    std::vector<double> ms;
    while (ms.empty() || (spent < seconds_ && ms.size() < 1000)) {
      c.begin_steps(first);
      ms.push_back(steps());
    }
    const Timing timing = timing_of(std::move(ms));
    result.ms = timing.median;
    result.call_seconds = 1e-3 * timing.median * static_cast<double>(c.T - first);
    return spent + result.call_seconds;
  }

  const Result* result_of(const Mechanism& m, Field form, std::int64_t T) const {
    for (const Chain& chain : chains_)
      if (chain.mechanism == &m && chain.form == form)
        if (const auto found = chain.results.find(T); found != chain.results.end()) return &found->second;
    return nullptr;
  }

  // Which times give a field, and which part of what they gave it is.
  struct Source {
    Field form;
    double Result::*value;
  };
  static Source source(const Mechanism& m, Field field) {
    switch (field) {
      case kForward:
      case kForwardBackward:
      case kStep:
        return {field, &Result::ms};
      case kPeak:
        return {m.forward ? kForward : kStep, &Result::peak_bytes};
      case kForwardBackwardPeak:
        return {kForwardBackward, &Result::peak_bytes};
      default:
        return {kStep, &Result::state_bytes};
    }
  }
  static bool can(const Mechanism& m, Field form) {
    return form == kForward ? m.forward : form == kForwardBackward ? m.train : m.stream;
  }

  void summarize(const Mechanism& m) {
    Summary summary;
    summary.mechanism = &m;
    for (int field = 0; field < kFields; ++field)
      summary.fits[static_cast<std::size_t>(field)] = fit(samples(m, static_cast<Field>(field)));
    outcome_.summaries.push_back(summary);
  }
  // Probes included: they were measured as well.
  std::vector<Sample> samples(const Mechanism& m, Field field) const {
    const Source from = source(m, field);
    std::vector<Sample> all;
    for (const Chain& chain : chains_)
      if (chain.mechanism == &m && chain.form == from.form)
        for (const auto& [T, result] : chain.results) all.push_back({static_cast<double>(T), result.*from.value});
    return all;
  }
  void set_crossovers() {
    const Mechanism& flash = *find_mechanism("flash");
    for (Summary& summary : outcome_.summaries)
      for (std::size_t n = 0; n < summary.crossovers.size(); ++n)
        if (summary.mechanism != &flash)
          summary.crossovers[n] =
              crossover(samples(*summary.mechanism, static_cast<Field>(n)), samples(flash, static_cast<Field>(n)));
  }

  void add_row(const Mechanism& m, std::int64_t T) {
    if (const auto wrong = wrong_from_.find(&m); wrong != wrong_from_.end() && T >= wrong->second) return;
    Row row;
    row.mechanism = &m, row.T = T;
    const auto summary = std::find_if(outcome_.summaries.begin(), outcome_.summaries.end(),
                                      [&](const Summary& s) { return s.mechanism == &m; });
    for (int field = 0; field < kFields; ++field) {
      const Source from = source(m, static_cast<Field>(field));
      Number& number = row.numbers[static_cast<std::size_t>(field)];
      if (!can(m, from.form)) continue;
      if (const Result* result = result_of(m, from.form, T)) {
        number.value = result->*from.value;
        continue;
      }
      number.extrapolated = true;
      // What is kept is known without measuring.
      number.value = field == kState
                         ? m.state_bytes({T, s_.heads, s_.width})
                         : extrapolated(samples(m, static_cast<Field>(field)),
                                        summary->fits[static_cast<std::size_t>(field)], static_cast<double>(T));
    }
    if (const Result* result = result_of(m, kForward, T)) row.error = result->error;
    if (const Result* result = result_of(m, kForwardBackward, T)) row.gradient_error = result->gradient_error;
    if (const Result* result = result_of(m, kStep, T)) row.step_error = result->error;
    if (!m.forward) row.error = row.step_error;
    outcome_.rows.push_back(row);
  }

  const Settings& s_;
  const Hooks& hooks_;
  Tokens tokens_{};
  std::vector<std::int64_t> lengths_;
  std::vector<const Mechanism*> chosen_;
  std::vector<Chain> chains_;
  std::map<const Mechanism*, double> gradient_errors_;
  std::map<const Mechanism*, std::int64_t> wrong_from_;  // the shortest length with a wrong result
  double begin_ = 0;
  double seconds_ = 0.1;  // of timing, a case
  Outcome outcome_;
};

}  // namespace

bool Row::extrapolated() const {
  return std::any_of(numbers.begin(), numbers.end(), [](const Number& n) { return n.extrapolated; });
}

double Summary::time_exponent() const { return fits[mechanism->forward ? kForward : kStep].exponent; }

Outcome run(const Settings& settings, const Hooks& hooks) {
  keep_one_heap();
  apply_instruction_set_from_environment();
  return Run(settings, hooks).run();
}

}  // namespace loglinear::app::compare
