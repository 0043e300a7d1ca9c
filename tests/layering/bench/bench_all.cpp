#include "app/train.hpp"
