#include "app/data.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#define XXH_INLINE_ALL  // header only
#include <xxhash.h>

#include "base/error.hpp"
#include "base/random.hpp"
#include "loglinear/level_scales.hpp"

namespace loglinear::app {
namespace {

constexpr std::uint64_t kOrderStream = std::uint64_t{0x64617461} << 32;   // + epoch
constexpr std::uint64_t kOffsetStream = std::uint64_t{0x6f666673} << 32;  // + step
constexpr std::uint64_t kRepeatStream = std::uint64_t{0x72657065} << 32;  // + step

}  // namespace

Text::Text(std::span<const std::string> documents) {
  std::size_t total = stream.size();
  for (const std::string& document : documents) total += document.size() + 1;
  stream.reserve(total);
  for (const std::string& document : documents) {
    if (document.empty()) continue;
    if (const auto at = document.find('\0'); at != std::string::npos)
      fail("data", "document {} holds a zero byte at offset {}: text is expected, not binary data", documents_ + 1, at);
    stream.insert(stream.end(), document.begin(), document.end());
    stream.push_back(kSeparator);
    ++documents_;
  }
}

std::uint64_t Text::hash() const { return XXH3_64bits(stream.data(), stream.size()); }

std::vector<Piece> cut_pieces(const Text& text, Packing packing, std::int64_t seq_len) {
  if (seq_len < 1) fail("data", "seq_len: got {}, need at least 1", seq_len);
  std::vector<Piece> pieces;
  const auto cut = [&](std::int64_t begin, std::int64_t end) {
    for (; begin < end; begin += seq_len) pieces.push_back({begin, std::min(seq_len, end - begin)});
  };
  if (packing == Packing::blocks) {
    cut(0, text.predictions());
    return pieces;
  }
  for (std::int64_t begin = 0; begin < text.predictions();) {
    const void* next = std::memchr(text.stream.data() + begin + 1, kSeparator, text.stream.size() - begin - 1);
    const std::int64_t end = static_cast<const std::uint8_t*>(next) - text.stream.data();
    cut(begin, end);
    begin = end;
  }
  return pieces;
}

Text beginning_of(const Text& text, std::int64_t limit) {
  if (text.bytes() <= limit) return text;
  std::vector<std::string> documents;
  std::int64_t bytes = 0;
  for (const Piece& piece : cut_pieces(text, Packing::documents, limit)) {
    // A piece is a separator or the byte before it, then its bytes; one at the end of a document ends with a separator.
    const auto begin = text.stream.begin() + piece.begin + 1;
    auto end = begin + piece.length;
    if (*(end - 1) == kSeparator) --end;
    end = std::min(end, begin + (limit - bytes));
    documents.emplace_back(begin, end);
    bytes += end - begin;
    if (bytes >= limit) break;
  }
  return Text(documents);
}

void Batch::clear() {
  tokens.clear();
  targets.clear();
  cu_seqlens.assign(1, 0);
  scored = 0;
  offsets.clear();
}

void draw_offsets(Batch& batch, double part, std::int64_t levels, std::uint64_t seed, std::uint64_t step) {
  batch.offsets.assign(batch.cu_seqlens.size() - 1, 0);
  Random random(seed, kOffsetStream + step);
  for (std::size_t n = 0; n < batch.offsets.size(); ++n) {
    const double chance = random.uniform();
    const std::uint64_t level_bits = random.bits(), place_bits = random.bits();  // as many for every sequence
    const std::int64_t T = batch.cu_seqlens[n + 1] - batch.cu_seqlens[n], known = level_count(T);
    if (!(chance < part) || T < 2 || known >= levels) continue;
    const auto below = [](std::uint64_t bits, std::int64_t range) {
      return static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(range));
    };
    // A token before and one from 2^(level - 1) on read each other through that level.
    const std::int64_t level = known + below(level_bits, std::min<std::int64_t>(levels, 61) - known);
    batch.offsets[n] = (std::int64_t{1} << (level - 1)) - 1 - below(place_bits, T - 1);
  }
}

void draw_repeats(Batch& batch, double part, std::uint64_t seed, std::uint64_t step) {
  if (part <= 0) return;
  constexpr std::int64_t kShortest = 16, kLongest = 128;
  const double mean = (kLongest - kShortest) / std::log(kLongest / kShortest);  // of a passage
  const double gap = std::min(2 * mean * (1 - part) / part, 1e12);              // the longest between two
  Random random(seed, kRepeatStream + step);
  const auto below = [&](double range) { return static_cast<std::int64_t>(random.uniform() * range); };
  const auto doublings = [&](double low, double high) {
    return static_cast<std::int64_t>(low * std::pow(high / low, random.uniform()));
  };
  for (std::size_t n = 0; n + 1 < batch.cu_seqlens.size(); ++n) {
    const auto first = batch.tokens.begin() + batch.cu_seqlens[n];
    const std::int64_t T = batch.cu_seqlens[n + 1] - batch.cu_seqlens[n];
    // The sequence begins somewhere inside a gap: short ones get their part too.
    for (std::int64_t at = -below(gap);;) {
      at += 1 + below(gap);
      if (at < 0) continue;
      // The shortest passage must have stood before, and the separator that a document begins with is of none.
      at = std::max(at, kShortest + 2);
      if (T - at < kShortest) break;
      const std::int64_t length = std::min({doublings(kShortest, kLongest + 1), at - 2, T - at});
      const std::int64_t from = at - length - doublings(1, static_cast<double>(at - length));
      std::copy_n(first + from, length, first + at);
      at += length;
    }
    for (std::int64_t t = 0; t + 1 < T; ++t) {
      std::int32_t& target = batch.targets[static_cast<std::size_t>(batch.cu_seqlens[n] + t)];
      if (target >= 0) target = first[t + 1];
    }
  }
}

void Batch::add(const Text& text, Piece piece, bool end_of_document) {
  const std::uint8_t* from = text.stream.data() + piece.begin;
  for (std::int64_t i = 0; i < piece.length; ++i) {
    const bool score = end_of_document || from[i + 1] != kSeparator;
    tokens.push_back(from[i]);
    targets.push_back(score ? from[i + 1] : -1);
    scored += score;
  }
  cu_seqlens.push_back(static_cast<std::int64_t>(tokens.size()));
}

BatchReader::BatchReader(const Text& text, std::vector<Piece> pieces, std::int64_t batch_tokens, std::uint64_t seed,
                         DataPosition position)
    : text_(text), pieces_(std::move(pieces)), batch_tokens_(batch_tokens), seed_(seed), position_(position) {
  if (pieces_.empty()) fail("data", "there is no text");
  for (const Piece& piece : pieces_)
    if (piece.length > batch_tokens_)
      fail("data", "a sequence of {} bytes does not fit into a batch of {}", piece.length, batch_tokens_);
  if (position.epoch < 0 || position.piece < 0 || position.piece >= static_cast<std::int64_t>(pieces_.size()))
    fail("data", "position {} of epoch {} is not within the {} sequences of the text", position.piece, position.epoch,
         pieces_.size());
  order_ = shuffled(position_.epoch);
}

std::vector<std::int64_t> BatchReader::shuffled(std::int64_t epoch) const {
  std::vector<std::int64_t> order(pieces_.size());
  std::iota(order.begin(), order.end(), 0);
  Random random(seed_, kOrderStream + static_cast<std::uint64_t>(epoch));
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

std::int64_t BatchReader::fitting(const std::vector<std::int64_t>& order, std::int64_t begin) const {
  std::int64_t count = 0, tokens = 0;
  for (std::size_t i = begin; i < order.size(); ++i, ++count) {
    tokens += pieces_[order[i]].length;
    if (tokens > batch_tokens_) break;
  }
  return count;
}

void BatchReader::next(Batch& batch) {
  batch.clear();
  const std::int64_t end = position_.piece + fitting(order_, position_.piece);
  for (; position_.piece < end; ++position_.piece) batch.add(text_, pieces_[order_[position_.piece]]);
  if (position_.piece == static_cast<std::int64_t>(pieces_.size())) {
    position_ = {position_.epoch + 1, 0};
    order_ = shuffled(position_.epoch);
  }
}

std::int64_t BatchReader::batches_in_epoch(std::int64_t epoch) const {
  const std::vector<std::int64_t> order = shuffled(epoch);
  std::int64_t batches = 0;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(order.size()); i += fitting(order, i)) ++batches;
  return batches;
}

}  // namespace loglinear::app
