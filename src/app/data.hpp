#pragma once
// Text for training and evaluation: one stream of byte tokens, cut into pieces and packed into batches. io/text.hpp
// reads and splits the documents.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace loglinear::app {

// The token between documents, and the one that a text begins with when a model reads it. Text never holds it: data
// with a zero byte is refused as binary.
inline constexpr std::uint8_t kSeparator = 0;

// Documents as one stream of byte tokens: a separator, the first document, a separator, the second document, ..., a
// separator. Position i of the stream predicts position i + 1.
struct Text {
  std::vector<std::uint8_t> stream{kSeparator};

  Text() = default;
  // Empty documents are left out. Throws Error when a document holds a separator.
  explicit Text(std::span<const std::string> documents);

  std::int64_t bytes() const { return predictions() - documents_; }  // of the documents, separators not counted
  std::int64_t documents() const { return documents_; }
  std::int64_t predictions() const { return static_cast<std::int64_t>(stream.size()) - 1; }
  std::uint64_t hash() const;  // XXH3 of the stream

 private:
  std::int64_t documents_ = 0;
};

enum class Packing {
  documents,  // a sequence never crosses a document's end
  blocks,     // contiguous blocks of the stream
};

// A sequence: tokens stream[begin, begin + length), targets stream[begin + 1, begin + length + 1).
struct Piece {
  std::int64_t begin = 0, length = 0;
  bool operator==(const Piece&) const = default;
};

// Cuts the stream into sequences of at most seq_len (>= 1) tokens, in the order of the stream. Every position of the
// stream but the first is the target of exactly one piece.
std::vector<Piece> cut_pieces(const Text& text, Packing packing, std::int64_t seq_len);

// The first `limit` (>= 1) bytes of the text, the last document cut where the limit falls.
Text beginning_of(const Text& text, std::int64_t limit);

// Packed sequences, as nn::Model::loss takes them.
struct Batch {
  std::vector<std::int32_t> tokens, targets;  // (N)
  std::vector<std::int64_t> cu_seqlens{0};    // (n + 1)
  std::int64_t scored = 0;                    // targets that are not -1
  std::vector<std::int64_t> offsets;          // empty, or (n) the position at which each sequence begins
  void clear();
  // end_of_document false: separators are not scored (target -1), so that the loss is about text bytes alone.
  void add(const Text& text, Piece piece, bool end_of_document = true);
};

// Lets about `part` of the sequences begin at a random position, so that a model of `levels` levels learns scales for
// those that its sequences are too short for: such a level is drawn, and the place in the sequence where its block
// ends. The others begin at 0. A pure function of the arguments.
void draw_offsets(Batch& batch, double part, std::int64_t levels, std::uint64_t seed, std::uint64_t step);

// Replaces about `part` (0 <= part < 1) of every sequence by passages of 16 to 128 tokens that it has read before, from
// as often one to two tokens further back as 1000 to 2000, so that it is worth while to remember what was read. Targets
// follow, but for those that are -1. A pure function of the arguments.
void draw_repeats(Batch& batch, double part, std::uint64_t seed, std::uint64_t step);

// Where a reader of batches stands.
struct DataPosition {
  std::int64_t epoch = 0;  // epochs begun before this one
  std::int64_t piece = 0;  // pieces taken from this epoch
  bool operator==(const DataPosition&) const = default;
};

// Endless batches over the pieces in an order that is a pure function of (seed, epoch): the position is all the state.
// Each batch takes pieces in order while they fit into batch_tokens; a batch never crosses the end of an epoch.
class BatchReader {
 public:
  // pieces: not empty, none longer than batch_tokens. text must outlive the reader.
  BatchReader(const Text& text, std::vector<Piece> pieces, std::int64_t batch_tokens, std::uint64_t seed,
              DataPosition position = {});
  // Writes the next batch and moves on.
  void next(Batch& batch);
  // The position, normalised: the end of an epoch is the beginning of the next.
  DataPosition position() const { return position_; }
  // Batches in an epoch, counted by walking it.
  std::int64_t batches_in_epoch(std::int64_t epoch) const;

 private:
  std::vector<std::int64_t> shuffled(std::int64_t epoch) const;
  // Pieces from order[begin] on that fit into one batch.
  std::int64_t fitting(const std::vector<std::int64_t>& order, std::int64_t begin) const;

  const Text& text_;
  std::vector<Piece> pieces_;
  std::vector<std::int64_t> order_;  // of the position's epoch
  std::int64_t batch_tokens_;
  std::uint64_t seed_;
  DataPosition position_;
};

}  // namespace loglinear::app
