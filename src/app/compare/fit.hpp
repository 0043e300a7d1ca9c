#pragma once
// Powers of T fitted to what was measured, and where two curves cross.

#include <span>

#include "app/measure.hpp"

namespace loglinear::app::compare {

struct Sample {
  double T = 0, value = 0;
};

// The power of T that the values grow with, least squares of the logarithms over the longest lengths: those from an
// eighth of the longest on, but three when there are as many. Lengths ascend. Samples that are not positive are left
// out. NaN everywhere with fewer than two.
struct Fit {
  double exponent = kAbsent;
  int samples = 0;
};
Fit fit(std::span<const Sample> samples);

// From the longest sample on by the exponent of the fit, within what a mechanism here can have, 0 to 2.2: with few
// samples a disturbed one makes any exponent. NaN without a fit.
double extrapolated(std::span<const Sample> samples, const Fit& fit, double T);

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
