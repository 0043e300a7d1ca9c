#pragma once
// Synthetic tasks that ask a model for something it has read before: sequences of tokens, a few of whose targets are
// scored. docs/tasks.md shows an example of each.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "app/data.hpp"

namespace loglinear::app {

// The one list of tasks.
struct TaskInfo {
  const char* name;
  const char* help;  // one line
  bool bytes;        // tokens are the bytes of a text (vocabulary 256), which can be read and shown as such
  bool needs_text;   // is made from a text of the user's; other byte tasks take it as their haystack when there is one
};
std::span<const TaskInfo> task_list();
const TaskInfo* find_task(std::string_view name);  // null when there is none
std::vector<std::string> task_names();

// What a task is made of. 0 stands for the task's default, which resolved() fills in; a number that the task does not
// have has to be 0.
struct TaskSettings {
  std::string name;
  std::int64_t length = 0;      // tokens of an example, at most
  std::int64_t min_length = 0;  // the length of an example is uniform in [min_length, length]; default: length
  std::int64_t vocab = 0;       // mqar, copy, selective_copy, induction: tokens are 0 .. vocab - 1
  std::int64_t items = 0;       // pairs of mqar, symbols to copy, keys of a needle task
  // Items of an example: drawn from min_items, 2 min_items, ... up to items; default: items. n of them have a
  // probability proportional to n^-item_power.
  std::int64_t min_items = 0;
  double item_power = 0;
  std::int64_t item_length = 0;  // tokens for each item: an example of n items has n * item_length, at most length
  std::int64_t queries = 0;      // needle tasks: keys that are asked for, one after the other
  std::int64_t values = 0;       // needle tasks: values of a key, asked for together
  std::int64_t digits = 0;       // passkey and needle tasks: of a value
  std::int64_t cue = 0;          // text_recall: bytes that are shown again
  std::int64_t answer = 0;       // text_recall: bytes that have to follow
  double alpha = 0;              // mqar: of the power law of the gaps (see docs/tasks.md)
  double depth = -1;             // where what is asked for stands: 0 begin, 1 just before the question; -1: anywhere

  bool operator==(const TaskSettings&) const = default;
};

// The settings with every default filled in. Throws Error (usage) for an unknown name or numbers that are out of range
// or contradict each other.
TaskSettings resolved(const TaskSettings& settings);

// One thing that is asked for.
struct Answer {
  std::int64_t begin = 0, end = 0;  // positions of the batch whose targets are its tokens: all of them have to be right
  std::int64_t evidence = 0;        // position of the batch where the first of these tokens stood before
  std::int64_t start = 0;           // position of the batch where its example begins

  // 0: at the beginning of the example, 1: just before the question.
  double depth() const {
    return static_cast<double>(evidence - start) / static_cast<double>(std::max<std::int64_t>(1, begin - start));
  }
};

class Task {
 public:
  // text: of needs_text tasks, and the haystack of the other byte tasks, of no use to the rest; it must outlive the
  // task. Throws Error as resolved() does, and when the text is missing or too short.
  explicit Task(const TaskSettings& settings, const Text* text = nullptr);

  const TaskSettings& settings() const { return settings_; }  // resolved
  const TaskInfo& info() const { return *info_; }
  std::int64_t vocab() const { return settings_.vocab; }  // 256 for byte tasks
  double chance() const;  // accuracy of guessing among the values that an answer may have

  // Appends example `index` of `seed` to the batch as a sequence of its own, and its answers (in order of begin) to
  // `answers` when there is such a list: a pure function of the task, the seed and the index. Targets are -1 everywhere
  // but in answers. Examples of different indices are independent draws. Throws Error, with the batch as it was, when
  // the text repeats itself so much that nothing in it can be asked for.
  void add_example(std::uint64_t seed, std::uint64_t index, Batch& batch, std::vector<Answer>* answers = nullptr) const;

 private:
  TaskSettings settings_;
  const TaskInfo* info_ = nullptr;
  const Text* text_ = nullptr;
};

// The seed of examples that are held out: no training has it (their seeds are below 2^53).
inline constexpr std::uint64_t kHeldOutSeed = std::uint64_t{1} << 60;

// Powers of the largest distance are within the range of a double.
inline constexpr double kMostAlpha = 20;

// Calls f(name, reference, low, high, help) for every setting but the name, in the order of flags and files.
template <class Settings, class F>
void for_each_task_setting(Settings& s, F&& f) {
  f("length", s.length, 0.0, 1e9, "tokens of an example; 0: the task's");
  f("min-length", s.min_length, 0.0, 1e9, "lengths are uniform from here to the longest; 0: all have the longest");
  f("vocab", s.vocab, 0.0, 1e7,
    "mqar, mqar_scattered, copy, selective_copy, induction: tokens that there are; 0: the task's");
  f("items", s.items, 0.0, 1e7,
    "pairs of mqar and mqar_scattered, symbols to copy, keys of a needle task; 0: the task's");
  f("min-items", s.min_items, 0.0, 1e7, "items are drawn from this, twice this, ... up to --items; 0: always --items");
  f("item-power", s.item_power, 0.0, 10.0,
    "n items are drawn with probability ~ n^-this; 0: evenly, 1: as many answers of each n");
  f("item-length", s.item_length, 0.0, 1e7,
    "mqar, mqar_scattered, copy, selective_copy: tokens of an example for each of its items; 0: --min-length says");
  f("queries", s.queries, 0.0, 1e4, "needle tasks: keys that are asked for; 0: the task's");
  f("values", s.values, 0.0, 1e4, "needle tasks: values of a key; 0: the task's");
  f("digits", s.digits, 0.0, 18.0, "passkey and needle tasks: of a value; 0: the task's");
  f("cue", s.cue, 0.0, 1e6, "text_recall: bytes shown again; 0: 16");
  f("answer", s.answer, 0.0, 1e6, "text_recall: bytes that have to follow; 0: 8");
  f("alpha", s.alpha, 0.0, kMostAlpha,
    "mqar, mqar_scattered: power law of the gaps, small: most keys return soon, 1: uniform; 0: 0.01 and 1");
  f("depth", s.depth, -1.0, 1.0, "passkey, needle, text_recall, induction: where the evidence stands; -1: anywhere");
}

}  // namespace loglinear::app
