#pragma once  // expect: error (no room owns this header)
