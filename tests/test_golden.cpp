// The golden vectors (float64, from the paper's reference code): every file, the output and every gradient, through the
// reference, the chunk form and the step form.

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "compare.hpp"
#include "io/safetensors.hpp"
#include "loglinear/log_linear.hpp"
#include "ops/log_linear/ref.hpp"

namespace loglinear::testing {
namespace {

template <class T>
struct Golden {
  io::SafetensorsFile file;
  Rule rule;
  std::int64_t B, T_, G, H, K, V, L;
  std::vector<T> q, k, v, g, beta, scales, dout, out, dq, dk, dv, dg, dbeta, dscales;

  explicit Golden(const std::filesystem::path& path) : file(io::SafetensorsFile::open(path.string())) {
    rule = file.has("beta") ? Rule::gated_delta : Rule::scalar_decay;
    const std::vector<std::int64_t>&qs = file.info("q").shape, &vs = file.info("v").shape;
    B = qs[0], T_ = qs[1], G = qs[2], K = qs[3], H = vs[2], V = vs[3], L = file.info("level_scales").shape[3];
    q = read("q"), k = read("k"), v = read("v"), g = read("g"), scales = read("level_scales"), dout = read("do");
    if (has_beta(rule)) beta = read("beta");
    out.assign(v.size(), NAN), dq.assign(q.size(), NAN), dk = dq, dv = out, dg.assign(g.size(), NAN), dbeta = dg;
    dscales.assign(scales.size(), NAN);
  }

  std::vector<T> read(const char* name) {
    const std::vector<double> x = file.read_as<double>(name);
    return std::vector<T>(x.begin(), x.end());
  }

  log_linear::ForwardArgs forward_args() {
    log_linear::ForwardArgs a;
    a.rule = rule;
    a.q = ConstTensor(q.data(), {B, T_, G, K}), a.k = ConstTensor(k.data(), {B, T_, G, K});
    a.v = ConstTensor(v.data(), {B, T_, H, V}), a.g = ConstTensor(g.data(), {B, T_, H});
    a.level_scales = ConstTensor(scales.data(), {B, T_, H, L});
    if (has_beta(rule)) a.beta = ConstTensor(beta.data(), {B, T_, H});
    a.out = Tensor(out.data(), {B, T_, H, V});
    return a;
  }

  log_linear::BackwardArgs backward_args() {
    const log_linear::ForwardArgs f = forward_args();
    log_linear::BackwardArgs a;
    a.rule = f.rule, a.q = f.q, a.k = f.k, a.v = f.v, a.g = f.g, a.beta = f.beta, a.level_scales = f.level_scales;
    a.dout = ConstTensor(dout.data(), {B, T_, H, V});
    a.dq = Tensor(dq.data(), {B, T_, G, K}), a.dk = Tensor(dk.data(), {B, T_, G, K}),
    a.dv = Tensor(dv.data(), {B, T_, H, V});
    a.dg = Tensor(dg.data(), {B, T_, H}), a.dlevel_scales = Tensor(dscales.data(), {B, T_, H, L});
    if (has_beta(rule)) a.dbeta = Tensor(dbeta.data(), {B, T_, H});
    return a;
  }

  void expect(const char* name, const std::vector<T>& got, double bound) {
    std::vector<double> mine(got.begin(), got.end()), want = file.read_as<double>(name);
    // One file has entries that its own generator could not compute: at decays of exp(-40) a token, its backward
    // divides by products that underflow, and dg and dlevel_scales of level 7 come out NaN. The true values are finite;
    // ours must be.
    if (file.name().find("gated_delta_strong_decay") != std::string::npos &&
        (std::string(name) == "dg" || std::string(name) == "dlevel_scales"))
      for (std::size_t i = 0; i < want.size(); ++i) {
        if (!std::isnan(want[i])) continue;
        EXPECT_TRUE(std::isfinite(mine[i])) << name << "[" << i << "]";
        want[i] = mine[i];
      }
    EXPECT_TRUE(close(name, mine, want, bound));
  }

  void expect_gradients(double keys, double gates) {
    expect("dq", dq, keys), expect("dk", dk, keys), expect("dv", dv, keys);
    expect("dg", dg, gates), expect("dlevel_scales", dscales, gates);
    if (has_beta(rule)) expect("dbeta", dbeta, gates);
  }

  void steps() {
    std::vector<State> states(B, State(rule, H, K, V, std::is_same_v<T, double> ? DType::f64 : DType::f32));
    for (std::int64_t t = 0; t < T_; ++t) {
      log_linear::StepArgs s;
      s.rule = rule;
      s.q = ConstTensor(q.data() + t * G * K, {B, G, K}, {T_ * G * K, K, 1});
      s.k = ConstTensor(k.data() + t * G * K, {B, G, K}, {T_ * G * K, K, 1});
      s.v = ConstTensor(v.data() + t * H * V, {B, H, V}, {T_ * H * V, V, 1});
      s.g = ConstTensor(g.data() + t * H, {B, H}, {T_ * H, 1});
      if (has_beta(rule)) s.beta = ConstTensor(beta.data() + t * H, {B, H}, {T_ * H, 1});
      s.level_scales = ConstTensor(scales.data() + t * H * L, {B, H, L}, {T_ * H * L, L, 1});
      s.out = Tensor(out.data() + t * H * V, {B, H, V}, {T_ * H * V, V, 1});
      s.states = states;
      log_linear::step(s);
    }
  }
};

int for_every_file(const std::function<void(const std::filesystem::path&)>& body) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(LOGLINEAR_GOLDEN_DIR)) {
    if (entry.path().extension() != ".safetensors") continue;
    SCOPED_TRACE(entry.path().filename().string());
    body(entry.path());
    ++files;
  }
  return files;
}

TEST(Golden, ReferenceFloat64) {
  EXPECT_EQ(for_every_file([](const auto& path) {
              Golden<double> x(path);
              log_linear::ref_forward(x.forward_args());
              log_linear::ref_backward(x.backward_args());
              x.expect("o", x.out, 1e-12);
              x.expect_gradients(1e-12, 1e-12);
            }),
            26);
}

TEST(Golden, ChunkFloat64InEveryChunkLength) {
  EXPECT_EQ(for_every_file([](const auto& path) {
              for (int chunk : {0, 1, 8, 32}) {
                Golden<double> x(path);
                log_linear::ForwardArgs f = x.forward_args();
                log_linear::BackwardArgs b = x.backward_args();
                f.chunk = b.chunk = chunk;
                log_linear::forward(f);
                log_linear::backward(b);
                x.expect("o", x.out, 1e-12);
                x.expect_gradients(1e-12, 1e-12);
              }
            }),
            26);
}

TEST(Golden, ChunkFloat32) {
  for_every_file([](const auto& path) {
    Golden<float> x(path);
    log_linear::forward(x.forward_args());
    log_linear::backward(x.backward_args());
    const double factor = has_beta(x.rule) ? 4 : 1;
    x.expect("o", x.out, 5e-6 * factor);
    x.expect_gradients(1e-5 * factor, 5e-5 * factor);
  });
}

TEST(Golden, Step) {
  for_every_file([](const auto& path) {
    Golden<double> x(path);
    x.steps();
    x.expect("o", x.out, 1e-12);
    Golden<float> y(path);
    y.steps();
    y.expect("o", y.out, 5e-6 * (has_beta(y.rule) ? 4 : 1));
  });
}

}  // namespace
}  // namespace loglinear::testing
