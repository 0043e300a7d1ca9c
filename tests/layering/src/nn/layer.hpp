#pragma once
#include "io/file.hpp"  // expect: error (sideways)
#include "loglinear/alpha.hpp"
#include "loglinear/beta.hpp"
#include "ops/alpha/kernel.hpp"
