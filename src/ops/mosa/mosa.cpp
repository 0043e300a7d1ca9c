#include "loglinear/mosa.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "base/cpu_features.hpp"
#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "ops/mosa/cpu.hpp"

namespace loglinear {
namespace {

using mosa::Panels;
using mosa::Plan;

template <class T>
void check(const char* where, std::span<const std::int64_t> cu_seqlens, const MosaShape& shape,
           const MosaWeights<T>& weights, const T* x, std::int64_t x_stride) {
  const auto [D, E, d, sparsity, first_token, theta] = shape;
  if (D < 1 || E < 1 || d < 1) fail(where, "model width, heads and head width must be at least 1");
  if (sparsity < 1) fail(where, "sparsity is {}, need at least 1", sparsity);
  if (!(theta > 0 && std::isfinite(theta))) fail(where, "theta is {}, need a positive number", theta);
  const std::int64_t N = check_cu_seqlens(where, cu_seqlens);
  check_sizes(where, {std::max(N, D), E, 4 * kPad, d});
  check_sizes(where, {N, D + kPad, E});
  check_sizes(where, {E, D + kPad, 4 * kPad, d});
  check_rows(where, "x", N, D, x, x_stride);
  if (N == 0) return;
  check_array(where, "router", D * E, weights.router);
  check_array(where, "qkv", E * D * 3 * d, weights.qkv);
  check_array(where, "out", E * d * D, weights.out);
}

// Memory that is written before it is read, padding aside, which means nothing.
template <class T>
using Memory = std::unique_ptr<T[]>;

template <class T>
Memory<T> memory_for(std::int64_t count) {
  return std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(count));
}

// `count` matrices (rows, columns), one after the other, as panels: in `copy`, unless their rows have a length that the
// matrix kernel likes.
template <class T>
Panels<T> panels(std::int64_t count, std::int64_t rows, std::int64_t columns, const T* from, Memory<T>& copy,
                 int threads) {
  const std::int64_t stride = row_stride(columns);
  if (columns == stride) return {from, columns, rows * columns};
  copy = memory_for<T>(count * rows * stride);
  for_row_blocks(count * rows, columns, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) std::copy_n(from + r * columns, columns, copy.get() + r * stride);
  });
  return {copy.get(), stride, rows * stride};
}

// The transposes of `count` matrices (rows, columns), and `last` (rows, count), if given, as one more row: column e
// below the matrix e.
template <class T>
Panels<T> transposed_panels(std::int64_t count, std::int64_t rows, std::int64_t columns, const T* from, const T* last,
                            Memory<T>& copy, int threads) {
  const std::int64_t stride = row_stride(rows), height = columns + (last ? 1 : 0);
  copy = memory_for<T>(count * height * stride);
  parallel_for(count, threads, [&](std::int64_t e) {
    T* const to = copy.get() + e * height * stride;
    mosa::transpose_matrix(rows, columns, from + e * rows * columns, to, stride);
    if (last)
      for (std::int64_t r = 0; r < rows; ++r) to[columns * stride + r] = last[r * count + e];
  });
  return {copy.get(), stride, height * stride};
}

// Positions of the k tokens with the largest r, ascending.
template <class T>
void choose(std::int64_t length, const T* r, std::int64_t k, bool first_token, std::vector<std::int64_t>& order,
            std::int64_t* chosen) {
  order.resize(static_cast<std::size_t>(length));
  std::iota(order.begin(), order.end(), 0);
  const auto before = [&](std::int64_t a, std::int64_t b) {
    if (first_token && (a == 0 || b == 0)) return a == 0 && b != 0;
    const bool a_nan = std::isnan(r[a]), b_nan = std::isnan(r[b]);
    if (a_nan || b_nan) return a_nan && b_nan ? a < b : a_nan;
    return r[a] != r[b] ? r[a] > r[b] : a < b;
  };
  if (k < length) std::nth_element(order.begin(), order.begin() + k, order.end(), before);
  std::copy_n(order.begin(), k, chosen);
  std::sort(chosen, chosen + k);
}

// (positions, 2 pairs): cosines, then sines of multiples of `leap`.
std::vector<double> turns(std::int64_t count, std::int64_t leap, const MosaShape& shape) {
  const std::int64_t pairs = shape.head_width / 4;
  std::vector<double> table(static_cast<std::size_t>(count * 2 * pairs));
  for (std::int64_t p = 0; p < pairs; ++p) {
    const double frequency = std::pow(shape.theta, -static_cast<double>(p) / static_cast<double>(pairs));
    for (std::int64_t n = 0; n < count; ++n) {
      const double angle = static_cast<double>(n * leap) * frequency;
      table[(n * 2) * pairs + p] = std::cos(angle);
      table[(n * 2 + 1) * pairs + p] = std::sin(angle);
    }
  }
  return table;
}

// What a call shares; copies own what its panels point to.
template <class T>
struct Call {
  Plan<T> plan;
  Memory<T> router, qkv, out;

  Call(std::span<const std::int64_t> cu_seqlens, const MosaShape& shape, const MosaWeights<T>& weights, const T* x,
       std::int64_t x_stride, int threads) {
    const std::int64_t D = shape.model_width, E = shape.heads, d = shape.head_width, sparsity = shape.sparsity;
    plan.cu_seqlens = cu_seqlens, plan.shape = shape, plan.x = x, plan.x_stride = x_stride;
    plan.router = panels(1, D, E, weights.router, router, threads);
    plan.qkv = panels(E, D, 3 * d, weights.qkv, qkv, threads);
    plan.out = panels(E, d, D, weights.out, out, threads);
    const std::int64_t S = static_cast<std::int64_t>(cu_seqlens.size()) - 1, N = cu_seqlens[S];
    std::int64_t longest = 0;
    plan.rows.push_back(0);
    for (std::int64_t s = 0; s < S; ++s) {
      const std::int64_t length = cu_seqlens[s + 1] - cu_seqlens[s];
      longest = std::max(longest, length);
      plan.rows.push_back(plan.rows.back() + mosa_choice(length, sparsity));
    }
    plan.turns = turns(mosa::kLeap, 1, shape);
    plan.leaps = turns(longest / mosa::kLeap + 1, mosa::kLeap, shape);

    plan.scores.resize(static_cast<std::size_t>(E * N));
    for_row_blocks(N, 16 * D, threads, [&](std::int64_t begin, std::int64_t end) {
      mosa::route(plan, begin, end, plan.scores.data());
      mosa::trim_scratch();
    });
    plan.chosen.resize(static_cast<std::size_t>(E * plan.R()));
    parallel_for(S * E, threads, [&](std::int64_t i) {
      const std::int64_t s = i / E, e = i % E;
      std::vector<std::int64_t> order;
      choose(cu_seqlens[s + 1] - cu_seqlens[s], plan.scores.data() + e * N + cu_seqlens[s],
             plan.rows[s + 1] - plan.rows[s], shape.first_token, order,
             plan.chosen.data() + e * plan.R() + plan.rows[s]);
    });
  }

  // to = for every token the sum over the heads that chose it, blocks of tokens at a time.
  void gather(std::int64_t width, const T* rows, std::int64_t stride, const Panels<T>& matrices, T* to,
              std::int64_t to_stride, int threads) const {
    struct Block {
      std::int64_t sequence, first, last;
    };
    std::vector<Block> blocks;
    // A head has about 16 tokens of a block: enough to read its matrix for.
    const std::int64_t size = std::clamp<std::int64_t>(16 * std::min<std::int64_t>(plan.shape.sparsity, 64), 64, 1024);
    for (std::size_t s = 0; s + 1 < plan.cu_seqlens.size(); ++s) {
      const std::int64_t length = plan.cu_seqlens[s + 1] - plan.cu_seqlens[s];
      for (std::int64_t first = 0; first < length; first += size)
        blocks.push_back({static_cast<std::int64_t>(s), first, std::min(length, first + size)});
    }
    parallel_for(static_cast<std::int64_t>(blocks.size()), threads, [&](std::int64_t i) {
      const auto [sequence, first, last] = blocks[static_cast<std::size_t>(i)];
      mosa::gather_heads(plan, sequence, first, last, width, rows, stride, matrices, to, to_stride);
      mosa::trim_scratch();
    });
  }
};

}  // namespace

std::int64_t mosa_choice(std::int64_t T, std::int64_t sparsity) {
  if (T < 0) fail("mosa_choice", "T is {}, need at least 0", T);
  if (sparsity < 1) fail("mosa_choice", "sparsity is {}, need at least 1", sparsity);
  return std::min(std::max<std::int64_t>(T / sparsity, 2), T);
}

template <class T>
void mosa_forward(std::span<const std::int64_t> cu_seqlens, const MosaShape& shape, const MosaWeights<T>& weights,
                  const T* x, std::int64_t x_stride, T* y, std::int64_t y_stride, std::int64_t* chosen, int threads) {
  const TimedOperator timed("mosa");
  constexpr const char* where = "mosa.forward";
  check(where, cu_seqlens, shape, weights, x, x_stride);
  check_rows(where, "y", cu_seqlens.back(), shape.model_width, y, y_stride);
  if (cu_seqlens.back() == 0) return;
  apply_instruction_set_from_environment();

  const Call<T> call(cu_seqlens, shape, weights, x, x_stride, threads);
  const Plan<T>& plan = call.plan;
  const std::int64_t S = static_cast<std::int64_t>(cu_seqlens.size()) - 1, E = shape.heads, R = plan.R();
  const std::int64_t stride = plan.attended_stride();
  const Memory<T> attended = memory_for<T>(E * R * stride);
  parallel_for(S * E, threads, [&](std::int64_t i) {
    const std::int64_t s = i / E, e = i % E;
    if (plan.rows[s + 1] > plan.rows[s]) mosa::attend(plan, s, e, attended.get() + (e * R + plan.rows[s]) * stride);
    mosa::trim_scratch();
  });
  call.gather(shape.head_width, attended.get(), stride, plan.out, y, y_stride, threads);
  if (chosen) std::copy(plan.chosen.begin(), plan.chosen.end(), chosen);
}

template <class T>
void mosa_backward(std::span<const std::int64_t> cu_seqlens, const MosaShape& shape, const MosaWeights<T>& weights,
                   const T* x, std::int64_t x_stride, const T* dy, std::int64_t dy_stride, T* dx,
                   std::int64_t dx_stride, const MosaGradients<T>& gradients, int threads) {
  const TimedOperator timed("mosa");
  constexpr const char* where = "mosa.backward";
  check(where, cu_seqlens, shape, weights, x, x_stride);
  const std::int64_t N = cu_seqlens.back(), D = shape.model_width, E = shape.heads, d = shape.head_width;
  check_rows(where, "dy", N, D, dy, dy_stride);
  check_rows(where, "dx", N, D, dx, dx_stride);
  if (N == 0) return;
  check_array(where, "the router's gradient", D * E, gradients.router);
  check_array(where, "the gradient of qkv", E * D * 3 * d, gradients.qkv);
  check_array(where, "the gradient of out", E * d * D, gradients.out);
  apply_instruction_set_from_environment();

  const Call<T> call(cu_seqlens, shape, weights, x, x_stride, threads);
  const Plan<T>& plan = call.plan;
  const std::int64_t stride = plan.gradient_stride();
  const Memory<T> rows = memory_for<T>(E * plan.R() * stride);
  {
    Memory<T> copy;
    const Panels<T> out_transposed = transposed_panels<T>(E, d, D, weights.out, nullptr, copy, threads);
    parallel_for(E, threads, [&](std::int64_t e) {
      mosa::backward_head(plan, e, dy, dy_stride, out_transposed, rows.get() + e * plan.R() * stride, gradients);
      mosa::trim_scratch();
    });
  }
  // dx = the gradients of queries, keys, values and of the router's product, through their weights.
  Memory<T> copy;
  const Panels<T> back = transposed_panels<T>(E, D, 3 * d, weights.qkv, weights.router, copy, threads);
  call.gather(plan.gradient_width(), rows.get(), stride, back, dx, dx_stride, threads);
}

#define LOGLINEAR_MOSA(T)                                                                                       \
  template void mosa_forward(std::span<const std::int64_t>, const MosaShape&, const MosaWeights<T>&, const T*,  \
                             std::int64_t, T*, std::int64_t, std::int64_t*, int);                               \
  template void mosa_backward(std::span<const std::int64_t>, const MosaShape&, const MosaWeights<T>&, const T*, \
                              std::int64_t, const T*, std::int64_t, T*, std::int64_t, const MosaGradients<T>&, int);
LOGLINEAR_MOSA(float)
LOGLINEAR_MOSA(double)
#undef LOGLINEAR_MOSA

}  // namespace loglinear
