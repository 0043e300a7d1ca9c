#pragma once
#include "loglinear/beta.hpp"  // expect: error (sideways: another operator's public header)
#include "loglinear/error.hpp"
