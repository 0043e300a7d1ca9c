#include "loglinear/cross_entropy.hpp"

#include <cmath>

#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {

template <class T>
void cross_entropy(std::span<const std::int32_t> targets, std::int64_t vocab, const T* logits,
                   std::int64_t logits_stride, T scale, double* losses, T* dlogits, std::int64_t dlogits_stride,
                   int threads) {
  const TimedOperator timed("cross_entropy");
  constexpr const char* where = "cross_entropy";
  const std::int64_t N = static_cast<std::int64_t>(targets.size());
  check_sizes(where, {N, vocab});
  if (vocab < 1) fail(where, "vocab is {}, need at least 1", vocab);
  check_rows(where, "logits", N, vocab, logits, logits_stride);
  if (dlogits) check_rows(where, "dlogits", N, vocab, dlogits, dlogits_stride);
  for (std::int64_t n = 0; n < N; ++n)
    if (targets[n] < -1 || targets[n] >= vocab)
      fail(where, "target {} at position {} is outside the vocabulary of {}", targets[n], n, vocab);

  for_row_blocks(N, vocab, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const T* row = logits + n * logits_stride;
      T* drow = dlogits ? dlogits + n * dlogits_stride : nullptr;
      const std::int32_t y = targets[n];
      if (y < 0) {
        if (losses) losses[n] = 0;
        if (drow) std::fill_n(drow, vocab, T(0));
        continue;
      }
      const T largest = vec::max(vocab, row), wanted = row[y];  // before drow, which may be row
      const T sum = vec::exp_sum(vocab, row, largest, drow);
      if (losses)
        losses[n] = std::log(static_cast<double>(sum)) + (static_cast<double>(largest) - static_cast<double>(wanted));
      if (drow) {
        vec::scale(vocab, scale / sum, drow, drow);
        drow[y] -= scale;
      }
    }
  });
}

template void cross_entropy(std::span<const std::int32_t>, std::int64_t, const float*, std::int64_t, float, double*,
                            float*, std::int64_t, int);
template void cross_entropy(std::span<const std::int32_t>, std::int64_t, const double*, std::int64_t, double, double*,
                            double*, std::int64_t, int);

}  // namespace loglinear
