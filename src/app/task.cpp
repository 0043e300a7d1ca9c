#include "app/task.hpp"

#include <array>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <set>
#include <utility>

#include "base/error.hpp"
#include "base/random.hpp"
#include "io/utf8.hpp"

namespace loglinear::app {
namespace {

enum class Kind { mqar, needle, copy, selective_copy, induction, text_recall, mqar_scattered };

// Beside TaskInfo: how it is made, and the default of every setting (0: the task does not have it).
struct Entry {
  TaskInfo info;
  Kind kind;
  bool depth;
  std::int64_t vocab, items, queries, values, digits, cue, answer;
  double alpha;
};

constexpr std::int64_t kLength = 256;
constexpr std::int64_t kAsManyAsFit = -1;  // items of copy: half the length

constexpr Entry kEntries[] = {
    {{"mqar", "multi-query associative recall: pairs of key and value, later every key again", false, false},
     Kind::mqar,
     false,
     8192,
     16,
     0,
     0,
     0,
     0,
     0,
     0.01},
    {{"mqar_scattered", "the same with pairs everywhere: a key returns somewhere after its pair", false, false},
     Kind::mqar_scattered,
     false,
     8192,
     16,
     0,
     0,
     0,
     0,
     0,
     1},
    {{"passkey", "a text that tells a pass key somewhere and asks for it at the end", true, false},
     Kind::needle,
     true,
     256,
     0,
     0,
     0,
     5,
     0,
     0,
     0},
    {{"needle", "a text that tells the number of a word somewhere and asks for it at the end", true, false},
     Kind::needle,
     true,
     256,
     1,
     1,
     1,
     4,
     0,
     0,
     0},
    {{"needle_multikey", "the same with several words, one of which is asked for", true, false},
     Kind::needle,
     true,
     256,
     4,
     1,
     1,
     4,
     0,
     0,
     0},
    {{"needle_multiquery", "the same with several words, asked for one after the other", true, false},
     Kind::needle,
     true,
     256,
     4,
     4,
     1,
     4,
     0,
     0,
     0},
    {{"needle_multivalue", "the same with one word that has several numbers, all asked for", true, false},
     Kind::needle,
     true,
     256,
     1,
     1,
     4,
     4,
     0,
     0,
     0},
    {{"copy", "symbols, a separator, then the same symbols again", false, false},
     Kind::copy,
     false,
     16,
     kAsManyAsFit,
     0,
     0,
     0,
     0,
     0,
     0},
    {{"selective_copy", "symbols scattered among filler, a separator, then the symbols in their order", false, false},
     Kind::selective_copy,
     false,
     16,
     16,
     0,
     0,
     0,
     0,
     0,
     0},
    {{"induction", "symbols, once a special token; at the end it comes again: what followed it?", false, false},
     Kind::induction,
     true,
     16,
     0,
     0,
     0,
     0,
     0,
     0,
     0},
    {{"text_recall", "a passage of your text, then some bytes of it again: how did it go on?", true, true},
     Kind::text_recall,
     true,
     256,
     0,
     0,
     0,
     0,
     16,
     8,
     0},
};
constexpr std::size_t kTasks = std::size(kEntries);

constexpr auto kInfos = [] {
  std::array<TaskInfo, kTasks> infos{};
  for (std::size_t i = 0; i < kTasks; ++i) infos[i] = kEntries[i].info;
  return infos;
}();

const Entry* find_entry(std::string_view name) {
  for (const Entry& entry : kEntries)
    if (name == entry.info.name) return &entry;
  return nullptr;
}

const Entry& entry_of(const TaskInfo& info) { return *find_entry(info.name); }

constexpr std::int64_t kMostTokens = 1 << 24;

// Streams of random numbers, + index. That of mqar is older than the other tasks.
constexpr std::uint64_t kRecallStream = std::uint64_t{0x7265636c} << 32;
constexpr std::uint64_t kTaskStream = std::uint64_t{0x7461736b} << 32;  // + kind << 32
constexpr std::uint64_t kShapeStream = std::uint64_t{0x73686170}
                                       << 32;  // lengths and items, so that they shift nothing

std::uint64_t stream_of(Kind kind) {
  return kind == Kind::mqar ? kRecallStream : kTaskStream + (static_cast<std::uint64_t>(kind) << 32);
}

// ---- Pieces that several tasks are made of

std::int64_t below(Random& random, std::int64_t n) {
  return static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(n)));
}

// Uniform in 0 .. last, or at that part of it.
std::int64_t at_depth(Random& random, double depth, std::int64_t last) {
  return depth < 0 ? below(random, last + 1) : std::llround(depth * static_cast<double>(last));
}

// `count` distinct tokens of first .. first + range - 1 in random order.
std::vector<std::int32_t> distinct(Random& random, std::int64_t first, std::int64_t range, std::int64_t count) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(range));
  std::iota(tokens.begin(), tokens.end(), static_cast<std::int32_t>(first));
  for (std::int64_t i = 0; i < count; ++i) std::swap(tokens[i], tokens[i + below(random, range - i)]);
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

// `count` distinct numbers of 0 .. range - 1, drawn one after the other with probability proportional to
// (number + 1)^(alpha - 1) among those left. An exponential clock of that rate runs for each number; those that ring
// first are such a draw, in its order.
std::vector<std::int64_t> power_law(Random& random, std::int64_t range, std::int64_t count, double alpha) {
  std::vector<double> time(static_cast<std::size_t>(range));
  for (std::int64_t i = 0; i < range; ++i)
    time[i] = -std::log1p(-random.uniform()) * std::pow(static_cast<double>(i + 1), 1 - alpha);
  std::vector<std::int64_t> order(static_cast<std::size_t>(range));
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](std::int64_t a, std::int64_t b) { return time[a] != time[b] ? time[a] < time[b] : a < b; });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

// One of 0 .. count - 1, i with a probability proportional to 2^(-power i).
std::int64_t seldom(Random& random, std::int64_t count, double power) {
  const double step = std::exp2(-power);
  double sum = 0, share = 1;
  for (std::int64_t i = 0; i < count; ++i, share *= step) sum += share;
  double left = random.uniform() * sum;
  share = 1;
  for (std::int64_t i = 0; i + 1 < count; ++i, share *= step)
    if ((left -= share) < 0) return i;
  return count - 1;
}

// One example, positions counted from its beginning.
struct Example {
  explicit Example(std::int64_t length)
      : tokens(static_cast<std::size_t>(length), 0), targets(static_cast<std::size_t>(length), -1) {}

  std::vector<std::int32_t> tokens, targets;
  std::vector<Answer> answers;

  // The tokens from `evidence` on are asked for at position `begin` and those after it.
  void ask(std::int64_t begin, std::int64_t evidence, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) targets[begin + i] = tokens[evidence + i];
    answers.push_back({.begin = begin, .end = begin + count, .evidence = evidence, .start = 0});
  }
};

// A text of one byte more than the example: the last byte of the last answer is a target only.
Example from_text(const std::string& text) {
  Example example(static_cast<std::int64_t>(text.size()) - 1);
  for (std::size_t i = 0; i + 1 < text.size(); ++i) example.tokens[i] = static_cast<std::uint8_t>(text[i]);
  return example;
}

// ---- Tasks of tokens

// k_1 v_1 k_2 v_2 ... k_n v_n, then every key once more at a place of its own, and filler.
Example make_mqar(const TaskSettings& s, Random& random, std::int64_t length, std::int64_t n) {
  const std::int64_t half = s.vocab / 2;
  const std::vector<std::int32_t> keys = distinct(random, 1, half - 1, n), values = distinct(random, half, half, n);
  const std::vector<std::int64_t> slots = power_law(random, length / 2 - n, n, s.alpha);
  Example example(length);
  for (std::int64_t i = 0; i < n; ++i) {
    example.tokens[2 * i] = keys[i];
    example.tokens[2 * i + 1] = values[i];
  }
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t at = 2 * (n + slots[i]);
    example.tokens[at] = keys[i];
    example.ask(at, 2 * i + 1, 1);
  }
  std::sort(example.answers.begin(), example.answers.end(),
            [](const Answer& a, const Answer& b) { return a.begin < b.begin; });
  return example;
}

// Slots of two tokens, 2 n of them in use: a pair, and later its key once more. Gaps, counted in slots in use, have the
// power law.
Example make_scattered_mqar(const TaskSettings& s, Random& random, std::int64_t length, std::int64_t n) {
  const std::int64_t half = s.vocab / 2;
  const std::vector<std::int32_t> keys = distinct(random, 1, half - 1, n), values = distinct(random, half, half, n);
  std::vector<std::int32_t> slots = distinct(random, 0, length / 2, 2 * n);
  std::sort(slots.begin(), slots.end());
  std::vector<std::int64_t> open(slots.size());  // slots of the list that nothing stands in yet
  std::iota(open.begin(), open.end(), 0);
  Example example(length);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t question = power_law(random, static_cast<std::int64_t>(open.size()) - 1, 1, s.alpha)[0] + 1;
    const std::int64_t pair = 2 * slots[open.front()], again = 2 * slots[open[question]];
    open.erase(open.begin() + question);
    open.erase(open.begin());
    example.tokens[pair] = example.tokens[again] = keys[i];
    example.tokens[pair + 1] = values[i];
    example.ask(again, pair + 1, 1);
  }
  std::sort(example.answers.begin(), example.answers.end(),
            [](const Answer& a, const Answer& b) { return a.begin < b.begin; });
  return example;
}

// n symbols among filler (0), a separator (1), the symbols again. The last one is a target only.
Example make_copy(const TaskSettings& s, Random& random, std::int64_t length, std::int64_t n, bool scattered) {
  const std::int64_t separator = length - n;
  std::vector<std::int32_t> places;
  if (scattered) {
    places = distinct(random, 0, separator, n);
    std::sort(places.begin(), places.end());
  } else {
    places.resize(static_cast<std::size_t>(n));
    std::iota(places.begin(), places.end(), 0);
  }
  Example example(length);
  example.tokens[separator] = 1;
  for (std::int64_t i = 0; i < n; ++i) {
    const auto symbol = static_cast<std::int32_t>(2 + below(random, s.vocab - 2));
    example.tokens[places[i]] = symbol;
    if (i + 1 < n) example.tokens[separator + 1 + i] = symbol;
    example.ask(separator + i, places[i], 1);
  }
  return example;
}

// Symbols of 1 .. vocab - 1, the special token 0 among them and again at the end.
Example make_induction(const TaskSettings& s, Random& random, std::int64_t length) {
  Example example(length);
  for (std::int32_t& token : example.tokens) token = static_cast<std::int32_t>(1 + below(random, s.vocab - 1));
  const std::int64_t special = at_depth(random, s.depth, length - 3);
  example.tokens[special] = example.tokens[length - 1] = 0;
  example.ask(length - 1, special + 1, 1);
  return example;
}

// ---- Tasks of bytes

constexpr int kMostTries = 1000;

// Byte i of the text, which is read as a ring; separators between documents are line ends, other control characters
// spaces.
char text_byte(const Text& text, std::int64_t i) {
  const std::uint8_t byte = text.stream[1 + i % (static_cast<std::int64_t>(text.stream.size()) - 1)];
  if (byte == kSeparator) return '\n';
  return (byte < 32 && byte != '\n' && byte != '\t') || byte == 127 ? ' ' : static_cast<char>(byte);
}

bool inside_character(char c) { return (static_cast<std::uint8_t>(c) & 0xc0) == 0x80; }

// `count` bytes of the text from near a random place on, whole characters and spaces in the place of a last one that
// does not fit.
std::string excerpt(Random& random, const Text& text, std::int64_t count) {
  const std::int64_t bytes = static_cast<std::int64_t>(text.stream.size()) - 1;
  std::int64_t begin = below(random, bytes > count ? bytes - count + 1 : bytes);
  for (int i = 0; i < 3 && inside_character(text_byte(text, begin)); ++i) ++begin;
  std::string out(static_cast<std::size_t>(count), ' ');
  for (std::int64_t i = 0; i < count; ++i) out[i] = text_byte(text, begin + i);
  const std::size_t whole = io::whole_characters(out);
  std::fill(out.begin() + static_cast<std::ptrdiff_t>(whole), out.end(), ' ');
  return out;
}

constexpr const char* kSentences[] = {
    "The sky is clear.",
    "The grass is tall.",
    "A cat sleeps in the sun.",
    "Rain falls on the hills.",
    "The river runs to the sea.",
    "Birds sing in the morning.",
    "We walk along the road.",
    "The door is open.",
    "Bread is made of flour.",
    "The moon rises late.",
    "Old trees stand by the gate.",
    "The wind turns to the north.",
};

// Of `count` bytes, the last of which, if any, is a space: needles begin words and stand before the question.
std::string haystack_of(Random& random, const Text* text, std::int64_t count) {
  if (count == 0) return "";
  if (text) return excerpt(random, *text, count - 1) + ' ';
  // From the end, so that it is the first sentence that is cut.
  std::string out;
  std::int64_t last = -1;
  while (static_cast<std::int64_t>(out.size()) < count) {
    const auto sentences = static_cast<std::int64_t>(std::size(kSentences));
    // Never the same one twice in a row.
    last = last < 0 ? below(random, sentences) : (last + 1 + below(random, sentences - 1)) % sentences;
    out += kSentences[last];
    out += ' ';
  }
  return out.substr(out.size() - static_cast<std::size_t>(count));
}

// A place near `wanted` where a sentence can be put in: between two sentences where that is near, else between words,
// else between characters. 0 and the end are such places.
std::int64_t place_near(const std::string& haystack, std::int64_t wanted) {
  const auto size = static_cast<std::int64_t>(haystack.size());
  const std::int64_t reach = std::clamp<std::int64_t>(size / 16, 6, 32);
  const auto space = [&](std::int64_t i) { return haystack[i] == ' ' || haystack[i] == '\n'; };
  const auto nearest = [&](auto good) {
    for (std::int64_t r = 0; r <= reach; ++r)
      for (const std::int64_t p : {wanted - r, wanted + r})
        if (p >= 0 && p <= size && (p == 0 || p == size || good(p))) return p;
    return std::int64_t{-1};
  };
  std::int64_t place = nearest([&](std::int64_t p) {
    return haystack[p - 1] == '\n' || (p > 1 && space(p - 1) && std::string_view(".!?").find(haystack[p - 2]) < 3);
  });
  if (place < 0) place = nearest([&](std::int64_t p) { return space(p - 1); });
  if (place < 0) place = nearest([&](std::int64_t p) { return !inside_character(haystack[p]); });
  return place < 0 ? wanted : place;
}

constexpr std::string_view kConsonants = "bdfgklmnprstvz", kVowels = "aeiou";
constexpr std::int64_t kKeys = 14 * 5 * 14 * 5;
constexpr std::int64_t kKeyBytes = 4;

std::string key_word(std::int64_t i) {
  std::string word(kKeyBytes, ' ');
  for (std::size_t at = 0; at < kKeyBytes; ++at) {
    const std::string_view letters = at % 2 ? kVowels : kConsonants;
    word[at] = letters[static_cast<std::size_t>(i) % letters.size()];
    i /= static_cast<std::int64_t>(letters.size());
  }
  return word;
}

constexpr std::string_view kPassKey = "The pass key";
constexpr std::string_view kIs = " is ", kStop = ". ", kQuestion = "\nQ: ", kAnswer = "? A:";

std::uint64_t power_of_ten(std::int64_t digits) {
  std::uint64_t power = 1;
  for (; digits > 0; --digits) power *= 10;
  return power;
}

// The parts of a text with `items` keys. passkey is the case of one.
struct NeedleShape {
  bool passkey;
  std::int64_t items, queries, values, digits;

  NeedleShape(const TaskSettings& s, std::int64_t n)
      : passkey(s.items == 0),
        items(std::max<std::int64_t>(1, n)),
        queries(std::max<std::int64_t>(1, s.queries)),
        values(std::max<std::int64_t>(1, s.values)),
        digits(s.digits) {}

  std::int64_t key_bytes() const { return passkey ? static_cast<std::int64_t>(kPassKey.size()) : kKeyBytes; }
  // "KEY is 1234. "
  std::int64_t needle_bytes() const {
    return key_bytes() + static_cast<std::int64_t>(kIs.size() + kStop.size()) + digits;
  }
  // "\nQ: KEY? A: 1234 5678"
  std::int64_t question_bytes() const {
    return static_cast<std::int64_t>(kQuestion.size() + kAnswer.size()) + key_bytes() + values * (1 + digits);
  }
  // Of an example without a haystack; the last digit is a target only.
  std::int64_t shortest() const { return items * values * needle_bytes() + queries * question_bytes() - 1; }
};

std::int64_t occurrences(std::string_view text, std::string_view what) {
  std::int64_t count = 0;
  for (std::size_t at = text.find(what); at != std::string_view::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

// Nothing when a key would stand in the text more often than it should.
std::string try_needles(const TaskSettings& s, const Text* text, Random& random, const NeedleShape& shape,
                        std::int64_t length, std::vector<std::array<std::int64_t, 2>>& asked) {
  const std::string haystack = haystack_of(random, text, length - shape.shortest());
  std::vector<std::string> keys;
  if (shape.passkey) {
    keys.emplace_back(kPassKey);
  } else {
    std::set<std::int64_t> seen;
    while (static_cast<std::int64_t>(keys.size()) < shape.items) {
      if (static_cast<std::int64_t>(seen.size()) == kKeys) return "";
      const std::int64_t i = below(random, kKeys);
      if (!seen.insert(i).second) continue;
      if (std::string word = key_word(i); haystack.find(word) == std::string::npos) keys.push_back(std::move(word));
    }
  }

  struct Needle {
    std::int64_t place, key;
    std::string value;
    std::int64_t evidence;
  };
  std::vector<Needle> needles;
  std::set<std::uint64_t> taken;
  for (std::int64_t key = 0; key < shape.items; ++key)
    for (std::int64_t i = 0; i < shape.values; ++i) {
      std::uint64_t value = 0;
      do value = random.below(power_of_ten(shape.digits));
      while (!taken.insert(value).second);
      const double depth = key < shape.queries ? s.depth : -1;
      const std::int64_t place =
          place_near(haystack, at_depth(random, depth, static_cast<std::int64_t>(haystack.size())));
      needles.push_back({place, key, fmt::format("{:0{}}", value, shape.digits), 0});
    }
  // Keys are asked for in their order, values in that of the text. What stands at one place stays in random order.
  std::stable_sort(needles.begin(), needles.end(), [](const Needle& a, const Needle& b) { return a.place < b.place; });

  std::string out;
  std::int64_t copied = 0;
  for (Needle& needle : needles) {
    out.append(haystack, copied, needle.place - copied);
    copied = needle.place;
    out.append(keys[needle.key]).append(kIs);
    needle.evidence = static_cast<std::int64_t>(out.size());
    out.append(needle.value).append(kStop);
  }
  out.append(haystack, copied);
  for (const std::string& key : keys)
    if (occurrences(out, key) != shape.values) return "";
  asked.clear();
  for (std::int64_t key = 0; key < shape.queries; ++key) {
    out.append(kQuestion).append(keys[key]).append(kAnswer);
    for (const Needle& needle : needles)
      if (needle.key == key) {
        asked.push_back({static_cast<std::int64_t>(out.size()), needle.evidence});
        out.append(" ").append(needle.value);
      }
  }
  return out;
}

Example make_needles(const TaskSettings& s, const Text* text, Random& random, std::int64_t length, std::int64_t n) {
  const NeedleShape shape(s, n);
  std::vector<std::array<std::int64_t, 2>> asked;  // position of the space before the answer, evidence
  for (int i = 0; i < kMostTries; ++i) {
    const std::string out = try_needles(s, text, random, shape, length, asked);
    if (out.empty()) continue;
    Example example = from_text(out);
    for (const auto& [begin, evidence] : asked) example.ask(begin, evidence, shape.digits);
    return example;
  }
  fail("task", "{}: the text holds what would be asked for wherever one looks", s.name);
}

constexpr std::string_view kBreak = "\n\n";  // between the passage and the cue

std::int64_t passage_bytes(const TaskSettings& s, std::int64_t length) {
  return length + 1 - static_cast<std::int64_t>(kBreak.size()) - s.cue - s.answer;
}

Example make_text_recall(const TaskSettings& s, const Text& text, Random& random, std::int64_t length) {
  const std::int64_t passage = passage_bytes(s, length), last = passage - s.cue - s.answer;
  const std::int64_t reach = std::max<std::int64_t>(8, last / 32);
  for (int i = 0; i < kMostTries; ++i) {
    std::string out = excerpt(random, text, passage);
    const std::int64_t wanted = at_depth(random, s.depth, last);
    for (std::int64_t r = 0; r <= reach; ++r)
      for (const std::int64_t at : {wanted - r, wanted + r}) {
        if (at < 0 || at > last || inside_character(out[at])) continue;
        const std::string cue = out.substr(at, s.cue), answer = out.substr(at + s.cue, s.answer);
        const std::string whole = out + std::string(kBreak) + cue;
        if (occurrences(whole, cue) != 2) continue;
        Example example = from_text(whole + answer);
        example.ask(static_cast<std::int64_t>(whole.size()) - 1, at + s.cue, s.answer);
        return example;
      }
  }
  fail("task", "{}: the text repeats itself: found no {} bytes that occur once in a passage of {}; try a longer cue",
       s.name, s.cue, passage);
}

}  // namespace

std::span<const TaskInfo> task_list() { return kInfos; }

const TaskInfo* find_task(std::string_view name) {
  for (const TaskInfo& info : kInfos)
    if (name == info.name) return &info;
  return nullptr;
}

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const TaskInfo& info : kInfos) names.emplace_back(info.name);
  return names;
}

TaskSettings resolved(const TaskSettings& settings) {
  const Entry* entry = find_entry(settings.name);
  if (!entry)
    fail_usage("task", "there is no task {}, only {}", io::in_quotes(settings.name), fmt::join(task_names(), ", "));
  TaskSettings s = settings;
  const auto need = [&](const char* name, auto value, auto low, auto high, const std::string& why) {
    if (!(value >= low && value <= high))
      fail_usage("task", "{}: got {}, need {} to {}{}", name, value, low, high, why);
  };
  // Fills in the default; a number that the task does not have has to be 0.
  const auto fill = [&](const char* name, auto& value, auto standard, auto low, auto high,
                        const std::string& why = "") {
    if (standard == 0) {
      if (value != 0) fail_usage("task", "{}: got {}, but {} has no such setting", name, value, s.name);
      return;
    }
    if (value == 0) value = standard;
    need(name, value, low, high, why);
  };
  using Int = std::int64_t;
  fill("length", s.length, kLength, Int{1}, kMostTokens);
  fill("min-length", s.min_length, s.length, Int{1}, s.length, ", the length");
  if (entry->info.bytes)
    fill("vocab", s.vocab, entry->vocab, Int{256}, Int{256}, ", the bytes");
  else
    fill("vocab", s.vocab, entry->vocab, Int{entry->kind == Kind::induction ? 3 : 4}, kMostTokens);
  fill("digits", s.digits, entry->digits, Int{1}, Int{18});
  fill("values", s.values, entry->values, Int{1}, Int{10'000});
  fill("cue", s.cue, entry->cue, Int{1}, Int{1'000'000});
  fill("answer", s.answer, entry->answer, Int{1}, Int{1'000'000});
  fill("alpha", s.alpha, entry->alpha, 1e-9, kMostAlpha);

  Int most_items = kMostTokens;
  std::string why;
  if (entry->kind == Kind::mqar || entry->kind == Kind::mqar_scattered) {
    most_items = s.vocab / 2 - 1;
    why = fmt::format(", the keys of a vocabulary of {}", s.vocab);
  } else if (entry->kind == Kind::copy) {
    most_items = s.length / 2;
    why = fmt::format(", half the length of {}", s.length);
    if (most_items == 0) fail_usage("task", "length: got {}, need at least 2, a symbol and the separator", s.length);
  } else if (entry->kind == Kind::needle) {
    most_items = kKeys / 2;
    if (const std::uint64_t numbers = power_of_ten(s.digits) / static_cast<std::uint64_t>(std::max(Int{1}, s.values));
        numbers < static_cast<std::uint64_t>(most_items)) {
      if (numbers == 0)
        fail_usage("task", "values: got {}, but there are only {} numbers of {} digits", s.values,
                   power_of_ten(s.digits), s.digits);
      most_items = static_cast<Int>(numbers);
      why = fmt::format(", as there are {} numbers of {} digits", power_of_ten(s.digits), s.digits);
    }
  }
  fill("items", s.items, entry->items == kAsManyAsFit ? most_items : entry->items, Int{1}, most_items, why);
  if (s.item_power != 0 && s.min_items == 0 && entry->items != 0)
    fail_usage("task", "item-power: got {}, but min-items is missing: all examples have as many", s.item_power);
  fill("min-items", s.min_items, s.items, Int{1}, s.items, ", the items");
  if (s.item_power != 0) {
    if (entry->items == 0) fail_usage("task", "item-power: got {}, but {} has no items", s.item_power, s.name);
    need("item-power", s.item_power, 0.0, 10.0, "");
  }
  if (s.item_length != 0) {
    if (entry->items == 0 || entry->info.bytes)
      fail_usage("task", "item-length: got {}, but {} has no such setting", s.item_length, s.name);
    if (s.min_length != s.length) fail_usage("task", "item-length: got {}, but min-length is given too", s.item_length);
    const bool pairs = entry->kind == Kind::mqar || entry->kind == Kind::mqar_scattered;
    need("item-length", s.item_length, Int{pairs ? 4 : 2}, s.length, ", the length");
  }
  fill("queries", s.queries, std::min(entry->queries, s.min_items), Int{1}, s.min_items, ", the keys that there are");

  if (entry->depth) {
    if (s.depth != -1) need("depth", s.depth, 0.0, 1.0, ", or -1: anywhere");
  } else if (s.depth != -1) {
    fail_usage("task", "depth: got {}, but {} has no such setting", s.depth, s.name);
  }

  // The shortest example has to hold the largest number of items.
  Int shortest = 1;
  std::string holds;
  switch (entry->kind) {
    case Kind::mqar:
    case Kind::mqar_scattered:
      shortest = 4 * s.items;
      holds = fmt::format("{} pairs: four tokens each", s.items);
      break;
    case Kind::copy:  // takes as many symbols as fit
      shortest = 2;
      holds = "a symbol and the separator";
      break;
    case Kind::selective_copy:
      shortest = 2 * s.items;
      holds = fmt::format("{} symbols twice", s.items);
      break;
    case Kind::induction:
      shortest = 3;
      holds = "the special token, a symbol and the special token";
      break;
    case Kind::needle: {
      const NeedleShape shape(s, s.items);
      shortest = shape.shortest();
      holds = fmt::format("{} sentences of {} bytes and {} questions of {}", shape.items * shape.values,
                          shape.needle_bytes(), shape.queries, shape.question_bytes());
      break;
    }
    case Kind::text_recall:
      shortest = 2 * (s.cue + s.answer) + static_cast<Int>(kBreak.size()) - 1;
      holds = fmt::format("a cue of {} bytes and an answer of {}, twice", s.cue, s.answer);
      break;
  }
  if (s.min_length < shortest)
    fail_usage("task", "{}: got {}, need at least {} to hold {}", s.min_length < s.length ? "min-length" : "length",
               s.min_length, shortest, holds);
  return s;
}

Task::Task(const TaskSettings& settings, const Text* text)
    : settings_(resolved(settings)), info_(find_task(settings_.name)), text_(info_->bytes ? text : nullptr) {
  if (!text_) {
    if (info_->needs_text) fail_usage("task", "{} is made from a text of yours: give it with --data", settings_.name);
    return;
  }
  const std::int64_t needed = info_->needs_text ? passage_bytes(settings_, settings_.length) : 1;
  if (text_->bytes() < needed)
    fail("task", "{}: the text has {} bytes, less than the {} of an example", settings_.name, text_->bytes(), needed);
}

double Task::chance() const {
  const auto one_of = [](double values, std::int64_t times) { return std::pow(values, static_cast<double>(-times)); };
  switch (entry_of(*info_).kind) {
    case Kind::mqar:
    case Kind::mqar_scattered:
      return one_of(static_cast<double>(settings_.vocab / 2), 1);
    case Kind::copy:
    case Kind::selective_copy:
      return one_of(static_cast<double>(settings_.vocab - 2), 1);
    case Kind::induction:
      return one_of(static_cast<double>(settings_.vocab - 1), 1);
    case Kind::needle:
      return one_of(10, settings_.digits);
    case Kind::text_recall:
      return one_of(256, settings_.answer);
  }
  return 0;
}

void Task::add_example(std::uint64_t seed, std::uint64_t index, Batch& batch, std::vector<Answer>* answers) const {
  const TaskSettings& s = settings_;
  const Kind kind = entry_of(*info_).kind;
  Random shape(seed, kShapeStream + index), random(seed, stream_of(kind) + index);
  std::int64_t length = s.min_length + below(shape, s.length - s.min_length + 1);
  std::int64_t items = s.items;
  if (items > 0) {
    std::int64_t steps = 0;
    while (s.min_items <= items >> (steps + 1)) ++steps;
    items = s.min_items << (s.item_power == 0 ? below(shape, steps + 1) : seldom(shape, steps + 1, s.item_power));
  }
  if (s.item_length > 0) length = std::min(s.length, items * s.item_length);

  Example example(0);
  switch (kind) {
    case Kind::mqar:
      example = make_mqar(s, random, length, items);
      break;
    case Kind::mqar_scattered:
      example = make_scattered_mqar(s, random, length, items);
      break;
    case Kind::copy:
      example = make_copy(s, random, length, std::min(items, length / 2), false);
      break;
    case Kind::selective_copy:
      example = make_copy(s, random, length, items, true);
      break;
    case Kind::induction:
      example = make_induction(s, random, length);
      break;
    case Kind::needle:
      example = make_needles(s, text_, random, length, items);
      break;
    case Kind::text_recall:
      example = make_text_recall(s, *text_, random, length);
      break;
  }
  const auto start = static_cast<std::int64_t>(batch.tokens.size());
  batch.tokens.insert(batch.tokens.end(), example.tokens.begin(), example.tokens.end());
  batch.targets.insert(batch.targets.end(), example.targets.begin(), example.targets.end());
  batch.cu_seqlens.push_back(static_cast<std::int64_t>(batch.tokens.size()));
  for (Answer& answer : example.answers) {
    batch.scored += answer.end - answer.begin;
    if (!answers) continue;
    answers->push_back({answer.begin + start, answer.end + start, answer.evidence + start, start});
  }
}

}  // namespace loglinear::app
