#pragma once
// A linear layer on dense rows: the three products of matmul.hpp under their names.

#include "loglinear/matmul.hpp"
#include "nn/parameters.hpp"

namespace loglinear::nn {

template <class T>
struct Projection {
  Weight<T> weight;  // (out, in)
  std::int64_t out = 0, in = 0;

  // y (rows, out) = x (rows, in) W^T + beta y
  void forward(std::int64_t rows, const T* x, T beta, T* y, int threads) const {
    matmul<T>(Transpose::no, Transpose::yes, rows, out, in, x, in, weight.value, in, beta, y, out, threads);
  }
  // dW += dy^T x
  void backward_weight(std::int64_t rows, const T* x, const T* dy, int threads) const {
    matmul<T>(Transpose::yes, Transpose::no, out, in, rows, dy, out, x, in, T{1}, weight.grad, in, threads);
  }
  // dx (rows, in) = dy W + beta dx
  void backward_input(std::int64_t rows, const T* dy, T* dx, int threads, T beta = 0) const {
    matmul<T>(Transpose::no, Transpose::no, rows, in, out, dy, out, weight.value, in, beta, dx, in, threads);
  }
};

}  // namespace loglinear::nn
