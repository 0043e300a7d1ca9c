// Times ggml's linear scans and its flash attention on the CPU, each after a comparison with a plain loop in double.
// Batch 1, 16 heads. Prints one JSON object a line: {"peer", "T", "threads", "runs", "ms" (median), "version"}.
// README.md has the commands.
//
//   ggml THREADS T CASE...    cases: ssm_scan, gated_delta_net, flash_f16, flash_f32 over T tokens,
//                                    ssm_scan_step, gated_delta_net_step: one token,
//                                    flash_f16_step: one query over a cache of T tokens

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace {

constexpr std::int64_t kHeads = 16;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "[ggml] %s\n", what.c_str());
  std::exit(1);
}

// Uniform in [low, high), the same in every run.
struct Uniform {
  std::uint64_t state = 1;
  double operator()(double low, double high) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * static_cast<double>(state >> 11) * 0x1p-53;
  }
};

// One graph with one operation.
class Graph {
 public:
  explicit Graph(std::size_t bytes) : context_(ggml_init({bytes, nullptr, false})) {
    if (!context_) fail("no memory");
  }
  ~Graph() { ggml_free(context_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  ggml_context* context() { return context_; }

  ggml_tensor* floats(std::vector<std::int64_t> sizes, const std::function<double()>& draw) {
    ggml_tensor* x = ggml_new_tensor(context_, GGML_TYPE_F32, static_cast<int>(sizes.size()), sizes.data());
    for (std::int64_t i = 0; i < ggml_nelements(x); ++i) static_cast<float*>(x->data)[i] = static_cast<float>(draw());
    return x;
  }

  ggml_tensor* halves(std::vector<std::int64_t> sizes, const std::function<double()>& draw) {
    ggml_tensor* x = ggml_new_tensor(context_, GGML_TYPE_F16, static_cast<int>(sizes.size()), sizes.data());
    for (std::int64_t i = 0; i < ggml_nelements(x); ++i)
      static_cast<ggml_fp16_t*>(x->data)[i] = ggml_fp32_to_fp16(static_cast<float>(draw()));
    return x;
  }

  void plan(ggml_tensor* result, int threads) {
    graph_ = ggml_new_graph(context_);
    ggml_build_forward_expand(graph_, result);
    plan_ = ggml_graph_plan(graph_, threads, nullptr);
    work_.resize(plan_.work_size);
    plan_.work_data = work_.data();
  }

  void compute() {
    if (ggml_graph_compute(graph_, &plan_) != GGML_STATUS_SUCCESS) fail("a graph did not compute");
  }

 private:
  ggml_context* context_;
  ggml_cgraph* graph_ = nullptr;
  ggml_cplan plan_ = {};
  std::vector<std::uint8_t> work_;
};

double element(const ggml_tensor* x, std::int64_t i0, std::int64_t i1 = 0, std::int64_t i2 = 0) {
  const char* at = static_cast<const char*>(x->data) + i0 * x->nb[0] + i1 * x->nb[1] + i2 * x->nb[2];
  if (x->type == GGML_TYPE_F32) return *reinterpret_cast<const float*>(at);
  return ggml_fp16_to_fp32(*reinterpret_cast<const ggml_fp16_t*>(at));
}

// A case: its tensors, and what it should give for token t, head h, channel j.
struct Case {
  ggml_tensor* result = nullptr;
  std::int64_t tokens = 0, width = 0;
  std::vector<double> expected;  // (tokens, heads, width); empty unless asked for
};

// y_t = S_t C_t with S_t = exp(softplus(dt) A) S_(t-1) + softplus(dt) x_t B_t: Mamba-2, K = 128 (d_state), V = 64, G
// = 1.
Case ssm_scan(Graph& graph, std::int64_t T, bool expect) {
  constexpr std::int64_t K = 128, V = 64;
  Uniform u;
  ggml_tensor* s = graph.floats({K, V, kHeads, 1}, [] { return 0.0; });
  ggml_tensor* x = graph.floats({V, kHeads, T, 1}, [&] { return u(-0.5, 0.5); });
  ggml_tensor* dt = graph.floats({kHeads, T, 1}, [&] { return u(-3, -1); });
  ggml_tensor* a = graph.floats({1, kHeads}, [&] { return u(-0.2, -0.05); });
  ggml_tensor* b = graph.floats({K, 1, T, 1}, [&] { return u(-0.5, 0.5); });
  ggml_tensor* c = graph.floats({K, 1, T, 1}, [&] { return u(-0.5, 0.5); });
  const std::int64_t one = 1;
  ggml_tensor* ids = ggml_new_tensor(graph.context(), GGML_TYPE_I32, 1, &one);
  *static_cast<std::int32_t*>(ids->data) = 0;
  Case r{ggml_ssm_scan(graph.context(), s, x, dt, a, b, c, ids, 1), T, V, {}};
  if (!expect) return r;
  r.expected.resize(T * kHeads * V);
  for (std::int64_t h = 0; h < kHeads; ++h) {
    std::vector<double> state(K * V, 0.0);
    for (std::int64_t t = 0; t < T; ++t) {
      const double delta = std::log1p(std::exp(element(dt, h, t))), decay = std::exp(delta * element(a, 0, h));
      for (std::int64_t j = 0; j < V; ++j) {
        double sum = 0;
        for (std::int64_t i = 0; i < K; ++i) {
          double& e = state[i * V + j];
          e = decay * e + delta * element(x, j, h, t) * element(b, i, 0, t);
          sum += e * element(c, i, 0, t);
        }
        r.expected[(t * kHeads + h) * V + j] = sum;
      }
    }
  }
  return r;
}

// S <- a S, S <- S + beta k (v - S^T k)^T, y = S^T q / sqrt(K): gated delta rule, K = V = 128.
Case gated_delta_net(Graph& graph, std::int64_t T, bool expect) {
  constexpr std::int64_t K = 128;
  Uniform u;
  ggml_tensor* q = graph.floats({K, kHeads, T, 1}, [&] { return u(-0.5, 0.5); });
  ggml_tensor* k = graph.floats({K, kHeads, T, 1}, [&] { return u(-0.5, 0.5) * std::sqrt(12.0 / K); });
  ggml_tensor* v = graph.floats({K, kHeads, T, 1}, [&] { return u(-0.5, 0.5); });
  ggml_tensor* g = graph.floats({1, kHeads, T, 1}, [&] { return u(-0.01, 0); });
  ggml_tensor* beta = graph.floats({1, kHeads, T, 1}, [&] { return u(0, 1); });
  ggml_tensor* s = graph.floats({K, K, kHeads, 1}, [] { return 0.0; });
  Case r{ggml_gated_delta_net(graph.context(), q, k, v, g, beta, s, 1), T, K, {}};
  if (!expect) return r;
  r.expected.resize(T * kHeads * K);
  for (std::int64_t h = 0; h < kHeads; ++h) {
    std::vector<double> state(K * K, 0.0);
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t j = 0; j < K; ++j) {  // column j of the state has a history of its own
        double read = 0, sum = 0;
        for (std::int64_t i = 0; i < K; ++i)
          read += (state[i * K + j] *= std::exp(element(g, 0, h, t))) * element(k, i, h, t);
        const double write = element(beta, 0, h, t) * (element(v, j, h, t) - read);
        for (std::int64_t i = 0; i < K; ++i)
          sum += (state[i * K + j] += element(k, i, h, t) * write) * element(q, i, h, t);
        r.expected[(t * kHeads + h) * K + j] = sum / std::sqrt(static_cast<double>(K));
      }
  }
  return r;
}

// Causal softmax attention of the last `queries` of T tokens, head width 64.
Case flash(Graph& graph, std::int64_t T, std::int64_t queries, ggml_type type, bool expect) {
  constexpr std::int64_t D = 64;
  Uniform u;
  const auto draw = [&] { return u(-1, 1); };
  const std::vector<std::int64_t> cache = {D, T, kHeads, 1};
  ggml_tensor* q = graph.floats({D, queries, kHeads, 1}, draw);
  ggml_tensor* k = type == GGML_TYPE_F16 ? graph.halves(cache, draw) : graph.floats(cache, draw);
  ggml_tensor* v = type == GGML_TYPE_F16 ? graph.halves(cache, draw) : graph.floats(cache, draw);
  ggml_tensor* mask = nullptr;
  if (queries > 1) {
    std::int64_t at = 0;
    mask = graph.halves({T, queries, 1, 1}, [&] {
      const std::int64_t i = at / T, j = at % T;
      return ++at, j <= i + T - queries ? 0.0 : -INFINITY;
    });
  }
  const double scale = 1 / std::sqrt(static_cast<double>(D));
  Case r{ggml_flash_attn_ext(graph.context(), q, k, v, mask, static_cast<float>(scale), 0, 0), queries, D, {}};
  if (!expect) return r;
  r.expected.resize(queries * kHeads * D);
  for (std::int64_t h = 0; h < kHeads; ++h)
    for (std::int64_t t = 0; t < queries; ++t) {
      double total = 0;
      std::vector<double> sum(D, 0.0);
      for (std::int64_t s = 0; s <= t + T - queries; ++s) {
        double dot = 0;
        for (std::int64_t i = 0; i < D; ++i) dot += element(q, i, t, h) * element(k, i, s, h);
        const double weight = std::exp(dot * scale);
        total += weight;
        for (std::int64_t j = 0; j < D; ++j) sum[j] += weight * element(v, j, s, h);
      }
      for (std::int64_t j = 0; j < D; ++j) r.expected[(t * kHeads + h) * D + j] = sum[j] / total;
    }
  return r;
}

Case build(const std::string& name, Graph& graph, std::int64_t T, bool expect) {
  if (name == "ssm_scan") return ssm_scan(graph, T, expect);
  if (name == "ssm_scan_step") return ssm_scan(graph, 1, expect);
  if (name == "gated_delta_net") return gated_delta_net(graph, T, expect);
  if (name == "gated_delta_net_step") return gated_delta_net(graph, 1, expect);
  if (name == "flash_f16") return flash(graph, T, T, GGML_TYPE_F16, expect);
  if (name == "flash_f32") return flash(graph, T, T, GGML_TYPE_F32, expect);
  if (name == "flash_f16_step") return flash(graph, T, 1, GGML_TYPE_F16, expect);
  fail("no such case: " + name);
}

std::size_t bytes_for(const std::string& name, std::int64_t T) {
  const std::size_t mask = name == "flash_f16" || name == "flash_f32" ? 2 * T * T : 0;
  return (std::size_t{64} << 20) + mask + 8 * T * kHeads * 128 * sizeof(float);
}

// The error that a right result may have, of its own size: half precision of what ggml reads and sums.
void check(const std::string& name, int threads) {
  constexpr std::int64_t T = 130;
  Graph graph(bytes_for(name, T));
  const Case c = build(name, graph, T, true);
  graph.plan(c.result, threads);
  graph.compute();
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < c.expected.size(); ++i) {
    const double error = static_cast<const float*>(c.result->data)[i] - c.expected[i];
    difference += error * error, size += c.expected[i] * c.expected[i];
  }
  const double error = std::sqrt(difference / size), bound = name.starts_with("flash_f16") ? 2e-3 : 2e-5;
  if (!(error <= bound)) fail(name + ": relative error " + std::to_string(error) + " against the definition");
}

double seconds_of(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void measure(const std::string& name, std::int64_t T, int threads) {
  Graph graph(bytes_for(name, T));
  const Case c = build(name, graph, T, false);
  graph.plan(c.result, threads);
  const double first = seconds_of([&] { graph.compute(); });
  std::vector<double> runs;
  if (first > 2) runs.push_back(first);  // a run as long as that needs no warm-up
  for (double spent = 0;
       runs.empty() || (first <= 2 && (spent < 0.5 || runs.size() < 5) && spent < 2 && runs.size() < 500);
       spent += runs.back())
    runs.push_back(seconds_of([&] { graph.compute(); }));
  std::sort(runs.begin(), runs.end());
  std::printf(
      "{\"peer\": \"ggml %s\", \"T\": %lld, \"threads\": %d, \"runs\": %zu, \"ms\": %.6g, \"version\": \"%s\"}\n",
      name.c_str(), static_cast<long long>(T), threads, runs.size(), 1e3 * runs[runs.size() / 2], ggml_version());
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
  const long T = argc > 2 ? std::atol(argv[2]) : 0;
  if (argc < 4 || threads < 1 || T < 1) {
    std::fprintf(stderr, "usage: ggml THREADS T CASE...\n");
    return 2;
  }
  ggml_cpu_init();
  for (int i = 3; i < argc; ++i) {
    check(argv[i], threads);
    measure(argv[i], T, threads);
  }
}
