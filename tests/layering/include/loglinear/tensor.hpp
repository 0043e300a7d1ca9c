#pragma once
#include <cstdint>

#include "base/scratch.hpp"  // expect: error (a public header shows a private one)
#include "fmt/format.h"      // expect: error (a public header needs a library)
#include "loglinear/error.hpp"
