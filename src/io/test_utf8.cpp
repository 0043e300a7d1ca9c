#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "io/utf8.hpp"

namespace loglinear::io {
namespace {

using std::string;

const string kReplacement = "\xef\xbf\xbd";

// The encoding of one code point, as RFC 3629 writes it.
string encode(unsigned c) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3f)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xc0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xe0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xf0 | c >> 18), tail(12), tail(6), tail(0)};
}

TEST(Utf8, EveryCodePoint) {
  for (unsigned c = 0; c < 0x110000; ++c) {
    const string s = encode(c);
    const bool surrogate = c >= 0xd800 && c < 0xe000;
    ASSERT_EQ(is_utf8(s), !surrogate) << c;
    if (surrogate) continue;
    ASSERT_EQ(whole_characters("a" + s), 1 + s.size()) << c;
    for (std::size_t n = 1; n < s.size(); ++n) ASSERT_EQ(whole_characters("a" + s.substr(0, n)), 1u) << c;
    ASSERT_EQ(replace_malformed(s), s) << c;
  }
  EXPECT_FALSE(is_utf8(encode(0x110000)));
}

TEST(Utf8, Malformed) {
  for (const string s : {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xf5\x80\x80\x80", "\xff",
                         "\xc3", "\xe2\x82", "\xed\xa0\x80"})
    EXPECT_FALSE(is_utf8(s)) << ::testing::PrintToString(s);
  // Unicode 15, table 3-8: one replacement for each maximal part.
  EXPECT_EQ(replace_malformed("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41"), kReplacement + kReplacement + kReplacement +
                                                                           kReplacement + kReplacement + kReplacement +
                                                                           kReplacement + kReplacement + "A");
  EXPECT_EQ(replace_malformed("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41"),
            kReplacement + kReplacement + kReplacement + kReplacement + "A");
  EXPECT_EQ(whole_characters("\x80\x80\x80\x80"), 4u);
  EXPECT_EQ(whole_characters("\xf4\x90"), 2u);
  EXPECT_EQ(whole_characters(""), 0u);
}

TEST(Utf8, Quotes) {
  EXPECT_EQ(in_quotes("a\n\"b\"\\\xff"), "\"a\\x0a\\\"b\\\"\\\\" + kReplacement + "\"");
  EXPECT_EQ(in_quotes(string(200, 'x')), "\"" + string(100, 'x') + "...\"");
}

// Any bytes in any pieces.
TEST(Utf8Stream, PiecesGiveTheWhole) {
  EXPECT_TRUE(rc::check([](const std::vector<std::vector<unsigned char>>& noise, const std::vector<unsigned>& points) {
    std::vector<string> pieces;
    for (std::size_t i = 0; i < std::max(noise.size(), points.size()); ++i) {
      if (i < points.size()) {  // whole characters cut anywhere
        const string s = encode(points[i] % 0x110000);
        pieces.push_back(s.substr(0, points[i] % (s.size() + 1)));
        pieces.push_back(s.substr(pieces.back().size()));
      }
      if (i < noise.size()) pieces.emplace_back(noise[i].begin(), noise[i].end());
    }
    Utf8Stream keep(Utf8Stream::Malformed::keep), replace;
    string whole, kept, replaced;
    for (const string& piece : pieces) {
      whole += piece;
      kept += keep.push(piece);
      RC_ASSERT(whole.size() - kept.size() <= 3u);
      RC_ASSERT(kept.size() == whole_characters(whole));
      const string out = replace.push(piece);
      RC_ASSERT(is_utf8(out));
      replaced += out;
    }
    kept += keep.finish();
    replaced += replace.finish();
    RC_ASSERT(kept == whole);
    RC_ASSERT(replaced == replace_malformed(whole));
    RC_ASSERT(is_utf8(replaced));
    RC_ASSERT(keep.finish().empty());
  }));
}

}  // namespace
}  // namespace loglinear::io
