// generate, inspect, op and demo through the program, as a user runs them.

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "io/safetensors.hpp"
#include "io/utf8.hpp"
#include "program.hpp"
#include "sanitized.hpp"

namespace loglinear::tests {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

std::string umlauts(int lines = 600) {
  std::string text;
  for (int i = 0; i < lines; ++i) text += "Zeile " + std::to_string(i * i) + ": übermäßig viel Ärger, 100 €.\n";
  return text;
}

// The outcome of a shell command; $P is the program.
Outcome shell(const Scratch& scratch, const std::string& command) {
  const std::string out = scratch.file("shell.out", ""), err = scratch.file("shell.err", "");
  const int status = std::system(("P='" LOGLINEAR_PROGRAM "'; (" + command + ") >" + out + " 2>" + err).c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), file_text(out), file_text(err)};
}

constexpr int kTrained = kSanitized ? 10 : 60;  // steps

// One small trained model for all tests.
class Use : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new Scratch;
    text_ = shared_->file("text.txt", umlauts());
    model_ = (*shared_ / "model").string();
    const std::string steps = std::to_string(kTrained);
    const Outcome outcome = tests::run({"train", "--data",
                                        text_,   "--out",
                                        model_,  "--layers",
                                        "2",     "--hidden-size",
                                        "32",    "--heads",
                                        "2",     "--key-width",
                                        "16",    "--value-width",
                                        "16",    "--mlp-width",
                                        "32",    "--seq-len",
                                        "128",   "--batch-tokens",
                                        "512",   "--steps",
                                        steps,   "--lr",
                                        "1e-2",  "--initializer-range",
                                        "0.05",  "--warmup",
                                        "5"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
  }
  static void TearDownTestSuite() { delete shared_; }

  Outcome generate(Arguments more) {
    more.insert(more.begin(), {"generate", model_});
    return tests::run(more);
  }
  std::string text_of(const Arguments& more) {
    const Outcome outcome = generate(more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    EXPECT_TRUE(io::is_utf8(outcome.out));
    return outcome.out;
  }

  static Scratch* shared_;
  static std::string text_, model_;
  Scratch scratch_;
};

Scratch* Use::shared_ = nullptr;
std::string Use::text_, Use::model_;

TEST_F(Use, TheSameSeedGivesTheSameText) {
  const std::string a = text_of({"--prompt", "Zeile 4", "--seed", "3", "--max-tokens", "80"});
  EXPECT_FALSE(a.empty());
  EXPECT_EQ(a, text_of({"--prompt", "Zeile 4", "--seed", "3", "--max-tokens", "80", "--threads", "1"}));
  EXPECT_NE(a, text_of({"--prompt", "Zeile 4", "--seed", "4", "--max-tokens", "80"}));
}

TEST_F(Use, APromptMayComeFromAnArgumentAFileOrStandardInput) {
  const std::string want = text_of({"--prompt", "Zeile 16: ü", "--max-tokens", "40"});
  const std::string file = scratch_.file("prompt", "Zeile 16: ü");
  EXPECT_EQ(text_of({"--prompt-file", file, "--max-tokens", "40"}), want);
  const std::string rest = " --max-tokens 40";
  EXPECT_EQ(shell(scratch_, "cat " + file + " | $P generate " + model_ + rest).out, want);
  EXPECT_EQ(shell(scratch_, "$P generate " + model_ + " - <" + file + rest).out, want);
  EXPECT_EQ(shell(scratch_, "$P generate " + model_ + " --prompt-file - <" + file + rest).out, want);
}

TEST_F(Use, AnEmptyPromptBeginsADocument) {
  const std::string want = text_of({"--prompt", "", "--max-tokens", "40"});
  EXPECT_EQ(text_of({"--max-tokens", "40"}), want);
  EXPECT_EQ(shell(scratch_, "$P generate " + model_ + " --max-tokens 40 </dev/null").out, want);
}

TEST_F(Use, OutputIsWholeCharactersAtEveryLength) {
  // Hot sampling gives many bytes that are part of no character, and cuts fall into the middle of those that are.
  std::string before;
  for (int n = 0; n <= 40; n += kSanitized ? 5 : 1) {
    const std::string text = text_of({"--prompt", "Zeile", "--temperature", "1.5", "--max-tokens", std::to_string(n)});
    EXPECT_TRUE(text.starts_with(before));
    before = text;
  }
}

TEST_F(Use, StopStringsAreNotPrinted) {
  const std::string text = text_of({"--prompt", "Zeile 4", "--max-tokens", "120", "--temperature", "0"});
  ASSERT_GT(text.size(), 20u);
  const std::size_t begin = io::whole_characters(text.substr(0, 9));
  std::string stop = text.substr(begin, 5);
  while (!io::is_utf8(stop)) stop.pop_back();
  const std::string want = text.substr(0, text.find(stop));
  EXPECT_EQ(text_of({"--prompt", "Zeile 4", "--max-tokens", "120", "--temperature", "0", "--stop", "[never]", "--stop",
                     stop}),
            want);
  const Outcome outcome =
      generate({"--prompt", "Zeile 4", "--max-tokens", "120", "--temperature", "0", "--stop", stop, "--json"});
  EXPECT_EQ(nlohmann::json::parse(outcome.out).at("stop_reason"), "stop");
}

TEST_F(Use, AStateContinuesWhereItWasSaved) {
  const std::string state = (scratch_ / "state").string();
  const Arguments sampling = {"--repetition-penalty", "1.1", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01"};
  const auto with = [&](Arguments more) {
    more.insert(more.end(), sampling.begin(), sampling.end());
    return text_of(more);
  };
  const std::string one = with({"--prompt-file", text_, "--max-tokens", "60"});
  for (const int cut : {0, 1, 23, 59}) {
    if (kSanitized && cut != 23) continue;
    const std::string first =
        with({"--prompt-file", text_, "--max-tokens", std::to_string(cut), "--state-save", state});
    const std::string second = with({"--state-load", state, "--max-tokens", std::to_string(60 - cut)});
    EXPECT_EQ(first + second, one) << cut;
  }
  // Loading and saving the same file goes on and on.
  std::string pieces = with({"--prompt-file", text_, "--max-tokens", "0", "--state-save", state});
  for (int i = 0; i < 6; ++i) pieces += with({"--state-load", state, "--state-save", state, "--max-tokens", "10"});
  EXPECT_TRUE(one.starts_with(pieces)) << "what may be unfinished is kept in the state";
  // A state may be given more to read.
  EXPECT_NE(with({"--state-load", state, "--prompt", "\nZeile 9: ", "--max-tokens", "20"}), "");
}

TEST_F(Use, JsonIsOneObject) {
  const Outcome outcome = generate({"--prompt", "Zeile", "--max-tokens", "30", "--json"});
  EXPECT_EQ(outcome.code, 0);
  const nlohmann::json object = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(object.at("text"), text_of({"--prompt", "Zeile", "--max-tokens", "30"}));
  EXPECT_EQ(object.at("tokens"), object.at("token_ids").size());
  EXPECT_EQ(object.at("prompt_tokens"), 5);
  EXPECT_EQ(object.at("position"), 6 + object.at("tokens").get<int>());
  EXPECT_GT(object.at("state_bytes"), 0);
  for (const char* key : {"prompt_tokens_per_second", "tokens_per_second"}) EXPECT_GT(object.at(key), 0) << key;
  EXPECT_EQ(object.at("stop_reason"), "length");
}

TEST_F(Use, CtrlCStopsCleanlyAndSaves) {
  const std::string state = (scratch_ / "state").string();
  Process process({"generate", model_, "--prompt", "Zeile", "--max-tokens", "1000000000", "--state-save", state,
                   "--seed", "1", "--stop", "\x01\x02\x03"},
                  scratch_.path());
  // Something is printed: it is generating.
  while (file_text(scratch_ / "stdout").empty() && !process.ended())
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  process.signal(SIGINT);
  const Outcome outcome = process.wait();
  // A text that ended by itself before the signal is fine as well; it has its state too.
  EXPECT_TRUE(outcome.code == 130 || outcome.code == 0) << outcome.code << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_TRUE(io::is_utf8(outcome.out));
  EXPECT_EQ(generate({"--state-load", state, "--max-tokens", "5"}).code, 0);
}

TEST_F(Use, AClosedPipeEndsItQuietlyWithItsState) {
  const std::string state = (scratch_ / "state").string();
  const Outcome outcome = shell(
      scratch_, "$P generate " + model_ + " --prompt Zeile --max-tokens 3000 --state-save " + state + " | head -c 1");
  EXPECT_EQ(outcome.err, "");
  EXPECT_EQ(generate({"--state-load", state, "--max-tokens", "5"}).code, 0);
}

TEST_F(Use, InspectShowsCheckpointsStatesAndTensors) {
  const auto inspect = [&](Arguments more) {
    more.insert(more.begin(), "inspect");
    more.push_back("--json");
    const Outcome outcome = tests::run(more);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return nlohmann::json::parse(outcome.out);
  };
  nlohmann::json report = inspect({model_, "--stats"});
  EXPECT_EQ(report.at("kind"), "checkpoint");
  EXPECT_EQ(report.at("family"), "log_linear_mamba2");
  EXPECT_EQ(report.at("step"), kTrained);
  std::int64_t parameters = 0;
  for (const auto& tensor : report.at("tensors")) {
    std::int64_t elements = 1;
    for (const std::int64_t size : tensor.at("shape")) elements *= size;
    parameters += elements;
    EXPECT_EQ(tensor.at("non_finite"), 0);
    EXPECT_LE(tensor.at("min"), tensor.at("max"));
  }
  EXPECT_EQ(report.at("parameters"), parameters);
  EXPECT_EQ(report.at("bytes"), 4 * parameters);

  const std::string state = (scratch_ / "state").string();
  // With the separator 90 tokens: two full chunks of 32 and the rest.
  text_of({"--prompt", std::string(89, '7'), "--max-tokens", "0", "--state-save", state});
  report = inspect({state});
  EXPECT_EQ(report.at("kind"), "context");
  EXPECT_EQ(report.at("rule"), "scalar_decay");
  EXPECT_EQ(report.at("position"), 90);
  EXPECT_EQ(report.at("live_slots"), nlohmann::json::parse(R"([{"bit": 6, "first": 0, "tokens": 64}])"));
  EXPECT_EQ(report.at("open_tokens"), 26);
  EXPECT_GT(report.at("state_bytes"), 2 * 2 * 16 * 16 * 4);  // layers, heads, K, V

  const std::string golden = std::string(LOGLINEAR_GOLDEN_DIR) + "/gated_delta_T3.safetensors";
  report = inspect({golden, "--stats"});
  EXPECT_EQ(report.at("kind"), "safetensors");
  EXPECT_EQ(report.at("tensors").size(), 14u);
  // The text form names every tensor.
  const Outcome text = tests::run({"inspect", golden});
  for (const auto& tensor : report.at("tensors"))
    EXPECT_NE(text.out.find(tensor.at("name").get<std::string>()), std::string::npos);
}

TEST_F(Use, OpGivesTheGoldenResults) {
  const std::string golden = std::string(LOGLINEAR_GOLDEN_DIR) + "/scalar_decay_groups.safetensors";
  const std::string out = (scratch_ / "out.safetensors").string();
  const io::SafetensorsFile want = io::SafetensorsFile::open(golden);
  for (const char* form : {"ref", "chunk", "step"}) {
    const Outcome outcome =
        tests::run({"op", golden, "--out", out, "--form", form, "--split", "3,50", "--threads", "2"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.err.find("note: "), std::string(form) == "step" ? 0u : std::string::npos);
    const io::SafetensorsFile got = io::SafetensorsFile::open(out);
    EXPECT_EQ(got.tensors().size(), std::string(form) == "step" ? 1u : 6u);
    for (const io::TensorInfo& info : got.tensors()) {
      const std::vector<double> a = got.read_as<double>(info.name), b = want.read_as<double>(info.name);
      double difference = 0, norm = 0;
      for (std::size_t i = 0; i < b.size(); ++i) difference += (a[i] - b[i]) * (a[i] - b[i]), norm += b[i] * b[i];
      if (!(std::sqrt(difference / norm) <= 1e-12)) ADD_FAILURE() << form << " " << info.name;
    }
  }
}

TEST_F(Use, DemoGoesFromATextToAContinuation) {
  const std::string out = (scratch_ / "demo").string();
  const Outcome outcome = tests::run({"demo", text_, "--seconds", "2", "--out", out, "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const nlohmann::json report = nlohmann::json::parse(outcome.out);
  EXPECT_GT(report.at("steps"), 0);
  EXPECT_GT(report.at("bits_per_byte"), 0);
  EXPECT_GT(report.at("order2_bits_per_byte"), 0);
  EXPECT_GT(report.at("held_out_bytes"), 0);
  EXPECT_GT(report.at("state_bytes"), 0);
  EXPECT_EQ(report.at("state_bytes"), report.at("state_bytes_counted"));
  EXPECT_GT(report.at("transformer_bytes"), 0);
  EXPECT_TRUE(io::is_utf8(report.at("continuation").get<std::string>()));
  const std::string checkpoint = report.at("checkpoint");
  EXPECT_EQ(tests::run({"generate", checkpoint, "--prompt", "Zeile", "--max-tokens", "5"}).code, 0);
  // What was printed for people names both figures.
  EXPECT_NE(outcome.err.find("order-2"), std::string::npos);
  EXPECT_NE(outcome.err.find("bits per byte"), std::string::npos);
}

// Bad input

TEST_F(Use, BadFlagsOfGenerateAreOneLineAndExit2) {
  const std::pair<const char*, const char*> cases[] = {{"--temperature", "-1"},
                                                       {"--temperature", "nan"},
                                                       {"--temperature", "inf"},
                                                       {"--temperature", "warm"},
                                                       {"--top-k", "-1"},
                                                       {"--top-k", "1.5"},
                                                       {"--top-p", "0"},
                                                       {"--top-p", "1.1"},
                                                       {"--top-p", "nan"},
                                                       {"--min-p", "-0.1"},
                                                       {"--min-p", "2"},
                                                       {"--repetition-penalty", "0"},
                                                       {"--repetition-window", "-1"},
                                                       {"--repetition-window", "1000000000"},
                                                       {"--max-tokens", "-1"},
                                                       {"--max-tokens", "9999999999999999999999"},
                                                       {"--seed", "-1"},
                                                       {"--threads", "-1"},
                                                       {"--stop", ""},
                                                       {"--frobnicate", "1"}};
  for (const auto& [flag, value] : cases) {
    const Outcome outcome = generate({flag, value});
    EXPECT_EQ(not_one_clear_line(outcome, 2), "") << flag << " " << value;
    EXPECT_EQ(outcome.out, "");
  }
  for (const Arguments& arguments : {Arguments{"generate"},
                                     {"generate", model_, "words"},
                                     {"generate", model_, "--prompt", "a", "--prompt-file", "b"},
                                     {"inspect"},
                                     {"inspect", model_, "--all"},
                                     {"op"},
                                     {"op", "a.safetensors"},
                                     {"demo", text_, "--seconds", "0"},
                                     {"demo", text_, "--seconds", "-5"},
                                     {"demo", text_, "--seconds", "nan"},
                                     {"demo", text_, "--threads", "-1"},
                                     {"demo", text_, "--seed", "-1"},
                                     {"demo", text_, "--fast"}})
    EXPECT_EQ(not_one_clear_line(tests::run(arguments), 2), "") << arguments.back();
}

TEST_F(Use, BadFilesOfGenerateAndInspectAreOneLineAndExit1) {
  const std::string state = (scratch_ / "state").string();
  text_of({"--prompt", "x", "--max-tokens", "3", "--state-save", state});
  const std::string bytes = file_text(state);
  const std::string empty = scratch_.file("empty", ""), noise = scratch_.file("noise", std::string(1000, '\x7f'));
  const std::string cut = scratch_.file("cut", bytes.substr(0, bytes.size() - 10));
  const std::string longer = scratch_.file("longer", bytes + "x");
  const std::string huge = scratch_.file("huge", std::string("\0\0\0\0\0\0\0\x10", 8) + "{}");  // claims 2^60 bytes
  const std::string golden = std::string(LOGLINEAR_GOLDEN_DIR) + "/gated_delta_T3.safetensors";
  fs::create_directory(scratch_ / "folder");
  const std::string missing = (scratch_ / "missing").string(), folder = (scratch_ / "folder").string();

  for (const std::string& bad : {empty, noise, cut, longer, huge, missing, folder}) {
    EXPECT_EQ(not_one_clear_line(tests::run({"inspect", bad}), 1), "") << bad;
    EXPECT_EQ(not_one_clear_line(tests::run({"inspect", bad, "--json", "--stats"}), 1), "") << bad;
    EXPECT_EQ(not_one_clear_line(tests::run({"generate", bad, "--prompt", "x"}), 1), "") << bad;
    EXPECT_EQ(not_one_clear_line(generate({"--state-load", bad}), 1), "") << bad;
    EXPECT_EQ(not_one_clear_line(tests::run({"op", bad, "--out", (scratch_ / "o").string()}), 1), "") << bad;
  }
  EXPECT_EQ(not_one_clear_line(generate({"--state-load", golden}), 1), "");  // a good file of another kind
  for (const std::string& bad : {missing, folder})
    EXPECT_EQ(not_one_clear_line(generate({"--prompt-file", bad}), 1), "") << bad;
  // A checkpoint that lacks a part.
  for (const char* part : {"config.json", "model.safetensors"}) {
    const fs::path copy = scratch_ / (std::string("without-") + part);
    for (const auto& entry : fs::directory_iterator(model_))
      if (entry.is_directory())
        fs::copy(entry.path(), copy, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    fs::remove(copy / part);
    EXPECT_EQ(not_one_clear_line(tests::run({"inspect", copy.string()}), 1), "") << part;
    EXPECT_EQ(not_one_clear_line(tests::run({"generate", copy.string(), "--prompt", "x"}), 1), "") << part;
  }
}

TEST_F(Use, AConfigurationThatContradictsTheTensorsIsRefused) {
  const fs::path copy = scratch_ / "copy";
  for (const auto& entry : fs::directory_iterator(model_))
    if (entry.is_directory())
      fs::copy(entry.path(), copy, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
  nlohmann::json config = nlohmann::json::parse(file_text(copy / "config.json"));
  for (const auto& [key, value] : std::map<std::string, nlohmann::json>{{"hidden_size", 64},
                                                                        {"num_hidden_layers", 3},
                                                                        {"num_hidden_layers", 1},
                                                                        {"vocab_size", 300},
                                                                        {"num_levels", 7}}) {
    nlohmann::json changed = config;
    changed[key] = value;
    scratch_.file("copy/config.json", changed.dump());
    EXPECT_EQ(not_one_clear_line(tests::run({"inspect", copy.string()}), 1), "") << key;
    EXPECT_EQ(not_one_clear_line(tests::run({"generate", copy.string(), "--prompt", "x"}), 1), "") << key;
  }
}

TEST_F(Use, AStateOfAnotherModelIsRefused) {
  const std::string other = (scratch_ / "other").string(), state = (scratch_ / "state").string();
  ASSERT_EQ(tests::run({"train", "--data",    text_, "--out",          other, "--layers",      "2",  "--hidden-size",
                        "32",    "--heads",   "2",   "--key-width",    "16",  "--value-width", "16", "--mlp-width",
                        "32",    "--seq-len", "128", "--batch-tokens", "512", "--steps",       "1",  "--seed",
                        "9"})
                .code,
            0);
  ASSERT_EQ(tests::run({"generate", other, "--prompt", "x", "--max-tokens", "3", "--state-save", state}).code, 0);
  const Outcome outcome = generate({"--state-load", state});
  EXPECT_EQ(not_one_clear_line(outcome, 1), "");
  EXPECT_NE(outcome.err.find("another model"), std::string::npos);
}

TEST_F(Use, NoSpaceLosesNothing) {
  const std::string state = (scratch_ / "state").string(), out = (scratch_ / "out.safetensors").string();
  const std::string golden = std::string(LOGLINEAR_GOLDEN_DIR) + "/scalar_decay_T200.safetensors";
  ASSERT_EQ(generate({"--prompt", "x", "--max-tokens", "3", "--state-save", state}).code, 0);
  ASSERT_EQ(tests::run({"op", golden, "--out", out}).code, 0);
  const std::string before = file_text(state), out_before = file_text(out);
  const Limits small{.file_bytes = 4096};
  EXPECT_EQ(not_one_clear_line(tests::run({"generate", model_, "--json", "--prompt", "xyz", "--max-tokens", "3",
                                           "--state-save", state},
                                          small),
                               1),
            "");
  EXPECT_EQ(not_one_clear_line(tests::run({"op", golden, "--out", out}, small), 1), "");
  EXPECT_EQ(file_text(state), before);
  EXPECT_EQ(file_text(out), out_before);
  EXPECT_EQ(not_one_clear_line(generate({"--prompt", "x", "--state-save", (scratch_ / "none" / "state").string()}), 1),
            "");
  int files = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(scratch_.path())) ++files;
  EXPECT_EQ(files, 2);  // no temporary stays behind
}

TEST_F(Use, BadInputOfOpIsOneLine) {
  const std::string golden = std::string(LOGLINEAR_GOLDEN_DIR) + "/scalar_decay_T8.safetensors";
  const std::string out = (scratch_ / "out").string();
  const auto refused = [&](int code, Arguments more) {
    more.insert(more.begin(), {"op", golden, "--out", out});
    EXPECT_EQ(not_one_clear_line(tests::run(more), code), "") << more.back();
    EXPECT_FALSE(fs::exists(out));
  };
  refused(2, {"--rule", "mamba"});
  refused(2, {"--form", "fast"});
  refused(2, {"--dtype", "f16"});
  refused(2, {"--split", "5,3"});
  refused(2, {"--split", "9"});
  refused(2, {"--split", "-1"});
  refused(2, {"--split", "a"});
  refused(2, {"--chunk", "3"});
  refused(2, {"--threads", "-2"});
  refused(2, {"--past-last", "drop"});
  refused(2, {"--unknown", "1"});
  refused(2, {"surplus"});
  refused(1, {"--rule", "gated_delta"});  // no beta
}

// The program gives OpenMP's runtime a short time to spin, unless the user has said something, and keeps its name.
TEST_F(Use, ThreadsThatWaitSpinBriefly) {
  const Scratch scratch;
  const auto seen = [&](const std::string& given) {
    return shell(scratch, "env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT " + given +
                              " $P task mqar --count 0 >/dev/null & for i in $(seq 200); do sleep 0.05; "
                              "tr '\\000' '\\n' </proc/$!/environ | grep SPINCOUNT && break; done; "
                              "cat /proc/$!/comm; kill -KILL $!")
        .out;
  };
  EXPECT_EQ(seen(""), "GOMP_SPINCOUNT=10000\nloglinear\n");
  EXPECT_EQ(seen("GOMP_SPINCOUNT=7"), "GOMP_SPINCOUNT=7\nloglinear\n");
}

TEST_F(Use, BadTextOfDemoIsOneLine) {
  const std::string out = (scratch_ / "demo").string();
  for (const std::string& bad : {scratch_.file("empty", ""), scratch_.file("short", "too little"),
                                 (scratch_ / "missing").string(), scratch_.file("binary", std::string(10000, '\0'))}) {
    EXPECT_EQ(not_one_clear_line(tests::run({"demo", bad, "--out", out}), 1), "") << bad;
    EXPECT_FALSE(fs::exists(out));
  }
}

}  // namespace
}  // namespace loglinear::tests
