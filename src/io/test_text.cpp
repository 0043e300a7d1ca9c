#include <rapidcheck.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <numeric>
#include <set>

#include "io/testing.hpp"
#include "io/text.hpp"
#include "io/utf8.hpp"

namespace loglinear::io {
namespace {

namespace fs = std::filesystem;
using Documents = std::vector<std::string>;

TEST(Text, OneFile) {
  TestFolder folder;
  put(folder / "a.txt", "text \xff with any bytes but NUL\r\n");
  const Corpus corpus = read_text(folder / "a.txt");
  EXPECT_EQ(corpus.documents, Documents{"text \xff with any bytes but NUL\r\n"});
  EXPECT_EQ(corpus.bytes, corpus.documents[0].size());
  EXPECT_EQ(corpus.files, 1);
  EXPECT_FALSE(corpus.cut);
}

TEST(Text, FileErrors) {
  TestFolder folder;
  put(folder / "empty", "");
  put(folder / "binary", std::string("abc\0d", 5));
  EXPECT_ERROR(read_text(folder / "none"), "No such file");
  EXPECT_ERROR(read_text(folder / "empty"), "is empty");
  EXPECT_ERROR(read_text(folder / "binary"), "not text: byte 3 is NUL");
  EXPECT_ERROR(read_text(std::vector<Path>{}), "no path");
  put(folder / "secret", "x");
  fs::permissions(folder / "secret", fs::perms::none);
  fs::permissions(folder.path(), fs::perms::all);
  const bool root = ::geteuid() == 0;
  ASSERT_TRUE(!root || ::seteuid(65534) == 0);
  EXPECT_ERROR(read_text(folder / "secret"), "Permission denied");
  EXPECT_ERROR(read_text(folder.path()), "Permission denied");
  ASSERT_TRUE(!root || ::seteuid(0) == 0);
}

TEST(Text, FolderInOrder) {
  TestFolder folder;
  put(folder / "b.txt", "b");
  put(folder / "a/z.txt", "az");
  put(folder / "a/deep/er.txt", "ader");
  put(folder / "a.txt", "a");
  put(folder / "B.txt", "B");
  put(folder / "c.jsonl", "{\"text\":\"c1\"}\n{\"text\":\"c2\"}");
  put(folder / ".hidden", "no");
  put(folder / ".git/config", "no");
  put(folder / "image.png", std::string("\x89PNG\0", 5));
  put(folder / "empty", "");
  put(folder / "blank.jsonl", "\n\n");
  const Corpus corpus = read_text(folder.path());
  EXPECT_EQ(corpus.documents, (Documents{"B", "ader", "az", "a", "b", "c1", "c2"}));
  EXPECT_EQ(corpus.files, 6);
  EXPECT_EQ(corpus.binary_files, 1);
  EXPECT_EQ(corpus.empty_files, 2);
  EXPECT_EQ(corpus.bytes, 13u);
}

TEST(Text, LinksAndOddFiles) {
  TestFolder folder;
  put(folder / "a/x", "x");
  put(folder / "elsewhere/y", "y");
  fs::create_directory_symlink("..", folder / "a/up");
  fs::create_directory_symlink(".", folder / "a/self");
  fs::create_directory_symlink("../elsewhere", folder / "a/other");
  fs::create_symlink("x", folder / "a/link");
  fs::create_symlink("nowhere", folder / "a/dangling");
  fs::create_symlink("round", folder / "a/round");
  ASSERT_EQ(::mkfifo((folder / "a/pipe").c_str(), 0600), 0);
  // up leads to the folder above, in which a was visited already and elsewhere is visited for the second time.
  EXPECT_EQ(read_text(folder / "a").documents, (Documents{"x", "y", "x"}));
}

TEST(Text, FolderErrors) {
  TestFolder folder;
  EXPECT_ERROR(read_text(folder.path()), "holds no text");
  put(folder / "bin", std::string(1, '\0'));
  put(folder / "empty", "");
  EXPECT_ERROR(read_text(folder.path()), "skipped: 1 files with NUL bytes, 1 empty");
  put(folder / "bad.jsonl", "{\"text\":\"a\"}\n{\"text\":");
  EXPECT_ERROR(read_text(folder.path()), "bad.jsonl:2:");
}

TEST(Text, JsonLines) {
  TestFolder folder;
  put(folder / "a.jsonl",
      "{\"text\":\"one\\n\\u00e9\"}\r\n\n  \n{\"id\":1,\"text\":\"two\"}\n{\"text\":\"\"}\n{\"text\":\"three\"}");
  EXPECT_EQ(read_text(folder / "a.jsonl").documents, (Documents{"one\n\xc3\xa9", "two", "three"}));
  const auto refused = [&](const std::string& contents, const std::string& part) {
    put(folder / "b.ndjson", contents);
    EXPECT_ERROR(read_text(folder / "b.ndjson"), part);
  };
  refused("{\"text\":\"a\"}\n\n{\"text\":1}\n", "b.ndjson:3: need an object with the text field");
  refused("{\"txt\":\"a\"}\n", "b.ndjson:1: need an object");
  refused("\"text\"\n", "b.ndjson:1: need an object");
  refused("{\"text\":\"a\"}\nplain words\n", "b.ndjson:2:1: ");
  refused("{\"text\":\"a\"}\n{\"text\":\"b\"} {}\n", "b.ndjson:2:14: ");
  refused("{\"text\":\"\xff\"}\n", "b.ndjson:1:10: ");
  refused(std::string("{\"text\":\"a\"}\n\0\n", 15), "b.ndjson:2:1: ");
  refused("\n\n", "holds no text");
  refused("", "holds no text");
}

TEST(Text, LongLinesAcrossBlocks) {
  TestFolder folder;
  std::string contents;
  Documents expected;
  for (const std::size_t n : {262144u - 12u, 262144u, 5u, 700000u, 262143u}) {
    expected.emplace_back(n, static_cast<char>('a' + expected.size()));
    contents += "{\"text\":\"" + expected.back() + "\"}\n";
  }
  put(folder / "a.jsonl", contents);
  EXPECT_EQ(read_text(folder / "a.jsonl").documents, expected);
}

TEST(Text, Limit) {
  TestFolder folder;
  put(folder / "d/1", "12345");
  put(folder / "d/2", "67\xc3\xa9zz");
  put(folder / "d/3.jsonl", "{\"text\":\"abc\"}\n{\"text\":\"def\"}\nnot json");
  const auto read = [&](std::uint64_t limit) { return read_text(folder / "d", limit); };
  EXPECT_EQ(read(3).documents, (Documents{"123"}));
  EXPECT_EQ(read(5).documents, (Documents{"12345"}));
  EXPECT_EQ(read(7).documents, (Documents{"12345", "67"}));
  EXPECT_EQ(read(8).documents, (Documents{"12345", "67"}));  // not half of the é
  EXPECT_EQ(read(9).documents, (Documents{"12345", "67\xc3\xa9"}));
  EXPECT_EQ(read(13).documents, (Documents{"12345", "67\xc3\xa9zz", "ab"}));
  for (const std::uint64_t limit : {3, 5, 7, 8, 9, 13}) EXPECT_TRUE(read(limit).cut) << limit;
  EXPECT_TRUE(read(17).cut);
  EXPECT_ERROR(read(18), "3.jsonl:3:");  // only what is read is looked at
  put(folder / "one", "12345");
  EXPECT_FALSE(read_text(folder / "one", 5).cut);
  EXPECT_FALSE(read_text(folder / "one", 6).cut);
  EXPECT_TRUE(read_text(folder / "one", 4).cut);
  EXPECT_EQ(read_text({folder / "one", folder / "d"}, 7).documents, (Documents{"12345", "12"}));
  put(folder / "wide", "\xc3\xa9");
  EXPECT_ERROR(read_text(folder / "wide", 1), "no whole character fits");
}

std::string joined(const Documents& documents) {
  return std::accumulate(documents.begin(), documents.end(), std::string());
}

TEST(Split, TailOfOneText) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "line " + std::to_string(i) + "\n";
  const TextSplit split = split_text({text}, 0.1);
  ASSERT_EQ(split.train.size(), 1u);
  ASSERT_EQ(split.held_out.size(), 1u);
  EXPECT_EQ(split.train[0] + split.held_out[0], text);
  EXPECT_EQ(split.train[0].back(), '\n');
  EXPECT_NEAR(static_cast<double>(split.held_out[0].size()), 0.1 * static_cast<double>(text.size()), 20);
}

TEST(Split, FewDocuments) {
  const TextSplit split = split_text({"aaaaaaaaaa", "", "bbbbbbbbbb", "cccccccccc"}, 0.5);
  EXPECT_EQ(split.train, (Documents{"aaaaaaaaaa", "bbbbb"}));
  EXPECT_EQ(split.held_out, (Documents{"bbbbb", "cccccccccc"}));
}

TEST(Split, ManyDocuments) {
  Documents documents;
  for (int i = 0; i < 200; ++i) documents.push_back("document number " + std::to_string(i));
  const TextSplit split = split_text(documents, 0.1);
  EXPECT_EQ(split.train.size() + split.held_out.size(), 200u);
  EXPECT_GE(split.held_out.size(), 19u);
  EXPECT_LE(split.held_out.size(), 20u);
  std::size_t train = 0, held = 0;  // both in the original order
  for (const std::string& d : documents) {
    if (train < split.train.size() && split.train[train] == d)
      ++train;
    else if (held < split.held_out.size() && split.held_out[held] == d)
      ++held;
  }
  EXPECT_EQ(train + held, 200u);
  EXPECT_EQ(split_text(documents, 0.1).held_out, split.held_out);
  std::swap(documents[3], documents[150]);  // the choice is by content
  EXPECT_EQ(std::multiset<std::string>(split.held_out.begin(), split.held_out.end()), [&] {
    auto s = split_text(documents, 0.1);
    return std::multiset<std::string>(s.held_out.begin(), s.held_out.end());
  }());
}

TEST(Split, ManyDocumentsButOneIsNearlyAll) {
  Documents documents(30, "x");
  documents.push_back(std::string(100000, 'y'));
  const TextSplit split = split_text(documents, 0.1);
  EXPECT_EQ(joined(split.train) + joined(split.held_out), joined(documents));
  EXPECT_NEAR(static_cast<double>(joined(split.held_out).size()), 10003, 2);
}

TEST(Split, Edges) {
  EXPECT_EQ(split_text({"abc"}, 0.0).train, Documents{"abc"});
  EXPECT_TRUE(split_text({"abc"}, 0.0).held_out.empty());
  EXPECT_EQ(split_text({"ab"}, 0.001).held_out, Documents{"b"});
  EXPECT_EQ(split_text({"ab"}, 0.999).train, Documents{"a"});
  EXPECT_ERROR(split_text({"a"}, 0.5), "too few");
  EXPECT_ERROR(split_text({}, 0.5), "too few");
  EXPECT_ERROR(split_text({"\xc3\xa9"}, 0.5), "too few");
  for (const double bad : {-0.1, 1.0, 2.0, static_cast<double>(NAN)})
    EXPECT_USAGE_ERROR(split_text({"abc"}, bad), "need 0 <= fraction < 1");
}

TEST(SplitProperty, NothingIsLost) {
  EXPECT_TRUE(rc::check([](const std::vector<std::string>& given, std::uint8_t percent) {
    Documents documents;
    for (const std::string& d : given) documents.push_back(replace_malformed(d));
    const double fraction = (1 + percent % 98) / 100.0;
    try {
      const TextSplit split = split_text(documents, fraction);
      RC_ASSERT(joined(split.train).size() + joined(split.held_out).size() == joined(documents).size());
      for (const Documents* part : {&split.train, &split.held_out}) {
        RC_ASSERT(!part->empty());
        for (const std::string& d : *part) RC_ASSERT(!d.empty() && is_utf8(d));
      }
    } catch (const Error&) {
      RC_ASSERT(joined(documents).size() < 5u);
    }
  }));
}

}  // namespace
}  // namespace loglinear::io
