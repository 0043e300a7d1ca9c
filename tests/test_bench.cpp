// loglinear bench through the program, as a user runs it.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "program.hpp"

namespace loglinear::tests {
namespace {

using Arguments = std::vector<std::string>;

Outcome bench(Arguments more) {
  more.insert(more.begin(), "bench");
  for (const char* flag : {"--seconds", "0.001"}) more.push_back(flag);
  return run(more);
}

const Arguments kOneShape = {"op", "--shape", "T=130,H=2,G=1,K=16,V=8", "--rule", "scalar_decay"};

Arguments with(Arguments a, const Arguments& more) {
  a.insert(a.end(), more.begin(), more.end());
  return a;
}

TEST(Bench, ATableBelowTheLimitsOfTheMachine) {
  const Outcome outcome = bench(kOneShape);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  for (const char* part : {"machine ", "peaks ", "GFLOP/s", "GB/s L1", "forward ", "backward ", "T130 H2 G1 K16 V8 L9"})
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << "\n" << outcome.out;
}

TEST(Bench, JsonAloneOnStandardOutput) {
  const Outcome outcome = bench({"op", "--shape", "T=130,H=2,K=16,V=8", "--shape", "T=64,H=2,K=8,V=8,L=1", "--dtype",
                                 "bf16", "--threads", "1", "--json"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const nlohmann::json rows = nlohmann::json::parse(outcome.out);
  ASSERT_EQ(rows.size(), 8u);  // two shapes, two rules, two forms
  for (const auto& row : rows) {
    EXPECT_EQ(row["op"], "log_linear");
    EXPECT_EQ(row["dtype"], "bf16");
    EXPECT_EQ(row["threads"], 1);
    EXPECT_GT(row["ms"].get<double>(), 0);
    EXPECT_GT(row["percent"].get<double>(), 0);
  }
}

TEST(Bench, Steps) {
  const Outcome outcome = bench({"step", "--shape", "H=2,K=8,V=8", "--position", "256", "--position", "768", "--json"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const nlohmann::json rows = nlohmann::json::parse(outcome.out);
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[1]["position"], 768);
  for (const auto& row : rows) {
    EXPECT_EQ(row["form"], "step");
    EXPECT_TRUE(row["peak_gbs"].is_number());
    EXPECT_GT(row["state_bytes"].get<double>(), 0);
  }
}

TEST(Bench, AgainstAnEarlierRun) {
  const Scratch scratch;
  const Outcome before = bench(with(kOneShape, {"--json"}));
  ASSERT_EQ(before.code, 0) << before.err;
  const std::string file = scratch.file("before.json", before.out);
  const Outcome same = bench(with(kOneShape, {"--against", file}));
  EXPECT_EQ(same.code, 0) << same.err;
  EXPECT_NE(same.out.find(" % against "), std::string::npos) << same.out;
  EXPECT_EQ(same.out.find("only "), std::string::npos) << same.out;
  const Outcome other = bench(
      {"op", "--rule", "scalar_decay", "--form", "forward", "--shape", "T=131,H=2,G=1,K=16,V=8", "--against", file});
  EXPECT_EQ(other.code, 0) << other.err;
  EXPECT_NE(other.out.find("only here: scalar_decay forward"), std::string::npos) << other.out;
  EXPECT_NE(other.out.find("only in " + file + ": scalar_decay backward"), std::string::npos) << other.out;
  const Outcome json = bench(with(kOneShape, {"--json", "--against", file}));
  EXPECT_EQ(json.code, 0) << json.err;
  EXPECT_TRUE(nlohmann::json::parse(json.out)[0]["change_percent"].is_number());
}

TEST(Bench, AWrongResultIsNoResult) {
  const Outcome outcome = bench(with(kOneShape, {"--form", "forward", "--tolerance", "1e-9", "--json"}));
  EXPECT_EQ(not_one_clear_line(outcome, 1), "");
  EXPECT_NE(outcome.err.find("the result is wrong"), std::string::npos) << outcome.err;
  EXPECT_EQ(nlohmann::json::parse(outcome.out).size(), 0u);
}

TEST(Bench, WrongUsage) {
  for (const Arguments& arguments : std::vector<Arguments> {
         {"everything"}, {"op", "--shape", "T=100,X=3"}, {"op", "--shape", "T=many"}, {"op", "--shape", "T=0"},
             {"op", "--shape", "H=6,G=4"}, {"op", "--rule", "none"}, {"op", "--dtype", "f16"}, {"op", "--form", "step"},
             {"op", "--chunk", "100"}, {"op", "--threads", "-2"}, {"op", "--isa", "mmx"}, {"op", "--tolerance", "0"},
             {"step", "--position", "100"}, {"train", "--model", "huge"},
#if defined(__x86_64__)
             {"op", "--isa", "neon"},
#else
                                                           {"op", "--isa", "avx2"},
#endif
         {
           "op", "--unknown"
         }
       }) {
    const Outcome outcome = bench(arguments);
    EXPECT_EQ(not_one_clear_line(outcome, 2), "") << arguments.back();
    EXPECT_EQ(outcome.out, "") << arguments.back();
  }
}

TEST(Bench, AnEarlierRunThatCannotBeRead) {
  const Scratch scratch;
  for (const std::string& file : {(scratch / "missing").string(), scratch.path().string(),
                                  scratch.file("text", "no rows"), scratch.file("cut", "[{\"op\": \"log_lin")}) {
    const Outcome outcome = bench(with(kOneShape, {"--against", file}));
    EXPECT_EQ(not_one_clear_line(outcome, 1), "") << file;
    EXPECT_EQ(outcome.out, "");
  }
}

// Also where a call is so short that it begins with the empty state.
TEST(Bench, AnyChunk) {
  for (const char* what : {"op", "step"}) {
    const Outcome outcome = bench({what, "--shape", "T=30,H=2,K=8,V=8", "--chunk", "16", "--json"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    for (const auto& row : nlohmann::json::parse(outcome.out)) EXPECT_EQ(row["chunk"], 16);
  }
}

TEST(Bench, MoreThanTheMachineHolds) {
  EXPECT_EQ(not_one_clear_line(bench({"op", "--shape", "T=67108864,H=4096,K=4096"}), 1), "");
}

}  // namespace
}  // namespace loglinear::tests
