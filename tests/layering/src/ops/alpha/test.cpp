#include "compare.hpp"
#include "gtest/gtest.h"
#include "ops/alpha/kernel.hpp"
#include "ops/beta/kernel.hpp"  // expect: error (a test stays on its floor)
