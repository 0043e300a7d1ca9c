#include "app/compare/case.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "app/measure.hpp"
#include "base/error.hpp"
#include "base/parallel.hpp"
#include "base/random.hpp"

namespace loglinear::app::compare {
namespace {

constexpr double kDelta = 1e-5;  // of central differences: their error is its square, rounding 1e-16 over it
constexpr double kSmall = 1e-2;  // what elements of a gradient are on the scale of their rounding, where they cancel
constexpr int kDirections = 2;   // an input is checked along so many

struct Pair {
  std::int64_t t, h;
};

std::vector<Pair> sample(const Case& c, std::int64_t first, int rows) {
  std::vector<Pair> pairs;
  Random random(c.tokens.seed, 1000);
  const std::int64_t count = c.T - first;
  for (int i = 0; count > 0 && i < rows; ++i) {
    const auto below = [&](std::int64_t n) {
      return static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(n)));
    };
    const std::int64_t t = i == 0 ? c.T - 1 : i == 1 ? first : first + below(count), h = below(c.H);
    pairs.push_back({c.checked_token(t, h), h});
  }
  return pairs;
}

const float* row_of(const std::vector<float>& x, const Case& c, const Pair& p) {
  return x.data() + (p.t * c.H + p.h) * c.W;
}

void refuse(const Case& c, const char* what, double error, double bound, const char* from) {
  if (!(error <= bound))
    throw WrongResult(fmt::format("{} T={}: the result is wrong: {} is {:.2g} from {}, allowed are {:.2g}",
                                  c.mechanism.name, c.T, what, error, from, bound));
}

// A random direction keeps, on average, the length of what it is multiplied by. Of `count` elements with that sum of
// squares; a gradient that is zero but for rounding has no length of its own.
double gradient_distance(double squared_difference, double squared_norm, double count) {
  return std::sqrt(squared_difference / std::max(squared_norm, kSmall * kSmall * count));
}

// sum of dout * out over all tokens by the definition.
double loss(const Case& c, const Point& x) {
  std::vector<double> sums(static_cast<std::size_t>(c.T * c.H));
  parallel_for(c.T * c.H, c.threads, [&](std::int64_t i) {
    std::vector<double> row(static_cast<std::size_t>(c.W));
    c.definition(x, i / c.H, i % c.H, row.data());
    const float* dout = c.tokens.dout.data() + i * c.W;
    double sum = 0;
    for (std::int64_t d = 0; d < c.W; ++d) sum += static_cast<double>(dout[d]) * row[static_cast<std::size_t>(d)];
    sums[static_cast<std::size_t>(i)] = sum;
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace

void Tokens::reserve(std::int64_t T) {
  if (static_cast<std::int64_t>(g.size()) >= T * H) return;
  const double unit = std::sqrt(12.0);
  const auto centred = [&](double u) { return (u - 0.5) * unit; };
  const std::int64_t n = T * H * W;
  fill(q, n, seed, 0, centred), fill(k, n, seed, 1, centred);
  fill(v, n, seed, 2, centred), fill(dout, n, seed, 3, centred);
  const double width = std::sqrt(static_cast<double>(W));
  fill(unit_k, n, seed, 1, [&](double u) { return centred(u) / width; });
  fill(g, T * H, seed, 4, [](double u) { return -0.01 * u; });
  fill(beta, T * H, seed, 5, [](double u) { return u; });
}

double Tokens::bytes(std::int64_t T) const { return 4.0 * static_cast<double>(T * H) * static_cast<double>(5 * W + 2); }

std::unique_ptr<Case> make_case(const Mechanism& m, const Tokens& tokens, std::int64_t T, int threads) {
  for (const auto make :
       {make_log_linear_case, make_attention_case, make_mosa_case, make_adamas_case, make_quasi_linear_case})
    if (auto made = make(m, tokens, T, threads)) return made;
  fail("compare", "nothing measures {}", m.name);
}

double check_rows(const Case& c, std::int64_t first, bool steps, int rows, double tolerance) {
  const std::vector<Pair> pairs = sample(c, first, rows);
  const Point x{c.inputs};
  std::vector<double> got(pairs.size() * static_cast<std::size_t>(c.W)), want(got.size());
  parallel_for(static_cast<std::int64_t>(pairs.size()), c.threads, [&](std::int64_t i) {
    const Pair& p = pairs[static_cast<std::size_t>(i)];
    if (steps)
      c.step_definition(x, p.t, p.h, want.data() + i * c.W);
    else
      c.definition(x, p.t, p.h, want.data() + i * c.W);
    std::copy_n(row_of(c.out, c, p), c.W, got.data() + i * c.W);
  });
  const double error = relative_error(got, want);
  c.check_more();
  refuse(c, steps ? "a step" : "out", error, tolerance * c.forward_bound(), "the definition in float64");
  return error;
}

double check_query_gradient(const Case& c, int rows, double tolerance) {
  const int input = c.query();
  if (input < 0) return 0;
  const std::vector<Pair> pairs = sample(c, 0, rows);
  std::vector<double> difference(pairs.size()), norm(pairs.size());
  parallel_for(static_cast<std::int64_t>(pairs.size()), c.threads, [&](std::int64_t i) {
    const Pair& p = pairs[static_cast<std::size_t>(i)];
    const std::int64_t at = (p.t * c.H + p.h) * c.W;
    const auto direction = static_cast<std::uint64_t>(i);
    std::vector<double> up(static_cast<std::size_t>(c.W)), down(up);
    c.definition({c.inputs, input, kDelta, direction}, p.t, p.h, up.data());
    c.definition({c.inputs, input, -kDelta, direction}, p.t, p.h, down.data());
    double want = 0, got = 0;
    for (std::int64_t d = 0; d < c.W; ++d) {
      const auto n = static_cast<std::size_t>(d);
      const double gradient =
          static_cast<double>(c.inputs[static_cast<std::size_t>(input)].gradient[n + static_cast<std::size_t>(at)]);
      want += static_cast<double>(c.tokens.dout[n + static_cast<std::size_t>(at)]) * (up[n] - down[n]) / (2 * kDelta);
      got += gradient * Point::sign(direction, at + d);
      norm[static_cast<std::size_t>(i)] += gradient * gradient;
    }
    difference[static_cast<std::size_t>(i)] = (got - want) * (got - want);
  });
  const double error = gradient_distance(std::accumulate(difference.begin(), difference.end(), 0.0),
                                         std::accumulate(norm.begin(), norm.end(), 0.0),
                                         static_cast<double>(pairs.size()) * static_cast<double>(c.W));
  refuse(c, fmt::format("d{}", c.inputs[static_cast<std::size_t>(input)].name).c_str(), error,
         tolerance * c.gradient_bound(), "that of central differences in float64");
  return error;
}

double check_gradients(const Case& c, double tolerance) {
  double worst = 0;
  for (std::size_t n = 0; n < c.inputs.size(); ++n) {
    const Input& input = c.inputs[n];
    double norm = 0, difference = 0;
    for (const float x : input.gradient) norm += static_cast<double>(x) * static_cast<double>(x);
    for (std::uint64_t direction = 0; direction < kDirections; ++direction) {
      const double up = loss(c, {c.inputs, static_cast<int>(n), kDelta, direction}),
                   down = loss(c, {c.inputs, static_cast<int>(n), -kDelta, direction});
      double got = 0;
      for (std::int64_t i = 0; i < input.count; ++i)
        got += static_cast<double>(input.gradient[static_cast<std::size_t>(i)]) * Point::sign(direction, i);
      const double apart = got - (up - down) / (2 * kDelta);
      difference += apart * apart / kDirections;
    }
    const double error = gradient_distance(difference, norm, static_cast<double>(input.count));
    refuse(c, fmt::format("d{}", input.name).c_str(), error, tolerance * c.gradient_bound(),
           "that of central differences in float64");
    worst = std::max(worst, error);
  }
  return worst;
}

}  // namespace loglinear::app::compare
