// loglinear compare through the program, as a user runs it.

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "browser.hpp"
#include "program.hpp"
#include "sanitized.hpp"

namespace loglinear::tests {
namespace {

using Arguments = std::vector<std::string>;
using nlohmann::json;

Outcome compare(Arguments more) {
  more.insert(more.begin(), "compare");
  return run(more);
}

const Arguments kShortRun = {"--lengths", "64,256",   "--heads", "2",         "--width",
                             "16",        "--budget", "100",     "--seconds", "0.001"};

Arguments small(const Arguments& more) {
  Arguments all = kShortRun;
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

TEST(Compare, ATableOfEveryMechanism) {
  const Outcome outcome = compare(kShortRun);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  for (const char* part : {"machine ", "2 heads of width 16", "T = 64\n", "T = 256\n", "forward ms", "exponents:", "*",
                           "log_linear_mamba2", "flash", "done in "})
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << "\n" << outcome.out;
}

TEST(Compare, JsonAloneOnStandardOutput) {
  const Outcome outcome = compare(small({"--mechanisms", "flash,log_linear_gated_deltanet,mosa", "--json"}));
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const json object = json::parse(outcome.out);
  EXPECT_EQ(object["command"],
            "loglinear compare --lengths 64,256 --heads 2 --width 16 --budget 100 --seconds 0.001 --mechanisms "
            "flash,log_linear_gated_deltanet,mosa --json");
  EXPECT_GT(object["machine"]["threads"], 0);
  std::set<std::string> seen;
  for (const json& row : object["rows"]) {
    seen.insert(row["mechanism"].get<std::string>() + " " + row["T"].dump());
    EXPECT_GT(row["forward_ms"], 0);
    EXPECT_GT(row["forward_backward_ms"], 0);
    EXPECT_EQ(row["extrapolated"], false);
    EXPECT_LT(row["error"], 1e-5);
    EXPECT_EQ(row["step_ms"].is_null(), row["mechanism"] == "mosa");  // its choice sees the whole sequence
  }
  EXPECT_EQ(seen.size(), 6u);
}

// The whole way to a page, and what a browser does with it.
TEST(Compare, FilesAndThePageInHeadlessChromium) {
  const Scratch scratch;
  const std::string rows = (scratch / "rows.json").string(), page = (scratch / "page.html").string();
  // Long enough to be extrapolated for all but what is fastest.
  const Outcome outcome =
      compare({"--lengths", "64,256,262144", "--heads", "2", "--width", "16", "--threads", "2", "--budget",
               kSanitized ? "3" : "8", "--seconds", "0.01", "--json", rows, "--html", page});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("T = 256"), std::string::npos);
  EXPECT_NE(outcome.out.find("~"), std::string::npos);
  const json object = json::parse(file_text(rows));
  EXPECT_NE(file_text(page).find(object["machine"]["cpu"].get<std::string>()), std::string::npos);

  look_at("browser_page.py", page);
}

TEST(Compare, QualityBesideTheRest) {
  const Scratch scratch;
  const std::string rows = (scratch / "rows.json").string(), page = (scratch / "page.html").string();
  const Outcome outcome = compare({"--lengths",
                                   "64",
                                   "--heads",
                                   "2",
                                   "--width",
                                   "16",
                                   "--seconds",
                                   "0.001",
                                   "--mechanisms",
                                   "flash,mosa,qla",
                                   "--quality",
                                   "--steps",
                                   "2",
                                   "--seeds",
                                   "2",
                                   "--data",
                                   scratch.file("text", std::string(20000, 'a') + "\n" + std::string(20000, 'b')),
                                   "--json",
                                   rows,
                                   "--html",
                                   page});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  for (const char* part : {"recall accuracy", "bits per byte", " +- "})
    EXPECT_NE(outcome.out.find(part), std::string::npos) << outcome.out;
  const json quality = json::parse(file_text(rows))["quality"];
  EXPECT_EQ(quality["seeds"], 2);
  ASSERT_EQ(quality["rows"].size(), 2u);  // qla is no mixer
  for (const json& row : quality["rows"]) {
    EXPECT_GE(row["recall_accuracy"], 0);
    EXPECT_GT(row["bits_per_byte"], 0);
    EXPECT_EQ(row["bits_per_byte_values"].size(), 2u);
  }
  look_at("browser_page.py", page);
}

TEST(Compare, TheList) {
  const Outcome table = compare({"--list"}), list = compare({"--list", "--json"});
  EXPECT_EQ(table.code, 0);
  EXPECT_EQ(list.code, 0);
  const json all = json::parse(list.out);
  EXPECT_GE(all.size(), 12u);
  for (const json& m : all) EXPECT_NE(table.out.find(m["name"].get<std::string>()), std::string::npos);
}

TEST(Compare, AWrongResultIsNoResult) {
  const Outcome outcome = compare(small({"--mechanisms", "flash", "--tolerance", "1e-9", "--json"}));
  EXPECT_EQ(not_one_clear_line(outcome, 1), "");
  EXPECT_NE(outcome.err.find("the result is wrong"), std::string::npos) << outcome.err;
  EXPECT_EQ(json::parse(outcome.out)["rows"].size(), 0u);
}

TEST(Compare, WrongUsage) {
  for (const Arguments& arguments : std::vector<Arguments>{{"--mechanisms", "flash,softmax"},
                                                           {"--mechanisms", "flash,flash"},
                                                           {"--lengths", "1024,many"},
                                                           {"--lengths", "0"},
                                                           {"--lengths", "1e9"},
                                                           {"--heads", "0"},
                                                           {"--width", "x"},
                                                           {"--threads", "-1"},
                                                           {"--budget", "0"},
                                                           {"--budget", "soon"},
                                                           {"--tolerance", "2"},
                                                           {"--seconds", "-1"},
                                                           {"--seed", "-1"},
                                                           {"--data", "text"},
                                                           {"--quality", "--mechanisms", "qla"},
                                                           {"--quality", "--seeds", "0"},
                                                           {"everything"},
                                                           {"--unknown"}}) {
    const Outcome outcome = compare(arguments);
    EXPECT_EQ(not_one_clear_line(outcome, 2), "") << arguments.back();
    EXPECT_EQ(outcome.out, "") << arguments.back();
  }
  EXPECT_NE(compare({"--mechanisms", "softmax"}).err.find("log_linear_gated_deltanet"), std::string::npos);
}

// What cannot be written is known before minutes of measuring.
TEST(Compare, WhereNothingCanBeWritten) {
  const Scratch scratch;
  for (const char* flag : {"--json", "--html"})
    for (const std::string& path : {(scratch / "missing/file").string(), scratch.path().string()}) {
      const Outcome outcome = compare({flag, path});
      EXPECT_EQ(not_one_clear_line(outcome, 1), "") << path;
      EXPECT_EQ(outcome.out, "");
    }
}

TEST(Compare, InterruptedItPrintsWhatItHasAndLeavesNoFile) {
  const Scratch scratch, output;
  Process process({"compare", "--heads", "2", "--width", "16", "--budget", "600", "--lengths", "64,65536,4194304",
                   "--json", (scratch / "rows.json").string(), "--html", (scratch / "page.html").string()},
                  output.path());
  std::this_thread::sleep_for(std::chrono::seconds(2));
  ASSERT_FALSE(process.ended());
  process.signal(SIGINT);
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.code, 130) << outcome.err;
  EXPECT_NE(outcome.out.find("T = 64\n"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("interrupted"), std::string::npos) << outcome.out;
  EXPECT_TRUE(std::filesystem::is_empty(scratch.path()));
}

}  // namespace
}  // namespace loglinear::tests
