#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.hpp"
#include "nn/families.hpp"
#include "nn/model.hpp"
#include "nn/parameters.hpp"

namespace loglinear::nn {
namespace {

using nlohmann::json;

constexpr std::int64_t kMaxSize = 1 << 24, kMaxLayers = 1 << 13, kMaxLevels = 64, kMaxConv = 16, kMaxSparsity = 1 << 16;
constexpr std::int64_t kMaxParameters = std::int64_t{1} << 50;

// What the fields are called where the config came from, for messages.
struct Names {
  const char* where = "model_config";
  Error::Kind kind = Error::Kind::usage;
  const char *family = "family", *layers = "num_layers", *groups = "num_groups", *key = "key_width",
             *value = "value_width", *kv_heads = "kv_heads", *conv = "conv_width", *mlp = "mlp_width",
             *window = "window", *attn_layers = "attn_layers", *attn_heads = "attn_heads", *stride = "stride",
             *dense_heads = "dense_heads", *routed_heads = "routed_heads", *sparsity = "sparsity";
};

Names json_names(const Family& family) {
  const bool mamba = family.mixer == MixerKind::mamba2;
  const bool hybrid = family.mixer == MixerKind::gated_deltanet;
  Names names;
  names.where = "config.json";
  names.kind = Error::Kind::failure;
  names.family = "model_type";
  names.layers = "num_hidden_layers";
  names.groups = "n_groups";
  names.key = mamba ? "state_size" : "head_dim";
  names.value = mamba ? "head_dim" : "expand_v";
  names.kv_heads = hybrid ? "attn.num_kv_heads" : "num_kv_heads";
  names.conv = mamba ? "conv_kernel" : "conv_size";
  names.mlp = "intermediate_size";
  names.window = hybrid ? "attn.window_size" : "window_size";
  names.attn_layers = "attn.layers";
  names.attn_heads = "attn.num_heads";
  names.dense_heads = "num_dense_heads";
  names.routed_heads = "num_routed_heads";
  return names;
}

std::int64_t default_mlp_width(std::int64_t hidden_size, double ratio = 4) {
  const auto wide = static_cast<std::int64_t>(static_cast<double>(hidden_size) * ratio * 2 / 3);
  return std::max<std::int64_t>(1, (wide + 255) / 256) * 256;
}

// resolved(), with the reader's names in messages.
ModelConfig resolve(ModelConfig config, const Names& names) {
  const auto refuse = [&](const std::string& message) { throw Error(names.where, message, names.kind); };
  const auto in_range = [&](const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value < low || value > high) refuse(fmt::format("{}: got {}, need {} to {}", name, value, low, high));
  };
  const auto positive = [&](const char* name, double value) {
    if (!(value > 0) || !std::isfinite(value)) refuse(fmt::format("{}: got {}, need a number above 0", name, value));
  };
  // Softmax heads: how `heads` of width D / heads share kv_heads keys.
  const auto check_attention = [&](const char* heads_name, std::int64_t heads) {
    in_range(heads_name, heads, 1, kMaxSize);
    if (config.hidden_size % heads != 0 || config.hidden_size / heads % 2 != 0)
      refuse(fmt::format("{}: {} heads do not cut hidden_size = {} into even widths", heads_name, heads,
                         config.hidden_size));
    if (config.kv_heads == 0) config.kv_heads = heads;
    in_range(names.kv_heads, config.kv_heads, 1, kMaxSize);
    if (heads % config.kv_heads != 0)
      refuse(fmt::format("{}: {} does not divide {} = {}", names.kv_heads, config.kv_heads, heads_name, heads));
    in_range(names.window, config.window, 0, std::numeric_limits<std::int64_t>::max());
    positive("rope_theta", config.rope_theta);
  };

  const Family* family = find_family(config.family);
  if (!family) refuse(fmt::format("{}: there is no {}, only {}", names.family, config.family, family_list()));
  config.family = family->name;
  const MixerKind kind = family->mixer;
  const ModelConfig defaults;
  const auto fill = [](std::int64_t& value, std::int64_t otherwise) {
    if (value == 0) value = otherwise;
  };
  in_range("vocab_size", config.vocab_size, 1, kMaxSize);
  in_range("hidden_size", config.hidden_size, 1, kMaxSize);
  in_range(names.layers, config.num_layers, 1, kMaxLayers);
  in_range("num_heads", config.num_heads, 1, kMaxSize);
  positive("norm_eps", config.norm_eps);
  if (!(config.initializer_range >= 0) || !std::isfinite(config.initializer_range))
    refuse(fmt::format("initializer_range: got {}, need a number not below 0", config.initializer_range));
  if (config.mlp_width == 0) config.mlp_width = default_mlp_width(config.hidden_size);
  in_range(names.mlp, config.mlp_width, 1, kMaxSize);

  if (is_attention(kind) || kind == MixerKind::mosa) {
    config.attn_layers.clear();
    config.attn_heads = 0;
    if (kind == MixerKind::sliding_window || kind == MixerKind::local_strided)
      fill(config.window, defaults.kDefaultWindow);
    if (kind == MixerKind::mosa) config.kv_heads = 0, config.qkv_bias = false;
    check_attention("num_heads", config.num_heads);
    config.key_width = config.value_width = config.hidden_size / config.num_heads;
    config.num_groups = defaults.num_groups;
    config.conv_width = defaults.conv_width;
  } else {
    in_range(names.key, config.key_width, 1, kMaxSize);
    in_range(names.value, config.value_width, 1, kMaxSize);
    in_range(names.conv, config.conv_width, 1, kMaxConv);
    if (kind != MixerKind::mamba2) config.num_groups = config.num_heads;
    in_range(names.groups, config.num_groups, 1, kMaxSize);
    if (config.num_heads % config.num_groups != 0)
      refuse(fmt::format("{}: {} does not divide num_heads = {}", names.groups, config.num_groups, config.num_heads));
    if (kind == MixerKind::linear) config.attn_layers.clear();
    if (config.attn_layers.empty()) {
      config.attn_heads = config.kv_heads = config.window = 0;
      config.qkv_bias = false;
      config.rope_theta = defaults.rope_theta;
    } else {
      if (kind != MixerKind::gated_deltanet)
        refuse(fmt::format("{}: {} has no hybrid layers", names.attn_layers, config.family));
      for (std::size_t i = 0; i < config.attn_layers.size(); ++i) {
        in_range(names.attn_layers, config.attn_layers[i], 0, config.num_layers - 1);
        if (i > 0 && config.attn_layers[i] <= config.attn_layers[i - 1])
          refuse(fmt::format("{}: need ascending layers, got {} after {}", names.attn_layers, config.attn_layers[i],
                             config.attn_layers[i - 1]));
      }
      if (config.attn_heads == 0) config.attn_heads = config.num_heads;
      check_attention(names.attn_heads, config.attn_heads);
    }
  }
  if (kind == MixerKind::local_strided) {
    fill(config.stride, defaults.kDefaultStride);
    in_range(names.stride, config.stride, 1, std::numeric_limits<std::int64_t>::max());
  } else {
    config.stride = 0;
  }
  if (kind == MixerKind::mosa) {
    fill(config.dense_heads, std::max<std::int64_t>(1, config.num_heads / 2));
    in_range(names.dense_heads, config.dense_heads, 1, config.num_heads);
    config.kv_heads = config.dense_heads;
    fill(config.sparsity, defaults.kDefaultSparsity);
    in_range(names.sparsity, config.sparsity, 1, kMaxSparsity);
    fill(config.routed_heads, config.sparsity * std::max<std::int64_t>(1, config.num_heads - config.dense_heads));
    in_range(names.routed_heads, config.routed_heads, 1, kMaxSize);
  } else {
    config.dense_heads = config.routed_heads = config.sparsity = 0;
  }
  if (config.unit_scales && !family->log_linear)
    refuse(fmt::format("unit_scales: {} has no level scales", config.family));
  if (family->log_linear)
    in_range("num_levels", config.num_levels, 1, kMaxLevels);
  else
    config.num_levels = 1;
  if (!family->log_linear || config.unit_scales) {
    config.trained_levels = config.match_width = 0;
    config.level_policy = LevelPolicy::share;
  }
  in_range("match_width", config.match_width, 0, kMaxSize);
  fill(config.trained_levels, config.num_levels);
  in_range("trained_levels", config.trained_levels, 1, config.num_levels);

  // Every size is at most 2^24, so a tensor's rows fit easily; their product and the sum need care.
  std::int64_t total = 0;
  const auto add = [&](std::int64_t rows, std::int64_t columns, std::int64_t times) {
    std::int64_t n = 0;
    if (__builtin_mul_overflow(rows, columns, &n) || __builtin_mul_overflow(n, times, &n) ||
        __builtin_add_overflow(total, n, &total) || total > kMaxParameters)
      refuse("the model would have more than 2^50 parameters");
  };
  add(config.vocab_size, config.hidden_size, 2);
  add(config.mlp_width, config.hidden_size, 3 * config.num_layers);
  add(config.num_heads, config.value_width, 1);
  add(config.num_heads, config.key_width, 1);
  add(config.num_heads * config.value_width, config.hidden_size, 3 * config.num_layers);
  add(config.num_heads * config.key_width, config.hidden_size, 2 * config.num_layers);
  add(config.num_heads, config.hidden_size, (config.num_levels + 2) * config.num_layers);
  add(config.match_width, config.hidden_size + config.conv_width, 2 * config.num_layers);
  add(config.routed_heads, config.hidden_size, config.num_layers);
  add(config.routed_heads * config.key_width, config.hidden_size, 4 * config.num_layers);
  return config;
}

// --- reading -----------------------------------------------------------------------------------------------------

// One object of a config.json; `prefix` is where it is.
class Reader {
 public:
  explicit Reader(const json& object, std::string prefix = "") : object_(object), prefix_(std::move(prefix)) {}

  // Present and not null.
  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }

  std::int64_t integer(const char* key) const {
    const json& value = required(key);
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() &&
         value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())))
      refuse(key, "need an integer, got " + shown(value));
    return value.get<std::int64_t>();
  }
  // An integer that, read, is at least 1: 0 would mean "derive it" in a ModelConfig.
  std::int64_t size(const char* key) const {
    const std::int64_t value = integer(key);
    if (value < 1) refuse(key, fmt::format("got {}, need at least 1", value));
    return value;
  }
  std::int64_t size_or(const char* key, std::int64_t otherwise) const { return has(key) ? size(key) : otherwise; }

  double number(const char* key) const {
    const json& value = required(key);
    if (!value.is_number()) refuse(key, "need a number, got " + shown(value));
    return value.get<double>();
  }
  double number_or(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise; }

  bool flag_or(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!object_.at(key).is_boolean()) refuse(key, "need true or false, got " + shown(object_.at(key)));
    return object_.at(key).get<bool>();
  }
  // A published option of which this model has only one side.
  void only(const char* key, bool value) const {
    if (flag_or(key, value) != value) refuse(key, fmt::format("{} is not implemented, only {}", !value, value));
  }
  void absent(const char* key) const {
    if (has(key)) refuse(key, shown(object_.at(key)) + " is not implemented");
  }

  const json& required(const char* key) const {
    if (!has(key)) refuse(key, "is missing");
    return object_.at(key);
  }
  [[noreturn]] void refuse(const char* key, const std::string& message) const {
    fail("config.json", "{}{}: {}", prefix_, key, message);
  }
  static std::string shown(const json& value) {
    const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    return text.size() <= 40 ? text : text.substr(0, 40) + "...";
  }

 private:
  const json& object_;
  std::string prefix_;
};

const Family& read_family(const Reader& reader) {
  const json& value = reader.required("model_type");
  if (!value.is_string()) reader.refuse("model_type", "need a string, got " + Reader::shown(value));
  if (const Family* family = find_family(value.get<std::string>())) return *family;
  std::string known;
  for (const Family& family : kFamilies) known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  reader.refuse("model_type", "there is no " + Reader::shown(value) + ", only " + known);
}

LevelPolicy read_level_policy(const Reader& reader) {
  if (!reader.has("level_policy")) return LevelPolicy::share;
  const json& value = reader.required("level_policy");
  const std::vector<std::string> names = level_policy_names();
  for (std::size_t i = 0; i < names.size(); ++i)
    if (value == names[i]) return static_cast<LevelPolicy>(i);
  reader.refuse("level_policy", fmt::format("got {}, need {}", Reader::shown(value), fmt::join(names, ", ")));
}

double read_norm_eps(const Reader& reader, double otherwise) {
  const bool both = reader.has("norm_eps") && reader.has("layer_norm_epsilon");
  if (both && reader.number("norm_eps") != reader.number("layer_norm_epsilon"))
    reader.refuse("norm_eps", "contradicts layer_norm_epsilon");
  return reader.number_or("norm_eps", reader.number_or("layer_norm_epsilon", otherwise));
}

std::int64_t read_mlp_width(const Reader& reader, std::int64_t hidden_size) {
  if (reader.has("intermediate_size")) return reader.size("intermediate_size");
  const double ratio = reader.number_or("hidden_ratio", 4);
  if (!(ratio > 0 && ratio <= 1024)) reader.refuse("hidden_ratio", fmt::format("got {}, need 0 to 1024", ratio));
  return hidden_size > kMaxSize ? 0 : default_mlp_width(hidden_size, ratio);
}

// A limit on Mamba-2's time step: only no limit is implemented. Infinity arrives as a string (config_from_text) or as a
// number too large to matter.
void read_time_step_limit(const Reader& reader, const char* key) {
  if (!reader.has(key)) return;
  const json& limit = reader.required(key);
  const auto unlimited = [](const json& high) {
    return high.is_null() || (high.is_string() && (high == "Infinity" || high == "inf")) ||
           (high.is_number() && high.get<double>() >= 1e30);
  };
  if (!limit.is_array() || limit.size() != 2 || !limit[0].is_number() || limit[0].get<double>() != 0 ||
      !unlimited(limit[1]))
    reader.refuse(key, Reader::shown(limit) + " is not implemented, only no limit: [0.0, Infinity]");
}

void read_mamba2(const Reader& reader, ModelConfig& config) {
  config.key_width = reader.size("state_size");
  config.value_width = reader.size("head_dim");
  config.num_groups = reader.size_or("n_groups", 1);
  config.conv_width = reader.size_or("conv_kernel", 4);
  config.norm_eps = read_norm_eps(reader, 1e-5);
  if (reader.has("expand")) {
    const double expand = reader.number("expand");
    const double inner = expand * static_cast<double>(config.hidden_size);
    if (!(inner >= 1 && inner <= static_cast<double>(kMaxSize)))
      reader.refuse("expand", fmt::format("got {}, which makes {} channels", expand, inner));
    if (!reader.has("num_heads")) {
      config.num_heads = static_cast<std::int64_t>(inner) / std::min(config.value_width, kMaxSize);
      if (config.num_heads < 1) reader.refuse("num_heads", "is missing");
    }
    const double heads = static_cast<double>(config.num_heads) * static_cast<double>(config.value_width);
    if (std::abs(inner - heads) > 1e-6 * heads)
      reader.refuse("expand", fmt::format("expand * hidden_size = {} contradicts num_heads * head_dim = {} * {}", inner,
                                          config.num_heads, config.value_width));
  } else if (!reader.has("num_heads")) {
    reader.refuse("num_heads", "is missing");
  }
  for (const char* key : {"time_step_limit", "dt_limit"}) read_time_step_limit(reader, key);
  for (const char* key : {"rms_norm", "rmsnorm", "use_conv_bias"}) reader.only(key, true);
  for (const char* key : {"use_bias", "norm_before_gate", "D_has_hdim"}) reader.only(key, false);
  reader.absent("attn");
}

// The settings of softmax attention, in `attn` of a hybrid or at the top of a transformer.
void read_attention(const Reader& reader, ModelConfig& config) {
  config.kv_heads = reader.size_or("num_kv_heads", 0);
  config.rope_theta = reader.number("rope_theta");
  config.window = reader.size_or("window_size", 0);
  config.qkv_bias = reader.flag_or("qkv_bias", false);
  reader.only("qk_norm", false);
}

// head_dim, expand_v and conv_size of gated_deltanet and linear.
void read_widths(const Reader& reader, double expand, ModelConfig& config) {
  config.key_width = reader.size("head_dim");
  expand = reader.number_or("expand_v", expand);
  const double width = expand * static_cast<double>(config.key_width);
  if (!(width >= 1 && width <= static_cast<double>(kMaxSize)) || std::abs(width - std::round(width)) > 1e-5 * width)
    reader.refuse("expand_v", fmt::format("got {}, which makes values of width {}", expand, width));
  config.value_width = std::llround(width);
  config.conv_width = reader.size_or("conv_size", 4);
}

void read_gated_deltanet(const Reader& reader, ModelConfig& config) {
  read_widths(reader, 2, config);
  config.norm_eps = read_norm_eps(reader, 1e-6);
  if (reader.has("num_v_heads") && reader.integer("num_v_heads") != config.num_heads)
    reader.refuse("num_v_heads", "other than num_heads is not implemented");
  for (const char* key : {"use_gate", "use_short_conv"}) reader.only(key, true);
  for (const char* key : {"allow_neg_eigval", "conv_bias"}) reader.only(key, false);
  if (!reader.has("attn")) return;
  const json& attn = reader.required("attn");
  if (!attn.is_object()) reader.refuse("attn", "need an object, got " + Reader::shown(attn));
  const Reader hybrid(attn, "attn.");
  const json& layers = hybrid.required("layers");
  if (!layers.is_array()) hybrid.refuse("layers", "need a list of layers, got " + Reader::shown(layers));
  for (const json& layer : layers) {
    if (!layer.is_number_integer()) hybrid.refuse("layers", "need integers, got " + Reader::shown(layer));
    config.attn_layers.push_back(layer.get<std::int64_t>());
  }
  std::sort(config.attn_layers.begin(), config.attn_layers.end());
  if (config.attn_layers.empty()) return;
  config.attn_heads = hybrid.size("num_heads");
  read_attention(hybrid, config);
}

void read_transformer(const Reader& reader, ModelConfig& config) {
  config.norm_eps = read_norm_eps(reader, 1e-6);
  read_attention(reader, config);
  reader.only("elementwise_affine", true);
  reader.absent("rope_scaling");
  if (reader.has("head_dim") && reader.size("head_dim") * static_cast<__int128>(config.num_heads) != config.hidden_size)
    reader.refuse("head_dim", "contradicts hidden_size / num_heads");
}

// Families that nobody has published: what to_json writes.
void read_own(const Family& family, const Reader& reader, ModelConfig& config) {
  config.norm_eps = read_norm_eps(reader, 1e-5);
  if (family.mixer == MixerKind::linear) {
    read_widths(reader, 1, config);
    return;
  }
  read_attention(reader, config);
  config.stride = reader.size_or("stride", 0);
  config.dense_heads = reader.size_or("num_dense_heads", 0);
  config.routed_heads = reader.size_or("num_routed_heads", 0);
  config.sparsity = reader.size_or("sparsity", 0);
}

}  // namespace

std::vector<std::string> level_policy_names() { return {"share", "stretch", "routed", "content"}; }

LevelPolicy level_policy(const std::string& name) {
  const std::vector<std::string> names = level_policy_names();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) fail_usage("model_config", "level_policy: got {}, need {}", name, fmt::join(names, ", "));
  return static_cast<LevelPolicy>(found - names.begin());
}

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const Family& family : kFamilies) names.push_back(family.name);
  return names;
}

void check(const ModelConfig& config) { resolve(config, Names{}); }

ModelConfig resolved(const ModelConfig& config) { return resolve(config, Names{}); }

ModelConfig config_from_json(const json& object) {
  if (!object.is_object()) fail("config.json", "need an object, got {}", Reader::shown(object));
  const Reader reader(object);
  const Family& family = read_family(reader);
  ModelConfig config;
  config.family = family.name;
  config.vocab_size = reader.size("vocab_size");
  config.hidden_size = reader.size("hidden_size");
  config.num_layers = reader.size("num_hidden_layers");
  if (family.mixer != MixerKind::mamba2 || reader.has("num_heads")) config.num_heads = reader.size("num_heads");
  config.mlp_width = read_mlp_width(reader, config.hidden_size);
  config.initializer_range = reader.number_or("initializer_range", config.initializer_range);
  if (family.log_linear) {
    config.num_levels = reader.size_or("num_levels", config.num_levels);
    config.unit_scales = reader.flag_or("unit_scales", false);
    config.trained_levels = reader.size_or("trained_levels", 0);
    config.level_policy = read_level_policy(reader);
    config.match_width = reader.size_or("match_width", 0);
  } else {
    reader.only("unit_scales", false);
  }
  reader.only("tie_word_embeddings", false);
  if (reader.has("hidden_act")) {
    const json& act = reader.required("hidden_act");
    if (act != "silu" && act != "swish")
      reader.refuse("hidden_act", Reader::shown(act) + " is not implemented, only silu (also called swish)");
  }
  switch (family.mixer) {
    case MixerKind::mamba2:
      read_mamba2(reader, config);
      break;
    case MixerKind::gated_deltanet:
      read_gated_deltanet(reader, config);
      break;
    case MixerKind::flash:
      read_transformer(reader, config);
      break;
    case MixerKind::linear:
    case MixerKind::standard:
    case MixerKind::sliding_window:
    case MixerKind::local_strided:
    case MixerKind::mosa:
      read_own(family, reader, config);
      break;
  }
  return resolve(config, json_names(family));
}

ModelConfig config_from_text(const std::string& text) {
  // Python's json module writes and reads three words that JSON does not have: as strings they parse.
  std::string strict;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (quoted && text[i] == '\\' && i + 1 < text.size()) {
      strict += text[i++];
    } else if (text[i] == '"') {
      quoted = !quoted;
    } else if (!quoted) {
      const char* word = nullptr;
      for (const char* candidate : {"-Infinity", "Infinity", "NaN"})
        if (text.compare(i, std::char_traits<char>::length(candidate), candidate) == 0) {
          word = candidate;
          break;
        }
      if (word) {
        strict += '"' + std::string(word) + '"';
        i += std::char_traits<char>::length(word) - 1;
        continue;
      }
    }
    strict += text[i];
  }
  // Deep nesting would exhaust the stack of a recursive destructor: no config needs any.
  static constexpr int kMaxDepth = 32;
  json parsed;
  try {
    parsed = json::parse(strict, [](int depth, json::parse_event_t, json&) {
      if (depth > kMaxDepth) fail("config.json", "nested more than {} deep", kMaxDepth);
      return true;
    });
  } catch (const json::exception& error) {
    std::string reason = error.what();  // "[json.exception...] parse error at line .."
    reason.erase(0, reason.find("] ") == std::string::npos ? 0 : reason.find("] ") + 2);
    std::replace_if(
        reason.begin(), reason.end(), [](unsigned char c) { return c < 0x20 || c >= 0x7f; }, ' ');
    fail("config.json", "not JSON: {}", reason);
  }
  return config_from_json(parsed);
}

json to_json(const ModelConfig& given) {
  const ModelConfig config = resolved(given);
  const Family& family = *find_family(config.family);
  // Whole numbers as integers, as the published configs have them.
  const auto ratio = [](std::int64_t a, std::int64_t b) -> json {
    if (a % b == 0) return a / b;
    return static_cast<double>(a) / static_cast<double>(b);
  };
  const auto or_null = [](std::int64_t value) -> json { return value == 0 ? json(nullptr) : json(value); };
  json out{{"model_type", family.model_type},   {"vocab_size", config.vocab_size},
           {"hidden_size", config.hidden_size}, {"num_hidden_layers", config.num_layers},
           {"num_heads", config.num_heads},     {"intermediate_size", config.mlp_width},
           {"norm_eps", config.norm_eps},       {"initializer_range", config.initializer_range},
           {"tie_word_embeddings", false},      {"hidden_act", "silu"}};
  if (family.log_linear) {
    out["num_levels"] = config.num_levels;
    if (config.unit_scales) out["unit_scales"] = true;
    if (config.trained_levels != config.num_levels) out["trained_levels"] = config.trained_levels;
    if (config.level_policy != LevelPolicy::share)
      out["level_policy"] = level_policy_names()[static_cast<std::size_t>(config.level_policy)];
    if (config.match_width != 0) out["match_width"] = config.match_width;
  }
  switch (family.mixer) {
    case MixerKind::mamba2:
      out["state_size"] = config.key_width;
      out["head_dim"] = config.value_width;
      out["n_groups"] = config.num_groups;
      out["expand"] = ratio(config.num_heads * config.value_width, config.hidden_size);
      out["conv_kernel"] = config.conv_width;
      out["use_bias"] = false;
      out["use_conv_bias"] = true;
      out["rms_norm"] = true;
      out["residual_in_fp32"] = false;
      out["chunk_size"] = 64;  // what the published log-linear kernels insist on; not read here
      break;
    case MixerKind::gated_deltanet:
      out["head_dim"] = config.key_width;
      out["expand_v"] = ratio(config.value_width, config.key_width);
      out["conv_size"] = config.conv_width;
      out["use_gate"] = true;
      out["use_short_conv"] = true;
      out["attn"] = nullptr;
      if (!config.attn_layers.empty())
        out["attn"] = {{"layers", config.attn_layers},    {"num_heads", config.attn_heads},
                       {"num_kv_heads", config.kv_heads}, {"window_size", or_null(config.window)},
                       {"rope_theta", config.rope_theta}, {"qkv_bias", config.qkv_bias}};
      break;
    case MixerKind::linear:
      out["head_dim"] = config.key_width;
      out["expand_v"] = ratio(config.value_width, config.key_width);
      out["conv_size"] = config.conv_width;
      break;
    case MixerKind::flash:
    case MixerKind::standard:
    case MixerKind::sliding_window:
    case MixerKind::local_strided:
      out["num_kv_heads"] = config.kv_heads;
      out["window_size"] = or_null(config.window);
      out["rope_theta"] = config.rope_theta;
      out["qkv_bias"] = config.qkv_bias;
      if (family.mixer == MixerKind::local_strided) out["stride"] = config.stride;
      break;
    case MixerKind::mosa:
      out["num_dense_heads"] = config.dense_heads;
      out["num_routed_heads"] = config.routed_heads;
      out["sparsity"] = config.sparsity;
      out["window_size"] = or_null(config.window);
      out["rope_theta"] = config.rope_theta;
      break;
  }
  return out;
}

}  // namespace loglinear::nn
