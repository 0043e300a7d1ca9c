#include "app/data.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <string>

#include "base/random.hpp"
#include "loglinear/error.hpp"

namespace loglinear::app {
namespace {

Text random_text() {
  std::vector<std::string> documents;
  Random random(3, 1);
  for (int i = 0; i < 40; ++i) {
    std::string document(random.below(90), 'a');
    for (char& c : document) c = static_cast<char>('a' + random.below(26));
    documents.push_back(document);
  }
  return Text(documents);
}

TEST(Text, IsOneStreamWithSeparators) {
  const std::vector<std::string> documents = {"ab", "", "c"};
  const Text text(documents);
  EXPECT_EQ(text.stream, (std::vector<std::uint8_t>{0, 'a', 'b', 0, 'c', 0}));
  EXPECT_EQ(text.bytes(), 3);
  EXPECT_EQ(text.documents(), 2);
  EXPECT_EQ(text.predictions(), 5);
  EXPECT_EQ(Text().bytes(), 0);
  EXPECT_TRUE(cut_pieces(Text(), Packing::documents, 4).empty());
}

TEST(Text, RefusesZeroBytesAndHashesBoundaries) {
  const std::vector<std::string> binary = {std::string("a\0b", 3)};
  EXPECT_THROW(Text{binary}, Error);
  const std::vector<std::string> one = {"ab", "c"}, other = {"a", "bc"};
  EXPECT_NE(Text(one).hash(), Text(other).hash());
  EXPECT_EQ(Text(one).hash(), Text(one).hash());
}

TEST(Pieces, EveryPositionIsOneTarget) {
  const Text text = random_text();
  for (const Packing packing : {Packing::documents, Packing::blocks})
    for (const std::int64_t seq_len : {1, 7, 16, 1000000}) {
      std::int64_t next = 0;
      for (const Piece& piece : cut_pieces(text, packing, seq_len)) {
        EXPECT_EQ(piece.begin, next);
        EXPECT_GE(piece.length, 1);
        EXPECT_LE(piece.length, seq_len);
        next = piece.begin + piece.length;
        if (packing == Packing::documents)  // a separator is the last target or none
          for (std::int64_t t = 0; t + 1 < piece.length; ++t) EXPECT_NE(text.stream[piece.begin + t + 1], kSeparator);
      }
      EXPECT_EQ(next, text.predictions());
    }
  EXPECT_THROW(cut_pieces(text, Packing::blocks, 0), Error);
}

TEST(Pieces, BlocksAreFullExceptTheLast) {
  const Text text = random_text();
  const auto pieces = cut_pieces(text, Packing::blocks, 64);
  for (std::size_t i = 0; i + 1 < pieces.size(); ++i) EXPECT_EQ(pieces[i].length, 64);
}

TEST(Batch, HoldsTokensTargetsAndBoundaries) {
  const std::vector<std::string> documents = {"ab", "c"};
  const Text text(documents);
  Batch batch;
  for (const Piece& piece : cut_pieces(text, Packing::documents, 8)) batch.add(text, piece);
  EXPECT_EQ(batch.tokens, (std::vector<std::int32_t>{0, 'a', 'b', 0, 'c'}));
  EXPECT_EQ(batch.targets, (std::vector<std::int32_t>{'a', 'b', 0, 'c', 0}));
  EXPECT_EQ(batch.cu_seqlens, (std::vector<std::int64_t>{0, 3, 5}));
  EXPECT_EQ(batch.scored, 5);
  batch.clear();
  batch.add(text, {0, 3}, false);
  EXPECT_EQ(batch.targets, (std::vector<std::int32_t>{'a', 'b', -1}));
  EXPECT_EQ(batch.scored, 2);
}

// The targets of an epoch, with how often each was seen.
std::map<std::int64_t, int> targets_of_epoch(BatchReader& reader, const Text& text, std::int64_t budget) {
  std::map<std::int64_t, int> seen;  // byte value -> count
  Batch batch;
  const std::int64_t epoch = reader.position().epoch;
  while (reader.position().epoch == epoch) {
    reader.next(batch);
    EXPECT_LE(static_cast<std::int64_t>(batch.tokens.size()), budget);
    EXPECT_FALSE(batch.tokens.empty());
    EXPECT_EQ(batch.cu_seqlens.back(), static_cast<std::int64_t>(batch.tokens.size()));
    for (const std::int32_t target : batch.targets) ++seen[target];
  }
  (void)text;
  return seen;
}

TEST(BatchReader, UsesEveryByteOnceAnEpoch) {
  const Text text = random_text();
  std::map<std::int64_t, int> all;
  for (std::size_t i = 1; i < text.stream.size(); ++i) ++all[text.stream[i]];
  for (const Packing packing : {Packing::documents, Packing::blocks}) {
    BatchReader reader(text, cut_pieces(text, packing, 20), 64, 5);
    for (int epoch = 0; epoch < 3; ++epoch) EXPECT_EQ(targets_of_epoch(reader, text, 64), all);
  }
}

TEST(BatchReader, IsAFunctionOfSeedAndPosition) {
  const Text text = random_text();
  const auto pieces = cut_pieces(text, Packing::documents, 20);
  BatchReader whole(text, pieces, 64, 5);
  std::vector<std::vector<std::int32_t>> tokens;
  for (int i = 0; i < 120; ++i) {
    // A reader that begins here gives the same batch.
    BatchReader here(text, pieces, 64, 5, whole.position());
    Batch a, b;
    whole.next(a);
    here.next(b);
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.targets, b.targets);
    EXPECT_EQ(a.cu_seqlens, b.cu_seqlens);
    EXPECT_EQ(whole.position(), here.position());
    tokens.push_back(a.tokens);
  }
  EXPECT_GT(whole.position().epoch, 1);
  // Epochs and seeds have orders of their own.
  const std::int64_t n = whole.batches_in_epoch(0);
  EXPECT_NE(tokens[0], tokens[n]);
  Batch other;
  BatchReader(text, pieces, 64, 6).next(other);
  EXPECT_NE(other.tokens, tokens[0]);
}

TEST(BatchReader, CountsBatches) {
  const Text text = random_text();
  BatchReader reader(text, cut_pieces(text, Packing::documents, 20), 64, 5);
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    std::int64_t batches = 0;
    Batch batch;
    while (reader.position().epoch == epoch) reader.next(batch), ++batches;
    EXPECT_EQ(reader.batches_in_epoch(epoch), batches);
  }
}

TEST(BatchReader, RefusesWhatCannotBe) {
  const Text text = random_text();
  const auto pieces = cut_pieces(text, Packing::blocks, 20);
  EXPECT_THROW(BatchReader(text, {}, 64, 5), Error);
  EXPECT_THROW(BatchReader(text, pieces, 19, 5), Error);
  EXPECT_THROW(BatchReader(text, pieces, 64, 5, {0, static_cast<std::int64_t>(pieces.size())}), Error);
  EXPECT_THROW(BatchReader(text, pieces, 64, 5, {-1, 0}), Error);
}

// About `part` of the sequences begin where every level that they are too short for is crossed inside of them.
TEST(Offsets, LetEveryLevelBeRead) {
  constexpr std::int64_t kLevels = 15;
  Batch batch;
  std::int64_t moved = 0, sequences = 0;
  std::map<int, int> crossed;  // level: sequences with two tokens that read each other through it
  for (std::uint64_t step = 0; step < 200; ++step) {
    batch.cu_seqlens = {0, 1, 1, 34, 100, 300};
    draw_offsets(batch, 0.5, kLevels, 7, step);
    ASSERT_EQ(batch.offsets.size(), 5u);
    EXPECT_EQ(batch.offsets[0], 0);  // one token reads itself only
    EXPECT_EQ(batch.offsets[1], 0);
    for (std::size_t n = 2; n < 5; ++n) {
      const std::int64_t T = batch.cu_seqlens[n + 1] - batch.cu_seqlens[n], first = batch.offsets[n];
      const int level = std::bit_width(static_cast<std::uint64_t>(first ^ (first + T - 1)));
      ++sequences;
      if (first == 0) continue;
      ++moved;
      ++crossed[level];
      EXPECT_GT(level, std::bit_width(static_cast<std::uint64_t>(T - 1)));
      EXPECT_LT(level, kLevels);
    }
  }
  EXPECT_GT(moved, 0.45 * static_cast<double>(sequences));
  EXPECT_LT(moved, 0.55 * static_cast<double>(sequences));
  for (int level = 10; level < kLevels; ++level) EXPECT_GT(crossed[level], 20) << level;
  // A function of seed and step, not of what was there before.
  const std::vector<std::int64_t> last = batch.offsets;
  draw_offsets(batch, 0.5, kLevels, 7, 198);
  EXPECT_NE(batch.offsets, last);
  draw_offsets(batch, 0.5, kLevels, 7, 199);
  EXPECT_EQ(batch.offsets, last);
  // Sequences that reach every level stay where they are, and so do all when nothing is to be moved.
  draw_offsets(batch, 1, 6, 7, 0);
  EXPECT_EQ(batch.offsets, std::vector<std::int64_t>(5, 0));
  draw_offsets(batch, 0, kLevels, 7, 0);
  EXPECT_EQ(batch.offsets, std::vector<std::int64_t>(5, 0));
}

// About `part` of each sequence is what it has read before; each token is its own number here, so that shows.
TEST(Repeats, ArePassagesFromBefore) {
  constexpr std::int64_t kSteps = 40;
  const std::vector<std::int64_t> cu_seqlens = {0, 1, 1, 18, 60, 1060, 5156};
  const auto make = [&](double part, std::uint64_t seed, std::uint64_t step) {
    Batch batch;
    batch.cu_seqlens = cu_seqlens;
    for (std::int32_t t = 0; t < cu_seqlens.back(); ++t)
      batch.tokens.push_back(t), batch.targets.push_back(t % 7 == 3 ? -1 : t + 1);
    draw_repeats(batch, part, seed, step);
    return batch;
  };
  for (const double part : {0.1, 0.5, 0.9}) {
    std::vector<std::int64_t> replaced(cu_seqlens.size() - 1, 0);
    std::map<int, int> back;  // digits of the distance: passages
    for (std::uint64_t step = 0; step < static_cast<std::uint64_t>(kSteps); ++step) {
      const Batch batch = make(part, 7, step);
      EXPECT_EQ(batch.cu_seqlens, cu_seqlens);
      for (std::size_t n = 0; n + 1 < cu_seqlens.size(); ++n) {
        const std::int64_t begin = cu_seqlens[n], end = cu_seqlens[n + 1];
        std::int64_t run = 0;  // of replaced tokens: one passage or several
        for (std::int64_t t = begin; t < end; ++t) {
          const std::int64_t token = batch.tokens[t];
          ASSERT_TRUE(token >= begin && token <= t) << token << " at " << t;
          if (token == t) {
            EXPECT_TRUE(run == 0 || run >= 16) << t;
            run = 0;
          } else if (run++ == 0 && n == 5 && part == 0.1) {
            ++back[std::bit_width(static_cast<std::uint64_t>(t - token))];
          }
          EXPECT_EQ(batch.targets[t], t % 7 == 3 ? -1 : t + 1 < end ? batch.tokens[t + 1] : t + 1);
          replaced[n] += token != t;
        }
      }
    }
    // Of 42 tokens the first 18 cannot be.
    for (std::size_t n = 3; n <= 5; ++n) {
      const std::int64_t T = cu_seqlens[n + 1] - cu_seqlens[n];
      const double got = static_cast<double>(replaced[n]) / static_cast<double>(kSteps * T);
      EXPECT_LT(got, 1.1 * part + 0.02) << T;
      EXPECT_GT(got, (T < 100 ? 0.35 : 0.9) * part - 0.02) << T;
    }
    if (part == 0.1)
      for (int digits = 7; digits <= 11; ++digits) EXPECT_GT(back[digits], 3) << digits;
  }
  EXPECT_EQ(make(0.3, 7, 1).tokens, make(0.3, 7, 1).tokens);
  EXPECT_NE(make(0.3, 7, 1).tokens, make(0.3, 7, 2).tokens);
  EXPECT_NE(make(0.3, 7, 1).tokens, make(0.3, 8, 1).tokens);
  for (const double part : {0.0, 1e-300}) {
    const Batch untouched = make(part, 7, 1);
    for (std::int32_t t = 0; t < cu_seqlens.back(); ++t) ASSERT_EQ(untouched.tokens[t], t);
  }
}

}  // namespace
}  // namespace loglinear::app
