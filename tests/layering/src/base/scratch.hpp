#pragma once
#include "loglinear/alpha.hpp"  // expect: error (up)
#include "rules/rule.hpp"       // expect: error (up)
