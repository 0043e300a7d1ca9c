#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <random>
#include <thread>

#include "io/json_log.hpp"
#include "io/testing.hpp"

namespace loglinear::io {
namespace {

using nlohmann::json;

TEST(JsonLog, AppendsLines) {
  TestFolder folder;
  {
    JsonLog log(folder / "l.jsonl");
    log.write(json{{"step", 1}});
    EXPECT_EQ(get(folder / "l.jsonl"), "{\"step\":1}\n");  // there at once
    log.write(nlohmann::ordered_json{{"z", 1}, {"a", NAN}, {"s", "\xff\n"}});
    EXPECT_EQ(log.size(), get(folder / "l.jsonl").size());
  }
  JsonLog log(folder / "l.jsonl");
  log.write(json{{"step", 3}});
  EXPECT_EQ(get(folder / "l.jsonl"), "{\"step\":1}\n{\"z\":1,\"a\":null,\"s\":\"\xef\xbf\xbd\\n\"}\n{\"step\":3}\n");
}

TEST(JsonLog, RemovesAHalfWrittenLine) {
  TestFolder folder;
  put(folder / "l", "{\"step\":1}\n{\"step\":2,\"los");
  { JsonLog log(folder / "l"); }
  EXPECT_EQ(get(folder / "l"), "{\"step\":1}\n");
  put(folder / "l", "{\"x\":\"" + std::string(20000, 'x'));  // one line, longer than a block, and only half there
  JsonLog log(folder / "l");
  log.write(json{{"step", 2}});
  EXPECT_EQ(get(folder / "l"), "{\"step\":2}\n");
}

TEST(JsonLog, CutsWhatAResumedRunRepeats) {
  TestFolder folder;
  put(folder / "l", "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st");
  { JsonLog log(folder / "l", 22); }
  EXPECT_EQ(get(folder / "l"), "{\"step\":1}\n{\"step\":2}\n");
  { JsonLog log(folder / "l", 1000); }
  EXPECT_EQ(get(folder / "l"), "{\"step\":1}\n{\"step\":2}\n");
  { JsonLog log(folder / "l", 15); }  // inside a line: whole lines only
  EXPECT_EQ(get(folder / "l"), "{\"step\":1}\n");
  { JsonLog log(folder / "l", 0); }
  EXPECT_EQ(get(folder / "l"), "");
}

TEST(JsonLog, LeavesOtherFilesAlone) {
  TestFolder folder;
  for (const std::string contents : {"my precious text", "title\n{\"a\":1}\n", "{\"a\":1}\ntext at the end"}) {
    put(folder / "file", contents);
    EXPECT_ERROR(JsonLog(folder / "file"), "is not a JSON-lines log");
    EXPECT_EQ(get(folder / "file"), contents);
  }
  EXPECT_ERROR(JsonLog(folder.path()), "Is a directory");
  EXPECT_ERROR(JsonLog(folder / "none/l"), "No such file");
}

TEST(JsonLog, FullDisk) {
  {
    JsonLog null("/dev/null");
    null.write(json{{"a", 1}});
  }
  JsonLog full("/dev/full");
  EXPECT_ERROR(full.write(json{{"a", 1}}), "No space left on device");

  TestFolder folder;
  JsonLog log(folder / "l");
  log.write(json{{"step", 1}});
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit limit{100, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &limit);
  const std::string message = error_of([&] { log.write(json{{"long", std::string(500, 'x')}}); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_NE(message.find("File too large"), message.npos) << message;
  EXPECT_EQ(get(folder / "l"), "{\"step\":1}\n");
  log.write(json{{"step", 2}});
  EXPECT_EQ(get(folder / "l"), "{\"step\":1}\n{\"step\":2}\n");
}

// A writer killed at any moment leaves whole lines, each once and in order, after reopening.
TEST(JsonLog, KilledWriter) {
  TestFolder folder;
  std::mt19937 random(1);
  for (int i = 0; i < 20; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      JsonLog log(folder / "l");
      for (;;) log.write(json{{"run", i}, {"fill", std::string(3000, 'x')}});
    }
    std::this_thread::sleep_for(std::chrono::microseconds(1000 + random() % 3000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
  }
  { JsonLog log(folder / "l"); }
  std::istringstream lines(get(folder / "l"));
  int last = 0;
  for (std::string line; std::getline(lines, line);) {
    const json object = json::parse(line);
    EXPECT_GE(object["run"], last);
    last = object["run"];
    EXPECT_EQ(object["fill"].get<std::string>().size(), 3000u);
  }
}

}  // namespace
}  // namespace loglinear::io
