#include <rapidcheck.h>
#include <sys/stat.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/safetensors.hpp"
#include "io/testing.hpp"
#include "loglinear/tensor.hpp"

namespace loglinear::io {
namespace {

namespace fs = std::filesystem;

// A file with any header, true or lying, and `data` zero bytes behind it.
std::string file_of(const std::string& header, std::size_t data = 0) {
  const std::uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
  return file + header + std::string(data, '\0');
}

SafetensorsFile parse(const std::string& bytes) { return SafetensorsFile::from_bytes(bytes, "some.file"); }

// Refused, in memory and on disk, by one line that names the file and holds `part`.
void expect_refused(const std::string& bytes, const std::string& part) {
  SCOPED_TRACE(part);
  EXPECT_ERROR(parse(bytes), part);
  EXPECT_ERROR(parse(bytes), "some.file");
  TestFolder folder;
  put(folder / "x.safetensors", bytes);
  EXPECT_ERROR(SafetensorsFile::open(folder / "x.safetensors"), part);
}

void expect_header_refused(const std::string& header, const std::string& part, std::size_t data = 0) {
  expect_refused(file_of(header, data), part);
}

std::span<const std::byte> bytes_of(const std::string& s) { return std::as_bytes(std::span(s)); }

TEST(Safetensors, Lengths) {
  expect_refused("", "0 bytes are too few");
  expect_refused("1234567", "7 bytes are too few");
  expect_refused(std::string(8, '\0'), "does not begin with '{'");
  expect_refused(std::string("\x10\0\0\0\0\0\0\0{}", 10), "the header claims 16 bytes, the file has 2");
  expect_refused(std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10), "more than the 100000000 allowed");
  expect_refused(std::string("\0\0\0\0\0\0\0\x10{}", 10), "claims 1152921504606846976 bytes");
  expect_refused(std::string(8, '\xff') + "{}", "claims 18446744073709551615 bytes");
  const std::string good = file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  EXPECT_NO_THROW(parse(good));
  for (std::size_t n = 0; n < good.size(); ++n) EXPECT_THROW(parse(good.substr(0, n)), Error) << n;
  expect_refused(good + "x", "1 bytes follow the last tensor");
}

TEST(Safetensors, HeaderSyntax) {
  expect_header_refused("[]", "does not begin with '{'");
  expect_header_refused(" {}", "does not begin with '{'");
  expect_header_refused("{", "not valid JSON");
  expect_header_refused("{}}", "not valid JSON");
  expect_header_refused("{} x", "not valid JSON");
  expect_header_refused("{\"a\xff\":1}", "not valid JSON");
  expect_header_refused("{\"a\":nope}", "not valid JSON");
  expect_header_refused(R"({"a":1})", "tensor \"a\": got a number, need an object");
  expect_header_refused(R"({"a":null})", "tensor \"a\": got null, need an object");
  expect_header_refused(R"({"a":[]})", "tensor \"a\": got a list, need an object");
  expect_header_refused("{\"a\":" + std::string(100000, '[') + "}", "tensor \"a\": got a list");
  expect_header_refused(R"({"":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})", "needs a name");
  expect_header_refused("{\"line\\nbreak\":1}", "tensor \"line\\x0abreak\"");
}

TEST(Safetensors, Fields) {
  expect_header_refused(R"({"a":{}})", "tensor \"a\": dtype is missing");
  expect_header_refused(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", "tensor \"a\": shape is missing", 4);
  expect_header_refused(R"({"a":{"dtype":"F32","shape":[1]}})", "tensor \"a\": data_offsets is missing", 4);
  expect_header_refused(R"({"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})", "unknown dtype \"F31\"", 4);
  expect_header_refused(R"({"a":{"dtype":32,"shape":[1],"data_offsets":[0,4]}})", "dtype is a number", 4);
  expect_header_refused(R"({"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}})", "a list", 4);
  expect_header_refused(R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", "shape is a number", 4);
  expect_header_refused(R"({"a":{"dtype":"F32","shape":{},"data_offsets":[0,4]}})", "shape is an object", 4);
  expect_header_refused(R"({"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}})", "shape holds a text", 4);
  expect_header_refused(R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", "shape holds a list", 4);
  expect_header_refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", "needs 2 numbers, got 1", 4);
  expect_header_refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}})", "more than 2 numbers", 4);
  expect_header_refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", "unknown key \"x\"", 4);
  expect_header_refused(R"({"__metadata__":{"a":1}})", "__metadata__: \"a\" is a number, need a text");
  expect_header_refused(R"({"__metadata__":[]})", "__metadata__: got a list");
}

TEST(Safetensors, KeysGivenTwice) {
  expect_header_refused(
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      "tensor \"a\": given twice", 8);
  expect_header_refused(R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                        "key \"dtype\" given twice", 4);
  expect_header_refused(R"({"__metadata__":{"a":"1","a":"2"}})", "__metadata__: key \"a\" given twice");
  expect_header_refused(R"({"__metadata__":{},"__metadata__":{}})", "__metadata__: given twice");
}

TEST(Safetensors, Shapes) {
  const auto shape = [](const std::string& dims) {
    return R"({"a":{"dtype":"F32","shape":[)" + dims + R"(],"data_offsets":[0,4]}})";
  };
  expect_header_refused(shape("-1"), "got -1", 4);
  expect_header_refused(shape("1.0"), "got 1.0", 4);
  expect_header_refused(shape("1e0"), "got 1e0", 4);
  expect_header_refused(shape("9223372036854775808"), "is too large", 4);
  expect_header_refused(shape("18446744073709551616"), "integers from 0", 4);
  expect_header_refused(shape("9223372036854775807"), "its size overflows", 4);
  expect_header_refused(shape("1152921504606846976"), "needs 4611686018427387904 bytes", 4);  // 2^60
  expect_header_refused(shape("4294967296,4294967296"), "its size overflows", 4);  // 2^64: a product of 0 if it wrapped
  expect_header_refused(shape("4294967296,4294967297"), "its size overflows", 4);
  expect_header_refused(shape("0,4294967296,4294967296,4294967296"), "its size overflows", 4);
  expect_header_refused(shape("2"), "F32 (2) needs 8 bytes, data_offsets 0 to 4 give 4", 4);
  expect_header_refused(shape("0"), "needs 0 bytes", 4);
  std::string many = "1";
  for (int i = 0; i < 100; ++i) many += ",1";
  expect_header_refused(shape(many), "more than 64 dimensions", 4);
  EXPECT_NO_THROW(parse(file_of(shape("1,1,1"), 4)));
}

TEST(Safetensors, Offsets) {
  const auto one = [](const std::string& offsets) {
    return R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[)" + offsets + "]}}";
  };
  expect_header_refused(one("4,0"), "out of order: 4 to 0", 4);
  expect_header_refused(one("-4,0"), "got -4", 4);
  expect_header_refused(one("0,4.0"), "got 4.0", 4);
  expect_header_refused(one("4,8"), "ends at byte 8 of the data, the file holds 4", 4);
  expect_header_refused(one("4,8"), "a hole of 4 bytes", 8);
  expect_header_refused(one("18446744073709551612,18446744073709551615"), "give 3", 4);
  expect_header_refused(one("18446744073709551611,18446744073709551615"), "ends at byte 18446744073709551615", 4);
  expect_header_refused(R"({"a":{"dtype":"U8","shape":[1152921504606846976],"data_offsets":[0,1152921504606846976]}})",
                        "ends at byte 1152921504606846976", 4);
  const auto two = [](const std::string& a, const std::string& b) {
    return R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[)" + a +
           R"(]},"b":{"dtype":"F32","shape":[1],"data_offsets":[)" + b + "]}}";
  };
  expect_header_refused(two("0,4", "0,4"), "tensor \"b\": begins at byte 0, inside tensor \"a\"", 4);
  expect_header_refused(two("0,4", "2,6"), "tensor \"b\": begins at byte 2, inside tensor \"a\"", 6);
  expect_header_refused(two("0,4", "8,12"), "a hole of 4 bytes", 12);
  expect_header_refused(two("0,4", "4,8"), "4 bytes follow the last tensor", 12);
  // A header may list its tensors in any order.
  const SafetensorsFile file = parse(file_of(two("4,8", "0,4"), 8));
  EXPECT_EQ(file.tensors()[0].name, "b");
  EXPECT_EQ(file.info("a").offset, file.info("b").offset + 4);
}

TEST(Safetensors, HugeClaimsTakeNoMemory) {
  // 2^60 elements that the offsets agree with, and a file that would have to be that long. If anything were allocated
  // from the claim, this would throw something else than Error or be killed.
  expect_header_refused(
      R"({"a":{"dtype":"F64","shape":[1073741824,1073741824],"data_offsets":[0,9223372036854775808]}})",
      "its size overflows", 64);
  expect_header_refused(
      R"({"a":{"dtype":"U8","shape":[1073741824,1073741824],"data_offsets":[0,1152921504606846976]}})", "truncated",
      64);
}

TEST(Safetensors, NotAFile) {
  TestFolder folder;
  EXPECT_ERROR(SafetensorsFile::open(folder / "none.safetensors"), "No such file");
  EXPECT_ERROR(SafetensorsFile::open(folder.path()), "holds neither model.safetensors nor");
  EXPECT_ERROR(SafetensorsFile::open("/dev/zero"), "not a regular file");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_ERROR(SafetensorsFile::open(folder / "pipe"), "not a regular file");
}

TEST(Safetensors, FileThatShrinksWhileOpen) {
  TestFolder folder;
  const std::vector<float> values(10000, 1.5f);
  const std::vector<TensorView> views = {view_of<float>("a", {10000}, values)};
  write_safetensors(folder / "x", views);
  const SafetensorsFile file = SafetensorsFile::open(folder / "x");
  fs::resize_file(folder / "x", 1000);
  EXPECT_ERROR(file.read_as<float>("a"), "became shorter");
  EXPECT_ERROR(file.read_as<double>("a"), "became shorter");
  EXPECT_ERROR(file.bytes("a"), "became shorter");
}

TEST(Safetensors, WriterAndReader) {
  TestFolder folder;
  const std::vector<float> f = {1.0f, -0.0f, std::numeric_limits<float>::infinity(), 1e-45f, 3.5f, 7.0f};
  const std::vector<double> d = {0.1, -1e300, std::nan("")};
  const std::vector<bfloat16> b = {bfloat16(1.5f), bfloat16(-2.0f), bfloat16(3.0f)};
  const std::vector<std::int64_t> i = {std::numeric_limits<std::int64_t>::min()};
  const std::vector<std::uint8_t> u = {1, 2, 3};
  const std::vector<TensorView> views = {
      view_of<std::uint8_t>("bytes", {3}, u),
      view_of<float>("weights/ü \"quoted\"\n", {2, 3}, f),
      view_of<double>("d", {3, 1}, d),
      view_of<bfloat16>("b", {3}, b),
      view_of<std::int64_t>("scalar", {}, i),
      view_of<float>("empty", {0, 5}, std::span<const float>()),
      view_of<float>("also empty", {3, 0}, std::span<const float>()),
  };
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"note", "line\nbreak"}};
  write_safetensors(folder / "x.safetensors", views, metadata);
  EXPECT_EQ(get(folder / "x.safetensors"), safetensors_bytes(views, metadata));
  EXPECT_EQ(folder.entries(), 1);

  const SafetensorsFile file = SafetensorsFile::open(folder / "x.safetensors");
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.tensors().size(), views.size());
  for (const TensorView& view : views) {
    const TensorInfo& info = file.info(view.name);
    EXPECT_EQ(info.element, view.element);
    EXPECT_EQ(info.shape, view.shape);
    EXPECT_EQ(info.offset % size_of(info.element), 0u) << view.name;
    const std::vector<std::byte> bytes = file.bytes(view.name);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), view.bytes.begin(), view.bytes.end())) << view.name;
  }
  EXPECT_EQ(file.read_as<double>("b"), (std::vector<double>{1.5, -2.0, 3.0}));
  EXPECT_EQ(file.read_as<float>("d")[1], -std::numeric_limits<float>::infinity());
  EXPECT_EQ(file.read_as<float>("d")[0], 0.1f);
  EXPECT_TRUE(std::isnan(file.read_as<float>("d")[2]));
  EXPECT_TRUE(file.read_as<float>("empty").empty());
  EXPECT_TRUE(file.has("scalar"));
  EXPECT_FALSE(file.has("nothing"));
  EXPECT_EQ(describe(file.info("scalar")), "I64 ()");

  EXPECT_ERROR(file.info("nothing"), "there is no tensor \"nothing\"");
  EXPECT_ERROR(file.read_as<float>("bytes"), "tensor \"bytes\": got U8, need a float type");
  const std::int64_t shape[] = {3, 2};
  EXPECT_ERROR(file.expect("d", shape), "tensor \"d\": got shape (3, 1), need (3, 2)");
  std::vector<float> two(2);
  EXPECT_ERROR(file.read_into("b", std::span<float>(two)), "holds 3 elements, 2 were asked for");
}

TEST(Safetensors, NoTensors) {
  const std::string bytes = safetensors_bytes({}, {});
  EXPECT_EQ(bytes.size() % 8, 0u);
  EXPECT_TRUE(parse(bytes).tensors().empty());
  EXPECT_EQ(parse(safetensors_bytes({}, {{"a", "b"}})).metadata().at("a"), "b");
}

TEST(Safetensors, WriterRefuses) {
  TestFolder folder;
  const std::vector<float> f(6);
  const auto write = [&](std::vector<TensorView> views, std::map<std::string, std::string> metadata = {}) {
    write_safetensors(folder / "x", views, metadata);
  };
  EXPECT_ERROR(write({view_of<float>("a", {6}, f), view_of<float>("a", {6}, f)}), "given twice");
  EXPECT_ERROR(write({view_of<float>("", {6}, f)}), "needs a name");
  EXPECT_ERROR(write({view_of<float>("__metadata__", {6}, f)}), "cannot be the name");
  EXPECT_ERROR(write({view_of<float>("\xff", {6}, f)}), "cannot be the name");
  EXPECT_ERROR(write({view_of<float>("a", {7}, f)}), "needs 28 bytes, got 24");
  EXPECT_ERROR(write({view_of<float>("a", {-6}, f)}), "negative or too large");
  EXPECT_ERROR(write({view_of<float>("a", {std::int64_t{1} << 62, 4}, f)}), "negative or too large");
  EXPECT_ERROR(write({}, {{"k", "\xff"}}), "not UTF-8");
  EXPECT_ERROR(write_safetensors(folder / "none/x", {}), "No such file");
  EXPECT_EQ(folder.entries(), 0);
}

// The value of a half as its definition reads: (-1)^s 2^(e-15) (1 + f / 1024), 2^-14 f / 1024 for e = 0.
double half_value(unsigned bits) {
  const int exponent = bits >> 10 & 31;
  const double fraction = (bits & 1023) / 1024.0, sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  return sign * (exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15));
}

TEST(Safetensors, EveryHalf) {
  std::vector<std::uint16_t> all(65536);
  for (unsigned i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  for (const Element element : {Element::F16, Element::BF16}) {
    const std::vector<TensorView> views = {{"all", element, {256, 256}, std::as_bytes(std::span(all))}};
    const SafetensorsFile file = parse(safetensors_bytes(views));
    const std::vector<float> narrow = file.read_as<float>("all");
    const std::vector<double> wide = file.read_as<double>("all");
    for (unsigned i = 0; i < all.size(); ++i) {
      const double expected = element == Element::F16 ? half_value(i) : std::bit_cast<float>(i << 16);
      for (const double got : {static_cast<double>(narrow[i]), wide[i]}) {
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(got)) << i;
        } else {
          ASSERT_EQ(std::bit_cast<std::uint64_t>(got), std::bit_cast<std::uint64_t>(expected)) << i;
        }
      }
    }
  }
}

TEST(Safetensors, ConversionAcrossBlocks) {
  std::vector<double> values((1 << 17) * 2 + 5);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
  const std::vector<TensorView> views = {
      view_of<double>("a", {static_cast<std::int64_t>(values.size())}, std::span<const double>(values))};
  const std::vector<float> got = parse(safetensors_bytes(views)).read_as<float>("a");
  ASSERT_EQ(got.size(), values.size());
  for (std::size_t i = 0; i < values.size(); ++i) ASSERT_EQ(got[i], static_cast<float>(values[i]));
}

TEST(Safetensors, GoldenFilesLoad) {
  int files = 0;
  for (const auto& entry : fs::directory_iterator(LOGLINEAR_GOLDEN_DIR)) {
    if (entry.path().extension() != ".safetensors") continue;
    const SafetensorsFile file = SafetensorsFile::open(entry.path());
    for (const TensorInfo& tensor : file.tensors())
      EXPECT_EQ(file.read_as<double>(tensor.name).size(), static_cast<std::size_t>(tensor.elements));
    EXPECT_TRUE(file.has("q"));
    ++files;
  }
  EXPECT_GT(files, 20);
}

class Sharded : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::vector<float> one = {1, 2}, two = {3};
    const std::vector<TensorView> first = {view_of<float>("a", {2}, one)}, second = {view_of<float>("b", {1}, two)};
    write_safetensors(folder / "m-1.safetensors", first, {{"format", "pt"}});
    write_safetensors(folder / "m-2.safetensors", second, {{"format", "other"}, {"more", "x"}});
  }
  void index(const std::string& map) {
    put(folder / "model.safetensors.index.json", R"({"metadata":{"total_size":12},"weight_map":)" + map + "}");
  }
  SafetensorsFile open() { return SafetensorsFile::open(folder.path()); }

  TestFolder folder;
};

TEST_F(Sharded, ReadsAsOne) {
  index(R"({"a":"m-1.safetensors","b":"m-2.safetensors"})");
  for (const Path& path : {folder.path(), folder / "model.safetensors.index.json"}) {
    const SafetensorsFile file = SafetensorsFile::open(path);
    EXPECT_EQ(file.tensors().size(), 2u);
    EXPECT_EQ(file.read_as<float>("a"), (std::vector<float>{1, 2}));
    EXPECT_EQ(file.read_as<float>("b"), (std::vector<float>{3}));
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_EQ(file.metadata().at("more"), "x");
  }
}

TEST_F(Sharded, LyingIndexes) {
  for (const char* name :
       {"../m-1.safetensors", "/etc/passwd", "sub/m-1.safetensors", "..", ".", "", "a\\\\b", "a\\u0000"}) {
    index(std::string(R"({"a":")") + name + R"("})");
    EXPECT_ERROR(open(), "is not the name of a file beside the index");
  }
  index(R"({"a":"m-1.safetensors","b":"m-1.safetensors"})");
  EXPECT_ERROR(open(), "tensor \"b\": not in m-1.safetensors");
  index(R"({"a":"m-2.safetensors","b":"m-1.safetensors"})");
  EXPECT_ERROR(open(), "not where the index says");
  index(R"({"a":"m-1.safetensors","b":"m-3.safetensors"})");
  EXPECT_ERROR(open(), "No such file");
  index(R"({"a":"m-1.safetensors","a":"m-1.safetensors"})");
  EXPECT_ERROR(open(), "key \"a\" given twice");
  index(R"({"a":1})");
  EXPECT_ERROR(open(), "need a file name");
  index("{}");
  EXPECT_ERROR(open(), "lists no tensor");
  index("[]");
  EXPECT_ERROR(open(), "weight_map");
  put(folder / "model.safetensors.index.json", "{\n\"weight_map\": oops}");
  EXPECT_ERROR(open(), "index.json:2:");
  fs::copy_file(folder / "m-1.safetensors", folder / "m-3.safetensors");
  index(R"({"a":"m-1.safetensors","b":"m-2.safetensors","c":"m-3.safetensors"})");
  EXPECT_ERROR(open(), "tensor \"a\": also in");
}

// Any set of tensors comes back as it was given, and equal sets give equal bytes.
TEST(SafetensorsProperty, RoundTrip) {
  EXPECT_TRUE(rc::check([](const std::map<std::string, std::vector<std::uint8_t>>& shapes, std::uint64_t seed) {
    std::vector<std::string> storage;
    std::vector<TensorView> views;
    storage.reserve(shapes.size());
    for (const auto& [text, dims] : shapes) {
      const Element element = static_cast<Element>(seed % 17);
      std::vector<std::int64_t> shape;
      std::size_t bytes = size_of(element);
      for (const std::uint8_t d : dims) {
        if (shape.size() == 4) break;
        shape.push_back(d % 6);
        bytes *= d % 6;
      }
      std::string contents;
      for (std::size_t i = 0; i < bytes; ++i)
        contents += static_cast<char>((seed = seed * 6364136223846793005u + 1) >> 56);
      storage.push_back(std::move(contents));
      std::string name = "t";  // names of any characters that are UTF-8
      for (const char c : text) name += static_cast<char>(c & 0x7f);
      name += std::to_string(views.size());
      views.push_back({name, element, shape, bytes_of(storage.back())});
    }
    const std::string bytes = safetensors_bytes(views, {{"seed", std::to_string(seed)}});
    RC_ASSERT(bytes == safetensors_bytes(views, {{"seed", std::to_string(seed)}}));
    const SafetensorsFile file = parse(bytes);
    RC_ASSERT(file.tensors().size() == views.size());
    RC_ASSERT(file.metadata().at("seed") == std::to_string(seed));
    for (const TensorView& view : views) {
      RC_ASSERT(file.info(view.name).shape == view.shape);
      RC_ASSERT(file.info(view.name).element == view.element);
      const std::vector<std::byte> got = file.bytes(view.name);
      RC_ASSERT(std::equal(got.begin(), got.end(), view.bytes.begin(), view.bytes.end()));
    }
  }));
}

// Damaged files are read correctly or refused with an Error: nothing else, in any case.
TEST(SafetensorsProperty, Corruption) {
  const std::string original = get(Path(LOGLINEAR_GOLDEN_DIR) / "scalar_decay_T2.safetensors");
  ASSERT_GT(original.size(), 1000u);
  const std::size_t header =
      8 + static_cast<unsigned char>(original[0]) + 256u * static_cast<unsigned char>(original[1]);
  EXPECT_NO_THROW(parse(original));
  int refused = 0;
  EXPECT_TRUE(rc::check([&](const std::vector<std::pair<std::uint32_t, std::uint8_t>>& edits, std::uint32_t cut) {
    std::string bytes = original;
    for (const auto& [where, what] : edits) {
      const std::size_t place = where % header;
      switch (what % 4) {
        case 0:
          bytes[place] = static_cast<char>(what);
          break;
        case 1:
          bytes[place] = "0123456789-.e[]{},:\""[where / header % 20];
          break;
        case 2:
          bytes.erase(place, 1 + what / 32);
          break;
        default:
          bytes.insert(place, bytes.substr(place, 1 + what / 8));
      }
      if (bytes.size() < header) break;
    }
    if (cut % 4 == 0) bytes.resize(cut / 4 % (bytes.size() + 1));
    try {
      const SafetensorsFile file = parse(bytes);
      for (const TensorInfo& tensor : file.tensors()) {
        RC_ASSERT(file.bytes(tensor.name).size() == tensor.bytes);
        if (is_float(tensor.element)) file.read_as<float>(tensor.name);
      }
    } catch (const Error&) {
      ++refused;
    }
  }));
  EXPECT_GT(refused, 0);  // how many edits leave a good file is chance
}

}  // namespace
}  // namespace loglinear::io
