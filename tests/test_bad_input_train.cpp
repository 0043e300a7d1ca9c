// Every wrong input to train and eval ends in one clear line and an exit code, and nothing is lost.

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <sys/stat.h>

#include <algorithm>
#include <functional>

#include "nn/families.hpp"
#include "program.hpp"

namespace loglinear::tests {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

std::string numbered_lines() {
  std::string text;
  for (int i = 0; i < 300; ++i) text += "line " + std::to_string(i * i) + " of the text\n";
  return text;
}

const Arguments kTiny = {"--layers",       "1",   "--hidden-size", "16", "--heads",  "2", "--key-width", "8",
                         "--value-width",  "8",   "--mlp-width",   "16", "--levels", "5", "--seq-len",   "64",
                         "--batch-tokens", "128", "--threads",     "1"};

class BadInput : public testing::Test {
 protected:
  BadInput() : text_(scratch_.file("text.txt", numbered_lines())), out_((scratch_ / "out").string()) {}

  // A tiny training; `more` wins over its flags.
  Arguments train(const Arguments& more) {
    Arguments all = {"train", "--out", out_};
    for (std::size_t i = 0; i + 1 < kTiny.size(); i += 2)
      if (std::find(more.begin(), more.end(), kTiny[i]) == more.end()) all.insert(all.end(), {kTiny[i], kTiny[i + 1]});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  // One clear line with the words.
  void refused(const Arguments& arguments, int code, const std::string& word, const Limits& limits = {}) {
    const Outcome outcome = run(arguments, limits);
    std::string shown;
    for (const std::string& argument : arguments) shown += argument + " ";
    EXPECT_EQ(not_one_clear_line(outcome, code), "") << shown;
    EXPECT_NE(outcome.err.find(word), std::string::npos) << shown << ": no \"" << word << "\" in " << outcome.err;
  }
  // A trained checkpoint.
  fs::path trained(int steps = 4) {
    const Outcome outcome =
        run(train({"--data", text_, "--steps", std::to_string(steps), "--save-every", "2", "--val-bytes", "100"}));
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return fs::path(out_);
  }

  Scratch scratch_;
  std::string text_, out_;
};

TEST_F(BadInput, Flags) {
  refused(train({"--data", text_, "--learning-rate", "1"}), 2, "--learning-rate");
  refused(train({"--data", text_, "--steps", "4", "extra"}), 2, "extra");
  refused({"train", "--data", text_}, 2, "--out");
  refused(train({}), 2, "--data");
  refused({"eval"}, 2, "CHECKPOINT");
  refused({"eval", "x"}, 2, "--data");
  refused({"trane"}, 2, "trane");
  refused({"--frobnicate"}, 2, "--frobnicate");
  EXPECT_EQ(run({}).code, 2);
  EXPECT_NE(run({}).out.find("Usage"), std::string::npos);
  EXPECT_EQ(run({"--version"}).code, 0);
  for (const char* command : {"train", "eval"}) {
    const Outcome help = run({command, "--help"});
    EXPECT_EQ(help.code, 0);
    EXPECT_NE(help.out.find("Examples:"), std::string::npos);
  }
  EXPECT_FALSE(fs::exists(out_));
}

TEST_F(BadInput, FlagsOutOfRange) {
  const std::pair<const char*, const char*> cases[] = {{"--lr", "-1"},
                                                       {"--lr", "nan"},
                                                       {"--lr", "inf"},
                                                       {"--lr", "fast"},
                                                       {"--steps", "-1"},
                                                       {"--steps", "1.5"},
                                                       {"--steps", "99999999999999999999"},
                                                       {"--seq-len", "0"},
                                                       {"--seq-len", "256"},
                                                       {"--batch-tokens", "0"},
                                                       {"--layers", "0"},
                                                       {"--layers", "1000000"},
                                                       {"--heads", "-2"},
                                                       {"--hidden-size", "0"},
                                                       {"--levels", "0"},
                                                       {"--levels", "65"},
                                                       {"--beta1", "1"},
                                                       {"--eps", "0"},
                                                       {"--clip", "-1"},
                                                       {"--accumulate", "0"},
                                                       {"--log-every", "0"},
                                                       {"--val-fraction", "1"},
                                                       {"--val-fraction", "-0.1"},
                                                       {"--mixer", "rnn"},
                                                       {"--window", "-1"},
                                                       {"--sparsity", "3"},
                                                       {"--stride", "8"},
                                                       {"--schedule", "cos"},
                                                       {"--packing", "tight"},
                                                       {"--min-lr", "5"},
                                                       {"--groups", "3"},
                                                       {"--threads", "-1"},
                                                       {"--minutes", "-1"},
                                                       {"--seed", "-1"},
                                                       {"--initializer-range", "-0.1"},
                                                       {"--conv-width", "0"},
                                                       {"--weight-decay", "-1"},
                                                       {"--warmup", "-1"}};
  for (const auto& [flag, value] : cases) refused(train({"--data", text_, flag, value}), 2, flag + 2);
  refused(train({"--data", text_, "--steps", "2", "--minutes", "1"}), 2, "minutes");
  refused(train({"--data", text_, "--hidden-size", "1048576", "--mlp-width", "1000000"}), 2, "memory");
  EXPECT_FALSE(fs::exists(out_));
  const std::string checkpoint = trained().string();
  refused({"eval", checkpoint, "--data", text_, "--seq-len", "-1"}, 2, "--seq-len");
  refused({"eval", checkpoint, "--data", text_, "--max-bytes", "-1"}, 2, "--max-bytes");
  refused({"eval", checkpoint, "--data", text_, "--threads", "-1"}, 2, "--threads");
}

TEST_F(BadInput, Mixers) {
  const std::string help = run({"train", "--help"}).out;
  for (const nn::Family& family : nn::kFamilies) EXPECT_NE(help.find(family.name), std::string::npos) << family.name;
  refused(train({"--data", text_, "--mixer", "adamas"}), 2, "log_linear_mamba2, ");
  refused(train({"--data", text_, "--mixer", "mamba2", "--family", "mamba2"}), 2, "--mixer");
  // One that chooses by looking ahead says so, and cannot continue a text.
  const Outcome trained =
      run(train({"--data", text_, "--steps", "2", "--val-bytes", "100", "--family", "mosa", "--routed-heads", "3"}));
  EXPECT_EQ(trained.code, 0) << trained.err;
  EXPECT_EQ(trained.err.find("[train] warning: mosa"), 0u) << trained.err;
  EXPECT_EQ(trained.err.find('\n'), trained.err.size() - 1) << trained.err;
  refused({"generate", out_, "--prompt", "a"}, 1, "mosa has no streaming form: ");
  const Outcome scored = run({"eval", out_, "--data", text_});
  EXPECT_EQ(scored.code, 0) << scored.err;
  EXPECT_NE(scored.err.find("sees the future"), std::string::npos) << scored.err;
  EXPECT_NE(scored.err.find("windows of "), std::string::npos) << scored.err;
}

TEST_F(BadInput, ConfigurationFiles) {
  const auto with = [&](const std::string& name, const std::string& text) {
    return train({"--data", text_, "--config", scratch_.file(name, text)});
  };
  refused(with("a.toml", "learning_rate = 1\n"), 2, "learning-rate");
  refused(with("b.toml", "steps = \"many\"\n"), 2, "steps");
  refused(with("c.json", "{\"lr\": -2}"), 2, "lr");
  refused(with("d.yaml", "lr: 1"), 2, "toml");
  refused(with("e.toml", "lr = = 1"), 1, "e.toml");
  refused(with("f.json", "{\"lr\": 1"), 1, "f.json");
  refused(with("g.json", "[1]"), 1, "g.json");
  refused(train({"--data", text_, "--config", (scratch_ / "none.toml").string()}), 1, "none.toml");
  // The file's settings count, and flags win over them.
  const Outcome outcome =
      run(train({"--data", text_, "--config", scratch_.file("h.toml", "steps = 9\nsave_every = 1\nval_bytes = 50\n"),
                 "--steps", "3"}));
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(fs::exists(fs::path(out_) / "step-0000002"));
  EXPECT_TRUE(fs::exists(fs::path(out_) / "step-0000003"));
}

TEST_F(BadInput, Data) {
  const std::string binary("some\0binary", 11);
  refused(train({"--data", (scratch_ / "missing.txt").string()}), 1, "missing.txt");
  refused(train({"--data", scratch_.file("empty.txt", "")}), 1, "empty");
  refused(train({"--data", scratch_.file("binary.bin", binary)}), 1, "binary.bin");
  refused(train({"--data", scratch_.file("short.txt", "too short")}), 1, "--seq-len");
  refused(train({"--data", scratch_.file("a.jsonl", "{\"text\": \"fine\"}\n{\"text\": 5}\n")}), 1, "a.jsonl:2");
  refused(train({"--data", scratch_.file("b.jsonl", "{\"text\": \"fine\"\n")}), 1, "b.jsonl:1");
  refused(train({"--data", scratch_.file("c.jsonl", "{\"body\": \"fine\"}\n")}), 1, "c.jsonl:1");
  refused(train({"--data", scratch_.file("d.jsonl", "{\"text\": \"a\\u0000b\"}\n")}), 1, "");
  fs::create_directories(scratch_ / "folder");
  refused(train({"--data", (scratch_ / "folder").string()}), 1, "folder");
  scratch_.file("folder/only.bin", binary);
  refused(train({"--data", (scratch_ / "folder").string()}), 1, "folder");
  refused(train({"--data", text_, "--val-data", (scratch_ / "gone").string()}), 1, "gone");
  if (geteuid() != 0) {
    const std::string locked = scratch_.file("locked.txt", numbered_lines());
    chmod(locked.c_str(), 0);
    refused(train({"--data", locked}), 1, "locked.txt");
  }
  EXPECT_FALSE(fs::exists(out_));
  const std::string checkpoint = trained().string();
  refused({"eval", checkpoint, "--data", (scratch_ / "missing.txt").string()}, 1, "missing.txt");
  refused({"eval", checkpoint, "--data", scratch_.file("binary.bin", binary)}, 1, "binary.bin");
  refused({"eval", checkpoint, "--data", scratch_.file("empty.txt", "")}, 1, "empty.txt");
}

TEST_F(BadInput, OutFolders) {
  refused({"train", "--data", text_, "--out", text_}, 1, "text.txt");
  EXPECT_EQ(file_text(text_), numbered_lines());
  const fs::path out = trained();
  const std::string before = file_text(out / "step-0000004" / "model.safetensors");
  refused(train({"--data", text_, "--steps", "4"}), 2, "--resume");
  EXPECT_TRUE(file_text(out / "step-0000004" / "model.safetensors") == before);
  refused(train({"--data", scratch_.file("other.txt", numbered_lines() + "x"), "--resume", "--steps", "9"}), 1,
          "other text");
  refused(train({"--data", text_, "--resume", "--steps", "9", "--hidden-size", "32"}), 2, "hidden-size");
  EXPECT_TRUE(file_text(out / "step-0000004" / "model.safetensors") == before);
}

TEST_F(BadInput, NoSpaceLeft) {
  const fs::path out = trained();
  const std::string before = file_text(out / "step-0000004" / "model.safetensors");
  // The weights do not fit into a file of this size any more.
  const Limits limits{.file_bytes = 16384};
  ASSERT_GT(before.size(), 16384u);
  ASSERT_EQ(run(train({"--data", text_, "--resume", "--steps", "8"})).code, 0);
  const std::string after = file_text(out / "step-0000008" / "model.safetensors");
  refused(train({"--data", text_, "--resume", "--steps", "12"}), 1, "safetensors", limits);
  EXPECT_TRUE(file_text(out / "step-0000008" / "model.safetensors") == after);
  EXPECT_FALSE(fs::exists(out / "step-0000012"));
  for (const auto& entry : fs::directory_iterator(out))
    EXPECT_EQ(entry.path().filename().string().find(".tmp"), std::string::npos) << entry.path();
  const Outcome again = run(train({"--data", text_, "--resume", "--steps", "12"}));
  EXPECT_EQ(again.code, 0) << again.err;
}

TEST_F(BadInput, DiskFullOnOutput) {
  if (!fs::exists("/dev/full")) GTEST_SKIP();
  const fs::path out = trained();
  const std::string command = std::string(LOGLINEAR_PROGRAM) + " eval " + out.string() + " --data " + text_ +
                              " > /dev/full 2> " + (scratch_ / "err").string();
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_NE(file_text(scratch_ / "err").find("standard output"), std::string::npos);
  // A training goes on to its end and says so.
  const std::string resume = std::string(LOGLINEAR_PROGRAM) + " train --resume --steps 6 --out " + out.string() +
                             " > /dev/full 2> " + (scratch_ / "err").string();
  EXPECT_EQ(WEXITSTATUS(std::system(resume.c_str())), 0);
  EXPECT_NE(file_text(scratch_ / "err").find("goes on"), std::string::npos);
  EXPECT_TRUE(fs::exists(out / "step-0000006" / "model.safetensors"));
  // A reader that leaves is no error.
  EXPECT_EQ(WEXITSTATUS(std::system((std::string("bash -c 'set -o pipefail; ") + LOGLINEAR_PROGRAM + " eval " +
                                     out.string() + " --data " + text_ + " | true'")
                                        .c_str())),
            0);
}

TEST_F(BadInput, Checkpoints) {
  const fs::path out = trained(), step = out / "step-0000004";
  const auto eval = [&](const fs::path& path) { return Arguments{"eval", path.string(), "--data", text_}; };
  refused(eval(scratch_ / "nowhere"), 1, "nowhere");
  refused(eval(text_), 1, "text.txt");
  refused(eval(scratch_.path()), 1, "config.json");
  const auto broken = [&](const std::string& word, const std::function<void(const fs::path&)>& damage) {
    const fs::path copy = scratch_ / "copy";
    fs::remove_all(copy);
    fs::copy(step, copy, fs::copy_options::recursive);
    damage(copy);
    refused(eval(copy), 1, word);
    fs::remove(copy / "trainer.json");  // as a folder from elsewhere, without checksums
    refused(eval(copy), 1, word);
  };
  broken("model.safetensors", [](const fs::path& p) { fs::remove(p / "model.safetensors"); });
  broken("config.json", [](const fs::path& p) { fs::remove(p / "config.json"); });
  broken("model.safetensors", [](const fs::path& p) { fs::resize_file(p / "model.safetensors", 5000); });
  broken("model.safetensors", [](const fs::path& p) { fs::resize_file(p / "model.safetensors", 3); });
  broken("model.safetensors",
         [](const fs::path& p) { std::ofstream(p / "model.safetensors") << "garbage, no header"; });
  broken("config.json", [](const fs::path& p) { std::ofstream(p / "config.json") << "{]"; });
  broken("config.json", [](const fs::path& p) {
    nlohmann::json config = nlohmann::json::parse(file_text(p / "config.json"));
    config["vocab_size"] = 300;
    std::ofstream(p / "config.json") << config.dump();
  });
  // Damage in the newest one: the training folder stands for the one before.
  fs::resize_file(step / "model.safetensors", 5000);
  const Outcome outcome = run(eval(out));
  EXPECT_EQ(not_one_clear_line(outcome, 0), "");
  EXPECT_NE(outcome.err.find("step-0000004"), std::string::npos);
  fs::remove(out / "step-0000002" / "model.safetensors");
  refused(eval(out), 1, "model.safetensors");
}

TEST_F(BadInput, EvalPrintsJson) {
  const fs::path out = trained();
  for (const Arguments& more : {Arguments{}, Arguments{"--seq-len", "32"}, Arguments{"--max-bytes", "100"}}) {
    Arguments arguments = {"eval", out.string(), "--data", text_, "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run(arguments);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto json = nlohmann::json::parse(outcome.out);
    const std::int64_t size = more.size() == 2 && more[1] == "100" ? 100 : numbered_lines().size();
    EXPECT_EQ(json.at("bytes"), size);
    EXPECT_GT(json.at("bits_per_byte").get<double>(), 0.0);
    std::int64_t sum = 0;
    for (const auto& bin : json.at("positions")) sum += bin.at("bytes").get<std::int64_t>();
    EXPECT_EQ(sum, size);
  }
}

}  // namespace
}  // namespace loglinear::tests
