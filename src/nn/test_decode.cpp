// Decoding: any way of cutting a text gives the logits of one pass, forks are independent, saved states come back.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "loglinear/error.hpp"
#include "nn/test_models.hpp"

namespace loglinear::nn {
namespace {

class Decode : public testing::TestWithParam<TestModel> {
 protected:
  template <class T>
  static std::vector<T> read(Model<T>& model, DecodeState& state, std::span<const std::int32_t> tokens) {
    std::vector<T> logits(static_cast<std::size_t>(model.config().vocab_size), T(std::nan("")));
    model.read(state, tokens, logits);
    return logits;
  }
  template <class T>
  static void expect_close(const std::vector<T>& a, const std::vector<T>& b, double tolerance, std::int64_t position) {
    double largest = 0;
    for (T x : b) largest = std::max(largest, std::abs(static_cast<double>(x)));
    for (std::size_t j = 0; j < a.size(); ++j)
      ASSERT_LE(std::abs(static_cast<double>(a[j]) - static_cast<double>(b[j])), tolerance * largest)
          << "logit " << j << " after " << position << " tokens";
  }

  // Token by token against one read of the whole prefix, pieces of many lengths against both, and all of them against
  // the training pass.
  template <class T>
  static void check_cuts(const ModelConfig& config, double tolerance) {
    Model<T> model(config);
    model.threads = 1;  // too small to share
    fill(model, 1);
    const std::int64_t N = 150;
    const Batch batch = make_batch(config, {N}, 2);
    const std::span<const std::int32_t> tokens(batch.tokens);
    std::vector<std::vector<T>> steps;
    DecodeState stepping = model.new_state();
    EXPECT_EQ(stepping.position(), 0);
    double loss = 0;
    for (std::int64_t t = 0; t < N; ++t) {
      steps.push_back(read(model, stepping, tokens.subspan(t, 1)));
      EXPECT_EQ(stepping.position(), t + 1);
      if (batch.targets[t] >= 0) loss += minus_log_p(steps.back(), batch.targets[t]);
    }
    const double trained = model.loss(batch.tokens, batch.targets, batch.cu_seqlens, false);
    EXPECT_LE(std::abs(loss - trained), tolerance * trained);
    for (std::int64_t t : {1, 2, 3, 4, 5, 31, 63, 64, 65, 127, 128, 129, 150}) {
      DecodeState whole = model.new_state();
      expect_close(read(model, whole, tokens.first(t)), steps[t - 1], tolerance, t);
      // The rest in one piece, from a state cut at t.
      if (t < N) expect_close(read(model, whole, tokens.subspan(t)), steps[N - 1], tolerance, N);
    }
    for (const std::vector<std::int64_t>& cuts :
         {std::vector<std::int64_t>{1, 1, 2, 60, 1, 85}, {64, 64, 22}, {3, 3, 3, 3, 138}, {70, 1, 1, 78}}) {
      DecodeState state = model.new_state();
      std::int64_t at = 0;
      for (std::int64_t count : cuts) {
        const std::vector<T> logits = read(model, state, tokens.subspan(at, count));
        at += count;
        expect_close(logits, steps[at - 1], tolerance, at);
      }
      EXPECT_EQ(state.position(), N);
    }
  }
};

TEST_P(Decode, EveryCutGivesTheSameLogitsInFloat64) { check_cuts<double>(GetParam().config, 1e-11); }
TEST_P(Decode, EveryCutGivesTheSameLogitsInFloat32) { check_cuts<float>(GetParam().config, 2e-5); }

// Scoring from state to state is the training pass without backward, wherever it is cut; it leaves the state of read().
TEST_P(Decode, ScoreIsTheLossOfOnePass) {
  Model<float> model(GetParam().config);
  fill(model, 5);
  constexpr std::int64_t kTokens = 2500;
  const Batch batch = make_batch(model.config(), {kTokens}, 6);
  const std::span<const std::int32_t> tokens(batch.tokens), targets(batch.targets);
  std::vector<float> whole(kTokens), parts(kTokens, std::nanf(""));
  const double loss = model.loss(tokens, targets, batch.cu_seqlens, false, 1.0, whole);
  DecodeState state = model.new_state(), reading = model.new_state();
  double sum = 0;
  for (std::int64_t at = 0; const std::int64_t count : {1, 70, 0, 2300, 129}) {
    sum +=
        model.score(state, tokens.subspan(at, count), targets.subspan(at, count), std::span(parts).subspan(at, count));
    at += count;
    ASSERT_EQ(state.position(), at);
  }
  EXPECT_NEAR(sum, loss, 1e-4 * loss);
  for (std::int64_t t = 0; t < kTokens; ++t) ASSERT_NEAR(parts[t], whole[t], 2e-3 * (1 + std::abs(whole[t]))) << t;
  read(model, reading, tokens);
  const std::vector<std::int32_t> next{tokens[0]};
  expect_close(read(model, state, next), read(model, reading, next), 1e-3, kTokens + 1);
}

// More tokens than read() takes at a time.
TEST_P(Decode, LongPrompt) {
  Model<float> model(GetParam().config);
  fill(model, 3);
  const Batch batch = make_batch(model.config(), {2500}, 4);
  const std::span<const std::int32_t> tokens(batch.tokens);
  DecodeState whole = model.new_state(), cut = model.new_state();
  const std::vector<float> logits = read(model, whole, tokens);
  read(model, cut, tokens.first(1234));
  expect_close(read(model, cut, tokens.subspan(1234)), logits, 1e-4, 2500);
}

TEST_P(Decode, ForksAreIndependent) {
  Model<float> model(GetParam().config);
  fill(model, 5);
  const Batch text = make_batch(model.config(), {80}, 6), other = make_batch(model.config(), {80}, 7);
  const std::span<const std::int32_t> tokens(text.tokens);
  DecodeState state = model.new_state();
  read(model, state, tokens.first(43));
  DecodeState fork = state, untouched = state;
  std::vector<float> alone;
  for (std::int64_t t = 43; t < 80; ++t) alone = read(model, untouched, tokens.subspan(t, 1));
  std::vector<float> forked, original;
  for (std::int64_t t = 43; t < 80; ++t) {
    forked = read(model, fork, std::span(other.tokens).subspan(t, 1));
    original = read(model, state, tokens.subspan(t, 1));
  }
  EXPECT_EQ(original, alone);
  EXPECT_NE(forked, alone);
  // Assigning replaces: the fork goes on as the other did.
  fork = untouched;
  EXPECT_EQ(read(model, fork, tokens.first(1)), read(model, state, tokens.first(1)));
  EXPECT_EQ(fork.position(), 81);
}

TEST_P(Decode, ThreadsDoNotChangeABit) {
  Model<float> model(GetParam().config);
  fill(model, 8);
  const Batch batch = make_batch(model.config(), {140}, 9);
  std::vector<float> first;
  for (int threads : {1, 2, 4}) {
    model.threads = threads;
    DecodeState state = model.new_state();
    read(model, state, std::span<const std::int32_t>(batch.tokens).first(139));
    const std::vector<float> logits = read(model, state, std::span<const std::int32_t>(batch.tokens).last(1));
    if (threads == 1) first = logits;
    EXPECT_EQ(logits, first) << threads;
  }
}

TEST_P(Decode, SavedStatesComeBack) {
  Model<float> model(GetParam().config);
  fill(model, 10);
  const Batch batch = make_batch(model.config(), {100}, 11);
  const std::span<const std::int32_t> tokens(batch.tokens);
  for (std::int64_t cut : {0, 1, 2, 37, 64}) {
    DecodeState state = model.new_state();
    if (cut > 0) read(model, state, tokens.first(cut));
    const std::vector<StateTensor> saved = state.save();
    std::size_t bytes = 0;
    for (const StateTensor& tensor : saved) bytes += tensor.bytes.size();
    EXPECT_EQ(bytes, state.bytes() + sizeof(double));  // all but the position
    DecodeState loaded = model.load_state(saved);
    EXPECT_EQ(loaded.position(), cut);
    for (std::int64_t t = cut; t < 100; ++t)
      ASSERT_EQ(read(model, loaded, tokens.subspan(t, 1)), read(model, state, tokens.subspan(t, 1)));
  }
}

TEST_P(Decode, LyingStatesAreRefused) {
  Model<float> model(GetParam().config);
  fill(model, 12);
  const Batch batch = make_batch(model.config(), {101}, 13);  // full chunks and open tokens
  DecodeState state = model.new_state();
  read(model, state, std::span<const std::int32_t>(batch.tokens));
  const std::vector<StateTensor> good = state.save();
  const auto refused = [&](const std::string& what, const std::vector<StateTensor>& tensors) {
    EXPECT_THROW(model.load_state(tensors), Error) << what;
  };
  refused("nothing", {});
  for (std::size_t i = 0; i < good.size(); ++i) {
    const std::string name = good[i].name;
    std::vector<StateTensor> bad = good;
    bad.erase(bad.begin() + static_cast<std::ptrdiff_t>(i));
    refused("without " + name, bad);
    bad = good;
    bad.push_back(good[i]);
    refused("twice " + name, bad);
    bad = good;
    bad[i].name += "x";
    refused("misnamed " + name, bad);
    bad = good;
    bad[i].dtype = good[i].dtype == DType::f64 ? DType::f32 : DType::f64;
    refused("dtype of " + name, bad);
    bad = good;
    bad[i].shape.push_back(1);
    refused("rank of " + name, bad);
    bad = good;
    bad[i].shape[0] += 1;
    refused("shape of " + name, bad);
    bad = good;
    bad[i].bytes.emplace_back();
    refused("a byte more in " + name, bad);
    if (!good[i].bytes.empty()) {
      bad = good;
      bad[i].bytes.pop_back();
      refused("a byte less in " + name, bad);
    }
    for (const double decay : {std::nan(""), HUGE_VAL}) {
      if (!name.ends_with(".log_decay")) continue;
      bad = good;
      std::memcpy(bad[i].bytes.data(), &decay, sizeof decay);
      refused("a decay in " + name, bad);
    }
  }
  for (double position : {-1.0, 0.5, 100.0, 102.0, 1e15, 9007199254740992.0, 1e300, 0.0 / 0.0, 1.0 / 0.0}) {
    // A window forgets how long the text was, so where it is full another position cannot be told from the truth.
    if (GetParam().config.family == "sliding_window" && position >= static_cast<double>(GetParam().config.window) &&
        position == std::floor(position) && position <= 0x1p53)
      continue;
    std::vector<StateTensor> bad = good;
    ASSERT_EQ(bad[0].name, "position");
    std::memcpy(bad[0].bytes.data(), &position, sizeof position);
    refused("position " + std::to_string(position), bad);
  }
  EXPECT_NO_THROW(model.load_state(good));
}

INSTANTIATE_TEST_SUITE_P(All, Decode, testing::ValuesIn(causal_test_models()), test_name);

TEST(DecodeErrors, AreThrownBeforeTheStateMoves) {
  Model<float> model(small_config("mamba2")), other(small_config("gated_deltanet"));
  Model<double> wide(small_config("mamba2"));
  model.initialise(1);
  DecodeState state = model.new_state(), foreign = other.new_state(), doubles = wide.new_state(), empty;
  std::vector<float> logits(13), few(12);
  const std::vector<std::int32_t> good{1, 2}, high{1, 13}, low{-1};
  EXPECT_THROW(model.read(state, high, logits), Error);
  EXPECT_THROW(model.read(state, low, logits), Error);
  EXPECT_THROW(model.read(state, {}, logits), Error);
  EXPECT_THROW(model.read(state, good, few), Error);
  EXPECT_THROW(model.score(state, good, high), Error);
  EXPECT_THROW(model.score(state, high, good), Error);
  EXPECT_THROW(model.score(state, good, low), Error);
  EXPECT_THROW(model.score(state, good, good, few), Error);
  EXPECT_THROW(model.score(foreign, good, good), Error);
  EXPECT_EQ(state.position(), 0);
  EXPECT_THROW(model.read(foreign, good, logits), Error);
  EXPECT_THROW(model.read(doubles, good, logits), Error);
  EXPECT_THROW(model.read(empty, good, logits), Error);
  EXPECT_EQ(empty.position(), 0);
  EXPECT_EQ(empty.bytes(), 0u);
  EXPECT_TRUE(empty.save().empty());
}

TEST(DecodeErrors, WithoutACausalMixerThereIsNoState) {
  const Model<float> model(small_config("mosa"));
  try {
    model.new_state();
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).rfind("[model] mosa has no streaming form: ", 0), 0u) << error.what();
  }
}

// What the whole idea is about: bytes of state at a position.
TEST(DecodeBytes, GrowWithTheSetBitsOnly) {
  ModelConfig config = small_config("log_linear_mamba2");
  config.num_levels = 15;
  Model<float> model(config);
  Model<float> transformer(small_config("transformer"));
  fill(model, 1);
  fill(transformer, 1);
  const Batch batch = make_batch(model.config(), {2049}, 2);
  std::vector<float> logits(13);
  const auto bytes = [&](Model<float>& m, std::size_t position) {
    DecodeState state = m.new_state();
    m.read(state, std::span(batch.tokens).first(position), logits);
    return state.bytes();
  };
  EXPECT_EQ(bytes(model, 2048), bytes(model, 1024));  // one set bit
  EXPECT_GT(bytes(model, 1984), bytes(model, 2048));  // five
  EXPECT_EQ(bytes(transformer, 2048), 2048 * bytes(transformer, 1));
}

}  // namespace
}  // namespace loglinear::nn
