#pragma once  // expect: error (belongs to no operator)
