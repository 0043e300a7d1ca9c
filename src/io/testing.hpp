#pragma once
// What the tests of this folder share.

#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>
#include <iterator>
#include <string>

#include "io/file.hpp"
#include "loglinear/error.hpp"

namespace loglinear::io {

// A folder of its own for each test, removed afterwards.
class TestFolder {
 public:
  TestFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "loglinear-test-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Path operator/(const std::string& name) const { return path_ / name; }
  const Path& path() const { return path_; }

  // Number of entries, temporaries included.
  std::ptrdiff_t entries() const {
    return std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator());
  }

 private:
  Path path_;
};

// Without any of the library's own code.
inline void put(const Path& path, const std::string& contents) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream out(path, std::ios::binary);
  out << contents;
}

inline std::string get(const Path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The message of the loglinear::Error that the call throws, which must be one line; "" (and a failure) when it throws
// none.
template <class Call>
std::string error_of(Call&& call, Error::Kind kind = Error::Kind::failure) {
  try {
    call();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), message.npos) << message;
    EXPECT_EQ(error.kind(), kind) << message;
    return message;
  }
  ADD_FAILURE() << "no error was thrown";
  return "";
}

#define EXPECT_ERROR(call, part)                                                  \
  do {                                                                            \
    const std::string message_ = ::loglinear::io::error_of([&] { call; });        \
    EXPECT_NE(message_.find(part), std::string::npos) << "message: " << message_; \
  } while (false)
#define EXPECT_USAGE_ERROR(call, part)                                                                      \
  do {                                                                                                      \
    const std::string message_ = ::loglinear::io::error_of([&] { call; }, ::loglinear::Error::Kind::usage); \
    EXPECT_NE(message_.find(part), std::string::npos) << "message: " << message_;                           \
  } while (false)

}  // namespace loglinear::io
