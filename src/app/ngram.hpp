#pragma once
// The rival that fits in a page: a byte model that looks two bytes back.

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace loglinear::app {

// Interpolated Kneser-Ney over bytes (Ney, Essen, Kneser 1994), two bytes of context. With c(h, x) how often byte x
// came after the context h, N(h) their sum, D(h) the number of different x, and one discount d an order,
//
//   p(x | h) = ( max(c(h, x) - d, 0) + d D(h) p(x | h without its oldest byte) ) / N(h)
//
// where below the highest order c counts the different bytes that came before instead of occurrences, an unseen context
// hands over to the shorter one, and under everything lies 1/256. d = n1 / (n1 + 2 n2), with n1 and n2 the numbers of
// contexts-with-byte counted once and twice; 1/2 when there are none to estimate it from. Every p(. | h) sums to one.
//
// Memory 66 MiB, whatever the text.
class ByteTrigram {
 public:
  ByteTrigram();

  // Counts one text; contexts do not reach from one text into the next. Call as often as there are texts, then fit.
  void add(std::string_view text);
  // Makes the lower orders and discounts from the counts. Required between the last add and the first use.
  void fit();

  // p(next | older, newer) for two bytes of context.
  double probability(unsigned char older, unsigned char newer, unsigned char next) const;

  // Sum over text[from ..) of -log2 p(byte | the two bytes before it in text), in bits. The first two bytes of a text
  // have less context and cost what the shorter contexts give them.
  double bits(std::string_view text, std::size_t from = 0) const;

 private:
  double unigram(unsigned char next) const;
  double bigram(unsigned char newer, unsigned char next) const;

  struct Context {
    std::uint64_t total = 0;
    std::uint32_t distinct = 0;
  };
  std::vector<std::uint32_t> counts3_;            // (256, 256, 256) occurrences
  std::vector<std::uint32_t> counts2_, counts1_;  // (256, 256), (256) different predecessors
  std::vector<Context> context3_, context2_;      // (256, 256), (256)
  Context context1_;
  double discount3_ = 0.5, discount2_ = 0.5, discount1_ = 0.5;
};

}  // namespace loglinear::app
