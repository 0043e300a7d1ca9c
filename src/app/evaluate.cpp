#include "app/evaluate.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>

#include "base/error.hpp"

namespace loglinear::app {

double Evaluation::perplexity() const { return std::exp2(bits_per_byte()); }

Evaluation evaluate(nn::Model<float>& model, const Text& text, const EvaluationOptions& options) {
  if (model.config().vocab_size != 256)
    fail("evaluate", "the model has a vocabulary of {}, the text is read as 256 bytes", model.config().vocab_size);
  if (text.bytes() == 0) fail("evaluate", "there is no text");
  const std::int64_t seq_len = options.seq_len > 0 ? options.seq_len : std::numeric_limits<std::int64_t>::max() / 2;
  const std::vector<Piece> pieces = cut_pieces(text, Packing::documents, seq_len);

  Evaluation result;
  std::vector<EvaluationBin> bins(64);
  std::vector<float> losses;
  Batch batch;
  for (std::size_t i = 0; i < pieces.size();) {
    batch.clear();
    do {
      batch.add(text, pieces[i++], false);
    } while (i < pieces.size() &&
             static_cast<std::int64_t>(batch.tokens.size()) + pieces[i].length <= options.batch_tokens);
    losses.assign(batch.tokens.size(), 0.0f);
    model.loss(batch.tokens, batch.targets, batch.cu_seqlens, false, 1.0, losses);
    for (std::size_t n = 0; n + 1 < batch.cu_seqlens.size(); ++n)
      for (std::int64_t t = batch.cu_seqlens[n]; t < batch.cu_seqlens[n + 1]; ++t) {
        if (batch.targets[t] < 0) continue;
        EvaluationBin& bin = bins[std::bit_width(static_cast<std::uint64_t>(t - batch.cu_seqlens[n]))];
        ++bin.bytes;
        bin.bits += losses[t] / std::numbers::ln2;
      }
    result.bytes += batch.scored;
    if (options.progress) options.progress(result.bytes);
  }
  result.sequences = static_cast<std::int64_t>(pieces.size());
  for (int j = 0; j < 64; ++j) {
    if (bins[j].bytes == 0) continue;
    bins[j].first = j == 0 ? 0 : std::int64_t{1} << (j - 1);
    bins[j].last = j == 0 ? 0 : (std::int64_t{1} << j) - 1;
    result.bits += bins[j].bits;
    result.bins.push_back(bins[j]);
  }
  if (!std::isfinite(result.bits)) fail("evaluate", "the model's loss on this text is not a finite number");
  return result;
}

}  // namespace loglinear::app
