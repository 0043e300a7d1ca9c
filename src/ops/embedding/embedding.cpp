#include "loglinear/embedding.hpp"

#include <algorithm>

#include "base/op_timer.hpp"
#include "base/rows.hpp"

namespace loglinear {
namespace {

std::int64_t check(const char* where, std::span<const std::int32_t> tokens, std::int64_t vocab, std::int64_t width,
                   const void* table, const void* rows) {
  const std::int64_t N = static_cast<std::int64_t>(tokens.size());
  check_sizes(where, {vocab, width});
  check_sizes(where, {N, width});
  for (std::int64_t n = 0; n < N; ++n)
    if (tokens[n] < 0 || tokens[n] >= vocab)
      fail(where, "token {} at position {} is outside the vocabulary of {}", tokens[n], n, vocab);
  if (N > 0 && width > 0 && (!table || !rows)) fail(where, "the table or the rows are null");
  return N;
}

}  // namespace

template <class T>
void embedding_forward(std::span<const std::int32_t> tokens, std::int64_t vocab, std::int64_t width, const T* table,
                       T* out, int threads) {
  const TimedOperator timed("embedding");
  const std::int64_t N = check("embedding.forward", tokens, vocab, width, table, out);
  for_row_blocks(N, width, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) std::copy_n(table + tokens[n] * width, width, out + n * width);
  });
}

template <class T>
void embedding_backward(std::span<const std::int32_t> tokens, std::int64_t vocab, std::int64_t width, const T* dout,
                        T* dtable, int threads) {
  const TimedOperator timed("embedding");
  const std::int64_t N = check("embedding.backward", tokens, vocab, width, dtable, dout);
  if (N == 0) return;
  // Every item owns some columns of the table and walks the tokens in order.
  constexpr std::int64_t kColumns = 64;
  parallel_for((width + kColumns - 1) / kColumns, threads, [&](std::int64_t i) {
    const std::int64_t from = i * kColumns, to = std::min(width, from + kColumns);
    for (std::int64_t n = 0; n < N; ++n) {
      const T* row = dout + n * width;
      T* sum = dtable + tokens[n] * width;
      for (std::int64_t c = from; c < to; ++c) sum[c] += row[c];
    }
  });
}

#define LOGLINEAR_EMBEDDING(T)                                                                                   \
  template void embedding_forward(std::span<const std::int32_t>, std::int64_t, std::int64_t, const T*, T*, int); \
  template void embedding_backward(std::span<const std::int32_t>, std::int64_t, std::int64_t, const T*, T*, int);
LOGLINEAR_EMBEDDING(float)
LOGLINEAR_EMBEDDING(double)
#undef LOGLINEAR_EMBEDDING

}  // namespace loglinear
