#pragma once
#include "compare.hpp"  // expect: error (only tests may use tests/)
#include "loglinear/beta.hpp"
