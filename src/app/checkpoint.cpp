#include "app/checkpoint.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <set>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#define XXH_INLINE_ALL  // header only
#include <xxhash.h>

#include "base/error.hpp"
#include "io/config.hpp"
#include "io/file.hpp"
#include "io/safetensors.hpp"
#include "loglinear/adamw.hpp"
#include "nn/families.hpp"

namespace loglinear::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kWhere = "checkpoint";
constexpr const char* kParts[] = {"config.json", "model.safetensors", "optimizer.safetensors"};
constexpr std::uint64_t kJsonLimit = std::uint64_t{64} << 20;

// The message of an error without its "[where] ".
std::string message_of(const Error& error) {
  const std::string text = error.what();
  const auto end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

json read_json(const fs::path& path) {
  json value = io::parse_json(io::read_file(path, kJsonLimit), path.string());
  if (!value.is_object()) fail(kWhere, "{}: an object is needed", path.string());
  return value;
}

// A field of trainer.json. Throws Error when it is missing or of another type.
template <class T>
T field(const json& object, const char* key, const fs::path& file) {
  try {
    return object.at(key).get<T>();
  } catch (const json::exception&) {
    fail(kWhere, "{}: {} is missing or damaged", file.string(), key);
  }
}

json describe_file(const fs::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(kWhere, "cannot open {}: {}", path.string(), std::strerror(errno));
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  std::vector<char> buffer(std::size_t{1} << 20);
  std::int64_t bytes = 0;
  ssize_t n = 0;
  while ((n = ::read(file, buffer.data(), buffer.size())) > 0 || (n < 0 && errno == EINTR)) {
    if (n < 0) continue;
    XXH3_64bits_update(state, buffer.data(), static_cast<std::size_t>(n));
    bytes += n;
  }
  const int error = errno;
  const std::uint64_t hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  ::close(file);
  if (n < 0) fail(kWhere, "cannot read {}: {}", path.string(), std::strerror(error));
  return {{"bytes", bytes}, {"xxh3", fmt::format("{:016x}", hash)}};
}

// Throws Error when one of the parts is not what trainer.json says.
void verify(const fs::path& folder, const json& trainer, std::initializer_list<const char*> parts) {
  const json files = field<json>(trainer, "files", folder / "trainer.json");
  for (const char* part : parts) {
    const json expected = field<json>(files, part, folder / "trainer.json");
    if (!fs::exists(folder / part)) fail(kWhere, "{}: {} is missing", folder.string(), part);
    if (describe_file(folder / part) != expected)
      fail(kWhere, "{} is damaged: size or checksum differ from trainer.json", (folder / part).string());
  }
}

std::int64_t step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  constexpr std::string_view prefix = "step-";
  if (name.size() <= prefix.size() || name.size() > prefix.size() + 18 || name.compare(0, prefix.size(), prefix) != 0 ||
      name.find_first_not_of("0123456789", prefix.size()) != std::string::npos)
    return -1;
  return std::stoll(name.substr(prefix.size()));
}

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

std::string sizes_text(const nn::ModelConfig& c) {
  return fmt::format("{}, vocab_size {}, hidden_size {}, {} layers, {} heads", c.family, c.vocab_size, c.hidden_size,
                     c.num_layers, c.num_heads);
}

nn::ModelConfig as_log_linear(nn::ModelConfig config, const std::string& name) {
  if (config.family == "mamba2" || config.family == "gated_deltanet")
    config.family = "log_linear_" + config.family;
  else
    fail_usage(kWhere, "{} is a {} model; only mamba2 and gated_deltanet can be read as log-linear", name,
               config.family);
  config.unit_scales = true;
  config.num_levels = nn::ModelConfig{}.num_levels;
  config.trained_levels = 0;
  return nn::resolved(config);
}

nn::ModelConfig read_config(const fs::path& path, const LoadOptions& options) {
  nn::ModelConfig config;
  try {
    config = nn::config_from_text(io::read_file(path, kJsonLimit));
  } catch (const Error& error) {
    fail(kWhere, "{}: {}", path.string(), message_of(error));
  }
  return read_as(std::move(config), options, path.string());
}

// Throws Error unless the file holds exactly the parameters of the configuration, before anything is allocated.
void check_tensors(const io::SafetensorsFile& file, const fs::path& config_path, const nn::ModelConfig& config) {
  const std::string asked = fmt::format("{} ({})", config_path.string(), sizes_text(config));
  std::set<std::string> wanted;
  std::vector<std::string> missing, surplus;
  for (const nn::ParameterInfo& parameter : nn::parameter_list(config)) {
    wanted.insert(parameter.name);
    const io::TensorInfo* tensor = file.find(parameter.name);
    if (tensor == nullptr) {
      missing.push_back(parameter.name);
      continue;
    }
    if (tensor->shape != parameter.shape)
      fail(kWhere, "{}: tensor {} has shape {}, but {} asks for {}", file.name(), parameter.name,
           shape_text(tensor->shape), asked, shape_text(parameter.shape));
    if (!io::is_float(tensor->element))
      fail(kWhere, "{}: tensor {} has elements of type {}, floating-point numbers are needed", file.name(),
           parameter.name, io::name_of(tensor->element));
  }
  for (const io::TensorInfo& tensor : file.tensors())
    if (!wanted.contains(tensor.name)) surplus.push_back(tensor.name);
  const auto some = [](std::vector<std::string>& names) {
    const std::size_t count = names.size();
    names.resize(std::min<std::size_t>(count, 3));
    return fmt::format("{}{}", fmt::join(names, ", "), count > 3 ? fmt::format(" and {} more", count - 3) : "");
  };
  if (!missing.empty() && !surplus.empty())
    fail(kWhere, "{} does not fit {}: missing {}; unknown {}", file.name(), asked, some(missing), some(surplus));
  if (!missing.empty()) fail(kWhere, "{}: missing {}, which {} asks for", file.name(), some(missing), asked);
  if (!surplus.empty()) fail(kWhere, "{}: {}: no such parameter in {}", file.name(), some(surplus), asked);
}

template <class T>
void read_parameters(const io::SafetensorsFile& file, nn::Model<T>& model) {
  for (nn::Parameter<T>& parameter : model.parameters()) {
    file.read_into<T>(parameter.name, parameter.value);
    if (!all_finite(static_cast<std::int64_t>(parameter.value.size()), parameter.value.data()))
      fail(kWhere, "{}: tensor {} holds NaN or infinity", file.name(), parameter.name);
  }
}

std::map<std::string, std::string> metadata() { return {{"format", "pt"}}; }

}  // namespace

fs::path find_checkpoint(const fs::path& path, const Warn& warn) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) fail(kWhere, "{}: no such folder", path.string());
  if (!fs::is_directory(path, ignored))
    fail(kWhere, "{}: is a file, a checkpoint is a folder with config.json and model.safetensors", path.string());
  if (fs::exists(path / "config.json", ignored)) return path;
  if (const auto checkpoint = newest_checkpoint(path, warn)) return checkpoint->folder;
  fail(kWhere, "{}: config.json is missing, and there is no folder step-* either", path.string());
}

nn::ModelConfig read_as(nn::ModelConfig config, const LoadOptions& options, const std::string& name) {
  if (options.as_log_linear) config = as_log_linear(config, name);
  if (options.level_policy.empty() && options.trained_levels == 0) return config;
  if (!nn::find_family(config.family)->log_linear || config.unit_scales)
    fail_usage(kWhere, "{} is a {} model without level scales: it has no level policy and no trained levels", name,
               config.family);
  if (!options.level_policy.empty()) {
    const LevelPolicy policy = nn::level_policy(options.level_policy), trained = config.level_policy;
    const auto by_scale = [](LevelPolicy p) { return p == LevelPolicy::share || p == LevelPolicy::stretch; };
    if (policy != trained && !(by_scale(policy) && by_scale(trained)) && options.warn)
      options.warn(
          fmt::format("{} was trained with level policy {}: with {} its trained levels are read differently too", name,
                      nn::level_policy_names()[static_cast<std::size_t>(trained)], options.level_policy));
    config.level_policy = policy;
  }
  if (options.trained_levels != 0) config.trained_levels = options.trained_levels;
  return nn::resolved(config);
}

nn::ModelConfig load_config(const fs::path& path, const LoadOptions& options) {
  return read_config(find_checkpoint(path, options.warn) / "config.json", options);
}

template <class T>
std::unique_ptr<nn::Model<T>> load_model(const fs::path& path, const LoadOptions& options) {
  const fs::path folder = find_checkpoint(path, options.warn);
  const fs::path config_path = folder / "config.json";
  std::error_code ignored;
  if (fs::exists(folder / "trainer.json", ignored) && folder == path)
    verify(folder, read_json(folder / "trainer.json"), {"config.json", "model.safetensors"});
  const nn::ModelConfig config = read_config(config_path, options);
  if (!fs::exists(folder / "model.safetensors", ignored) &&
      !fs::exists(folder / "model.safetensors.index.json", ignored))
    fail(kWhere, "{}: model.safetensors is missing", folder.string());
  const io::SafetensorsFile file = io::SafetensorsFile::open(folder);
  check_tensors(file, config_path, config);
  auto model = std::make_unique<nn::Model<T>>(config);
  read_parameters(file, *model);
  return model;
}

template std::unique_ptr<nn::Model<float>> load_model<float>(const fs::path&, const LoadOptions&);
template std::unique_ptr<nn::Model<double>> load_model<double>(const fs::path&, const LoadOptions&);

void save_model(const fs::path& folder, nn::Model<float>& model) {
  io::write_file_atomic(folder / "config.json", nn::to_json(model.config()).dump(2) + "\n");
  std::vector<io::TensorView> views;
  for (const nn::Parameter<float>& parameter : model.parameters())
    views.push_back(io::view_of<float>(parameter.name, parameter.shape, parameter.value));
  io::write_safetensors(folder / "model.safetensors", views, metadata());
}

void save_checkpoint(const fs::path& directory, nn::Model<float>& model, const Moments& moments, json trainer,
                     int keep) {
  const std::int64_t step = trainer.at("step").get<std::int64_t>();
  for (const nn::Parameter<float>& parameter : model.parameters())
    if (!all_finite(static_cast<std::int64_t>(parameter.value.size()), parameter.value.data()))
      fail(kWhere, "not saved at step {}: parameter {} holds NaN or infinity (a smaller --lr may help)", step,
           parameter.name);
  io::AtomicFolder folder(directory / fmt::format("step-{:07}", step));
  save_model(folder.path(), model);
  std::vector<io::TensorView> views;
  const auto parameters = model.parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& p = parameters[i];
    views.push_back(io::view_of<float>("first." + p.name, p.shape, std::span<const float>(moments.first[i])));
    views.push_back(io::view_of<float>("second." + p.name, p.shape, std::span<const float>(moments.second[i])));
  }
  io::write_safetensors(folder.path() / "optimizer.safetensors", views);
  for (const char* part : kParts) trainer["files"][part] = describe_file(folder.path() / part);
  io::write_file_atomic(folder.path() / "trainer.json", trainer.dump(2) + "\n");
  folder.commit();
  const auto all = list_checkpoints(directory);
  for (std::size_t i = keep; i < all.size(); ++i) io::remove_folder(all[i]);
}

std::vector<fs::path> list_checkpoints(const fs::path& directory) {
  std::vector<fs::path> folders;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    if (step_of(it->path()) >= 0) folders.push_back(it->path());
  if (error && error != std::errc::no_such_file_or_directory)
    fail(kWhere, "cannot read {}: {}", directory.string(), error.message());
  std::sort(folders.begin(), folders.end(),
            [](const fs::path& a, const fs::path& b) { return step_of(a) > step_of(b); });
  return folders;
}

std::optional<TrainingCheckpoint> newest_checkpoint(const fs::path& directory, const Warn& warn) {
  const std::vector<fs::path> folders = list_checkpoints(directory);
  std::vector<std::string> damage;
  for (const fs::path& folder : folders) {
    try {
      json trainer = read_json(folder / "trainer.json");
      verify(folder, trainer, {kParts[0], kParts[1], kParts[2]});
      for (const std::string& text : damage)
        if (warn) warn(text + "; going back to the checkpoint before");
      return TrainingCheckpoint{folder, std::move(trainer)};
    } catch (const Error& error) {
      damage.push_back(message_of(error));
    }
  }
  if (folders.empty()) return std::nullopt;
  fail(kWhere, "{}: no checkpoint is whole: {}", directory.string(), damage.front());
}

json stored_settings(const fs::path& directory) {
  for (const fs::path& folder : list_checkpoints(directory)) try {
      json trainer = read_json(folder / "trainer.json");
      if (trainer.contains("settings")) return trainer["settings"];
    } catch (const Error&) {  // newest_checkpoint says what is wrong with it
    }
  return nullptr;
}

void load_checkpoint(const TrainingCheckpoint& checkpoint, nn::Model<float>& model, Moments& moments) {
  const fs::path config_path = checkpoint.folder / "config.json";
  if (read_config(config_path, {}) != model.config())
    fail(kWhere, "{} differs from the model of the settings", config_path.string());
  const io::SafetensorsFile weights = io::SafetensorsFile::open(checkpoint.folder / "model.safetensors");
  check_tensors(weights, config_path, model.config());
  read_parameters(weights, model);
  const io::SafetensorsFile file = io::SafetensorsFile::open(checkpoint.folder / "optimizer.safetensors");
  const auto parameters = model.parameters();
  moments.first.resize(parameters.size());
  moments.second.resize(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    file.expect("first." + parameters[i].name, parameters[i].shape);
    file.expect("second." + parameters[i].name, parameters[i].shape);
    moments.first[i] = file.read_as<float>("first." + parameters[i].name);
    moments.second[i] = file.read_as<float>("second." + parameters[i].name);
  }
}

DirectoryLock::DirectoryLock(const fs::path& directory) {
  const fs::path path = directory / "lock";
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail("train", "cannot open {}: {}", path.string(), std::strerror(errno));
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    ::close(descriptor_);
    if (error == EWOULDBLOCK) fail("train", "{}: another training is writing there", directory.string());
    fail("train", "cannot lock {}: {}", path.string(), std::strerror(error));
  }
}

DirectoryLock::~DirectoryLock() { ::close(descriptor_); }

}  // namespace loglinear::app
