#pragma once  // expect: error (a circle)
#include "two.hpp"
