#pragma once
// The one comparator of the tests.

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

namespace loglinear::testing {

// error = |got - want| / |want| in the 2-norm. Fails unless NaNs and infinities stand in the same places and error <=
// bound; a NaN error fails. An output that is mostly exact zeros where the expected one is not is distrusted whatever
// its error.
inline ::testing::AssertionResult close(const std::string& what, const std::vector<double>& got,
                                        const std::vector<double>& want, double bound) {
  if (got.size() != want.size())
    return ::testing::AssertionFailure() << what << ": " << got.size() << " values, expected " << want.size();
  double difference = 0, norm = 0, worst = -1;
  std::size_t at = 0, zeros = 0, expected_zeros = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) != std::isnan(want[i]) || std::isinf(got[i]) != std::isinf(want[i]))
      return ::testing::AssertionFailure() << what << "[" << i << "]: got " << got[i] << ", expected " << want[i];
    if (!std::isfinite(want[i])) continue;
    zeros += got[i] == 0;
    expected_zeros += want[i] == 0;
    const double d = std::abs(got[i] - want[i]);
    difference += d * d;
    norm += want[i] * want[i];
    if (d > worst) worst = d, at = i;
  }
  if (got.size() >= 8 && zeros > got.size() / 2 && expected_zeros < got.size() / 4)
    return ::testing::AssertionFailure() << what << ": " << zeros << " of " << got.size()
                                         << " values are zero, expected " << expected_zeros;
  const double error = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  if (!(error <= bound))
    return ::testing::AssertionFailure() << what << ": error " << error << " > " << bound << ", worst at [" << at
                                         << "]: got " << got[at] << ", expected " << want[at];
  return ::testing::AssertionSuccess();
}

}  // namespace loglinear::testing
