#include "app/schedule.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace loglinear::app {

double learning_rate(const Schedule& schedule, std::int64_t step, double progress, double warmup_progress) {
  if (step < schedule.warmup)
    return schedule.peak * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup + 1);
  const double begin = schedule.decay == Decay::wsd ? std::max(warmup_progress, 1.0 - schedule.wsd_fraction)
                                                    : std::min(warmup_progress, 1.0);
  // x: how much of the decay has passed.
  const double x = progress <= begin ? 0.0 : begin >= 1.0 ? 1.0 : std::min((progress - begin) / (1.0 - begin), 1.0);
  double part = 1;  // of the way from floor up to peak
  if (schedule.decay == Decay::cosine) part = 0.5 * (1.0 + std::cos(std::numbers::pi * x));
  if (schedule.decay == Decay::linear || schedule.decay == Decay::wsd) part = 1.0 - x;
  return schedule.floor + (schedule.peak - schedule.floor) * part;
}

}  // namespace loglinear::app
