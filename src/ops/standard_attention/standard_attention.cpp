#include "loglinear/standard_attention.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "base/attention.hpp"
#include "base/op_timer.hpp"
#include "ops/standard_attention/kernel.hpp"

namespace loglinear {
namespace {

using standard_attention::Head;
using standard_attention::kKeys;
using standard_attention::kRows;

// Where the probabilities of each sequence begin; one more at the end.
std::vector<std::int64_t> offsets(const char* where, std::span<const AttentionSequence> sequences,
                                  const AttentionShape& shape) {
  std::vector<std::int64_t> at{0};
  for (const AttentionSequence& s : sequences) {
    const std::int64_t n = check_sizes(where, {shape.heads, s.q_count, s.k_count});
    if (n > std::numeric_limits<std::int64_t>::max() / 16 - at.back()) fail(where, "sizes overflow");
    at.push_back(at.back() + n);
  }
  return at;
}

// All heads of all sequences that hold anything, a group's one after the other.
template <class T, class Fill>
std::vector<Head<T>> heads_of(std::span<const AttentionSequence> sequences, const AttentionShape& shape,
                              const attention::Inputs<T>& in, const Fill& fill) {
  AttentionShape one = shape;  // a head is a group of one
  one.heads = one.kv_heads = shape.heads;
  const std::int64_t R = shape.heads / shape.kv_heads;
  std::vector<Head<T>> heads;
  for (std::size_t s = 0; s < sequences.size(); ++s)
    for (std::int64_t h = 0; h < shape.heads && sequences[s].k_count > 0; ++h) {
      Head<T> head;
      head.strip = attention::strip_of(in, sequences[s], one, h, attention::lags_of(shape));
      head.strip.k += (h / R - h) * shape.key_width, head.strip.v += (h / R - h) * shape.value_width;
      if (sequences[s].q_count > 0) fill(head, s, h);
      heads.push_back(head);
    }
  return heads;
}

// Pieces [first, last) of heads, the last ones first.
struct HeadPiece {
  std::size_t head;
  std::int64_t first, last;
};
template <class Body>
void in_pieces(std::size_t heads, std::int64_t size, int threads, const auto& count, const Body& body) {
  std::vector<HeadPiece> pieces;
  for (std::size_t h = 0; h < heads; ++h)
    for (std::int64_t first = 0; first < count(h); first += size)
      pieces.push_back({h, first, std::min(count(h), first + size)});
  parallel_for(static_cast<std::int64_t>(pieces.size()), threads, [&](std::int64_t i) {
    const HeadPiece& p = pieces[pieces.size() - 1 - static_cast<std::size_t>(i)];
    body(p.head, p.first, p.last);
  });
}

}  // namespace

std::int64_t standard_attention_elements(std::span<const AttentionSequence> sequences, const AttentionShape& shape) {
  constexpr const char* where = "standard_attention.elements";
  attention::check(where, sequences, shape, false);
  return offsets(where, sequences, shape).back();
}

template <class T>
void standard_attention_forward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                                std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                                std::int64_t v_stride, T* out, std::int64_t out_stride, T* probabilities, int threads) {
  const TimedOperator timed("standard_attention");
  constexpr const char* where = "standard_attention.forward";
  const auto in = attention::checked_inputs(where, sequences, shape, false, q, q_stride, k, k_stride, v, v_stride,
                                            "out", static_cast<const T*>(out), out_stride);
  const std::int64_t V = shape.value_width;
  const std::vector<std::int64_t> at = offsets(where, sequences, shape);
  check_array(where, "probabilities", at.back(), probabilities);
  const std::vector<Head<T>> heads = heads_of(sequences, shape, in, [&](Head<T>& head, std::size_t s, std::int64_t h) {
    head.probabilities = probabilities + at[s] + h * sequences[s].q_count * sequences[s].k_count;
    head.out = out + sequences[s].q_begin * out_stride + h * V, head.out_stride = out_stride;
  });
  in_pieces(
      heads.size(), kRows, threads, [&](std::size_t h) { return heads[h].strip.q_count; },
      [&](std::size_t h, std::int64_t first, std::int64_t last) {
        standard_attention::forward(heads[h], first, last);
      });
}

template <class T>
void standard_attention_backward(std::span<const AttentionSequence> sequences, const AttentionShape& shape, const T* q,
                                 std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v,
                                 std::int64_t v_stride, const T* probabilities, const T* dout, std::int64_t dout_stride,
                                 T* dq, std::int64_t dq_stride, T* dk, std::int64_t dk_stride, T* dv,
                                 std::int64_t dv_stride, int threads) {
  const TimedOperator timed("standard_attention");
  constexpr const char* where = "standard_attention.backward";
  const auto in = attention::checked_inputs(where, sequences, shape, true, q, q_stride, k, k_stride, v, v_stride,
                                            "dout", dout, dout_stride);
  attention::check_gradients<T>(where, sequences, shape, dq, dq_stride, dk, dk_stride, dv, dv_stride);
  const std::int64_t H = shape.heads, G = shape.kv_heads, K = shape.key_width, V = shape.value_width;
  const std::int64_t q_rows = attention::extent(sequences).begin;
  const std::vector<std::int64_t> at = offsets(where, sequences, shape);
  check_array(where, "probabilities", at.back(), probabilities);
  std::vector<T> means(static_cast<std::size_t>(q_rows * H));
  const std::vector<Head<T>> heads = heads_of(sequences, shape, in, [&](Head<T>& head, std::size_t s, std::int64_t h) {
    const AttentionSequence& seq = sequences[s];
    head.probabilities = const_cast<T*>(probabilities) + at[s] + h * seq.q_count * seq.k_count;  // only read
    head.dout = dout + seq.q_begin * dout_stride + h * V, head.dout_stride = dout_stride;
    head.means = means.data() + h * q_rows + seq.q_begin;
    head.dq = dq + seq.q_begin * dq_stride + h * K, head.dq_stride = dq_stride;
  });
  in_pieces(
      heads.size(), kRows, threads, [&](std::size_t h) { return heads[h].strip.q_count; },
      [&](std::size_t h, std::int64_t first, std::int64_t last) {
        standard_attention::backward_queries(heads[h], first, last);
      });
  const std::size_t R = static_cast<std::size_t>(H / G);
  in_pieces(
      heads.size() / R, kKeys, threads, [&](std::size_t g) { return heads[g * R].strip.k_count; },
      [&](std::size_t g, std::int64_t first, std::int64_t last) {
        const std::int64_t row = heads[g * R].strip.k_row, group = static_cast<std::int64_t>(g) % G;
        standard_attention::backward_keys<T>(std::span(heads).subspan(g * R, R), first, last,
                                             dk + row * dk_stride + group * K, dk_stride,
                                             dv + row * dv_stride + group * V, dv_stride);
      });
}

#define LOGLINEAR_STANDARD_ATTENTION(T)                                                                             \
  template void standard_attention_forward(std::span<const AttentionSequence>, const AttentionShape&, const T*,     \
                                           std::int64_t, const T*, std::int64_t, const T*, std::int64_t, T*,        \
                                           std::int64_t, T*, int);                                                  \
  template void standard_attention_backward(std::span<const AttentionSequence>, const AttentionShape&, const T*,    \
                                            std::int64_t, const T*, std::int64_t, const T*, std::int64_t, const T*, \
                                            const T*, std::int64_t, T*, std::int64_t, T*, std::int64_t, T*,         \
                                            std::int64_t, int);
LOGLINEAR_STANDARD_ATTENTION(float)
LOGLINEAR_STANDARD_ATTENTION(double)
#undef LOGLINEAR_STANDARD_ATTENTION

}  // namespace loglinear
