// Whether a sanitizer watches: everything takes ten times as long there, so tests draw fewer cases of each kind. The
// numbers are checked by the build without one, on all of them.
#pragma once

namespace loglinear {

#ifdef LOGLINEAR_SANITIZED
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace loglinear
