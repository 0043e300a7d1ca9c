#include "app/generate.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#define XXH_INLINE_ALL  // header only
#define XXH_INLINE_ALL  // header only
#include <xxhash.h>

#include "app/data.hpp"
#include "base/error.hpp"
#include "io/safetensors.hpp"
#include "io/utf8.hpp"

namespace loglinear::app {

// TextStream

TextStream::TextStream(std::vector<std::string> stop) : stop_(std::move(stop)) {
  for (const std::string& s : stop_)
    if (s.empty()) fail_usage("generate", "stop: an empty string would stop before the first token");
}

std::string TextStream::push(char byte) {
  held_ += byte;
  std::size_t matched = 0;
  for (const std::string& s : stop_)
    if (held_.ends_with(s)) matched = std::max(matched, s.size());
  if (matched > 0) {
    stopped_ = true;
    std::string text = io::replace_malformed(std::string_view(held_).substr(0, held_.size() - matched));
    held_.clear();
    return text;
  }
  std::size_t begun = 0;  // the longest end of held_ that is the beginning of a stop string
  for (const std::string& s : stop_)
    for (std::size_t n = std::min(s.size() - 1, held_.size()); n > begun; --n)
      if (held_.ends_with(std::string_view(s).substr(0, n))) begun = n;
  const std::size_t whole = io::whole_characters(std::string_view(held_).substr(0, held_.size() - begun));
  std::string text = io::replace_malformed(std::string_view(held_).substr(0, whole));
  held_.erase(0, whole);
  return text;
}

std::string TextStream::finish() {
  const std::size_t whole = io::whole_characters(held_);
  std::string text = io::replace_malformed(std::string_view(held_).substr(0, whole));
  held_.clear();
  return text;
}

// Contexts

namespace {

void remember(Context& context, std::span<const std::int32_t> tokens) {
  std::vector<std::int32_t>& history = context.history;
  history.insert(history.end(), tokens.begin(), tokens.end());
  if (const auto keep = static_cast<std::size_t>(kMaxRepetitionWindow); history.size() > 2 * keep)
    history.erase(history.begin(), history.end() - static_cast<std::ptrdiff_t>(keep));
}

void read_tokens(nn::Model<float>& model, Context& context, std::span<const std::int32_t> tokens) {
  context.logits.resize(static_cast<std::size_t>(model.config().vocab_size));
  model.read(context.state, tokens, context.logits);
  remember(context, tokens);
}

void begin(nn::Model<float>& model, Context& context, bool text_follows) {
  if (context.state.position() > 0) return;
  if (!context.separator && !text_follows)
    fail_usage("generate", "a prompt is missing: the model was trained on a task and cannot begin a text");
  if (!context.separator) return;
  const std::int32_t separator = kSeparator;
  read_tokens(model, context, {&separator, 1});
}

bool asks(const std::function<bool()>& interrupted) { return interrupted && interrupted(); }

}  // namespace

Context new_context(const nn::Model<float>& model) {
  if (model.config().vocab_size != 256)
    fail_usage("generate", "the model has a vocabulary of {} tokens; only models of the 256 bytes can be given text",
               model.config().vocab_size);
  Context context;
  context.state = model.new_state();
  return context;
}

std::size_t read_text_into(nn::Model<float>& model, Context& context, std::string_view text,
                           const std::function<bool()>& interrupted) {
  constexpr std::size_t kPiece = 4096;  // fixed, so that the same text always gives the same bits
  begin(model, context, !text.empty());
  std::vector<std::int32_t> tokens;
  std::size_t done = 0;
  while (done < text.size() && !asks(interrupted)) {
    const std::string_view piece = text.substr(done, kPiece);
    tokens.clear();
    for (const char c : piece) tokens.push_back(static_cast<unsigned char>(c));
    read_tokens(model, context, tokens);
    done += piece.size();
  }
  return done;
}

std::string take_pending(Context& context) {
  TextStream stream;
  std::string text;
  for (const char byte : std::exchange(context.pending, {})) text += stream.push(byte);
  return text;
}

// Generation

const char* name_of(StopReason reason) {
  switch (reason) {
    case StopReason::length:
      return "length";
    case StopReason::stop:
      return "stop";
    case StopReason::end_of_text:
      return "end_of_text";
    case StopReason::interrupted:
      return "interrupted";
  }
  return "?";
}

Generation generate(nn::Model<float>& model, Context& context, const GenerateSettings& settings, bool keep,
                    const GenerateHooks& hooks) {
  check(settings.sampler);
  if (settings.max_tokens < 0) fail_usage("generate", "max-tokens: got {}, need >= 0", settings.max_tokens);
  TextStream stream(settings.stop);
  Generation result;
  const auto give = [&](const std::string& text) {
    result.text += text;
    if (!text.empty() && hooks.text) hooks.text(text);
  };
  begin(model, context, false);
  for (const char byte : std::exchange(context.pending, {}))
    if (!stream.stopped()) give(stream.push(byte));
  if (stream.stopped()) result.reason = StopReason::stop;

  while (!stream.stopped() && static_cast<std::int64_t>(result.tokens.size()) < settings.max_tokens) {
    if (asks(hooks.interrupted)) {
      result.reason = StopReason::interrupted;
      break;
    }
    const std::int32_t token =
        next_token(context.logits, context.history, settings.sampler, settings.seed, context.state.position());
    result.tokens.push_back(token);
    if (token == kSeparator) {
      result.reason = StopReason::end_of_text;
    } else {
      give(stream.push(static_cast<char>(token)));
      if (stream.stopped()) result.reason = StopReason::stop;
    }
    read_tokens(model, context, {&token, 1});
    if (token == kSeparator) break;
  }
  // At the end of a document nothing can follow that would complete a stop string.
  if (keep && result.reason != StopReason::end_of_text)
    context.pending = stream.held();
  else
    give(stream.finish());
  return result;
}

// Files

std::string fingerprint(nn::Model<float>& model) {
  XXH3_state_t* hash = XXH3_createState();
  if (hash == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(hash);
  const std::string config = nn::to_json(model.config()).dump();
  XXH3_128bits_update(hash, config.data(), config.size());
  for (const nn::Parameter<float>& parameter : model.parameters()) {
    XXH3_128bits_update(hash, parameter.name.data(), parameter.name.size() + 1);
    XXH3_128bits_update(hash, parameter.value.data(), parameter.value.size_bytes());
  }
  const XXH128_hash_t digest = XXH3_128bits_digest(hash);
  XXH3_freeState(hash);
  return fmt::format("{:016x}{:016x}", digest.high64, digest.low64);
}

namespace {

constexpr std::string_view kStatePrefix = "state.";

io::Element element_of(DType dtype) {
  return dtype == DType::f64 ? io::Element::F64 : dtype == DType::f32 ? io::Element::F32 : io::Element::BF16;
}

std::optional<DType> dtype_of_element(io::Element element) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
    if (element_of(dtype) == element) return dtype;
  return std::nullopt;
}

std::string metadata(const io::SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? "" : found->second;
}

}  // namespace

void save_context(const io::Path& path, nn::Model<float>& model, const Context& context) {
  const std::vector<nn::StateTensor> arrays = context.state.save();
  const std::span<const std::int32_t> history =
      std::span(context.history).last(std::min(context.history.size(), static_cast<std::size_t>(kMaxRepetitionWindow)));
  std::vector<io::TensorView> views;
  for (const nn::StateTensor& array : arrays)
    views.push_back({std::string(kStatePrefix) + array.name, element_of(array.dtype), array.shape, array.bytes});
  views.push_back(io::view_of<float>("logits", {static_cast<std::int64_t>(context.logits.size())}, context.logits));
  views.push_back({"history", io::Element::I32, {static_cast<std::int64_t>(history.size())}, std::as_bytes(history)});
  views.push_back({"pending",
                   io::Element::U8,
                   {static_cast<std::int64_t>(context.pending.size())},
                   std::as_bytes(std::span(context.pending))});
  io::write_safetensors(path, views,
                        {{"format", kContextFormat},
                         {"version", "1"},
                         {"fingerprint", fingerprint(model)},
                         {"family", model.config().family},
                         {"position", std::to_string(context.state.position())}});
}

Context load_context(const io::Path& path, nn::Model<float>& model) {
  const io::SafetensorsFile file = io::SafetensorsFile::open(path);
  if (metadata(file, "format") != kContextFormat || metadata(file, "version") != "1")
    fail("generate", "{}: not a saved context of version 1", file.name());
  if (metadata(file, "fingerprint") != fingerprint(model))
    fail("generate", "{}: the state belongs to another model ({}, or other weights)", file.name(),
         metadata(file, "family"));
  Context context = new_context(model);
  std::vector<nn::StateTensor> arrays;
  for (const io::TensorInfo& info : file.tensors()) {
    if (!info.name.starts_with(kStatePrefix)) {
      if (info.name != "logits" && info.name != "history" && info.name != "pending")
        fail("generate", "{}: unknown tensor \"{}\"", file.name(), info.name);
      continue;
    }
    // A tensor that is not of a float type cannot be part of a state; the model names the one it misses.
    if (const std::optional<DType> dtype = dtype_of_element(info.element))
      arrays.push_back({info.name.substr(kStatePrefix.size()), info.shape, *dtype, file.bytes(info.name)});
  }
  try {
    context.state = model.load_state(arrays);
  } catch (const Error& error) {
    fail("generate", "{}: {}", file.name(), error.what());
  }
  if (std::to_string(context.state.position()) != metadata(file, "position"))
    fail("generate", "{}: position {} contradicts the state's {}", file.name(), metadata(file, "position"),
         context.state.position());

  const std::vector<std::int64_t> vocab = {model.config().vocab_size};
  if (context.state.position() > 0) {
    file.expect("logits", vocab);
    context.logits = file.read_as<float>("logits");
  }
  const io::TensorInfo& history = file.info("history");
  if (history.element != io::Element::I32 || history.shape.size() != 1 || history.elements > kMaxRepetitionWindow)
    fail("generate", "{}: tensor \"history\" is {}, need I32 (n) with n <= {}", file.name(), io::describe(history),
         kMaxRepetitionWindow);
  context.history.resize(static_cast<std::size_t>(history.elements));
  file.bytes_into("history", std::as_writable_bytes(std::span(context.history)));
  for (const std::int32_t token : context.history)
    if (token < 0 || token >= vocab[0]) fail("generate", "{}: tensor \"history\" holds token {}", file.name(), token);
  const io::TensorInfo& pending = file.info("pending");
  if (pending.element != io::Element::U8 || pending.shape.size() != 1)
    fail("generate", "{}: tensor \"pending\" is {}, need U8 (n)", file.name(), io::describe(pending));
  context.pending.resize(static_cast<std::size_t>(pending.elements));
  file.bytes_into("pending", std::as_writable_bytes(std::span(context.pending)));
  return context;
}

}  // namespace loglinear::app
