#include "loglinear/short_conv.hpp"

#include <algorithm>
#include <vector>

#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

constexpr std::int64_t kMaxConvWidth = 16;

template <class T>
std::int64_t check(const char* where, std::span<const std::int64_t> cu_seqlens, std::int64_t channels,
                   std::int64_t width, const T* x, std::int64_t x_stride, const T* weight) {
  const std::int64_t N = check_cu_seqlens(where, cu_seqlens);
  check_sizes(where, {N, channels, kMaxConvWidth});
  if (width < 1 || width > kMaxConvWidth) fail(where, "width is {}, need 1 to {}", width, kMaxConvWidth);
  check_rows(where, "x", N, channels, x, x_stride);
  if (N > 0) check_array(where, "weight", channels, weight);
  return N;
}

// (channels, width) -> (width, channels): a tap is then one product of contiguous rows.
template <class T>
std::vector<T> taps_of(std::int64_t channels, std::int64_t width, const T* weight) {
  std::vector<T> taps(static_cast<std::size_t>(width * channels));
  for (std::int64_t c = 0; c < channels; ++c)
    for (std::int64_t i = 0; i < width; ++i) taps[i * channels + c] = weight[c * width + i];
  return taps;
}

// The sequence that row n belongs to.
std::size_t sequence_of(std::span<const std::int64_t> cu_seqlens, std::int64_t n) {
  return static_cast<std::size_t>(std::upper_bound(cu_seqlens.begin(), cu_seqlens.end(), n) - cu_seqlens.begin() - 1);
}

}  // namespace

template <class T>
void short_conv_forward(std::span<const std::int64_t> cu_seqlens, std::int64_t channels, std::int64_t width, const T* x,
                        std::int64_t x_stride, const T* weight, const T* bias, std::span<const T* const> initial_state,
                        T* y, std::int64_t y_stride, std::span<T* const> final_state, int threads) {
  const TimedOperator timed("short_conv");
  constexpr const char* where = "short_conv.forward";
  const std::int64_t N = check(where, cu_seqlens, channels, width, x, x_stride, weight);
  const std::size_t S = cu_seqlens.size() - 1;
  check_rows(where, "y", N, channels, y, y_stride);
  if (!initial_state.empty() && initial_state.size() != S)
    fail(where, "{} initial states for {} sequences", initial_state.size(), S);
  if (!final_state.empty() && final_state.size() != S)
    fail(where, "{} final states for {} sequences", final_state.size(), S);
  const std::int64_t tail = width - 1;
  // The input of sequence s at its token t, which may lie before its start; null stands for zeros.
  const auto input = [&](std::size_t s, std::int64_t t) -> const T* {
    if (t >= 0) return x + (cu_seqlens[s] + t) * x_stride;
    return initial_state.empty() || !initial_state[s] ? nullptr : initial_state[s] + (tail + t) * channels;
  };

  const std::vector<T> taps = N > 0 ? taps_of(channels, width, weight) : std::vector<T>();
  for_row_blocks(N, channels, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> sum(static_cast<std::size_t>(channels));
    std::size_t s = sequence_of(cu_seqlens, begin);
    for (std::int64_t n = begin; n < end; ++n) {
      while (n >= cu_seqlens[s + 1]) ++s;
      if (bias)
        std::copy_n(bias, channels, sum.data());
      else
        std::fill(sum.begin(), sum.end(), T(0));
      const T *weights[kMaxConvWidth], *inputs[kMaxConvWidth];
      for (std::int64_t i = 0; i < width; ++i) {
        weights[i] = taps.data() + i * channels;
        inputs[i] = input(s, n - cu_seqlens[s] - tail + i);
      }
      vec::add_products(channels, width, weights, inputs, sum.data());
      vec::silu(channels, sum.data(), y + n * y_stride);
    }
  });

  // Last, because final states may be the initial ones. Rows move towards the front, so ascending order never reads a
  // row that was overwritten.
  for (std::size_t s = 0; s < final_state.size(); ++s) {
    if (!final_state[s]) continue;
    const std::int64_t length = cu_seqlens[s + 1] - cu_seqlens[s];
    for (std::int64_t j = 0; j < tail; ++j) {
      T* to = final_state[s] + j * channels;
      const T* from = input(s, length - tail + j);
      if (!from)
        std::fill_n(to, channels, T(0));
      else if (from != to)
        std::copy_n(from, channels, to);
    }
  }
}

template <class T>
void short_conv_backward(std::span<const std::int64_t> cu_seqlens, std::int64_t channels, std::int64_t width,
                         const T* x, std::int64_t x_stride, const T* weight, const T* bias, const T* dy,
                         std::int64_t dy_stride, T* dx, std::int64_t dx_stride, T* dweight, T* dbias, int threads) {
  const TimedOperator timed("short_conv");
  constexpr const char* where = "short_conv.backward";
  const std::int64_t N = check(where, cu_seqlens, channels, width, x, x_stride, weight);
  check_rows(where, "dy", N, channels, dy, dy_stride);
  check_rows(where, "dx", N, channels, dx, dx_stride);
  if (N > 0) check_array(where, "dweight", channels, dweight);
  if (!bias != !dbias && channels > 0 && N > 0) fail(where, "bias and dbias must both be given or both be null");
  if (N == 0 || channels == 0) return;

  const std::int64_t tail = width - 1;
  const std::vector<T> taps = taps_of(channels, width, weight);
  std::vector<T> sums(static_cast<std::size_t>((width + 1) * channels), T(0));  // dweight by taps, then dbias
  add_row_sums(N, (width + 1) * channels, sums.data(), threads, [&](std::int64_t begin, std::int64_t end, T* part) {
    constexpr std::int64_t kColumns = 128;
    std::vector<T> du(static_cast<std::size_t>((end - begin + tail) * kColumns));
    const T *weights[kMaxConvWidth], *others[kMaxConvWidth];
    for (std::int64_t c = 0; c < channels; c += kColumns) {
      const std::int64_t columns = std::min(kColumns, channels - c);
      for (std::int64_t i = 0; i < width; ++i) weights[i] = taps.data() + i * channels + c;
      // du: the gradient before silu, for the block's rows and the rows of its last sequence that the block's inputs
      // still reach.
      std::size_t s = sequence_of(cu_seqlens, begin);
      const std::int64_t last = std::min(end + tail, cu_seqlens[sequence_of(cu_seqlens, end - 1) + 1]);
      for (std::int64_t n = begin; n < last; ++n) {
        while (n >= cu_seqlens[s + 1]) ++s;
        T* row = du.data() + (n - begin) * kColumns;
        if (bias)
          std::copy_n(bias + c, columns, row);
        else
          std::fill_n(row, columns, T(0));
        for (std::int64_t i = 0; i < width; ++i) {
          const std::int64_t from = n - tail + i;
          others[i] = from >= cu_seqlens[s] ? x + from * x_stride + c : nullptr;
        }
        vec::add_products(columns, width, weights, others, row);
        vec::silu_backward(columns, row, dy + n * dy_stride + c, row);
      }
      s = sequence_of(cu_seqlens, begin);
      for (std::int64_t n = begin; n < end; ++n) {
        while (n >= cu_seqlens[s + 1]) ++s;
        const T* row = du.data() + (n - begin) * kColumns;
        T* to = dx + n * dx_stride + c;
        std::fill_n(to, columns, T(0));
        for (std::int64_t i = 0; i < width; ++i) {
          const std::int64_t reader = n + tail - i, from = n - tail + i;
          others[i] = reader < cu_seqlens[s + 1] ? du.data() + (reader - begin) * kColumns : nullptr;
          if (from >= cu_seqlens[s])
            vec::add_product(columns, T(1), row, x + from * x_stride + c, part + i * channels + c);
        }
        vec::add_products(columns, width, weights, others, to);
        vec::add_scaled(columns, T(1), row, part + width * channels + c);
      }
    }
  });
  for (std::int64_t c = 0; c < channels; ++c) {
    for (std::int64_t i = 0; i < width; ++i) dweight[c * width + i] += sums[i * channels + c];
    if (dbias) dbias[c] += sums[width * channels + c];
  }
}

#define LOGLINEAR_SHORT_CONV(T)                                                                                        \
  template void short_conv_forward(std::span<const std::int64_t>, std::int64_t, std::int64_t, const T*, std::int64_t,  \
                                   const T*, const T*, std::span<const T* const>, T*, std::int64_t,                    \
                                   std::span<T* const>, int);                                                          \
  template void short_conv_backward(std::span<const std::int64_t>, std::int64_t, std::int64_t, const T*, std::int64_t, \
                                    const T*, const T*, const T*, std::int64_t, T*, std::int64_t, T*, T*, int);
LOGLINEAR_SHORT_CONV(float)
LOGLINEAR_SHORT_CONV(double)
#undef LOGLINEAR_SHORT_CONV

}  // namespace loglinear
