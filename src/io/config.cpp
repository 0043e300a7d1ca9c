#include "io/config.hpp"

#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/error.hpp"
#include "io/utf8.hpp"

namespace loglinear::io {
namespace {

using nlohmann::json;

constexpr std::uint64_t kLargestConfig = std::uint64_t{16} << 20;

// An iterator that leaves behind how far it came: the parser's callbacks get no positions.
struct TrackedText {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at = nullptr;
  const char** furthest = nullptr;

  const char& operator*() const { return *at; }
  TrackedText& operator++() {
    *furthest = ++at;
    return *this;
  }
  bool operator==(const TrackedText& o) const { return at == o.at; }
  bool operator!=(const TrackedText& o) const { return at != o.at; }
};

// Builds the document, refusing keys given twice and deep nesting.
class Builder : public nlohmann::json_sax<json> {
 public:
  Builder(std::string_view text, const std::string& source, std::int64_t first_line)
      : text_(text), source_(source), first_line_(first_line), furthest_(text.data()) {}

  json run() {
    json::sax_parse(TrackedText{text_.data(), &furthest_}, TrackedText{text_.data() + text_.size(), &furthest_}, this);
    return std::move(root_);
  }

  bool null() override { return add(nullptr), true; }
  bool boolean(bool value) override { return add(value), true; }
  bool number_integer(std::int64_t value) override { return add(value), true; }
  bool number_unsigned(std::uint64_t value) override { return add(value), true; }
  bool number_float(double value, const std::string&) override { return add(value), true; }
  bool string(std::string& value) override { return add(std::move(value)), true; }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return stack_.pop_back(), true; }
  bool end_array() override { return stack_.pop_back(), true; }
  bool key(std::string& value) override {
    if (stack_.back()->contains(value))
      refuse(static_cast<std::size_t>(furthest_ - text_.data()), fmt::format("key {} given twice", in_quotes(value)));
    key_ = std::move(value);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const json::exception& error) override {
    // "[json.exception...] parse error at line 1, column 2: what is wrong; last read: ..." keep what is wrong.
    std::string message = error.what();
    if (const auto colon = message.find(": "); colon != message.npos) message.erase(0, colon + 2);
    if (const auto last = message.find("; last read"); last != message.npos) message.erase(last);
    std::string line;
    for (const char c : replace_malformed(message)) line += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    refuse(position, line);
  }

 private:
  static constexpr std::size_t kDeepest = 100;

  json* add(json value) {
    if (stack_.empty()) return &(root_ = std::move(value));
    json& parent = *stack_.back();
    if (parent.is_object()) return &(parent[key_] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }
  bool open(json value) {
    if (stack_.size() == kDeepest) refuse(static_cast<std::size_t>(furthest_ - text_.data()), "nested too deeply");
    // A parent grows only while it is on top, so pointers to those below stay good.
    stack_.push_back(add(std::move(value)));
    return true;
  }
  [[noreturn]] void refuse(std::size_t position, const std::string& message) const {
    // position counts the bytes read: the one that gave offence is the last of them.
    const std::string_view before = text_.substr(0, std::min(position > 0 ? position - 1 : 0, text_.size()));
    const auto lines = std::count(before.begin(), before.end(), '\n');
    const std::size_t begin = before.rfind('\n');
    fail("json", "{}:{}:{}: {}", source_, first_line_ + lines,
         before.size() - (begin == before.npos ? 0 : begin + 1) + 1, message);
  }

  std::string_view text_;
  const std::string& source_;
  std::int64_t first_line_;
  const char* furthest_;
  json root_;
  std::vector<json*> stack_;
  std::string key_;
};

json from_toml(const toml::node& node, const std::string& source) {
  if (const auto* table = node.as_table()) {
    json object = json::object();
    for (const auto& [key, value] : *table) object[std::string(key.str())] = from_toml(value, source);
    return object;
  }
  if (const auto* array = node.as_array()) {
    json list = json::array();
    for (const auto& value : *array) list.push_back(from_toml(value, source));
    return list;
  }
  if (const auto* value = node.as_string()) return value->get();
  if (const auto* value = node.as_integer()) return value->get();
  if (const auto* value = node.as_floating_point()) return value->get();
  if (const auto* value = node.as_boolean()) return value->get();
  fail("config", "{}:{}:{}: dates and times are not used here", source, node.source().begin.line,
       node.source().begin.column);
}

json parse_toml(const std::string& text, const std::string& source) {
  try {
    return from_toml(toml::parse(text, source), source);
  } catch (const toml::parse_error& error) {
    std::string line;
    for (const char c : replace_malformed(error.description())) line += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    fail("config", "{}:{}:{}: {}", source, error.source().begin.line, error.source().begin.column, line);
  }
}

// A value for a message.
std::string shown(const json& value) {
  if (value.is_number_float()) return fmt::format("{}", value.get<double>());
  if (value.is_string()) return in_quotes(value.get_ref<const std::string&>());
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, whole_characters(text.substr(0, 60))) + "...";
}

// Edit distance, two neighbours exchanged counting as one edit.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i)
    for (std::size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

std::string suggestion(std::string_view name, std::span<const std::string> known) {
  const std::string nearest = nearest_name(name, known);
  return nearest.empty() ? "" : fmt::format(" (did you mean {}?)", in_quotes(nearest));
}

}  // namespace

std::string nearest_name(std::string_view name, std::span<const std::string> known) {
  std::string best;
  if (name.size() > 200) return best;
  std::size_t least = name.size();
  for (const std::string& candidate : known) {
    const std::size_t edits = distance(name, candidate);
    if (edits < least && 3 * edits <= std::max(name.size(), candidate.size())) {
      least = edits;
      best = candidate;
    }
  }
  return best;
}

json parse_json(std::string_view text, const std::string& source, std::int64_t first_line) {
  return Builder(text, source, first_line).run();
}

json load_config(const Path& path) {
  const std::string source = path.string(), extension = path.extension().string();
  if (extension != ".toml" && extension != ".json")
    fail_usage("config", "{}: need a name that ends in .toml or .json", source);
  const std::string text = read_file(path, kLargestConfig);
  json config = extension == ".toml" ? parse_toml(text, source) : parse_json(text, source);
  if (!config.is_object()) fail("config", "{}: got {}, need an object", source, shown(config));
  return config;
}

ConfigReader::ConfigReader(json object, std::string source) : ConfigReader(std::move(object), std::move(source), "") {}

ConfigReader::ConfigReader(json object, std::string source, std::string path)
    : object_(std::move(object)), source_(std::move(source)), path_(std::move(path)) {
  if (!object_.is_object())
    fail_usage("config", "{}: {}got {}, need an object", source_, path_.empty() ? "" : path_ + ": ", shown(object_));
}

const json* ConfigReader::find(const std::string& key) {
  asked_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() ? nullptr : &*found;
}

bool ConfigReader::has(const std::string& key) { return find(key) != nullptr; }

namespace {

[[noreturn]] void refuse(const std::string& source, const std::string& key, const json& value,
                         const std::string& need) {
  fail_usage("config", "{}: {}: got {}, need {}", source, key, shown(value), need);
}

double checked_real(const std::string& source, const std::string& key, const json& value, double min, double max) {
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  if (!(std::isfinite(number) && number >= min && number <= max))
    refuse(source, key, value, fmt::format("a number from {} to {}", min, max));
  return number;
}

}  // namespace

bool ConfigReader::integer(const std::string& key, std::int64_t& value, std::int64_t min, std::int64_t max) {
  const json* found = find(key);
  if (!found) return false;
  bool good = false;
  std::int64_t number = 0;
  if (found->is_number_unsigned()) {
    const auto unsigned_number = found->get<std::uint64_t>();
    good = unsigned_number <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    number = good ? static_cast<std::int64_t>(unsigned_number) : 0;
  } else if (found->is_number_integer()) {
    good = true;
    number = found->get<std::int64_t>();
  } else if (found->is_number_float()) {
    const double real = found->get<double>();
    good = std::abs(real) <= 0x1p53 && real == std::floor(real);
    number = good ? static_cast<std::int64_t>(real) : 0;
  }
  if (!good || number < min || number > max)
    refuse(source_, path_of(key), *found, fmt::format("an integer from {} to {}", min, max));
  value = number;
  return true;
}

bool ConfigReader::integer(const std::string& key, int& value, int min, int max) {
  std::int64_t wide = value;
  const bool found = integer(key, wide, std::int64_t{min}, std::int64_t{max});
  value = static_cast<int>(wide);
  return found;
}

bool ConfigReader::real(const std::string& key, double& value, double min, double max) {
  const json* found = find(key);
  if (found) value = checked_real(source_, path_of(key), *found, min, max);
  return found;
}

bool ConfigReader::real(const std::string& key, float& value, double min, double max) {
  double wide = value;
  const bool found = real(key, wide, min, max);
  if (found) value = static_cast<float>(wide);
  return found;
}

bool ConfigReader::boolean(const std::string& key, bool& value) {
  const json* found = find(key);
  if (!found) return false;
  if (!found->is_boolean()) refuse(source_, path_of(key), *found, "true or false");
  value = found->get<bool>();
  return true;
}

bool ConfigReader::text(const std::string& key, std::string& value) {
  const json* found = find(key);
  if (!found) return false;
  if (!found->is_string()) refuse(source_, path_of(key), *found, "a text");
  value = found->get<std::string>();
  return true;
}

bool ConfigReader::choice(const std::string& key, std::string& value, std::span<const std::string> choices) {
  const json* found = find(key);
  if (!found) return false;
  const std::string given = found->is_string() ? found->get<std::string>() : "";
  if (!found->is_string() || std::find(choices.begin(), choices.end(), given) == choices.end())
    refuse(source_, path_of(key), *found,
           fmt::format("one of {}{}", fmt::join(choices, ", "), suggestion(given, choices)));
  value = given;
  return true;
}

bool ConfigReader::texts(const std::string& key, std::vector<std::string>& value) {
  const json* found = find(key);
  if (!found) return false;
  std::vector<std::string> list;
  if (found->is_string()) {
    list.push_back(found->get<std::string>());
  } else {
    if (!found->is_array()) refuse(source_, path_of(key), *found, "a list of texts");
    for (const json& item : *found) {
      if (!item.is_string()) refuse(source_, path_of(key), item, "a list of texts");
      list.push_back(item.get<std::string>());
    }
  }
  value = std::move(list);
  return true;
}

bool ConfigReader::reals(const std::string& key, std::vector<double>& value, double min, double max) {
  const json* found = find(key);
  if (!found) return false;
  if (!found->is_array()) refuse(source_, path_of(key), *found, "a list of numbers");
  std::vector<double> list;
  for (const json& item : *found) list.push_back(checked_real(source_, path_of(key), item, min, max));
  value = std::move(list);
  return true;
}

void ConfigReader::finish() const {
  for (const auto& [key, value] : object_.items()) {
    if (asked_.count(key)) continue;
    const std::vector<std::string> known(asked_.begin(), asked_.end());
    fail_usage("config", "{}: unknown key {}{}", source_, in_quotes(path_of(key)), suggestion(key, known));
  }
}

}  // namespace loglinear::io
