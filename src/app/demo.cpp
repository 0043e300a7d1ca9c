#include "app/demo.hpp"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <memory>

#include "app/checkpoint.hpp"
#include "app/evaluate.hpp"
#include "app/generate.hpp"
#include "app/ngram.hpp"
#include "app/progress.hpp"
#include "app/train.hpp"
#include "base/error.hpp"
#include "io/text.hpp"
#include "io/utf8.hpp"

namespace loglinear::app {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::uint64_t kTextLimit = 64 << 20;
constexpr std::uint64_t kLeastText = 4096;         // a few of the shortest sequences, and something to hold out
constexpr std::int64_t kHeldOutBytes = 192 << 10;  // scored
constexpr std::int64_t kPromptBytes = 2000;

std::string mebibytes(double bytes) {
  return bytes < 1 << 20 ? fmt::format("{:.1f} KiB", bytes / (1 << 10)) : fmt::format("{:.2f} MiB", bytes / (1 << 20));
}

fs::path temporary_folder() {
  std::error_code error;
  fs::path base = fs::temp_directory_path(error);
  if (error) base = "/tmp";
  std::string name = (base / "loglinear-demo-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr)
    fail("demo", "cannot make a folder in {}: {}", base.string(), std::strerror(errno));
  return name;
}

// About 0.9 million parameters: what two cores can feed with a few million bytes in the time.
TrainSettings train_settings(const DemoSettings& settings, std::uint64_t bytes, const fs::path& out) {
  TrainSettings train;
  train.data = {settings.text.string()};
  train.data_bytes = kTextLimit;
  train.out = out.string();
  train.hidden_size = 128;
  train.layers = 3;
  train.heads = 4;
  train.key_width = 32;
  train.value_width = 64;
  train.mlp_width = 384;
  train.lr = 5e-3;
  train.warmup = 30;
  train.seed = settings.seed;
  train.threads = settings.threads;
  train.val_fraction = std::clamp(262144.0 / static_cast<double>(bytes), 0.02, 0.1);
  train.val_bytes = 32 << 10;
  train.val_every = train.save_every = 0;  // at the end
  train.log_every = 20;
  // Short texts are cut finer, so that an epoch has steps enough.
  const auto part = [&](std::uint64_t parts) { return static_cast<std::int64_t>(std::bit_floor(bytes / parts)); };
  train.seq_len = std::clamp<std::int64_t>(part(64), 128, 512);
  train.batch_tokens = std::clamp<std::int64_t>(part(32), train.seq_len, 4096);
  if (train.batch_tokens < 1024) train.lr = 3e-3, train.warmup = 15;
  return train;
}

// After so many times over a text it is learnt by heart, and the held-out figure gets worse. Found by trying (texts of
// 5, 20, 100 kB).
std::int64_t most_epochs(std::uint64_t bytes) { return bytes < 10000 ? 3 : bytes < 50000 ? 4 : 6; }

// Tokens a second of a training step on this machine now.
double training_speed(const TrainSettings& settings) {
  nn::Model<float> model(model_config(settings));
  model.initialise(1);
  model.threads = static_cast<int>(settings.threads);
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(settings.batch_tokens), 'e');
  std::vector<std::int64_t> cu_seqlens;
  for (std::int64_t n = 0; n <= settings.batch_tokens; n += settings.seq_len) cu_seqlens.push_back(n);
  double seconds = 0;
  for (int run = 0; run < 2; ++run) {  // the first warms up
    const double begin = monotonic_seconds();
    model.loss(tokens, tokens, cu_seqlens, true);
    seconds = monotonic_seconds() - begin;
  }
  return static_cast<double>(settings.batch_tokens) / seconds;
}

// The beginning of the held-out documents, whole ones as far as they fit.
std::vector<std::string> limit_documents(std::vector<std::string> documents, std::int64_t limit) {
  std::vector<std::string> kept;
  for (std::string& document : documents) {
    if (limit <= 0) break;
    if (static_cast<std::int64_t>(document.size()) > limit)
      document.resize(io::whole_characters(std::string_view(document).substr(0, static_cast<std::size_t>(limit))));
    limit -= static_cast<std::int64_t>(document.size());
    if (!document.empty()) kept.push_back(std::move(document));
  }
  return kept;
}

// The beginning of the longest document, up to kPromptBytes and not all of it: it ends with a blank line or the end of
// a line's text where there is one in the second half (what comes next should be anything but more of the same blanks),
// else between characters.
std::string prompt_from(const std::vector<std::string>& documents) {
  const std::string& longest = *std::max_element(documents.begin(), documents.end(),
                                                 [](const auto& a, const auto& b) { return a.size() < b.size(); });
  const std::size_t length = std::min<std::size_t>(kPromptBytes, std::max<std::size_t>(1, longest.size() * 3 / 4));
  std::string prompt = longest.substr(0, io::whole_characters(std::string_view(longest).substr(0, length)));
  const std::size_t half = prompt.size() / 2;
  if (const std::size_t blank = prompt.rfind("\n\n"); blank != std::string::npos && blank >= half)
    return prompt.substr(0, blank + 2);
  if (const std::size_t line = prompt.rfind('\n'); line != std::string::npos)
    if (const std::size_t last = prompt.find_last_not_of(" \t\r\n", line); last != std::string::npos && last >= half)
      return prompt.substr(0, last + 1);
  return prompt;
}

// The end of a text, from the beginning of a line where one is near.
std::string_view ending(std::string_view text, std::size_t bytes) {
  if (text.size() <= bytes) return text;
  const std::size_t line = text.find('\n', text.size() - bytes);
  if (line != std::string_view::npos && line + bytes / 2 < text.size()) return text.substr(line + 1);
  std::size_t begin = text.size() - bytes;
  while (begin < text.size() && (text[begin] & 0xc0) == 0x80) ++begin;
  return text.substr(begin);
}

// What a Transformer of the same width and depth keeps of the same bytes.
std::size_t transformer_bytes(const nn::ModelConfig& like, std::string_view text, int threads) {
  nn::ModelConfig config;
  config.family = "transformer";
  config.hidden_size = like.hidden_size;
  config.num_layers = like.num_layers;
  config.num_heads = like.num_heads;
  config.mlp_width = like.mlp_width;
  nn::Model<float> model(config);
  model.threads = threads;
  Context context = new_context(model);
  read_text_into(model, context, text);
  return context.state.bytes();
}

class Demo {
 public:
  Demo(const DemoSettings& settings, const DemoHooks& hooks) : s_(settings), hooks_(hooks) {}
  ordered_json run();

 private:
  template <class... Args>
  void say(fmt::format_string<Args...> format, Args&&... args) {
    if (hooks_.print) hooks_.print(fmt::format(format, std::forward<Args>(args)...) + "\n");
  }
  bool interrupted() const { return hooks_.interrupted && hooks_.interrupted(); }
  void read();
  bool train();
  void score();
  void talk();

  DemoSettings s_;
  DemoHooks hooks_;
  ordered_json report_;
  std::uint64_t bytes_ = 0, train_bytes_ = 0;
  std::vector<std::string> held_out_;
  double order2_ = 0;
  std::string checkpoint_;
  std::unique_ptr<nn::Model<float>> model_;
};

void Demo::read() {
  io::Corpus corpus = io::read_text(s_.text, kTextLimit);
  bytes_ = corpus.bytes;
  if (bytes_ < kLeastText)
    fail("demo", "{}: {} bytes of text, need at least {} to train on and to hold some out", s_.text.string(), bytes_,
         kLeastText);
  say("text        {} bytes in {} files, {}{}", format_count(static_cast<double>(bytes_)), corpus.files,
      s_.text.string(), corpus.cut ? " (the beginning)" : "");
  // The same division that the training makes of the same text.
  const double fraction = train_settings(s_, bytes_, {}).val_fraction;
  io::TextSplit split = io::split_text(std::move(corpus.documents), fraction);
  ByteTrigram rival;
  for (const std::string& document : split.train) {
    rival.add(document);
    train_bytes_ += document.size();
  }
  rival.fit();
  held_out_ = limit_documents(std::move(split.held_out), kHeldOutBytes);
  double bits = 0, scored = 0;
  for (const std::string& document : held_out_) {
    bits += rival.bits(document);
    scored += static_cast<double>(document.size());
  }
  order2_ = bits / scored;
  say("rival       an order-2 byte model (interpolated Kneser-Ney) fitted on the training part: {:.3f} bits per byte "
      "on the "
      "held-out part\n",
      order2_);
  report_ = {{"text", s_.text.string()},
             {"bytes", bytes_},
             {"train_bytes", train_bytes_},
             {"held_out_bytes", static_cast<std::int64_t>(scored)},
             {"order2_bits_per_byte", order2_}};
}

// False when interrupted.
bool Demo::train() {
  const fs::path out = s_.out.empty() ? temporary_folder() : s_.out;
  TrainSettings settings = train_settings(s_, bytes_, out);
  // The clock decides, unless it would let the model read the text too often; it has the last word even so.
  const std::int64_t epochs = most_epochs(train_bytes_);
  const bool small =
      static_cast<double>(epochs) * static_cast<double>(train_bytes_) < training_speed(settings) * s_.seconds;
  if (small)
    settings.epochs = epochs;
  else
    settings.minutes = s_.seconds / 60;
  const double begin = monotonic_seconds();
  bool stopped = false, late = false;
  TrainHooks hooks;
  hooks.print = hooks_.print;
  hooks.warn = hooks_.warn;
  hooks.terminal = hooks_.terminal;
  hooks.interrupted = [&] {
    stopped = interrupted();
    late = small && monotonic_seconds() - begin > s_.seconds;
    return stopped || late;
  };
  const TrainResult result = app::train(settings, hooks);
  checkpoint_ = result.checkpoint;
  report_["steps"] = result.step;
  report_["train_seconds"] = monotonic_seconds() - begin;
  report_["checkpoint"] = checkpoint_;
  if (stopped) say("\ninterrupted; what was learnt so far is in {}", checkpoint_);
  return !stopped;
}

void Demo::score() {
  model_ = load_model<float>(checkpoint_);  // what counts is what is on the disk
  model_->threads = static_cast<int>(s_.threads);
  const Evaluation evaluation = evaluate(*model_, Text(held_out_));
  const double bits = evaluation.bits_per_byte();
  report_["bits_per_byte"] = bits;
  say("\nheld out    {:.3f} bits per byte, log-linear Mamba-2 as read back from {}\n            {:.3f} bits per byte, "
      "order-2 byte model            ({} bytes that neither has seen)",
      bits, checkpoint_, order2_, format_count(static_cast<double>(evaluation.bytes)));
}

void Demo::talk() {
  const std::string prompt = prompt_from(held_out_);
  Context context = new_context(*model_);
  read_text_into(*model_, context, prompt);
  GenerateSettings settings;
  settings.seed = static_cast<std::uint64_t>(s_.seed);
  settings.max_tokens = 400;
  const std::size_t state = context.state.bytes();
  const std::int64_t position = context.state.position();
  say("\nprompt      the first {} bytes of a held-out document, which end so:\n", prompt.size());
  say("{}", io::replace_malformed(ending(prompt, 200)));
  say("\ncontinued\n");
  const double begin = monotonic_seconds();
  const Generation text = generate(*model_, context, settings, false, {hooks_.print, hooks_.interrupted});
  const double rate = static_cast<double>(text.tokens.size()) / (monotonic_seconds() - begin);

  // A layer keeps a matrix a head for every set bit of the full chunks, those read through the last level as one,
  // the tokens of the open chunk, and a sum of keys for every bit when it reads by content: grown in known
  // ways, so that the size at any position is known.
  const nn::ModelConfig& config = model_->config();
  const std::int64_t chunk = default_chunk(config.key_width, config.value_width);
  // Blocks read through the last level are one matrix, where the policy lets older tokens share it.
  const std::int64_t last_bit = config.level_policy == LevelPolicy::share ? config.trained_levels - 2 : 62;
  const std::int64_t last = std::max<std::int64_t>(chunk, std::int64_t{1} << std::clamp<std::int64_t>(last_bit, 0, 62));
  const auto live_at = [&](std::int64_t at) {
    return std::popcount(static_cast<std::uint64_t>(at % last / chunk)) + (at >= last ? 1 : 0);
  };
  const std::int64_t H = config.num_heads, matrix = H * (config.key_width * config.value_width * 4 + 8),
                     token = 4 * (config.num_groups * config.key_width + H * config.value_width + H);
  const std::int64_t matched = config.match_width > 0 ? config.match_width : config.num_groups * config.key_width;
  const std::int64_t sum = config.level_policy == LevelPolicy::content ? 4 * matched : 0;
  const auto bytes_at = [&](std::int64_t at) {
    const std::int64_t sums = std::bit_width(static_cast<std::uint64_t>(at)) * sum;
    return static_cast<double>(model_->new_state().bytes()) +
           static_cast<double>(config.num_layers * (live_at(at) * matrix + at % chunk * token + sums));
  };
  const int live = live_at(position);
  const std::size_t cache = transformer_bytes(model_->config(), prompt, static_cast<int>(s_.threads));
  say("\n\nstate       at position {}: {} in {} live matrices a head (set bits of {} / {}) and {} open tokens",
      position, mebibytes(static_cast<double>(state)), live, position, chunk, position % chunk);
  say("            keys and values of a Transformer of the same width and depth: {}",
      mebibytes(static_cast<double>(cache)));
  const std::int64_t far = (1 << 20) - 1;  // all bits set: the most
  say("            at position {}: {} against {}", far, mebibytes(bytes_at(far)),
      mebibytes(static_cast<double>(cache) / static_cast<double>(position) * static_cast<double>(far)));
  say("\ntry         loglinear generate {} --prompt 'Your text'", checkpoint_);
  report_["prompt"] = io::replace_malformed(prompt);
  report_["continuation"] = text.text;
  report_["tokens_per_second"] = rate;
  report_["position"] = position;
  report_["state_bytes"] = state;
  report_["state_bytes_counted"] = bytes_at(position);
  report_["live_blocks"] = live;
  report_["open_tokens"] = position % chunk;
  report_["transformer_bytes"] = cache;
}

ordered_json Demo::run() {
  if (!(s_.seconds > 0 && s_.seconds <= 86400))
    fail_usage("demo", "seconds: got {}, need more than 0 and at most 86400", s_.seconds);
  if (s_.threads < 0 || s_.threads > 4096)
    fail_usage("demo", "threads: got {}, need 0 (all cores) to 4096", s_.threads);
  constexpr std::int64_t kLargestSeed = 1'000'000'000'000'000;
  if (s_.seed < 0 || s_.seed > kLargestSeed) fail_usage("demo", "seed: got {}, need 0 to {}", s_.seed, kLargestSeed);
  if (!s_.out.empty() && !list_checkpoints(s_.out).empty())
    fail_usage("demo", "out: {} already holds checkpoints, need a new folder", s_.out.string());
  if (s_.text.empty()) s_.text = default_demo_text();
  read();
  const bool done = train();
  if (done) {
    score();
    talk();
  }
  report_["interrupted"] = !done;
  return report_;
}

}  // namespace

io::Path default_demo_text() {
  const fs::path base = "/usr/include/c++";
  std::error_code error;
  fs::path newest;
  int newest_version = -1;
  for (const auto& entry : fs::directory_iterator(base, error)) {
    const std::string name = entry.path().filename().string();
    int version = -1;
    std::from_chars(name.data(), name.data() + name.size(), version);
    if (version > newest_version) newest = entry.path(), newest_version = version;
  }
  if (newest.empty())
    fail("demo", "no headers of a C++ standard library in {}: give the PATH of a text", base.string());
  return newest;
}

nn::ModelConfig demo_model() { return model_config(train_settings({}, kTextLimit, {})); }

ordered_json run_demo(const DemoSettings& settings, const DemoHooks& hooks) { return Demo(settings, hooks).run(); }

}  // namespace loglinear::app
