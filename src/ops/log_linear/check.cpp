#include "ops/log_linear/check.hpp"

#include <algorithm>
#include <array>
#include <bit>

#include "base/error.hpp"
#include "base/state_access.hpp"

namespace loglinear::log_linear {
namespace {

std::string shape_text(const ConstTensor& x) {
  std::string text = "(";
  for (int i = 0; i < x.rank && i < ConstTensor::kMaxRank; ++i) text += (i ? ", " : "") + std::to_string(x.shape[i]);
  return text + ")";
}

// The shape that a tensor must have.
struct Dims {
  std::array<std::int64_t, ConstTensor::kMaxRank> size{};
  int rank = 0;

  Dims(std::initializer_list<std::int64_t> sizes) {
    for (std::int64_t n : sizes) size[rank++] = n;
  }
};

// (Nothing here takes memory unless it fails: a decoding step goes through it.)
void check_tensor(const std::string& where, const char* name, const ConstTensor& x, const Dims& shape, const char* form,
                  DType dtype) {
  bool same = x.rank == shape.rank;
  bool empty = false;
  std::int64_t elements = 1;
  for (int i = 0; same && i < x.rank; ++i) {
    same = x.shape[i] == shape.size[i];
    empty = empty || shape.size[i] == 0;
    if (same && __builtin_mul_overflow(elements, shape.size[i], &elements))
      fail(where, "{}: {} is too large", name, shape_text(x));
  }
  if (!same) {
    std::string need = "(";
    for (int i = 0; i < shape.rank; ++i) need += (i ? ", " : "") + std::to_string(shape.size[i]);
    fail(where, "{}: got shape {}, need {} = {})", name, shape_text(x), form, need);
  }
  if (x.dtype != dtype) fail(where, "{}: got dtype {}, need {}", name, name_of(x.dtype), name_of(dtype));
  if (empty) return;
  if (!x.data) fail(where, "{}: no data", name);
  if (x.stride[x.rank - 1] != 1 && x.shape[x.rank - 1] != 1)
    fail(where, "{}: got stride {} in the last dimension, need 1", name, x.stride[x.rank - 1]);
}

DType state_dtype_of(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// The shared part: sizes from q, v and level_scales; every input checked against them. Rank 4 with tokens, rank 3 for
// step.
template <class Args>
Sizes check_inputs(const std::string& where, const Args& a, bool tokens) {
  bool known = false;
  for (Rule rule : kRules) known = known || rule == a.rule;
  if (!known) fail(where, "rule: unknown rule number {}", static_cast<int>(a.rule));
  if (const DType d = a.q.dtype; d != DType::f32 && d != DType::bf16 && d != DType::f64)
    fail(where, "q: unknown dtype number {}", static_cast<int>(d));
  const int rank = tokens ? 4 : 3;
  const auto sized = [&](const char* name, const ConstTensor& x, const char* form) {
    if (x.rank != rank) fail(where, "{}: got {} dimensions, need {}", name, x.rank, form);
    for (int i = 0; i < rank; ++i)
      if (x.shape[i] < 0) fail(where, "{}: got shape {}, need {}", name, shape_text(x), form);
  };
  sized("q", a.q, tokens ? "(B, T, G, K)" : "(B, G, K)");
  sized("v", a.v, tokens ? "(B, T, H, V)" : "(B, H, V)");
  sized("level_scales", a.level_scales, tokens ? "(B, T, H, L)" : "(B, H, L)");
  Sizes s;
  s.B = a.q.shape[0];
  s.T = tokens ? a.q.shape[1] : 1;
  s.G = a.q.shape[rank - 2];
  s.K = a.q.shape[rank - 1];
  s.H = a.v.shape[rank - 2];
  s.V = a.v.shape[rank - 1];
  s.L = a.level_scales.shape[rank - 1];
  s.dtype = a.q.dtype;
  s.state_dtype = state_dtype_of(s.dtype);
  if (s.L < 1) fail(where, "level_scales: got L = {}, need at least 1", s.L);
  if (s.K < 1) fail(where, "q: got K = {}, need at least 1", s.K);
  if (s.V < 1) fail(where, "v: got V = {}, need at least 1", s.V);
  if (s.G < 1) fail(where, "q: got G = {}, need at least 1", s.G);
  if (s.H < 1) fail(where, "v: got H = {}, need at least 1", s.H);
  if (s.H % s.G != 0) fail(where, "q: got G = {} groups, which do not divide H = {} heads", s.G, s.H);
  if (s.B < 0 || s.T < 0) fail(where, "q: got shape {}", shape_text(a.q));
  const auto of_heads = [&](std::int64_t heads) { return tokens ? Dims{s.B, s.T, heads} : Dims{s.B, heads}; };
  const auto of_rows = [&](std::int64_t heads, std::int64_t width) {
    return tokens ? Dims{s.B, s.T, heads, width} : Dims{s.B, heads, width};
  };
  check_tensor(where, "q", a.q, of_rows(s.G, s.K), tokens ? "(B, T, G, K)" : "(B, G, K)", s.dtype);
  check_tensor(where, "k", a.k, of_rows(s.G, s.K), tokens ? "(B, T, G, K)" : "(B, G, K)", s.dtype);
  check_tensor(where, "v", a.v, of_rows(s.H, s.V), tokens ? "(B, T, H, V)" : "(B, H, V)", s.dtype);
  check_tensor(where, "g", a.g, of_heads(s.H), tokens ? "(B, T, H)" : "(B, H)", s.state_dtype);
  check_tensor(where, "level_scales", a.level_scales, of_rows(s.H, s.L), tokens ? "(B, T, H, L)" : "(B, H, L)",
               s.state_dtype);
  if (has_beta(a.rule))
    check_tensor(where, "beta", a.beta, of_heads(s.H), tokens ? "(B, T, H)" : "(B, H)", s.state_dtype);
  else if (a.beta.present())
    fail(where, "beta: given, but the rule {} has none", name_of(a.rule));
  return s;
}

int chunk_of(const std::string& where, int chunk, const Sizes& s) {
  if (chunk != 0 && (chunk < 1 || chunk > kMaxChunk || !std::has_single_bit(static_cast<unsigned>(chunk))))
    fail(where, "chunk: got {}, need a power of two up to {}", chunk, kMaxChunk);
  return chunk != 0 ? chunk : default_chunk(s.K, s.V);
}

void check_state(const std::string& where, const char* name, const State& state, Rule rule, const Sizes& s) {
  if (state.rule() != rule)
    fail(where, "{}: of rule {}, the call is of rule {}", name, name_of(state.rule()), name_of(rule));
  if (state.heads() != s.H || state.key_width() != s.K || state.value_width() != s.V)
    fail(where, "{}: got H = {}, K = {}, V = {}, need {}, {}, {}", name, state.heads(), state.key_width(),
         state.value_width(), s.H, s.K, s.V);
  if (state.dtype() != s.state_dtype)
    fail(where, "{}: got dtype {}, need {}", name, name_of(state.dtype()), name_of(s.state_dtype));
  if (state.open_tokens() > 0 && state.open()->groups != s.G)
    fail(where, "{}: got G = {} groups, need {}", name, state.open()->groups, s.G);
}

// Blocks that a call with fewer levels made one cannot be read through different levels again.
void check_levels(const std::string& where, const char* name, const State& state, const Sizes& s) {
  if (state.slots().empty()) return;
  const int bit = state.slots().front().bit;
  if (state.boundary() >> bit > 1 && bit < last_bit(state.chunk(), s.L))
    fail(where, "{}: made with L = {} levels, got L = {}", name, bit + 2, s.L);
}

void check_past_last(const std::string& where, PastLast past_last, std::int64_t end, std::int64_t L) {
  const std::int64_t oldest = end > 0 ? std::bit_width(static_cast<std::uint64_t>(end - 1)) : 0;
  if (past_last == PastLast::refuse && oldest > L - 1)
    fail(where, "level_scales: position {} needs {} levels, got L = {}", end, oldest + 1, L);
}

template <class Args>
Plan plan_sequences(const std::string& where, const Args& a, const Sizes& s) {
  Plan plan;
  plan.sizes = s;
  const int chunk = chunk_of(where, a.chunk, s);
  if (a.threads < 0) fail(where, "threads: got {}, need at least 0", a.threads);
  if (!a.cu_seqlens.empty()) {
    if (s.B != 1) fail(where, "cu_seqlens: packed sequences need B = 1, got B = {}", s.B);
    if (a.cu_seqlens.front() != 0) fail(where, "cu_seqlens: starts at {}, need 0", a.cu_seqlens.front());
    if (a.cu_seqlens.back() != s.T) fail(where, "cu_seqlens: ends at {}, need T = {}", a.cu_seqlens.back(), s.T);
    for (std::size_t i = 1; i < a.cu_seqlens.size(); ++i) {
      if (a.cu_seqlens[i] < a.cu_seqlens[i - 1])
        fail(where, "cu_seqlens: falls from {} to {} at entry {}", a.cu_seqlens[i - 1], a.cu_seqlens[i], i);
      plan.sequences.push_back({0, a.cu_seqlens[i - 1], a.cu_seqlens[i] - a.cu_seqlens[i - 1]});
    }
  } else {
    for (std::int64_t b = 0; b < s.B; ++b) plan.sequences.push_back({b, 0, s.T});
  }
  const std::size_t N = plan.sequences.size();
  if (!a.initial_state.empty() && a.initial_state.size() != N)
    fail(where, "initial_state: got {} states for {} sequences", a.initial_state.size(), N);
  for (std::size_t i = 0; i < N; ++i) {
    Sequence& sequence = plan.sequences[i];
    if (!a.initial_state.empty()) {
      const State& state = a.initial_state[i];
      check_state(where, "initial_state", state, a.rule, s);
      check_levels(where, "initial_state", state, s);
      if (a.chunk != 0 && a.chunk != state.chunk())
        fail(where, "chunk: got {}, the initial state has {}", a.chunk, state.chunk());
      sequence.initial = &state;
      sequence.position = state.position();
      sequence.chunk = state.chunk();
      sequence.open = state.open_tokens();
      sequence.open_rows = state.open().get();
    } else {
      sequence.chunk = chunk;
    }
    std::int64_t end = 0;
    if (__builtin_add_overflow(sequence.position, sequence.tokens, &end) || end > std::int64_t{1} << 62)
      fail(where, "initial_state: position {} + {} tokens is past the last position", sequence.position,
           sequence.tokens);
    check_past_last(where, a.past_last, end, s.L);
  }
  return plan;
}

}  // namespace

std::vector<LiveSlot> live_slots(const Sequence& sequence, std::int64_t L, std::int64_t chunks) {
  std::vector<LiveSlot> live;
  if (sequence.initial)
    for (const State::Slot& slot : sequence.initial->slots())
      live.push_back({slot.bit, static_cast<std::ptrdiff_t>(live.size())});
  for (std::int64_t z = 0; z < chunks; ++z) {
    const Carry carry = carry_of(live.size(), chunk_bit(sequence.chunk), last_bit(sequence.chunk, L),
                                 [&](std::size_t i) { return live[i].bit; });
    live.resize(live.size() - carry.merged);
    live.push_back({carry.bit, -1});
  }
  return live;
}

Plan check(const std::string& where, const ForwardArgs& a) {
  const Sizes s = check_inputs(where, a, true);
  check_tensor(where, "out", a.out, {s.B, s.T, s.H, s.V}, "(B, T, H, V)", s.dtype);
  Plan plan = plan_sequences(where, a, s);
  if (!a.final_state.empty() && a.final_state.size() != plan.sequences.size())
    fail(where, "final_state: got {} states for {} sequences", a.final_state.size(), plan.sequences.size());
  return plan;
}

Plan check(const std::string& where, const BackwardArgs& a) {
  const Sizes s = check_inputs(where, a, true);
  check_tensor(where, "dout", a.dout, {s.B, s.T, s.H, s.V}, "(B, T, H, V)", s.dtype);
  check_tensor(where, "dq", a.dq, {s.B, s.T, s.G, s.K}, "(B, T, G, K)", s.dtype);
  check_tensor(where, "dk", a.dk, {s.B, s.T, s.G, s.K}, "(B, T, G, K)", s.dtype);
  check_tensor(where, "dv", a.dv, {s.B, s.T, s.H, s.V}, "(B, T, H, V)", s.dtype);
  check_tensor(where, "dg", a.dg, {s.B, s.T, s.H}, "(B, T, H)", s.state_dtype);
  check_tensor(where, "dlevel_scales", a.dlevel_scales, {s.B, s.T, s.H, s.L}, "(B, T, H, L)", s.state_dtype);
  if (has_beta(a.rule))
    check_tensor(where, "dbeta", a.dbeta, {s.B, s.T, s.H}, "(B, T, H)", s.state_dtype);
  else if (a.dbeta.present())
    fail(where, "dbeta: given, but the rule {} has no beta", name_of(a.rule));
  Plan plan = plan_sequences(where, a, s);
  const std::size_t N = plan.sequences.size();
  if (!a.dfinal_state.empty() && a.dfinal_state.size() != N)
    fail(where, "dfinal_state: got {} states for {} sequences", a.dfinal_state.size(), N);
  if (!a.dinitial_state.empty() && a.dinitial_state.size() != N)
    fail(where, "dinitial_state: got {} states for {} sequences", a.dinitial_state.size(), N);
  for (std::size_t i = 0; i < N && !a.dfinal_state.empty(); ++i) {
    check_state(where, "dfinal_state", a.dfinal_state[i], a.rule, s);
    const State& state = a.dfinal_state[i];
    const Sequence& sequence = plan.sequences[i];
    if (state.position() != sequence.end())
      fail(where, "dfinal_state: at position {}, the sequence ends at {}", state.position(), sequence.end());
    if (state.chunk() != sequence.chunk)
      fail(where, "dfinal_state: of chunk {}, the call is of chunk {}", state.chunk(), sequence.chunk);
    const std::vector<LiveSlot> live = live_slots(sequence, s.L, sequence.full_chunks());
    if (!std::equal(live.begin(), live.end(), state.slots().begin(), state.slots().end(),
                    [](const LiveSlot& a, const State::Slot& b) { return a.bit == b.bit; }))
      fail(where, "dfinal_state: its slots are not those of the final state");
  }
  return plan;
}

void check(const std::string& where, const StepArgs& a, Plan& plan) {
  plan.sequences.clear();
  plan.sizes = check_inputs(where, a, false);
  const Sizes& s = plan.sizes;
  check_tensor(where, "out", a.out, {s.B, s.H, s.V}, "(B, H, V)", s.dtype);
  if (a.threads < 0) fail(where, "threads: got {}, need at least 0", a.threads);
  if (a.states.size() != static_cast<std::size_t>(s.B))
    fail(where, "states: got {} states for B = {}", a.states.size(), s.B);
  for (std::int64_t b = 0; b < s.B; ++b) {
    check_state(where, "states", a.states[b], a.rule, s);
    const std::int64_t position = a.states[b].position();
    if (position >= std::int64_t{1} << 62) fail(where, "states: position {} is the last one", position);
    check_past_last(where, a.past_last, position + 1, s.L);
    check_levels(where, "states", a.states[b], s);
    plan.sequences.push_back({b, 0, 1, position, &a.states[b], a.states[b].chunk(), a.states[b].open_tokens()});
  }
}

}  // namespace loglinear::log_linear
