#pragma once
// Text for training and evaluation: read from files, kept as one stream of byte tokens, cut into pieces and batches.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace loglinear::app {

// The token between documents, and the one that a text begins with when a model reads it. Text never holds it: data
// with a zero byte is refused as binary.
inline constexpr std::uint8_t kSeparator = 0;

using Warn = std::function<void(const std::string&)>;

// Documents as one stream of byte tokens: a separator, the first document, a separator, the second document, ..., a
// separator. Position i of the stream predicts position i + 1.
struct Text {
  std::vector<std::uint8_t> stream;  // {separator} when there are no documents

  Text();
  void add(std::string_view document);  // empty documents are left out

  std::int64_t bytes() const;        // of the documents, separators not counted
  std::int64_t documents() const;    //
  std::int64_t predictions() const;  // stream.size() - 1: every byte and one separator a document
  std::uint64_t hash() const;        // of the stream

 private:
  std::int64_t documents_ = 0;
};

// Reads files, folders and JSON lines, in the order given; a folder recursively, sorted by path. Every file is one
// document, except that each line of a .jsonl or .ndjson file is an object whose string "text" is one document.
// In a folder, hidden files and folders, empty files and binary files (holding a zero byte) are left out, the last with
// one call of warn for the whole folder. Stops after max_bytes (0: no limit). Throws Error when a path does not exist,
// cannot be read, is empty, or is binary, when a JSON line is broken (naming file and line), and when no text is left.
Text read_text(const std::vector<std::filesystem::path>& paths, const Warn& warn = {}, std::int64_t max_bytes = 0);

// Cuts a fraction (0 <= fraction < 1) of the bytes off for validation: whole documents in an order drawn from the seed,
// the last of them as a tail. first: the rest, second: the held-out part; documents keep their order.
std::pair<Text, Text> split_text(const Text& text, double fraction, std::uint64_t seed);

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

// Packed sequences, as nn::Model::loss takes them.
struct Batch {
  std::vector<std::int32_t> tokens, targets;  // (N)
  std::vector<std::int64_t> cu_seqlens{0};    // (n + 1)
  std::int64_t scored = 0;                    // targets that are not -1
  void clear();
  // end_of_document false: separators are not scored (target -1), so that the loss is about text bytes alone.
  void add(const Text& text, Piece piece, bool end_of_document = true);
};

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
  // Batches in epoch `epoch`, counted by walking it.
  std::int64_t batches_in_epoch(std::int64_t epoch);

 private:
  void shuffle(std::int64_t epoch);

  const Text& text_;
  std::vector<Piece> pieces_;
  std::vector<std::int64_t> order_;  // of epoch shuffled_
  std::int64_t batch_tokens_, shuffled_ = -1;
  std::uint64_t seed_;
  DataPosition position_;
};

}  // namespace loglinear::app
