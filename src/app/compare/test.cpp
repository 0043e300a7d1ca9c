#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>

#include "app/compare/case.hpp"
#include "app/compare/report.hpp"
#include "app/compare/run.hpp"
#include "loglinear/error.hpp"
#include "nn/families.hpp"

namespace loglinear::app::compare {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// ---- the list -------------------------------------------------------------------------------------------------------

TEST(List, NamesAreUniqueAndFound) {
  std::set<std::string> names;
  for (const Mechanism& m : mechanisms()) {
    EXPECT_TRUE(names.insert(m.name).second) << m.name;
    EXPECT_EQ(find_mechanism(m.name), &m);
    EXPECT_NE(mechanism_names().find(m.name), std::string::npos);
    for (const char* text : {m.title, m.computes, m.time, m.memory, m.state, m.source})
      EXPECT_STRNE(text, "") << m.name;
    EXPECT_TRUE(m.forward || m.stream) << m.name;
    EXPECT_TRUE(m.forward || !m.train) << m.name;
    EXPECT_EQ(m.stream, m.state_bytes({1024, 4, 64}) > 0) << m.name;
  }
  EXPECT_EQ(find_mechanism("softmax"), nullptr);
}

TEST(List, TheDocumentSaysWhatTheListSays) {
  std::ifstream file(LOGLINEAR_SOURCE_DIR "/docs/mechanisms.md");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  EXPECT_NE(text.find(mechanisms_markdown()), std::string::npos) << "docs/mechanisms.md needs this table:\n"
                                                                 << mechanisms_markdown();
}

// Models and the comparison call a mechanism the same; what is no mixer has a reason.
TEST(List, EveryMixerOfModelsIsAMechanism) {
  std::set<std::string> mixers;
  for (const nn::Family& family : nn::kFamilies) {
    mixers.insert(family.name);
    const Mechanism* m = find_mechanism(family.name);
    ASSERT_NE(m, nullptr) << family.name;
    EXPECT_TRUE(m->train) << family.name;
    EXPECT_EQ(m->causal, family.causal) << family.name;
  }
  for (const Mechanism& m : mechanisms()) {
    // Adamas has no backward, and quasi-linear attention no order of tokens.
    const std::string name = m.name;
    EXPECT_EQ(mixers.contains(name), name != "adamas" && name != "qla") << name;
  }
}

TEST(List, AsJson) {
  const auto list = nlohmann::json::parse(mechanisms_json().dump());
  ASSERT_EQ(list.size(), mechanisms().size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    EXPECT_EQ(list[i]["name"], mechanisms()[i].name);
    EXPECT_EQ(list[i]["causal"], mechanisms()[i].causal);
  }
}

// ---- fits and crossovers --------------------------------------------------------------------------------------------

TEST(Fits, APowerIsFound) {
  std::vector<Sample> samples;
  for (const double T : {100.0, 200.0, 400.0, 800.0}) samples.push_back({T, 3 * std::pow(T, 1.7)});
  const Fit f = fit(samples);
  EXPECT_EQ(f.samples, 4);
  EXPECT_NEAR(f.exponent, 1.7, 1e-12);
  EXPECT_NEAR(extrapolated(samples, f, 6400) / (3 * std::pow(6400, 1.7)), 1, 1e-12);
}

TEST(Fits, OnlyTheLongestLengthsCount) {
  // Linear at first, quadratic from 1024 on: what is below an eighth of the longest is not looked at.
  std::vector<Sample> samples;
  for (double T = 64; T <= 16384; T *= 2) samples.push_back({T, T < 1024 ? T : T * T / 1024});
  EXPECT_EQ(fit(samples).samples, 4);
  EXPECT_NEAR(fit(samples).exponent, 2, 1e-12);
  // But three lengths, however far apart.
  const std::vector<Sample> apart = {{1, 1}, {100, 100}, {10000, 10000}, {1000000, 100000000}};
  EXPECT_EQ(fit(apart).samples, 3);
}

TEST(Fits, WithoutTwoNumbersThereIsNone) {
  for (const std::vector<Sample>& samples : std::vector<std::vector<Sample>>{
           {}, {{5, 7}}, {{5, 7}, {10, kNan}}, {{5, 7}, {10, 0}}, {{5, 7}, {10, -1}}, {{5, 7}, {5, 9}}}) {
    EXPECT_TRUE(std::isnan(fit(samples).exponent));
    EXPECT_TRUE(std::isnan(extrapolated(samples, fit(samples), 100)));
  }
  EXPECT_NEAR(fit(std::vector<Sample>{{2, 4}, {3, kNan}, {8, 16}}).exponent, 1, 1e-12);
}

TEST(Fits, ADisturbedSampleDoesNotRunAway) {
  const std::vector<Sample> up = {{256, 1}, {1024, 1e6}}, down = {{256, 1e6}, {1024, 1}};
  EXPECT_DOUBLE_EQ(extrapolated(up, fit(up), 2048), 1e6 * std::pow(2, 2.2));
  EXPECT_DOUBLE_EQ(extrapolated(down, fit(down), 1 << 20), 1);
}

TEST(Crossovers, BetweenTheLengthsOnLogAxes) {
  // T^2 meets 1000 T at T = 1000, and both are straight lines on log axes.
  std::vector<Sample> linear, square;
  for (double T = 128; T <= 4096; T *= 2) linear.push_back({T, 1000 * T}), square.push_back({T, T * T});
  const Crossover c = crossover(linear, square);
  EXPECT_EQ(c.kind, Crossover::Kind::at);
  EXPECT_NEAR(c.T, 1000, 1e-6);
  EXPECT_EQ(crossover(square, linear).kind, Crossover::Kind::never);
  const std::vector<Sample> fast = {{128, 1}, {256, 1}};
  EXPECT_EQ(crossover(fast, square).kind, Crossover::Kind::below);
  EXPECT_EQ(crossover(fast, square).T, 128);
}

TEST(Crossovers, TheLastOneCounts) {
  const std::vector<Sample> flash = {{1, 10}, {2, 10}, {4, 10}, {8, 10}}, other = {{1, 5}, {2, 20}, {4, 5}, {8, 5}};
  const Crossover c = crossover(other, flash);
  EXPECT_EQ(c.kind, Crossover::Kind::at);
  EXPECT_NEAR(c.T, 2 * std::sqrt(2.0), 1e-9);
}

TEST(Crossovers, OnlyWhereBothWereMeasured) {
  const std::vector<Sample> a = {{1, 1}, {2, 1}}, b = {{4, 1}, {8, 1}}, none = {{1, kNan}, {2, kNan}};
  EXPECT_EQ(crossover(a, b).kind, Crossover::Kind::none);
  EXPECT_EQ(crossover(a, none).kind, Crossover::Kind::none);
  EXPECT_EQ(crossover({}, {}).kind, Crossover::Kind::none);
}

// ---- cases ----------------------------------------------------------------------------------------------------------

class Cases : public testing::TestWithParam<const Mechanism*> {
 protected:
  std::unique_ptr<Case> at(std::int64_t T) {
    tokens_.reserve(T);
    return make_case(*GetParam(), tokens_, T, 2);
  }
  Tokens tokens_{.H = 3, .W = 16, .seed = 7};
};

// Calls, gradients and steps are what the definition says, whatever the length.
TEST_P(Cases, HoldAgainstTheDefinition) {
  const Mechanism& m = *GetParam();
  for (const std::int64_t T : {1, 2, 17, 64, 65, 130, 259}) {
    const std::unique_ptr<Case> c = at(T);
    if (m.forward) {
      c->forward();
      EXPECT_LE(check_rows(*c, 0, false, 40, 1), c->forward_bound());
    }
    if (m.train && T <= 130) {
      c->forget();
      c->forward_backward();
      check_rows(*c, 0, false, 40, 1);
      EXPECT_LE(check_gradients(*c, 1), c->gradient_bound());
      EXPECT_LE(check_query_gradient(*c, 40, 1), c->gradient_bound());
    }
    if (m.stream) {
      c->forget();
      c->make_out();
      const std::int64_t first = T - std::min<std::int64_t>(T, 64);
      for (int again = 0; again < 2; ++again) {
        c->begin_steps(first);
        for (std::int64_t t = first; t < T; ++t) c->step(t);
        EXPECT_LE(check_rows(*c, first, true, 40, 1), c->forward_bound());
      }
    }
  }
}

// What the list says about the state is what there is.
TEST_P(Cases, KeepTheStateThatTheListSays) {
  const Mechanism& m = *GetParam();
  if (!m.stream) GTEST_SKIP() << "does not stream";
  for (const std::int64_t T : {1, 2, 64, 100, 256, 300}) {
    const std::unique_ptr<Case> c = at(T);
    c->make_out();
    c->begin_steps(0);
    for (std::int64_t t = 0; t < T; ++t) c->step(t);
    EXPECT_EQ(c->state_bytes(), m.state_bytes({T, 3, 16})) << T;
  }
}

TEST_P(Cases, AreRefusedWhenTheyAreWrong) {
  const Mechanism& m = *GetParam();
  const std::unique_ptr<Case> c = at(60);
  const auto spoilt = [](std::vector<float>& x, float factor, const auto& check) {
    const std::vector<float> good = x;
    for (float& value : x) value *= factor;
    EXPECT_THROW(check(), WrongResult);
    x = good;
  };
  if (m.forward) {
    c->forward();
    EXPECT_NO_THROW(check_rows(*c, 0, false, 12, 1));
    for (const float factor : {1.0001f, 0.0f, std::numeric_limits<float>::quiet_NaN()})
      spoilt(c->out, factor, [&] { check_rows(*c, 0, false, 12, 1); });
    EXPECT_THROW(check_rows(*c, 0, false, 12, 1e-9), WrongResult);
  }
  if (m.stream) {
    c->make_out();
    c->begin_steps(0);
    for (std::int64_t t = 0; t < 60; ++t) c->step(t);
    for (const float factor : {1.0001f, std::numeric_limits<float>::quiet_NaN()})
      spoilt(c->out, factor, [&] { check_rows(*c, 0, true, 12, 1); });
  }
  if (!m.train) return;
  c->forward_backward();
  for (Input& input : c->inputs) {
    EXPECT_NO_THROW(check_gradients(*c, 1));
    for (const float factor : {1.01f, 0.0f, std::numeric_limits<float>::quiet_NaN()})
      spoilt(input.gradient, factor, [&] { check_gradients(*c, 1); });
  }
  if (c->query() < 0) return;
  spoilt(c->inputs[static_cast<std::size_t>(c->query())].gradient, 1.01f, [&] { check_query_gradient(*c, 12, 1); });
}

std::vector<const Mechanism*> all() {
  std::vector<const Mechanism*> list;
  for (const Mechanism& m : mechanisms()) list.push_back(&m);
  return list;
}
INSTANTIATE_TEST_SUITE_P(Each, Cases, testing::ValuesIn(all()),
                         [](const auto& test) { return std::string(test.param->name); });

TEST(Tokens, AShorterCallGetsTheFirstOfALongerOne) {
  Tokens once{.H = 2, .W = 8, .seed = 3}, grown = once;
  once.reserve(1000);
  for (const std::int64_t T : {1, 7, 999, 1000}) grown.reserve(T);
  EXPECT_EQ(once.q, grown.q);
  EXPECT_EQ(once.dout, grown.dout);
  EXPECT_EQ(once.g, grown.g);
  EXPECT_EQ(once.bytes(1000), 4.0 * static_cast<double>(5 * once.q.size() + 2 * once.g.size()));
}

// ---- runs -----------------------------------------------------------------------------------------------------------

Settings small() {
  Settings s;
  s.mechanisms = {"flash", "mamba2", "log_linear_mamba2"};
  s.lengths = {64, 128, 256};
  s.heads = 2, s.width = 16;
  s.threads = 2;
  s.budget = 100;
  s.seconds = 1e-3;
  return s;
}

std::string refusal(const std::function<void(Settings&)>& spoil) {
  Settings s = small();
  spoil(s);
  try {
    run(s);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::usage) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

TEST(Runs, SettingsThatMakeNoSense) {
  const std::string unknown = refusal([](Settings& s) { s.mechanisms = {"flash", "flsh"}; });
  EXPECT_NE(unknown.find("\"flsh\""), std::string::npos);
  EXPECT_NE(unknown.find(mechanism_names()), std::string::npos);
  refusal([](Settings& s) { s.mechanisms = {"flash", "flash"}; });
  refusal([](Settings& s) { s.lengths = {}; });
  refusal([](Settings& s) { s.lengths = {64, 0}; });
  refusal([](Settings& s) { s.lengths = {std::int64_t{1} << 40}; });
  refusal([](Settings& s) { s.heads = 0; });
  refusal([](Settings& s) { s.width = -1; });
  refusal([](Settings& s) { s.threads = -1; });
  refusal([](Settings& s) { s.budget = 0; });
  refusal([](Settings& s) { s.budget = kNan; });
  refusal([](Settings& s) { s.seconds = kNan; });
  refusal([](Settings& s) { s.tolerance = 0; });
  refusal([](Settings& s) { s.tolerance = 1.5; });
  refusal([](Settings& s) { s.seed = -1; });
  refusal([](Settings& s) { s.mechanisms = {"adamas"}, s.width = 24; });
}

TEST(Runs, AWidthThatAMechanismCannotHaveLeavesItOut) {
  Settings settings = small();
  settings.mechanisms = {};
  settings.lengths = {16}, settings.width = 12;
  std::set<std::string> names;
  for (const Row& row : run(settings).rows) names.insert(row.mechanism->name);
  EXPECT_EQ(names.size(), mechanisms().size() - 1);
  EXPECT_FALSE(names.contains("adamas"));
}

TEST(Runs, EveryMechanismAtEveryLength) {
  Settings settings = small();
  settings.lengths = {256, 64, 128, 64};  // in any order, as often as one likes
  Hooks hooks;
  hooks.wrong = [](const std::string& what) { ADD_FAILURE() << what; };
  std::vector<std::string> started;
  hooks.started = [&](const std::string& what, double) { started.push_back(what); };
  const Outcome outcome = run(settings, hooks);
  EXPECT_EQ(outcome.wrong, 0);
  EXPECT_FALSE(outcome.interrupted);
  EXPECT_EQ(started.size(), 1 + 3 * 3 * 3u);  // the machine; three times of three mechanisms at three lengths
  ASSERT_EQ(outcome.rows.size(), 9u);
  for (std::size_t i = 0; i < 9; ++i) {
    const Row& row = outcome.rows[i];
    EXPECT_EQ(row.T, 64 << i / 3);
    EXPECT_EQ(row.mechanism->name, std::vector<std::string>({"flash", "mamba2", "log_linear_mamba2"})[i % 3]);
    EXPECT_FALSE(row.extrapolated());
    for (const Field field : {kForward, kForwardBackward, kStep, kState}) EXPECT_GT(row.numbers[field].value, 0);
    for (const double error : {row.error, row.step_error, row.gradient_error}) {
      EXPECT_GT(error, 0);
      EXPECT_LT(error, 1e-4);
    }
  }
  ASSERT_EQ(outcome.summaries.size(), 3u);
  for (const Summary& s : outcome.summaries) {
    EXPECT_TRUE(std::isfinite(s.time_exponent()));
    EXPECT_EQ(s.crossovers[kForward].kind == Crossover::Kind::none, s.mechanism->name == std::string("flash"));
  }
  EXPECT_EQ(outcome.machine.threads, 2);
  EXPECT_GT(outcome.machine.peak_gflops, 0);
}

TEST(Runs, WhatDoesNotFitIsExtrapolatedAndMarked) {
  Settings settings = small();
  settings.mechanisms = {"flash"};
  // The last one takes minutes on any machine; what lies between says so, however disturbed the short ones are.
  settings.lengths = {64, 128, std::int64_t{1} << 19};
  settings.budget = 3;
  bool between = false;
  Hooks hooks;
  hooks.started = [&](const std::string& what, double) { between |= what == "flash forward T=512"; };
  const Outcome outcome = run(settings, hooks);
  EXPECT_TRUE(between);
  ASSERT_EQ(outcome.rows.size(), 3u);
  EXPECT_FALSE(outcome.rows[0].extrapolated());
  const Row& row = outcome.rows[2];
  EXPECT_TRUE(row.extrapolated());
  EXPECT_TRUE(std::isnan(row.error));
  for (const Field field : {kForward, kForwardBackward}) {
    EXPECT_TRUE(row.numbers[field].extrapolated);
    EXPECT_GT(row.numbers[field].value, 0);
  }
}

TEST(Runs, ShortProbesTellWhatALongCallTakes) {
  Settings settings = small();
  settings.mechanisms = {"flash"};
  settings.lengths = {std::int64_t{1} << 19};
  settings.budget = 3;
  const Outcome outcome = run(settings);
  ASSERT_EQ(outcome.rows.size(), 1u);
  EXPECT_TRUE(outcome.rows[0].numbers[kForward].extrapolated);
  EXPECT_TRUE(std::isfinite(outcome.rows[0].numbers[kForward].value));
}

TEST(Runs, AWrongResultHasNoRow) {
  Settings settings = small();
  settings.tolerance = 1e-9;
  std::vector<std::string> messages;
  Hooks hooks;
  hooks.wrong = [&](const std::string& what) { messages.push_back(what); };
  const Outcome outcome = run(settings, hooks);
  EXPECT_TRUE(outcome.rows.empty());
  EXPECT_EQ(outcome.wrong, 3);  // once a mechanism
  ASSERT_EQ(messages.size(), 3u);
  for (const std::string& message : messages) EXPECT_NE(message.find("the result is wrong"), std::string::npos);
}

TEST(Runs, StopWhenTheyAreAskedTo) {
  int asked = 0;
  Hooks hooks;
  hooks.interrupted = [&] { return ++asked > 2; };
  const Outcome outcome = run(small(), hooks);
  EXPECT_TRUE(outcome.interrupted);
  EXPECT_EQ(asked, 3);
}

// ---- reports --------------------------------------------------------------------------------------------------------

// Two mechanisms at two lengths, numbers made up: one that cannot do everything, one extrapolated row.
Outcome made_up() {
  const Mechanism *flash = find_mechanism("flash"), *mosa = find_mechanism("mosa");
  Outcome outcome;
  outcome.machine = {.cpu = "a \"</script><b>\" processor",
                     .isa = "avx2",
                     .cores = 2,
                     .threads = 2,
                     .memory_bytes = 1 << 30,
                     .peak_gflops = 100};
  for (const Mechanism* m : {flash, mosa}) {
    Summary s;
    s.mechanism = m;
    s.fits[kForward] = {1.5, 3};
    outcome.summaries.push_back(s);
  }
  outcome.summaries[1].crossovers[kForward] = {Crossover::Kind::at, 1234};
  for (const std::int64_t T : {1024, 2048})
    for (const Mechanism* m : {flash, mosa}) {
      Row row;
      row.mechanism = m, row.T = T;
      const bool guess = T == 2048 && m == flash;
      row.numbers[kForward] = {m == flash ? 2.0 : 3.0, guess};
      row.numbers[kPeak] = {3e6, guess};
      if (m == flash) row.numbers[kStep] = {0.5, false};
      row.error = guess ? kNan : 1e-7;
      outcome.rows.push_back(row);
    }
  return outcome;
}

TEST(Reports, JsonHasEveryKeyAndNullWhereThereIsNoNumber) {
  const auto object = nlohmann::json::parse(to_json(made_up(), {}, "loglinear compare --x 'y z'").dump());
  EXPECT_EQ(object["command"], "loglinear compare --x 'y z'");
  EXPECT_EQ(object["machine"]["threads"], 2);
  EXPECT_EQ(object["settings"]["heads"], 4);
  ASSERT_EQ(object["mechanisms"].size(), 2u);
  ASSERT_EQ(object["summary"].size(), 2u);
  EXPECT_EQ(object["summary"][1]["crossover_forward"]["text"], "1234");
  EXPECT_EQ(object["summary"][1]["crossover_forward"]["T"], 1234);
  EXPECT_TRUE(object["summary"][0]["crossover_forward"].is_null());
  ASSERT_EQ(object["rows"].size(), 4u);
  for (const auto& row : object["rows"])
    for (const char* key : {"mechanism", "T", "forward_ms", "forward_backward_ms", "step_ms", "peak_bytes",
                            "state_bytes", "time_exponent", "error", "extrapolated"})
      EXPECT_TRUE(row.contains(key)) << key;
  const auto &first = object["rows"][0], &guess = object["rows"][2], &mosa = object["rows"][3];
  EXPECT_EQ(first["forward_ms"], 2.0);
  EXPECT_EQ(first["peak_bytes"], 3000000);
  EXPECT_EQ(first["extrapolated"], false);
  EXPECT_EQ(first["time_exponent"], 1.5);
  EXPECT_EQ(guess["extrapolated"], true);
  EXPECT_EQ(guess["extrapolated_keys"], nlohmann::json({"forward_ms", "peak_bytes"}));
  EXPECT_TRUE(guess["error"].is_null());
  EXPECT_TRUE(mosa["step_ms"].is_null());
  EXPECT_EQ(mosa["extrapolated"], false);
}

// The line of a mechanism in the block of a length.
std::string line_of(const std::string& text, const std::string& block, const std::string& name) {
  const std::size_t begin = text.find("\n" + name + " ", text.find(block));
  return text.substr(begin + 1, text.find('\n', begin + 1) - begin - 1);
}

TEST(Reports, TheTableMarksTheBestAndWhatWasExtrapolated) {
  const std::string text = to_text(made_up(), {});
  EXPECT_NE(line_of(text, "T = 1024", "flash").find(" *2.000 "), std::string::npos) << text;
  EXPECT_NE(line_of(text, "T = 1024", "mosa").find(" 3.000 "), std::string::npos) << text;
  EXPECT_EQ(line_of(text, "T = 1024", "mosa").find("*3.000"), std::string::npos) << text;
  // What was not measured is no competitor.
  EXPECT_NE(line_of(text, "T = 2048", "flash").find(" ~2.000 "), std::string::npos) << text;
  EXPECT_NE(line_of(text, "T = 2048", "mosa").find(" *3.000 "), std::string::npos) << text;
  // Columns stand below their names.
  const std::size_t block = text.find("T = 1024"), names = text.find("mechanism", block);
  const std::string head = text.substr(names, text.find('\n', names) - names);
  const std::string row = line_of(text, "T = 1024", "flash");
  EXPECT_EQ(head.find("forward ms") + std::strlen("forward ms"), row.find("2.000") + std::strlen("2.000"));
  EXPECT_EQ(head.size(), row.size());
  EXPECT_EQ(text.find("nan"), std::string::npos);
}

// Every element that is opened is closed, in order.
void expect_balanced(const std::string& page) {
  const std::set<std::string> empty = {"meta", "link", "br"};
  std::vector<std::string> open;
  for (std::size_t at = 0; (at = page.find('<', at)) != std::string::npos; ++at) {
    if (page.compare(at, 2, "<!") == 0) continue;
    const std::size_t end = page.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const bool closes = page[at + 1] == '/';
    const std::size_t begin = at + 1 + closes;
    const std::string name = page.substr(begin, page.find_first_of(" >", begin) - begin);
    ASSERT_FALSE(name.empty());
    if (closes) {
      ASSERT_FALSE(open.empty()) << name;
      ASSERT_EQ(open.back(), name);
      open.pop_back();
    } else if (!empty.contains(name)) {
      open.push_back(name);
      // What is in these is no markup, up to their end.
      if (name == "script" || name == "style") at = page.find("</" + name, end) - 1;
    }
  }
  EXPECT_TRUE(open.empty());
}

TEST(Reports, ThePageHoldsTheDataAndLoadsNothing) {
  const nlohmann::ordered_json object = to_json(made_up(), {}, "loglinear compare --html '</script>'");
  const std::string page = to_html(object);
  expect_balanced(page);
  EXPECT_EQ(page.find("COMPARISON_DATA"), std::string::npos);
  const std::string opening = "<script type=\"application/json\" id=\"data\">";
  const std::size_t begin = page.find(opening) + opening.size();
  // The end of the script is that of the data, whatever the data says.
  EXPECT_EQ(nlohmann::ordered_json::parse(page.substr(begin, page.find("</script>", begin) - begin)), object);
  for (const char* word : {"src=", "@import", "url(", "https:"}) EXPECT_EQ(page.find(word), std::string::npos) << word;
}

QualityResult made_up_quality() {
  QualityResult quality;
  quality.chance = 0.01;
  quality.held_out_bytes = 1000;
  QualityRow good{.mixer = "flash", .sees_future = false, .recall = {}, .bits_per_byte = {}};
  good.recall = {.parameters = 100, .values = {0.5, 0.7}, .mean = 0.6, .spread = 0.1414, .seconds = 1};
  good.bits_per_byte = {.parameters = 100, .values = {2.5}, .mean = 2.5, .spread = kNan, .seconds = 1};
  QualityRow future = good, bad = good;
  future.mixer = "mosa", future.sees_future = true, future.recall.mean = 0.9, future.bits_per_byte.mean = 1;
  bad.mixer = "linear", bad.recall = {.parameters = 90, .values = {kNan}, .mean = kNan, .spread = kNan, .seconds = 1};
  bad.bits_per_byte.values = {};
  quality.rows = {good, future, bad};
  return quality;
}

TEST(Reports, QualityHasMeansSpreadsAndValues) {
  const auto object = nlohmann::json::parse(quality_json(made_up_quality()).dump());
  ASSERT_EQ(object["rows"].size(), 3u);
  const auto &good = object["rows"][0], &bad = object["rows"][2];
  EXPECT_EQ(good["recall_accuracy"], 0.6);
  EXPECT_EQ(good["recall_accuracy_values"], nlohmann::json({0.5, 0.7}));
  EXPECT_EQ(good["bits_per_byte"], 2.5);
  EXPECT_TRUE(good["bits_per_byte_spread"].is_null());
  EXPECT_TRUE(bad["recall_accuracy"].is_null());
  EXPECT_TRUE(bad["bits_per_byte"].is_null());
  EXPECT_EQ(object["rows"][1]["sees_future"], true);

  const std::string text = quality_text(made_up_quality());
  EXPECT_NE(line_of(text, "quality", "flash").find("*0.600 +- 0.141"), std::string::npos) << text;
  EXPECT_NE(line_of(text, "quality", "flash").find("*2.500"), std::string::npos) << text;
  // Who sees later tokens does not compete.
  EXPECT_EQ(line_of(text, "quality", "mosa").find("*"), std::string::npos) << text;
  EXPECT_NE(line_of(text, "quality", "linear").find("diverged"), std::string::npos) << text;
  EXPECT_EQ(text.find("nan"), std::string::npos) << text;
}

TEST(Reports, TheListNamesAll) {
  for (const Mechanism& m : mechanisms()) EXPECT_NE(list_text().find(m.name), std::string::npos);
}

}  // namespace
}  // namespace loglinear::app::compare
