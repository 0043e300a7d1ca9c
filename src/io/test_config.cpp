#include <rapidcheck.h>

#include "io/config.hpp"
#include "io/testing.hpp"

namespace loglinear::io {
namespace {

using nlohmann::json;

TEST(Config, TomlAndJsonReadTheSame) {
  TestFolder folder;
  put(folder / "c.toml",
      "# a comment\nsteps = 1_000\nrate = 3e-4\nname = \"run\\n\"\ndeep = true\nlist = [1, 2.5, "
      "\"x\"]\n\n[model]\nlayers = 2\n"
      "[model.inner]\nx = -1\n");
  put(folder / "c.json",
      R"({"steps": 1000, "rate": 3e-4, "name": "run\n", "deep": true, "list": [1, 2.5, "x"],
          "model": {"layers": 2, "inner": {"x": -1}}})");
  EXPECT_EQ(load_config(folder / "c.toml"), load_config(folder / "c.json"));
  EXPECT_EQ(load_config(folder / "c.toml")["model"]["inner"]["x"], -1);
}

TEST(Config, SyntaxErrorsGiveThePlace) {
  TestFolder folder;
  const auto toml = [&](const std::string& text, const std::string& part) {
    put(folder / "c.toml", text);
    EXPECT_ERROR(load_config(folder / "c.toml"), (folder / "c.toml").string() + part);
  };
  const auto parsed_json = [&](const std::string& text, const std::string& part) {
    put(folder / "c.json", text);
    EXPECT_ERROR(load_config(folder / "c.json"), (folder / "c.json").string() + part);
  };
  toml("a = 1\nb = = 2\n", ":2:5: ");
  toml("a = 1\n\nb", ":3:");
  toml("a = 1\na = 2\n", ":2:");
  toml("a = 1\nday = 2024-01-01\n", ":2:7: dates and times");
  toml("\xff = 1\n", ":1:");
  parsed_json("{\n  \"a\": 1,\n  \"b\": oops\n}", ":3:8: ");
  parsed_json("{\"a\": 1,\n\"a\": 2}", ":2:3: key \"a\" given twice");
  parsed_json("{\"a\": {\"b\": 1, \"b\": 2}}", ":1:18: key \"b\" given twice");
  parsed_json("", ":1:1: ");
  parsed_json("{\n", ":2:1: ");
  parsed_json("{} {}", ":1:4: ");
  parsed_json("{\"a\": \"\xff\"}", ":1:8: ");
  parsed_json("[1]", ": got [1], need an object");
  parsed_json("{\"a\":" + std::string(100000, '[') + "}", ":1:105: nested too deeply");
}

TEST(Config, FileErrors) {
  TestFolder folder;
  put(folder / "c.yaml", "a: 1");
  put(folder / "big.json", std::string((16 << 20) + 1, ' '));
  EXPECT_USAGE_ERROR(load_config(folder / "c.yaml"), ".toml or .json");
  EXPECT_ERROR(load_config(folder / "none.toml"), "No such file");
  EXPECT_ERROR(load_config(folder / "big.json"), "longer than");
}

TEST(ConfigReader, ReplacesWhatIsGiven) {
  ConfigReader config(json{{"steps", 5},
                           {"million", 1e6},
                           {"rate", 2},
                           {"flag", true},
                           {"name", "x"},
                           {"kind", "b"},
                           {"one", "p"},
                           {"list", {"p", "q"}},
                           {"numbers", {1, 2.5}},
                           {"model", {{"layers", 3}}}},
                      "c.json");
  std::int64_t steps = 1, million = 1, absent = 42;
  double rate = 1;
  bool flag = false;
  std::string name, kind = "a";
  std::vector<std::string> one, list;
  std::vector<double> numbers;
  int layers = 1;
  const std::string kinds[] = {"a", "b"};
  EXPECT_TRUE(config.integer("steps", steps, 1, 10));
  EXPECT_TRUE(config.integer("million", million, 1, 10000000));
  EXPECT_FALSE(config.integer("absent", absent, 1, 10));
  EXPECT_TRUE(config.real("rate", rate, 0, 2));
  EXPECT_TRUE(config.boolean("flag", flag));
  EXPECT_TRUE(config.text("name", name));
  EXPECT_TRUE(config.choice("kind", kind, kinds));
  EXPECT_TRUE(config.texts("one", one));
  EXPECT_TRUE(config.texts("list", list));
  EXPECT_TRUE(config.reals("numbers", numbers, 0, 3));
  EXPECT_TRUE(config.section("model", [&](ConfigReader& model) { model.integer("layers", layers, 1, 100); }));
  EXPECT_FALSE(config.section("other", [](ConfigReader&) { FAIL(); }));
  config.finish();
  EXPECT_EQ(steps, 5);
  EXPECT_EQ(million, 1000000);
  EXPECT_EQ(absent, 42);
  EXPECT_EQ(rate, 2.0);
  EXPECT_TRUE(flag);
  EXPECT_EQ(name, "x");
  EXPECT_EQ(kind, "b");
  EXPECT_EQ(one, (std::vector<std::string>{"p"}));
  EXPECT_EQ(list, (std::vector<std::string>{"p", "q"}));
  EXPECT_EQ(numbers, (std::vector<double>{1, 2.5}));
  EXPECT_EQ(layers, 3);
}

TEST(ConfigReader, RefusesTypesAndRanges) {
  std::int64_t i = 7;
  int small = 7;
  double d = 7;
  bool b = true;
  std::string s = "7";
  std::vector<std::string> list;
  std::vector<double> numbers;
  const auto integer = [&](json value, const std::string& part) {
    EXPECT_USAGE_ERROR(ConfigReader(json{{"key", value}}, "c").integer("key", i, 1, 10), part);
    EXPECT_USAGE_ERROR(ConfigReader(json{{"key", value}}, "c").integer("key", small, 1, 10), part);
  };
  integer(0, "c: key: got 0, need an integer from 1 to 10");
  integer(11, "got 11");
  integer(2.5, "got 2.5");
  integer(1e300, "got 1e+300");
  integer(18446744073709551615u, "got 18446744073709551615");
  integer(true, "got true");
  integer("5", "got \"5\"");
  integer(nullptr, "got null");
  integer(json::array({1}), "got [1]");
  for (const json& value : {json(-0.5), json(2), json(NAN), json(INFINITY), json("1"), json(true)})
    EXPECT_USAGE_ERROR(ConfigReader(json{{"key", value}}, "c").real("key", d, 0, 1), "need a number from 0 to 1");
  EXPECT_USAGE_ERROR(ConfigReader(json{{"key", 1}}, "c").boolean("key", b), "need true or false");
  EXPECT_USAGE_ERROR(ConfigReader(json{{"key", 1}}, "c").text("key", s), "need a text");
  EXPECT_USAGE_ERROR(ConfigReader(json{{"key", 1}}, "c").texts("key", list), "need a list of texts");
  EXPECT_USAGE_ERROR(ConfigReader(json{{"key", {1}}}, "c").texts("key", list), "got 1, need a list of texts");
  EXPECT_USAGE_ERROR(ConfigReader(json{{"key", {1, 3}}}, "c").reals("key", numbers, 0, 2), "got 3");
  const std::string choices[] = {"cosine", "linear"};
  EXPECT_USAGE_ERROR(ConfigReader(json{{"key", "cosin"}}, "c").choice("key", s, choices),
                     "got \"cosin\", need one of cosine, linear (did you mean \"cosine\"?)");
  EXPECT_USAGE_ERROR(ConfigReader(json{{"key", 1}}, "c").choice("key", s, choices), "got 1, need one of");
  EXPECT_USAGE_ERROR(ConfigReader(json{{"key", 1}}, "c").section("key", [](ConfigReader&) {}),
                     "key: got 1, need an object");
  EXPECT_USAGE_ERROR(ConfigReader(json::array(), "c"), "need an object");
  // Nothing was replaced by what was refused.
  EXPECT_EQ(i, 7);
  EXPECT_EQ(small, 7);
  EXPECT_EQ(d, 7);
  EXPECT_TRUE(b);
  EXPECT_EQ(s, "7");
  EXPECT_TRUE(list.empty() && numbers.empty());
}

TEST(ConfigReader, UnknownKeys) {
  std::int64_t steps = 1;
  ConfigReader config(json{{"stpes", 5}}, "c.toml");
  config.integer("steps", steps, 1, 10);
  EXPECT_USAGE_ERROR(config.finish(), "c.toml: unknown key \"stpes\" (did you mean \"steps\"?)");
  ConfigReader far(json{{"zebra", 5}}, "c.toml");
  far.integer("steps", steps, 1, 10);
  EXPECT_USAGE_ERROR(far.finish(), "unknown key \"zebra\"");
  EXPECT_EQ(error_of([&] { far.finish(); }, Error::Kind::usage).find("did you mean"), std::string::npos);
  ConfigReader nested(json{{"model", {{"layer", 5}}}}, "c.toml");
  EXPECT_USAGE_ERROR(nested.section("model", [&](ConfigReader& model) { model.integer("layers", steps, 1, 10); }),
                     "unknown key \"model.layer\" (did you mean \"layers\"?)");
}

// The reader of JSON gives what the library's own gives, or an Error.
TEST(ConfigProperty, AnyBytes) {
  EXPECT_TRUE(rc::check([](const std::vector<std::uint8_t>& picks) {
    static const char* const kPieces[] = {"{",    "}",    "[", "]",  ":",  ",",  "\"a\"", "\"b\"",    "1", "-2.5e3",
                                          "true", "null", " ", "\n", "\"", "\\", "\xff",  "\xc3\xa9", "x", "0"};
    std::string text;
    for (const std::uint8_t pick : picks) text += kPieces[pick % std::size(kPieces)];
    try {
      const json got = parse_json(text, "t");
      RC_ASSERT(got == json::parse(text));
    } catch (const Error& error) {
      RC_ASSERT(std::string(error.what()).find('\n') == std::string::npos);
    }
  }));
}

}  // namespace
}  // namespace loglinear::io
