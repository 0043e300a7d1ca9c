#pragma once
// One mechanism at one length: what is timed, and the definition that it is held against first.

#include <cstdint>
#include <memory>
#include <vector>

#include "app/compare/mechanisms.hpp"

namespace loglinear::app::compare {

// What every mechanism is given, the same numbers to each: (T, H, W) queries, keys, values and gradients of the output,
// (T, H) decays and write strengths. A shorter call gets the first tokens of a longer one.
struct Tokens {
  std::int64_t H = 0, W = 0;
  std::uint64_t seed = 0;
  std::vector<float> q{}, k{}, v{}, dout{};  // variance 1
  std::vector<float> unit_k{};     // k over sqrt(W): about unit length, as the rules of linear attention want it
  std::vector<float> g{}, beta{};  // g in (-0.01, 0], beta in [0, 1)

  // Makes the values of the first T tokens, unless they are there.
  void reserve(std::int64_t T);
  // Bytes of T tokens.
  double bytes(std::int64_t T) const;
};

// An array that a mechanism reads and differentiates by.
struct Input {
  const char* name;
  const float* value;
  std::int64_t count;
  std::vector<float> gradient;  // written by backward
};

// Where the definition is evaluated: the inputs in float64, one of them moved by `step` along a direction of signs.
struct Point {
  const std::vector<Input>& inputs;
  int moved = -1;
  double step = 0;
  std::uint64_t direction = 0;

  // Element i of direction number `direction`: 1 or -1, a hash of both.
  static double sign(std::uint64_t direction, std::int64_t i) {
    std::uint64_t z = static_cast<std::uint64_t>(i) + (direction + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z >> 63 ? 1.0 : -1.0;
  }
  double operator()(int input, std::int64_t i) const {
    const double x = static_cast<double>(inputs[static_cast<std::size_t>(input)].value[i]);
    return input == moved ? x + step * sign(direction, i) : x;
  }
};

class Case {
 public:
  Case(const Mechanism& m, const Tokens& x, std::int64_t tokens, int thread_count)
      : mechanism(m), tokens(x), T(tokens), H(x.H), W(x.W), threads(thread_count) {}
  virtual ~Case() = default;
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  const Mechanism& mechanism;
  const Tokens& tokens;
  const std::int64_t T, H, W;
  const int threads;
  std::vector<Input> inputs;
  std::vector<float> out;  // (T, H, W)

  // The library's, in float32. Each makes the arrays that it writes when they are not there, so that they count as the
  // memory of the call: out, and of backward the gradients and whatever it needs of its forward.
  virtual void forward() {}
  virtual void forward_backward() {}
  // Reads tokens [0, first), so that step(first), step(first + 1), ... may follow; again: starts anew from there.
  virtual void begin_steps(std::int64_t) {}
  // Steps in a row that make a fair mean: a chunk of the log-linear state, which is folded into it once; fewer where
  // one step is like the other.
  virtual std::int64_t steps() const { return 8; }
  // Reads token t and writes row t of out, which is there.
  virtual void step(std::int64_t) {}
  // Bytes of the state before the last step that was made.
  virtual double state_bytes() const { return mechanism.state_bytes({T, H, W}); }

  // The definition in float64, one row of a head: out[t, h], W numbers. Of a step: the same unless it sees less.
  virtual void definition(const Point& x, std::int64_t t, std::int64_t h, double* row) const = 0;
  virtual void step_definition(const Point& x, std::int64_t t, std::int64_t h, double* row) const {
    definition(x, t, h, row);
  }
  // The input of which row (t, h) reaches row (t, h) of out and no other; -1: there is none.
  virtual int query() const { return 0; }

  // The token that stands for t, of a random sample, in a check of head h: where rows may be zero, one that is not.
  virtual std::int64_t checked_token(std::int64_t t, std::int64_t) const { return t; }
  // What else has to hold of the last forward. Throws WrongResult.
  virtual void check_more() const {}

  // Distances from the definition that are allowed (docs/numerics.md).
  virtual double forward_bound() const { return 5e-6; }
  virtual double gradient_bound() const { return 5e-5; }
  // Tokens of the call on which all gradients are checked.
  virtual std::int64_t gradient_tokens() const { return 80; }

  // A gradient of every input, zero where there was none.
  void make_gradients() {
    for (Input& input : inputs) input.gradient.resize(static_cast<std::size_t>(input.count));
  }
  void make_out() { out.resize(static_cast<std::size_t>(T * H * W)); }
  // Gives back what the calls wrote.
  virtual void forget() {
    out = {};
    for (Input& input : inputs) input.gradient = {};
  }
};

// tokens hold T at least.
std::unique_ptr<Case> make_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads);

// Each file of cases makes those that it knows, null for the others.
std::unique_ptr<Case> make_log_linear_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads);
std::unique_ptr<Case> make_attention_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads);
std::unique_ptr<Case> make_adamas_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads);
std::unique_ptr<Case> make_mosa_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads);
std::unique_ptr<Case> make_quasi_linear_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads);

// ---- checks: each gives the distance from the definition and throws WrongResult when it is more than `tolerance`
// times what is allowed. Rows: a sample of at most `rows` pairs of a token and a head, the first and the last token
// among them.

// out as it is now, of the sample among tokens [first, T); steps: against the definition of a step.
double check_rows(const Case& c, std::int64_t first, bool steps, int rows, double tolerance);
// The gradient of the queries in the sample against central differences. 0 when query() is none.
double check_query_gradient(const Case& c, int rows, double tolerance);
// Every gradient as it is now, of all tokens: along random directions, against central differences of the whole
// definition. The largest distance of any input. T^2 work and more: for short calls.
double check_gradients(const Case& c, double tolerance);

}  // namespace loglinear::app::compare
