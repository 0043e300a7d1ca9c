#include "app/schedule.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "app/progress.hpp"

namespace loglinear::app {
namespace {

double at(const Schedule& s, std::int64_t step, std::int64_t total) {
  return learning_rate(s, step, static_cast<double>(step) / static_cast<double>(total),
                       static_cast<double>(s.warmup) / static_cast<double>(total));
}

TEST(Schedule, WarmsUpLinearly) {
  for (const Decay decay : {Decay::constant, Decay::linear, Decay::cosine, Decay::wsd}) {
    const Schedule s{.decay = decay, .peak = 1.0, .floor = 0.1, .warmup = 9};
    for (int step = 0; step < 9; ++step) EXPECT_DOUBLE_EQ(at(s, step, 100), (step + 1) / 10.0);
    EXPECT_DOUBLE_EQ(at(s, 9, 100), 1.0);
  }
}

TEST(Schedule, EndsAtTheFloor) {
  for (const Decay decay : {Decay::linear, Decay::cosine, Decay::wsd}) {
    const Schedule s{.decay = decay, .peak = 1.0, .floor = 0.1, .warmup = 10};
    EXPECT_DOUBLE_EQ(at(s, 100, 100), 0.1);
    EXPECT_DOUBLE_EQ(at(s, 1000, 100), 0.1);  // past the end
    double before = 2;
    for (int step = 10; step <= 100; ++step) {
      EXPECT_LE(at(s, step, 100), before);
      EXPECT_GE(at(s, step, 100), 0.1);
      before = at(s, step, 100);
    }
  }
}

TEST(Schedule, HasTheShapesOfTheirNames) {
  Schedule s{.decay = Decay::linear, .peak = 1.0, .floor = 0.0, .warmup = 20};
  EXPECT_DOUBLE_EQ(at(s, 60, 100), 0.5);
  s.decay = Decay::cosine;
  EXPECT_NEAR(at(s, 60, 100), 0.5, 1e-12);
  EXPECT_NEAR(at(s, 40, 100), 0.5 * (1 + std::sqrt(0.5)), 1e-12);
  s.decay = Decay::constant;
  EXPECT_DOUBLE_EQ(at(s, 99, 100), 1.0);
  s.decay = Decay::wsd;
  s.wsd_fraction = 0.4;
  EXPECT_DOUBLE_EQ(at(s, 59, 100), 1.0);
  EXPECT_NEAR(at(s, 80, 100), 0.5, 1e-12);
}

TEST(Schedule, SurvivesAWarmUpLongerThanTheRun) {
  for (const Decay decay : {Decay::constant, Decay::linear, Decay::cosine, Decay::wsd}) {
    const Schedule s{.decay = decay, .peak = 1.0, .floor = 0.1, .warmup = 200};
    for (int step = 0; step < 100; ++step) EXPECT_DOUBLE_EQ(at(s, step, 100), (step + 1) / 201.0);
    const double after = at(s, 200, 200);
    EXPECT_GE(after, 0.1);
    EXPECT_LE(after, 1.0);
  }
}

TEST(Progress, FormatsForPeople) {
  EXPECT_EQ(format_duration(0), "0 s");
  EXPECT_EQ(format_duration(59.6), "1:00");
  EXPECT_EQ(format_duration(754), "12:34");
  EXPECT_EQ(format_duration(3723), "1:02:03");
  EXPECT_EQ(format_duration(3 * 86400 + 4 * 3600 + 5 * 60 + 6), "3d 04:05:06");
  EXPECT_EQ(format_duration(-1), "?");
  EXPECT_EQ(format_duration(0.0 / 0.0), "?");
  EXPECT_EQ(format_count(950), "950");
  EXPECT_EQ(format_count(12345), "12.3k");
  EXPECT_EQ(format_count(999600), "1M");
  EXPECT_EQ(format_count(1.0 / 0.0), "?");
}

TEST(Progress, ALiveLineIsReplacedOnATerminalAndAbsentElsewhere) {
  std::string out;
  const auto print = [&](std::string_view text) { out += text; };
  Console plain(print, false);
  plain.live("working");
  plain.line("done");
  EXPECT_EQ(out, "done\n");
  out.clear();
  Console terminal(print, true);
  terminal.live("working");
  terminal.line("done");
  terminal.clear();
  EXPECT_EQ(out, "\r\x1b[Kworking\r\x1b[Kdone\n");
}

}  // namespace
}  // namespace loglinear::app
