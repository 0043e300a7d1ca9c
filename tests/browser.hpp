#pragma once
// Opens pages in a browser.

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <string>

#include "sanitized.hpp"

namespace loglinear::tests {

// Runs tests/<script> on a page, which opens it in headless Chromium and uses it. Skips the test where there is none. A
// build with sanitizers writes the same pages: there they stay closed.
inline void look_at(const std::string& script, const std::string& page) {
  if (kSanitized) return;
  FILE* browser = popen(("python3 " LOGLINEAR_SOURCE_DIR "/tests/" + script + " '" + page + "' 2>&1").c_str(), "r");
  ASSERT_NE(browser, nullptr);
  std::string said;
  char line[4096];
  while (std::fgets(line, sizeof line, browser)) said += line;
  const int status = pclose(browser);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) GTEST_SKIP() << said;
  EXPECT_EQ(status, 0) << said;
}

}  // namespace loglinear::tests
