#pragma once
#include "base/scratch.hpp"
#include "nn/layer.hpp"  // expect: error (sideways)
