#include "loglinear/adamw.hpp"

#include <atomic>
#include <cmath>
#include <vector>

#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

constexpr std::int64_t kBlockElements = 16384;

void check_setting(const char* where, const char* name, double value) {
  if (!(value >= 0 && std::isfinite(value))) fail(where, "{} is {}, need a finite number >= 0", name, value);
}

// Calls body(begin, count) for the blocks of n elements.
template <class Body>
void for_blocks(std::int64_t n, int threads, const Body& body) {
  parallel_for((n + kBlockElements - 1) / kBlockElements, threads,
               [&](std::int64_t i) { body(i * kBlockElements, std::min(kBlockElements, n - i * kBlockElements)); });
}

}  // namespace

template <class T>
void adamw_step(std::int64_t n, T* value, const T* grad, T* m, T* v, const AdamWArgs& args, int threads) {
  const TimedOperator timed("adamw");
  constexpr const char* where = "adamw.step";
  check_sizes(where, {n});
  if (args.step < 1) fail(where, "step is {}, need at least 1", args.step);
  for (double beta : {args.beta1, args.beta2})
    if (!(beta >= 0 && beta < 1)) fail(where, "beta is {}, need a number in [0, 1)", beta);
  check_setting(where, "learning_rate", args.learning_rate);
  check_setting(where, "eps", args.eps);
  check_setting(where, "weight_decay", args.weight_decay);
  check_setting(where, "grad_scale", args.grad_scale);
  check_array(where, "value", n, value);
  check_array(where, "grad", n, grad);
  check_array(where, "m", n, m);
  check_array(where, "v", n, v);

  vec::AdamW<T> rates;
  const double step = static_cast<double>(args.step);
  rates.grad_scale = static_cast<T>(args.grad_scale);
  rates.beta1 = static_cast<T>(args.beta1);
  rates.beta2 = static_cast<T>(args.beta2);
  rates.one_minus_beta1 = static_cast<T>(1 - args.beta1);
  rates.one_minus_beta2 = static_cast<T>(1 - args.beta2);
  rates.keep = static_cast<T>(1 - args.learning_rate * args.weight_decay);
  rates.rate = static_cast<T>(args.learning_rate / (1 - std::pow(args.beta1, step)));
  rates.v_correction = static_cast<T>(1 / (1 - std::pow(args.beta2, step)));
  rates.eps = static_cast<T>(args.eps);
  for_blocks(n, threads, [&](std::int64_t begin, std::int64_t count) {
    vec::adamw(count, rates, grad + begin, value + begin, m + begin, v + begin);
  });
}

template <class T>
double sum_of_squares(std::int64_t n, const T* x, int threads) {
  const TimedOperator timed("adamw");
  constexpr const char* where = "sum_of_squares";
  check_sizes(where, {n});
  check_array(where, "x", n, x);
  std::vector<double> parts(static_cast<std::size_t>((n + kBlockElements - 1) / kBlockElements));
  for_blocks(n, threads, [&](std::int64_t begin, std::int64_t count) {
    constexpr int kLanes = 8;  // independent sums: an addition need not wait for the one before
    double lanes[kLanes] = {};
    const T* from = x + begin;
    std::int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      for (int j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(from[i + j]) * static_cast<double>(from[i + j]);
    for (; i < count; ++i) lanes[0] += static_cast<double>(from[i]) * static_cast<double>(from[i]);
    double sum = 0;
    for (double lane : lanes) sum += lane;
    parts[static_cast<std::size_t>(begin / kBlockElements)] = sum;
  });
  double sum = 0;
  for (double part : parts) sum += part;
  return sum;
}

template <class T>
bool all_finite(std::int64_t n, const T* x, int threads) {
  const TimedOperator timed("adamw");
  constexpr const char* where = "all_finite";
  check_sizes(where, {n});
  check_array(where, "x", n, x);
  std::atomic<bool> finite = true;
  for_blocks(n, threads, [&](std::int64_t begin, std::int64_t count) {
    int bad = 0;
    for (std::int64_t i = 0; i < count; ++i) bad |= !(std::abs(x[begin + i]) <= std::numeric_limits<T>::max());
    if (bad) finite = false;
  });
  return finite;
}

#define LOGLINEAR_ADAMW(T)                                                             \
  template void adamw_step(std::int64_t, T*, const T*, T*, T*, const AdamWArgs&, int); \
  template double sum_of_squares(std::int64_t, const T*, int);                         \
  template bool all_finite(std::int64_t, const T*, int);
LOGLINEAR_ADAMW(float)
LOGLINEAR_ADAMW(double)
#undef LOGLINEAR_ADAMW

}  // namespace loglinear
