#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "app/data.hpp"
#include "app/generate.hpp"
#include "io/safetensors.hpp"
#include "io/testing.hpp"
#include "io/utf8.hpp"
#include "loglinear/error.hpp"
#include "nn/families.hpp"

namespace loglinear::app {
namespace {

std::string push_all(TextStream& stream, const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) {
    if (stream.stopped()) break;
    const std::string piece = stream.push(byte);
    EXPECT_TRUE(io::is_utf8(piece));  // no piece ever ends inside a character
    text += piece;
  }
  return text;
}

TEST(TextStream, GivesBytesAtOnce) {
  TextStream stream;
  EXPECT_EQ(stream.push('a'), "a");
  EXPECT_EQ(stream.push('\n'), "\n");
  EXPECT_EQ(stream.held(), "");
}

TEST(TextStream, HoldsUnfinishedCharacters) {
  TextStream stream;
  EXPECT_EQ(stream.push('\xe2'), "");
  EXPECT_EQ(stream.push('\x82'), "");
  EXPECT_EQ(stream.held(), "\xe2\x82");
  EXPECT_EQ(stream.push('\xac'), "€");
  EXPECT_EQ(stream.push('\xf0'), "");
  EXPECT_EQ(stream.finish(), "");  // never half a character
}

TEST(TextStream, ReplacesMalformedBytes) {
  TextStream stream;
  EXPECT_EQ(push_all(stream, "a\xff\xc3(\x80z"), "a\uFFFD\uFFFD(\uFFFDz");
}

TEST(TextStream, NeverShowsAStopString) {
  TextStream stream({"</s>"});
  EXPECT_EQ(push_all(stream, "x <"), "x ");
  EXPECT_EQ(stream.held(), "<");
  EXPECT_EQ(push_all(stream, "/b></s>"), "</b>");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.held(), "");
}

TEST(TextStream, StopStringsThatOverlapThemselves) {
  TextStream stream({"aab"});
  EXPECT_EQ(push_all(stream, "aaaab"), "aa");
  EXPECT_TRUE(stream.stopped());
}

TEST(TextStream, TheFirstCompleteStopStringCountsAndTheLongestOfThose) {
  TextStream first({"abcd", "bc"});
  EXPECT_EQ(push_all(first, "xabcd"), "xa");
  TextStream longest({"c", "abc"});
  EXPECT_EQ(push_all(longest, "xabc"), "x");
}

TEST(TextStream, StopStringsOfSeveralByteCharacters) {
  TextStream stream({"é"});
  EXPECT_EQ(push_all(stream, "è"), "è");  // shares its first byte
  EXPECT_EQ(push_all(stream, "né"), "n");
  EXPECT_TRUE(stream.stopped());
}

TEST(TextStream, WhatWasHeldForAStopStringComesOutAtTheEnd) {
  TextStream stream({"end."});
  EXPECT_EQ(push_all(stream, "the end"), "the ");
  EXPECT_EQ(stream.finish(), "end");
}

TEST(TextStream, AnEmptyStopStringIsAUsageError) {
  try {
    TextStream stream({"a", ""});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Error::Kind::usage);
  }
}

RC_GTEST_PROP(TextStream, IsTheTextBeforeTheFirstStop, ()) {
  const auto letters = rc::gen::container<std::string>(rc::gen::elementOf(std::string("abé")));
  const std::string text = *letters;
  std::vector<std::string> stop;
  for (const std::string& s : *rc::gen::container<std::vector<std::string>>(letters))
    if (!s.empty() && s.size() < 6) stop.push_back(s);
  // By definition: the shortest beginning of the text that ends with a stop string, less the longest such string.
  std::string want = text;
  bool stopped = false;
  for (std::size_t n = 1; n <= text.size() && !stopped; ++n)
    for (const std::string& s : stop)
      if (text.substr(0, n).ends_with(s)) {
        stopped = true;
        if (n - s.size() < want.size()) want = text.substr(0, n - s.size());
      }
  TextStream stream(stop);
  std::string got;
  for (const char byte : text)
    if (!stream.stopped()) got += stream.push(byte);
  RC_ASSERT(stream.stopped() == stopped);
  if (!stopped) {
    got += stream.finish();
    want = want.substr(0, io::whole_characters(want));
  }
  RC_ASSERT(got == io::replace_malformed(want));
}

// Models with random weights: what they say is noise, how they say it is what is tested.

nn::ModelConfig small_config(const std::string& family) {
  nn::ModelConfig config;
  config.family = family;
  config.hidden_size = 32;
  config.num_layers = 2;
  config.num_heads = 2;
  config.key_width = 16;
  config.value_width = 16;
  config.mlp_width = 32;
  config.initializer_range = 0.3;  // logits far from flat
  return config;
}

std::unique_ptr<nn::Model<float>> small_model(const std::string& family, std::uint64_t seed = 1) {
  auto model = std::make_unique<nn::Model<float>>(small_config(family));
  model->initialise(seed);
  return model;
}

class Generate : public ::testing::TestWithParam<std::string> {};

std::vector<std::string> causal_families() {
  std::vector<std::string> names = nn::family_names();
  std::erase_if(names, [](const std::string& name) { return !nn::find_family(name)->causal; });
  return names;
}

INSTANTIATE_TEST_SUITE_P(Families, Generate, ::testing::ValuesIn(causal_families()));

TEST(GenerateErrors, AModelThatIsNotCausalHasNoContext) {
  const auto model = small_model("mosa");
  try {
    new_context(*model);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("mosa has no streaming form: "), std::string::npos) << error.what();
  }
}

TEST_P(Generate, IsReproducibleAndStreamsItsText) {
  const auto model = small_model(GetParam());
  GenerateSettings settings;
  settings.max_tokens = 60;
  settings.seed = 5;
  std::string first;
  for (int run = 0; run < 2; ++run) {
    Context context = new_context(*model);
    read_text_into(*model, context, "Hello");
    std::string streamed;
    const Generation result =
        generate(*model, context, settings, false, {[&](std::string_view text) { streamed += text; }, {}});
    EXPECT_EQ(streamed, result.text);
    EXPECT_TRUE(io::is_utf8(result.text));
    EXPECT_FALSE(result.tokens.empty());
    EXPECT_EQ(context.state.position(), 6 + static_cast<std::int64_t>(result.tokens.size()));
    if (run == 1) EXPECT_EQ(result.text, first);
    first = result.text;
  }
}

TEST_P(Generate, CutAnywhereAndSavedGivesTheTextOfOneRun) {
  const auto model = small_model(GetParam());
  const io::TestFolder folder;
  GenerateSettings settings;
  settings.seed = 11;
  settings.sampler.temperature = 1;
  settings.sampler.repetition_penalty = 1.2;
  settings.stop = {"ab", "\n\n\n"};
  settings.max_tokens = 40;
  Context whole = new_context(*model);
  read_text_into(*model, whole, "A long prompt, read once.");
  const Generation one = generate(*model, whole, settings, false);

  for (const std::int64_t cut : {0, 1, 7, 20, 39}) {
    Context context = new_context(*model);
    read_text_into(*model, context, "A long prompt, read once.");
    settings.max_tokens = cut;
    const Generation before = generate(*model, context, settings, true);
    save_context(folder / "state", *model, context);
    Context loaded = load_context(folder / "state", *model);
    EXPECT_EQ(loaded.state.position(), context.state.position());
    settings.max_tokens = 40 - cut;
    Generation after;
    if (before.reason == StopReason::length) after = generate(*model, loaded, settings, false);
    std::vector<std::int32_t> tokens = before.tokens;
    tokens.insert(tokens.end(), after.tokens.begin(), after.tokens.end());
    EXPECT_EQ(tokens, one.tokens) << "cut at " << cut;
    EXPECT_EQ(before.text + after.text, one.text) << "cut at " << cut;
  }
}

TEST_P(Generate, WithoutASeparatorThePromptComesFirst) {
  const auto model = small_model(GetParam());
  Context with = new_context(*model), without = new_context(*model);
  without.separator = false;
  EXPECT_THROW(read_text_into(*model, without, ""), Error);
  EXPECT_THROW(generate(*model, without, {}, false), Error);
  read_text_into(*model, with, "ab");
  read_text_into(*model, without, "ab");
  EXPECT_EQ(with.history, (std::vector<std::int32_t>{kSeparator, 'a', 'b'}));
  EXPECT_EQ(without.history, (std::vector<std::int32_t>{'a', 'b'}));
}

TEST_P(Generate, StopsBeforeAStopString) {
  const auto model = small_model(GetParam());
  GenerateSettings settings;
  settings.max_tokens = 80;
  settings.seed = 2;
  Context context = new_context(*model);
  const Generation free = generate(*model, context, settings, false);
  ASSERT_GE(free.tokens.size(), 20u);
  std::string raw;
  for (const std::int32_t token : free.tokens) raw += static_cast<char>(token);
  settings.stop = {raw.substr(12, 3)};
  const std::string want = io::replace_malformed(raw.substr(0, raw.find(settings.stop[0])));
  context = new_context(*model);
  const Generation stopped = generate(*model, context, settings, false);
  EXPECT_EQ(stopped.reason, StopReason::stop);
  EXPECT_EQ(stopped.text, want);
}

TEST_P(Generate, AStateOfAnotherModelIsRefused) {
  const io::TestFolder folder;
  const auto model = small_model(GetParam()), other = small_model(GetParam(), 2);
  Context context = new_context(*model);
  read_text_into(*model, context, "text");
  save_context(folder / "state", *model, context);
  EXPECT_NO_THROW(load_context(folder / "state", *model));
  EXPECT_THROW(load_context(folder / "state", *other), Error);
  EXPECT_NE(fingerprint(*model), fingerprint(*other));
  EXPECT_EQ(fingerprint(*model), fingerprint(*small_model(GetParam())));
}

TEST_P(Generate, DamagedStatesAreErrors) {
  const io::TestFolder folder;
  const auto model = small_model(GetParam());
  Context context = new_context(*model);
  read_text_into(*model, context, "some text");
  save_context(folder / "state", *model, context);
  const io::SafetensorsFile file = io::SafetensorsFile::open(folder / "state");
  // Every tensor left out, and every tensor with one row less.
  for (const io::TensorInfo& damaged : file.tensors())
    for (const bool shrink : {false, true}) {
      std::vector<std::vector<std::byte>> bytes;
      std::vector<io::TensorView> views;
      bytes.reserve(file.tensors().size());
      for (const io::TensorInfo& info : file.tensors()) {
        bytes.push_back(file.bytes(info.name));
        io::TensorView view{info.name, info.element, info.shape, bytes.back()};
        if (info.name == damaged.name) {
          if (!shrink) continue;
          if (info.shape.empty() || info.shape[0] == 0) continue;
          view.bytes = view.bytes.first(view.bytes.size() / info.shape[0] * (info.shape[0] - 1));
          --view.shape[0];
        }
        views.push_back(view);
      }
      if (shrink && damaged.name == "history") continue;  // a shorter history is a history
      io::write_safetensors(folder / "damaged", views, file.metadata());
      EXPECT_THROW(load_context(folder / "damaged", *model), Error)
          << damaged.name << (shrink ? " shrunk" : " missing");
    }
}

TEST(GenerateText, TheSeparatorEndsTheText) {
  // A model that gives the separator all its probability: its last bias is the embedding of nothing, so the weights of
  // the output layer are set by hand instead.
  const auto model = small_model("log_linear_mamba2");
  for (const nn::Parameter<float>& parameter : model->parameters())
    if (parameter.name == "lm_head.weight") std::fill(parameter.value.begin(), parameter.value.end(), 0.0f);
  GenerateSettings settings;
  settings.sampler.temperature = 0;  // all logits are zero: the first token, which is the separator
  Context context = new_context(*model);
  const Generation result = generate(*model, context, settings, false);
  EXPECT_EQ(result.reason, StopReason::end_of_text);
  EXPECT_EQ(result.tokens, (std::vector<std::int32_t>{kSeparator}));
  EXPECT_EQ(result.text, "");
}

TEST(GenerateText, InterruptionEndsIt) {
  const auto model = small_model("log_linear_mamba2");
  GenerateSettings settings;
  settings.max_tokens = 1000000;
  Context context = new_context(*model);
  int asked = 0;
  const Generation result = generate(*model, context, settings, false, {{}, [&] { return ++asked > 3; }});
  if (result.reason != StopReason::end_of_text) {
    EXPECT_EQ(result.reason, StopReason::interrupted);
    EXPECT_EQ(result.tokens.size(), 3u);
  }
  EXPECT_EQ(read_text_into(*model, context, std::string(10000, 'x'), [] { return true; }), 0u);
}

TEST(GenerateText, OnlyByteModelsTakeText) {
  nn::ModelConfig config = small_config("log_linear_mamba2");
  config.vocab_size = 300;
  nn::Model<float> model(config);
  EXPECT_THROW(new_context(model), Error);
}

}  // namespace
}  // namespace loglinear::app
