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
using quasi_linear::Matrices;
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
  // Of head i and those after it.
  Matrices<T> from(std::int64_t i) const {
    const std::int64_t step = height * row_stride(width);
    return {memory.get() + i * step, row_stride(width), step};
  }
  T* of(std::int64_t i) const { return from(i).data; }

  void load(std::int64_t i, const T* values) const {
    for (std::int64_t r = 0; r < height; ++r) {
      T* const to = of(i) + r * row_stride(width);
      values ? std::copy_n(values + r * width, width, to) : std::fill_n(to, width, T(0));
    }
  }
  void store(std::int64_t i, T* values) const {
    for (std::int64_t r = 0; r < height; ++r) std::copy_n(of(i) + r * row_stride(width), width, values + r * width);
  }
};

// Heads [first, first + count) of a sequence.
struct Group {
  std::int64_t sequence, first, count;
};

// As many heads together as have their tiles in cache, fewer where threads would have nothing to do.
std::int64_t group_size(const QuasiLinearShape& shape, std::int64_t pieces, int threads) {
  const std::int64_t H = shape.heads, fit = 512 / (shape.key_width + shape.value_width);
  const std::int64_t wanted = 2 * thread_count(threads);  // groups
  const std::int64_t fair = H * std::max<std::int64_t>(1, pieces) / wanted;
  return std::clamp<std::int64_t>(std::min(fit, fair), 1, H);
}

// Calls body(group, first column, columns): all columns of the values, unless heads and sequences are fewer than
// threads.
template <class Body>
void for_groups(std::int64_t sequences, const QuasiLinearShape& shape, int threads, const Body& body) {
  if (sequences == 0) return;
  const std::int64_t H = shape.heads, V = shape.value_width, size = group_size(shape, sequences, threads);
  const std::int64_t groups = (H + size - 1) / size;
  const std::int64_t cuts = size > 1 ? 1 : std::max<std::int64_t>(1, thread_count(threads) / (sequences * H));
  const std::int64_t columns = cuts > 1 ? padded((V + cuts - 1) / cuts) : V, parts = (V + columns - 1) / columns;
  parallel_for(sequences * groups * parts, threads, [&](std::int64_t i) {
    const std::int64_t group = i / parts % groups, first = i % parts * columns;
    body(Group{i / parts / groups, group * size, std::min(size, H - group * size)}, first,
         std::min(columns, V - first));
    quasi_linear::trim_scratch();
  });
}

// Calls body(piece, group) for all rows.
template <class Body>
void for_pieces(std::span<const QuasiLinearSequence> sequences, const QuasiLinearShape& shape, int threads,
                const Body& body) {
  const std::vector<Piece> pieces = pieces_of(sequences);
  const std::int64_t H = shape.heads, count = static_cast<std::int64_t>(pieces.size());
  const std::int64_t size = group_size(shape, count, threads), groups = (H + size - 1) / size;
  parallel_for(count * groups, threads, [&](std::int64_t i) {
    const Piece& piece = pieces[static_cast<std::size_t>(i / groups)];
    const std::int64_t first = i % groups * size;
    body(piece, Group{piece.sequence, first, std::min(size, H - first)});
    quasi_linear::trim_scratch();
  });
}

// The arrays of a call.
template <class T>
struct Arrays {
  const QuasiLinearShape& shape;
  const T* q = nullptr;
  std::int64_t q_stride = 0;
  const T* k = nullptr;
  std::int64_t k_stride = 0;
  const T* v = nullptr;
  std::int64_t v_stride = 0;
  const T* dout = nullptr;
  std::int64_t dout_stride = 0;

  // Of a group, from column `first` of its values on, which is 0 unless the group is one head.
  Inputs<T> of(const Group& group, std::int64_t first, std::int64_t columns) const {
    const auto rows = [&](const T* data, std::int64_t stride, std::int64_t width, std::int64_t column) {
      return quasi_linear::Rows<const T>{data ? data + group.first * width + column : nullptr, stride};
    };
    const std::int64_t K = shape.key_width, V = shape.value_width;
    return {shape.feature,
            group.count,
            K,
            columns,
            rows(q, q_stride, K, 0),
            rows(k, k_stride, K, 0),
            rows(v, v_stride, V, first),
            rows(dout, dout_stride, V, first)};
  }
  Inputs<T> of(const Group& group) const { return of(group, 0, shape.value_width); }
};

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

  const std::int64_t S = static_cast<std::int64_t>(sequences.size());
  const States<T> states(sequences.size(), H, K, V);
  const Arrays<T> arrays{shape, q, q_stride, k, k_stride, v, v_stride};
  parallel_for(S * H, threads, [&](std::int64_t i) {
    const T* const from = initial_state.empty() ? nullptr : initial_state[i / H];
    states.load(i, from ? from + i % H * K * V : nullptr);
  });
  for_groups(S, shape, threads, [&](const Group& group, std::int64_t first, std::int64_t columns) {
    const QuasiLinearSequence& sequence = sequences[group.sequence];
    Matrices<T> z = states.from(group.sequence * H + group.first);
    z.data += first;
    quasi_linear::add_rows(arrays.of(group, first, columns), Sum::state, T(1), sequence.seed_begin, sequence.seed_count,
                           z);
  });
  for_pieces(sequences, shape, threads, [&](const Piece& piece, const Group& group) {
    quasi_linear::read_rows(arrays.of(group), piece.candidates, piece.begin, piece.count,
                            states.from(group.sequence * H + group.first), Rows<T>{out + group.first * V, out_stride});
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

  const std::int64_t S = static_cast<std::int64_t>(sequences.size());
  const States<T> z(sequences.size(), H, V, K), w(sequences.size(), H, V, K), w_transposed(sequences.size(), H, K, V);
  const Arrays<T> arrays{shape, q, q_stride, k, k_stride, v, v_stride, dout, dout_stride};
  // The two sums as (V, K): columns of values are rows of them.
  for_groups(S, shape, threads, [&](const Group& group, std::int64_t first, std::int64_t columns) {
    const QuasiLinearSequence& sequence = sequences[group.sequence];
    const Inputs<T> in = arrays.of(group, first, columns);
    const auto part = [&](const States<T>& states) {
      Matrices<T> matrices = states.from(group.sequence * H + group.first);
      matrices.data += first * matrices.stride;
      for (std::int64_t h = 0; h < group.count; ++h) std::fill_n(matrices.of(h), columns * matrices.stride, T(0));
      return matrices;
    };
    const Matrices<T> seeds = part(z), gradients = part(w);
    quasi_linear::add_rows(in, Sum::transposed, T(1), sequence.seed_begin, sequence.seed_count, seeds);
    quasi_linear::add_rows(in, Sum::query_gradient, T(1), sequence.seed_begin, sequence.seed_count, gradients);
    quasi_linear::add_rows(in, Sum::query_gradient, T(1), sequence.candidate_begin, sequence.candidate_count,
                           gradients);
  });
  parallel_for(S * H, threads,
               [&](std::int64_t i) { quasi_linear::transpose_matrix(V, K, w.of(i), w_transposed.of(i)); });
  for_pieces(sequences, shape, threads, [&](const Piece& piece, const Group& group) {
    const std::int64_t i = group.sequence * H + group.first;
    quasi_linear::backward_rows(arrays.of(group), piece.candidates, piece.begin, piece.count, z.from(i), w.from(i),
                                w_transposed.from(i), Rows<T>{dq + group.first * K, dq_stride},
                                Rows<T>{dk + group.first * K, dk_stride}, Rows<T>{dv + group.first * V, dv_stride});
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

  const Arrays<T> arrays{shape, nullptr, 0, k, k_stride, v, v_stride};
  for_groups(static_cast<std::int64_t>(seeds.size()), shape, threads,
             [&](const Group& group, std::int64_t first, std::int64_t columns) {
               const QuasiLinearSequence& sequence = seeds[static_cast<std::size_t>(group.sequence)];
               if (sequence.seed_count == 0) return;
               // The part of the state in rows of whole vectors.
               const States<T> part(1, group.count, K, columns);
               T* const z = state[group.sequence] + group.first * K * V + first;
               const auto each_row = [&](const auto& copy) {
                 for (std::int64_t r = 0; r < group.count * K; ++r)
                   copy(z + r * V, part.memory.get() + r * row_stride(columns));
               };
               each_row([&](T* from, T* to) { std::copy_n(from, columns, to); });
               quasi_linear::add_rows(arrays.of(group, first, columns), Sum::state,
                                      update == SeedUpdate::add ? T(1) : T(-1), sequence.seed_begin,
                                      sequence.seed_count, part.from(0));
               each_row([&](T* to, const T* from) { std::copy_n(from, columns, to); });
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
