#include <gtest/gtest.h>

#include <thread>

#include "base/op_timer.hpp"

namespace loglinear {
namespace {

TEST(OperatorTimes, NobodyAsks) {
  { const TimedOperator timed("a", 3); }
  const OperatorTimes times;
  EXPECT_TRUE(times.sums().empty());
}

TEST(OperatorTimes, SumsByName) {
  const OperatorTimes times;
  for (int i = 0; i < 3; ++i) const TimedOperator timed("a", 5);
  { const TimedOperator timed("b"); }
  ASSERT_EQ(times.sums().size(), 2u);
  EXPECT_EQ(times.sums().at("a").calls, 3);
  EXPECT_EQ(times.sums().at("a").operations, 15);
  EXPECT_GE(times.sums().at("a").seconds, 0);
  EXPECT_EQ(times.sums().at("b").calls, 1);
  EXPECT_EQ(times.sums().at("b").operations, 0);
}

TEST(OperatorTimes, AnOperatorInsideAnotherIsPartOfIt) {
  const OperatorTimes times;
  {
    const TimedOperator outer("outer", 1);
    const TimedOperator inner("inner", 2);
  }
  { const TimedOperator again("inner", 4); }
  EXPECT_EQ(times.sums().at("outer").calls, 1);
  EXPECT_EQ(times.sums().at("inner").calls, 1);
  EXPECT_EQ(times.sums().at("inner").operations, 4);
}

TEST(OperatorTimes, TheInnermostOneMeasures) {
  const OperatorTimes outer;
  { const TimedOperator timed("a"); }
  {
    const OperatorTimes inner;
    { const TimedOperator timed("b"); }
    EXPECT_EQ(inner.sums().count("b"), 1u);
    EXPECT_EQ(inner.sums().count("a"), 0u);
  }
  { const TimedOperator timed("c"); }
  EXPECT_EQ(outer.sums().count("a"), 1u);
  EXPECT_EQ(outer.sums().count("b"), 0u);
  EXPECT_EQ(outer.sums().count("c"), 1u);
}

TEST(OperatorTimes, OtherThreadsAreNotMeasured) {
  const OperatorTimes times;
  std::thread([] { const TimedOperator timed("elsewhere"); }).join();
  EXPECT_TRUE(times.sums().empty());
}

}  // namespace
}  // namespace loglinear
