// Log-linear attention: reference against complex step, chunk and step forms against the reference.

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <bit>
#include <complex>
#include <cstdio>
#include <functional>

#include "base/cpu_features.hpp"
#include "ops/log_linear/cpu.hpp"
#include "ops/log_linear/ref.hpp"
#include "ops/log_linear/test_problem.hpp"
#include "sanitized.hpp"

namespace loglinear::testing {
namespace {

using log_linear::BackwardArgs;
using log_linear::ForwardArgs;
namespace ref = log_linear::ref;

template <class E>
double forward_bound() {
  return std::is_same_v<E, double> ? 1e-12 : std::is_same_v<E, float> ? 5e-6 : 3e-3;
}
// The delta rule's chain of erasures is allowed four times the error of a plain sum.
double factor(Rule rule) { return has_beta(rule) ? 4 : 1; }

// Reference in float64 on the same (rounded) inputs.
template <class E>
struct Reference {
  explicit Reference(Problem<E>& p) : problem(p) {}
  Problem<double> problem;
  std::vector<State> final_state, dinitial;

  void forward(std::span<const State> initial = {}) {
    ForwardArgs a = problem.forward_args();
    a.initial_state = initial;
    final_state.resize(sequences());
    a.final_state = final_state;
    log_linear::ref_forward(a);
  }
  void backward(std::span<const State> initial = {}, std::span<const State> dfinal = {}) {
    BackwardArgs a = problem.backward_args();
    a.initial_state = initial, a.dfinal_state = dfinal;
    dinitial.resize(sequences());
    a.dinitial_state = dinitial;
    log_linear::ref_backward(a);
  }
  std::size_t sequences() const {
    return problem.shape.cu_seqlens.empty() ? problem.shape.B : problem.shape.cu_seqlens.size() - 1;
  }
};

template <class E>
void expect_gradients(Problem<E>& p, Problem<double>& want, double slack = 1) {
  const double keys = slack * factor(p.shape.rule) *
                      (std::is_same_v<E, double>  ? 1e-12
                       : std::is_same_v<E, float> ? 1e-5
                                                  : 5e-3);
  const double gates = slack * factor(p.shape.rule) *
                       (std::is_same_v<E, double>  ? 1e-11
                        : std::is_same_v<E, float> ? 5e-5
                                                   : 1e-2);
  EXPECT_TRUE(close("dq", p.dq.values(), want.dq.values(), keys));
  EXPECT_TRUE(close("dk", p.dk.values(), want.dk.values(), keys));
  EXPECT_TRUE(close("dv", p.dv.values(), want.dv.values(), keys));
  EXPECT_TRUE(close("dg", p.dg.values(), want.dg.values(), gates));
  EXPECT_TRUE(close("dlevel_scales", p.dlevel_scales.values(), want.dlevel_scales.values(), gates));
  if (has_beta(p.shape.rule)) {
    EXPECT_TRUE(close("dbeta", p.dbeta.values(), want.dbeta.values(), gates));
  }
}

// Forward and backward of the chunk form against the reference.
template <class E>
void check_chunk(const Shape& shape, std::uint64_t seed = 1) {
  SCOPED_TRACE(::testing::Message() << name_of(shape.rule) << " " << name_of(dtype_of<E>) << " B " << shape.B << " T "
                                    << shape.T << " G " << shape.G << " H " << shape.H << " K " << shape.K << " V "
                                    << shape.V << " L " << shape.L << " chunk " << shape.chunk << " strided "
                                    << shape.strided << " seed " << seed);
  Problem<E> p(shape, seed);
  Reference<E> want(p);
  want.forward();
  want.backward();
  std::vector<State> final_state(want.sequences());
  ForwardArgs a = p.forward_args();
  a.final_state = final_state;
  log_linear::forward(a);
  log_linear::backward(p.backward_args());
  EXPECT_TRUE(p.intact()) << "something outside the tensors was written";
  EXPECT_TRUE(close("out", p.out.values(), want.problem.out.values(), factor(shape.rule) * forward_bound<E>()));
  for (std::size_t n = 0; n < final_state.size(); ++n) {
    EXPECT_EQ(final_state[n].position(), want.final_state[n].position());
    EXPECT_TRUE(close("final state", dense(final_state[n]), dense(want.final_state[n]),
                      factor(shape.rule) * (std::is_same_v<E, double> ? 1e-12 : 5e-6)));
  }
  expect_gradients(p, want.problem);
}

// ---- reference -----------------------------------------------------------------------------------------------------

// From `position` on, T tokens, of which the last `open` come after the final state's blocks.
template <class Rule>
void check_complex_step(std::int64_t T, std::int64_t L, std::int64_t position, std::int64_t open = 0,
                        int last_bit = 62) {
  using C = std::complex<double>;
  const std::int64_t K = 3, V = 2;
  Random random(7, T);
  ref::Head<double> x;
  x.T = T, x.K = K, x.V = V, x.L = L, x.last_bit = last_bit, x.settled = T - open;
  const auto fill = [&](std::vector<double>& to, std::int64_t n, double shift, double scale) {
    to.resize(n);
    for (double& e : to) e = shift + scale * random.normal();
  };
  fill(x.q, T * K, 0, 1), fill(x.k, T * K, 0, 0.6), fill(x.v, T * V, 0, 1), fill(x.level_scales, T * L, 1, 0.3);
  fill(x.g, T, -0.2, 0.05), fill(x.beta, T, 0.5, 0.2);
  for (int bit = 40; bit >= 0; --bit)
    if (position >> bit & 1) {
      x.initial.push_back({bit, {}});
      fill(x.initial.back().matrix, K * V, 0, 1);
    }
  std::vector<double> dout;
  fill(dout, T * V, 0, 1);
  ref::Blocks<double> dfinal;
  ref::forward<Rule>(x, dfinal);
  for (auto& block : dfinal) fill(block.matrix, K * V, 0, 1);
  const ref::Gradients<double> d = ref::backward<Rule>(x, dout, dfinal);

  // loss = <out, dout> + <final, dfinal>; its derivative in one input is imag(loss(input + i h)) / h, exact for tiny h.
  ref::Head<C> z;
  z.T = T, z.K = K, z.V = V, z.L = L, z.last_bit = last_bit, z.settled = x.settled;
  const auto copy = [](const std::vector<double>& from) { return std::vector<C>(from.begin(), from.end()); };
  z.q = copy(x.q), z.k = copy(x.k), z.v = copy(x.v), z.g = copy(x.g), z.beta = copy(x.beta),
  z.level_scales = copy(x.level_scales);
  for (const auto& block : x.initial) z.initial.push_back({block.bit, copy(block.matrix)});
  const auto derivative = [&](C& input) {
    const double h = 1e-100;
    const C kept = input;
    input += C(0, h);
    ref::Blocks<C> blocks;
    const std::vector<C> out = ref::forward<Rule>(z, blocks);
    input = kept;
    C loss = 0;
    for (std::int64_t i = 0; i < T * V; ++i) loss += out[i] * dout[i];
    for (std::size_t n = 0; n < blocks.size(); ++n)
      for (std::int64_t i = 0; i < K * V; ++i) loss += blocks[n].matrix[i] * dfinal[n].matrix[i];
    return loss.imag() / h;
  };
  const auto check = [&](const char* what, std::vector<C>& inputs, const std::vector<double>& gradient) {
    std::vector<double> want;
    for (C& input : inputs) want.push_back(derivative(input));
    EXPECT_TRUE(close(what, gradient, want, 1e-13)) << "T " << T << " position " << position;
  };
  check("dq", z.q, d.dq);
  check("dk", z.k, d.dk);
  check("dv", z.v, d.dv);
  check("dg", z.g, d.dg);
  check("dlevel_scales", z.level_scales, d.dlevel_scales);
  if (Rule::kErases) check("dbeta", z.beta, d.dbeta);
  for (std::size_t n = 0; n < z.initial.size(); ++n) check("dinitial", z.initial[n].matrix, d.dinitial[n].matrix);
}

TEST(Reference, BackwardEqualsComplexStep) {
  for (Rule rule : kRules)
    with_rule(rule, [&]<class R>() {
      for (std::int64_t T : {1, 2, 3, 7, 8, 17, 67}) check_complex_step<R>(T, 8, 0);
      check_complex_step<R>(9, 3, 0);    // levels shared
      check_complex_step<R>(6, 1, 0);    // one level
      check_complex_step<R>(11, 8, 13);  // from a state
      check_complex_step<R>(5, 4, (std::int64_t{1} << 40) + 3);
      check_complex_step<R>(11, 8, 13, 2);    // the last tokens are not in the final state's blocks
      check_complex_step<R>(13, 4, 0, 1, 2);  // blocks of four tokens and more are one
      check_complex_step<R>(9, 1, 12, 9, 0);  // all of them, and no final state of its own
    });
}

// The definition, written down a second time as the sum over pairs.
TEST(Reference, EqualsTheSumOverPairs) {
  for (Rule rule : kRules) {
    const std::int64_t T = 37, K = 5, V = 3, L = 5;
    Problem<double> p({.rule = rule, .T = T, .K = K, .V = V, .L = L}, 3);
    log_linear::ref_forward(p.forward_args());
    std::vector<double> want(T * V, 0.0);
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t s = 0; s <= t; ++s) {
        // w = A_t ... A_{s+1} w_s
        const double write = has_beta(rule) ? p.beta[s] : 1.0;
        std::vector<double> w(K);
        for (std::int64_t a = 0; a < K; ++a) w[a] = write * p.k[s * K + a];
        for (std::int64_t r = s + 1; r <= t; ++r) {
          double found = 0;
          for (std::int64_t a = 0; a < K; ++a) found += p.k[r * K + a] * w[a];
          for (std::int64_t a = 0; a < K; ++a)
            w[a] = std::exp(p.g[r]) * (w[a] - (has_beta(rule) ? p.beta[r] * found * p.k[r * K + a] : 0.0));
        }
        double weight = 0;
        for (std::int64_t a = 0; a < K; ++a) weight += p.q[t * K + a] * w[a];
        std::int64_t level = 0;
        while ((t ^ s) >> level) ++level;
        weight *= p.level_scales[t * L + std::min(level, L - 1)];
        for (std::int64_t b = 0; b < V; ++b) want[t * V + b] += weight * p.v[s * V + b];
      }
    EXPECT_TRUE(close("out", p.out.values(), want, 1e-13)) << name_of(rule);
  }
}

// ---- chunk form ----------------------------------------------------------------------------------------------------

TEST(Chunk, EqualsReferenceAtEveryLengthUpTo70InSmallChunks) {
  for (Rule rule : kRules)
    for (std::int64_t T = 0; T <= 70; ++T)
      check_chunk<double>({.rule = rule, .T = T, .K = 5, .V = 3, .L = 7, .chunk = 4}, T + 1);
}

const std::vector<std::int64_t> kLengths =
    kSanitized ? std::vector<std::int64_t>{1, 63, 64, 65, 130}
               : std::vector<std::int64_t>{1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 311};
constexpr int kChunkStep = kSanitized ? 16 : 2;

TEST(Chunk, EqualsReferenceAroundPowersOfTwo) {
  for (Rule rule : kRules)
    for (std::int64_t T : kLengths) {
      const Shape shape{.rule = rule, .B = 2, .T = T, .G = 1, .H = 2, .K = 16, .V = 8, .L = 10};
      check_chunk<double>(shape);
      check_chunk<float>(shape);
      check_chunk<bfloat16>(shape);
    }
}

TEST(Chunk, EveryChunkLength) {
  for (Rule rule : kRules)
    for (int chunk = 1; chunk <= 256; chunk *= kChunkStep) {
      check_chunk<double>({.rule = rule, .T = 301, .H = 2, .K = 7, .V = 9, .L = 12, .chunk = chunk});
      check_chunk<float>({.rule = rule, .T = 301, .H = 2, .K = 7, .V = 9, .L = 12, .chunk = chunk});
    }
}

// Chunks of one token make so many states that backward() does not keep all of them at once (kSegmentBytes).
TEST(Chunk, StatesAreRecomputedInSegments) {
  for (Rule rule : kRules) {
    if (kSanitized && rule != Rule::gated_delta) continue;  // it keeps all that the other does, and what was erased
    check_chunk<double>({.rule = rule, .T = 200, .G = 2, .H = 2, .K = 128, .V = 128, .L = 10, .chunk = 1});
  }
}

TEST(Chunk, WidthsGroupsLevelsAndStrides) {
  for (Rule rule : kRules)
    for (const auto& [G, H, K, V, L] : std::vector<std::array<std::int64_t, 5>>{{1, 1, 1, 1, 1},
                                                                                {1, 3, 2, 17, 2},
                                                                                {2, 4, 33, 16, 3},
                                                                                {3, 3, 16, 31, 20},
                                                                                {1, 20, 8, 8, 9},
                                                                                {2, 34, 5, 3, 70},
                                                                                {1, 1, 130, 65, 9}})
      for (bool strided : {false, true}) {
        if (kSanitized && !strided) continue;
        const std::int64_t B = kSanitized ? 1 : 2;
        const Shape shape{
            .rule = rule, .B = B, .T = 83, .G = G, .H = H, .K = K, .V = V, .L = L, .strided = strided, .chunk = 16};
        check_chunk<double>(shape);
        check_chunk<float>(shape);
      }
}

TEST(Chunk, EveryInstructionSet) {
  const std::vector<std::string> all = instruction_sets();
  for (const std::string& name : all) {
    force_instruction_set(name);
    EXPECT_EQ(instruction_sets(), all);  // asking what there is changes nothing
    EXPECT_EQ(bf16_unit() != Bf16Unit::none, name == "amx" || name == "avx512_bf16");
    const std::string ran = log_linear::cpu::instruction_set();
    SCOPED_TRACE(name + " ran as " + ran);
    const bool wide = name == "avx512" || name == "avx512_bf16" || name == "amx";
    const std::string want = wide ? "AVX3" : name == "avx2" ? "AVX2" : name == "neon" ? "NEON" : ran;
    EXPECT_EQ(ran, want);
    const std::int64_t T = kSanitized ? 140 : 200, width = kSanitized ? 33 : 64;
    for (Rule rule : kRules) {
      check_chunk<double>({.rule = rule, .T = T, .G = 1, .H = 2, .K = 21, .V = 40, .L = 9});
      check_chunk<float>({.rule = rule, .T = T, .G = 1, .H = 2, .K = width, .V = width, .L = 9});
      check_chunk<bfloat16>({.rule = rule, .T = T, .G = 1, .H = 2, .K = width, .V = width, .L = 9});
    }
  }
  force_instruction_set("");
  EXPECT_THROW(force_instruction_set("abacus"), Error);
}

// Products in bfloat16 round where products in float32 do not; with float32 inputs nothing changes.
TEST(Chunk, Bfloat16InstructionsRunForBfloat16Inputs) {
  const auto outputs = [&]<class E>(E, const std::string& name) {
    force_instruction_set(name);
    Problem<E> p({.T = 200, .G = 1, .H = 2, .K = 64, .V = 64, .L = 9}, 3);
    log_linear::forward(p.forward_args());
    return p.out.values();
  };
  for (const std::string& name : instruction_sets()) {
    force_instruction_set(name);
    if (bf16_unit() == Bf16Unit::none) continue;
    EXPECT_NE(outputs(bfloat16(), name), outputs(bfloat16(), "avx512")) << name;
    EXPECT_EQ(outputs(0.0f, name), outputs(0.0f, "avx512")) << name;
  }
  force_instruction_set("");
}

// What is not finite stays with its own token and those after it, with every instruction set.
TEST(Chunk, NothingComesFromLaterTokens) {
  for (const std::string& name : instruction_sets()) {
    SCOPED_TRACE(name);
    force_instruction_set(name);
    for (Rule rule : kRules) {
      constexpr std::int64_t kBad = 77;
      Problem<bfloat16> p({.rule = rule, .T = 130, .G = 1, .H = 2, .K = 32, .V = 24, .L = 9}, 4);
      log_linear::forward(p.forward_args());
      const std::vector<double> clean = p.out.values();
      std::vector<double> v = p.v.values();
      v[static_cast<std::size_t>(kBad * 2 * 24 + 5)] = std::numeric_limits<double>::quiet_NaN();
      p.v.set(v);
      log_linear::forward(p.forward_args());
      const std::vector<double> out = p.out.values();
      for (std::int64_t i = 0; i < kBad * 2 * 24; ++i) ASSERT_EQ(out[i], clean[i]) << i;
      EXPECT_TRUE(std::isnan(out[static_cast<std::size_t>(kBad * 2 * 24 + 5)]));
    }
  }
  force_instruction_set("");
}

TEST(Chunk, RandomShapes) {
  rc::check([] {
    Shape shape;
    shape.rule = kRules[*rc::gen::inRange<std::size_t>(0, std::size(kRules))];
    shape.G = *rc::gen::inRange(1, 4);
    shape.H = shape.G * *rc::gen::inRange(1, 4);
    shape.K = *rc::gen::inRange(1, 40);
    shape.V = *rc::gen::inRange(1, 40);
    shape.L = *rc::gen::inRange(1, 12);
    shape.chunk = 1 << *rc::gen::inRange(0, 7);
    shape.strided = *rc::gen::arbitrary<bool>();
    if (*rc::gen::arbitrary<bool>()) {
      shape.cu_seqlens = {0};
      for (int n = *rc::gen::inRange(1, 6); n > 0; --n)
        shape.cu_seqlens.push_back(shape.cu_seqlens.back() + *rc::gen::inRange(0, 90));
      shape.T = shape.cu_seqlens.back();
    } else {
      shape.B = *rc::gen::inRange(0, 3);
      shape.T = *rc::gen::inRange(0, 150);
    }
    check_chunk<double>(shape, *rc::gen::inRange(1, 1000000));
    RC_ASSERT(!::testing::Test::HasFailure());
  });
}

// ---- states --------------------------------------------------------------------------------------------------------

// Gradients of a computed problem as doubles, to compare with.
template <class E>
Problem<double> as_double(Problem<E>& p) {
  Problem<double> d(p);
  d.dq.set(p.dq.values()), d.dk.set(p.dk.values()), d.dv.set(p.dv.values());
  d.dg.set(p.dg.values()), d.dbeta.set(p.dbeta.values()), d.dlevel_scales.set(p.dlevel_scales.values());
  return d;
}

// Forward in pieces from state to state, backward in pieces from state gradient to state gradient, against one call.
template <class E>
void check_pieces(const Shape& shape, const std::vector<std::int64_t>& cuts, bool exact) {
  Problem<E> whole(shape, 5), parts(shape, 5);
  std::vector<State> end(shape.B);
  ForwardArgs one = whole.forward_args();
  one.final_state = end;
  log_linear::forward(one);
  log_linear::backward(whole.backward_args());

  std::vector<std::int64_t> edges = {0};
  edges.insert(edges.end(), cuts.begin(), cuts.end());
  edges.push_back(shape.T);
  std::vector<std::vector<State>> states(edges.size(), std::vector<State>(shape.B));
  for (std::size_t i = 0; i + 1 < edges.size(); ++i) {
    ForwardArgs a = piece(parts.forward_args(), edges[i], edges[i + 1]);
    if (i > 0) a.initial_state = states[i];
    a.final_state = states[i + 1];
    log_linear::forward(a);
  }
  std::vector<State> gradient;
  for (std::size_t i = edges.size() - 1; i-- > 0;) {
    BackwardArgs a = piece(parts.backward_args(), edges[i], edges[i + 1]);
    if (i > 0) a.initial_state = states[i];
    a.dfinal_state = gradient;
    std::vector<State> before(shape.B);
    a.dinitial_state = before;
    log_linear::backward(a);
    gradient = std::move(before);
  }
  SCOPED_TRACE(::testing::Message() << name_of(shape.rule) << " T " << shape.T << " first cut "
                                    << (cuts.empty() ? -1 : cuts[0]));
  const double bound = exact ? 0 : factor(shape.rule) * forward_bound<E>();
  EXPECT_TRUE(close("out", parts.out.values(), whole.out.values(), bound));
  for (std::int64_t b = 0; b < shape.B; ++b) {
    EXPECT_EQ(states.back()[b].position(), shape.T);
    EXPECT_TRUE(close("final state", dense(states.back()[b]), dense(end[b]), bound));
  }
  Problem<double> want = as_double(whole);
  expect_gradients(parts, want);
}

TEST(State, AnyCutEqualsOneCall) {
  for (Rule rule : kRules)
    for (std::int64_t T : {5, 16, 33, 64, 130})
      for (std::int64_t cut = 0; cut <= T; ++cut)
        check_pieces<double>({.rule = rule, .B = 1, .T = T, .K = 4, .V = 3, .L = 9, .chunk = 16}, {cut}, false);
}

TEST(State, ManyCutsEqualOneCall) {
  for (Rule rule : kRules) {
    const Shape shape{.rule = rule, .B = 2, .T = 300, .G = 1, .H = 2, .K = 8, .V = 8, .L = 6};
    check_pieces<double>(shape, {1, 2, 3, 64, 65, 65, 100, 191, 256, 299}, false);
    check_pieces<float>(shape, {7, 63, 130, 257}, false);
  }
}

TEST(State, CutsGiveTheSameBits) {
  for (Rule rule : kRules) {
    check_pieces<float>({.rule = rule, .B = 2, .T = 300, .G = 1, .H = 2, .K = 16, .V = 24, .L = 6, .chunk = 32},
                        {1, 2, 31, 32, 64, 65, 65, 97, 256, 299}, true);
    check_pieces<bfloat16>({.rule = rule, .B = 1, .T = 300, .G = 1, .H = 2, .K = 16, .V = 24, .L = 6, .chunk = 64},
                           {5, 128, 192, 200}, true);
  }
}

TEST(State, GradientsThroughStatesEqualTheReference) {
  for (Rule rule : kRules)
    for (const auto& [start, T] :
         std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 9}, {5, 1}, {7, 9}, {13, 70}, {64, 64}, {100, 41}}) {
      const Shape shape{.rule = rule, .B = 2, .T = T, .G = 1, .H = 2, .K = 6, .V = 5, .L = 6, .chunk = 16};
      Problem<double> before({.rule = rule, .B = 2, .T = start, .G = 1, .H = 2, .K = 6, .V = 5, .L = 6, .chunk = 16},
                             2);
      std::vector<State> initial(2), dfinal(2);
      ForwardArgs a = before.forward_args();
      a.final_state = initial;
      log_linear::ref_forward(a);
      Problem<double> other({.rule = rule, .B = 2, .T = start + T, .G = 1, .H = 2, .K = 6, .V = 5, .L = 6, .chunk = 16},
                            3);
      a = other.forward_args();
      a.final_state = dfinal;  // any numbers will do for a gradient; these carry lazy decays
      log_linear::forward(a);

      Problem<double> p(shape, 4);
      Reference<double> want(p);
      want.forward(initial);
      want.backward(initial, dfinal);
      std::vector<State> end(2), dinitial(2);
      a = p.forward_args();
      a.initial_state = initial, a.final_state = end;
      log_linear::forward(a);
      BackwardArgs d = p.backward_args();
      d.initial_state = initial, d.dfinal_state = dfinal, d.dinitial_state = dinitial;
      log_linear::backward(d);
      SCOPED_TRACE(::testing::Message() << name_of(rule) << " start " << start << " T " << T);
      EXPECT_TRUE(close("out", p.out.values(), want.problem.out.values(), 1e-12));
      expect_gradients(p, want.problem);
      for (int b = 0; b < 2; ++b) {
        EXPECT_TRUE(close("final", dense(end[b]), dense(want.final_state[b]), 1e-12));
        EXPECT_TRUE(close("dinitial", dense(dinitial[b]), dense(want.dinitial[b]), 1e-11));
      }
    }
}

// No tokens, hence no data, after a state whose last chunk is open: the state and its gradient pass through.
TEST(State, PassesThroughACallWithoutTokens) {
  for (Rule rule : kRules) {
    Problem<float> p({.rule = rule, .T = 21, .G = 1, .H = 2, .K = 5, .V = 3, .L = 4, .chunk = 8}, 1);
    std::vector<State> before(1), after(1), dbefore(1);
    ForwardArgs a = p.forward_args();
    a.final_state = before;
    log_linear::forward(a);

    a = piece(a, 0, 0);
    BackwardArgs d = piece(p.backward_args(), 0, 0);
    for (ConstTensor* x : {&a.q, &a.k, &a.v, &a.g, &a.level_scales, &d.q, &d.k, &d.v, &d.g, &d.level_scales, &d.dout})
      x->data = nullptr;
    for (Tensor* x : {&a.out, &d.dq, &d.dk, &d.dv, &d.dg, &d.dlevel_scales}) x->data = nullptr;
    a.beta.data = d.beta.data = nullptr, d.dbeta.data = nullptr;
    a.initial_state = before, a.final_state = after;
    log_linear::forward(a);
    EXPECT_EQ(after[0].position(), 21);
    EXPECT_EQ(dense(after[0]), dense(before[0]));
    d.initial_state = before, d.dfinal_state = before,
    d.dinitial_state = dbefore;  // any numbers will do for a gradient
    log_linear::backward(d);
    EXPECT_TRUE(close("dinitial", dense(dbefore[0]), dense(before[0]), 1e-6));
  }
}

TEST(State, StepEqualsForward) {
  for (Rule rule : kRules) {
    const Shape shape{.rule = rule, .B = 2, .T = 300, .G = 1, .H = 2, .K = 9, .V = 7, .L = 7};
    const auto check = [&]<class E>(E) {
      Problem<E> chunk(shape, 6), steps(shape, 6);
      std::vector<State> end(2);
      ForwardArgs a = chunk.forward_args();
      a.final_state = end;
      log_linear::forward(a);
      std::vector<State> states(2, State(rule, 2, 9, 7, std::is_same_v<E, double> ? DType::f64 : DType::f32));
      for (std::int64_t t = 0; t < shape.T; ++t) {
        log_linear::StepArgs s = step_args(steps.forward_args(), t);
        s.states = states;
        log_linear::step(s);
        // Every state on the way equals the one that forward gives for that length.
        if (t % 37 == 0 || t > 290) {
          Problem<E> again(shape, 6);
          std::vector<State> prefix(2);
          ForwardArgs b = piece(again.forward_args(), 0, t + 1);
          b.final_state = prefix;
          log_linear::forward(b);
          EXPECT_EQ(states[1].position(), t + 1);
          EXPECT_TRUE(close("state", dense(states[1]), dense(prefix[1]),
                            factor(rule) * (std::is_same_v<E, double> ? 1e-12 : 5e-6)));
        }
      }
      EXPECT_TRUE(close("out", steps.out.values(), chunk.out.values(), 2 * factor(rule) * forward_bound<E>()))
          << name_of(rule);
      EXPECT_TRUE(steps.intact());
    };
    check(double());
    check(float());
    check(bfloat16());
  }
}

// Decoding far out: the counter around powers of two up to 2^20 and beyond, from a state put there.
TEST(State, StepEqualsReferenceAtLargePositions) {
  for (Rule rule : kRules)
    for (std::int64_t position : {(1LL << 20) - 1, 1LL << 20, (1LL << 20) + 1, (1LL << 33) + 12345, (1LL << 61) + 7}) {
      const Shape shape{.rule = rule, .B = 1, .T = 5, .G = 1, .H = 2, .K = 4, .V = 4, .L = 12};
      Problem<double> p(shape, 9);
      Random random(position, 0);
      std::vector<std::vector<double>> matrices(std::popcount(static_cast<std::uint64_t>(position)),
                                                std::vector<double>(2 * 4 * 4));
      for (auto& m : matrices)
        for (double& e : m) e = random.normal();
      // Chunks of one token: a slot for every bit, and a new one at every step.
      std::vector<State> initial = {State::from_dense(rule, 2, 4, 4, DType::f64, position, matrices, 1)};
      Reference<double> want(p);
      want.forward(initial);
      std::vector<State> states = initial;
      for (std::int64_t t = 0; t < shape.T; ++t) {
        log_linear::StepArgs s = step_args(p.forward_args(), t);
        s.states = states;
        log_linear::step(s);
      }
      EXPECT_TRUE(close("step", p.out.values(), want.problem.out.values(), 1e-12)) << position;
      EXPECT_TRUE(close("state", dense(states[0]), dense(want.final_state[0]), 1e-12)) << position;
      Problem<double> chunk(shape, 9);
      ForwardArgs a = chunk.forward_args();
      a.initial_state = initial;
      log_linear::forward(a);
      EXPECT_TRUE(close("chunk", chunk.out.values(), want.problem.out.values(), 1e-12)) << position;
    }
}

// Whether two states share all of their memory.
bool same_memory(const State& a, const State& b) {
  bool same = a.slots().size() == b.slots().size() && a.open() == b.open();
  for (std::size_t i = 0; same && i < a.slots().size(); ++i) same = a.slots()[i].matrix == b.slots()[i].matrix;
  return same;
}

TEST(State, ForkSharesUntilOneSideChanges) {
  for (Rule rule : kRules) {
    const Shape shape{.rule = rule, .T = 47, .G = 1, .H = 2, .K = 4, .V = 4, .L = 7, .chunk = 4};
    Problem<float> p(shape, 1);
    std::vector<State> states(1);
    ForwardArgs a = p.forward_args();
    a.final_state = states;
    log_linear::forward(a);
    const std::vector<double> kept = dense(states[0]);
    std::vector<State> fork = states;
    ASSERT_EQ(states[0].slots().size(), 3u);  // 44 = 101100b, and three open tokens
    EXPECT_EQ(states[0].bytes(), 3 * (2 * 4 * 4 * sizeof(float) + 2 * sizeof(double)) +
                                     3 * (4 + 2 * 4 + 2 * (has_beta(rule) ? 2 : 1)) * sizeof(float));
    EXPECT_TRUE(same_memory(fork[0], states[0]));
    log_linear::StepArgs s = step_args(p.forward_args(), 0);
    s.states = fork;
    log_linear::step(s);  // fills the chunk: 48 = 110000b
    EXPECT_EQ(dense(states[0]), kept) << "the fork wrote into its origin";
    EXPECT_EQ(fork[0].position(), 48);
    ASSERT_EQ(fork[0].slots().size(), 2u);
    // Without erasure an older state is immutable: still shared.
    EXPECT_EQ(fork[0].slots()[0].matrix == states[0].slots()[0].matrix, !erases(rule));
    fork = states;
    fork[0].rollback(1);
    log_linear::step(s);  // only an open token changes
    EXPECT_EQ(dense(states[0]), kept) << "the fork wrote into its origin";
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(fork[0].slots()[i].matrix, states[0].slots()[i].matrix);
    EXPECT_NE(fork[0].open(), states[0].open());
  }
}

TEST(State, ForwardSharesOldMatricesWithoutErasure) {
  Problem<float> p({.T = 8, .K = 4, .V = 4, .L = 9, .chunk = 2}, 1);
  std::vector<State> a(1), b(1);
  ForwardArgs args = p.forward_args();
  args.final_state = a;
  log_linear::forward(args);
  args = piece(p.forward_args(), 0, 3);
  args.initial_state = a, args.final_state = b;
  log_linear::forward(args);
  EXPECT_EQ(b[0].position(), 11);
  EXPECT_EQ(a[0].slots()[0].matrix, b[0].slots()[0].matrix);
  args.final_state = a;  // in place
  log_linear::forward(args);
  EXPECT_EQ(dense(a[0]), dense(b[0]));
}

// Runs tokens [first, last) of p from the state on: in one call, or token by token.
template <class E>
std::vector<double> go_on(Problem<E>& p, State& state, std::int64_t first, std::int64_t last, bool steps) {
  std::vector<State> states = {std::move(state)};
  ForwardArgs a = piece(p.forward_args(), first, last);
  a.chunk = 0;
  a.initial_state = states, a.final_state = states;
  if (!steps) log_linear::forward(a);
  for (std::int64_t t = first; steps && t < last; ++t) {
    log_linear::StepArgs s = step_args(p.forward_args(), t);
    s.states = states;
    log_linear::step(s);
  }
  state = std::move(states[0]);
  const std::int64_t row = p.shape.H * p.shape.V;
  const std::vector<double> out = p.out.values();
  return {out.begin() + first * row, out.begin() + last * row};
}

// Steps and calls, forks and rollbacks in any order leave what reading the tokens that count would have left, bit for
// bit.
TEST(State, RollbackThenReplayGivesTheSameBits) {
  rc::check([] {
    const Rule rule = kRules[*rc::gen::inRange<std::size_t>(0, std::size(kRules))];
    const int chunk = 1 << *rc::gen::inRange(0, 5);
    const std::int64_t T = 120;
    Problem<float> p({.rule = rule, .T = T, .G = 1, .H = 2, .K = 5, .V = 9, .L = *rc::gen::inRange(1, 9)}, 3);
    State state(rule, 2, 5, 9, DType::f32, chunk);
    if (*rc::gen::arbitrary<bool>()) state.allow_rollback();
    std::vector<State> at = {state};           // the state that was seen at each position
    std::vector<std::vector<double>> outs(T);  // and the output of each token
    for (int i = 0; i < 12; ++i) {
      const std::int64_t n = *rc::gen::inRange<std::int64_t>(0, 2 * chunk + 2), position = state.position();
      if (*rc::gen::arbitrary<bool>()) {
        const std::int64_t back = std::min(n, state.rollback_limit());
        state.rollback(back);
        at.resize(state.position() + 1);
        RC_ASSERT(dense(state) == dense(at.back()));
      } else {
        for (std::int64_t t = position; t < std::min(T, position + n); ++t) {
          const bool again = !outs[t].empty();
          const std::vector<double> out = go_on(p, state, t, t + 1, true);
          if (again) RC_ASSERT(out == outs[t]);
          outs[t] = out;
          at.push_back(state);
        }
      }
    }
    // Rolled back over a call of forward, the tokens of the call come again as they were.
    const std::int64_t first = state.position(), last = std::min<std::int64_t>(T, first + 2 * chunk);
    const std::vector<double> out = go_on(p, state, first, last, false);
    const std::int64_t back = std::min(state.rollback_limit(), last - first);
    state.rollback(back);
    const std::vector<double> again = go_on(p, state, last - back, last, false);
    RC_ASSERT(std::equal(again.begin(), again.end(), out.end() - static_cast<std::ptrdiff_t>(again.size())));
  });
}

TEST(State, RollbackGoesBackAChunkWhenAllowed) {
  for (Rule rule : kRules)
    for (bool steps : {true, false}) {
      Problem<double> p({.rule = rule, .T = 40, .K = 3, .V = 4, .L = 5}, 8);
      State state(rule, 1, 3, 4, DType::f64, 8), keeping = state;
      keeping.allow_rollback();
      go_on(p, state, 0, 35, steps);
      go_on(p, keeping, 0, 35, steps);
      EXPECT_EQ(dense(state), dense(keeping));
      EXPECT_EQ(state.rollback_limit(), 3);
      EXPECT_EQ(keeping.rollback_limit(), 11);
      EXPECT_THROW(state.rollback(4), Error);
      EXPECT_THROW(keeping.rollback(12), Error);
      EXPECT_THROW(keeping.rollback(-1), Error);
      State fresh(rule, 1, 3, 4, DType::f64, 8), back = keeping;
      go_on(p, fresh, 0, 25, steps);
      back.rollback(10);
      EXPECT_EQ(dense(back), dense(fresh));
      EXPECT_EQ(back.rollback_limit(), 1);
      EXPECT_EQ(go_on(p, back, 25, 40, steps), go_on(p, fresh, 25, 40, steps));
      EXPECT_EQ(dense(back), dense(fresh));
      go_on(p, keeping, 35, 36, false);  // within a chunk what was kept stays
      EXPECT_EQ(keeping.rollback_limit(), 12);
      keeping.allow_rollback(false);
      EXPECT_EQ(keeping.rollback_limit(), 4);
    }
}

// Blocks that are read through the last level are one matrix: few levels, few states; one level, one state.
TEST(State, HasNoMoreMatricesThanLevels) {
  for (Rule rule : kRules)
    for (const auto& [L, slots] :
         std::vector<std::pair<std::int64_t, std::size_t>>{{1, 1}, {4, 1}, {5, 2}, {6, 3}, {9, 6}}) {
      Problem<float> p({.rule = rule, .T = 252 + 3, .K = 3, .V = 4, .L = L, .chunk = 4}, 8);
      State calls(rule, 1, 3, 4, DType::f32, 4), steps = calls;
      go_on(p, calls, 0, 100, false);
      go_on(p, calls, 100, 255, false);
      const std::vector<double> out = p.out.values();
      go_on(p, steps, 0, 255, true);
      EXPECT_TRUE(close("out", p.out.values(), out, 4 * factor(rule) * forward_bound<float>()));
      for (const State* state : {&calls, &steps}) {
        ASSERT_EQ(state->slots().size(), slots) << L;  // 252 = 11111100b
        EXPECT_EQ(state->block_begin(0), 0);
        for (std::size_t i = 1; i < slots; ++i)
          EXPECT_EQ(state->block_begin(i), 252 - (252 & ((1 << (state->slots()[i].bit + 1)) - 1)));
      }
      EXPECT_EQ(dense(calls), dense(steps));
      if (slots == 6) continue;
      // With more levels those blocks would have to be told apart.
      Problem<float> more({.rule = rule, .T = 1, .K = 3, .V = 4, .L = L + 5}, 8);
      EXPECT_THROW(go_on(more, calls, 0, 1, false), Error);
    }
}

// What a step has derived from open tokens is no part of them: assign() to another state forgets it.
TEST(State, AssignForgetsWhatStepsDerived) {
  const Shape shape{.rule = Rule::gated_delta, .T = 9, .K = 4, .V = 4, .L = 9, .chunk = 64};
  Problem<float> p(shape, 3);
  State state(Rule::gated_delta, 1, 4, 4, DType::f32, 64), whole = state,
                                                           decays(Rule::scalar_decay, 1, 4, 4, DType::f32, 64);
  go_on(p, state, 0, 5, true);
  // Open tokens that a rule without erasure has made sums for, taken by one that needs more.
  Problem<float> q({.rule = Rule::scalar_decay, .T = 9, .K = 4, .V = 4, .L = 9, .chunk = 64}, 3);
  go_on(q, decays, 0, 5, true);
  auto open = std::make_shared<State::Open>(*state.open());
  open->sums = decays.open()->sums, open->mix = {}, open->derived = 5;
  state.assign(5, {}, open);
  const std::vector<double> out = go_on(p, state, 5, 9, true);
  go_on(p, whole, 0, 5, true);
  EXPECT_EQ(out, go_on(p, whole, 5, 9, true));
}

TEST(State, RefusesWhatIsNotAState) {
  const auto matrix = std::make_shared<Buffer>(2 * 2 * sizeof(float));
  State small(Rule::scalar_decay, 1, 2, 2, DType::f32, 64);
  EXPECT_THROW(small.assign(64, {{3, matrix, {0.0}}}, nullptr), Error);  // a block smaller than a chunk
  small.assign(64, {{6, matrix, {0.0}}}, nullptr);
  EXPECT_THROW(State(Rule::scalar_decay, 0, 1, 1), Error);
  EXPECT_THROW(State(Rule::scalar_decay, 1, 1, 1, DType::bf16), Error);
  EXPECT_THROW(State(Rule::scalar_decay, std::int64_t{1} << 31, std::int64_t{1} << 31, 4), Error);
  State state(Rule::scalar_decay, 1, 2, 2);
  EXPECT_THROW(state.assign(3, {}, nullptr), Error);
  EXPECT_THROW(state.assign(64, {}, nullptr), Error);
  EXPECT_THROW(state.dense(0), Error);
  EXPECT_THROW(State(Rule::scalar_decay, 1, 1, 1, DType::f32, 3), Error);
  EXPECT_THROW(State(Rule::scalar_decay, 1, 1, 1, DType::f32, 512), Error);
  EXPECT_THROW(State::from_dense(Rule::scalar_decay, 1, 2, 2, DType::f32, 1, {{1, 2, 3}}, 1), Error);
  EXPECT_THROW(State::from_dense(Rule::scalar_decay, 1, 2, 2, DType::f32, 1, {{1, 2, 3, 4}}, 2), Error);
  const State one = State::from_dense(Rule::scalar_decay, 1, 2, 2, DType::f32, 1, {{1, 2, 3, 4}}, 1);
  EXPECT_EQ(one.dense(0), (std::vector<double>{1, 2, 3, 4}));
}

// ---- properties ----------------------------------------------------------------------------------------------------

// One level with scale 1 is plain (gated) linear attention: a recurrence with a single state.
TEST(Property, OneLevelIsLinearAttention) {
  for (Rule rule : kRules) {
    const std::int64_t T = 150, K = 6, V = 5;
    Problem<double> p({.rule = rule, .T = T, .K = K, .V = V, .L = 1}, 2);
    p.level_scales.set(std::vector<double>(T, 1.0));
    log_linear::forward(p.forward_args());
    std::vector<double> S(K * V, 0.0), want(T * V, 0.0);
    for (std::int64_t t = 0; t < T; ++t) {
      const double alpha = std::exp(p.g[t]), beta = has_beta(rule) ? p.beta[t] : 1.0;
      for (std::int64_t b = 0; b < V; ++b) {
        double found = 0;
        for (std::int64_t a = 0; a < K; ++a) found += p.k[t * K + a] * S[a * V + b];
        if (!has_beta(rule)) found = 0;
        for (std::int64_t a = 0; a < K; ++a) {
          double& s = S[a * V + b];
          s = alpha * (s - beta * p.k[t * K + a] * found) + beta * p.k[t * K + a] * p.v[t * V + b];
          want[t * V + b] += p.q[t * K + a] * s;
        }
      }
    }
    EXPECT_TRUE(close("out", p.out.values(), want, 1e-12)) << name_of(rule);
  }
}

TEST(Property, PackedSequencesEqualSeparateCallsBitForBit) {
  for (Rule rule : kRules) {
    const std::vector<std::int64_t> cu = {0, 0, 70, 71, 71, 135, 200};
    const Shape shape{.rule = rule, .T = 200, .G = 2, .H = 4, .K = 16, .V = 12, .L = 6, .cu_seqlens = cu, .chunk = 32};
    Problem<float> packed(shape, 8), apart(shape, 8);
    std::vector<State> end(6), ends(6);
    ForwardArgs a = packed.forward_args();
    a.final_state = end;
    log_linear::forward(a);
    log_linear::backward(packed.backward_args());
    for (std::size_t n = 0; n + 1 < cu.size(); ++n) {
      ForwardArgs f = piece(apart.forward_args(), cu[n], cu[n + 1]);
      BackwardArgs d = piece(apart.backward_args(), cu[n], cu[n + 1]);
      f.cu_seqlens = d.cu_seqlens = {};
      f.final_state = std::span(&ends[n], 1);
      log_linear::forward(f);
      log_linear::backward(d);
      EXPECT_EQ(dense(ends[n]), dense(end[n]));
    }
    EXPECT_EQ(packed.out.values(), apart.out.values());
    EXPECT_EQ(packed.dq.values(), apart.dq.values());
    EXPECT_EQ(packed.dk.values(), apart.dk.values());
    EXPECT_EQ(packed.dv.values(), apart.dv.values());
    EXPECT_EQ(packed.dg.values(), apart.dg.values());
    EXPECT_EQ(packed.dlevel_scales.values(), apart.dlevel_scales.values());
  }
}

TEST(Property, ThreadsDoNotChangeABit) {
  for (Rule rule : kRules) {
    const Shape shape{.rule = rule, .B = 2, .T = 150, .G = 2, .H = 20, .K = 8, .V = 12, .L = 6, .chunk = 32};
    std::vector<std::vector<double>> first;
    for (int threads = 1; threads <= 4; ++threads) {
      Problem<float> p(shape, 8);
      ForwardArgs a = p.forward_args();
      BackwardArgs d = p.backward_args();
      a.threads = d.threads = threads;
      log_linear::forward(a);
      log_linear::backward(d);
      std::vector<std::vector<double>> all = {p.out.values(), p.dq.values(), p.dk.values(),
                                              p.dv.values(),  p.dg.values(), p.dlevel_scales.values()};
      if (has_beta(rule)) all.push_back(p.dbeta.values());
      if (threads == 1) first = all;
      EXPECT_EQ(all, first) << threads << " threads";
    }
  }
}

// Fewer heads than threads: columns of a head are computed apart, from and to states as well; the backward cuts a
// sequence into spans.
template <class E>
void check_shared_head(Rule rule, std::int64_t H, int chunk) {
  const Shape shape{.rule = rule, .T = 600, .G = 1, .H = H, .K = 40, .V = 70, .L = 6, .chunk = chunk};
  std::vector<std::vector<double>> first;
  for (int threads = 1; threads <= 5; ++threads) {
    if (kSanitized && threads > 1 && threads != 3) continue;
    Problem<E> p(shape, 8), other(shape, 9);
    std::vector<State> state(1), before(1), dfinal(1), dinitial(1);
    for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>{0, 333}, {333, 600}}) {
      ForwardArgs a = piece(p.forward_args(), begin, end);
      if (begin > 0) a.initial_state = state;
      a.final_state = state;
      a.threads = threads;
      log_linear::forward(a);
    }
    // Backward of 600 tokens after 100 others, with gradients in the state after them.
    ForwardArgs a = piece(other.forward_args(), 0, 100);
    a.final_state = before;
    log_linear::forward(a);
    a = other.forward_args();
    a.initial_state = before, a.final_state = dfinal;
    log_linear::forward(a);
    BackwardArgs d = p.backward_args();
    d.initial_state = before, d.dfinal_state = dfinal, d.dinitial_state = dinitial;
    d.threads = threads;
    log_linear::backward(d);
    std::vector<std::vector<double>> all = {
        p.out.values(), dense(state[0]),          p.dq.values(),     p.dk.values(), p.dv.values(),
        p.dg.values(),  p.dlevel_scales.values(), dense(dinitial[0])};
    if (has_beta(rule)) all.push_back(p.dbeta.values());
    EXPECT_TRUE(p.intact());
    if (threads == 1) first = all;
    EXPECT_EQ(all, first) << name_of(rule) << ", " << threads << " threads, " << H << " heads";
  }
}

TEST(Property, ThreadsShareAHead) {
  for (Rule rule : kRules) {
    check_shared_head<float>(rule, 1, 8);
    if (!kSanitized) check_shared_head<float>(rule, 3, 8);
    check_shared_head<float>(rule, 2, 64);  // keys no wider than a chunk
    check_shared_head<bfloat16>(rule, 1, 8);
  }
}

TEST(Property, AChangeNeverReachesBack) {
  for (Rule rule : kRules) {
    const std::int64_t T = 140, K = 8, V = 4;
    const Shape shape{.rule = rule, .T = T, .K = K, .V = V, .L = 9};
    Problem<float> p(shape, 8);
    log_linear::forward(p.forward_args());
    const std::vector<double> before = p.out.values();
    for (std::int64_t t : {0, 1, 63, 64, 100, 139})
      for (float value : {3.0f, std::numeric_limits<float>::quiet_NaN()}) {
        Problem<float> changed(shape, 8);
        changed.q[t * K] = changed.k[t * K] = changed.v[t * V] = changed.level_scales[t * 9] = value;
        changed.g[t] = std::isnan(value) ? value : -1.0f;
        changed.beta[t] = std::isnan(value) ? value : 0.3f;
        log_linear::forward(changed.forward_args());
        const std::vector<double> after = changed.out.values();
        for (std::int64_t i = 0; i < t * V; ++i) ASSERT_EQ(before[i], after[i]) << "t " << t << " reached " << i / V;
        ASSERT_NE(before[t * V], after[t * V]);
      }
  }
}

TEST(Property, NaNStaysInItsHeadAndSequence) {
  for (Rule rule : kRules) {
    const std::int64_t T = 100, H = 4, V = 8;
    const Shape shape{.rule = rule, .B = 2, .T = T, .G = 4, .H = H, .K = 8, .V = V, .L = 9, .chunk = 32};
    Problem<float> clean(shape, 8), dirty(shape, 8);
    // Head 1 of sequence 0: everything that is its own.
    for (std::int64_t t = 40; t < 43; ++t) {
      dirty.v[(t * H + 1) * V] = dirty.g[t * H + 1] = dirty.dout[(t * H + 1) * V + 1] =
          std::numeric_limits<float>::quiet_NaN();
      dirty.q[(t * H + 1) * 8] = dirty.k[(t * H + 1) * 8 + 2] = std::numeric_limits<float>::infinity();
    }
    for (Problem<float>* p : {&clean, &dirty}) {
      ForwardArgs a = p->forward_args();
      BackwardArgs d = p->backward_args();
      a.threads = d.threads = 1;  // one thread's scratch serves every head
      log_linear::forward(a);
      log_linear::backward(d);
    }
    const auto check = [&](auto& x, auto& y, std::int64_t width) {
      for (std::int64_t i = 0; i < x.size(); ++i) {
        if (i / (T * H * width) == 0 && i / width % H == 1) continue;
        ASSERT_EQ(static_cast<double>(x[i]), static_cast<double>(y[i]));
      }
    };
    check(clean.out, dirty.out, V);
    check(clean.dq, dirty.dq, 8);
    check(clean.dk, dirty.dk, 8);
    check(clean.dv, dirty.dv, V);
    check(clean.dg, dirty.dg, 1);
    check(clean.dlevel_scales, dirty.dlevel_scales, 9);
  }
}

// The first token of a sequence decays nothing: its dg is zero, not nearly zero.
TEST(Property, TheFirstDecayHasNoGradient) {
  for (Rule rule : kRules)
    for (std::int64_t T : {1, 2, 70}) {
      Problem<float> p({.rule = rule, .T = T, .K = 8, .V = 8, .L = 9}, 8);
      log_linear::backward(p.backward_args());
      EXPECT_NEAR(p.dg[0], 0.0f, T == 1 ? 0.0f : 1e-5f) << name_of(rule) << " T " << T;
    }
}

// A NaN gate must show in everything it decays, not vanish in an exponential.
TEST(Property, ANaNDecayIsNotSwallowed) {
  for (Rule rule : kRules)
    for (std::int64_t at : {5, 63, 64, 70}) {
      const std::int64_t T = 130, V = 4;
      Problem<float> p({.rule = rule, .T = T, .K = 8, .V = V, .L = 9}, 8);
      p.g[at] = std::numeric_limits<float>::quiet_NaN();
      log_linear::forward(p.forward_args());
      for (std::int64_t t = 0; t < T; ++t)
        ASSERT_EQ(std::isnan(p.out[t * V]), t >= at) << "t " << t << ", NaN at " << at;
    }
}

TEST(Property, ZeroDecayFactorAndZeroWrites) {
  for (Rule rule : kRules) {
    Problem<float> p({.rule = rule, .T = 150, .K = 8, .V = 8, .L = 9}, 4);
    for (std::int64_t t = 0; t < 150; ++t) {
      // The exponential underflows to zero, or is asked to be zero: tokens after it must lose no precision.
      p.g[t] = t % 7 == 0    ? -1000.0f
               : t % 31 == 3 ? -1e30f
               : t % 41 == 5 ? -std::numeric_limits<float>::infinity()
                             : -0.01f;
      if (t % 5 == 0) p.beta[t] = 0;
    }
    Reference<float> want(p);
    want.forward();
    want.backward();
    log_linear::forward(p.forward_args());
    log_linear::backward(p.backward_args());
    EXPECT_TRUE(close("out", p.out.values(), want.problem.out.values(), 2e-5));
    expect_gradients(p, want.problem);
    Problem<float> steps({.rule = rule, .T = 150, .K = 8, .V = 8, .L = 9}, 4);
    steps.g.set(p.g.values()), steps.beta.set(p.beta.values());
    std::vector<State> states(1, State(rule, 1, 8, 8));
    for (std::int64_t t = 0; t < 150; ++t) {
      log_linear::StepArgs s = step_args(steps.forward_args(), t);
      s.states = states;
      log_linear::step(s);
    }
    EXPECT_TRUE(close("step", steps.out.values(), want.problem.out.values(), 2e-5));
  }
}

// ---- accuracy
// --------------------------------------------------------------------------------------------------------

// The largest error of each form over lengths that matter, printed: docs/numerics.md quotes this table.
TEST(Accuracy, Table) {
  const std::int64_t T = kSanitized ? 300 : 4099;
  std::printf("%-14s %-5s %9s %9s %9s %9s %9s %9s %9s\n", "rule", "dtype", "out", "dq", "dk", "dv", "dg", "dscales",
              "dbeta");
  for (Rule rule : kRules) {
    const auto row = [&]<class E>(E) {
      Problem<E> p({.rule = rule, .T = T, .G = 1, .H = 2, .K = 32, .V = 32, .L = 14}, 12);
      Reference<E> want(p);
      want.forward();
      want.backward();
      log_linear::forward(p.forward_args());
      log_linear::backward(p.backward_args());
      std::printf("%-14s %-5s", name_of(rule), name_of(dtype_of<E>));
      const auto print = [](const std::vector<double>& got, const std::vector<double>& exact) {
        double difference = 0, norm = 0;
        for (std::size_t i = 0; i < got.size(); ++i) {
          difference += (got[i] - exact[i]) * (got[i] - exact[i]);
          norm += exact[i] * exact[i];
        }
        std::printf(" %9.1e", std::sqrt(difference / norm));
      };
      Problem<double>& w = want.problem;
      print(p.out.values(), w.out.values());
      print(p.dq.values(), w.dq.values()), print(p.dk.values(), w.dk.values()), print(p.dv.values(), w.dv.values());
      print(p.dg.values(), w.dg.values()), print(p.dlevel_scales.values(), w.dlevel_scales.values());
      if (has_beta(rule)) print(p.dbeta.values(), w.dbeta.values());
      std::printf("\n");
      EXPECT_TRUE(close("out", p.out.values(), w.out.values(), factor(rule) * forward_bound<E>()));
      expect_gradients(p, w);
    };
    row(double());
    row(float());
    row(bfloat16());
  }
}

// ---- bad arguments
// ---------------------------------------------------------------------------------------------------

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(Errors, EveryBadArgumentIsNamed) {
  Problem<float> p({.B = 1, .T = 4, .G = 2, .H = 4, .K = 3, .V = 3, .L = 2}, 1);
  std::vector<float> memory(1000, 0.0f);
  const auto forward = [&](const std::function<void(ForwardArgs&)>& spoil) {
    ForwardArgs a = p.forward_args();
    spoil(a);
    return message_of([&] { log_linear::forward(a); });
  };
  EXPECT_EQ(forward([&](ForwardArgs& a) {
              a.level_scales = ConstTensor(memory.data(), {1, 4, 4, 0});
            }),
            "[log_linear.forward] level_scales: got L = 0, need at least 1");
  EXPECT_EQ(forward([&](ForwardArgs& a) {
              a.q = ConstTensor(memory.data(), {1, 4, 3, 3});
            }),
            "[log_linear.forward] q: got G = 3 groups, which do not divide H = 4 heads");
  EXPECT_EQ(forward([&](ForwardArgs& a) {
              a.k = ConstTensor(memory.data(), {1, 4, 2, 2});
            }),
            "[log_linear.forward] k: got shape (1, 4, 2, 2), need (B, T, G, K) = (1, 4, 2, 3)");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.q = {}; }), "[log_linear.forward] q: got 0 dimensions, need (B, T, G, K)");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.q.dtype = a.k.dtype = a.v.dtype = a.out.dtype = static_cast<DType>(7); }),
            "[log_linear.forward] q: unknown dtype number 7");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.g.dtype = DType::bf16; }),
            "[log_linear.forward] g: got dtype bf16, need f32");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.out.data = nullptr; }), "[log_linear.forward] out: no data");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.v.stride[3] = 2; }),
            "[log_linear.forward] v: got stride 2 in the last dimension, need 1");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.beta = a.g; }),
            "[log_linear.forward] beta: given, but the rule scalar_decay has none");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.rule = Rule::gated_delta; }),
            "[log_linear.forward] beta: got shape (), need (B, T, H) = (1, 4, 4)");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.chunk = 48; }),
            "[log_linear.forward] chunk: got 48, need a power of two up to 256");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.threads = -1; }), "[log_linear.forward] threads: got -1, need at least 0");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.past_last = log_linear::PastLast::refuse; }),
            "[log_linear.forward] level_scales: position 4 needs 3 levels, got L = 2");
  const std::vector<std::int64_t> falls = {0, 3, 2, 4}, shorts = {0, 3}, late = {1, 4};
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.cu_seqlens = falls; }),
            "[log_linear.forward] cu_seqlens: falls from 3 to 2 at entry 2");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.cu_seqlens = shorts; }),
            "[log_linear.forward] cu_seqlens: ends at 3, need T = 4");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.cu_seqlens = late; }),
            "[log_linear.forward] cu_seqlens: starts at 1, need 0");
  std::vector<State> wrong = {State(Rule::scalar_decay, 4, 3, 2)}, two(2), delta = {State(Rule::gated_delta, 4, 3, 3)};
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.initial_state = wrong; }),
            "[log_linear.forward] initial_state: got H = 4, K = 3, V = 2, need 4, 3, 3");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.initial_state = delta; }),
            "[log_linear.forward] initial_state: of rule gated_delta, the call is of rule scalar_decay");
  EXPECT_EQ(forward([&](ForwardArgs& a) { a.final_state = two; }),
            "[log_linear.forward] final_state: got 2 states for 1 sequences");
  for (double e : p.out.values()) EXPECT_TRUE(std::isnan(e)) << "out was written by a call that failed";

  log_linear::StepArgs s = step_args(p.forward_args(), 0);
  EXPECT_EQ(message_of([&] { log_linear::step(s); }), "[log_linear.step] states: got 0 states for B = 1");
  BackwardArgs d = p.backward_args();
  d.dv = {};
  EXPECT_EQ(message_of([&] { log_linear::backward(d); }),
            "[log_linear.backward] dv: got shape (), need (B, T, H, V) = (1, 4, 4, 3)");
  d = p.backward_args();
  std::vector<State> early = {State(Rule::scalar_decay, 4, 3, 3)};
  d.dfinal_state = early;
  EXPECT_EQ(message_of([&] { log_linear::backward(d); }),
            "[log_linear.backward] dfinal_state: at position 0, the sequence ends at 4");
}

}  // namespace
}  // namespace loglinear::testing
