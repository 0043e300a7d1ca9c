#include "loglinear/level_matches.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

constexpr std::int64_t kFarthest = std::int64_t{1} << 62;

int bit_count(std::int64_t position) { return std::bit_width(static_cast<std::uint64_t>(position)); }

// The bit that the token at `position` sets, and with it the blocks that become one: those of all lower bits.
int carried_to(std::int64_t position) { return std::countr_one(static_cast<std::uint64_t>(position)); }

// 1 / sqrt(tokens of a block of bit b)
template <class T>
T noise_weight(int b) {
  return std::ldexp(b % 2 == 0 ? T(1) : T(0.70710678118654752440), -(b / 2));
}

template <class T>
void check(const char* where, const MatchShape& s, const T* q, std::int64_t q_stride, const T* k, std::int64_t k_stride,
           std::span<const KeySums<T>> initial) {
  const std::int64_t N = check_cu_seqlens(where, s.cu_seqlens), width = check_sizes(where, {s.groups, s.key_width});
  check_sizes(where, {N, s.groups, s.key_width});
  if (s.columns < 1 || s.columns > 64) fail(where, "columns: got {}, need 1 to 64", s.columns);
  check_sizes(where, {N, s.groups, s.columns});
  check_rows(where, "q", N, width, q, q_stride);
  check_rows(where, "k", N, width, k, k_stride);
  const std::size_t sequences = s.cu_seqlens.size() - 1;
  if (!initial.empty() && initial.size() != sequences)
    fail(where, "initial: got {}, there are {} sequences", initial.size(), sequences);
  for (std::size_t n = 0; n < sequences; ++n) {
    const std::int64_t begin = initial.empty() ? 0 : initial[n].position, T_n = s.cu_seqlens[n + 1] - s.cu_seqlens[n];
    if (begin < 0 || begin > kFarthest - T_n) fail(where, "position: got {}, need 0 to 2^62", begin);
    if (!initial.empty() && !initial[n].sums.empty() &&
        initial[n].sums.size() != static_cast<std::size_t>(bit_count(begin) * width))
      fail(where, "initial: got {} numbers, position {} has {}", initial[n].sums.size(), begin,
           bit_count(begin) * width);
    if (T_n > 0 && bit_count(begin + T_n - 1) >= s.columns)
      fail(where, "columns: got {}, position {} has more levels", s.columns, begin + T_n - 1);
  }
}

// Sequences are cut where positions are multiples of this, by position alone, so that bits do not depend on threads.
constexpr int kSpanBit = 10;
constexpr std::int64_t kSpan = std::int64_t{1} << kSpanBit;

// The sums of keys of one group, a binary counter: that of bit b at sums + b * stride, K numbers.
template <class T>
struct Counter {
  T* sums;
  std::int64_t stride, K;

  // Calls body(bit, sum of that bit) for the blocks of a token at `at`.
  template <class Body>
  void for_blocks(std::int64_t at, const Body& body) const {
    for (std::uint64_t rest = static_cast<std::uint64_t>(at); rest != 0; rest &= rest - 1) {
      const int b = std::countr_zero(rest);
      body(b, sums + b * stride);
    }
  }

  // The key of the token at `at` joins: the sums of equal blocks are added in pairs, as a binary counter carries.
  void append(std::int64_t at, const T* key) const {
    const int to = carried_to(at);
    T* sum = sums + to * stride;
    std::copy_n(key, K, sum);
    for (int b = 0; b < to; ++b) {
      vec::add_scaled(K, T(1), sums + b * stride, sum);
      std::fill_n(sums + b * stride, K, T(0));
    }
  }

  // The matches (columns) of the token at `at`, whose key joins then.
  void read(std::int64_t at, const T* query, const T* key, std::int64_t columns, T* matches) const {
    std::fill_n(matches, columns, T(0));
    matches[0] = vec::dot(K, query, key);
    for_blocks(at, [&](int b, const T* sum) { matches[b + 1] = noise_weight<T>(b) * vec::dot(K, query, sum); });
    append(at, key);
  }
};

// Tokens between two cuts of one sequence of one group, and the sums of keys before them.
template <class T>
struct Span {
  std::int64_t stream;      // sequence * G + group
  std::int64_t begin, end;  // rows
  std::int64_t position;    // of the first
  std::int64_t group, K;    // K: key width
  std::vector<T> sums;      // (columns, K)

  Counter<T> counter() { return {sums.data(), K, K}; }
};

// All spans, those of a stream one after the other, one at least for each, with the sums before them.
template <class T>
std::vector<Span<T>> make_spans(const MatchShape& s, const T* k, std::int64_t k_stride,
                                std::span<const KeySums<T>> initial, int threads) {
  const std::int64_t K = s.key_width;
  std::vector<Span<T>> spans;
  for (std::int64_t stream = 0; stream < (static_cast<std::int64_t>(s.cu_seqlens.size()) - 1) * s.groups; ++stream) {
    const std::int64_t n = stream / s.groups, group = stream % s.groups, last = s.cu_seqlens[n + 1];
    std::int64_t begin = s.cu_seqlens[n], position = initial.empty() ? 0 : initial[n].position;
    std::vector<T> sums(static_cast<std::size_t>(s.columns * K));
    if (!initial.empty() && !initial[n].sums.empty())
      for (int b = 0; b < bit_count(position); ++b)
        std::copy_n(initial[n].sums.data() + (b * s.groups + group) * K, K, sums.data() + b * K);
    do {
      const std::int64_t end = std::min(last, begin + kSpan - position % kSpan);
      spans.push_back({stream, begin, end, position, group, K, std::move(sums)});
      sums.assign(static_cast<std::size_t>(s.columns * K), T(0));
      position += end - begin, begin = end;
    } while (begin < last);
  }
  const auto next_of = [&](std::size_t i) {
    return i + 1 < spans.size() && spans[i + 1].stream == spans[i].stream ? &spans[i + 1] : nullptr;
  };
  // Where the first span of a stream leads to; of the others, which begin with no smaller blocks, what they add to it.
  parallel_for(static_cast<std::int64_t>(spans.size()), threads, [&](std::int64_t i) {
    Span<T>*const next = next_of(static_cast<std::size_t>(i)), &span = spans[static_cast<std::size_t>(i)];
    if (!next) return;
    if (i == 0 || spans[static_cast<std::size_t>(i) - 1].stream != span.stream) next->sums = span.sums;
    for (std::int64_t row = span.begin; row < span.end; ++row)
      next->counter().append(span.position + row - span.begin, k + row * k_stride + span.group * K);
  });
  for (std::size_t i = 1; i < spans.size(); ++i) {
    Span<T>* const next = next_of(i);
    if (!next || spans[i - 1].stream != spans[i].stream) continue;
    const int to = carried_to(next->position - 1);
    for (int b = kSpanBit; b < s.columns; ++b) {
      const T* before = spans[i].sums.data() + b * K;
      if (b < to) vec::add_scaled(K, T(1), before, next->sums.data() + to * K);
      if (b > to) std::copy_n(before, K, next->sums.data() + b * K);
    }
  }
  return spans;
}

bool single_tokens(std::span<const std::int64_t> cu_seqlens) {
  for (std::size_t n = 1; n < cu_seqlens.size(); ++n)
    if (cu_seqlens[n] - cu_seqlens[n - 1] != 1) return false;
  return true;
}

// A token more of each sequence: only what it reads and changes is touched.
template <class T>
void step(const MatchShape& s, const T* q, std::int64_t q_stride, const T* k, std::int64_t k_stride, T* matches,
          std::span<KeySums<T>> sums, int threads) {
  const std::int64_t K = s.key_width, G = s.groups;
  for (KeySums<T>& each : sums) each.sums.resize(static_cast<std::size_t>(bit_count(each.position + 1) * G * K));
  const std::int64_t streams = static_cast<std::int64_t>(sums.size()) * G;
  parallel_for(streams, streams * K < 10000 ? 1 : threads, [&](std::int64_t i) {
    const std::int64_t n = i / G, g = i % G;
    KeySums<T>& each = sums[static_cast<std::size_t>(n)];
    Counter<T>{each.sums.data() + g * K, G * K, K}.read(each.position, q + n * q_stride + g * K,
                                                        k + n * k_stride + g * K, s.columns, matches + i * s.columns);
  });
  for (KeySums<T>& each : sums) ++each.position;
}

}  // namespace

template <class T>
void level_matches_forward(const MatchShape& s, const T* q, std::int64_t q_stride, const T* k, std::int64_t k_stride,
                           std::span<const KeySums<T>> initial, T* matches, std::span<KeySums<T>> final, int threads) {
  const TimedOperator timed("level_matches");
  constexpr const char* where = "level_matches.forward";
  check(where, s, q, q_stride, k, k_stride, initial);
  const auto sequences = static_cast<std::int64_t>(s.cu_seqlens.size()) - 1;
  check_rows(where, "matches", s.cu_seqlens.back(), s.groups * s.columns, matches, s.groups * s.columns);
  if (!final.empty() && static_cast<std::int64_t>(final.size()) != sequences)
    fail(where, "final: got {}, there are {} sequences", final.size(), sequences);
  if (!final.empty() && final.data() == initial.data() && single_tokens(s.cu_seqlens)) {
    step(s, q, q_stride, k, k_stride, matches, final, threads);
    return;
  }
  // final may be initial, which every group of a sequence reads: written when all have.
  std::vector<std::vector<T>> last(final.size());
  for (std::size_t n = 0; n < final.size(); ++n) {
    const std::int64_t position = (initial.empty() ? 0 : initial[n].position) + s.cu_seqlens[n + 1] - s.cu_seqlens[n];
    last[n].resize(static_cast<std::size_t>(bit_count(position) * s.groups * s.key_width));
  }
  std::vector<Span<T>> spans = make_spans(s, k, k_stride, initial, threads);
  parallel_for(static_cast<std::int64_t>(spans.size()), threads, [&](std::int64_t i) {
    Span<T>& span = spans[static_cast<std::size_t>(i)];
    const std::int64_t K = span.K, G = s.groups, g = span.group, n = span.stream / G;
    const Counter<T> counter = span.counter();
    std::int64_t at = span.position;
    for (std::int64_t row = span.begin; row < span.end; ++row, ++at)
      counter.read(at, q + row * q_stride + g * K, k + row * k_stride + g * K, s.columns,
                   matches + (row * G + g) * s.columns);
    if (final.empty() || span.end < s.cu_seqlens[n + 1]) return;
    std::vector<T>& to = last[static_cast<std::size_t>(n)];
    for (int b = 0; b < bit_count(at); ++b) std::copy_n(span.sums.data() + b * K, K, to.data() + (b * G + g) * K);
  });
  for (std::size_t n = 0; n < final.size(); ++n) {
    const std::int64_t begin = initial.empty() ? 0 : initial[n].position;
    final[n].position = begin + s.cu_seqlens[n + 1] - s.cu_seqlens[n];
    final[n].sums = std::move(last[n]);
  }
}

template <class T>
void level_matches_backward(const MatchShape& s, const T* q, std::int64_t q_stride, const T* k, std::int64_t k_stride,
                            std::span<const KeySums<T>> initial, const T* dmatches, T* dq, std::int64_t dq_stride,
                            T* dk, std::int64_t dk_stride, int threads) {
  const TimedOperator timed("level_matches");
  constexpr const char* where = "level_matches.backward";
  check(where, s, q, q_stride, k, k_stride, initial);
  const std::int64_t N = s.cu_seqlens.back();
  check_rows(where, "dmatches", N, s.groups * s.columns, dmatches, s.groups * s.columns);
  check_rows(where, "dq", N, s.groups * s.key_width, dq, dq_stride);
  check_rows(where, "dk", N, s.groups * s.key_width, dk, dk_stride);
  const std::int64_t K = s.key_width, G = s.groups;
  std::vector<Span<T>> spans = make_spans(s, k, k_stride, initial, threads);
  const auto count = static_cast<std::int64_t>(spans.size());
  const auto gradient = [&](std::int64_t row, std::int64_t g) { return dmatches + (row * G + g) * s.columns; };
  // Forwards for dq, with the sums as forward had them; and the gradients in the sums of blocks that are older than the
  // span, which stay the same in it.
  std::vector<std::vector<T>> older(spans.size());  // (columns, K)
  parallel_for(count, threads, [&](std::int64_t i) {
    Span<T>& span = spans[static_cast<std::size_t>(i)];
    std::vector<T>& dsums = older[static_cast<std::size_t>(i)];
    dsums.resize(span.sums.size());
    const Counter<T> counter = span.counter();
    std::int64_t at = span.position;
    for (std::int64_t row = span.begin; row < span.end; ++row, ++at) {
      const T *d = gradient(row, span.group), *key = k + row * k_stride + span.group * K,
              *query = q + row * q_stride + span.group * K;
      T* to = dq + row * dq_stride + span.group * K;
      vec::add_scaled(K, d[0], key, to);
      counter.for_blocks(at, [&](int b, const T* sum) {
        const T weight = noise_weight<T>(b) * d[b + 1];
        vec::add_scaled(K, weight, sum, to);
        if (b >= kSpanBit) vec::add_scaled(K, weight, query, dsums.data() + b * K);
      });
      counter.append(at, key);
    }
  });
  // Backwards from span to span: the sums now hold gradients, those of the sums after a span, which are those of the
  // blocks that they were made of.
  for (std::int64_t i = count - 1; i >= 0; --i) {
    Span<T>& span = spans[static_cast<std::size_t>(i)];
    std::fill(span.sums.begin(), span.sums.end(), T(0));
    if (i + 1 == count || spans[static_cast<std::size_t>(i) + 1].stream != span.stream) continue;
    const Span<T>& next = spans[static_cast<std::size_t>(i) + 1];
    const std::vector<T>& reads = older[static_cast<std::size_t>(i) + 1];  // of next
    const int merged = next.end - next.begin == kSpan ? carried_to(next.position + kSpan - 1) : 0;
    for (int b = kSpanBit; b < s.columns; ++b) {
      T* to = span.sums.data() + b * K;
      // A block that next has merged has the gradient of what it became a part of, the others still their own.
      if (next.position >> b & 1) std::copy_n(next.sums.data() + (b < merged ? merged : b) * K, K, to);
      vec::add_scaled(K, T(1), reads.data() + b * K, to);
    }
  }
  // Backwards inside, for dk: a block's gradient is that of the blocks it was made of, and, when it was a single token,
  // of its key.
  parallel_for(count, threads, [&](std::int64_t i) {
    Span<T>& span = spans[static_cast<std::size_t>(i)];
    for (std::int64_t row = span.end - 1; row >= span.begin; --row) {
      const std::int64_t at = span.position + row - span.begin;
      const T *d = gradient(row, span.group), *query = q + row * q_stride + span.group * K;
      T *to = dk + row * dk_stride + span.group * K, *merged = span.sums.data() + carried_to(at) * K;
      vec::add_scaled(K, T(1), merged, to);
      vec::add_scaled(K, d[0], query, to);
      for (int b = 0; b < carried_to(at); ++b) std::copy_n(merged, K, span.sums.data() + b * K);
      std::fill_n(merged, K, T(0));
      span.counter().for_blocks(at, [&](int b, T* sum) {
        if (b < kSpanBit) vec::add_scaled(K, noise_weight<T>(b) * d[b + 1], query, sum);
      });
    }
  });
}

template <class T>
void center_matches(std::int64_t rows, std::int64_t groups, std::int64_t columns, const std::int64_t* positions,
                    T* matches, int threads) {
  const TimedOperator timed("level_matches");
  constexpr const char* where = "level_matches.center";
  check_sizes(where, {rows, groups, columns});
  check_array(where, "positions", rows, positions);
  check_array(where, "matches", rows, matches);
  for (std::int64_t n = 0; n < rows; ++n) {
    if (positions[n] < 0 || positions[n] > kFarthest) fail(where, "position: got {}, need 0 to 2^62", positions[n]);
    if (bit_count(positions[n]) >= columns)
      fail(where, "columns: got {}, position {} has more levels", columns, positions[n]);
  }
  for_row_blocks(rows, groups * columns, threads, [&](std::int64_t begin, std::int64_t end) {
    T w[64];
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t t = positions[n];
      const int top = bit_count(t);
      const auto live = [&](int l) { return l == 0 || (t >> (l - 1) & 1) != 0; };
      for (int l = 0; l <= top; ++l)
        w[l] = live(l) ? static_cast<T>(std::sqrt(std::ldexp(1.0, std::max(l - 1, 0)) / (static_cast<double>(t) + 1)))
                       : T(0);
      for (std::int64_t g = 0; g < groups; ++g) {
        T* m = matches + (n * groups + g) * columns;
        T along = 0;
        for (int l = 0; l <= top; ++l)
          if (live(l)) along += w[l] * m[l];
        for (int l = 0; l <= top; ++l)
          if (live(l)) m[l] -= w[l] * along;
      }
    }
  });
}

#define LOGLINEAR_LEVEL_MATCHES(T)                                                                                \
  template void level_matches_forward(const MatchShape&, const T*, std::int64_t, const T*, std::int64_t,          \
                                      std::span<const KeySums<T>>, T*, std::span<KeySums<T>>, int);               \
  template void level_matches_backward(const MatchShape&, const T*, std::int64_t, const T*, std::int64_t,         \
                                       std::span<const KeySums<T>>, const T*, T*, std::int64_t, T*, std::int64_t, \
                                       int);                                                                      \
  template void center_matches(std::int64_t, std::int64_t, std::int64_t, const std::int64_t*, T*, int);
LOGLINEAR_LEVEL_MATCHES(float)
LOGLINEAR_LEVEL_MATCHES(double)
#undef LOGLINEAR_LEVEL_MATCHES

}  // namespace loglinear
