#pragma once
// Powers of T fitted to what was measured, and where two curves cross.

#include <span>

#include "app/measure.hpp"

namespace loglinear::app::compare {

struct Sample {
  double T = 0, value = 0;
};

// value = exp(intercept) T^exponent, least squares of the logarithms over the longest lengths: those from an eighth of
// the longest on, but three when there are as many. Lengths ascend. Samples that are not positive are left out. NaN
// everywhere with fewer than two.
struct Fit {
  double exponent = kAbsent, intercept = kAbsent;
  int samples = 0;
  double at(double T) const;
};
Fit fit(std::span<const Sample> samples);

// From which length on `a` takes no more than `b` does, up to the longest length that both have: interpolated on log
// axes. Lengths ascend.
struct Crossover {
  enum class Kind {
    none,   // no length in common
    below,  // at every length in common; T is the shortest
    at,     // from T on
    never,  // not at the longest
  } kind = Kind::none;
  double T = kAbsent;
};
Crossover crossover(std::span<const Sample> a, std::span<const Sample> b);

}  // namespace loglinear::app::compare
