#pragma once
#include <loglinear/gone.hpp>  // expect: error (no such file)
