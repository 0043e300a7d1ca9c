#pragma once
// What the two log-linear mixers share: level scales, the short convolution with its tail, and running the operator.

#include <algorithm>
#include <memory>
#include <vector>

#include "base/op_timer.hpp"
#include "base/state_access.hpp"
#include "loglinear/gates.hpp"
#include "loglinear/level_matches.hpp"
#include "loglinear/level_scales.hpp"
#include "loglinear/log_linear.hpp"
#include "loglinear/short_conv.hpp"
#include "nn/mixer.hpp"
#include "nn/projection.hpp"

namespace loglinear::nn {

// Whether a config learns level scales; otherwise all of them are one.
inline bool learns_level_scales(const ModelConfig& config) {
  return find_family(config.family)->log_linear && !config.unit_scales;
}

// The convolution over a slice of the projection, from and to its tail in the state.
template <class T>
struct ShortConv {
  std::int64_t channels = 0, width = 0;
  Weight<T> weight, bias;  // (channels, 1, width); bias (channels) or null
  std::vector<T> LayerState<T>::*tail = &LayerState<T>::conv;

  void forward(const Pass<T>& pass, const T* x, std::int64_t x_stride, T* y) const {
    const T* before = nullptr;
    T* after = nullptr;
    if (pass.state) before = after = (pass.state->*tail).data();
    const bool kept = pass.state != nullptr && !(pass.state->*tail).empty();
    short_conv_forward<T>(pass.cu_seqlens, channels, width, x, x_stride, weight.value, bias.value,
                          kept ? std::span(&before, 1) : std::span<const T* const>(), y, channels,
                          kept ? std::span(&after, 1) : std::span<T* const>(), pass.threads);
  }
  void backward(const Pass<T>& pass, const T* x, std::int64_t x_stride, const T* dy, T* dx,
                std::int64_t dx_stride) const {
    short_conv_backward<T>(pass.cu_seqlens, channels, width, x, x_stride, weight.value, bias.value, dy, channels, dx,
                           dx_stride, weight.grad, bias.grad, pass.threads);
  }
};

// What the model's level policy makes of L, dl and the queries and keys that states are matched by, or one everywhere.
template <class T>
class LevelScales {
 public:
  // Parameters of the mixer `prefix`. factor: of the scales, and of what the operator's queries match.
  LevelScales(const ModelConfig& config, const ParameterStore<T>& store, const std::string& prefix, T factor)
      : heads_(config.num_heads),
        levels_(config.num_levels),
        trained_(config.trained_levels),
        match_width_(config.match_width),
        policy_(config.level_policy),
        learned_(learns_level_scales(config)),
        factor_(factor),
        ones_(static_cast<std::size_t>(config.num_levels), T{1}) {
    if (learned_) level_ = store.find(prefix + "L");
    if (match_width_ == 0) return;
    match_proj_ = {store.find(prefix + "match_proj.weight"), 2 * match_width_, config.hidden_size};
    match_conv_ = {2 * match_width_,
                   config.conv_width,
                   store.find(prefix + "match_conv1d.weight"),
                   {},
                   &LayerState<T>::match_conv};
  }

  // x (N, D), the mixer's input; dl (N, H * L), rows `stride` apart; neither is read when the scales are one. q, k (1,
  // N, G, K), the operator's.
  ConstTensor forward(const Pass<T>& pass, const T* x, const T* dl, std::int64_t stride, const ConstTensor& q,
                      const ConstTensor& k) {
    if (!learned_) return scales_ = ConstTensor(ones_.data(), {1, pass.tokens, heads_, levels_}, {0, 0, 0, 1});
    std::int64_t last = 0;
    positions_ = pass.keep->template take<std::int64_t>(pass.tokens);
    for (std::size_t n = 0; n + 1 < pass.cu_seqlens.size(); ++n) {
      const std::int64_t begin = pass.position + (pass.offsets.empty() ? 0 : pass.offsets[n]);
      for (std::int64_t t = pass.cu_seqlens[n]; t < pass.cu_seqlens[n + 1]; ++t)
        last = std::max(last, positions_[t] = begin + t - pass.cu_seqlens[n]);
    }
    shape_ = {policy_, pass.tokens, heads_, levels_, trained_, level_columns(policy_, trained_, last)};
    if (policy_ == LevelPolicy::content) {
      const bool own = match_width_ > 0;
      shape_.groups = own ? 1 : q.shape[2];
      shape_.match_factor = own ? 1 : static_cast<double>(factor_);
      if (own) project(pass, x);
      match(pass, own ? own_keys() : keys_of(q, k));
      if (own) center(pass, matches_);
    }
    T* scales = pass.keep->template take<T>(pass.tokens * heads_ * shape_.columns);
    level_scales_forward<T>(shape_, positions_, dl, stride, level_.value, matches_, factor_, scales, pass.threads);
    return scales_ = ConstTensor(scales, {1, pass.tokens, heads_, shape_.columns});
  }

  const ConstTensor& scales() const { return scales_; }
  Tensor gradient(const Pass<T>& pass) const {
    const std::int64_t columns = scales_.shape[3];
    return Tensor(pass.scratch->template take<T>(pass.tokens * heads_ * columns), {1, pass.tokens, heads_, columns});
  }

  // Writes ddl. What states were matched by gets its gradient too: the operator's queries and keys, added to args.dq
  // and args.dk, which it has written, or the layer's own: then dx (N, D) is written and true returned, for the mixer
  // to add the rest to.
  bool backward(const Pass<T>& pass, const T* x, const T* dl, std::int64_t stride, const log_linear::BackwardArgs& args,
                T* ddl, std::int64_t ddl_stride, T* dx) const {
    if (!learned_) return false;
    const ArenaScope scope(*pass.scratch);
    const bool content = policy_ == LevelPolicy::content;
    T* dmatches = content ? pass.scratch->template take<T>(pass.tokens * shape_.groups * shape_.columns) : nullptr;
    level_scales_backward<T>(shape_, positions_, dl, stride, level_.value, matches_, factor_,
                             static_cast<const T*>(args.dlevel_scales.data), ddl, ddl_stride, level_.grad, dmatches,
                             pass.threads);
    if (!content) return false;
    if (match_width_ == 0) {
      match_backward(pass, keys_of(args.q, args.k), dmatches, static_cast<T*>(args.dq.data), args.dq.stride[1],
                     static_cast<T*>(args.dk.data), args.dk.stride[1]);
      return false;
    }
    const std::int64_t R = match_proj_.out;
    T* dqk = pass.scratch->template take<T>(pass.tokens * R);
    T* dprojected = pass.scratch->template take<T>(pass.tokens * R);
    std::fill_n(dqk, pass.tokens * R, T{0});
    center(pass, dmatches);
    match_backward(pass, own_keys(), dmatches, dqk, R, dqk + match_width_, R);
    match_conv_.backward(pass, projected_, R, dqk, dprojected, R);
    match_proj_.backward_weight(pass.tokens, x, dprojected, pass.threads);
    match_proj_.backward_input(pass.tokens, dprojected, dx, pass.threads);
    return true;
  }

 private:
  // Queries and keys (N, groups, width) that states are matched by.
  struct Matched {
    const T* q;
    std::int64_t q_stride;
    const T* k;
    std::int64_t k_stride, width;
  };
  static Matched keys_of(const ConstTensor& q, const ConstTensor& k) {
    return {static_cast<const T*>(q.data), q.stride[1], static_cast<const T*>(k.data), k.stride[1], q.shape[3]};
  }
  Matched own_keys() const { return {qk_, match_proj_.out, qk_ + match_width_, match_proj_.out, match_width_}; }
  void project(const Pass<T>& pass, const T* x) {
    projected_ = pass.keep->template take<T>(pass.tokens * match_proj_.out);
    qk_ = pass.keep->template take<T>(pass.tokens * match_proj_.out);
    match_proj_.forward(pass.tokens, x, T{0}, projected_, pass.threads);
    match_conv_.forward(pass, projected_, match_proj_.out, qk_);
  }

  MatchShape match_shape(const Pass<T>& pass, std::int64_t width) const {
    return {pass.cu_seqlens, shape_.groups, width, shape_.columns};
  }
  // Sequences that begin at a position without keys; none when all begin at 0.
  static std::vector<KeySums<T>> offset_sums(const Pass<T>& pass) {
    std::vector<KeySums<T>> sums(pass.offsets.size());
    for (std::size_t n = 0; n < sums.size(); ++n) sums[n].position = pass.offsets[n];
    return sums;
  }
  void match(const Pass<T>& pass, const Matched& m) {
    matches_ = pass.keep->template take<T>(pass.tokens * shape_.groups * shape_.columns);
    const std::vector<KeySums<T>> begun = offset_sums(pass);
    const std::span<KeySums<T>> state = pass.state ? std::span(&pass.state->key_sums, 1) : std::span<KeySums<T>>();
    level_matches_forward<T>(match_shape(pass, m.width), m.q, m.q_stride, m.k, m.k_stride,
                             pass.state ? state : std::span(begun), matches_, state, pass.threads);
  }
  // Own keys are centred; the gradient goes through the same projection.
  void center(const Pass<T>& pass, T* matches) const {
    center_matches<T>(pass.tokens, shape_.groups, shape_.columns, positions_, matches, pass.threads);
  }
  // Adds to dq and dk.
  void match_backward(const Pass<T>& pass, const Matched& m, const T* dmatches, T* dq, std::int64_t dq_stride, T* dk,
                      std::int64_t dk_stride) const {
    level_matches_backward<T>(match_shape(pass, m.width), m.q, m.q_stride, m.k, m.k_stride, offset_sums(pass), dmatches,
                              dq, dq_stride, dk, dk_stride, pass.threads);
  }

  std::int64_t heads_, levels_, trained_, match_width_;
  LevelPolicy policy_;
  bool learned_;
  T factor_;
  Weight<T> level_;
  Projection<T> match_proj_;  // with a match_width: queries, then keys
  ShortConv<T> match_conv_;
  std::vector<T> ones_;
  ConstTensor scales_;
  LevelShape shape_;
  std::int64_t* positions_ = nullptr;  // (N)
  T* matches_ = nullptr;               // (N, groups, columns), of content
  T* projected_ = nullptr;             // (N, 2 match_width)
  T* qk_ = nullptr;                    // (N, 2 match_width), convolved
};

// Empty states at the positions where the sequences of a pass begin: matrices and open tokens of zeros. None when all
// begin at 0.
template <class T, class Args>
std::vector<State> offset_states(const Args& args, const Pass<T>& pass) {
  std::vector<State> states;
  if (pass.offsets.empty()) return states;
  const std::int64_t G = args.q.shape[2], H = args.v.shape[2], K = args.q.shape[3], V = args.v.shape[3],
                     L = args.level_scales.shape[3];
  std::shared_ptr<Buffer> zeros;  // nobody writes what is shared
  const auto clear = [](Buffer& buffer) { std::fill(buffer.begin(), buffer.end(), std::byte{0}); };
  for (const std::int64_t position : pass.offsets) {
    State& state = states.emplace_back(args.rule, H, K, V, dtype_of<T>);
    if (position == 0) continue;
    if (!zeros) clear(*(zeros = std::make_shared<Buffer>(static_cast<std::size_t>(H * K * V) * sizeof(T))));
    const std::int64_t boundary = position & -static_cast<std::int64_t>(state.chunk());
    const int last = last_bit(state.chunk(), L);
    std::vector<State::Slot> slots;
    for (int bit = last; bit >= chunk_bit(state.chunk()); --bit)
      if (bit == last ? boundary >> bit != 0 : (boundary >> bit & 1) != 0)
        slots.push_back({bit, zeros, std::vector<double>(static_cast<std::size_t>(H), 0.0)});
    const std::shared_ptr<State::Open> open = state.new_open(G);
    for (Buffer* buffer : {&open->k, &open->v, &open->g, &open->beta}) clear(*buffer);
    state.assign(position, std::move(slots), open);
  }
  return states;
}

// The operator over a pass: packed sequences, or the next tokens of one, a single one in its step form. `args` has the
// tensors; q .. out are (1, N, ...).
template <class T>
void run_log_linear(log_linear::ForwardArgs args, const Pass<T>& pass) {
  const TimedOperator timed("log_linear");
  args.threads = pass.threads;
  if (!pass.state) {
    const std::vector<State> initial = offset_states(args, pass);
    args.initial_state = initial;
    args.cu_seqlens = pass.cu_seqlens;
    log_linear::forward(args);
    return;
  }
  const std::span<State> state(&pass.state->state, 1);
  if (pass.tokens > 1) {
    args.initial_state = state;
    args.final_state = state;
    log_linear::forward(args);
    return;
  }
  const auto without_time = [](auto tensor) {
    for (int d = 1; d + 1 < tensor.rank; ++d) {
      tensor.shape[d] = tensor.shape[d + 1];
      tensor.stride[d] = tensor.stride[d + 1];
    }
    if (tensor.rank > 0) --tensor.rank;
    return tensor;
  };
  log_linear::StepArgs step;
  step.rule = args.rule;
  step.q = without_time(args.q);
  step.k = without_time(args.k);
  step.v = without_time(args.v);
  step.g = without_time(args.g);
  step.beta = without_time(args.beta);
  step.level_scales = without_time(args.level_scales);
  step.out = without_time(args.out);
  step.states = state;
  step.threads = pass.threads;
  log_linear::step(step);
}

// The gradients of the same, of a pass without a state. `args` has the tensors.
template <class T>
void run_log_linear_backward(log_linear::BackwardArgs args, const Pass<T>& pass) {
  const TimedOperator timed("log_linear");
  const std::vector<State> initial = offset_states(args, pass);
  args.initial_state = initial;
  args.cu_seqlens = pass.cu_seqlens;
  args.threads = pass.threads;
  log_linear::backward(args);
}

template <class T>
LayerState<T> new_log_linear_state(Rule rule, const ModelConfig& config, std::int64_t groups,
                                   std::int64_t conv_channels) {
  LayerState<T> state;
  state.groups = groups;
  state.conv_rows = config.conv_width - 1;
  state.conv_channels = conv_channels;
  state.conv.assign(static_cast<std::size_t>(state.conv_rows * conv_channels), T{0});
  if (learns_level_scales(config) && config.level_policy == LevelPolicy::content) {
    const std::int64_t own = config.match_width;
    state.match_groups = own > 0 ? 1 : groups;
    state.match_width = own > 0 ? own : config.key_width;
    state.match_conv.assign(static_cast<std::size_t>(state.conv_rows * 2 * own), T{0});
  }
  state.state = State(rule, config.num_heads, config.key_width, config.value_width, dtype_of<T>);
  return state;
}

}  // namespace loglinear::nn
