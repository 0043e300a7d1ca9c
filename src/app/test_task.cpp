#include "app/task.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "base/random.hpp"
#include "io/utf8.hpp"
#include "loglinear/error.hpp"

namespace loglinear::app {
namespace {

using Int = std::int64_t;

// A text with characters of one to three bytes, two documents, a control character, and the words that needles are
// made of.
const Text& mixed_text() {
  static const Text text = [] {
    Random random(5, 6);
    const char* words[] = {"the ",  "Gr\u00fc\u00dfe ", "more ", "pike ", "\u20ac 12 ",
                           "of a ", "d\u00e9j\u00e0, ", "end.\n"};
    std::vector<std::string> documents(2);
    for (std::string& document : documents)
      for (int i = 0; i < 3000; ++i) document += words[random.below(8)] + std::to_string(random.below(1000));
    documents[0] += "\r\x01";
    return Text(documents);
  }();
  return text;
}

struct Made {
  Batch batch;
  std::vector<Answer> answers;

  std::string text(Int begin, Int end) const {
    std::string out;
    for (Int i = begin; i < end; ++i) out += static_cast<char>(batch.tokens[i]);
    return out;
  }
  // What has to follow at the answer, as text.
  std::string asked(const Answer& answer) const {
    std::string out;
    for (Int i = answer.begin; i < answer.end; ++i) out += static_cast<char>(batch.targets[i]);
    return out;
  }
};

Made make(const Task& task, std::uint64_t seed, std::uint64_t index) {
  Made made;
  task.add_example(seed, index, made.batch, &made.answers);
  return made;
}

Made make(const TaskSettings& settings, std::uint64_t seed, std::uint64_t index) {
  return make(Task(settings), seed, index);
}

// Random settings that the task takes, smaller than the defaults as often as larger.
TaskSettings random_settings(const std::string& name, Random& random) {
  const auto between = [&](Int low, Int high) { return low + static_cast<Int>(random.below(high - low + 1)); };
  TaskSettings s;
  s.name = name;
  if (name.starts_with("mqar")) {
    s.vocab = between(4, 80);
    s.items = between(1, s.vocab / 2 - 1);
    s.min_length = 4 * s.items + between(0, 10);
    s.alpha = 0.01 + random.uniform() * 2;
  } else if (name == "copy" || name == "selective_copy") {
    s.vocab = between(4, 40);
    s.items = between(1, 20);
    s.min_length = 2 * s.items + between(0, 10);
  } else if (name == "induction") {
    s.vocab = between(3, 40);
    s.min_length = between(3, 60);
  } else if (name == "passkey") {
    s.digits = between(1, 18);
    s.min_length = 60 + s.digits * 2 + between(0, 200);
  } else if (name == "text_recall") {
    s.cue = between(5, 30);
    s.answer = between(1, 20);
    s.min_length = 2 * (s.cue + s.answer) + between(40, 200);
  } else {
    s.items = between(1, 6);
    s.values = between(1, 4);
    s.digits = between(2, 9);
    s.min_items = between(1, s.items);
    s.queries = between(1, s.min_items);
    s.min_length = s.items * s.values * (10 + s.digits) + s.queries * (12 + s.values * (1 + s.digits)) - 1 +
                   (random.below(3) ? between(0, 300) : 0);
  }
  s.length = s.min_length + between(0, 40);
  const bool no_depth = name.starts_with("mqar") || name == "copy" || name == "selective_copy";
  if (!no_depth && random.below(2)) s.depth = static_cast<double>(random.below(5)) / 4;
  return s;
}

void refused(const TaskSettings& settings, const std::string& beginning, const Text* text = nullptr,
             Error::Kind kind = Error::Kind::usage) {
  try {
    Task task(settings, text);
    ADD_FAILURE() << "accepted: " << beginning;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_EQ(std::string(error.what()).rfind("[task] " + beginning, 0), 0u) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

// Calls f(task, example) for many random settings of every task, with a text and without.
template <class F>
void for_many(F&& f) {
  for (const TaskInfo& info : task_list())
    for (std::uint64_t i = 0; i < 60; ++i) {
      Random random(i, 77);
      const TaskSettings s = random_settings(info.name, random);
      SCOPED_TRACE(std::string(info.name) + ", settings " + std::to_string(i));
      const Task task(s, info.needs_text || (info.bytes && i % 2) ? &mixed_text() : nullptr);
      for (std::uint64_t index = 0; index < 5; ++index) {
        f(task, make(task, 3, index));
        if (testing::Test::HasFatalFailure()) return;
      }
    }
}

TEST(Task, TheListHasEveryTaskOnce) {
  std::set<std::string> names;
  for (const TaskInfo& info : task_list()) {
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    EXPECT_EQ(find_task(info.name), &info);
    EXPECT_GT(std::string(info.help).size(), 10u);
    EXPECT_TRUE(info.bytes || !info.needs_text);
  }
  EXPECT_EQ(names, (std::set<std::string>{"mqar", "mqar_scattered", "passkey", "needle", "needle_multikey",
                                          "needle_multiquery", "needle_multivalue", "copy", "selective_copy",
                                          "induction", "text_recall"}));
  EXPECT_EQ(find_task("Mqar"), nullptr);
  EXPECT_EQ(find_task(""), nullptr);
}

TEST(Task, AnswersAreWhatStandsAtTheirEvidence) {
  for_many([](const Task& task, const Made& made) {
    const TaskSettings& s = task.settings();
    const auto length = static_cast<Int>(made.batch.tokens.size());
    ASSERT_GE(length, s.min_length);
    ASSERT_LE(length, s.length);
    ASSERT_EQ(made.batch.targets.size(), made.batch.tokens.size());
    ASSERT_EQ(made.batch.cu_seqlens, (std::vector<Int>{0, length}));
    for (const std::int32_t token : made.batch.tokens) ASSERT_TRUE(token >= 0 && token < task.vocab()) << token;
    std::vector<bool> in_answer(made.batch.tokens.size());
    Int end = 0, scored = 0;
    ASSERT_FALSE(made.answers.empty());
    for (const Answer& answer : made.answers) {
      ASSERT_EQ(answer.start, 0);
      ASSERT_GE(answer.begin, end);  // in order, apart
      ASSERT_GT(answer.end, answer.begin);
      ASSERT_LE(answer.end, length);
      ASSERT_GE(answer.evidence, 0);
      ASSERT_LE(answer.evidence + answer.end - answer.begin, answer.begin + 1);
      ASSERT_TRUE(answer.depth() >= 0 && answer.depth() <= 1);
      for (Int i = answer.begin; i < answer.end; ++i) {
        ASSERT_EQ(made.batch.targets[i], made.batch.tokens[answer.evidence + i - answer.begin]);
        // Teacher forcing: what had to follow does.
        if (i + 1 < answer.end) ASSERT_EQ(made.batch.targets[i], made.batch.tokens[i + 1]);
        in_answer[i] = true;
      }
      end = answer.end;
      scored += answer.end - answer.begin;
    }
    ASSERT_EQ(made.batch.scored, scored);
    for (Int i = 0; i < length; ++i)
      if (!in_answer[i]) ASSERT_EQ(made.batch.targets[i], -1);
  });
}

TEST(Task, EvidenceStandsAtTheDepth) {
  std::map<std::string, int> tried;
  for_many([&](const Task& task, const Made& made) {
    const TaskSettings& s = task.settings();
    if (s.depth < 0) return;
    ++tried[s.name];
    // Sentences can be put in within a 16th of the haystack or 32 bytes, and all of them may stand before this one.
    const auto before = static_cast<double>(made.answers[0].begin);
    const double reach =
        s.name == "induction" ? 2 : std::clamp(before / 16, 8.0, 32.0) + static_cast<double>(s.cue + s.answer);
    const double needles =
        static_cast<double>(std::max<Int>(1, s.items) * std::max<Int>(1, s.values) * (18 + s.digits));
    const double slack = reach + (s.digits > 0 ? needles : 0);
    for (const Answer& answer : made.answers) {
      EXPECT_NEAR(static_cast<double>(answer.evidence), s.depth * before, slack) << s.depth;
    }
  });
  EXPECT_EQ(tried.size(), 7u);  // all but mqar and the two that copy
  for (const auto& [name, examples] : tried) EXPECT_GT(examples, 50) << name;
}

// With room around it the depth is close, wherever the evidence is asked to be.
TEST(Task, DepthIsCloseInALongText) {
  for (const char* name : {"passkey", "needle", "text_recall", "induction"})
    for (const double depth : {0.0, 0.1, 0.5, 0.9, 1.0})
      for (const Text* text : {static_cast<const Text*>(nullptr), &mixed_text()}) {
        if (find_task(name)->needs_text && !text) continue;
        const Task task({.name = name, .length = 4096, .depth = depth}, text);
        for (std::uint64_t index = 0; index < 20; ++index)
          EXPECT_NEAR(make(task, 1, index).answers.at(0).depth(), depth, 0.035) << name;
      }
}

// Left alone, the evidence is anywhere, evenly.
TEST(Task, WithoutADepthItIsAnywhere) {
  for (const char* name : {"passkey", "needle", "text_recall", "induction", "needle_multikey"}) {
    const Task task({.name = name, .length = 1024}, find_task(name)->needs_text ? &mixed_text() : nullptr);
    constexpr int kExamples = 2000;
    std::vector<int> count(5);
    for (std::uint64_t index = 0; index < kExamples; ++index)
      ++count[std::min(4, static_cast<int>(5 * make(task, 1, index).answers.at(0).depth()))];
    // A fifth each, less the room that the question and the needle take at the ends; 5 standard deviations.
    for (const int n : count) EXPECT_NEAR(n, kExamples / 5, 0.03 * kExamples + 5 * std::sqrt(kExamples * 0.16)) << name;
  }
}

TEST(Task, IsAFunctionOfSettingsTextSeedAndIndex) {
  for (const TaskInfo& info : task_list()) {
    SCOPED_TRACE(info.name);
    const Text* text = info.needs_text ? &mixed_text() : nullptr;
    const Task task({.name = info.name, .length = 200, .min_length = 190}, text);
    const Made alone = make(task, 1, 5);
    EXPECT_EQ(alone.batch.tokens, make(Task(task.settings(), text), 1, 5).batch.tokens);
    EXPECT_NE(alone.batch.tokens, make(task, 1, 6).batch.tokens);
    EXPECT_NE(alone.batch.tokens, make(task, 2, 5).batch.tokens);
    EXPECT_NE(alone.batch.tokens, make(task, kHeldOutSeed, 5).batch.tokens);
    if (info.bytes && !info.needs_text)
      EXPECT_NE(alone.batch.tokens, make(Task(task.settings(), &mixed_text()), 1, 5).batch.tokens);

    // Whatever is in the batch already.
    Made both = make(task, 1, 6);
    const auto first = static_cast<Int>(both.batch.tokens.size()), length = static_cast<Int>(alone.batch.tokens.size());
    const std::size_t answers = both.answers.size();
    const Int scored = both.batch.scored;
    task.add_example(1, 5, both.batch, &both.answers);
    EXPECT_EQ(both.batch.cu_seqlens, (std::vector<Int>{0, first, first + length}));
    EXPECT_EQ(both.batch.scored, scored + alone.batch.scored);
    EXPECT_TRUE(std::equal(alone.batch.tokens.begin(), alone.batch.tokens.end(), both.batch.tokens.begin() + first));
    EXPECT_TRUE(std::equal(alone.batch.targets.begin(), alone.batch.targets.end(), both.batch.targets.begin() + first));
    ASSERT_EQ(both.answers.size(), answers + alone.answers.size());
    for (std::size_t i = 0; i < alone.answers.size(); ++i) {
      const Answer &a = alone.answers[i], &b = both.answers[answers + i];
      EXPECT_EQ(b.begin, a.begin + first);
      EXPECT_EQ(b.end, a.end + first);
      EXPECT_EQ(b.evidence, a.evidence + first);
      EXPECT_EQ(b.start, first);
      EXPECT_EQ(b.depth(), a.depth());
    }

    // The list of answers is for those who want it.
    Batch without;
    task.add_example(1, 5, without);
    EXPECT_EQ(without.tokens, alone.batch.tokens);
    EXPECT_EQ(without.scored, alone.batch.scored);
  }
}

TEST(Task, LengthsAndItemsAreDrawnFromTheirRanges) {
  const Task lengths({.name = "copy", .length = 12, .min_length = 8, .items = 3});
  const Task items({.name = "mqar", .length = 64, .vocab = 64, .items = 13, .min_items = 3});
  const Task keys({.name = "needle_multikey", .length = 400, .items = 8, .min_items = 2});
  std::map<Int, int> length, pairs, words;
  constexpr int kExamples = 2000;
  for (std::uint64_t index = 0; index < kExamples; ++index) {
    ++length[static_cast<Int>(make(lengths, 1, index).batch.tokens.size())];
    ++pairs[make(items, 1, index).batch.scored];
    const Made made = make(keys, 1, index);
    Int needles = 0;
    const std::string text = made.text(0, 400);
    for (std::size_t at = text.find(" is "); at != std::string::npos; at = text.find(" is ", at + 1)) {
      const char next = text[at + 4];
      needles += next >= '0' && next <= '9';
    }
    ++words[needles];
  }
  const auto even = [&](const std::map<Int, int>& counts, const std::set<Int>& values) {
    ASSERT_EQ(counts.size(), values.size());
    const double p = 1 / static_cast<double>(values.size());
    for (const auto& [value, count] : counts) {
      EXPECT_TRUE(values.contains(value)) << value;
      EXPECT_NEAR(count, p * kExamples, 5 * std::sqrt(kExamples * p * (1 - p))) << value;
    }
  };
  even(length, {8, 9, 10, 11, 12});
  even(pairs, {3, 6, 12});
  even(words, {2, 4, 8});
}

// ---- Recall

TEST(Task, RecallShowsEveryPairOnceAndAsksForEveryKeyOnce) {
  const TaskSettings tasks[] = {{.name = "mqar", .length = 4, .vocab = 4, .items = 1, .alpha = 0.01},
                                {.name = "mqar", .length = 9, .vocab = 5, .items = 1, .alpha = 1},
                                {.name = "mqar", .length = 60, .vocab = 32, .items = 15, .alpha = 0.01},
                                {.name = "mqar", .length = 128, .vocab = 256, .items = 16, .alpha = 0.1},
                                {.name = "mqar", .length = 31, .vocab = 64, .items = 7, .alpha = 2}};
  for (const TaskSettings& settings : tasks) {
    const Task task(settings);
    for (std::uint64_t index = 0; index < 200; ++index) {
      const Batch batch = make(task, 3, index).batch;
      ASSERT_EQ(static_cast<Int>(batch.tokens.size()), settings.length);
      ASSERT_EQ(batch.scored, settings.items);
      const Int half = settings.vocab / 2;
      std::map<std::int32_t, std::int32_t> value_of;
      std::set<std::int32_t> values;
      for (Int i = 0; i < 2 * settings.items; i += 2) {
        const std::int32_t key = batch.tokens[i], value = batch.tokens[i + 1];
        ASSERT_TRUE(key >= 1 && key < half) << key;
        ASSERT_TRUE(value >= half && value < 2 * half) << value;
        ASSERT_TRUE(value_of.emplace(key, value).second) << "key " << key << " is there twice";
        ASSERT_TRUE(values.insert(value).second) << "value " << value << " is there twice";
        ASSERT_EQ(batch.targets[i], -1);
        ASSERT_EQ(batch.targets[i + 1], -1);
      }
      std::set<std::int32_t> asked;
      for (Int i = 2 * settings.items; i < settings.length; ++i) {
        if (batch.targets[i] < 0) {
          ASSERT_EQ(batch.tokens[i], 0);  // filler
          continue;
        }
        ASSERT_EQ(i % 2, 0);
        ASSERT_TRUE(asked.insert(batch.tokens[i]).second);
        ASSERT_EQ(batch.targets[i], value_of.at(batch.tokens[i]));
      }
      ASSERT_EQ(static_cast<Int>(asked.size()), settings.items);
    }
  }
}

// One pair: the slot of its query follows the power law itself, keys and values are uniform.
TEST(Task, RecallDrawsFromThePowerLaw) {
  for (const double alpha : {0.01, 0.5, 1.0}) {
    const Task task(
        {.name = "mqar", .length = 22, .vocab = 18, .items = 1, .alpha = alpha});  // 10 slots, 8 keys, 9 values
    constexpr int kExamples = 40000;
    std::vector<double> slots(10), keys(9), values(9);
    for (int index = 0; index < kExamples; ++index) {
      const Batch batch = make(task, 7, static_cast<std::uint64_t>(index)).batch;
      ++keys[batch.tokens[0]];
      ++values[batch.tokens[1] - 9];
      for (int slot = 0; slot < 10; ++slot) slots[slot] += batch.targets[2 + 2 * slot] >= 0;
    }
    double norm = 0;
    for (int slot = 1; slot <= 10; ++slot) norm += std::pow(slot, alpha - 1);
    // Five standard deviations of a count.
    const auto near = [](double count, double p) {
      EXPECT_LE(std::abs(count - kExamples * p), 5 * std::sqrt(kExamples * p * (1 - p)));
    };
    for (int slot = 0; slot < 10; ++slot) near(slots[slot], std::pow(slot + 1, alpha - 1) / norm);
    for (int key = 1; key <= 8; ++key) near(keys[key], 1 / 8.0);
    for (const double count : values) near(count, 1 / 9.0);
    EXPECT_EQ(keys[0], 0);
  }
}

// The stream of random numbers and its use must stay: results that are published name a seed.
TEST(Task, RecallOfASeedStaysTheSame) {
  const Batch batch = make({.name = "mqar", .length = 16, .vocab = 16, .items = 3, .alpha = 0.5}, 1, 2).batch;
  EXPECT_EQ(batch.tokens, (std::vector<std::int32_t>{5, 9, 4, 11, 1, 12, 1, 0, 5, 0, 4, 0, 0, 0, 0, 0}));
  EXPECT_EQ(batch.targets, (std::vector<std::int32_t>{-1, -1, -1, -1, -1, -1, 12, -1, 9, -1, 11, -1, -1, -1, -1, -1}));
}

// Pairs anywhere, every key once more behind its pair, and nothing else but filler.
TEST(Task, ScatteredRecallAsksForEveryKeyAfterItsPair) {
  const TaskSettings tasks[] = {{.name = "mqar_scattered", .length = 4, .vocab = 4, .items = 1},
                                {.name = "mqar_scattered", .length = 61, .vocab = 33, .items = 15, .alpha = 0.01},
                                {.name = "mqar_scattered", .length = 300, .vocab = 256, .items = 16, .alpha = 2}};
  for (const TaskSettings& settings : tasks)
    for (std::uint64_t index = 0; index < 200; ++index) {
      const Made made = make(Task(settings), 3, index);
      const Int half = settings.vocab / 2;
      std::map<std::int32_t, Int> pair_at;
      std::set<std::int32_t> values, asked;
      for (Int i = 0; i < settings.length; i += 2) {
        const std::int32_t key = made.batch.tokens[i], value = i + 1 < settings.length ? made.batch.tokens[i + 1] : 0;
        if (key == 0) {
          ASSERT_EQ(value, 0);
          continue;
        }
        ASSERT_TRUE(key >= 1 && key < half) << key;
        if (made.batch.targets[i] < 0) {
          ASSERT_TRUE(pair_at.emplace(key, i).second) << key;
          ASSERT_TRUE(value >= half && value < 2 * half) << value;
          ASSERT_TRUE(values.insert(value).second) << value;
        } else {
          ASSERT_EQ(value, 0);
          ASSERT_TRUE(asked.insert(key).second) << key;
          ASSERT_EQ(made.batch.targets[i], made.batch.tokens[pair_at.at(key) + 1]);
        }
      }
      ASSERT_EQ(static_cast<Int>(asked.size()), settings.items);
      ASSERT_EQ(pair_at.size(), asked.size());
    }
}

// Two pairs in the four slots there are: the first pair's question is 1, 2 or 3 slots behind it, by the power law.
TEST(Task, ScatteredRecallHasThePowerLaw) {
  for (const double alpha : {0.01, 0.5, 1.0}) {
    const Task task({.name = "mqar_scattered", .length = 8, .vocab = 8, .items = 2, .alpha = alpha});
    constexpr int kExamples = 20000;
    std::vector<double> gaps(4);
    for (int index = 0; index < kExamples; ++index) {
      const Batch batch = make(task, 7, static_cast<std::uint64_t>(index)).batch;
      for (int slot = 1; slot < 4; ++slot) gaps[slot] += batch.tokens[2 * slot] == batch.tokens[0];
    }
    double norm = 0;
    for (int slot = 1; slot < 4; ++slot) norm += std::pow(slot, alpha - 1);
    for (int slot = 1; slot < 4; ++slot) {
      const double p = std::pow(slot, alpha - 1) / norm;
      EXPECT_NEAR(gaps[slot], p * kExamples, 5 * std::sqrt(kExamples * p * (1 - p))) << alpha << " " << slot;
    }
  }
}

TEST(Task, ItemsAndLengthsCanBeTied) {
  for (const char* name : {"mqar", "mqar_scattered", "copy", "selective_copy"}) {
    const Task task(
        {.name = name, .length = 40, .vocab = 64, .items = 8, .min_items = 1, .item_power = 1, .item_length = 6});
    constexpr int kExamples = 4000;
    std::map<Int, int> count;
    for (std::uint64_t index = 0; index < kExamples; ++index) {
      const Batch batch = make(task, 1, index).batch;
      EXPECT_EQ(static_cast<Int>(batch.tokens.size()), std::min<Int>(40, 6 * batch.scored)) << name;
      ++count[batch.scored];
    }
    // 1, 2, 4 and 8 as 8 : 4 : 2 : 1
    ASSERT_EQ(count.size(), 4u) << name;
    for (const auto& [items, examples] : count) {
      const double p = 8.0 / static_cast<double>(items) / 15;
      EXPECT_NEAR(examples, p * kExamples, 5 * std::sqrt(kExamples * p * (1 - p))) << name << " " << items;
    }
  }
  refused({.name = "mqar", .length = 64, .vocab = 64, .items = 8, .item_length = 3}, "item-length: got 3");
  refused({.name = "mqar", .length = 64, .vocab = 64, .items = 8, .item_length = 65}, "item-length: got 65");
  refused({.name = "mqar", .length = 64, .min_length = 40, .vocab = 64, .items = 8, .item_length = 4},
          "item-length: got 4, but min-length");
  refused({.name = "needle", .item_length = 40}, "item-length: got 40");
  refused({.name = "induction", .item_power = 1}, "item-power: got 1");
  refused({.name = "mqar", .items = 8, .item_power = 1}, "item-power: got 1, but min-items is missing");
  refused({.name = "mqar", .items = 8, .min_items = 1, .item_power = -1}, "item-power: got -1");
  refused({.name = "mqar", .items = 8, .min_items = 1, .item_power = std::nan("")}, "item-power: got nan");
}

// ---- Needles

std::int64_t count(const std::string& text, const std::string& what) {
  std::int64_t n = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

TEST(Task, NeedlesTellEveryValueOnceAndAskForItsKey) {
  std::map<std::string, int> tried;
  for_many([&](const Task& task, const Made& made) {
    const TaskSettings& s = task.settings();
    if (s.digits == 0) return;
    ++tried[s.name];
    const Int values = std::max<Int>(1, s.values), queries = std::max<Int>(1, s.queries);
    ASSERT_EQ(static_cast<Int>(made.answers.size()), values * queries);
    const std::string text = made.text(0, static_cast<Int>(made.batch.tokens.size()));
    const std::string told = text.substr(0, text.find("\nQ: ", static_cast<std::size_t>(made.answers[0].begin) - 24));
    std::set<std::string> keys, numbers;
    for (Int q = 0; q < queries; ++q) {
      const Answer& first = made.answers[q * values];
      // The question is "\nQ: KEY? A:", then each value after a space.
      const std::string before = text.substr(0, first.begin);
      ASSERT_EQ(before.substr(before.size() - 4), "? A:");
      const std::size_t question = before.rfind("\nQ: ");
      const std::string key = before.substr(question + 4, before.size() - 8 - question);
      ASSERT_EQ(key.size(), s.name == "passkey" ? 12u : 4u) << key;
      ASSERT_TRUE(keys.insert(key).second) << key << " is asked for twice";
      ASSERT_EQ(count(told, key), values) << key << " in " << told;
      Int last = -1;
      for (Int i = 0; i < values; ++i) {
        const Answer& answer = made.answers[q * values + i];
        const std::string value = made.asked(answer);
        ASSERT_EQ(static_cast<Int>(value.size()), s.digits);
        ASSERT_EQ(value.find_first_not_of("0123456789"), std::string::npos) << value;
        ASSERT_TRUE(numbers.insert(value).second) << value << " is there twice";
        const std::string needle = key + " is " + value + ". ";
        ASSERT_EQ(count(told, needle), 1) << needle << " in " << told;
        ASSERT_EQ(static_cast<Int>(told.find(needle)), answer.evidence - static_cast<Int>(key.size()) - 4);
        ASSERT_GT(answer.evidence, last);  // in the order of the text
        last = answer.evidence;
        ASSERT_EQ(made.batch.tokens[answer.begin], ' ');
      }
    }
    // Nothing follows the last answer.
    ASSERT_EQ(made.answers.back().end, static_cast<Int>(text.size()));
  });
  EXPECT_EQ(tried.size(), 5u);
}

TEST(Task, DefaultsOfNeedles) {
  const auto of = [](const char* name) {
    const TaskSettings s = resolved({.name = name});
    return std::vector<Int>{s.items, s.queries, s.values, s.digits};
  };
  EXPECT_EQ(of("passkey"), (std::vector<Int>{0, 0, 0, 5}));
  EXPECT_EQ(of("needle"), (std::vector<Int>{1, 1, 1, 4}));
  EXPECT_EQ(of("needle_multikey"), (std::vector<Int>{4, 1, 1, 4}));
  EXPECT_EQ(of("needle_multiquery"), (std::vector<Int>{4, 4, 1, 4}));
  EXPECT_EQ(of("needle_multivalue"), (std::vector<Int>{1, 1, 4, 4}));
  for (const TaskInfo& info : task_list())
    if (!info.needs_text) EXPECT_NO_THROW(Task({.name = info.name, .length = 128})) << info.name;
}

// What is not a needle is the user's text, as it is but for control characters, and no character is cut.
TEST(Task, HaystackIsTheText) {
  std::string clean(mixed_text().stream.begin() + 1, mixed_text().stream.end());
  for (char& c : clean) c = c == '\0' ? '\n' : c == '\r' || c == '\x01' ? ' ' : c;
  const Task task({.name = "passkey", .length = 500}, &mixed_text());
  std::set<std::string> haystacks;
  for (std::uint64_t index = 0; index < 200; ++index) {
    const Made made = make(task, 1, index);
    const Answer& answer = made.answers.at(0);
    const std::string text = made.text(0, 500);
    EXPECT_TRUE(io::is_utf8(text)) << text;
    const std::string needle = "The pass key is " + made.asked(answer) + ". ";
    const std::size_t at = text.find(needle);
    ASSERT_NE(at, std::string::npos);
    std::string haystack = text.substr(0, text.rfind("\nQ: "));
    haystack.erase(at, needle.size());
    while (!haystack.empty() && haystack.back() == ' ') haystack.pop_back();
    EXPECT_NE(clean.find(haystack), std::string::npos) << haystack;
    EXPECT_NE(haystack[0] & 0xc0, 0x80) << "begins inside a character";
    haystacks.insert(haystack);
  }
  EXPECT_GT(haystacks.size(), 190u);  // from anywhere
  // A short text is repeated.
  const std::vector<std::string> documents{"abc def "};
  const Text small(documents);
  const std::string text = make(Task({.name = "passkey", .length = 300}, &small), 1, 1).text(0, 300);
  EXPECT_GT(count(text, "abc def \n"), 20);
}

// A text that holds many of the words that keys are made of: none of those is taken.
TEST(Task, KeysAreNoWordsOfTheText) {
  std::vector<std::string> documents(1);
  for (const char a : std::string("bdfgklm"))
    for (const char b : std::string("aeiou"))
      for (const char c : std::string("bdfgklmnprstvz"))
        for (const char d : std::string("aeiou")) documents[0] += std::string{a, b, c, d, ' '};
  const Text text(documents);
  const Task task({.name = "needle_multiquery", .length = 4096}, &text);
  for (std::uint64_t index = 0; index < 100; ++index) {
    const Made made = make(task, 1, index);
    const std::string whole = made.text(0, 4096);
    for (const Answer& answer : made.answers) {
      const std::string key = made.text(answer.evidence - 8, answer.evidence - 4);
      EXPECT_EQ(count(whole, key), 2) << key;
    }
  }
}

TEST(Task, ATextThatHoldsTheQuestionIsRefused) {
  const std::vector<std::string> documents{"The pass key is here. "};
  const Text text(documents);
  const Task task({.name = "passkey", .length = 300}, &text);
  Batch batch;
  std::vector<Answer> answers;
  EXPECT_THROW(task.add_example(1, 1, batch, &answers), Error);
  EXPECT_TRUE(batch.tokens.empty());
  EXPECT_TRUE(answers.empty());
}

// ---- Copying, induction, text

TEST(Task, CopyingRepeatsTheSymbolsInOrder) {
  for_many([](const Task& task, const Made& made) {
    const TaskSettings& s = task.settings();
    if (s.name != "copy" && s.name != "selective_copy") return;
    const auto length = static_cast<Int>(made.batch.tokens.size()), n = s.items, separator = length - n;
    ASSERT_EQ(static_cast<Int>(made.answers.size()), n);
    ASSERT_EQ(made.batch.tokens[separator], 1);
    std::vector<std::int32_t> symbols, asked;
    for (Int i = 0; i < separator; ++i) {
      ASSERT_NE(made.batch.tokens[i], 1);
      if (made.batch.tokens[i] != 0) symbols.push_back(made.batch.tokens[i]);
      if (s.name == "copy") ASSERT_EQ(made.batch.tokens[i] == 0, i >= n);
    }
    for (Int i = separator; i < length; ++i) asked.push_back(made.batch.targets[i]);
    ASSERT_EQ(symbols, asked);
  });
  // As many as fit: also in an example that is shorter than the longest.
  const Task task({.name = "copy", .length = 21, .min_length = 4});
  EXPECT_EQ(task.settings().items, 10);
  for (std::uint64_t index = 0; index < 100; ++index) {
    const Made made = make(task, 1, index);
    EXPECT_EQ(made.answers.size(), made.batch.tokens.size() / 2);
  }
  // Scattered: not always at the same places.
  std::set<Int> first;
  for (std::uint64_t index = 0; index < 100; ++index)
    first.insert(make({.name = "selective_copy", .length = 64, .items = 4}, 1, index).answers[0].evidence);
  EXPECT_GT(first.size(), 10u);
}

TEST(Task, InductionHasTheSpecialTokenTwice) {
  for_many([](const Task& task, const Made& made) {
    if (task.settings().name != "induction") return;
    const auto length = static_cast<Int>(made.batch.tokens.size());
    ASSERT_EQ(std::count(made.batch.tokens.begin(), made.batch.tokens.end(), 0), 2);
    ASSERT_EQ(made.batch.tokens[length - 1], 0);
    ASSERT_EQ(made.answers.size(), 1u);
    ASSERT_EQ(made.batch.tokens[made.answers[0].evidence - 1], 0);
    ASSERT_EQ(made.answers[0].begin, length - 1);
  });
}

TEST(Task, TextRecallShowsACueThatOccursOnce) {
  std::string clean(mixed_text().stream.begin() + 1, mixed_text().stream.end());
  for (char& c : clean) c = c == '\0' ? '\n' : c == '\r' || c == '\x01' ? ' ' : c;
  for_many([&](const Task& task, const Made& made) {
    const TaskSettings& s = task.settings();
    if (s.name != "text_recall") return;
    ASSERT_EQ(made.answers.size(), 1u);
    const Answer& answer = made.answers[0];
    ASSERT_EQ(answer.end, static_cast<Int>(made.batch.tokens.size()));
    const Int passage = answer.begin + 1 - s.cue - 2;
    const std::string cue = made.text(passage + 2, answer.begin + 1);
    ASSERT_EQ(made.text(passage, passage + 2), "\n\n");
    ASSERT_EQ(count(made.text(0, answer.begin + 1), cue), 2) << cue;
    ASSERT_EQ(made.text(answer.evidence - s.cue, answer.evidence), cue);
    std::string text = made.text(0, passage);
    ASSERT_TRUE(io::is_utf8(text)) << text;
    while (!text.empty() && text.back() == ' ') text.pop_back();
    ASSERT_NE(clean.find(text), std::string::npos) << text;
    ASSERT_NE(text[0] & 0xc0, 0x80);
  });
}

TEST(Task, TextRecallRefusesTextsThatCannotServe) {
  const TaskSettings s{.name = "text_recall", .length = 200};
  refused(s, "text_recall is made from a text");
  const std::vector<std::string> little{"a few bytes"}, same{std::string(1000, 'x')};
  const Text few(little), repeated(same);
  refused(s, "text_recall: the text has 11 bytes", &few, Error::Kind::failure);
  const Task task(s, &repeated);
  Batch batch;
  try {
    task.add_example(1, 1, batch);
    ADD_FAILURE() << "a text of one letter has no cue";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("repeats"), std::string::npos) << error.what();
  }
  EXPECT_TRUE(batch.tokens.empty());
}

// ---- Settings

TEST(Task, Chance) {
  EXPECT_DOUBLE_EQ(Task({.name = "mqar", .vocab = 100}).chance(), 1 / 50.0);
  EXPECT_DOUBLE_EQ(Task({.name = "copy", .vocab = 10}).chance(), 1 / 8.0);
  EXPECT_DOUBLE_EQ(Task({.name = "selective_copy", .vocab = 10}).chance(), 1 / 8.0);
  EXPECT_DOUBLE_EQ(Task({.name = "induction", .vocab = 10}).chance(), 1 / 9.0);
  EXPECT_DOUBLE_EQ(Task({.name = "passkey", .digits = 3}).chance(), 1e-3);
  EXPECT_DOUBLE_EQ(Task({.name = "needle_multivalue", .digits = 2}).chance(), 1e-2);
  EXPECT_DOUBLE_EQ(Task({.name = "text_recall", .answer = 2}, &mixed_text()).chance(), std::pow(2, -16));
}

TEST(Task, ResolvedSettingsStayAsTheyAre) {
  for (const TaskInfo& info : task_list()) {
    const TaskSettings s = resolved({.name = info.name});
    EXPECT_EQ(resolved(s), s) << info.name;
    EXPECT_EQ(s.length, 256) << info.name;
    EXPECT_EQ(s.min_length, 256) << info.name;
  }
  const TaskSettings recall = resolved({.name = "mqar"});
  EXPECT_EQ(recall.vocab, 8192);
  EXPECT_EQ(recall.items, 16);
  EXPECT_EQ(recall.alpha, 0.01);
}

TEST(Task, RefusesWhatCannotBe) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  refused({}, "there is no task \"\"");
  refused({.name = "mqarr"}, "there is no task \"mqarr\", only mqar, mqar_scattered, passkey");
  refused({.name = "mqar", .vocab = 3}, "vocab");
  refused({.name = "mqar", .vocab = -3}, "vocab: got -3");
  refused({.name = "mqar", .vocab = 32, .items = 16}, "items: got 16, need 1 to 15");
  refused({.name = "mqar", .items = -1}, "items: got -1");
  refused({.name = "mqar", .length = 63, .items = 16}, "length: got 63, need at least 64");
  refused({.name = "mqar", .length = Int{1} << 40}, "length");
  refused({.name = "mqar", .length = -1}, "length");
  refused({.name = "mqar", .alpha = -1}, "alpha");
  refused({.name = "mqar", .alpha = nan}, "alpha");
  refused({.name = "mqar", .depth = 0.5}, "depth: got 0.5, but mqar has no such setting");
  refused({.name = "mqar", .digits = 4}, "digits: got 4, but mqar has no such setting");
  refused({.name = "mqar", .length = 128, .min_length = 129}, "min-length: got 129");
  refused({.name = "mqar", .length = 128, .min_length = 63, .items = 16}, "min-length: got 63, need at least 64");
  refused({.name = "mqar", .items = 8, .min_items = 9}, "min-items: got 9");
  refused({.name = "passkey", .vocab = 255}, "vocab");
  refused({.name = "passkey", .items = 2}, "items: got 2, but passkey has no such setting");
  refused({.name = "passkey", .digits = 19}, "digits");
  refused({.name = "passkey", .depth = 1.5}, "depth: got 1.5");
  refused({.name = "passkey", .depth = -0.5}, "depth: got -0.5");
  refused({.name = "passkey", .depth = nan}, "depth");
  refused({.name = "passkey", .alpha = 1}, "alpha");
  refused({.name = "passkey", .length = 47}, "length: got 47, need at least 48");
  EXPECT_NO_THROW(Task({.name = "passkey", .length = 48}));
  refused({.name = "needle", .length = 29}, "length: got 29, need at least 30");
  EXPECT_NO_THROW(Task({.name = "needle", .length = 30}));
  refused({.name = "needle", .queries = 2}, "queries: got 2, need 1 to 1");
  refused({.name = "needle_multikey", .items = 4, .min_items = 2, .queries = 3}, "queries: got 3");
  refused({.name = "needle_multikey", .items = 11, .digits = 1}, "items: got 11, need 1 to 10");
  refused({.name = "needle_multivalue", .values = 11, .digits = 1}, "values: got 11");
  refused({.name = "copy", .vocab = 3}, "vocab");
  refused({.name = "copy", .length = 9, .items = 5}, "items: got 5, need 1 to 4");
  refused({.name = "copy", .length = 1}, "length: got 1");
  refused({.name = "selective_copy", .length = 9, .items = 5}, "length: got 9, need at least 10");
  refused({.name = "induction", .length = 2}, "length: got 2, need at least 3");
  refused({.name = "induction", .vocab = 2}, "vocab");
  refused({.name = "induction", .cue = 3}, "cue");
  refused({.name = "text_recall", .length = 48}, "length: got 48, need at least 49", &mixed_text());
  refused({.name = "text_recall", .answer = -1}, "answer", &mixed_text());
  const Text empty;
  refused({.name = "passkey"}, "passkey: the text has 0 bytes", &empty, Error::Kind::failure);
}

}  // namespace
}  // namespace loglinear::app
