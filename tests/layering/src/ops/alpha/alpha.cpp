#include "loglinear/alpha.hpp"
#include "../beta/kernel.hpp"  // expect: error (sideways, by a relative path)
#include "kernel.hpp"
#include "nn/layer.hpp"  // expect: error (up)
#include "ops/alpha/kernel.hpp"
#include "ops/beta/kernel.hpp"        // expect: error (sideways)
#include "ops/stray.hpp"              // expect: error (belongs to no operator)
#include KERNEL_HEADER                // expect: error (cannot be read)
#include "ops/alpha/test_helper.hpp"  // expect: error (only tests may use a header for tests)
