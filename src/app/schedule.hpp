#pragma once
// The learning rate over a run.

#include <cstdint>

namespace loglinear::app {

enum class Decay { constant, linear, cosine, wsd };

struct Schedule {
  Decay decay = Decay::cosine;
  double peak = 1e-3, floor = 1e-4;
  std::int64_t warmup = 0;  // steps; step s < warmup has (s + 1) / (warmup + 1) of the rate
  // wsd (warm-up, stable, decay): this last part of the run goes down linearly.
  double wsd_fraction = 0.2;
};

// The rate of step `step` (from 0) when `progress` in [0, 1] of the run has passed and the warm-up ends at
// `warmup_progress` of it. Cosine and linear fall from peak to floor between the end of the warm-up and the end.
// Deterministic, never above peak or below min(floor, first warm-up rate).
double learning_rate(const Schedule& schedule, std::int64_t step, double progress, double warmup_progress);

}  // namespace loglinear::app
