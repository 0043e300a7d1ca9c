#pragma once
// The optimizer (Loshchilov, Hutter, arXiv 1711.05101) and what gradient clipping needs.

#include <cstdint>

#include "loglinear/error.hpp"

namespace loglinear {

struct AdamWArgs {
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;  // decoupled: value -= learning_rate * weight_decay * value
  std::int64_t step = 1;    // of this update, counting from 1
  double grad_scale = 1;    // multiplies every gradient first (clipping, accumulation)
};

// One update of a tensor of n elements:
//
//   grad' = grad_scale * grad;   m = beta1 m + (1 - beta1) grad';   v = beta2 v + (1 - beta2) grad'^2
//   value = value - lr * weight_decay * value - lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
//
// value, m, v are updated, grad is read. T is float or double, arithmetic in T. Elements are independent: the same bits
// for any number of threads. Throws Error on n < 0, step < 1, a beta outside [0, 1), a negative or non-finite setting,
// or a null array that has elements.
template <class T>
void adamw_step(std::int64_t n, T* value, const T* grad, T* m, T* v, const AdamWArgs& args, int threads = 0);

// Sum of x^2 in float64, in blocks fixed by n: the same bits for any number of threads. NaN or infinity when an element
// is. 0 for n = 0.
template <class T>
double sum_of_squares(std::int64_t n, const T* x, int threads = 0);

// Whether no element is NaN or infinite.
template <class T>
bool all_finite(std::int64_t n, const T* x, int threads = 0);

}  // namespace loglinear
