#pragma once
// Configuration files: TOML or JSON, read into one form, every key asked for by name, type and range.

#include <cstdint>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.hpp"

namespace loglinear::io {

// Reads a .toml or .json file (by extension) into one JSON object. Error, with "file:line:column" for syntax and keys
// given twice, when the file is missing, longer than 16 MiB, malformed, not an object, or holds TOML dates or times. An
// unknown extension is a usage error.
nlohmann::json load_config(const Path& path);

// Takes settings out of an object, one by one. Each call names a key, and replaces `value` when the object has it;
// `value` stays (the default) when not. A wrong type or a value out of range is a usage error that names source and
// key. At the end, finish() reports keys that nobody asked for.
//
//   ConfigReader config(load_config(path), path.string());
//   config.integer("steps", settings.steps, 1, 1'000'000'000);
//   config.real("learning_rate", settings.learning_rate, 0.0, 10.0);
//   config.section("model", [&](ConfigReader& model) { model.integer("layers", settings.layers, 1, 1000); });
//   config.finish();
class ConfigReader {
 public:
  // `source` is what messages call it, usually the path. Error (usage) when `object` is not an object.
  ConfigReader(nlohmann::json object, std::string source);

  // Does the object have the key? Counts as asking for it.
  bool has(const std::string& key);

  // Each gives whether the key was there. Bounds are inclusive. A real may be written as an integer; an integer may be
  // written as a real without fraction (1e6) up to 2^53. NaN and infinity are refused.
  bool integer(const std::string& key, std::int64_t& value, std::int64_t min, std::int64_t max);
  bool integer(const std::string& key, int& value, int min, int max);
  bool real(const std::string& key, double& value, double min, double max);
  bool real(const std::string& key, float& value, double min, double max);
  bool boolean(const std::string& key, bool& value);
  bool text(const std::string& key, std::string& value);
  // A text that must be one of a list; the message lists them and suggests the nearest.
  bool choice(const std::string& key, std::string& value, std::span<const std::string> choices);
  // A list of texts; a single text counts as a list of one.
  bool texts(const std::string& key, std::vector<std::string>& value);
  // A list of reals.
  bool reals(const std::string& key, std::vector<double>& value, double min, double max);

  // A nested object: read(ConfigReader&) asks for its keys, and keys it does not ask for are reported.
  template <class Read>
  bool section(const std::string& key, Read&& read) {
    const nlohmann::json* object = find(key);
    if (!object) return false;
    ConfigReader inner(*object, source_, path_of(key));
    read(inner);
    inner.finish();
    return true;
  }

  // The value as it is, of any type; nullptr when absent. Counts as asking for it.
  const nlohmann::json* find(const std::string& key);

  // Usage error for a key that was never asked for, with the nearest of those that were.
  void finish() const;

 private:
  ConfigReader(nlohmann::json object, std::string source, std::string path);
  std::string path_of(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }

  nlohmann::json object_;
  std::string source_, path_;
  std::set<std::string> asked_;
};

// The nearest of `known` to `name` by edit distance, empty when none is near (more than a third of the letters differ).
std::string nearest_name(std::string_view name, std::span<const std::string> known);

// Parses JSON text; `source` names it in errors, which give "source:line:column", lines counted from first_line. Keys
// given twice, nesting deeper than 100 and text that is not UTF-8 are errors too.
nlohmann::json parse_json(std::string_view text, const std::string& source, std::int64_t first_line = 1);

}  // namespace loglinear::io
