#pragma once
#include "app/train.hpp"
