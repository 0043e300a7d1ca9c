// The models against a definition written out token by token, their gradients against central differences, and
// training.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <span>

#include "base/random.hpp"
#include "loglinear/adamw.hpp"
#include "loglinear/error.hpp"
#include "nn/test_models.hpp"
#include "sanitized.hpp"

namespace loglinear::nn {
namespace {

// --- the definition, one token at a time, in plain vectors --------------------------------------------------------

using Vector = std::vector<double>;
using Rows = std::vector<Vector>;  // one a token

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu(double x) { return x * sigmoid(x); }
double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

using View = std::span<const double>;

View part(const Vector& x, std::int64_t begin, std::int64_t count) {
  return {x.data() + begin, x.data() + begin + count};
}

Vector copy(View x) { return {x.begin(), x.end()}; }

double dot(View a, View b) { return std::inner_product(a.data(), a.data() + a.size(), b.data(), 0.0); }

class Definition {
 public:
  // offset: the position of the first token.
  explicit Definition(Model<double>& model, std::int64_t offset = 0) : c_(model.config()), offset_(offset) {
    for (const Parameter<double>& p : model.parameters())
      weights_[p.name] = {p.shape, Vector(p.value.begin(), p.value.end())};
  }

  // Logits after each token of one sequence.
  Rows logits(const std::vector<std::int32_t>& tokens) const {
    const bool mamba = c_.family.ends_with("mamba2");
    const std::string top = mamba ? "backbone." : "model.", mixer = mamba ? "mixer" : "attn";
    Rows h;
    for (std::int32_t token : tokens)
      h.push_back(copy(part(values(top + "embeddings.weight"), token * c_.hidden_size, c_.hidden_size)));
    for (std::int64_t i = 0; i < c_.num_layers; ++i) {
      const std::string layer = top + "layers." + std::to_string(i) + ".";
      const bool delta = c_.family.ends_with("gated_deltanet") &&
                         std::find(c_.attn_layers.begin(), c_.attn_layers.end(), i) == c_.attn_layers.end();
      const Rows x = norm(h, layer + mixer + "_norm.weight");
      add(h, mamba                   ? mamba2(x, layer + "mixer.")
             : delta                 ? gated_deltanet(x, layer + "attn.")
             : c_.family == "linear" ? linear_attention(x, layer + "attn.")
             : c_.family == "mosa"   ? mosa(x, layer + "attn.")
                                     : attention(x, layer + "attn."));
      const Rows u = norm(h, layer + "mlp_norm.weight");
      Rows gate = linear(u, layer + "mlp.gate_proj.weight");
      const Rows up = linear(u, layer + "mlp.up_proj.weight");
      for (std::size_t t = 0; t < gate.size(); ++t)
        for (std::size_t j = 0; j < gate[t].size(); ++j) gate[t][j] = silu(gate[t][j]) * up[t][j];
      add(h, linear(gate, layer + "mlp.down_proj.weight"));
    }
    return linear(norm(h, mamba ? "backbone.norm_f.weight" : "model.norm.weight"), "lm_head.weight");
  }

 private:
  struct Array {
    std::vector<std::int64_t> shape;
    Vector values;
  };

  const Vector& values(const std::string& name) const { return weights_.at(name).values; }

  static void add(Rows& a, const Rows& b) {
    for (std::size_t t = 0; t < a.size(); ++t)
      for (std::size_t j = 0; j < a[t].size(); ++j) a[t][j] += b[t][j];
  }

  Rows linear(const Rows& x, const std::string& name, const std::string& bias = "") const {
    const Array& w = weights_.at(name);
    Rows y;
    for (const Vector& row : x) {
      Vector out;
      for (std::int64_t o = 0; o < w.shape[0]; ++o)
        out.push_back(dot(row, part(w.values, o * w.shape[1], w.shape[1])) + (bias.empty() ? 0 : values(bias)[o]));
      y.push_back(out);
    }
    return y;
  }

  Vector norm(Vector x, const Vector& weight) const {
    const double r = 1 / std::sqrt(dot(x, x) / static_cast<double>(x.size()) + c_.norm_eps);
    for (std::size_t j = 0; j < x.size(); ++j) x[j] *= r * weight[j];
    return x;
  }
  Rows norm(Rows x, const std::string& name) const {
    for (Vector& row : x) row = norm(row, values(name));
    return x;
  }

  // Depthwise, causal, the last tap on the token itself; then silu.
  Rows conv(const Rows& x, const std::string& name, bool bias) const {
    const Array& w = weights_.at(name + ".weight");
    const std::int64_t width = w.shape[2];
    Rows y = x;
    for (std::int64_t t = 0; t < static_cast<std::int64_t>(x.size()); ++t)
      for (std::int64_t c = 0; c < w.shape[0]; ++c) {
        double sum = bias ? values(name + ".bias")[c] : 0;
        for (std::int64_t lag = 0; lag < width && lag <= t; ++lag)
          sum += w.values[c * width + width - 1 - lag] * x[t - lag][c];
        y[t][c] = silu(sum);
      }
    return y;
  }

  // Queries and keys (match_width each) that a layer matches states by; none without.
  Rows matched(const Rows& x, const std::string& prefix) const {
    if (c_.match_width == 0) return {};
    return conv(linear(x, prefix + "match_proj.weight"), prefix + "match_conv1d", false);
  }
  double own_match(const Rows& rows, std::int64_t t, std::int64_t r) const {
    return dot(part(rows[t], 0, c_.match_width), part(rows[r], c_.match_width, c_.match_width));
  }

  // The scale of what t reads of each token up to it. match(r): how well t matches r, which the policy content asks
  // for.
  Vector level_scales(View dl, const std::string& prefix, std::int64_t head, std::int64_t t, double factor,
                      const std::function<double(std::int64_t)>& match) const {
    if (c_.unit_scales || !c_.family.starts_with("log_linear")) return Vector(t + 1, 1.0);
    const auto bits = [](std::int64_t x) {
      std::int64_t n = 0;
      for (; x > 0; x >>= 1) ++n;
      return n;
    };
    const std::int64_t at = t + offset_, top = bits(at), last = c_.trained_levels - 1;
    const auto level = [&](std::int64_t s) { return bits(at ^ (s + offset_)); };
    Vector matches(top + 1);
    double all = 0;
    for (std::int64_t r = 0; r <= t && c_.level_policy == LevelPolicy::content; ++r) {
      const double one = match(r);
      all += one;
      matches[level(r)] += one;
    }
    const auto z = [&](std::int64_t l) {
      const std::int64_t j = head * c_.num_levels + std::min(l, last);
      // The block may have begun before the sequence: its size is that of the level.
      const double tokens = l == 0 ? 1 : std::exp2(static_cast<double>(l - 1));
      // Keys of the layer's own less their mean.
      const double mean = c_.match_width > 0 ? tokens * all / static_cast<double>(at + 1) : 0;
      return values(prefix + "L")[j] * (dl[j] + (matches[l] - mean) / std::sqrt(tokens));
    };
    double sum = std::exp(z(0)), count = 1;
    for (std::int64_t l = 1; l <= top; ++l)
      if (at >> (l - 1) & 1) sum += std::exp(z(l)), ++count;
    const auto scale = [&](std::int64_t l) {
      if (c_.level_policy == LevelPolicy::share || (c_.level_policy == LevelPolicy::stretch && top <= last))
        return softplus(z(l));
      if (c_.level_policy == LevelPolicy::stretch) {
        const double place = static_cast<double>(l * last) / static_cast<double>(top), low = std::floor(place);
        const auto j = static_cast<std::int64_t>(low);
        return (low + 1 - place) * softplus(z(j)) + (place - low) * softplus(z(j + 1));
      }
      return count * std::exp(z(l)) / sum;
    };
    Vector scales(t + 1);
    for (std::int64_t s = t; s >= 0; --s)
      scales[s] = s < t && level(s) == level(s + 1) ? scales[s + 1] : factor * scale(level(s));
    return scales;
  }

  Rows mamba2(const Rows& x, const std::string& prefix) const {
    const std::int64_t H = c_.num_heads, P = c_.value_width, N = c_.key_width, G = c_.num_groups, inner = H * P;
    const Rows z = linear(x, prefix + "in_proj.weight");
    Rows xbc;
    for (const Vector& row : z) xbc.push_back(copy(part(row, inner, inner + 2 * G * N)));
    xbc = conv(xbc, prefix + "conv1d", true);
    const std::int64_t T = static_cast<std::int64_t>(x.size()), dt_at = 2 * inner + 2 * G * N;
    const auto dt = [&](std::int64_t t, std::int64_t h) {
      return softplus(z[t][dt_at + h] + values(prefix + "dt_bias")[h]);
    };
    const Rows own = matched(x, prefix);
    Rows y;
    for (std::int64_t t = 0; t < T; ++t) {
      const View dl = part(z[t], dt_at + H, static_cast<std::int64_t>(z[t].size()) - dt_at - H);
      Vector out(inner);
      for (std::int64_t h = 0; h < H; ++h) {
        const std::int64_t group = h / (H / G);
        const View q = part(xbc[t], inner + G * N + group * N, N);
        const Vector scales = level_scales(dl, prefix, h, t, 1, [&](std::int64_t r) {
          return own.empty() ? dot(q, part(xbc[r], inner + group * N, N)) : own_match(own, t, r);
        });
        double decay = 0;
        for (std::int64_t s = t; s >= 0; --s) {
          const double weight = scales[s] * std::exp(decay) * dot(q, part(xbc[s], inner + group * N, N)) * dt(s, h);
          for (std::int64_t p = 0; p < P; ++p) out[h * P + p] += weight * xbc[s][h * P + p];
          decay -= std::exp(values(prefix + "A_log")[h]) * dt(s, h);
        }
        for (std::int64_t p = 0; p < P; ++p) out[h * P + p] += values(prefix + "D")[h] * xbc[t][h * P + p];
      }
      for (std::int64_t j = 0; j < inner; ++j) out[j] *= silu(z[t][j]);
      y.push_back(norm(out, values(prefix + "norm.weight")));
    }
    return linear(y, prefix + "out_proj.weight");
  }

  Rows gated_deltanet(const Rows& x, const std::string& prefix) const {
    const std::int64_t H = c_.num_heads, K = c_.key_width, V = c_.value_width;
    const std::int64_t T = static_cast<std::int64_t>(x.size());
    const auto unit = [&](Rows rows) {
      for (Vector& row : rows)
        for (std::int64_t h = 0; h < H; ++h) {
          const View u = part(row, h * K, K);
          const double r = 1 / std::sqrt(dot(u, u) + 1e-6);
          for (std::int64_t j = 0; j < K; ++j) row[h * K + j] *= r;
        }
      return rows;
    };
    const Rows q = unit(conv(linear(x, prefix + "q_proj.weight"), prefix + "q_conv1d", false));
    const Rows k = unit(conv(linear(x, prefix + "k_proj.weight"), prefix + "k_conv1d", false));
    const Rows v = conv(linear(x, prefix + "v_proj.weight"), prefix + "v_conv1d", false);
    const Rows a = linear(x, prefix + "a_proj.weight"), b = linear(x, prefix + "b_proj.weight");
    const Rows gate = linear(x, prefix + "g_proj.weight");
    const bool learned = c_.family.starts_with("log_linear") && !c_.unit_scales;
    const Rows dl = learned ? linear(x, prefix + "l_proj.weight") : Rows(x.size());
    const double scale = 1 / std::sqrt(static_cast<double>(K));
    const Rows own = matched(x, prefix);
    Rows y;
    for (std::int64_t t = 0; t < T; ++t) {
      Vector row;
      for (std::int64_t h = 0; h < H; ++h) {
        Vector out(V), r = copy(part(q[t], h * K, K));  // r: q carried back through the transitions
        for (double& e : r) e *= scale;
        const Vector scales = level_scales(dl[t], prefix, h, t, 1 / scale, [&](std::int64_t at) {
          return own.empty() ? dot(r, part(k[at], h * K, K)) / scale : own_match(own, t, at);
        });
        for (std::int64_t s = t; s >= 0; --s) {
          const View ks = part(k[s], h * K, K);
          const double beta = sigmoid(b[s][h]), along = dot(r, ks);
          const double weight = scales[s] * along * beta;
          for (std::int64_t j = 0; j < V; ++j) out[j] += weight * v[s][h * V + j];
          const double decay =
              std::exp(-std::exp(values(prefix + "A_log")[h]) * softplus(a[s][h] + values(prefix + "dt_bias")[h]));
          for (std::int64_t j = 0; j < K; ++j) r[j] = decay * (r[j] - beta * along * ks[j]);
        }
        out = norm(out, values(prefix + "o_norm.weight"));
        for (std::int64_t j = 0; j < V; ++j) row.push_back(out[j] * silu(gate[t][h * V + j]));
      }
      y.push_back(row);
    }
    return linear(y, prefix + "o_proj.weight");
  }

  Rows linear_attention(const Rows& x, const std::string& prefix) const {
    const std::int64_t H = c_.num_heads, K = c_.key_width, V = c_.value_width;
    const auto phi = [](Rows rows) {
      for (Vector& row : rows)
        for (double& e : row) e = e > 0 ? e + 1 : std::exp(e);
      return rows;
    };
    const Rows q = phi(conv(linear(x, prefix + "q_proj.weight"), prefix + "q_conv1d", false));
    const Rows k = phi(conv(linear(x, prefix + "k_proj.weight"), prefix + "k_conv1d", false));
    const Rows v = conv(linear(x, prefix + "v_proj.weight"), prefix + "v_conv1d", false);
    Rows y;
    for (std::size_t t = 0; t < x.size(); ++t) {
      Vector row;
      for (std::int64_t h = 0; h < H; ++h) {
        Vector out(V);
        for (std::size_t s = 0; s <= t; ++s) {
          const double weight = dot(part(q[t], h * K, K), part(k[s], h * K, K));
          for (std::int64_t j = 0; j < V; ++j) out[j] += weight * v[s][h * V + j];
        }
        for (double e : norm(out, values(prefix + "o_norm.weight"))) row.push_back(e);
      }
      y.push_back(row);
    }
    return linear(y, prefix + "o_proj.weight");
  }

  static Vector rotated(View u, std::int64_t width, std::int64_t position, double theta) {
    Vector out = copy(u);
    for (std::int64_t i = 0; i < width / 2; ++i) {
      const double angle = static_cast<double>(position) * std::pow(theta, -2.0 * i / width);
      out[i] = u[i] * std::cos(angle) - u[i + width / 2] * std::sin(angle);
      out[i + width / 2] = u[i + width / 2] * std::cos(angle) + u[i] * std::sin(angle);
    }
    return out;
  }

  // One dense head of width W, and routed heads of that width: each takes the tokens of largest score.
  Rows mosa(const Rows& x, const std::string& prefix) const {
    Rows y = attention(x, prefix);
    const std::int64_t T = static_cast<std::int64_t>(x.size()), D = c_.hidden_size, W = c_.key_width;
    const std::int64_t E = c_.routed_heads, chosen = std::min(std::max(T / c_.sparsity, std::int64_t{2}), T);
    const Vector &router = values(prefix + "router.weight"), &qkv = values(prefix + "routed_qkv.weight"),
                 &out = values(prefix + "routed_out.weight");
    for (std::int64_t e = 0; e < E; ++e) {
      Vector score(T);
      for (std::int64_t t = 0; t < T; ++t) {
        for (std::int64_t j = 0; j < D; ++j) score[t] += x[t][j] * router[j * E + e];
        score[t] = sigmoid(score[t]);
      }
      std::vector<std::int64_t> order(T);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return score[a] > score[b]; });
      order.resize(chosen);
      std::map<std::int64_t, Vector> q, k, v;
      for (std::int64_t t : order) {
        Vector row(3 * W);
        for (std::int64_t i = 0; i < 3 * W; ++i)
          for (std::int64_t j = 0; j < D; ++j) row[i] += x[t][j] * qkv[(e * D + j) * 3 * W + i];
        const std::int64_t turned = W / 4 * 2;
        q[t] = rotated(part(row, 0, W), turned, t, 10000);
        k[t] = rotated(part(row, W, W), turned, t, 10000);
        v[t] = copy(part(row, 2 * W, W));
      }
      for (std::int64_t t : order) {
        Vector head(W);
        double sum = 0;
        for (std::int64_t s : order) {
          if (s > t) continue;
          const double weight = std::exp(dot(q[t], k[s]) / std::sqrt(static_cast<double>(W)));
          sum += weight;
          for (std::int64_t i = 0; i < W; ++i) head[i] += weight * v[s][i];
        }
        for (std::int64_t j = 0; j < D; ++j)
          for (std::int64_t i = 0; i < W; ++i) y[t][j] += score[t] * head[i] / sum * out[(e * W + i) * D + j];
      }
    }
    return y;
  }

  // Whether softmax attention at t sees s.
  bool sees(std::int64_t t, std::int64_t s) const {
    return s <= t &&
           (c_.window == 0 || t - s < c_.window || (c_.family == "local_strided" && (t - s) % c_.stride == 0));
  }

  Rows attention(const Rows& x, const std::string& prefix) const {
    const std::int64_t W = c_.hidden_size / (c_.attn_heads > 0 ? c_.attn_heads : c_.num_heads);
    const std::int64_t H = c_.family == "mosa" ? c_.dense_heads : c_.hidden_size / W;
    const auto project = [&](const std::string& name) {
      return linear(x, prefix + name + ".weight", c_.qkv_bias ? prefix + name + ".bias" : "");
    };
    const auto turned = [&](const Rows& rows) {
      Rows out(rows.size());
      for (std::size_t t = 0; t < rows.size(); ++t)
        for (std::int64_t at = 0; at < static_cast<std::int64_t>(rows[t].size()); at += W)
          for (double e : rotated(part(rows[t], at, W), W, static_cast<std::int64_t>(t), c_.rope_theta))
            out[t].push_back(e);
      return out;
    };
    const Rows q = turned(project("q_proj")), k = turned(project("k_proj")), v = project("v_proj");
    Rows y;
    for (std::int64_t t = 0; t < static_cast<std::int64_t>(x.size()); ++t) {
      Vector row;
      for (std::int64_t h = 0; h < H; ++h) {
        const std::int64_t group = h / (H / c_.kv_heads);
        Vector out(W);
        double sum = 0;
        for (std::int64_t s = 0; s <= t; ++s) {
          if (!sees(t, s)) continue;
          const double weight =
              std::exp(dot(part(q[t], h * W, W), part(k[s], group * W, W)) / std::sqrt(static_cast<double>(W)));
          sum += weight;
          for (std::int64_t j = 0; j < W; ++j) out[j] += weight * v[s][group * W + j];
        }
        for (double e : out) row.push_back(e / sum);
      }
      y.push_back(row);
    }
    return linear(y, prefix + "o_proj.weight");
  }

  ModelConfig c_;
  std::int64_t offset_ = 0;
  std::map<std::string, Array> weights_;
};

class Families : public testing::TestWithParam<TestModel> {};
class Streaming : public testing::TestWithParam<TestModel> {};  // causal ones

TEST_P(Families, MatchesTheDefinition) {
  Model<double> model(GetParam().config);
  fill(model, 1);
  const Batch batch = make_batch(model.config(), {21, 1, 0, 70}, 2);
  double expected = 0;
  std::vector<double> each;
  for (std::size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
    const auto begin = batch.cu_seqlens[s], end = batch.cu_seqlens[s + 1];
    const Rows logits = Definition(model).logits({batch.tokens.begin() + begin, batch.tokens.begin() + end});
    for (std::int64_t t = begin; t < end; ++t) {
      each.push_back(batch.targets[t] < 0 ? 0 : minus_log_p(logits[t - begin], batch.targets[t]));
      expected += each.back();
    }
  }
  std::vector<float> losses(batch.tokens.size());
  const double loss = model.loss(batch.tokens, batch.targets, batch.cu_seqlens, false, 1.0, losses);
  EXPECT_LE(std::abs(loss - expected), 1e-11 * expected);
  for (std::size_t t = 0; t < each.size(); ++t) EXPECT_LE(std::abs(losses[t] - each[t]), 1e-6 * (1 + each[t])) << t;
}

// The derivative of loss() in x by central differences of sixth order.
template <class Loss>
double difference(double& x, const Loss& loss) {
  const double value = x, step = 1e-4;
  const auto at = [&](double steps) {
    x = value + steps * step;
    return loss();
  };
  const double near = at(1) - at(-1), middle = at(2) - at(-2), far = at(3) - at(-3);
  x = value;
  return (45 * near - 9 * middle + far) / (60 * step);
}

// Sequences that begin at other positions than 0: losses by the definition, gradients by central differences.
TEST_P(Families, OffsetsMoveTheLevels) {
  Model<double> model(GetParam().config);
  model.threads = 1;
  fill(model, 21);
  const Batch batch = make_batch(model.config(), {40, 0, 1, 50, 20}, 22);
  const std::vector<std::int64_t> offsets{0, 5, 255, 1000, (std::int64_t{1} << 40) - 7};
  const auto loss = [&](bool backward) {
    return model.loss(batch.tokens, batch.targets, batch.cu_seqlens, backward, 1, {}, offsets);
  };
  double expected = 0;
  for (std::size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
    const auto begin = batch.cu_seqlens[s], end = batch.cu_seqlens[s + 1];
    const Rows logits =
        Definition(model, offsets[s]).logits({batch.tokens.begin() + begin, batch.tokens.begin() + end});
    for (std::int64_t t = begin; t < end; ++t)
      if (batch.targets[t] >= 0) expected += minus_log_p(logits[t - begin], batch.targets[t]);
  }
  model.zero_grad();
  EXPECT_LE(std::abs(loss(true) - expected), 1e-11 * expected);
  const bool levels = find_family(model.config().family)->log_linear && !model.config().unit_scales;
  // Without levels a position only moves the cuts of chunks, and with them the last bits.
  const double moved = std::abs(model.loss(batch.tokens, batch.targets, batch.cu_seqlens, false) - loss(false));
  if (levels)
    EXPECT_GT(moved, 1e-11 * expected);
  else
    EXPECT_LE(moved, 1e-14 * expected);
  if (!levels) return;     // the same as from position 0, whose gradients are tested below
  if (kSanitized) return;  // what follows is the same passes again
  for (Parameter<double>& p : model.parameters()) {
    const std::size_t at = static_cast<std::size_t>(
        std::max_element(p.grad.begin(), p.grad.end(), [](double a, double b) { return std::abs(a) < std::abs(b); }) -
        p.grad.begin());
    EXPECT_LE(std::abs(difference(p.value[at], [&] { return loss(false); }) - p.grad[at]), 1e-7 * std::abs(p.grad[at]))
        << p.name;
  }
}

// Central differences in entries of every parameter tensor.
TEST_P(Families, GradientMatchesCentralDifferences) {
  Model<double> model(GetParam().config);
  model.threads = 1;  // too small to share
  fill(model, 3);
  const Batch batch = make_batch(model.config(), {37, 1, 0, 75}, 4);
  const auto loss = [&](bool backward) {
    return model.loss(batch.tokens, batch.targets, batch.cu_seqlens, backward, 0.5);
  };
  model.zero_grad();
  loss(true);
  loss(true);  // gradients are added to: 2 * 0.5
  Random random(5, 0);
  for (Parameter<double>& p : model.parameters()) {
    double largest = 0;
    for (double g : p.grad) largest = std::max(largest, std::abs(g));
    EXPECT_GT(largest, 0) << p.name;
    if (kSanitized && &p != &model.parameters().front()) continue;  // the passes are the same for any entry
    for (int i = 0; i < (kSanitized ? 1 : 4); ++i) {
      // Where the gradient is sparse (embeddings, scales of levels that are hardly read) a random entry may be zero.
      std::size_t at = random.below(p.value.size());
      for (int tries = 0; tries < 50 && std::abs(p.grad[at]) < 0.01 * largest; ++tries)
        at = random.below(p.value.size());
      const double numeric = difference(p.value[at], [&] { return loss(false); });
      EXPECT_LE(std::abs(numeric - p.grad[at]), 1e-7 * (std::abs(p.grad[at]) + largest))
          << p.name << "[" << at << "]: backward " << p.grad[at] << ", differences " << numeric;
    }
  }
}

TEST_P(Families, OverfitsOneBatch) {
  ModelConfig config = GetParam().config;
  config.hidden_size = 32;
  config.initializer_range = 0.05;
  Model<float> model(config);
  model.threads = 1;  // too small to share
  model.initialise(6);
  const Batch batch = make_batch(model.config(), {33, 20}, 7);
  const double scored = std::count_if(batch.targets.begin(), batch.targets.end(), [](auto t) { return t >= 0; });
  std::vector<std::vector<float>> m, v;
  for (const Parameter<float>& p : model.parameters()) {
    m.emplace_back(p.value.size());
    v.emplace_back(p.value.size());
  }
  double loss = 0;
  for (int step = 1; step <= 400; ++step) {
    model.zero_grad();
    loss = model.loss(batch.tokens, batch.targets, batch.cu_seqlens, true, 1 / scored) / scored;
    if (loss < 0.05) break;
    AdamWArgs args;
    args.learning_rate = 5e-3;
    args.step = step;
    for (std::size_t i = 0; i < m.size(); ++i) {
      const Parameter<float>& p = model.parameters()[i];
      args.weight_decay = p.decay ? 0.01 : 0;
      adamw_step<float>(static_cast<std::int64_t>(p.value.size()), p.value.data(), p.grad.data(), m[i].data(),
                        v[i].data(), args);
    }
  }
  EXPECT_LT(loss, 0.05);
}

TEST_P(Families, ThreadsDoNotChangeABit) {
  const Batch batch = make_batch(GetParam().config, {150, 1, 70}, 8);
  std::vector<std::vector<float>> first;
  double first_loss = 0;
  for (int threads : {1, 2, 3, 4}) {
    Model<float> model(GetParam().config);
    model.threads = threads;
    model.initialise(9);
    const double loss = model.loss(batch.tokens, batch.targets, batch.cu_seqlens, true);
    std::vector<std::vector<float>> all;
    for (const Parameter<float>& p : model.parameters()) {
      all.emplace_back(p.value.begin(), p.value.end());
      all.emplace_back(p.grad.begin(), p.grad.end());
    }
    if (threads == 1) {
      first = all;
      first_loss = loss;
    }
    EXPECT_EQ(loss, first_loss) << threads;
    EXPECT_TRUE(all == first) << threads;
  }
}

TEST_P(Streaming, ALaterTokenNeverChangesAnEarlierLoss) {
  Model<float> model(GetParam().config);
  model.initialise(10);
  Batch batch = make_batch(model.config(), {130}, 11);
  std::vector<float> before(130), after(130);
  model.loss(batch.tokens, batch.targets, batch.cu_seqlens, false, 1, before);
  for (std::int64_t t : {1, 63, 64, 100, 128}) {
    Batch changed = batch;
    changed.tokens[t] = (changed.tokens[t] + 1) % static_cast<std::int32_t>(model.config().vocab_size);
    model.loss(changed.tokens, changed.targets, changed.cu_seqlens, false, 1, after);
    for (std::int64_t s = 0; s < t; ++s) ASSERT_EQ(before[s], after[s]) << s << " read token " << t;
    EXPECT_NE(before[t], after[t]);
  }
}

// L begins as zero where it multiplies matches, so that its first gradient has their size: with first weights as
// small as those of the rest it was 2e-9 here, and of models trained on text L never left zero.
TEST(Model, ContentLevelsLearnFromTheFirstStep) {
  ModelConfig config;
  config.family = "log_linear_mamba2";
  config.vocab_size = 256;
  config.hidden_size = 64;
  config.num_layers = 2;
  config.num_heads = 2;
  config.key_width = 32;
  config.value_width = 64;
  config.num_levels = 9;
  config.level_policy = LevelPolicy::content;
  config.match_width = 32;
  config.initializer_range = 0.05;
  Model<float> model(config);
  model.initialise(3);
  const Batch batch = make_batch(model.config(), {200}, 4);
  model.loss(batch.tokens, batch.targets, batch.cu_seqlens, true, 1.0 / 199);
  const auto rms = [](const auto& values) {
    double sum = 0;
    for (const float x : values) sum += static_cast<double>(x) * x;
    return std::sqrt(sum / static_cast<double>(values.size()));
  };
  int levels = 0, matches = 0;
  for (const Parameter<float>& p : model.parameters()) {
    if (p.name.ends_with(".L")) {
      ++levels;
      EXPECT_EQ(rms(p.value), 0) << p.name;
      EXPECT_GT(rms(p.grad), 1e-8) << p.name;
    }
    if (p.name.find("match_") == std::string::npos) continue;
    ++matches;
    const double fan_in = p.name.ends_with("match_proj.weight") ? 64 : config.conv_width;
    EXPECT_NEAR(rms(p.value) * std::sqrt(fan_in), 0.5, 0.08) << p.name;
    EXPECT_TRUE(p.decay) << p.name;
  }
  EXPECT_EQ(levels, 2);
  EXPECT_EQ(matches, 4);
}

// The arena is used again: neither what it held before nor a larger batch in between may show.
TEST_P(Families, PassesAreIndependent) {
  Model<float> model(GetParam().config), other(GetParam().config);
  model.initialise(12);
  other.initialise(12);
  const Batch small = make_batch(model.config(), {9, 30}, 13), large = make_batch(model.config(), {300}, 14);
  model.loss(large.tokens, large.targets, large.cu_seqlens, true);
  if (find_family(model.config().family)->causal) {
    DecodeState state = model.new_state();
    std::vector<float> logits(static_cast<std::size_t>(model.config().vocab_size));
    model.read(state, large.tokens, logits);
  }
  model.zero_grad();
  EXPECT_EQ(model.loss(small.tokens, small.targets, small.cu_seqlens, true),
            other.loss(small.tokens, small.targets, small.cu_seqlens, true));
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    const auto &a = model.parameters()[i], &b = other.parameters()[i];
    EXPECT_TRUE(std::equal(a.grad.begin(), a.grad.end(), b.grad.begin())) << a.name;
  }
}

// The target that predict() names is the one of least loss.
TEST_P(Families, PredictsTheTokenOfLeastLoss) {
  Model<float> model(GetParam().config);
  fill(model, 17);
  Batch batch = make_batch(model.config(), {40, 1, 0, 25}, 18);
  const std::size_t N = batch.tokens.size();
  std::vector<std::int32_t> predicted(N, -7), best(N);
  EXPECT_EQ(model.predict(batch.tokens, batch.cu_seqlens, predicted), 0);
  const std::vector<std::int32_t> alone = predicted;
  EXPECT_EQ(model.predict(batch.tokens, batch.cu_seqlens, predicted, batch.targets),
            model.loss(batch.tokens, batch.targets, batch.cu_seqlens, false));
  EXPECT_EQ(predicted, alone);
  std::vector<float> least(N, 1e30f), losses(N);
  for (std::int32_t token = 0; token < model.config().vocab_size; ++token) {
    batch.targets.assign(N, token);
    model.loss(batch.tokens, batch.targets, batch.cu_seqlens, false, 1, losses);
    for (std::size_t t = 0; t < N; ++t)
      if (losses[t] < least[t]) least[t] = losses[t], best[t] = token;
  }
  EXPECT_EQ(predicted, best);
  EXPECT_THROW(model.predict(batch.tokens, batch.cu_seqlens, std::span(predicted).first(3)), Error);
  EXPECT_THROW(model.predict(batch.tokens, batch.cu_seqlens, predicted, std::span(batch.targets).first(3)), Error);
}

// Packing changes nothing: the losses of each sequence on its own.
TEST_P(Families, PackedSequencesAreSeparate) {
  Model<double> model(GetParam().config);
  fill(model, 15);
  const Batch packed = make_batch(model.config(), {5, 1, 64, 0, 90}, 16);
  const double together = model.loss(packed.tokens, packed.targets, packed.cu_seqlens, false);
  double apart = 0;
  for (std::size_t s = 0; s + 1 < packed.cu_seqlens.size(); ++s) {
    const auto begin = packed.cu_seqlens[s], count = packed.cu_seqlens[s + 1] - begin;
    const std::int64_t alone[] = {0, count};
    apart += model.loss(std::span(packed.tokens).subspan(begin, count), std::span(packed.targets).subspan(begin, count),
                        alone, false);
  }
  EXPECT_LE(std::abs(together - apart), 1e-12 * together);
}

INSTANTIATE_TEST_SUITE_P(All, Families, testing::ValuesIn(test_models()), test_name);
INSTANTIATE_TEST_SUITE_P(All, Streaming, testing::ValuesIn(causal_test_models()), test_name);

// --- what models.md promises beyond one family ---------------------------------------------------------------------

// With every level scale one, a log-linear model is its base model.
TEST(UnitScales, AreTheBaseModel) {
  for (const std::string base : {"mamba2", "gated_deltanet"}) {
    ModelConfig config = small_config(base), unit = small_config("log_linear_" + base);
    unit.unit_scales = true;
    Model<double> a(config), b(unit);
    fill(a, 20);
    fill(b, 20);
    const Batch batch = make_batch(config, {140, 33}, 21);
    const double la = a.loss(batch.tokens, batch.targets, batch.cu_seqlens, true);
    const double lb = b.loss(batch.tokens, batch.targets, batch.cu_seqlens, true);
    EXPECT_LE(std::abs(la - lb), 1e-12 * la);
    ASSERT_EQ(a.parameters().size(), b.parameters().size());
    for (std::size_t i = 0; i < a.parameters().size(); ++i) {
      const auto &pa = a.parameters()[i], &pb = b.parameters()[i];
      EXPECT_EQ(pa.name, pb.name);
      double largest = 0, difference = 0;
      for (std::size_t j = 0; j < pa.grad.size(); ++j) {
        largest = std::max(largest, std::abs(pa.grad[j]));
        difference = std::max(difference, std::abs(pa.grad[j] - pb.grad[j]));
      }
      EXPECT_LE(difference, 1e-11 * largest) << pa.name;
    }
    DecodeState sa = a.new_state(), sb = b.new_state();
    std::vector<double> ya(static_cast<std::size_t>(config.vocab_size)), yb = ya;
    for (std::int32_t token : batch.tokens) {
      a.read(sa, {&token, 1}, ya);
      b.read(sb, {&token, 1}, yb);
      for (std::size_t j = 0; j < ya.size(); ++j) ASSERT_LE(std::abs(ya[j] - yb[j]), 1e-11 * (1 + std::abs(ya[j])));
    }
  }
}

TEST(Initialise, FollowsTheKinds) {
  ModelConfig config;
  config.hidden_size = 64;
  config.num_layers = 3;
  config.num_heads = 8;
  config.value_width = 16;
  Model<float> model(config), same(config), other(config);
  model.initialise(1);
  same.initialise(1);
  other.initialise(2);
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {
    const Parameter<float>& p = model.parameters()[i];
    EXPECT_TRUE(std::equal(p.value.begin(), p.value.end(), same.parameters()[i].value.begin())) << p.name;
    double sum = 0, squares = 0, largest = 0;
    // What makes level scales begins as zero, so that a log-linear model begins as its base.
    const std::span<const float> scales = p.value.last(p.name.ends_with(".L") ? 0 : static_cast<std::size_t>(p.scales)),
                                 values = p.value.first(p.value.size() - scales.size());
    for (float x : scales) EXPECT_EQ(x, 0) << p.name;
    EXPECT_EQ(!scales.empty(), p.name.ends_with("in_proj.weight")) << p.name;
    for (float x : values) {
      sum += x;
      squares += static_cast<double>(x) * x;
      largest = std::max<double>(largest, std::abs(x));
    }
    const double n = static_cast<double>(values.size()), deviation = std::sqrt(squares / n);
    if (p.name.ends_with("A_log")) {
      for (std::size_t h = 0; h < 8; ++h) EXPECT_FLOAT_EQ(p.value[h], std::log(h + 1.0));
    } else if (p.name.ends_with("dt_bias")) {
      for (float x : p.value) {
        const double dt = std::log1p(std::exp(static_cast<double>(x)));
        EXPECT_GE(dt, 0.00099);
        EXPECT_LE(dt, 0.1001);
      }
    } else if (p.name.ends_with("conv1d.bias")) {
      EXPECT_EQ(largest, 0) << p.name;
    } else if (p.name.ends_with("norm.weight") || p.name.ends_with("norm_f.weight") || p.name.ends_with(".L") ||
               p.name.ends_with(".D")) {
      EXPECT_EQ(sum, n) << p.name;
      EXPECT_EQ(squares, n) << p.name;
    } else if (p.name.ends_with("out_proj.weight") || p.name.ends_with("down_proj.weight")) {
      const double bound = 1 / std::sqrt(static_cast<double>(p.shape[1])) / std::sqrt(2.0 * 3);
      EXPECT_LE(largest, bound * 1.0000001) << p.name;
      EXPECT_NEAR(deviation, bound / std::sqrt(3.0), 0.03 * bound) << p.name;
    } else {
      EXPECT_NEAR(deviation, 0.006, 0.0006) << p.name;
      EXPECT_LT(std::abs(sum / n), 5 * 0.006 / std::sqrt(n)) << p.name;
      EXPECT_FALSE(std::equal(p.value.begin(), p.value.end(), other.parameters()[i].value.begin())) << p.name;
    }
  }
  // Layers begin differently, and a name begins the same in a model of another depth.
  config.num_layers = 1;
  Model<float> shallow(config);
  shallow.initialise(1);
  const auto find = [](Model<float>& m, const std::string& name) {
    for (const Parameter<float>& p : m.parameters())
      if (p.name == name) return std::vector<float>(p.value.begin(), p.value.end());
    return std::vector<float>();
  };
  EXPECT_EQ(find(model, "backbone.layers.0.mixer.in_proj.weight"),
            find(shallow, "backbone.layers.0.mixer.in_proj.weight"));
  EXPECT_NE(find(model, "backbone.layers.0.mixer.in_proj.weight"),
            find(model, "backbone.layers.1.mixer.in_proj.weight"));
}

TEST(Loss, RefusesBadArguments) {
  Model<float> model(small_config("transformer"));
  model.initialise(1);
  const std::vector<std::int32_t> good{1, 2, 3}, short_one{1, 2}, high{1, 2, 13}, low{1, -1, 3}, lower{1, -2, 3};
  const std::vector<std::int64_t> cu{0, 3}, bad_end{0, 2}, bad_order{0, 2, 1, 3}, bad_start{1, 3}, none;
  EXPECT_NO_THROW(model.loss(good, low, cu, true));
  EXPECT_THROW(model.loss(good, short_one, cu, false), Error);
  EXPECT_THROW(model.loss(high, good, cu, false), Error);
  EXPECT_THROW(model.loss(low, good, cu, false), Error);
  EXPECT_THROW(model.loss(good, high, cu, false), Error);
  EXPECT_THROW(model.loss(good, lower, cu, false), Error);
  for (const auto& bad : {bad_end, bad_order, bad_start, none}) EXPECT_THROW(model.loss(good, good, bad, false), Error);
  std::vector<float> losses(2);
  EXPECT_THROW(model.loss(good, good, cu, false, 1, losses), Error);
  EXPECT_EQ(model.loss({}, {}, std::vector<std::int64_t>{0}, true), 0);
  EXPECT_EQ(model.loss(good, std::vector<std::int32_t>{-1, -1, -1}, cu, true), 0);
}

}  // namespace
}  // namespace loglinear::nn
