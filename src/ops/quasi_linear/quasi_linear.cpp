#include "loglinear/quasi_linear.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "base/cpu_features.hpp"
#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "ops/quasi_linear/cpu.hpp"

namespace loglinear {
namespace {

using quasi_linear::Inputs;
using quasi_linear::Rows;
using quasi_linear::Sum;

// Returns one past the last row of any range.
std::int64_t check(const char* where, std::span<const QuasiLinearSequence> sequences, const QuasiLinearShape& shape) {
  const auto [H, K, V, feature] = shape;
  if (H < 1 || K < 1 || V < 1) fail(where, "heads and widths must be at least 1");
  if (feature != Feature::silu && feature != Feature::shifted_elu)
    fail(where, "unknown feature {}", static_cast<int>(feature));
  check_sizes(where, {static_cast<std::int64_t>(sequences.size()), H, K + 2 * kPad, V + 2 * kPad});
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges;  // begin, end
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const auto [seeds, seed_count, candidates, candidate_count] = sequences[s];
    for (const auto& [begin, count] : {std::pair{seeds, seed_count}, std::pair{candidates, candidate_count}}) {
      constexpr std::int64_t kLimit = std::int64_t{1} << 56;
      if (begin < 0 || count < 0 || begin > kLimit || count > kLimit)
        fail(where, "sequence {}: an offset or count is out of range", s);
      if (count > 0) ranges.emplace_back(begin, begin + count);
    }
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i].first < ranges[i - 1].second) fail(where, "row {} is in two ranges", ranges[i].first);
  return ranges.empty() ? 0 : ranges.back().second;
}

// Rows of one kind, small enough to share out.
struct Piece {
  std::int64_t sequence, begin, count;
  bool candidates;
};

std::vector<Piece> pieces_of(std::span<const QuasiLinearSequence> sequences) {
  constexpr std::int64_t kRows = 512;
  std::vector<Piece> pieces;
  const auto add = [&](std::size_t s, std::int64_t begin, std::int64_t count, bool candidates) {
    for (std::int64_t at = 0; at < count; at += kRows)
      pieces.push_back({static_cast<std::int64_t>(s), begin + at, std::min(kRows, count - at), candidates});
  };
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    add(s, sequences[s].seed_begin, sequences[s].seed_count, false);
    add(s, sequences[s].candidate_begin, sequences[s].candidate_count, true);
  }
  return pieces;
}

// One matrix a sequence and head in scratch memory.
template <class T>
struct States {
  std::int64_t height, width;
  std::unique_ptr<T[]> memory;

  States(std::size_t sequences, std::int64_t H, std::int64_t rows, std::int64_t columns)
      : height(rows), width(columns) {
    const std::int64_t count = static_cast<std::int64_t>(sequences) * H * rows * row_stride(columns);
    memory = std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(count));
  }
  T* of(std::int64_t i) const { return memory.get() + i * height * row_stride(width); }

  void load(std::int64_t i, const T* from) const {
    if (!from) return std::fill_n(of(i), height * row_stride(width), T(0)), void();
    for (std::int64_t r = 0; r < height; ++r) std::copy_n(from + r * width, width, of(i) + r * row_stride(width));
  }
  void store(std::int64_t i, T* to) const {
    for (std::int64_t r = 0; r < height; ++r) std::copy_n(of(i) + r * row_stride(width), width, to + r * width);
  }
};

// Calls body(sequence, head, first column, columns): all columns, unless that leaves threads without work.
template <class Body>
void for_heads(std::size_t sequences, std::int64_t H, std::int64_t width, int threads, const Body& body) {
  const std::int64_t heads = static_cast<std::int64_t>(sequences) * H;
  if (heads == 0) return;
  const std::int64_t wanted = std::max<std::int64_t>(1, thread_count(threads) / heads);
  const std::int64_t columns = padded((width + wanted - 1) / wanted), parts = (width + columns - 1) / columns;
  parallel_for(heads * parts, threads, [&](std::int64_t i) {
    const std::int64_t head = i / parts, first = i % parts * columns;
    body(head / H, head % H, first, std::min(columns, width - first));
    quasi_linear::trim_scratch();
  });
}

// The columns of one head.
template <class T>
Inputs<T> inputs_of(const QuasiLinearShape& shape, std::int64_t h, const T* q, std::int64_t q_stride, const T* k,
                    std::int64_t k_stride, const T* v, std::int64_t v_stride, const T* dout, std::int64_t dout_stride) {
  const std::int64_t K = shape.key_width, V = shape.value_width;
  const auto rows = [h](const T* data, std::int64_t stride, std::int64_t width) {
    return Rows<const T>{data ? data + h * width : nullptr, stride};
  };
  return {shape.feature,
          K,
          V,
          rows(q, q_stride, K),
          rows(k, k_stride, K),
          rows(v, v_stride, V),
          rows(dout, dout_stride, V)};
}

template <class T>
void check_states(const char* where, const char* name, std::size_t sequences, std::span<T* const> states) {
  if (!states.empty() && states.size() != sequences)
    fail(where, "{} {} for {} sequences", states.size(), name, sequences);
}

}  // namespace

template <class T>
void quasi_linear_forward(std::span<const QuasiLinearSequence> sequences, const QuasiLinearShape& shape, const T* q,
                          std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v, std::int64_t v_stride,
                          T* out, std::int64_t out_stride, std::span<const T* const> initial_state,
                          std::span<T* const> final_state, int threads) {
  const TimedOperator timed("quasi_linear");
  constexpr const char* where = "quasi_linear.forward";
  const std::int64_t rows = check(where, sequences, shape), H = shape.heads, K = shape.key_width, V = shape.value_width;
  check_rows(where, "q", rows, H * K, q, q_stride);
  check_rows(where, "k", rows, H * K, k, k_stride);
  check_rows(where, "v", rows, H * V, v, v_stride);
  check_rows(where, "out", rows, H * V, out, out_stride);
  check_states(where, "initial states", sequences.size(), initial_state);
  check_states(where, "final states", sequences.size(), final_state);
  apply_instruction_set_from_environment();

  const States<T> states(sequences.size(), H, K, V);
  const auto inputs = [&](std::int64_t h) {
    return inputs_of<T>(shape, h, q, q_stride, k, k_stride, v, v_stride, nullptr, 0);
  };
  // A part of the columns is loaded with all of them: what the others do with theirs is theirs.
  parallel_for(static_cast<std::int64_t>(sequences.size()) * H, threads, [&](std::int64_t i) {
    const T* const from = initial_state.empty() ? nullptr : initial_state[i / H];
    states.load(i, from ? from + i % H * K * V : nullptr);
  });
  for_heads(sequences.size(), H, V, threads, [&](std::int64_t s, std::int64_t h, std::int64_t first, std::int64_t n) {
    Inputs<T> in = inputs(h);
    in.v.data += in.v.data ? first : 0, in.V = n;
    quasi_linear::add_rows(in, Sum::state, T(1), row_stride(V), sequences[s].seed_begin, sequences[s].seed_count,
                           states.of(s * H + h) + first);
  });
  const std::vector<Piece> pieces = pieces_of(sequences);
  parallel_for(static_cast<std::int64_t>(pieces.size()) * H, threads, [&](std::int64_t i) {
    const Piece& piece = pieces[static_cast<std::size_t>(i / H)];
    const std::int64_t h = i % H;
    quasi_linear::read_rows(inputs(h), piece.candidates, piece.begin, piece.count, states.of(piece.sequence * H + h),
                            Rows<T>{out + h * V, out_stride});
    quasi_linear::trim_scratch();
  });
  for (std::size_t s = 0; s < final_state.size(); ++s)
    for (std::int64_t h = 0; final_state[s] && h < H; ++h)
      states.store(static_cast<std::int64_t>(s) * H + h, final_state[s] + h * K * V);
}

template <class T>
void quasi_linear_backward(std::span<const QuasiLinearSequence> sequences, const QuasiLinearShape& shape, const T* q,
                           std::int64_t q_stride, const T* k, std::int64_t k_stride, const T* v, std::int64_t v_stride,
                           const T* dout, std::int64_t dout_stride, T* dq, std::int64_t dq_stride, T* dk,
                           std::int64_t dk_stride, T* dv, std::int64_t dv_stride, int threads) {
  const TimedOperator timed("quasi_linear");
  constexpr const char* where = "quasi_linear.backward";
  const std::int64_t rows = check(where, sequences, shape), H = shape.heads, K = shape.key_width, V = shape.value_width;
  check_rows(where, "q", rows, H * K, q, q_stride);
  check_rows(where, "k", rows, H * K, k, k_stride);
  check_rows(where, "v", rows, H * V, v, v_stride);
  check_rows(where, "dout", rows, H * V, dout, dout_stride);
  check_rows(where, "dq", rows, H * K, dq, dq_stride);
  check_rows(where, "dk", rows, H * K, dk, dk_stride);
  check_rows(where, "dv", rows, H * V, dv, dv_stride);
  apply_instruction_set_from_environment();

  const std::size_t S = sequences.size();
  const States<T> z(S, H, V, K), w(S, H, V, K), w_transposed(S, H, K, V);
  const auto inputs = [&](std::int64_t h) {
    return inputs_of<T>(shape, h, q, q_stride, k, k_stride, v, v_stride, dout, dout_stride);
  };
  // The two sums as (V, K): columns of values are rows of them, and parts of it may be made apart.
  for_heads(S, H, V, threads, [&](std::int64_t s, std::int64_t h, std::int64_t first, std::int64_t n) {
    const QuasiLinearSequence& sequence = sequences[s];
    Inputs<T> in = inputs(h);
    if (in.v.data) in.v.data += first, in.dout.data += first;
    in.V = n;
    const std::int64_t i = s * H + h, offset = first * row_stride(K);
    std::fill_n(z.of(i) + offset, n * row_stride(K), T(0));
    std::fill_n(w.of(i) + offset, n * row_stride(K), T(0));
    const auto add = [&](Sum sum, std::int64_t begin, std::int64_t count, const States<T>& to) {
      quasi_linear::add_rows(in, sum, T(1), row_stride(K), begin, count, to.of(i) + offset);
    };
    add(Sum::transposed, sequence.seed_begin, sequence.seed_count, z);
    add(Sum::query_gradient, sequence.seed_begin, sequence.seed_count, w);
    add(Sum::query_gradient, sequence.candidate_begin, sequence.candidate_count, w);
  });
  parallel_for(static_cast<std::int64_t>(S) * H, threads,
               [&](std::int64_t i) { quasi_linear::transpose_matrix(V, K, w.of(i), w_transposed.of(i)); });
  const std::vector<Piece> pieces = pieces_of(sequences);
  parallel_for(static_cast<std::int64_t>(pieces.size()) * H, threads, [&](std::int64_t item) {
    const Piece& piece = pieces[static_cast<std::size_t>(item / H)];
    const std::int64_t h = item % H, i = piece.sequence * H + h;
    quasi_linear::backward_rows(inputs(h), piece.candidates, piece.begin, piece.count, z.of(i), w.of(i),
                                w_transposed.of(i), Rows<T>{dq + h * K, dq_stride}, Rows<T>{dk + h * K, dk_stride},
                                Rows<T>{dv + h * V, dv_stride});
    quasi_linear::trim_scratch();
  });
}

template <class T>
void quasi_linear_update(SeedUpdate update, std::span<const QuasiLinearSequence> sequences,
                         const QuasiLinearShape& shape, const T* k, std::int64_t k_stride, const T* v,
                         std::int64_t v_stride, std::span<T* const> state, int threads) {
  const TimedOperator timed("quasi_linear");
  constexpr const char* where = "quasi_linear.update";
  // Of a sequence its seeds count, wherever its candidates are.
  std::vector<QuasiLinearSequence> seeds(sequences.begin(), sequences.end());
  for (QuasiLinearSequence& sequence : seeds) sequence.candidate_begin = sequence.candidate_count = 0;
  const std::int64_t rows = check(where, seeds, shape), H = shape.heads, K = shape.key_width, V = shape.value_width;
  check_rows(where, "k", rows, H * K, k, k_stride);
  check_rows(where, "v", rows, H * V, v, v_stride);
  if (state.size() != sequences.size()) fail(where, "{} states for {} sequences", state.size(), sequences.size());
  for (const T* z : state) check_array(where, "a state", H * K * V, z);
  apply_instruction_set_from_environment();

  for_heads(seeds.size(), H, V, threads, [&](std::int64_t s, std::int64_t h, std::int64_t first, std::int64_t n) {
    if (seeds[s].seed_count == 0) return;
    Inputs<T> in = inputs_of<T>(shape, h, nullptr, 0, k, k_stride, v, v_stride, nullptr, 0);
    in.v.data += first, in.V = n;
    // Columns [first, first + n) of the state, in rows of whole vectors.
    T* const z = state[s] + h * K * V + first;
    const std::int64_t stride = row_stride(n);
    const std::unique_ptr<T[]> part = std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(K * stride));
    for (std::int64_t r = 0; r < K; ++r) std::copy_n(z + r * V, n, part.get() + r * stride);
    quasi_linear::add_rows(in, Sum::state, update == SeedUpdate::add ? T(1) : T(-1), stride, seeds[s].seed_begin,
                           seeds[s].seed_count, part.get());
    for (std::int64_t r = 0; r < K; ++r) std::copy_n(part.get() + r * stride, n, z + r * V);
  });
}

#define LOGLINEAR_QUASI_LINEAR(T)                                                                                    \
  template void quasi_linear_forward(std::span<const QuasiLinearSequence>, const QuasiLinearShape&, const T*,        \
                                     std::int64_t, const T*, std::int64_t, const T*, std::int64_t, T*, std::int64_t, \
                                     std::span<const T* const>, std::span<T* const>, int);                           \
  template void quasi_linear_backward(std::span<const QuasiLinearSequence>, const QuasiLinearShape&, const T*,       \
                                      std::int64_t, const T*, std::int64_t, const T*, std::int64_t, const T*,        \
                                      std::int64_t, T*, std::int64_t, T*, std::int64_t, T*, std::int64_t, int);      \
  template void quasi_linear_update(SeedUpdate, std::span<const QuasiLinearSequence>, const QuasiLinearShape&,       \
                                    const T*, std::int64_t, const T*, std::int64_t, std::span<T* const>, int);
LOGLINEAR_QUASI_LINEAR(float)
LOGLINEAR_QUASI_LINEAR(double)
#undef LOGLINEAR_QUASI_LINEAR

}  // namespace loglinear
