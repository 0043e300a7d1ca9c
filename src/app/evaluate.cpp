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

Evaluation evaluate(nn::Model<float>& model, const Text& text, const EvaluationOptions& options) {
  if (model.config().vocab_size != 256)
    fail("evaluate", "the model has a vocabulary of {}, the text is read as 256 bytes", model.config().vocab_size);
  if (text.bytes() == 0) fail("evaluate", "there is no text");
  std::int64_t seq_len = options.seq_len > 0 ? options.seq_len : std::numeric_limits<std::int64_t>::max() / 2;
  if (!nn::find_family(model.config().family)->causal) seq_len = std::min(seq_len, options.batch_tokens);
  const std::vector<Piece> pieces = cut_pieces(text, Packing::documents, seq_len);

  Evaluation result;
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
  for (std::size_t i = 0; i < pieces.size();) {
    if (pieces[i].length > options.batch_tokens) {
      // Too long for one pass: a part at a time, from state to state.
      nn::DecodeState state = model.new_state();
      const Piece whole = pieces[i++];
      for (std::int64_t begin = 0; begin < whole.length; begin += options.batch_tokens) {
        batch.clear();
        batch.add(text, {whole.begin + begin, std::min(options.batch_tokens, whole.length - begin)}, false);
        losses.assign(batch.tokens.size(), 0.0f);
        model.score(state, batch.tokens, batch.targets, losses);
        for (std::size_t t = 0; t < losses.size(); ++t) count(begin + static_cast<std::int64_t>(t), t);
        result.bytes += batch.scored;
        if (options.progress) options.progress(result.bytes);
      }
      continue;
    }
    batch.clear();
    do {
      batch.add(text, pieces[i++], false);
    } while (i < pieces.size() &&
             static_cast<std::int64_t>(batch.tokens.size()) + pieces[i].length <= options.batch_tokens);
    losses.assign(batch.tokens.size(), 0.0f);
    model.loss(batch.tokens, batch.targets, batch.cu_seqlens, false, 1.0, losses);
    for (std::size_t n = 0; n + 1 < batch.cu_seqlens.size(); ++n)
      for (std::int64_t t = batch.cu_seqlens[n]; t < batch.cu_seqlens[n + 1]; ++t)
        count(t - batch.cu_seqlens[n], static_cast<std::size_t>(t));
    result.bytes += batch.scored;
    if (options.progress) options.progress(result.bytes);
  }
  result.sequences = static_cast<std::int64_t>(pieces.size());
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
