#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <complex>

#include "base/cpu_features.hpp"
#include "compare.hpp"
#include "loglinear/quasi_linear.hpp"
#include "op_testing.hpp"
#include "ops/quasi_linear/ref.hpp"
#include "sanitized.hpp"

namespace loglinear::testing {
namespace {

using Sequences = std::vector<QuasiLinearSequence>;
namespace ref = quasi_linear::ref;
constexpr Feature kFeatures[] = {Feature::silu, Feature::shifted_elu};

template <class T>
std::vector<double> dense(const Grid<T>& grid) {
  std::vector<double> values;
  for (std::int64_t r = 0; r < grid.rows; ++r)
    for (std::int64_t c = 0; c < grid.width; ++c) values.push_back(static_cast<double>(grid(r, c)));
  return values;
}

std::int64_t rows_of(const Sequences& sequences) {
  std::int64_t rows = 0;
  for (const auto& [seeds, seed_count, candidates, candidate_count] : sequences)
    rows = std::max({rows, seeds + seed_count, candidates + candidate_count});
  return rows;
}

// Sequences of (seeds, candidates), rows one after the other: of each sequence seeds, then candidates; or of all
// sequences their seeds first.
Sequences packed(const std::vector<std::pair<std::int64_t, std::int64_t>>& counts, bool seeds_first) {
  Sequences sequences(counts.size());
  std::int64_t at = 0;
  for (std::size_t s = 0; s < counts.size(); ++s) {
    sequences[s].seed_begin = at, sequences[s].seed_count = counts[s].first;
    at += counts[s].first;
    if (seeds_first) continue;
    sequences[s].candidate_begin = at, sequences[s].candidate_count = counts[s].second;
    at += counts[s].second;
  }
  for (std::size_t s = 0; seeds_first && s < counts.size(); ++s) {
    sequences[s].candidate_begin = at, sequences[s].candidate_count = counts[s].second;
    at += counts[s].second;
  }
  return sequences;
}

template <class T>
struct Problem {
  Sequences sequences;
  QuasiLinearShape shape;
  std::int64_t rows, H, K, V;
  Grid<T> q, k, v, dout, initial;  // initial (sequences, H * K * V)

  Problem(Sequences sequences_, const QuasiLinearShape& shape_, std::int64_t padding = 0, std::uint64_t seed = 1)
      : sequences(std::move(sequences_)),
        shape(shape_),
        rows(rows_of(sequences)),
        H(shape.heads),
        K(shape.key_width),
        V(shape.value_width),
        q(rows, H * K, padding),
        k(rows, H * K, padding),
        v(rows, H * V, padding),
        dout(rows, H * V, padding),
        initial(static_cast<std::int64_t>(sequences.size()), H * K * V) {
    Random random(91, seed);
    q.fill(random, -2, 2), k.fill(random, -2, 2), v.fill(random), dout.fill(random), initial.fill(random);
  }
  std::vector<const T*> from(const Grid<T>& states) const {
    std::vector<const T*> pointers;
    for (std::int64_t s = 0; s < states.rows; ++s) pointers.push_back(states.ptr() + s * states.stride);
    return pointers;
  }
  std::vector<T*> to(Grid<T>& states) const {
    std::vector<T*> pointers;
    for (std::int64_t s = 0; s < states.rows; ++s) pointers.push_back(states.ptr() + s * states.stride);
    return pointers;
  }

  Grid<T> forward(bool from_state = false, Grid<T>* final = nullptr, int threads = 0) const {
    Grid<T> out(rows, H * V, 2);
    if (final) *final = Grid<T>(initial.rows, initial.width);
    const auto pointers = from_state ? from(initial) : std::vector<const T*>();
    quasi_linear_forward<T>(sequences, shape, q.ptr(), q.stride, k.ptr(), k.stride, v.ptr(), v.stride, out.ptr(),
                            out.stride, pointers, final ? to(*final) : std::vector<T*>(), threads);
    return out;
  }
  struct Gradients {
    Grid<T> dq, dk, dv;
  };
  Gradients backward(int threads = 0) const {
    Gradients g{Grid<T>(rows, H * K, 1), Grid<T>(rows, H * K, 2), Grid<T>(rows, H * V, 3)};
    quasi_linear_backward<T>(sequences, shape, q.ptr(), q.stride, k.ptr(), k.stride, v.ptr(), v.stride, dout.ptr(),
                             dout.stride, g.dq.ptr(), g.dq.stride, g.dk.ptr(), g.dk.stride, g.dv.ptr(), g.dv.stride,
                             threads);
    EXPECT_TRUE(g.dq.padding_untouched() && g.dk.padding_untouched() && g.dv.padding_untouched());
    return g;
  }
};

QuasiLinearShape shape_of(std::int64_t H, std::int64_t K, std::int64_t V, Feature feature) {
  return {.heads = H, .key_width = K, .value_width = V, .feature = feature};
}

template <class T>
void check_forward(const Sequences& sequences, const QuasiLinearShape& shape, std::int64_t padding,
                   std::uint64_t seed = 1) {
  const Problem<T> p(sequences, shape, padding, seed);
  SCOPED_TRACE(::testing::Message() << "rows " << p.rows << " H " << p.H << " K " << p.K << " V " << p.V << " feature "
                                    << static_cast<int>(shape.feature));
  for (bool from_state : {false, true}) {
    std::vector<double> state = from_state ? dense(p.initial) : std::vector<double>(dense(p.initial).size(), 0.0);
    const std::vector<double> want = ref::forward<double>(sequences, shape, dense(p.q), dense(p.k), dense(p.v), state);
    Grid<T> final;
    const Grid<T> out = p.forward(from_state, &final);
    const double bound = sizeof(T) == 4 ? 3e-6 : 1e-13;
    EXPECT_TRUE(close("out", dense(out), want, bound));
    EXPECT_TRUE(close("state", dense(final), state, bound));
    EXPECT_TRUE(out.padding_untouched());
  }
}

template <class T>
class QuasiLinear : public ::testing::Test {};
TYPED_TEST_SUITE(QuasiLinear, Floats);

TYPED_TEST(QuasiLinear, definition) {
  using T = TypeParam;
  for (Feature feature : kFeatures)
    for (bool seeds_first : {false, true}) {
      for (const auto& [H, K, V] : {std::tuple{1, 1, 1}, {3, 5, 7}, {2, 16, 32}, {1, 20, 17}, {2, 64, 48}})
        check_forward<T>(packed({{0, 0}, {1, 0}, {0, 3}, {5, 2}, {67, 65}, {129, 1}}, seeds_first),
                         shape_of(H, K, V, feature), H);
      check_forward<T>(packed({{530, 70}}, seeds_first), shape_of(1, 16, 16, feature), 0);
      check_forward<T>({}, shape_of(1, 2, 3, feature), 0);
    }
}

TYPED_TEST(QuasiLinear, every_instruction_set) {
  using T = TypeParam;
  for (const std::string& name : instruction_sets()) {
    SCOPED_TRACE(name);
    force_instruction_set(name);
    for (Feature feature : kFeatures) check_forward<T>(packed({{70, 20}}, false), shape_of(2, 19, 33, feature), 1);
  }
  force_instruction_set("");
}

RC_GTEST_PROP(QuasiLinearProperty, random_shapes, ()) {
  const auto size = [](std::int64_t from, std::int64_t to) { return *rc::gen::inRange<std::int64_t>(from, to); };
  std::vector<std::pair<std::int64_t, std::int64_t>> counts(static_cast<std::size_t>(size(0, 4)));
  for (auto& [seeds, candidates] : counts) seeds = size(0, 90), candidates = size(0, 90);
  const Feature feature = kFeatures[size(0, 2)];
  check_forward<double>(packed(counts, *rc::gen::arbitrary<bool>()),
                        shape_of(size(1, 4), size(1, 40), size(1, 40), feature), size(0, 3));
  RC_ASSERT(!::testing::Test::HasFailure());
}

// Every gradient against the complex step of the definition, in which seeds and candidates look at each other in pairs.
TEST(QuasiLinear, gradients_equal_complex_step) {
  using C = std::complex<double>;
  for (Feature feature : kFeatures)
    for (const auto& [H, K, V] : {std::tuple{1, 1, 1}, {2, 5, 3}, {1, 16, 16}}) {
      const Sequences sequences = packed({{1, 0}, {0, 2}, {0, 0}, {4, 3}, {66, 2}}, K == 5);
      const Problem<double> p(sequences, shape_of(H, K, V, feature), 2);
      const auto g = p.backward();
      const auto copy = [](const Grid<double>& from) {
        const std::vector<double> values = dense(from);
        return std::vector<C>(values.begin(), values.end());
      };
      std::vector<C> q = copy(p.q), k = copy(p.k), v = copy(p.v);
      const std::vector<double> dout = dense(p.dout);
      const auto check = [&](const char* what, std::vector<C>& inputs, const Grid<double>& gradient) {
        const std::vector<double> all = dense(gradient);
        std::vector<double> got, want;
        const std::size_t step = std::max<std::size_t>(1, inputs.size() / (kSanitized ? 6 : 60));
        for (std::size_t i = 0; i < inputs.size(); i += step) {
          const C kept = inputs[i];
          inputs[i] += C(0, 1e-100);
          std::vector<C> state(p.initial.data.size(), C(0));
          const std::vector<C> out = ref::forward<C>(sequences, p.shape, q, k, v, state);
          inputs[i] = kept;
          C loss = 0;
          for (std::size_t n = 0; n < out.size(); ++n) loss += out[n] * dout[n];
          got.push_back(all[i]), want.push_back(loss.imag() / 1e-100);
        }
        EXPECT_TRUE(close(what, got, want, 1e-12)) << "K " << K << " feature " << static_cast<int>(feature);
      };
      check("dq", q, g.dq);
      check("dk", k, g.dk);
      check("dv", v, g.dv);
    }
}

TEST(QuasiLinear, float_gradients_are_near_double) {
  for (Feature feature : kFeatures) {
    const Sequences sequences = packed({{200, 90}, {33, 700}}, false);
    const auto got = Problem<float>(sequences, shape_of(3, 32, 24, feature)).backward();
    const auto want = Problem<double>(sequences, shape_of(3, 32, 24, feature)).backward();
    EXPECT_TRUE(close("dq", dense(got.dq), dense(want.dq), 3e-6));
    EXPECT_TRUE(close("dk", dense(got.dk), dense(want.dk), 3e-6));
    EXPECT_TRUE(close("dv", dense(got.dv), dense(want.dv), 3e-6));
  }
}

// phi' has no jump where the shifted ELU changes its form, and infinities and NaN come out as such.
TYPED_TEST(QuasiLinear, the_edges_of_phi) {
  using T = TypeParam;
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  Problem<T> p(packed({{1, 0}}, false), shape_of(1, 7, 1, Feature::shifted_elu));
  const T x[] = {T(1), T(0), T(-1), T(3), -inf, T(-300), T(0.5)};
  for (int i = 0; i < 7; ++i) p.q(0, i) = x[i], p.k(0, i) = T(2);
  p.v.fill(1.0), p.dout.fill(1.0);
  Grid<T> final;
  p.forward(false, &final);
  const auto g = p.backward();
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(final(0, i), T(2));
    const double slope = x[i] >= 1 ? 1 : std::exp(static_cast<double>(x[i]) - 1);
    EXPECT_NEAR(g.dq(0, i), 2 * slope, 1e-6) << i;
  }
  p.k(0, 3) = nan;
  EXPECT_TRUE(std::isnan(p.forward()(0, 0)));
  EXPECT_TRUE(std::isnan(p.backward().dk(0, 3)));
}

TYPED_TEST(QuasiLinear, silu_far_out) {
  using T = TypeParam;
  Problem<T> p(packed({{1, 0}}, false), shape_of(1, 8, 1, Feature::silu));
  const double x[] = {-5000, -200, -85, -20, 0, 20, 200, 5000};
  for (int i = 0; i < 8; ++i) p.q(0, i) = static_cast<T>(x[i]), p.k(0, i) = static_cast<T>(x[i]);
  p.v.fill(1.0), p.dout.fill(1.0);
  Grid<T> final;
  p.forward(false, &final);
  const auto g = p.backward();
  for (int i = 0; i < 8; ++i) {
    const double s = 1 / (1 + std::exp(-x[i])), rest = 1 / (1 + std::exp(x[i]));
    EXPECT_NEAR(final(0, i), x[i] * s, kBound<T> * (1 + std::abs(x[i]))) << x[i];
    EXPECT_NEAR(g.dq(0, i), x[i] * s * (s * (1 + x[i] * rest)), kBound<T> * (1 + std::abs(x[i]))) << x[i];
  }
  p.k(0, 3) = std::numeric_limits<T>::quiet_NaN();
  EXPECT_TRUE(std::isnan(p.forward()(0, 0)));
  const Grid<T> dk = p.backward().dk;
  for (int i = 0; i < 8; ++i) EXPECT_EQ(std::isnan(dk(0, i)), i == 3) << x[i];
}

// Streaming: seeds added to a state bit by bit, candidates scored from it.
TYPED_TEST(QuasiLinear, state_updates) {
  using T = TypeParam;
  for (Feature feature : kFeatures)
    for (std::int64_t V : {16, 23}) {
      const QuasiLinearShape shape = shape_of(2, 12, V, feature);
      const Problem<T> p(packed({{200, 9}, {77, 4}}, false), shape, 1);
      Grid<T> want;
      const Grid<T> out = p.forward(true, &want);
      const auto update = [&](SeedUpdate what, std::int64_t from, std::int64_t to, Grid<T>& state) {
        Sequences part = p.sequences;
        for (QuasiLinearSequence& sequence : part) {
          const std::int64_t end = std::min(to, sequence.seed_count);
          sequence.seed_begin += std::min(from, end);
          sequence.seed_count = std::max<std::int64_t>(0, end - from);
        }
        quasi_linear_update<T>(what, part, shape, p.k.ptr(), p.k.stride, p.v.ptr(), p.v.stride, p.to(state));
      };
      // Cut at multiples of 64: the same bits.
      Grid<T> state = p.initial;
      update(SeedUpdate::add, 0, 64, state), update(SeedUpdate::add, 64, 192, state);
      update(SeedUpdate::add, 192, 200, state);
      EXPECT_TRUE(same_bits(state.data, want.data));
      // Anywhere: up to rounding.
      state = p.initial;
      for (std::int64_t at = 0; at < 200; ++at) update(SeedUpdate::add, at, at + 1, state);
      const double bound = sizeof(T) == 4 ? 1e-6 : 1e-14;
      EXPECT_TRUE(close("state", dense(state), dense(want), bound));
      // Candidates from the state alone have the bits of one call.
      Problem<T> alone = p;
      for (QuasiLinearSequence& sequence : alone.sequences) sequence.seed_count = 0;
      alone.initial = want;
      const Grid<T> scores = alone.forward(true);
      for (const QuasiLinearSequence& sequence : p.sequences)
        for (std::int64_t c = 0; c < sequence.candidate_count; ++c)
          EXPECT_TRUE(same_row_bits(scores, out, sequence.candidate_begin + c));
      // What was added and removed leaves what was there.
      update(SeedUpdate::remove, 0, 200, state);
      EXPECT_TRUE(close("removed", dense(state), dense(p.initial), sizeof(T) == 4 ? 1e-5 : 1e-13));
      Grid<T> rest = want;
      update(SeedUpdate::remove, 100, 200, rest);
      state = p.initial;
      update(SeedUpdate::add, 0, 100, state);
      EXPECT_TRUE(close("rest", dense(rest), dense(state), sizeof(T) == 4 ? 1e-5 : 1e-13));
    }
}

TYPED_TEST(QuasiLinear, states_in_place_and_null) {
  using T = TypeParam;
  const Problem<T> p(packed({{10, 3}, {7, 2}}, true), shape_of(2, 6, 5, Feature::silu));
  Grid<T> want, state = p.initial;
  const Grid<T> out = p.forward(true, &want);
  Grid<T> again(p.rows, p.H * p.V, 2);
  quasi_linear_forward<T>(p.sequences, p.shape, p.q.ptr(), p.q.stride, p.k.ptr(), p.k.stride, p.v.ptr(), p.v.stride,
                          again.ptr(), again.stride, p.from(state), p.to(state));
  EXPECT_TRUE(same_bits(again.data, out.data));
  EXPECT_TRUE(same_bits(state.data, want.data));
  const Grid<T> zero = p.forward();
  quasi_linear_forward<T>(p.sequences, p.shape, p.q.ptr(), p.q.stride, p.k.ptr(), p.k.stride, p.v.ptr(), p.v.stride,
                          again.ptr(), again.stride, std::vector<const T*>{nullptr, nullptr},
                          std::vector<T*>{nullptr, nullptr});
  EXPECT_TRUE(same_bits(again.data, zero.data));
}

TYPED_TEST(QuasiLinear, bits_do_not_depend_on_threads) {
  using T = TypeParam;
  // One head of a few sequences: columns are cut among threads.
  for (const auto& [H, V] : {std::pair{1, 70}, {1, 16}, {3, 20}}) {
    const Problem<T> p(packed({{900, 40}}, false), shape_of(H, 24, V, Feature::silu));
    expect_same_for_threads([&](int threads) {
      Grid<T> final, added = p.initial;
      const Grid<T> out = p.forward(true, &final, threads);
      quasi_linear_update<T>(SeedUpdate::add, p.sequences, p.shape, p.k.ptr(), p.k.stride, p.v.ptr(), p.v.stride,
                             p.to(added), threads);
      EXPECT_TRUE(same_bits(added.data, final.data));
      const auto g = p.backward(threads);
      return std::vector<std::vector<T>>{out.data, final.data, g.dq.data, g.dk.data, g.dv.data};
    });
  }
}

// A sequence has the bits of a call of its own; a NaN reaches neither other sequences nor other heads, and that of a
// candidate no other candidate.
TYPED_TEST(QuasiLinear, sequences_and_candidates_are_separate) {
  using T = TypeParam;
  Problem<T> p(packed({{70, 30}, {65, 8}}, false), shape_of(2, 18, 21, Feature::shifted_elu));
  const Grid<T> out = p.forward(), dq = p.backward().dq;
  for (std::size_t s = 0; s < 2; ++s) {
    Problem<T> one = p;
    one.sequences = {p.sequences[s]};
    const Grid<T> alone = one.forward(), dalone = one.backward().dq;
    const std::int64_t begin = p.sequences[s].seed_begin;
    for (std::int64_t r = begin; r < begin + p.sequences[s].seed_count + p.sequences[s].candidate_count; ++r) {
      EXPECT_TRUE(same_row_bits(alone, out, r));
      EXPECT_TRUE(same_row_bits(dalone, dq, r));
    }
  }
  const auto expect_changed = [&](const Grid<T>& dirty, std::int64_t from, std::int64_t to) {
    for (std::int64_t r = 0; r < p.rows; ++r)
      for (std::int64_t c = 0; c < p.H * p.V; ++c) {
        if (r >= from && r < to && c < p.V)
          EXPECT_TRUE(std::isnan(dirty(r, c))) << r << ", " << c;
        else
          EXPECT_EQ(dirty(r, c), out(r, c)) << r << ", " << c;
      }
  };
  const T kept = p.k(81, 3);
  p.k(81, 3) = std::numeric_limits<T>::quiet_NaN();  // head 0 of a candidate
  expect_changed(p.forward(), 81, 82);
  p.k(81, 3) = kept;
  p.k(5, 3) = std::numeric_limits<T>::quiet_NaN();  // of a seed
  expect_changed(p.forward(), 0, 100);
}

TEST(QuasiLinear, errors) {
  float d[64] = {};
  const auto call = [&](const Sequences& sequences, const QuasiLinearShape& shape, const float* q,
                        std::int64_t stride) {
    return [=, &d] { quasi_linear_forward<float>(sequences, shape, q, stride, d, 4, d, 4, d + 32, 4); };
  };
  const QuasiLinearShape shape = shape_of(2, 2, 2, Feature::silu);
  expect_error(call({}, shape_of(0, 2, 2, Feature::silu), d, 4), "at least 1");
  expect_error(call({}, shape_of(2, 2, 2, static_cast<Feature>(7)), d, 4), "feature 7");
  expect_error(call({{0, -1, 0, 0}}, shape, d, 4), "out of range");
  expect_error(call({{0, 2, 1, 1}}, shape, d, 4), "row 1 is in two ranges");
  expect_error(call({{0, 2, 2, 1}, {1, 1, 0, 0}}, shape, d, 4), "row 1 is in two ranges");
  expect_error(call({{0, 1, 1, 1}}, shape, d, 3), "q: row stride 3");
  expect_error(call({{0, 1, 1, 1}}, shape, nullptr, 4), "q is null");
  expect_error(call({}, shape_of(std::int64_t{1} << 30, std::int64_t{1} << 30, 8, Feature::silu), d, 4), "overflow");
  expect_error(
      [&] {
        const float* const one[] = {d};
        quasi_linear_forward<float>({}, shape, d, 4, d, 4, d, 4, d, 4, one);
      },
      "1 initial states for 0 sequences");
  const Sequences sequences = {{0, 1, 0, 0}};
  expect_error(
      [&] {
        float* const none[] = {nullptr};
        quasi_linear_update<float>(SeedUpdate::add, sequences, shape, d, 4, d, 4, none);
      },
      "a state is null");
  expect_error([&] { quasi_linear_update<float>(SeedUpdate::add, sequences, shape, d, 4, d, 4, {}); },
               "0 states for 1 sequences");
}

}  // namespace
}  // namespace loglinear::testing
