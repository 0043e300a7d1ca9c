// The operators on softmax attention, 16 heads of width 64: useful work beside the multiply-add peak of the same run,
// and a decoding step beside the read bandwidth for a cache of its size. Work counts pairs that are seen, once: 2 (K +
// V) operations each forward, 2 (3 K + 2 V) backward. A result that is not that of the definition in float64 is an
// error.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "base/parallel.hpp"
#include "base/peak.hpp"
#include "base/random.hpp"
#include "loglinear/flash_attention.hpp"
#include "loglinear/sparse_attention.hpp"
#include "loglinear/standard_attention.hpp"

namespace loglinear {
namespace {

enum class Kind { flash, standard, sparse };

struct Case {
  Kind kind = Kind::flash;
  std::int64_t T = 0, q_count = 0;
  SparsePattern pattern;
  bool backward = false;
  std::int64_t H = 16, G = 16, K = 64, V = 64;

  bool sees(std::int64_t t, std::int64_t s) const {
    return s <= t &&
           (kind != Kind::sparse || t - s < pattern.window || (pattern.stride > 0 && (t - s) % pattern.stride == 0));
  }
  double pairs() const {
    double sum = 0;
    for (std::int64_t t = T - q_count; t < T; ++t)
      sum += static_cast<double>(kind == Kind::sparse ? sparse_attention_keys(pattern, t) : t + 1);
    return sum;
  }
};

// The most that the run has seen so far: a machine that others use too is never faster than it is.
double peak() {
  static double most = 0;
  return most = std::max(most, measure_fma_peak(0));
}

struct Run {
  explicit Run(const Case& c_) : c(c_) {
    shape.heads = c.H, shape.kv_heads = c.G, shape.key_width = c.K, shape.value_width = c.V;
    sequence = {{0, c.q_count, 0, c.T}};
    Random random(1, 0);
    for (auto [x, n] : {std::pair{&q, c.q_count * c.H * c.K},
                        {&k, c.T * c.G * c.K},
                        {&v, c.T * c.G * c.V},
                        {&dout, c.q_count * c.H * c.V}})
      for (std::int64_t i = 0; i < n; ++i) x->push_back(static_cast<float>(4 * random.uniform() - 2));
    out.resize(c.q_count * c.H * c.V), log_sums.resize(c.q_count * c.H);
    if (c.kind == Kind::standard)
      probabilities.resize(static_cast<std::size_t>(standard_attention_elements(sequence, shape)));
    if (c.backward) dq.resize(q.size()), dk.resize(k.size()), dv.resize(v.size());
  }

  void forward() {
    const std::int64_t qs = c.H * c.K, ks = c.G * c.K, vs = c.G * c.V, os = c.H * c.V;
    if (c.kind == Kind::flash)
      flash_attention_forward<float>(sequence, shape, q.data(), qs, k.data(), ks, v.data(), vs, out.data(), os,
                                     log_sums.data());
    else if (c.kind == Kind::standard)
      standard_attention_forward<float>(sequence, shape, q.data(), qs, k.data(), ks, v.data(), vs, out.data(), os,
                                        probabilities.data());
    else
      sparse_attention_forward<float>(sequence, shape, c.pattern, q.data(), qs, k.data(), ks, v.data(), vs, out.data(),
                                      os, log_sums.data());
  }
  void backward() {
    const std::int64_t qs = c.H * c.K, ks = c.G * c.K, vs = c.G * c.V, os = c.H * c.V;
    if (c.kind == Kind::flash)
      flash_attention_backward<float>(sequence, shape, q.data(), qs, k.data(), ks, v.data(), vs, out.data(), os,
                                      log_sums.data(), dout.data(), os, dq.data(), qs, dk.data(), ks, dv.data(), vs);
    else if (c.kind == Kind::standard)
      standard_attention_backward<float>(sequence, shape, q.data(), qs, k.data(), ks, v.data(), vs,
                                         probabilities.data(), dout.data(), os, dq.data(), qs, dk.data(), ks, dv.data(),
                                         vs);
    else
      sparse_attention_backward<float>(sequence, shape, c.pattern, q.data(), qs, k.data(), ks, v.data(), vs, out.data(),
                                       os, log_sums.data(), dout.data(), os, dq.data(), qs, dk.data(), ks, dv.data(),
                                       vs);
  }

  // Output and gradient of some queries against their definition; the largest error beside the largest value.
  double error() const {
    double worst = 0;
    for (std::int64_t i = 0; i < c.q_count; i += std::max<std::int64_t>(1, c.q_count / 13)) {
      const std::int64_t h = (3 * i + 1) % c.H, g = h / (c.H / c.G), t = c.T - c.q_count + i;
      const auto dot = [](std::int64_t n, const float* a, const float* b) {
        double sum = 0;
        for (std::int64_t e = 0; e < n; ++e) sum += static_cast<double>(a[e]) * static_cast<double>(b[e]);
        return sum;
      };
      std::vector<double> p(static_cast<std::size_t>(t + 1)), dp(p);
      double most = -1e300, sum = 0, mean = 0;
      for (std::int64_t s = 0; s <= t; ++s) {
        p[s] = dot(c.K, &q[(i * c.H + h) * c.K], &k[(s * c.G + g) * c.K]) / std::sqrt(static_cast<double>(c.K));
        dp[s] = dot(c.V, &dout[(i * c.H + h) * c.V], &v[(s * c.G + g) * c.V]);
        if (c.sees(t, s)) most = std::max(most, p[s]);
      }
      for (std::int64_t s = 0; s <= t; ++s) sum += p[s] = c.sees(t, s) ? std::exp(p[s] - most) : 0;
      for (std::int64_t s = 0; s <= t; ++s) mean += (p[s] /= sum) * dp[s];
      const auto compare = [&](std::int64_t n, const float* got, const std::function<double(std::int64_t)>& want) {
        for (std::int64_t e = 0; e < n; ++e) {
          const double value = want(e), off = std::abs(static_cast<double>(got[e]) - value) / (1 + std::abs(value));
          if (!(off <= worst)) worst = off;
        }
      };
      compare(c.V, &out[(i * c.H + h) * c.V], [&](std::int64_t e) {
        double value = 0;
        for (std::int64_t s = 0; s <= t; ++s) value += p[s] * static_cast<double>(v[(s * c.G + g) * c.V + e]);
        return value;
      });
      if (!c.backward) continue;
      compare(c.K, &dq[(i * c.H + h) * c.K], [&](std::int64_t e) {
        double value = 0;
        for (std::int64_t s = 0; s <= t; ++s)
          value += p[s] * (dp[s] - mean) * static_cast<double>(k[(s * c.G + g) * c.K + e]);
        return value / std::sqrt(static_cast<double>(c.K));
      });
    }
    return worst;
  }
  // dk and dv by what they must add up to: the probabilities of a query sum to 1, so dv sums to what dout does; and the
  // sum of k . dk over keys and of q . dq over queries are the same sum over pairs.
  double gradient_error() const {
    double worst = 0;
    for (std::int64_t g = 0; g < c.G; ++g)
      for (std::int64_t e = 0; e < c.V; ++e) {
        double got = 0, want = 0;
        for (std::int64_t s = 0; s < c.T; ++s) got += static_cast<double>(dv[(s * c.G + g) * c.V + e]);
        for (std::int64_t i = 0; i < c.q_count; ++i)
          for (std::int64_t h = g * (c.H / c.G); h < (g + 1) * (c.H / c.G); ++h)
            want += static_cast<double>(dout[(i * c.H + h) * c.V + e]);
        const double off = std::abs(got - want) / std::sqrt(static_cast<double>(c.T));
        if (!(off <= worst)) worst = off;
      }
    double of_keys = 0, of_queries = 0, size = 0;
    for (std::size_t i = 0; i < k.size(); ++i) of_keys += static_cast<double>(k[i]) * static_cast<double>(dk[i]);
    for (std::size_t i = 0; i < q.size(); ++i) {
      of_queries += static_cast<double>(q[i]) * static_cast<double>(dq[i]);
      size += std::abs(static_cast<double>(q[i]) * static_cast<double>(dq[i]));
    }
    const double off = std::abs(of_keys - of_queries) / size;
    return off <= worst ? worst : off;
  }

  Case c;
  AttentionShape shape;
  std::vector<AttentionSequence> sequence;
  std::vector<float> q, k, v, dout, out, log_sums, probabilities, dq, dk, dv;
};

void run(benchmark::State& state, const Case& c) {
  Run run(c);
  run.forward();
  if (c.backward) run.backward();
  if (const double error = run.error(); !(error <= 2e-5))
    return state.SkipWithError(("differs from the definition by " + std::to_string(error)).c_str());
  if (c.backward)
    if (const double error = run.gradient_error(); !(error <= 2e-5))
      return state.SkipWithError(("gradients do not add up, by " + std::to_string(error)).c_str());
  peak();
  for (auto _ : state) c.backward ? run.backward() : run.forward();
  using benchmark::Counter;
  if (c.q_count == 1) {
    const double bytes = 4.0 * static_cast<double>(c.G * (c.K + c.V)) * c.pairs();
    const double limit = measure_read_bandwidth(0, static_cast<std::int64_t>(bytes) / 2);
    state.counters["bytes"] = Counter(bytes, Counter::kIsIterationInvariantRate);
    state.counters["of_bandwidth"] = Counter(bytes / limit, Counter::kIsIterationInvariantRate);
    return;
  }
  const double K = static_cast<double>(c.K), V = static_cast<double>(c.V);
  const double flops = static_cast<double>(c.H) * c.pairs() * (c.backward ? 2 * (3 * K + 2 * V) : 2 * (K + V));
  state.counters["flops"] = Counter(flops, Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] = Counter(flops / peak(), Counter::kIsIterationInvariantRate);
}

void add(const std::string& name, const Case& c) {
  auto* const registered = benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { run(state, c); });
  registered->Unit(benchmark::kMillisecond);
  if (thread_count(0) > 1) registered->UseRealTime();
}

void register_all() {
  for (bool backward : {false, true}) {
    const std::string pass = backward ? "backward/" : "forward/";
    for (std::int64_t T : {128, 256, 512, 1024, 4096, 16384}) {
      Case c;
      c.T = c.q_count = T, c.backward = backward;
      c.kind = Kind::flash;
      add("flash/" + pass + std::to_string(T), c);
      if (T < 1024) continue;
      c.kind = Kind::sparse;
      c.pattern = {256, 0};
      add("sliding_window_256/" + pass + std::to_string(T), c);
      std::int64_t root = 1;
      while (root * root < T) root *= 2;
      c.pattern = {root, root};
      add("local_strided_" + std::to_string(root) + "/" + pass + std::to_string(T), c);
      if (T > 4096) continue;  // the scores alone would take 17 GB
      c.kind = Kind::standard;
      add("standard/" + pass + std::to_string(T), c);
    }
  }
  for (std::int64_t T : {1024, 16384, 65536})
    for (std::int64_t G : {16, 4}) {
      Case c;
      c.T = T, c.q_count = 1, c.G = G;
      add("flash/step_" + std::to_string(G) + "_groups/" + std::to_string(T), c);
    }
}

const bool registered = (register_all(), true);

}  // namespace
}  // namespace loglinear
