// The tiles of the small matrix kernel, compiled once for every instruction set.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "base/matrix.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "base/matrix-inl.h"

HWY_BEFORE_NAMESPACE();
namespace loglinear {
namespace HWY_NAMESPACE {

LOGLINEAR_PRODUCT_PANELS(template)

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();
