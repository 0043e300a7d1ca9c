#include "app/ngram.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace loglinear::app {
namespace {

std::size_t index(unsigned char a, unsigned char b) { return std::size_t{a} << 8 | b; }
std::size_t index(unsigned char a, unsigned char b, unsigned char c) { return index(a, b) << 8 | c; }

double discount(const std::vector<std::uint32_t>& counts) {
  const auto once = static_cast<double>(std::count(counts.begin(), counts.end(), 1u));
  const auto twice = static_cast<double>(std::count(counts.begin(), counts.end(), 2u));
  return once > 0 ? once / (once + 2 * twice) : 0.5;
}

double interpolate(std::uint32_t count, std::uint64_t total, std::uint32_t distinct, double discount, double shorter) {
  if (total == 0) return shorter;
  return (std::max(count - discount, 0.0) + discount * distinct * shorter) / static_cast<double>(total);
}

}  // namespace

ByteTrigram::ByteTrigram()
    : counts3_(1 << 24), counts2_(1 << 16), counts1_(1 << 8), context3_(1 << 16), context2_(1 << 8) {}

void ByteTrigram::add(std::string_view text) {
  for (std::size_t i = 2; i < text.size(); ++i) {
    std::uint32_t& count = counts3_[index(text[i - 2], text[i - 1], text[i])];
    if (count != std::numeric_limits<std::uint32_t>::max()) ++count;
  }
}

void ByteTrigram::fit() {
  std::fill(counts2_.begin(), counts2_.end(), 0);
  std::fill(counts1_.begin(), counts1_.end(), 0);
  std::fill(context3_.begin(), context3_.end(), Context{});
  std::fill(context2_.begin(), context2_.end(), Context{});
  context1_ = {};
  for (std::size_t i = 0; i < counts3_.size(); ++i) {
    if (counts3_[i] == 0) continue;
    context3_[i >> 8].total += counts3_[i];
    ++context3_[i >> 8].distinct;
    ++counts2_[i & 0xffff];
  }
  for (std::size_t i = 0; i < counts2_.size(); ++i) {
    if (counts2_[i] == 0) continue;
    context2_[i >> 8].total += counts2_[i];
    ++context2_[i >> 8].distinct;
    ++counts1_[i & 0xff];
  }
  for (const std::uint32_t count : counts1_) {
    context1_.total += count;
    context1_.distinct += count > 0;
  }
  discount3_ = discount(counts3_);
  discount2_ = discount(counts2_);
  discount1_ = discount(counts1_);
}

double ByteTrigram::unigram(unsigned char next) const {
  return interpolate(counts1_[next], context1_.total, context1_.distinct, discount1_, 1.0 / 256);
}

double ByteTrigram::bigram(unsigned char newer, unsigned char next) const {
  const Context& context = context2_[newer];
  return interpolate(counts2_[index(newer, next)], context.total, context.distinct, discount2_, unigram(next));
}

double ByteTrigram::probability(unsigned char older, unsigned char newer, unsigned char next) const {
  const Context& context = context3_[index(older, newer)];
  return interpolate(counts3_[index(older, newer, next)], context.total, context.distinct, discount3_,
                     bigram(newer, next));
}

double ByteTrigram::bits(std::string_view text, std::size_t from) const {
  double sum = 0;
  for (std::size_t i = from; i < text.size(); ++i) {
    const double p = i >= 2   ? probability(text[i - 2], text[i - 1], text[i])
                     : i == 1 ? bigram(text[0], text[1])
                              : unigram(text[0]);
    sum -= std::log2(p);
  }
  return sum;
}

}  // namespace loglinear::app
