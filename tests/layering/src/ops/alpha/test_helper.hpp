#pragma once
#include "compare.hpp"
