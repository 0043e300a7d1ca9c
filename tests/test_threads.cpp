// What the operator promises to programs with threads of their own: calls on distinct outputs and distinct States may
// run at the same time, also when they read the same inputs and when the States share matrices. Built with the thread
// sanitizer as well (preset tsan).

#include <cstring>
#include <span>
#include <thread>
#include <vector>

#include "base/random.hpp"
#include "gtest/gtest.h"
#include "loglinear/log_linear.hpp"
#include "sanitized.hpp"

namespace loglinear {
namespace {

// Large enough that forward and backward wake threads of their own.
constexpr std::int64_t kT = 300, kG = 1, kH = 8, kK = 32, kV = 8, kL = 6;
constexpr int kRounds = kSanitized ? 3 : 20;  // one look is enough where a tool does the looking
const std::vector<int> kThreadCounts = kSanitized ? std::vector<int>{3} : std::vector<int>{2, 3, 4};

struct Inputs {
  std::int64_t tokens;
  std::vector<float> q, k, v, g, beta, scales, dout;

  explicit Inputs(std::uint64_t seed, std::int64_t tokens = kT)
      : tokens(tokens),
        q(draw(seed, 1, tokens * kG * kK)),
        k(draw(seed, 2, tokens * kG * kK)),
        v(draw(seed, 3, tokens * kH * kV)),
        g(draw(seed, 4, tokens * kH)),
        beta(draw(seed, 5, tokens * kH)),
        scales(draw(seed, 6, tokens * kH * kL)),
        dout(draw(seed, 7, tokens * kH * kV)) {
    for (float& x : g) x = -0.1f * x * x;
    for (float& x : beta) x = 0.1f * x * x;
  }

  static std::vector<float> draw(std::uint64_t seed, std::uint64_t stream, std::int64_t n) {
    Random random(seed, stream);
    std::vector<float> x(n);
    for (float& value : x) value = 0.3f * static_cast<float>(random.normal());
    return x;
  }
};

// Forward of `tokens` tokens from `begin`; the state goes in and out.
std::vector<float> run_forward(Rule rule, const Inputs& x, std::int64_t begin, std::int64_t tokens, State& state,
                               int threads) {
  std::vector<float> out(tokens * kH * kV);
  log_linear::ForwardArgs args;
  args.rule = rule;
  args.q = Tensor(const_cast<float*>(x.q.data()) + begin * kG * kK, {1, tokens, kG, kK});
  args.k = Tensor(const_cast<float*>(x.k.data()) + begin * kG * kK, {1, tokens, kG, kK});
  args.v = Tensor(const_cast<float*>(x.v.data()) + begin * kH * kV, {1, tokens, kH, kV});
  args.g = Tensor(const_cast<float*>(x.g.data()) + begin * kH, {1, tokens, kH});
  if (has_beta(rule)) args.beta = Tensor(const_cast<float*>(x.beta.data()) + begin * kH, {1, tokens, kH});
  args.level_scales = Tensor(const_cast<float*>(x.scales.data()) + begin * kH * kL, {1, tokens, kH, kL});
  args.out = Tensor(out.data(), {1, tokens, kH, kV});
  args.initial_state = {&state, 1};
  args.final_state = {&state, 1};
  args.threads = threads;
  log_linear::forward(args);
  return out;
}

// Tokens from `begin` to the end, one at a time.
std::vector<float> run_steps(Rule rule, const Inputs& x, std::int64_t begin, State& state) {
  std::vector<float> out((kT - begin) * kH * kV);
  for (std::int64_t t = begin; t < kT; ++t) {
    log_linear::StepArgs args;
    args.rule = rule;
    args.q = Tensor(const_cast<float*>(x.q.data()) + t * kG * kK, {1, kG, kK});
    args.k = Tensor(const_cast<float*>(x.k.data()) + t * kG * kK, {1, kG, kK});
    args.v = Tensor(const_cast<float*>(x.v.data()) + t * kH * kV, {1, kH, kV});
    args.g = Tensor(const_cast<float*>(x.g.data()) + t * kH, {1, kH});
    if (has_beta(rule)) args.beta = Tensor(const_cast<float*>(x.beta.data()) + t * kH, {1, kH});
    args.level_scales = Tensor(const_cast<float*>(x.scales.data()) + t * kH * kL, {1, kH, kL});
    args.out = Tensor(out.data() + (t - begin) * kH * kV, {1, kH, kV});
    args.states = {&state, 1};
    args.threads = 1;
    log_linear::step(args);
  }
  return out;
}

// Every gradient of the whole sequence, one after the other.
std::vector<float> run_backward(Rule rule, const Inputs& x, int threads) {
  std::vector<float> dq(x.q.size()), dk(x.k.size()), dv(x.v.size()), dg(x.g.size()), dbeta(x.beta.size()),
      dscales(x.scales.size());
  log_linear::BackwardArgs args;
  args.rule = rule;
  args.q = Tensor(const_cast<float*>(x.q.data()), {1, x.tokens, kG, kK});
  args.k = Tensor(const_cast<float*>(x.k.data()), {1, x.tokens, kG, kK});
  args.v = Tensor(const_cast<float*>(x.v.data()), {1, x.tokens, kH, kV});
  args.g = Tensor(const_cast<float*>(x.g.data()), {1, x.tokens, kH});
  args.level_scales = Tensor(const_cast<float*>(x.scales.data()), {1, x.tokens, kH, kL});
  args.dout = Tensor(const_cast<float*>(x.dout.data()), {1, x.tokens, kH, kV});
  args.dq = Tensor(dq.data(), {1, x.tokens, kG, kK});
  args.dk = Tensor(dk.data(), {1, x.tokens, kG, kK});
  args.dv = Tensor(dv.data(), {1, x.tokens, kH, kV});
  args.dg = Tensor(dg.data(), {1, x.tokens, kH});
  args.dlevel_scales = Tensor(dscales.data(), {1, x.tokens, kH, kL});
  if (has_beta(rule)) {
    args.beta = Tensor(const_cast<float*>(x.beta.data()), {1, x.tokens, kH});
    args.dbeta = Tensor(dbeta.data(), {1, x.tokens, kH});
  }
  args.threads = threads;
  log_linear::backward(args);
  std::vector<float> all;
  for (const auto* part : {&dq, &dk, &dv, &dg, &dbeta, &dscales}) all.insert(all.end(), part->begin(), part->end());
  return all;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Runs body(i) on `count` threads at once.
template <class Body>
void at_once(int count, const Body& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([&body, i] { body(i); });
  for (std::thread& thread : threads) thread.join();
}

TEST(Threads, CallsAtTheSameTimeGiveTheBitsOfCallsOneByOne) {
  constexpr int kCalls = 4;
  const Inputs x(1);
  for (Rule rule : kRules) {
    State state(rule, kH, kK, kV);
    const std::vector<float> forward_alone = run_forward(rule, x, 0, kT, state, 1);
    const std::vector<float> backward_alone = run_backward(rule, x, 1);
    std::vector<std::vector<float>> forward(kCalls), backward(kCalls);
    at_once(kCalls, [&](int i) {
      State own(rule, kH, kK, kV);
      // Half of the calls use threads of the library as well.
      forward[i] = run_forward(rule, x, 0, kT, own, 1 + i % 2);
      backward[i] = run_backward(rule, x, 1 + i % 2);
    });
    for (int i = 0; i < kCalls; ++i) {
      EXPECT_TRUE(same_bits(forward[i], forward_alone)) << name_of(rule) << ", call " << i;
      EXPECT_TRUE(same_bits(backward[i], backward_alone)) << name_of(rule) << ", call " << i;
    }
  }
}

TEST(Threads, ForksOfOneStateGoOnAtTheSameTime) {
  constexpr int kForks = 4;
  constexpr std::int64_t kPrefix = 87;  // 64 + 16 + 4 + 2 + 1: five shared matrices
  const Inputs shared(2);
  for (Rule rule : kRules) {
    State prefix(rule, kH, kK, kV);
    run_forward(rule, shared, 0, kPrefix, prefix, 1);

    std::vector<Inputs> suffix;
    std::vector<std::vector<float>> alone(kForks), stepped(kForks);
    for (int i = 0; i < kForks; ++i) {
      suffix.emplace_back(100 + i);
      State fork = prefix;
      alone[i] = run_steps(rule, suffix[i], kPrefix, fork);
    }

    std::vector<State> forks(kForks, prefix);
    at_once(kForks, [&](int i) { stepped[i] = run_steps(rule, suffix[i], kPrefix, forks[i]); });
    for (int i = 0; i < kForks; ++i) {
      EXPECT_TRUE(same_bits(stepped[i], alone[i])) << name_of(rule) << ", fork " << i;
      EXPECT_EQ(forks[i].position(), kT);
    }
    // The forks left the state that they came from as it was.
    State again = prefix;
    EXPECT_EQ(prefix.position(), kPrefix);
    EXPECT_TRUE(same_bits(run_steps(rule, suffix[0], kPrefix, again), alone[0])) << name_of(rule);
  }
}

// As above, but nobody keeps the state that the forks came from: the fork that lets go of a shared matrix last may
// write to it, and only after the others have read it.
TEST(Threads, TheLastForkMayTakeTheMatrix) {
  const Inputs shared(3);
  for (Rule rule : kRules) {
    State prefix(rule, kH, kK, kV);
    run_forward(rule, shared, 0, 127, prefix, 1);
    State alone = prefix;
    const std::vector<float> expected = run_steps(rule, shared, 127, alone);
    for (int round = 0; round < kRounds; ++round) {
      State forks[2] = {State(rule, kH, kK, kV), State()};
      run_forward(rule, shared, 0, 127, forks[0], 1);
      forks[1] = forks[0];
      std::vector<float> stepped[2];
      at_once(2, [&](int i) { stepped[i] = run_steps(rule, shared, 127, forks[i]); });
      for (int i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(stepped[i], expected)) << name_of(rule) << ", fork " << i;
    }
  }
}

// The library's own threads, and enough tokens that the sums over heads are shared out as well.
TEST(Threads, AnyNumberGivesTheSameBits) {
  for (Rule rule : kRules) {
    const Inputs x(4, 7 * kT);
    State state(rule, kH, kK, kV);
    const std::vector<float> forward = run_forward(rule, x, 0, x.tokens, state, 1);
    const std::vector<float> backward = run_backward(rule, x, 1);
    for (int threads : kThreadCounts) {
      State own(rule, kH, kK, kV);
      EXPECT_TRUE(same_bits(run_forward(rule, x, 0, x.tokens, own, threads), forward)) << name_of(rule) << threads;
      EXPECT_TRUE(same_bits(run_backward(rule, x, threads), backward)) << name_of(rule) << threads;
    }
  }
}

}  // namespace
}  // namespace loglinear
