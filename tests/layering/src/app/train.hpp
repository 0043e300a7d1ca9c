#pragma once
#include "../../cli/commands.hpp"  // expect: error (up)
#include "app/turn.hpp"
#include "io/file.hpp"
#include "nn/layer.hpp"
