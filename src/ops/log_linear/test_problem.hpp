#pragma once
// Test support: a random problem for the operator, its arguments, and buffers that notice stray reads and writes.

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/random.hpp"
#include "compare.hpp"
#include "loglinear/log_linear.hpp"

namespace loglinear::testing {

// An array of up to four dimensions inside a larger, poisoned (NaN) buffer: guards on both sides and, when strided,
// gaps between rows. Starts as NaN.
template <class E>
class Guarded {
 public:
  Guarded() = default;
  Guarded(std::vector<std::int64_t> shape, bool strided) : shape_(std::move(shape)), stride_(shape_.size()) {
    std::int64_t step = 1;
    for (int d = static_cast<int>(shape_.size()) - 1; d >= 0; --d) {
      stride_[d] = step;
      step = step * shape_[d] + (strided ? 3 : 0);
    }
    memory_.assign(step + 2 * kGuard, poison());
  }

  template <class Pointer>
  operator BasicTensor<Pointer>() {
    BasicTensor<Pointer> x;
    x.data = memory_.data() + kGuard;
    x.dtype = dtype_of<E>;
    x.rank = static_cast<int>(shape_.size());
    for (int d = 0; d < x.rank; ++d) x.shape[d] = shape_[d], x.stride[d] = stride_[d];
    return x;
  }

  std::int64_t size() const {
    std::int64_t n = 1;
    for (std::int64_t d : shape_) n *= d;
    return n;
  }

  // Element number i in row-major order.
  E& operator[](std::int64_t i) {
    std::int64_t at = kGuard;
    for (int d = static_cast<int>(shape_.size()) - 1; d >= 0; --d) {
      at += i % shape_[d] * stride_[d];
      i /= shape_[d];
    }
    return memory_[at];
  }

  void set(const std::vector<double>& values) {
    for (std::int64_t i = 0; i < size(); ++i) {
      if constexpr (std::is_same_v<E, bfloat16>)
        (*this)[i] = bfloat16(static_cast<float>(values[i]));
      else
        (*this)[i] = static_cast<E>(values[i]);
    }
  }

  std::vector<double> values() {
    std::vector<double> out(size());
    for (std::int64_t i = 0; i < size(); ++i) out[i] = static_cast<double>((*this)[i]);
    return out;
  }

  // Whether everything outside the array is still poisoned.
  bool intact() {
    std::vector<E> copy = memory_;
    for (std::int64_t i = 0; i < size(); ++i) (*this)[i] = poison();
    bool same = true;
    const E p = poison();
    for (const E& e : memory_) same = same && std::memcmp(&e, &p, sizeof(E)) == 0;
    memory_ = std::move(copy);
    return same;
  }

 private:
  static constexpr std::int64_t kGuard = 64;
  static E poison() {
    if constexpr (std::is_same_v<E, bfloat16>)
      return bfloat16(std::numeric_limits<float>::quiet_NaN());
    else
      return std::numeric_limits<E>::quiet_NaN();
  }
  std::vector<std::int64_t> shape_, stride_;
  std::vector<E> memory_;
};

struct Shape {
  Rule rule = Rule::scalar_decay;
  std::int64_t B = 1, T = 1, G = 1, H = 1, K = 4, V = 4, L = 4;
  bool strided = false;
  std::vector<std::int64_t> cu_seqlens = {};
  int chunk = 0;
};

// E: type of q, k, v, out; S: type of gates, scales and states.
template <class E>
struct Problem {
  using S = std::conditional_t<std::is_same_v<E, double>, double, float>;

  Shape shape;
  Guarded<E> q, k, v, out, dout, dq, dk, dv;
  Guarded<S> g, beta, level_scales, dg, dbeta, dlevel_scales;

  Problem(const Shape& s, std::uint64_t seed) : shape(s) {
    allocate();
    Random random(seed, 1);
    const auto normal = [&](std::int64_t n, double scale) {
      std::vector<double> x(n);
      for (double& e : x) e = scale * random.normal();
      return x;
    };
    q.set(normal(q.size(), 1.0 / std::sqrt(s.K)));
    std::vector<double> keys = normal(k.size(), 1.0);
    for (std::int64_t row = 0; row < k.size() / s.K; ++row) {  // unit length, as the delta rule wants
      double norm = 0;
      for (std::int64_t a = 0; a < s.K; ++a) norm += keys[row * s.K + a] * keys[row * s.K + a];
      for (std::int64_t a = 0; a < s.K; ++a) keys[row * s.K + a] /= std::sqrt(norm + 1e-6);
    }
    k.set(keys);
    v.set(normal(v.size(), 1.0));
    dout.set(normal(dout.size(), 1.0));
    std::vector<double> gates(g.size()), writes(g.size()), scales(level_scales.size());
    for (double& e : gates) e = -0.2 * random.uniform() * random.uniform();
    for (double& e : writes) e = random.uniform();
    for (double& e : scales) e = 0.2 + random.uniform();
    g.set(gates);
    beta.set(writes);
    level_scales.set(scales);
  }

  // The same numbers in another type.
  template <class Other>
  explicit Problem(Problem<Other>& from) : shape(from.shape) {
    allocate();
    q.set(from.q.values()), k.set(from.k.values()), v.set(from.v.values()), dout.set(from.dout.values());
    g.set(from.g.values()), beta.set(from.beta.values()), level_scales.set(from.level_scales.values());
  }

  void allocate() {
    const Shape& s = shape;
    q = k = dq = dk = Guarded<E>({s.B, s.T, s.G, s.K}, s.strided);
    v = out = dout = dv = Guarded<E>({s.B, s.T, s.H, s.V}, s.strided);
    g = beta = dg = dbeta = Guarded<S>({s.B, s.T, s.H}, s.strided);
    level_scales = dlevel_scales = Guarded<S>({s.B, s.T, s.H, s.L}, s.strided);
  }

  log_linear::ForwardArgs forward_args() {
    log_linear::ForwardArgs a;
    a.rule = shape.rule;
    a.q = q, a.k = k, a.v = v, a.g = g, a.level_scales = level_scales, a.out = out;
    if (has_beta(shape.rule)) a.beta = beta;
    a.cu_seqlens = shape.cu_seqlens;
    a.chunk = shape.chunk;
    return a;
  }

  log_linear::BackwardArgs backward_args() {
    log_linear::BackwardArgs a;
    a.rule = shape.rule;
    a.q = q, a.k = k, a.v = v, a.g = g, a.level_scales = level_scales, a.dout = dout;
    a.dq = dq, a.dk = dk, a.dv = dv, a.dg = dg, a.dlevel_scales = dlevel_scales;
    if (has_beta(shape.rule)) a.beta = beta, a.dbeta = dbeta;
    a.cu_seqlens = shape.cu_seqlens;
    a.chunk = shape.chunk;
    return a;
  }

  bool intact() {
    return q.intact() && k.intact() && v.intact() && out.intact() && dout.intact() && dq.intact() && dk.intact() &&
           dv.intact() && g.intact() && beta.intact() && level_scales.intact() && dg.intact() && dbeta.intact() &&
           dlevel_scales.intact();
  }
};

// Tokens [first, last) of an array (B, T, ...), as a view.
template <class Pointer>
BasicTensor<Pointer> tokens(BasicTensor<Pointer> x, std::int64_t first, std::int64_t last) {
  if (!x.present()) return x;
  const std::int64_t bytes = first * x.stride[1] * static_cast<std::int64_t>(size_of(x.dtype));
  x.data =
      static_cast<std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char*, char*>>(x.data) +
      bytes;
  x.shape[1] = last - first;
  return x;
}

inline log_linear::ForwardArgs piece(log_linear::ForwardArgs a, std::int64_t first, std::int64_t last) {
  for (ConstTensor* x : {&a.q, &a.k, &a.v, &a.g, &a.beta, &a.level_scales}) *x = tokens(*x, first, last);
  a.out = tokens(a.out, first, last);
  return a;
}

inline log_linear::BackwardArgs piece(log_linear::BackwardArgs a, std::int64_t first, std::int64_t last) {
  for (ConstTensor* x : {&a.q, &a.k, &a.v, &a.g, &a.beta, &a.level_scales, &a.dout}) *x = tokens(*x, first, last);
  for (Tensor* x : {&a.dq, &a.dk, &a.dv, &a.dg, &a.dbeta, &a.dlevel_scales}) *x = tokens(*x, first, last);
  return a;
}

// Token t of every sequence, for step().
inline log_linear::StepArgs step_args(const log_linear::ForwardArgs& a, std::int64_t t) {
  const auto at = [t](auto x) {
    if (!x.present()) return x;
    x = tokens(x, t, t + 1);
    for (int d = 1; d + 1 < x.rank; ++d) x.shape[d] = x.shape[d + 1], x.stride[d] = x.stride[d + 1];
    --x.rank;
    return x;
  };
  log_linear::StepArgs s;
  s.rule = a.rule;
  s.q = at(a.q), s.k = at(a.k), s.v = at(a.v), s.g = at(a.g), s.beta = at(a.beta), s.level_scales = at(a.level_scales);
  s.out = at(a.out);
  return s;
}

// Everything a state holds: its open tokens, then its live matrices, dense, one after the other.
inline std::vector<double> dense(const State& state) {
  std::vector<double> all;
  for (Buffer State::Open::*rows : {&State::Open::k, &State::Open::v, &State::Open::g, &State::Open::beta}) {
    if (!state.open()) break;
    const Buffer& buffer = (*state.open()).*rows;
    const std::int64_t numbers = static_cast<std::int64_t>(buffer.size() / size_of(state.dtype()));
    const std::int64_t heads = rows == &State::Open::k ? state.open()->groups : state.heads();
    const std::int64_t width = numbers / heads / state.chunk();
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t i = h * state.chunk() * width; i < (h * state.chunk() + state.open_tokens()) * width; ++i)
        all.push_back(state.dtype() == DType::f64 ? reinterpret_cast<const double*>(buffer.data())[i]
                                                  : reinterpret_cast<const float*>(buffer.data())[i]);
  }
  for (const State::Slot& slot : state.slots()) {
    const std::vector<double> one = state.dense(slot.bit);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

}  // namespace loglinear::testing
