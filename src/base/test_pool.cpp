#include "base/pool.hpp"

#include <gtest/gtest.h>

namespace loglinear {
namespace {

TEST(Pool, KeepsWhatIsInUse) {
  using Floats = Pool<float>;
  constexpr std::size_t kSmall = 1000, kLarge = 2000;
  Floats::trim(0);
  EXPECT_EQ(Floats::kept(), 0u);
  for (std::size_t i = 0; i < 3; ++i) Floats::take(kSmall + i);
  EXPECT_EQ(Floats::kept(), (3 * kSmall + 3) * sizeof(float));
  Floats::trim(1 << 20);
  EXPECT_EQ(Floats::kept(), (3 * kSmall + 3) * sizeof(float));
  // Sizes of earlier calls go first.
  Floats::take(kLarge);
  Floats::trim(kLarge * sizeof(float));
  EXPECT_EQ(Floats::kept(), kLarge * sizeof(float));
  // What is out is not kept, and comes back.
  {
    const Matrix<float> out = Floats::take(kLarge);
    EXPECT_EQ(Floats::kept(), 0u);
    Floats::trim(0);
  }
  EXPECT_EQ(Floats::kept(), kLarge * sizeof(float));
  Floats::trim(kLarge * sizeof(float) - 1);
  EXPECT_EQ(Floats::kept(), 0u);
}

}  // namespace
}  // namespace loglinear
