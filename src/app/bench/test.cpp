#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>

#include "app/bench/model.hpp"
#include "app/bench/op.hpp"
#include "app/bench/report.hpp"
#include "app/bench/run.hpp"
#include "base/cpu_features.hpp"
#include "base/op_timer.hpp"
#include "loglinear/error.hpp"
#include "loglinear/log_linear.hpp"

namespace loglinear::app::bench {
namespace {

std::string refusal(const std::function<void()>& f, Error::Kind kind) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

// ---- shapes and counting --------------------------------------------------------------------------------------------

TEST(Shapes, AreReadInAnyOrder) {
  const Shape s = parse_shape("V=24,T=100,H=6,G=3,K=8,B=2,L=5");
  EXPECT_EQ(s.B, 2);
  EXPECT_EQ(s.T, 100);
  EXPECT_EQ(s.H, 6);
  EXPECT_EQ(s.G, 3);
  EXPECT_EQ(s.K, 8);
  EXPECT_EQ(s.V, 24);
  EXPECT_EQ(s.L, 5);
  EXPECT_EQ(parse_shape("T=7").T, 7);
}

TEST(Shapes, WhatIsLeftOutIsChosenForTheRule) {
  const Shape scalar = resolved(parse_shape("T=4096"), Rule::scalar_decay);
  EXPECT_EQ(scalar.G, 1);
  EXPECT_EQ(scalar.V, 64);
  EXPECT_EQ(scalar.L, 14);  // bit_width(4096) + 1
  const Shape delta = resolved(parse_shape("T=4095,H=4"), Rule::gated_delta);
  EXPECT_EQ(delta.G, 4);
  EXPECT_EQ(delta.V, 128);
  EXPECT_EQ(delta.L, 13);
  EXPECT_EQ(resolved(parse_shape("L=1"), Rule::gated_delta).L, 1);
}

TEST(Shapes, OthersAreRefused) {
  for (const char* text : {"", "T", "T=", "T=1,", "X=3", "t=3", "T=3;H=2", "T=1.5", "T=1e3", "T=-1", "T=0", "T=3,T=4",
                           "T=99999999999999999999", "T= 3", "L=65", "H=4097", "T=3,,H=2"})
    EXPECT_NE(refusal([&] { parse_shape(text); }, Error::Kind::usage).find("[bench --shape] "), std::string::npos)
        << text;
  EXPECT_NE(refusal([] { resolved(parse_shape("H=6,G=4"), Rule::scalar_decay); }, Error::Kind::usage)
                .find("G = 4 groups, which do not divide H = 6"),
            std::string::npos);
}

TEST(UsefulWork, IsThatOfTheFormula) {
  // Two chunks of 64: the first writes a state, the second reads it.
  Shape s = resolved(parse_shape("T=128,H=2,G=1,K=128,V=64"), Rule::scalar_decay);
  const double inside = 64 * 64 * (128 / 2 + 64) / 2, state = 64 * 128 * 64;
  EXPECT_DOUBLE_EQ(useful_work(Rule::scalar_decay, s), 2 * (2 * inside + 2 * state));
  s.B = 3;
  EXPECT_DOUBLE_EQ(useful_work(Rule::scalar_decay, s), 3 * 2 * (2 * inside + 2 * state));
  // One chunk that is not full does nothing but triangles; a second one of 6 tokens reads as many rows.
  s = resolved(parse_shape("T=10,H=1,G=1,K=128,V=64"), Rule::scalar_decay);
  EXPECT_DOUBLE_EQ(useful_work(Rule::scalar_decay, s), 10 * 10 * (128 + 64) / 2);
  s.T = 70;
  EXPECT_DOUBLE_EQ(useful_work(Rule::scalar_decay, s), (64 * 64 + 6 * 6) * (128 + 64) / 2 + (64 + 6) * 128 * 64);
  // Two chunks of gated delta erase nothing: before the first there is no state, after the second nobody wants one.
  s = resolved(parse_shape("T=128,H=2,K=128,V=128"), Rule::gated_delta);
  const double square = 64 * 64 * 128 / 2, mix = 64 * 64 * 64 / 3.0;
  EXPECT_DOUBLE_EQ(useful_work(Rule::gated_delta, s),
                   2 * (2 * (3 * square + mix) + square + square + 2 * 64 * 128 * 128));
  // A third one, of a single token, makes the second erase one state through W and write another.
  s.T = 129;
  EXPECT_DOUBLE_EQ(useful_work(Rule::gated_delta, s),
                   2 * (9 * square + 2 * mix + 5 * 64 * 128 * 128 + 4 * 128 / 2 + 1 / 3.0 + 128 * 128));
  // Narrow keys: the second and the third chunk erase through a K x K transition, 32 * 32 * 64 to make it and to use
  // it.
  s = resolved(parse_shape("T=256,H=1,K=32,V=64"), Rule::gated_delta);
  const double chunk = 64 * 64 * (2 * 32 + 64) / 2 + mix, once = 32 * 32 * 64;
  EXPECT_DOUBLE_EQ(useful_work(Rule::gated_delta, s),
                   4 * chunk + 3 * 64 * 64 * 32 / 2 + 3 * 64 * 64 * 64 / 2 + 3 * 64 * 2048 + 4 * 64 * 2048 + 4 * once);
  // Plain linear attention reads and writes one state.
  s = resolved(parse_shape("T=4096,H=16,G=16,K=128,V=64,L=1"), Rule::scalar_decay);
  EXPECT_DOUBLE_EQ(useful_work(Rule::scalar_decay, s), 16 * (64 * 64 * 64 * (128 + 64) / 2 + 2 * 63 * 64 * 8192.0));
  // Wide heads are counted with chunks of 128, narrow ones with 32.
  s = resolved(parse_shape("T=256,H=1,K=192,V=256"), Rule::scalar_decay);
  EXPECT_DOUBLE_EQ(useful_work(Rule::scalar_decay, s), 256 * 128 * (192 + 256) / 2 + 2 * 128 * 192 * 256);
  s = resolved(parse_shape("T=64,H=1,K=16,V=16"), Rule::scalar_decay);
  EXPECT_DOUBLE_EQ(useful_work(Rule::scalar_decay, s), 64 * 32 * 32 / 2 + 2 * 32 * 256);
}

TEST(UsefulWork, CountsTheLiveStatesOfEveryChunk) {
  for (const std::int64_t T : {1, 64, 65, 192, 1000, 4096, 5000, 77777})
    for (const std::int64_t L : {1, 7, 8, 9, 10, 64}) {
      Shape s;
      s.T = T, s.H = s.G = 1, s.K = 128, s.V = 64, s.L = L;
      // Level by level and token by token: those of whole chunks before, the ones beyond the last level being one.
      double states = 0;
      for (std::int64_t t = 0; t < T; ++t) {
        std::set<std::int64_t> levels;
        for (int bit = 6; t >> bit != 0; ++bit)
          if (t >> bit & 1) levels.insert(std::min<std::int64_t>(bit + 1, L - 1));
        states += static_cast<double>(levels.size());
      }
      const double whole = static_cast<double>((T - 1) / 64), rest = static_cast<double>(T) - 64 * whole;
      const double want = (64 * 64 * whole + rest * rest) * 192 / 2 + 8192 * (64 * whole + states);
      EXPECT_NEAR(useful_work(Rule::scalar_decay, s) / want, 1, 1e-12) << T << " " << L;
    }
}

TEST(UsefulWork, OfAStepReadsAndWrites) {
  const Shape s = resolved(parse_shape("B=2,H=3,K=8,V=4"), Rule::scalar_decay);
  EXPECT_DOUBLE_EQ(useful_step_work(Rule::scalar_decay, s, 5), 2 * 3 * 32 * 6);
  EXPECT_DOUBLE_EQ(useful_step_work(Rule::gated_delta, s, 5), 2 * 3 * 32 * 16);
}

TEST(Levels, TheNearestThatHoldsIt) {
  Peaks peaks;
  peaks.memory = {{"L1", 100, 9}, {"L2", 1000, 5}, {"DRAM", std::numeric_limits<double>::infinity(), 1}};
  EXPECT_EQ(peaks.level_of(100).name, "L1");
  EXPECT_EQ(peaks.level_of(101).name, "L2");
  EXPECT_EQ(peaks.level_of(1e15).name, "DRAM");
}

// ---- running --------------------------------------------------------------------------------------------------------

Settings small(const char* what, const char* shape) {
  Settings s;
  s.what = what;
  s.shapes = {parse_shape(shape)};
  s.seconds = 1e-3;
  return s;
}

// Whatever is wrong fails the test.
std::vector<Row> rows_of(const Settings& settings) {
  Hooks hooks;
  hooks.wrong = [](const std::string& what) { ADD_FAILURE() << what; };
  const Outcome outcome = run(settings, hooks);
  EXPECT_EQ(outcome.wrong, 0);
  return outcome.rows;
}

void expect_times(const Row& row) {
  EXPECT_GE(row.runs, 1);
  EXPECT_GT(row.ms, 0);
  EXPECT_LE(row.ms_min, row.ms);
  EXPECT_GE(row.ms_max, row.ms);
  EXPECT_GT(row.gflops, 0);
  EXPECT_GT(row.peak_gflops, 0);
  EXPECT_GT(row.percent, 0);
}

TEST(Op, EveryRuleAndForm) {
  Settings settings = small("op", "T=260,H=4,G=2,K=16,V=8,B=2");
  settings.threads = 2;
  settings.chunk = 32;
  const std::vector<Row> rows = rows_of(settings);
  ASSERT_EQ(rows.size(), 2 * std::size(kRules));
  std::set<std::string> seen;
  for (const Row& row : rows) {
    seen.insert(row.rule + " " + row.form);
    expect_times(row);
    EXPECT_EQ(row.op, "log_linear");
    EXPECT_EQ(row.dtype, "f32");
    EXPECT_EQ(row.threads, 2);
    EXPECT_EQ(row.chunk, 32);
    EXPECT_EQ(row.shape.T, 260);
    EXPECT_EQ(row.position, -1);
    const Rule rule = *rule_from_name(row.rule);
    const double work = 2 * useful_work(rule, row.shape) * (row.form == "backward" ? 2 : 1);
    EXPECT_NEAR(row.gflops * row.ms * 1e6 / work, 1, 1e-9);
    EXPECT_NEAR(row.percent * row.peak_gflops / 100 / row.gflops, 1, 1e-9);
    EXPECT_NEAR(row.tokens_per_s * row.ms / (2 * 260 * 1e3), 1, 1e-9);
    // q k v out g beta scales; all but out once more, and dout.
    const double gates = 2 * 260 * 4 * (10 + (has_beta(rule) ? 2 : 1)), arrays = 2 * 260 * (2 * 2 * 16 + 2 * 4 * 8);
    const double forward = 4 * (arrays + gates);
    EXPECT_EQ(row.argument_bytes, row.form == "forward" ? forward : 2 * forward - 4 * 2 * 260 * 4 * 8);
    EXPECT_GT(row.state_bytes, 2 * 4 * 16 * 8 * 4);
  }
  EXPECT_EQ(seen.size(), rows.size());
}

TEST(Op, EveryTypeOneLevelAndShortSequences) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    Settings settings = small("op", "T=1,H=1,K=4,V=4");
    settings.shapes.push_back(parse_shape("T=70,H=2,K=8,V=8,L=1"));
    settings.shapes.push_back(parse_shape("T=201,H=2,K=8,V=8,L=3"));
    settings.dtype = dtype;
    const std::vector<Row> rows = rows_of(settings);
    ASSERT_EQ(rows.size(), 3 * 2 * std::size(kRules));
    for (const Row& row : rows) {
      expect_times(row);
      EXPECT_EQ(row.dtype, name_of(dtype));
    }
  }
}

TEST(Op, OneRuleAndOneForm) {
  Settings settings = small("op", "T=64,H=2,K=8,V=8");
  settings.rule = Rule::gated_delta;
  settings.form = "backward";
  const std::vector<Row> rows = rows_of(settings);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].rule, "gated_delta");
  EXPECT_EQ(rows[0].form, "backward");
}

TEST(Step, RowsOfEveryPosition) {
  Settings settings = small("step", "H=2,K=16,V=8,B=3");
  settings.positions = {256, 256 * 7};
  const std::vector<Row> rows = rows_of(settings);
  ASSERT_EQ(rows.size(), 2 * std::size(kRules));
  for (const Row& row : rows) {
    expect_times(row);
    EXPECT_EQ(row.form, "step");
    EXPECT_EQ(row.shape.T, 1);
    EXPECT_EQ(row.shape.L, row.position == 256 ? 11 : 13);  // bit_width(512) + 1, bit_width(2048) + 1
    EXPECT_EQ(row.runs % kPositionUnit, 0);
    const double live = row.position == 256 ? 1 : 3;
    EXPECT_GE(row.state_bytes, 3 * live * 2 * 16 * 8 * 4);
    EXPECT_GT(row.gbs, 0);
    EXPECT_FALSE(row.memory.empty());
    EXPECT_NEAR(row.percent * row.peak_gbs / 100 / row.gbs, 1, 1e-9);
    EXPECT_NEAR(row.tokens_per_s * row.ms_mean / 3e3, 1, 1e-9);
  }
}

// With one level there is one matrix wherever the step is, and a chunk of any size is filled while it is checked.
TEST(Step, OneLevelIsOneMatrixAndWorkIsThatOfTheMatricesRead) {
  for (const int chunk : {0, 256}) {
    Settings settings = small("step", "H=2,K=16,V=8,L=1");
    settings.positions = {15 << 10};
    settings.chunk = chunk;
    for (const Row& row : rows_of(settings)) {
      EXPECT_LT(row.state_bytes, 1.1 * 2 * 16 * 8 * 4) << row.rule;
      EXPECT_NEAR(row.gflops * row.ms / (2e-6 * useful_step_work(*rule_from_name(row.rule), row.shape, 1)), 1, 1e-9);
    }
  }
  // From 1024 to 1279 in chunks of 64 the tokens before the open chunk are 1, 2, 2 and 3 blocks.
  Settings settings = small("step", "H=2,K=16,V=8");
  settings.positions = {1024};
  settings.chunk = 64;
  for (const Row& row : rows_of(settings)) {
    const Rule rule = *rule_from_name(row.rule);
    double work = 0;
    for (const int live : {1, 2, 2, 3}) work += useful_step_work(rule, row.shape, live) / 4;
    EXPECT_NEAR(row.gflops * row.ms / (2e-6 * work), 1, 1e-9) << row.rule;
  }
}

TEST(Step, EveryType) {
  for (const DType dtype : {DType::bf16, DType::f64}) {
    Settings settings = small("step", "H=2,K=8,V=8");
    settings.dtype = dtype;
    settings.positions = {512 + 256};
    EXPECT_EQ(rows_of(settings).size(), std::size(kRules));
  }
}

TEST(Refusal, AResultThatIsNotCloseEnoughGetsNoRow) {
  for (const char* what : {"op", "step"}) {
    Settings settings = small(what, "T=150,H=2,K=8,V=8");
    settings.positions = {256};
    settings.tolerance = 1e-6;  // float32 rounds more than that
    std::vector<std::string> messages;
    Hooks hooks;
    hooks.wrong = [&](const std::string& message) { messages.push_back(message); };
    hooks.row = [&](Row& row) { ADD_FAILURE() << row.rule << " " << row.form << " was reported"; };
    const Outcome outcome = run(settings, hooks);
    EXPECT_TRUE(outcome.rows.empty());
    EXPECT_EQ(outcome.wrong, static_cast<int>(messages.size()));
    ASSERT_EQ(messages.size(), (what == std::string("op") ? 2 : 1) * std::size(kRules));
    for (const std::string& message : messages)
      EXPECT_NE(message.find("the result is wrong"), std::string::npos) << message;
  }
}

TEST(Refusal, SettingsThatMakeNoSense) {
  const auto refused = [](const std::function<void(Settings&)>& spoil) {
    Settings settings = small("op", "T=16,H=2,K=8,V=8");
    spoil(settings);
    EXPECT_FALSE(refusal([&] { run(settings); }, Error::Kind::usage).empty());
  };
  refused([](Settings& s) { s.what = "nothing"; });
  refused([](Settings& s) { s.form = "sideways"; });
  refused([](Settings& s) { s.models = {"demo", "large"}; });
  refused([](Settings& s) { s.threads = -1; });
  refused([](Settings& s) { s.chunk = 48; });
  refused([](Settings& s) { s.seconds = 0; });
  refused([](Settings& s) { s.seconds = std::numeric_limits<double>::quiet_NaN(); });
  refused([](Settings& s) { s.tolerance = 2; });
  refused([](Settings& s) { s.tolerance = std::numeric_limits<double>::quiet_NaN(); });
  refused([](Settings& s) { s.seed = -1; });
  refused([](Settings& s) { s.positions = {1000}; });
  refused([](Settings& s) { s.positions = {0}; });
  refused([](Settings& s) { s.isa = "mmx"; });
  refused([](Settings& s) { s.shapes = {parse_shape("H=3,G=2")}; });
  Settings huge = small("op", "T=67108864,H=4096,K=4096");
  EXPECT_NE(refusal([&] { run(huge); }, Error::Kind::failure).find("GiB"), std::string::npos);
}

TEST(InstructionSets, TheRowSaysWhatRan) {
  for (const std::string& isa : instruction_sets()) {
    Settings settings = small("op", "T=65,H=2,K=16,V=16");
    settings.isa = isa;
    for (const Row& row : rows_of(settings)) EXPECT_EQ(row.isa, isa);
  }
  force_instruction_set("");
}

TEST(Models, StepAndGeneration) {
  for (const char* family : {"log_linear_mamba2", "log_linear_gated_deltanet", "transformer"}) {
    ModelCase c;
    c.name = "small";
    c.config.family = family;
    c.config.hidden_size = 32;
    c.config.num_layers = 2;
    c.config.num_heads = 2;
    c.config.key_width = c.config.value_width = 16;
    c.config.mlp_width = 48;
    c.sequences = 2, c.tokens = 40, c.generated = 10;
    c.seconds = 1e-3;
    const std::vector<Row> rows = measure_model(c);
    ASSERT_EQ(rows.size(), 2u);
    EXPECT_EQ(rows[0].form, "train");
    EXPECT_EQ(rows[1].form, "generate");
    for (const Row& row : rows) {
      EXPECT_EQ(row.op, "model");
      EXPECT_EQ(row.model, "small");
      EXPECT_GT(row.ms, 0);
      EXPECT_GT(row.tokens_per_s, 0);
    }
    EXPECT_NEAR(rows[0].tokens_per_s * rows[0].ms / (80 * 1e3), 1, 1e-9);
    EXPECT_GT(rows[0].gflops, 0);
    EXPECT_GT(rows[1].state_bytes, 0);
    // Everything is somewhere, and what a family calls is named.
    double sum = 0, before = 100;
    std::set<std::string> names;
    for (const auto& [name, percent] : rows[0].shares) {
      EXPECT_GE(percent, 0) << name;
      EXPECT_LE(percent, before) << name;
      before = percent, sum += percent;
      names.insert(name);
    }
    EXPECT_NEAR(sum, 100, 1e-6);
    for (const char* name : {"matmul", "rms_norm", "swiglu", "adamw", "embedding", "cross_entropy", "rest"})
      EXPECT_EQ(names.count(name), 1u) << name;
    EXPECT_EQ(names.count("log_linear"), family == std::string("transformer") ? 0u : 1u);
    EXPECT_EQ(names.count("flash_attention"), family == std::string("transformer") ? 1u : 0u);
  }
}

TEST(Models, EveryCallOfAnOperatorIsCounted) {
  for (const char* family : {"log_linear_mamba2", "log_linear_gated_deltanet"}) {
    nn::ModelConfig config;
    config.family = family;
    config.hidden_size = 32;
    config.num_layers = 3;
    config.num_heads = 2;
    config.key_width = config.value_width = 16;
    config.mlp_width = 48;
    nn::Model<float> model(config);
    model.initialise(1);
    const std::vector<std::int32_t> tokens(50, 7);
    const std::int64_t cu_seqlens[] = {0, 50};
    const OperatorTimes times;
    model.loss(tokens, tokens, cu_seqlens, true);
    EXPECT_EQ(times.sums().at("log_linear").calls, 2 * config.num_layers);
    // A dense weight is one product forward and two backward, two operations for each element and token.
    double weights = 0;
    for (const auto& p : model.parameters())
      if (p.shape.size() == 2 && (p.name.find("proj") != std::string::npos || p.name == "lm_head.weight"))
        weights += static_cast<double>(p.value.size());
    EXPECT_EQ(times.sums().at("matmul").operations, 3 * 2 * 50 * weights) << family;
  }
}

TEST(Models, TheLargeOneHas130MillionParameters) {
  for (const ModelCase& c : model_cases()) {
    const double parameters = nn::parameter_count(c.config);
    if (c.name == "130M") EXPECT_NEAR(parameters, 130e6, 2.6e6);
    if (c.name == "demo") EXPECT_NEAR(parameters, 0.884e6, 0.005e6);
  }
}

// ---- reporting ------------------------------------------------------------------------------------------------------

Row some_row(std::int64_t T = 128, double ms = 2) {
  Row row;
  row.rule = "scalar_decay", row.form = "forward", row.dtype = "f32", row.isa = "avx2";
  row.shape = resolved({.T = T}, Rule::scalar_decay);
  row.ms = row.ms_min = row.ms_max = row.ms_mean = ms;
  row.gflops = 5, row.peak_gflops = 10, row.percent = 50;
  return row;
}

TEST(Json, HasEveryKeyAndNullForWhatIsNotANumber) {
  Row row = some_row();
  row.ms = std::numeric_limits<double>::infinity();
  row.peak_bytes = std::numeric_limits<double>::quiet_NaN();
  row.shares = {{"matmul", kAbsent}, {"rest", 3.5}};
  const nlohmann::json rows = nlohmann::json::parse(to_json(std::vector<Row>{row, some_row()}).dump());
  ASSERT_TRUE(rows.is_array());
  ASSERT_EQ(rows.size(), 2u);
  for (const char* key : {"op",       "rule",        "form",
                          "dtype",    "isa",         "threads",
                          "B",        "T",           "G",
                          "H",        "K",           "V",
                          "ms",       "gflops",      "peak_gflops",
                          "percent",  "state_bytes", "L",
                          "ms_min",   "ms_max",      "gbs",
                          "peak_gbs", "peak_bytes",  "tokens_per_s",
                          "position", "chunk",       "peak_bf16_gflops"})
    for (const auto& each : rows) EXPECT_TRUE(each.contains(key)) << key;
  EXPECT_TRUE(rows[0]["ms"].is_null());
  EXPECT_TRUE(rows[0]["peak_bytes"].is_null());
  EXPECT_TRUE(rows[0]["shares"]["matmul"].is_null());
  EXPECT_EQ(rows[0]["shares"]["rest"], 3.5);
  EXPECT_TRUE(rows[0]["position"].is_null());
  EXPECT_EQ(rows[0]["op"], "log_linear");
  EXPECT_EQ(rows[1]["ms"], 2.0);
  EXPECT_EQ(rows[1]["H"], 16);
  EXPECT_EQ(rows[1]["percent"], 50.0);
  EXPECT_EQ(to_json(std::vector<Row>{}).dump(), "[]");
}

TEST(Table, ColumnsStandBelowTheirNames) {
  Row a = some_row(128, 2), b = some_row(1 << 20, 12345.678), step = some_row(), model = some_row();
  b.rule = "gated_delta", b.dtype = "bf16";
  step.form = "step", step.position = 1024, step.memory = "L2";
  model.op = "model", model.model = "demo", model.form = "train", model.shares = {{"matmul", 60}, {"rest", 40}};
  const std::string first = table_lines(nullptr, a), second = table_lines(&a, b);
  EXPECT_EQ(std::count(first.begin(), first.end(), '\n'), 3);  // an empty line, names, the row
  EXPECT_EQ(std::count(second.begin(), second.end(), '\n'), 1);
  const std::size_t names = first.find("rule"), row = first.find("scalar_decay");
  const auto end_of = [](const std::string& text, std::size_t begin, const char* word) {
    return text.find(word, begin) + std::strlen(word) - begin;
  };
  EXPECT_EQ(end_of(first, names, " ms"), end_of(first, row, " 2.000"));
  EXPECT_EQ(end_of(first, names, " ms"), end_of(second, 0, " 12345.7"));
  EXPECT_EQ(end_of(first, names, "of peak"), end_of(first, row, "50.0 %"));
  EXPECT_EQ(table_lines(&a, a).find("nan"), std::string::npos);
  EXPECT_NE(table_lines(&a, step).find("position"), std::string::npos);
  EXPECT_NE(table_lines(&step, model).find("of the step: matmul 60.0 %, rest 40.0 %\n"), std::string::npos);
}

TEST(Table, TheHeaderSaysWhatTheMachineCanDo) {
  Peaks peaks;
  peaks.threads = 3, peaks.isa = "avx2", peaks.fma = 123.4e9;
  peaks.memory = {{"L1", 64 << 10, 9e9}, {"DRAM", std::numeric_limits<double>::infinity(), 1e9}};
  const std::string text = header(peaks);
  for (const char* part : {"threads    3", "avx2", "123.4 GFLOP/s", "bfloat16 products: absent",
                           "9.0 GB/s L1 (64.0 KiB)", "1.0 GB/s DRAM"})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  peaks.bf16 = 4567.8e9;
  EXPECT_NE(header(peaks).find("bfloat16 products: 4567.8 GFLOP/s"), std::string::npos);
}

class Against : public testing::Test {
 protected:
  Against() : path_(std::filesystem::temp_directory_path() / ("loglinear-against-" + std::to_string(getpid()))) {}
  ~Against() override { std::filesystem::remove(path_); }
  void write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }
  std::filesystem::path path_;
};

TEST_F(Against, ChangesInPercentAndWhatIsOnOneSideOnly) {
  Row step = some_row(128, 4);
  step.form = "step", step.position = 1024;
  Row later = step;
  later.position = 2048;
  write(to_json(std::vector<Row>{some_row(128, 2), some_row(256, 3), step}).dump(1));
  const std::vector<Earlier> earlier = read_earlier(path_);
  ASSERT_EQ(earlier.size(), 3u);
  Row now = some_row(128, 3);
  EXPECT_TRUE(set_change(now, earlier));
  EXPECT_EQ(now.against_ms, 2);
  EXPECT_DOUBLE_EQ(now.change_percent, 50);
  EXPECT_NE(table_lines(nullptr, now).find("+50.0 % against 2.000 ms"), std::string::npos);
  EXPECT_FALSE(set_change(later, earlier));
  EXPECT_TRUE(std::isnan(later.change_percent));
  const std::vector<std::string> only = only_earlier({now, later}, earlier);
  ASSERT_EQ(only.size(), 2u);
  EXPECT_NE(only[0].find("T=256"), std::string::npos) << only[0];
  EXPECT_NE(only[1].find("position=1024"), std::string::npos) << only[1];
  // Everything that makes a case counts.
  for (const auto& spoil : std::vector<std::function<void(Row&)>>{
           [](Row& r) { r.rule = "gated_delta"; }, [](Row& r) { r.form = "backward"; },
           [](Row& r) { r.dtype = "bf16"; }, [](Row& r) { r.isa = "avx512"; }, [](Row& r) { r.threads = 7; },
           [](Row& r) { r.shape.G = 2; }, [](Row& r) { r.shape.L = 1; }, [](Row& r) { r.chunk = 128; },
           [](Row& r) { r.model = "demo"; }}) {
    Row other = some_row(128, 3);
    spoil(other);
    EXPECT_FALSE(set_change(other, earlier));
  }
}

TEST_F(Against, ATimeThatIsNullChangesNothing) {
  write(to_json(std::vector<Row>{some_row(128, kAbsent)}).dump());
  Row now = some_row(128, 3);
  EXPECT_TRUE(set_change(now, read_earlier(path_)));
  EXPECT_TRUE(std::isnan(now.change_percent));
}

TEST_F(Against, NothingInTheFileIsBelieved) {
  const std::string good = to_json(some_row()).dump();
  const auto with = [&](const char* key, const nlohmann::json& value) {
    nlohmann::json row = nlohmann::json::parse(good);
    row[key] = value;
    return nlohmann::json::array({row}).dump();
  };
  for (const std::string& text :
       {std::string(), std::string("not json"), std::string("{}"), std::string("3"), std::string("[3]"),
        std::string("[{}]"), "[" + good, "[" + good + ",null]", with("op", 3), with("form", nullptr), with("T", "128"),
        with("T", 1.5), with("threads", nlohmann::json::array()), with("ms", 0), with("ms", -1), with("ms", "fast"),
        std::string("\xff\xfe[]")}) {
    write(text);
    EXPECT_NE(refusal([&] { read_earlier(path_); }, Error::Kind::failure).find("[bench --against] "), std::string::npos)
        << text;
  }
  EXPECT_FALSE(refusal([&] { read_earlier(path_.string() + ".missing"); }, Error::Kind::failure).empty());
  write("[]");
  EXPECT_TRUE(read_earlier(path_).empty());
}

}  // namespace
}  // namespace loglinear::app::bench
