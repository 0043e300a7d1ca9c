// Configs: what is written is read, what is published loads, what contradicts itself is refused by name.

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "loglinear/error.hpp"
#include "nn/model.hpp"

namespace loglinear::nn {
namespace {

using nlohmann::json;

// The paper's two models, and their base models.
ModelConfig paper(const std::string& family) {
  ModelConfig c;
  c.family = family;
  c.vocab_size = 32000;
  c.hidden_size = 1536;
  c.num_layers = 21;
  if (family.ends_with("mamba2")) {
    c.num_heads = 48;
    c.value_width = 64;
    c.key_width = 128;
  } else if (family == "linear") {
    c.num_heads = 12;
    c.key_width = 128;
    c.value_width = 96;
  } else if (family.ends_with("gated_deltanet")) {
    c.num_heads = 6;
    c.key_width = 192;
    c.value_width = 384;
    c.norm_eps = 1e-6;
  } else {
    c.num_heads = 16;
  }
  return c;
}

struct Listed {
  std::int64_t elements = 0;
  std::map<std::string, ParameterInfo> by_name;
};

Listed list(const ModelConfig& config) {
  Listed listed;
  for (const ParameterInfo& p : parameter_list(config)) {
    std::int64_t n = 1;
    for (std::int64_t d : p.shape) n *= d;
    listed.elements += n;
    EXPECT_TRUE(listed.by_name.emplace(p.name, p).second) << p.name << " is there twice";
  }
  return listed;
}

using Shape = std::vector<std::int64_t>;

void expect_parameter(const Listed& listed, const std::string& name, const Shape& shape, bool decay) {
  const auto found = listed.by_name.find(name);
  ASSERT_NE(found, listed.by_name.end()) << name;
  EXPECT_EQ(found->second.shape, shape) << name;
  EXPECT_EQ(found->second.decay, decay) << name;
}

TEST(Parameters, PaperLogLinearMamba2) {
  const Listed all = list(paper("log_linear_mamba2"));
  EXPECT_EQ(all.elements, 825'465'312);
  EXPECT_EQ(all.by_name.size(), 297u);
  expect_parameter(all, "backbone.embeddings.weight", {32000, 1536}, true);
  expect_parameter(all, "backbone.norm_f.weight", {1536}, false);
  expect_parameter(all, "lm_head.weight", {32000, 1536}, true);
  for (const std::string layer : {"backbone.layers.0.", "backbone.layers.20."}) {
    expect_parameter(all, layer + "mixer_norm.weight", {1536}, false);
    expect_parameter(all, layer + "mlp_norm.weight", {1536}, false);
    for (const char* name : {"A_log", "D", "dt_bias"}) expect_parameter(all, layer + "mixer." + name, {48}, false);
    expect_parameter(all, layer + "mixer.L", {48, 15}, false);
    expect_parameter(all, layer + "mixer.norm.weight", {3072}, false);
    expect_parameter(all, layer + "mixer.conv1d.weight", {3328, 1, 4}, true);
    expect_parameter(all, layer + "mixer.conv1d.bias", {3328}, false);
    expect_parameter(all, layer + "mixer.in_proj.weight", {2 * 3072 + 2 * 128 + 16 * 48, 1536}, true);
    expect_parameter(all, layer + "mixer.out_proj.weight", {1536, 3072}, true);
    expect_parameter(all, layer + "mlp.gate_proj.weight", {4096, 1536}, true);
    expect_parameter(all, layer + "mlp.up_proj.weight", {4096, 1536}, true);
    expect_parameter(all, layer + "mlp.down_proj.weight", {1536, 4096}, true);
  }
}

TEST(Parameters, PaperLogLinearGatedDeltaNet) {
  const Listed all = list(paper("log_linear_gated_deltanet"));
  EXPECT_EQ(all.elements, 795'690'462);
  EXPECT_EQ(all.by_name.size(), 423u);
  expect_parameter(all, "model.embeddings.weight", {32000, 1536}, true);
  expect_parameter(all, "model.norm.weight", {1536}, false);
  expect_parameter(all, "lm_head.weight", {32000, 1536}, true);
  for (const std::string layer : {"model.layers.0.", "model.layers.20."}) {
    expect_parameter(all, layer + "attn_norm.weight", {1536}, false);
    expect_parameter(all, layer + "mlp_norm.weight", {1536}, false);
    for (const char* name : {"q", "k"}) {
      expect_parameter(all, layer + "attn." + name + "_proj.weight", {1152, 1536}, true);
      expect_parameter(all, layer + "attn." + name + "_conv1d.weight", {1152, 1, 4}, true);
    }
    for (const char* name : {"v", "g"})
      expect_parameter(all, layer + "attn." + name + "_proj.weight", {2304, 1536}, true);
    expect_parameter(all, layer + "attn.v_conv1d.weight", {2304, 1, 4}, true);
    for (const char* name : {"a", "b"}) expect_parameter(all, layer + "attn." + name + "_proj.weight", {6, 1536}, true);
    expect_parameter(all, layer + "attn.l_proj.weight", {90, 1536}, true);
    expect_parameter(all, layer + "attn.o_proj.weight", {1536, 2304}, true);
    for (const char* name : {"A_log", "dt_bias"}) expect_parameter(all, layer + "attn." + name, {6}, false);
    expect_parameter(all, layer + "attn.L", {6, 15}, false);
    expect_parameter(all, layer + "attn.o_norm.weight", {384}, false);
    expect_parameter(all, layer + "mlp.down_proj.weight", {1536, 4096}, true);
  }
}

TEST(Parameters, BaseModelsLackTheLevelScales) {
  const Listed mamba2 = list(paper("mamba2"));
  EXPECT_EQ(mamba2.by_name.size(), 297u - 21);
  expect_parameter(mamba2, "backbone.layers.3.mixer.in_proj.weight", {2 * 3072 + 2 * 128 + 48, 1536}, true);
  EXPECT_EQ(mamba2.by_name.count("backbone.layers.3.mixer.L"), 0u);
  const Listed gdn = list(paper("gated_deltanet"));
  EXPECT_EQ(gdn.by_name.size(), 423u - 2 * 21);
  EXPECT_EQ(gdn.by_name.count("model.layers.3.attn.l_proj.weight"), 0u);
  const Listed transformer = list(paper("transformer"));
  expect_parameter(transformer, "model.layers.3.attn.k_proj.weight", {1536, 1536}, true);
  EXPECT_EQ(transformer.by_name.size(), 3u + 21 * 9);
  // A log-linear model with unit scales has the parameters of its base model.
  for (const char* base : {"mamba2", "gated_deltanet"}) {
    ModelConfig unit = paper(base);
    unit.family = std::string("log_linear_") + base;
    unit.unit_scales = true;
    EXPECT_EQ(list(unit).elements, list(paper(base)).elements);
  }
}

TEST(Parameters, HybridLayersAreAttention) {
  ModelConfig c = paper("log_linear_gated_deltanet");
  c.attn_layers = {5};
  c.attn_heads = 12;
  c.kv_heads = 4;
  c.qkv_bias = true;
  const Listed all = list(c);
  expect_parameter(all, "model.layers.5.attn.k_proj.weight", {512, 1536}, true);
  expect_parameter(all, "model.layers.5.attn.v_proj.bias", {512}, false);
  EXPECT_EQ(all.by_name.count("model.layers.5.attn.L"), 0u);
  EXPECT_EQ(all.by_name.count("model.layers.4.attn.L"), 1u);
}

TEST(Config, RoundTrip) {
  std::vector<ModelConfig> configs;
  for (const std::string& family : family_names()) {
    configs.push_back(paper(family));
    ModelConfig odd = paper(family);
    odd.vocab_size = 257;
    odd.mlp_width = 100;
    odd.num_levels = 3;
    odd.conv_width = 3;
    odd.norm_eps = 3e-7;
    odd.initializer_range = 0.1;
    odd.rope_theta = 12345.678;
    odd.window = 77;
    odd.qkv_bias = true;
    odd.kv_heads = 2;
    if (family.ends_with("mamba2")) odd.num_groups = 3;
    if (family.ends_with("mamba2")) odd.value_width = 63;  // expand is not a whole number
    if (family.ends_with("gated_deltanet")) odd.value_width = 7, odd.attn_layers = {0, 20}, odd.attn_heads = 4;
    if (family == "linear") odd.value_width = 63;
    if (family == "local_strided") odd.stride = 5;
    if (family == "mosa") odd.dense_heads = 3, odd.routed_heads = 17, odd.sparsity = 9;
    odd.unit_scales = family.starts_with("log_linear");
    odd.match_width = 7;
    configs.push_back(odd);
    odd.unit_scales = false;
    for (const LevelPolicy policy :
         {LevelPolicy::share, LevelPolicy::stretch, LevelPolicy::routed, LevelPolicy::content}) {
      odd.level_policy = policy;
      odd.trained_levels = 2;
      configs.push_back(odd);
    }
  }
  for (const ModelConfig& c : configs) {
    const ModelConfig full = resolved(c);
    EXPECT_EQ(resolved(full), full);
    EXPECT_EQ(config_from_json(to_json(c)), full) << to_json(c).dump();
    EXPECT_EQ(config_from_text(to_json(c).dump(2)), full) << to_json(c).dump();
  }
}

TEST(Config, ResolvedFillsIn) {
  ModelConfig c;
  c.family = "transformer";
  c.hidden_size = 96;
  c.num_heads = 4;
  c = resolved(c);
  EXPECT_EQ(c.key_width, 24);
  EXPECT_EQ(c.value_width, 24);
  EXPECT_EQ(c.kv_heads, 4);
  EXPECT_EQ(c.num_levels, 1);
  EXPECT_EQ(c.trained_levels, 1);
  EXPECT_EQ(resolved(paper("log_linear_mamba2")).trained_levels, 15);
  EXPECT_EQ(c.mlp_width, 256);
  EXPECT_EQ(resolved(paper("mamba2")).mlp_width, 4096);
  EXPECT_EQ(resolved(paper("gated_deltanet")).num_groups, 6);
  // Queries and keys to match states by belong to scales that are learned, under any policy.
  c = paper("log_linear_mamba2");
  c.match_width = 5;
  EXPECT_EQ(resolved(c).match_width, 5);
  c.unit_scales = true;
  EXPECT_EQ(resolved(c).match_width, 0);
  c = paper("mamba2");
  c.match_width = 5;
  EXPECT_EQ(resolved(c).match_width, 0);
}

// As the two public implementations write them, bookkeeping included.
const char* const kHattention = R"({
  "architectures": ["HAttentionForCausalLM"], "model_type": "hattention", "torch_dtype": "float32",
  "transformers_version": "4.45.0", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
  "vocab_size": 32000, "hidden_size": 1536, "num_hidden_layers": 21, "num_heads": 48, "head_dim": 64,
  "state_size": 128, "n_groups": 1, "expand": 2, "conv_kernel": 4, "layer_norm_epsilon": 1e-05,
  "hidden_act": "silu", "initializer_range": 0.006, "residual_in_fp32": false, "rms_norm": true, "chunk_size": 64,
  "time_step_floor": 0.0001, "time_step_limit": [0.0, Infinity], "time_step_max": 0.1, "time_step_min": 0.001,
  "time_step_rank": 96, "use_bias": false, "use_conv_bias": true, "tie_word_embeddings": false, "use_cache": true,
  "rescale_prenorm_residual": true, "fuse_norm": true})";
const char* const kHGatedDeltaNet = R"({
  "model_type": "h_gated_deltanet", "attn": null, "attn_mode": "chunk", "bos_token_id": 1, "conv_size": 4,
  "expand_v": 2.0, "fuse_cross_entropy": true, "head_dim": 192, "hidden_act": "swish", "hidden_ratio": 4,
  "hidden_size": 1536, "initializer_range": 0.006, "intermediate_size": null, "max_position_embeddings": 2048,
  "norm_eps": 1e-06, "num_heads": 6, "num_hidden_layers": 21, "num_v_heads": null, "use_gate": true,
  "use_short_conv": true, "vocab_size": 32000, "note \"Infinity\" \\": "Infinity, NaN"})";
const char* const kTransformer = R"({
  "model_type": "transformer", "elementwise_affine": true, "hidden_act": "swish", "hidden_ratio": 4,
  "hidden_size": 1536, "initializer_range": 0.006, "intermediate_size": null, "max_position_embeddings": 2048,
  "norm_eps": 1e-05, "num_heads": 16, "num_hidden_layers": 21, "num_kv_heads": null, "qk_norm": false,
  "qkv_bias": false, "rope_theta": 500000.0, "vocab_size": 32000, "window_size": null})";

TEST(Config, PublishedConfigsLoad) {
  EXPECT_EQ(config_from_text(kHattention), resolved(paper("log_linear_mamba2")));
  EXPECT_EQ(config_from_text(kHGatedDeltaNet), resolved(paper("log_linear_gated_deltanet")));
  EXPECT_EQ(config_from_text(kTransformer), resolved(paper("transformer")));

  std::string text = kHattention;  // the other spellings of the same model
  const auto replace = [&](const std::string& from, const std::string& to) {
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
  };
  replace("hattention", "log_linear_mamba2");
  replace("layer_norm_epsilon", "norm_eps");
  replace("Infinity", "\"Infinity\"");
  replace("\"num_heads\": 48,", "");
  replace("rms_norm", "rmsnorm");
  EXPECT_EQ(config_from_text(text), resolved(paper("log_linear_mamba2")));
}

TEST(Config, Hybrid) {
  json object = json::parse(kHGatedDeltaNet);
  object["attn"] = {{"layers", {7, 3}}, {"num_heads", 12}, {"rope_theta", 10000.0}, {"window_size", 512}};
  const ModelConfig c = config_from_json(object);
  EXPECT_EQ(c.attn_layers, (std::vector<std::int64_t>{3, 7}));
  EXPECT_EQ(c.attn_heads, 12);
  EXPECT_EQ(c.kv_heads, 12);
  EXPECT_EQ(c.window, 512);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_EQ(config_from_json(to_json(c)), c);
}

// A change to a good config, and the key that the error must name.
struct Bad {
  json patch;
  const char* key;
};

void expect_refused(const char* good, const std::vector<Bad>& bads) {
  for (const Bad& bad : bads) {
    std::string text = good;
    if (const auto at = text.find(" Infinity"); at != std::string::npos) text.replace(at, 9, " \"Infinity\"");
    json object = json::parse(text);
    object.update(bad.patch);
    try {
      config_from_json(object);
      ADD_FAILURE() << "accepted " << bad.patch.dump();
    } catch (const Error& error) {
      const std::string what = error.what();
      EXPECT_EQ(what.rfind(std::string("[config.json] ") + bad.key, 0), 0u) << bad.patch.dump() << " gave " << what;
      EXPECT_EQ(what.find('\n'), std::string::npos);
      EXPECT_EQ(error.kind(), Error::Kind::failure);
    }
  }
}

TEST(Config, BadMamba2) {
  std::vector<Bad> bads{
      {{{"model_type", nullptr}}, "model_type"},
      {{{"model_type", 3}}, "model_type"},
      {{{"model_type", "llama"}}, "model_type"},
      {{{"vocab_size", "many"}}, "vocab_size"},
      {{{"vocab_size", 1.5}}, "vocab_size"},
      {{{"vocab_size", true}}, "vocab_size"},
      {{{"vocab_size", 18446744073709551615u}}, "vocab_size"},
      {{{"vocab_size", 1LL << 40}}, "vocab_size"},
      {{{"hidden_size", 0}}, "hidden_size"},
      {{{"hidden_size", -1}}, "hidden_size"},
      {{{"hidden_size", 1 << 30}}, "expand"},
      {{{"num_hidden_layers", 0}}, "num_hidden_layers"},
      {{{"num_hidden_layers", 1 << 30}}, "num_hidden_layers"},
      {{{"n_groups", 5}}, "n_groups"},
      {{{"n_groups", 0}}, "n_groups"},
      {{{"expand", 3}}, "expand"},
      {{{"expand", -2}}, "expand"},
      {{{"expand", "two"}}, "expand"},
      {{{"num_heads", nullptr}, {"expand", nullptr}}, "num_heads"},
      {{{"num_heads", 47}}, "expand"},
      {{{"num_heads", 0}}, "num_heads"},
      {{{"conv_kernel", 17}}, "conv_kernel"},
      {{{"norm_eps", 1e-6}}, "norm_eps"},  // against layer_norm_epsilon
      {{{"layer_norm_epsilon", 0}}, "norm_eps"},
      {{{"layer_norm_epsilon", "small"}}, "layer_norm_epsilon"},
      {{{"initializer_range", -1}}, "initializer_range"},
      {{{"num_levels", 0}}, "num_levels"},
      {{{"num_levels", 65}}, "num_levels"},
      {{{"trained_levels", 16}}, "trained_levels"},
      {{{"trained_levels", 0}}, "trained_levels"},
      {{{"level_policy", "best"}}, "level_policy"},
      {{{"level_policy", 1}}, "level_policy"},
      {{{"match_width", -1}}, "match_width"},
      {{{"match_width", 1.5}}, "match_width"},
      {{{"unit_scales", 1}}, "unit_scales"},
      {{{"unit_scales", true}, {"model_type", "mamba2"}}, "unit_scales"},
      {{{"intermediate_size", 0}}, "intermediate_size"},
      {{{"hidden_ratio", -4}}, "hidden_ratio"},
      {{{"tie_word_embeddings", true}}, "tie_word_embeddings"},
      {{{"use_bias", true}}, "use_bias"},
      {{{"use_bias", "no"}}, "use_bias"},
      {{{"use_conv_bias", false}}, "use_conv_bias"},
      {{{"rms_norm", false}}, "rms_norm"},
      {{{"norm_before_gate", true}}, "norm_before_gate"},
      {{{"D_has_hdim", true}}, "D_has_hdim"},
      {{{"hidden_act", "gelu"}}, "hidden_act"},
      {{{"hidden_act", 7}}, "hidden_act"},
      {{{"time_step_limit", {0.0, 1.0}}}, "time_step_limit"},
      {{{"time_step_limit", {0.1, "Infinity"}}}, "time_step_limit"},
      {{{"time_step_limit", 3}}, "time_step_limit"},
      {{{"dt_limit", {0.0, 100.0}}}, "dt_limit"},
      {{{"attn", {{"layers", {0}}}}}, "attn"},
      {{{"state_size", 1 << 24}, {"num_heads", 1 << 24}, {"head_dim", 1}, {"expand", nullptr}, {"n_groups", 1 << 24}},
       "the model would have"},
  };
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "state_size"})
    bads.push_back({{{key, nullptr}}, key});
  expect_refused(kHattention, bads);
}

TEST(Config, BadGatedDeltaNet) {
  expect_refused(kHGatedDeltaNet,
                 {{{{"num_heads", nullptr}}, "num_heads"},
                  {{{"head_dim", nullptr}}, "head_dim"},
                  {{{"expand_v", 0.001}}, "expand_v"},
                  {{{"expand_v", -1}}, "expand_v"},
                  {{{"num_v_heads", 12}}, "num_v_heads"},
                  {{{"conv_size", 99}}, "conv_size"},
                  {{{"use_gate", false}}, "use_gate"},
                  {{{"use_short_conv", false}}, "use_short_conv"},
                  {{{"allow_neg_eigval", true}}, "allow_neg_eigval"},
                  {{{"conv_bias", true}}, "conv_bias"},
                  {{{"attn", 3}}, "attn"},
                  {{{"attn", json::object()}}, "attn.layers"},
                  {{{"attn", {{"layers", 3}}}}, "attn.layers"},
                  {{{"attn", {{"layers", {0.5}}}}}, "attn.layers"},
                  {{{"attn", {{"layers", {1}}, {"rope_theta", 1e4}}}}, "attn.num_heads"},
                  {{{"attn", {{"layers", {1}}, {"num_heads", 12}}}}, "attn.rope_theta"},
                  {{{"attn", {{"layers", {21}}, {"num_heads", 12}, {"rope_theta", 1e4}}}}, "attn.layers"},
                  {{{"attn", {{"layers", {1, 1}}, {"num_heads", 12}, {"rope_theta", 1e4}}}}, "attn.layers"},
                  {{{"attn", {{"layers", {1}}, {"num_heads", 7}, {"rope_theta", 1e4}}}}, "attn.num_heads"},
                  {{{"attn", {{"layers", {1}}, {"num_heads", 12}, {"num_kv_heads", 5}, {"rope_theta", 1e4}}}},
                   "attn.num_kv_heads"},
                  {{{"attn", {{"layers", {1}}, {"num_heads", 12}, {"rope_theta", -1}}}}, "rope_theta"},
                  {{{"attn", {{"layers", {1}}, {"num_heads", 12}, {"rope_theta", 1e4}, {"window_size", 0}}}},
                   "attn.window_size"}});
}

TEST(Config, BadTransformer) {
  expect_refused(kTransformer, {{{{"num_heads", 7}}, "num_heads"},
                                {{{"num_heads", 512}}, "num_heads"},  // odd width 3
                                {{{"num_kv_heads", 3}}, "num_kv_heads"},
                                {{{"rope_theta", nullptr}}, "rope_theta"},
                                {{{"rope_theta", 0}}, "rope_theta"},
                                {{{"rope_scaling", {{"type", "yarn"}}}}, "rope_scaling"},
                                {{{"qk_norm", true}}, "qk_norm"},
                                {{{"elementwise_affine", false}}, "elementwise_affine"},
                                {{{"head_dim", 128}}, "head_dim"},
                                {{{"window_size", -1}}, "window_size"}});
}

TEST(Config, OwnFamilies) {
  const ModelConfig c = resolved(paper("mosa"));
  EXPECT_EQ(c.dense_heads, 8);
  EXPECT_EQ(c.sparsity, 4);
  EXPECT_EQ(c.routed_heads, 32);  // 8 heads that are not dense, for the tokens of one each
  EXPECT_EQ(c.key_width, 96);
  EXPECT_EQ(resolved(paper("sliding_window")).window, 256);
  EXPECT_EQ(resolved(paper("local_strided")).stride, 64);
  EXPECT_EQ(resolved(paper("flash")).window, 0);
  // A family by another of its names is the same model.
  for (const auto& [alias, name] :
       {std::pair{"transformer", "flash"}, {"h_gated_deltanet", "log_linear_gated_deltanet"}}) {
    ModelConfig a = paper(name);
    a.family = alias;
    EXPECT_EQ(resolved(a), resolved(paper(name)));
    EXPECT_EQ(resolved(a).family, name);
  }
  const auto text = [](const char* family) { return to_json(paper(family)).dump(); };
  const std::string mosa = text("mosa"), strided = text("local_strided"), linear = text("linear");
  expect_refused(mosa.c_str(), {{{{"num_dense_heads", 17}}, "num_dense_heads"},
                                {{{"num_dense_heads", 0}}, "num_dense_heads"},
                                {{{"num_routed_heads", -1}}, "num_routed_heads"},
                                {{{"num_routed_heads", 1 << 25}}, "num_routed_heads"},
                                {{{"sparsity", 1 << 20}}, "sparsity"},
                                {{{"num_heads", 512}}, "num_heads"},
                                {{{"qk_norm", true}}, "qk_norm"}});
  expect_refused(strided.c_str(), {{{{"stride", 0}}, "stride"}, {{{"window_size", -3}}, "window_size"}});
  expect_refused(linear.c_str(), {{{{"head_dim", nullptr}}, "head_dim"},
                                  {{{"expand_v", 0.3001}}, "expand_v"},
                                  {{{"conv_size", 17}}, "conv_size"}});
}

TEST(Config, BadText) {
  for (const std::string text : {"", "{", "[]", "3", "null", "{\"model_type\": Infinity}", "{\"a\": 1e999}", "\xff\xfe",
                                 "{\"model_type\": \"mamba2\"} trailing"})
    EXPECT_THROW(config_from_text(text), Error) << text;
  EXPECT_THROW(config_from_text(std::string(1 << 20, '[')), Error);
}

TEST(Config, BadFields) {
  const auto refused = [](const char* field, auto change) {
    ModelConfig c = paper("log_linear_mamba2");
    change(c);
    try {
      check(c);
      ADD_FAILURE() << "accepted a bad " << field;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).rfind(std::string("[model_config] ") + field, 0), 0u) << error.what();
      EXPECT_EQ(error.kind(), Error::Kind::usage);
    }
  };
  refused("family", [](ModelConfig& c) { c.family = "rwkv"; });
  refused("num_groups", [](ModelConfig& c) { c.num_groups = 7; });
  refused("num_heads", [](ModelConfig& c) { c.num_heads = 0; });
  refused("key_width", [](ModelConfig& c) { c.key_width = -1; });
  refused("value_width", [](ModelConfig& c) { c.value_width = 0; });
  refused("num_layers", [](ModelConfig& c) { c.num_layers = 0; });
  refused("conv_width", [](ModelConfig& c) { c.conv_width = 0; });
  refused("num_levels", [](ModelConfig& c) { c.num_levels = 100; });
  refused("trained_levels", [](ModelConfig& c) { c.trained_levels = 16; });
  refused("match_width", [](ModelConfig& c) { c.match_width = -1; });
  refused("mlp_width", [](ModelConfig& c) { c.mlp_width = -5; });
  refused("norm_eps", [](ModelConfig& c) { c.norm_eps = 0.0 / 0.0; });
  refused("initializer_range", [](ModelConfig& c) { c.initializer_range = 1.0 / 0.0; });
  refused("attn_layers", [](ModelConfig& c) { c.attn_layers = {0}; });
  refused("kv_heads", [](ModelConfig& c) { c.family = "transformer", c.num_heads = 16, c.kv_heads = 5; });
  EXPECT_NO_THROW(check(paper("log_linear_mamba2")));
}

}  // namespace
}  // namespace loglinear::nn
