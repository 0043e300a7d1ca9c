#pragma once
#include <omp.h>

#include "rules/rule.hpp"
