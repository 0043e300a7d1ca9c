#include "app/evaluate.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>

#include "base/error.hpp"
#include "nn/families.hpp"

namespace loglinear::app {

double Evaluation::perplexity() const { return std::exp2(bits_per_byte()); }

std::string future_warning(const nn::ModelConfig& config) {
  if (nn::find_family(config.family)->causal) return "";
  return config.family +
         " chooses among all tokens of a sequence: its loss sees the future and is not that of a language model";
}

namespace {

// A sequence, and the places [first, last) of it that are scored.
struct Scored {
  Piece piece;
  std::int64_t first = 0, last = 0;
};

// Sequences that begin at every `stride` bytes of a document. Blocks of `stride` bytes that as many of them hold as one
// of them has blocks are scored.
std::vector<Scored> overlapping(const Text& text, std::int64_t seq_len, std::int64_t stride) {
  if (stride < 1 || seq_len % stride != 0)
    fail_usage("evaluate", "stride: got {}, need what divides the length of a sequence, {}", stride, seq_len);
  std::vector<Scored> sequences;
  const std::int64_t places = seq_len / stride;
  for (const Piece& document : cut_pieces(text, Packing::documents, std::numeric_limits<std::int64_t>::max() / 2)) {
    const std::int64_t bytes = document.length - 1;  // the last target is the separator behind the document
    const std::int64_t windows = bytes < seq_len ? 0 : (bytes - seq_len) / stride + 1;
    if (windows < places) continue;
    for (std::int64_t i = 0; i < windows; ++i) {
      const std::int64_t first = std::max<std::int64_t>(places - 1 - i, 0), last = std::min(windows - i, places);
      sequences.push_back({{document.begin + i * stride, seq_len}, first * stride, last * stride});
    }
  }
  if (sequences.empty())
    fail_usage("evaluate", "stride: no document has the {} bytes that sequences of {} at every {} need",
               2 * seq_len - stride, seq_len, stride);
  return sequences;
}

std::vector<Scored> sequences_of(const Text& text, std::int64_t seq_len, std::int64_t stride) {
  if (text.bytes() == 0) fail("evaluate", "there is no text");
  if (stride != 0) return overlapping(text, seq_len, stride);
  std::vector<Scored> sequences;
  for (const Piece& piece : cut_pieces(text, Packing::documents, seq_len))
    sequences.push_back({piece, 0, piece.length});
  return sequences;
}

// Adds `length` tokens of a sequence, from its place `begin` on, to the batch.
void add(Batch& batch, const Text& text, const Scored& sequence, std::int64_t begin, std::int64_t length) {
  const std::size_t from = batch.tokens.size();
  batch.add(text, {sequence.piece.begin + begin, length}, false);
  for (std::int64_t i = 0; i < length; ++i) {
    if (begin + i >= sequence.first && begin + i < sequence.last) continue;
    std::int32_t& target = batch.targets[from + static_cast<std::size_t>(i)];
    if (target >= 0) --batch.scored;
    target = -1;
  }
}

std::int64_t length_of(const EvaluationOptions& options) {
  return options.seq_len > 0 ? options.seq_len : std::numeric_limits<std::int64_t>::max() / 2;
}

}  // namespace

void check_text(const Text& text, const EvaluationOptions& options) {
  sequences_of(text, length_of(options), options.stride);
}

Evaluation evaluate(nn::Model<float>& model, const Text& text, const EvaluationOptions& options) {
  if (model.config().vocab_size != 256)
    fail("evaluate", "the model has a vocabulary of {}, the text is read as 256 bytes", model.config().vocab_size);
  std::int64_t seq_len = length_of(options);
  if (!nn::find_family(model.config().family)->causal) seq_len = std::min(seq_len, options.batch_tokens);
  const std::vector<Scored> sequences = sequences_of(text, seq_len, options.stride);
  Evaluation result;
  result.documents = text.documents();
  std::int64_t all = text.bytes();
  if (options.stride != 0) {
    result.places = seq_len / options.stride;
    result.documents = all = 0;
    std::int64_t next = -1;  // where another sequence of the same document would begin
    for (const Scored& sequence : sequences) {
      all += sequence.last - sequence.first;
      result.documents += sequence.piece.begin != next;
      next = sequence.piece.begin + options.stride;
    }
  }

  const std::int64_t parts = options.bins_per_doubling;
  std::vector<EvaluationBin> bins(static_cast<std::size_t>(64 * parts));
  std::vector<float> losses;
  Batch batch;
  const auto count = [&](std::int64_t position, std::size_t t) {
    if (batch.targets[t] < 0) return;
    // Bins of positions with j binary digits are numbers j parts to (j + 1) parts - 1.
    const std::int64_t digits = std::bit_width(static_cast<std::uint64_t>(position));
    const std::int64_t low = digits == 0 ? 0 : std::int64_t{1} << (digits - 1);
    const std::int64_t part = (position - low) * parts / std::max<std::int64_t>(low, 1);
    EvaluationBin& bin = bins[digits * parts + part];
    ++bin.bytes;
    bin.bits += losses[t] / std::numbers::ln2;
  };
  for (std::size_t i = 0; i < sequences.size();) {
    if (sequences[i].piece.length > options.batch_tokens) {
      // Too long for one pass: a part at a time, from state to state.
      nn::DecodeState state = model.new_state();
      const Scored& whole = sequences[i++];
      for (std::int64_t begin = 0; begin < whole.piece.length; begin += options.batch_tokens) {
        batch.clear();
        add(batch, text, whole, begin, std::min(options.batch_tokens, whole.piece.length - begin));
        losses.assign(batch.tokens.size(), 0.0f);
        model.score(state, batch.tokens, batch.targets, losses);
        for (std::size_t t = 0; t < losses.size(); ++t) count(begin + static_cast<std::int64_t>(t), t);
        result.bytes += batch.scored;
        if (options.progress) options.progress(result.bytes, all);
      }
      continue;
    }
    batch.clear();
    do {
      add(batch, text, sequences[i], 0, sequences[i].piece.length);
      ++i;
    } while (i < sequences.size() &&
             static_cast<std::int64_t>(batch.tokens.size()) + sequences[i].piece.length <= options.batch_tokens);
    losses.assign(batch.tokens.size(), 0.0f);
    model.loss(batch.tokens, batch.targets, batch.cu_seqlens, false, 1.0, losses);
    for (std::size_t n = 0; n + 1 < batch.cu_seqlens.size(); ++n)
      for (std::int64_t t = batch.cu_seqlens[n]; t < batch.cu_seqlens[n + 1]; ++t)
        count(t - batch.cu_seqlens[n], static_cast<std::size_t>(t));
    result.bytes += batch.scored;
    if (options.progress) options.progress(result.bytes, all);
  }
  result.sequences = static_cast<std::int64_t>(sequences.size());
  for (std::int64_t j = 0; j < static_cast<std::int64_t>(bins.size()); ++j) {
    EvaluationBin& bin = bins[j];
    if (bin.bytes == 0) continue;
    const std::int64_t digits = j / parts, part = j % parts;
    const std::int64_t low = digits == 0 ? 0 : std::int64_t{1} << (digits - 1);
    const auto begin = [&](std::int64_t i) { return low + (i * low + parts - 1) / parts; };
    bin.first = begin(part);
    bin.last = std::max(bin.first, begin(part + 1) - 1);
    result.bits += bin.bits;
    result.bins.push_back(bin);
  }
  if (!std::isfinite(result.bits)) fail("evaluate", "the model's loss on this text is not a finite number");
  return result;
}

}  // namespace loglinear::app
