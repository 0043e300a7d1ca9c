#pragma once
#include "base/scratch.hpp"
