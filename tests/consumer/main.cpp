// Two tokens of log-linear attention with one head of width one, worked out by hand:
//   out_0 = 3 * (q_0 k_0) v_0                              level(0, 0) = 0, scale 3
//   out_1 = 3 * (q_1 k_1) v_1 + 5 * e^g (q_1 k_0) v_0      level(1, 0) = 1, scale 5
// once in one call and once token by token.

#include <cmath>
#include <cstdio>

#include "loglinear/log_linear.hpp"

int main() {
  using namespace loglinear;
  float q[] = {1, 2}, k[] = {3, 4}, v[] = {5, 6}, g[] = {0, std::log(0.5f)}, scales[] = {3, 5, 3, 5}, out[2],
        stepped[2];
  const float expected[] = {3 * 3 * 5, 3 * (2 * 4) * 6 + 5 * 0.5f * (2 * 3) * 5};

  log_linear::ForwardArgs args;
  args.q = Tensor(q, {1, 2, 1, 1});
  args.k = Tensor(k, {1, 2, 1, 1});
  args.v = Tensor(v, {1, 2, 1, 1});
  args.g = Tensor(g, {1, 2, 1});
  args.level_scales = Tensor(scales, {1, 2, 1, 2});
  args.out = Tensor(out, {1, 2, 1, 1});
  log_linear::forward(args);

  State state(Rule::scalar_decay, 1, 1, 1);
  for (int t = 0; t < 2; ++t) {
    log_linear::StepArgs step;
    step.q = Tensor(q + t, {1, 1, 1});
    step.k = Tensor(k + t, {1, 1, 1});
    step.v = Tensor(v + t, {1, 1, 1});
    step.g = Tensor(g + t, {1, 1});
    step.level_scales = Tensor(scales + 2 * t, {1, 1, 2});
    step.out = Tensor(stepped + t, {1, 1, 1});
    step.states = {&state, 1};
    log_linear::step(step);
  }

  bool right = state.position() == 2;
  for (int t = 0; t < 2; ++t) {
    std::printf("token %d: forward %g, step %g, expected %g\n", t, out[t], stepped[t], expected[t]);
    right = right && std::fabs(out[t] - expected[t]) <= 1e-4f && std::fabs(stepped[t] - expected[t]) <= 1e-4f;
  }

  // An error of the library crosses the package border as loglinear::Error.
  try {
    args.level_scales = {};
    log_linear::forward(args);
    right = false;
  } catch (const Error& error) {
    std::printf("refused as it should be: %s\n", error.what());
  }
  return right ? 0 : 1;
}
