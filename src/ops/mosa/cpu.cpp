// The kernels of MoSA: docs/algorithm.md, section 10.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/mosa/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "base/attention.hpp"
#include "base/matrix-inl.h"
#include "base/pool.hpp"
#include "base/vector_math.hpp"
#include "ops/mosa/cpu.hpp"

HWY_BEFORE_NAMESPACE();
namespace loglinear::mosa {
namespace HWY_NAMESPACE {
namespace {

using loglinear::HWY_NAMESPACE::product;
using loglinear::HWY_NAMESPACE::transpose;

constexpr std::int64_t kTile = 64;    // tokens
constexpr std::int64_t kDepth = 256;  // of a product: a panel of its second operand stays in the first-level cache

template <class T>
Matrix<T> scratch(std::int64_t rows, std::int64_t stride) {
  return Pool<T>::take(static_cast<std::size_t>(std::max<std::int64_t>(1, rows * stride)));
}

// C = A B, or += when add.
template <class T>
void deep_product(std::int64_t M, std::int64_t N, std::int64_t K, const T* a, std::int64_t a_row, std::int64_t a_col,
                  const T* b, std::int64_t ldb, T* c, std::int64_t ldc, bool add = false) {
  for (std::int64_t k = 0; k < K; k += kDepth)
    product<T>(M, N, std::min(kDepth, K - k), a + k * a_col, a_row, a_col, b + k * ldb, ldb, c, ldc,
               {.beta = add || k > 0 ? T(1) : T(0)});
}

template <class T>
struct Head {
  const Plan<T>& plan;
  const std::int64_t sequence, head;
  const std::int64_t D, d, k, begin;
  const std::int64_t* const chosen;  // (k)
  const T* const scores;             // of the sequence
  const std::int64_t qkv_stride, row;
  Matrix<T> qkv_memory = scratch<T>(k, qkv_stride), tokens_memory = scratch<T>(kTile, row);
  T *const qkv = qkv_memory.get(), *const tokens = tokens_memory.get();  // (k, 3 d)

  Head(const Plan<T>& p, std::int64_t s, std::int64_t e)
      : plan(p),
        sequence(s),
        head(e),
        D(p.shape.model_width),
        d(p.shape.head_width),
        k(p.rows[s + 1] - p.rows[s]),
        begin(p.cu_seqlens[s]),
        chosen(p.chosen.data() + e * p.R() + p.rows[s]),
        scores(p.scores.data() + e * p.N() + begin),
        qkv_stride(p.qkv_stride()),
        row(row_stride(D)) {}

  // The chosen tokens' rows of an array like x.
  void gather(const T* from, std::int64_t stride, std::int64_t first, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i)
      std::copy_n(from + (begin + chosen[first + i]) * stride, D, tokens + i * row);
  }

  // Turns rows of queries or keys by their positions, or back.
  void turn(std::int64_t count, const std::int64_t* positions, bool back, T* x, std::int64_t stride, std::int64_t parts,
            std::int64_t apart) {
    const std::int64_t pairs = plan.pairs();
    for (std::int64_t i = 0; i < count; ++i) {
      const double* small = plan.turns.data() + positions[i] % kLeap * 2 * pairs;
      const double* large = plan.leaps.data() + positions[i] / kLeap * 2 * pairs;
      for (std::int64_t p = 0; p < pairs; ++p) {
        const double cosine = large[p] * small[p] - large[pairs + p] * small[pairs + p];
        const double sine = large[pairs + p] * small[p] + large[p] * small[pairs + p];
        const T c = static_cast<T>(cosine), s = static_cast<T>(back ? -sine : sine);
        for (std::int64_t part = 0; part < parts; ++part) {
          T* at = x + i * stride + part * apart;
          const T a = at[p], b = at[pairs + p];
          at[p] = a * c - b * s;
          at[pairs + p] = b * c + a * s;
        }
      }
    }
  }

  void project() {
    const Panels<T>& w = plan.qkv;
    for (std::int64_t first = 0; first < k; first += kTile) {
      const std::int64_t count = std::min(kTile, k - first);
      gather(plan.x, plan.x_stride, first, count);
      T* to = qkv + first * qkv_stride;
      deep_product<T>(count, 3 * d, D, tokens, row, 1, w.of(head), w.stride, to, qkv_stride);
      turn(count, chosen + first, false, to, qkv_stride, 2, d);
    }
  }

  // The chosen tokens stand in the order of their positions: causal attention among k tokens.
  attention::Strip<T> strip() const {
    AttentionShape one;
    one.heads = one.kv_heads = 1, one.key_width = one.value_width = d;
    return attention::strip_of<T>({qkv, qkv + d, qkv + 2 * d, qkv_stride, qkv_stride, qkv_stride}, {0, k, 0, k}, one, 0,
                                  attention::lags_of(one));
  }

  // A (k, d) and, if wanted, the log sums (k) that its adjoint asks for.
  void attend_chosen(T* to, std::int64_t stride, T* log_sums) const {
    attention::Online<T> online;
    online.out = to, online.out_stride = stride, online.log_sums = log_sums, online.stat_stride = 1;
    for (std::int64_t first = 0; first < k; first += attention::kColumns)
      attention::forward(strip(), online, first, std::min(k, first + attention::kColumns));
  }

  void attend(T* attended) {
    project();
    const std::int64_t stride = plan.attended_stride();
    attend_chosen(attended, stride, nullptr);
    for (std::int64_t i = 0; i < k; ++i) vec::scale(d, scores[chosen[i]], attended + i * stride, attended + i * stride);
  }

  // dqkv (k, gradient_stride), and this sequence's part of the weights' gradients ADDED to dout (d, row), dweights
  // (D, gradient_stride), which has the router's gradient in its last column.
  void backward(const T* dy, std::int64_t dy_stride, const Panels<T>& out_transposed, T* dqkv, T* dout, T* dweights) {
    project();
    const std::int64_t width = row_stride(d), stride = plan.gradient_stride();
    const Matrix<T> sums_memory = scratch<T>(2 * k + kTile, width), log_sums = scratch<T>(k, 1);
    T *const attended = sums_memory.get(), *const dattended = attended + k * width;  // A and its gradient
    T* const weighted = dattended + k * width;                                       // r A of a tile
    attend_chosen(attended, width, log_sums.get());
    // y = (r A) W_O: dW_O, then the gradients of r and A.
    for (std::int64_t first = 0; first < k; first += kTile) {
      const std::int64_t count = std::min(kTile, k - first);
      gather(dy, dy_stride, first, count);
      for (std::int64_t i = 0; i < count; ++i)
        vec::scale(d, scores[chosen[first + i]], attended + (first + i) * width, weighted + i * width);
      product<T>(d, D, count, weighted, 1, width, tokens, row, dout, row, {.beta = T(1)});
      T* const da = dattended + first * width;
      deep_product<T>(count, d, D, tokens, row, 1, out_transposed.of(head), out_transposed.stride, da, width);
      for (std::int64_t i = 0; i < count; ++i) {
        const T r = scores[chosen[first + i]];
        const T dr = vec::dot(d, da + i * width, attended + (first + i) * width);
        dqkv[(first + i) * stride + 3 * d] = dr * r * (T(1) - r);
        vec::scale(d, r, da + i * width, da + i * width);
      }
    }
    attention::Adjoint<T> adjoint;
    adjoint.out = attended, adjoint.dout = dattended, adjoint.log_sums = log_sums.get();
    adjoint.out_stride = adjoint.dout_stride = width, adjoint.stat_stride = 1;
    adjoint.dq = dqkv, adjoint.dk = dqkv + d, adjoint.dv = dqkv + 2 * d;
    adjoint.dq_stride = adjoint.dk_stride = adjoint.dv_stride = stride;
    attention::backward(strip(), adjoint, {0, k}, {0, k});
    turn(k, chosen, true, dqkv, stride, 2, d);
    for (std::int64_t first = 0; first < k; first += kTile) {
      const std::int64_t count = std::min(kTile, k - first);
      gather(plan.x, plan.x_stride, first, count);
      product<T>(D, 3 * d + 1, count, tokens, 1, row, dqkv + first * stride, stride, dweights, stride, {.beta = T(1)});
    }
  }
};

template <class T>
void route_rows(const Plan<T>& plan, std::int64_t begin, std::int64_t end, T* scores) {
  const std::int64_t E = plan.shape.heads, N = plan.N(), stride = row_stride(E);
  const Matrix<T> memory = scratch<T>(kTile, stride);
  for (std::int64_t first = begin; first < end; first += kTile) {
    const std::int64_t count = std::min(kTile, end - first);
    deep_product<T>(count, E, plan.shape.model_width, plan.x + first * plan.x_stride, plan.x_stride, 1,
                    plan.router.data, plan.router.stride, memory.get(), stride);
    for (std::int64_t e = 0; e < E; ++e) {
      T* const to = scores + e * N + first;
      for (std::int64_t i = 0; i < count; ++i) to[i] = memory.get()[i * stride + e];
      vec::sigmoid(count, to, to);
    }
  }
}

template <class T>
void gather_rows(const Plan<T>& plan, std::int64_t sequence, std::int64_t first, std::int64_t last, std::int64_t width,
                 const T* rows, std::int64_t stride, const Panels<T>& matrices, T* y, std::int64_t y_stride) {
  const std::int64_t D = plan.shape.model_width, row = row_stride(D), begin = plan.cu_seqlens[sequence];
  const Matrix<T> memory = scratch<T>(kTile, row);
  for (std::int64_t t = first; t < last; ++t) std::fill_n(y + (begin + t) * y_stride, D, T(0));
  for (std::int64_t e = 0; e < plan.shape.heads; ++e) {
    const std::int64_t* const choice = plan.chosen.data() + e * plan.R();
    const std::int64_t *at = choice + plan.rows[sequence], *const end = choice + plan.rows[sequence + 1];
    at = std::lower_bound(at, end, first);
    const std::int64_t* const stop = std::lower_bound(at, end, last);
    for (; at < stop; at += kTile) {
      const std::int64_t count = std::min<std::int64_t>(kTile, stop - at);
      deep_product<T>(count, D, width, rows + (e * plan.R() + (at - choice)) * stride, stride, 1, matrices.of(e),
                      matrices.stride, memory.get(), row);
      for (std::int64_t i = 0; i < count; ++i)
        vec::add_scaled(D, T(1), memory.get() + i * row, y + (begin + at[i]) * y_stride);
    }
  }
}

template <class T>
void backward_of_head(const Plan<T>& plan, std::int64_t head, const T* dy, std::int64_t dy_stride,
                      const Panels<T>& out_transposed, T* rows, const MosaGradients<T>& gradients) {
  const std::int64_t D = plan.shape.model_width, d = plan.shape.head_width, E = plan.shape.heads;
  const std::int64_t row = row_stride(D), stride = plan.gradient_stride();
  const Matrix<T> out_memory = scratch<T>(d, row), weights_memory = scratch<T>(D, stride);
  T *const dout = out_memory.get(), *const dweights = weights_memory.get();
  std::fill_n(dout, d * row, T(0));
  std::fill_n(dweights, D * stride, T(0));
  for (std::size_t s = 0; s + 1 < plan.rows.size(); ++s)
    if (plan.rows[s + 1] > plan.rows[s])
      Head<T>(plan, static_cast<std::int64_t>(s), head)
          .backward(dy, dy_stride, out_transposed, rows + plan.rows[s] * stride, dout, dweights);
  for (std::int64_t i = 0; i < d; ++i) vec::add_scaled(D, T(1), dout + i * row, gradients.out + (head * d + i) * D);
  for (std::int64_t i = 0; i < D; ++i) {
    vec::add_scaled(3 * d, T(1), dweights + i * stride, gradients.qkv + (head * D + i) * 3 * d);
    gradients.router[i * E + head] += dweights[i * stride + 3 * d];
  }
}

}  // namespace

#define LOGLINEAR_MOSA(T, suffix)                                                                               \
  void route_##suffix(const Plan<T>& plan, std::int64_t begin, std::int64_t end, T* scores) {                   \
    route_rows(plan, begin, end, scores);                                                                       \
  }                                                                                                             \
  void attend_##suffix(const Plan<T>& plan, std::int64_t sequence, std::int64_t head, T* attended) {            \
    Head<T>(plan, sequence, head).attend(attended);                                                             \
  }                                                                                                             \
  void gather_##suffix(const Plan<T>& plan, std::int64_t sequence, std::int64_t first, std::int64_t last,       \
                       std::int64_t width, const T* rows, std::int64_t stride, const Panels<T>& matrices, T* y, \
                       std::int64_t y_stride) {                                                                 \
    gather_rows(plan, sequence, first, last, width, rows, stride, matrices, y, y_stride);                       \
  }                                                                                                             \
  void backward_##suffix(const Plan<T>& plan, std::int64_t head, const T* dy, std::int64_t dy_stride,           \
                         const Panels<T>& out_transposed, T* rows, const MosaGradients<T>& gradients) {         \
    backward_of_head(plan, head, dy, dy_stride, out_transposed, rows, gradients);                               \
  }                                                                                                             \
  void transpose_##suffix(std::int64_t rows, std::int64_t columns, const T* from, T* to, std::int64_t stride) { \
    transpose<T>(rows, columns, from, columns, to, stride);                                                     \
  }
LOGLINEAR_MOSA(float, f32)
LOGLINEAR_MOSA(double, f64)
#undef LOGLINEAR_MOSA

}  // namespace HWY_NAMESPACE
}  // namespace loglinear::mosa
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace loglinear::mosa {

#define LOGLINEAR_MOSA(T, suffix)                                                                             \
  HWY_EXPORT(route_##suffix);                                                                                 \
  HWY_EXPORT(attend_##suffix);                                                                                \
  HWY_EXPORT(gather_##suffix);                                                                                \
  HWY_EXPORT(transpose_##suffix);                                                                             \
  HWY_EXPORT(backward_##suffix);                                                                              \
  template <>                                                                                                 \
  void route(const Plan<T>& plan, std::int64_t begin, std::int64_t end, T* scores) {                          \
    HWY_DYNAMIC_DISPATCH(route_##suffix)(plan, begin, end, scores);                                           \
  }                                                                                                           \
  template <>                                                                                                 \
  void attend(const Plan<T>& plan, std::int64_t sequence, std::int64_t head, T* attended) {                   \
    HWY_DYNAMIC_DISPATCH(attend_##suffix)(plan, sequence, head, attended);                                    \
  }                                                                                                           \
  template <>                                                                                                 \
  void gather_heads(const Plan<T>& plan, std::int64_t sequence, std::int64_t first, std::int64_t last,        \
                    std::int64_t width, const T* rows, std::int64_t stride, const Panels<T>& matrices, T* y,  \
                    std::int64_t y_stride) {                                                                  \
    HWY_DYNAMIC_DISPATCH(gather_##suffix)                                                                     \
    (plan, sequence, first, last, width, rows, stride, matrices, y, y_stride);                                \
  }                                                                                                           \
  template <>                                                                                                 \
  void backward_head(const Plan<T>& plan, std::int64_t head, const T* dy, std::int64_t dy_stride,             \
                     const Panels<T>& out_transposed, T* rows, const MosaGradients<T>& gradients) {           \
    HWY_DYNAMIC_DISPATCH(backward_##suffix)(plan, head, dy, dy_stride, out_transposed, rows, gradients);      \
  }                                                                                                           \
  template <>                                                                                                 \
  void transpose_matrix(std::int64_t rows, std::int64_t columns, const T* from, T* to, std::int64_t stride) { \
    HWY_DYNAMIC_DISPATCH(transpose_##suffix)(rows, columns, from, to, stride);                                \
  }
LOGLINEAR_MOSA(float, f32)
LOGLINEAR_MOSA(double, f64)
#undef LOGLINEAR_MOSA

void trim_scratch() {
  constexpr std::size_t kKeepBytes = std::size_t{64} << 20;
  Pool<float>::trim(kKeepBytes);
  Pool<double>::trim(kKeepBytes);
}

}  // namespace loglinear::mosa
#endif
