#pragma once
#include "base/scratch.hpp"
#include "ops/alpha/kernel.hpp"  // expect: error (up)
