#pragma once
#include "io/file.hpp"
