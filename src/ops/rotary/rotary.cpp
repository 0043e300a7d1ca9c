#include "loglinear/rotary.hpp"

#include <cmath>
#include <vector>

#include "base/op_timer.hpp"
#include "base/rows.hpp"

namespace loglinear {

template <class T>
void rotary(Rotation rotation, std::span<const std::int64_t> cu_seqlens, std::span<const std::int64_t> positions,
            std::int64_t heads, std::int64_t width, double theta, const T* x, std::int64_t x_stride, T* y,
            std::int64_t y_stride, int threads) {
  const TimedOperator timed("rotary");
  constexpr const char* where = "rotary";
  const std::int64_t N = check_cu_seqlens(where, cu_seqlens);
  check_sizes(where, {N, heads, width});
  if (width % 2 != 0) fail(where, "width is {}, need an even number", width);
  if (!(theta > 0)) fail(where, "theta is {}, need a positive number", theta);
  if (!positions.empty() && positions.size() + 1 != cu_seqlens.size())
    fail(where, "{} positions for {} sequences", positions.size(), cu_seqlens.size() - 1);
  for (std::int64_t p : positions)
    if (p < 0 || p > std::numeric_limits<std::int64_t>::max() - N) fail(where, "position {} is out of range", p);
  check_rows(where, "x", N, heads * width, x, x_stride);
  check_rows(where, "y", N, heads * width, y, y_stride);

  const std::int64_t half = width / 2;
  std::vector<double> frequency(static_cast<std::size_t>(half));
  for (std::int64_t i = 0; i < half; ++i)
    frequency[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(width));
  for_row_blocks(N, heads * width, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> turn(static_cast<std::size_t>(width));
    T *cosine = turn.data(), *sine = cosine + half;
    std::size_t s = static_cast<std::size_t>(std::upper_bound(cu_seqlens.begin(), cu_seqlens.end(), begin) -
                                             cu_seqlens.begin() - 1);
    for (std::int64_t n = begin; n < end; ++n) {
      while (n >= cu_seqlens[s + 1]) ++s;
      const double position = static_cast<double>(n - cu_seqlens[s] + (positions.empty() ? 0 : positions[s]));
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = position * frequency[i];
        cosine[i] = static_cast<T>(std::cos(angle));
        sine[i] = static_cast<T>(rotation == Rotation::forward ? std::sin(angle) : -std::sin(angle));
      }
      for (std::int64_t h = 0; h < heads; ++h) {
        const T* from = x + n * x_stride + h * width;
        T* to = y + n * y_stride + h * width;
        for (std::int64_t i = 0; i < half; ++i) {
          const T a = from[i], b = from[half + i];
          to[i] = a * cosine[i] - b * sine[i];
          to[half + i] = b * cosine[i] + a * sine[i];
        }
      }
    }
  });
}

template void rotary(Rotation, std::span<const std::int64_t>, std::span<const std::int64_t>, std::int64_t, std::int64_t,
                     double, const float*, std::int64_t, float*, std::int64_t, int);
template void rotary(Rotation, std::span<const std::int64_t>, std::span<const std::int64_t>, std::int64_t, std::int64_t,
                     double, const double*, std::int64_t, double*, std::int64_t, int);

}  // namespace loglinear
