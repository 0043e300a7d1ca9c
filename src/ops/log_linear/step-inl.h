// One token of one head: docs/algorithm.md, section 4. Compiled once per instruction set.

#if defined(LOGLINEAR_OPS_LOG_LINEAR_STEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOGLINEAR_OPS_LOG_LINEAR_STEP_INL_H_
#undef LOGLINEAR_OPS_LOG_LINEAR_STEP_INL_H_
#else
#define LOGLINEAR_OPS_LOG_LINEAR_STEP_INL_H_
#endif

#include "ops/log_linear/chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace loglinear {
namespace HWY_NAMESPACE {

// One token of one head, from matrices as the State holds them.
template <class Rule, class T>
void step_head(const StepArgs& args, const Sizes& s, std::int64_t b, std::int64_t h, std::int64_t position,
               const std::vector<State::Slot>& slots, std::byte* written) {
  const std::int64_t K = s.K, V = s.V;
  const auto at = [&](const auto& x, std::int64_t head) { return b * x.stride[0] + head * x.stride[1]; };
  const std::int64_t group = h / (s.H / s.G);
  Matrix<T> scratch = Pool<T>::take(static_cast<std::size_t>(2 * K + 3 * V));
  T *q = scratch.get(), *k = q + K, *v = k + K, *out = v + V, *found = out + V;
  for (std::int64_t a = 0; a < K; ++a) {
    q[a] = log_linear::get<T>(args.q, at(args.q, group) + a);
    k[a] = log_linear::get<T>(args.k, at(args.k, group) + a);
  }
  for (std::int64_t j = 0; j < V; ++j) v[j] = log_linear::get<T>(args.v, at(args.v, h) + j);
  const double g = log_linear::bounded_decay(log_linear::get<double>(args.g, at(args.g, h)));
  const T beta = Rule::kErases ? log_linear::get<T>(args.beta, at(args.beta, h)) : T(1);
  const auto scale = [&](std::int64_t l) {
    return log_linear::get<T>(args.level_scales, at(args.level_scales, h) + std::min(l, s.L - 1));
  };

  T* fresh = reinterpret_cast<T*>(written) + h * K * V;
  const T self = scale(0) * dot(K, q, k) * (Rule::kErases ? beta : T(1));
  for (std::int64_t j = 0; j < V; ++j) out[j] = self * v[j];
  for (std::int64_t a = 0; a < K; ++a)
    for (std::int64_t j = 0; j < V; ++j) fresh[a * V + j] = (Rule::kErases ? beta * k[a] : k[a]) * v[j];

  const int carry = std::countr_one(static_cast<std::uint64_t>(position));
  for (const State::Slot& slot : slots) {
    T* S = reinterpret_cast<T*>(slot.matrix->data()) + h * K * V;
    if constexpr (Rule::kErases) {
      std::fill(found, found + V, T(0));
      for (std::int64_t a = 0; a < K; ++a)
        for (std::int64_t j = 0; j < V; ++j) found[j] += k[a] * S[a * V + j];
      for (std::int64_t a = 0; a < K; ++a)
        for (std::int64_t j = 0; j < V; ++j) S[a * V + j] -= beta * k[a] * found[j];
    }
    const T decay = static_cast<T>(std::exp(slot.log_decay[h] + g));
    const T weight = decay * scale(slot.bit + 1);
    std::fill(found, found + V, T(0));
    for (std::int64_t a = 0; a < K; ++a)
      for (std::int64_t j = 0; j < V; ++j) found[j] += q[a] * S[a * V + j];
    for (std::int64_t j = 0; j < V; ++j) out[j] += weight * found[j];
    if (slot.bit < carry)
      for (std::int64_t i = 0; i < K * V; ++i) fresh[i] += decay * S[i];
  }
  for (std::int64_t j = 0; j < V; ++j) log_linear::put<T>(args.out, at(args.out, h) + j, out[j]);
}

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#endif
