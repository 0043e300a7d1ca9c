#include "loglinear/level_scales.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

constexpr std::int64_t kLastPosition = std::int64_t{1} << 62;

int top_level(std::int64_t position) { return std::bit_width(static_cast<std::uint64_t>(position)); }

// Whether a token reads a state at level l >= 0.
bool live(std::int64_t position, std::int64_t l) { return l == 0 || (position >> (l - 1) & 1) != 0; }

// Where level l of a token whose largest is m lies among n learned ones: weight 1 - part on `at`, part on at + 1.
struct Place {
  std::int64_t at = 0;
  double part = 0;
};
Place place(std::int64_t l, int m, std::int64_t n) {
  if (m < n || n == 1) return {std::min(l, n - 1), 0};
  const std::int64_t scaled = l * (n - 1), at = scaled / m;
  return {at, static_cast<double>(scaled % m) / static_cast<double>(m)};
}

void check(const char* where, const LevelShape& s, const std::int64_t* positions) {
  check_sizes(where, {s.rows, s.heads, s.levels});
  check_sizes(where, {s.rows, s.heads, s.columns});
  if (s.learned < 1 || s.learned > s.levels)
    fail(where, "learned: got {}, need 1 to the {} levels there are", s.learned, s.levels);
  if (s.policy == LevelPolicy::share) {
    if (s.columns != s.learned) fail(where, "columns: got {}, shared scales have {}", s.columns, s.learned);
    return;
  }
  if (s.columns < 1 || s.columns > 64) fail(where, "columns: got {}, need 1 to 64", s.columns);
  if (s.policy == LevelPolicy::content && (s.groups < 1 || s.heads % s.groups != 0))
    fail(where, "groups: got {}, need a divisor of the {} heads", s.groups, s.heads);
  check_array(where, "positions", s.rows, positions);
  for (std::int64_t n = 0; n < s.rows; ++n) {
    if (positions[n] < 0 || positions[n] > kLastPosition)
      fail(where, "positions: got {}, need 0 to 2^62", positions[n]);
    if (top_level(positions[n]) >= s.columns)
      fail(where, "columns: got {}, position {} has more levels", s.columns, positions[n]);
  }
}

// z (H, n) of one token.
template <class T>
void products(const LevelShape& s, const T* level, const T* dl, T* z) {
  for (std::int64_t h = 0; h < s.heads; ++h)
    vec::scaled_product(s.learned, T(1), level + h * s.levels, dl + h * s.levels, z + h * s.learned);
}

// The softmax of one head of a token times the number of its levels, into p (columns); z (columns) of its levels.
template <class T>
void route(const LevelShape& s, std::int64_t position, const T* z, T* p) {
  const int m = top_level(position);
  T largest = z[0];
  for (std::int64_t l = 1; l <= m; ++l)
    if (live(position, l)) largest = std::max(largest, z[l]);
  T sum = 0;
  std::int64_t count = 0;
  for (std::int64_t l = 0; l < s.columns; ++l) {
    p[l] = 0;
    if (l > m || !live(position, l)) continue;
    p[l] = std::exp(z[l] - largest);
    sum += p[l];
    ++count;
  }
  const T scale = static_cast<T>(count) / sum;
  for (std::int64_t l = 0; l <= m; ++l) p[l] *= scale;
}

// What routed and content take the softmax of, for one head of a token: z (columns); matches null for routed.
template <class T>
void logits(const LevelShape& s, const T* level, const T* dl, const T* matches, T* z) {
  const T factor = static_cast<T>(s.match_factor);
  for (std::int64_t l = 0; l < s.columns; ++l) {
    const std::int64_t j = std::min(l, s.learned - 1);
    z[l] = matches ? level[j] * (dl[j] + factor * matches[l]) : level[j] * dl[j];
  }
}

}  // namespace

std::int64_t level_count(std::int64_t T) { return top_level(std::max<std::int64_t>(T, 1) - 1) + 1; }

std::int64_t level_columns(LevelPolicy policy, std::int64_t learned, std::int64_t last) {
  // The state after the last token has a slot of bit m at most, which is level m + 1.
  return policy == LevelPolicy::share ? learned : std::min<std::int64_t>(64, top_level(last + 1) + 2);
}

template <class T>
void level_scales_forward(const LevelShape& s, const std::int64_t* positions, const T* dl, std::int64_t dl_stride,
                          const T* level, const T* matches, T factor, T* level_scales, int threads) {
  const TimedOperator timed("level_scales");
  constexpr const char* where = "level_scales.forward";
  check(where, s, positions);
  check_rows(where, "dl", s.rows, s.heads * s.levels, dl, dl_stride);
  check_rows(where, "level_scales", s.rows, s.heads * s.columns, level_scales, s.heads * s.columns);
  if (s.rows > 0) check_array(where, "level", s.heads * s.levels, level);
  const bool content = s.policy == LevelPolicy::content;
  if (content) check_array(where, "matches", s.rows, matches);
  const std::int64_t n = s.learned, width = s.heads * n;
  for_row_blocks(s.rows, s.heads * (n + s.columns), threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> scratch(static_cast<std::size_t>(std::max(width, s.columns)));
    for (std::int64_t row = begin; row < end; ++row) {
      const T* in = dl + row * dl_stride;
      T* to = level_scales + row * s.heads * s.columns;
      if (content || s.policy == LevelPolicy::routed) {
        for (std::int64_t h = 0; h < s.heads; ++h) {
          const T* match = content ? matches + (row * s.groups + h * s.groups / s.heads) * s.columns : nullptr;
          logits(s, level + h * s.levels, in + h * s.levels, match, scratch.data());
          route(s, positions[row], scratch.data(), to + h * s.columns);
        }
        vec::scale(s.heads * s.columns, factor, to, to);
        continue;
      }
      T* z = s.policy == LevelPolicy::share ? to : scratch.data();
      products(s, level, in, z);
      vec::softplus(width, z, z);
      vec::scale(width, factor, z, z);
      if (s.policy == LevelPolicy::share) continue;
      const int m = top_level(positions[row]);
      for (std::int64_t h = 0; h < s.heads; ++h)
        for (std::int64_t l = 0; l < s.columns; ++l) {
          if (l > m) {
            to[h * s.columns + l] = 0;
            continue;
          }
          const auto [at, part] = place(l, m, n);
          const T* known = z + h * n + at;
          to[h * s.columns + l] = part == 0 ? *known : static_cast<T>((1 - part) * known[0] + part * known[1]);
        }
    }
  });
}

template <class T>
void level_scales_backward(const LevelShape& s, const std::int64_t* positions, const T* dl, std::int64_t dl_stride,
                           const T* level, const T* matches, T factor, const T* dlevel_scales, T* ddl,
                           std::int64_t ddl_stride, T* dlevel, T* dmatches, int threads) {
  const TimedOperator timed("level_scales");
  constexpr const char* where = "level_scales.backward";
  check(where, s, positions);
  check_rows(where, "dl", s.rows, s.heads * s.levels, dl, dl_stride);
  check_rows(where, "dlevel_scales", s.rows, s.heads * s.columns, dlevel_scales, s.heads * s.columns);
  check_rows(where, "ddl", s.rows, s.heads * s.levels, ddl, ddl_stride);
  if (s.rows > 0) {
    check_array(where, "level", s.heads * s.levels, level);
    check_array(where, "dlevel", s.heads * s.levels, dlevel);
  }
  const bool content = s.policy == LevelPolicy::content;
  if (content) {
    check_array(where, "matches", s.rows, matches);
    check_array(where, "dmatches", s.rows, dmatches);
  }
  const std::int64_t n = s.learned, width = s.heads * n;
  add_row_sums(s.rows, s.heads * s.levels, dlevel, threads, [&](std::int64_t begin, std::int64_t end, T* part_sums) {
    std::vector<T> scratch(static_cast<std::size_t>(2 * width + 2 * s.columns));
    T *z = scratch.data(), *dz = z + width;   // dz: first the gradient of softplus(z)
    T *zl = dz + width, *p = zl + s.columns;  // of the softmax
    for (std::int64_t row = begin; row < end; ++row) {
      const T* in = dl + row * dl_stride;
      const T* from = dlevel_scales + row * s.heads * s.columns;
      T* out = ddl + row * ddl_stride;
      if (content || s.policy == LevelPolicy::routed) {
        const T match_factor = static_cast<T>(s.match_factor);
        if (content) std::fill_n(dmatches + row * s.groups * s.columns, s.groups * s.columns, T(0));
        for (std::int64_t h = 0; h < s.heads; ++h) {
          const std::int64_t at = h * s.levels, match_at = (row * s.groups + h * s.groups / s.heads) * s.columns;
          const T *d = from + h * s.columns, *match = content ? matches + match_at : nullptr;
          logits(s, level + at, in + at, match, zl);
          route(s, positions[row], zl, p);
          T count = 0, sum = 0;
          const int m = top_level(positions[row]);
          for (std::int64_t l = 0; l <= m; ++l)
            if (live(positions[row], l)) count += 1, sum += p[l] * d[l];
          std::fill(out + at, out + at + s.levels, T(0));
          for (std::int64_t l = 0; l <= m; ++l) {
            if (!live(positions[row], l)) continue;
            const std::int64_t j = std::min(l, n - 1);
            const T dzl = factor * p[l] * (d[l] - sum / count);
            part_sums[at + j] += dzl * (match ? in[at + j] + match_factor * match[l] : in[at + j]);
            out[at + j] += dzl * level[at + j];
            if (match) dmatches[match_at + l] += match_factor * dzl * level[at + j];
          }
        }
        continue;
      }
      products(s, level, in, z);
      if (s.policy == LevelPolicy::share) {
        vec::softplus_backward(width, z, from, dz);
      } else {
        std::fill(dz, dz + width, T(0));
        const int m = top_level(positions[row]);
        for (std::int64_t h = 0; h < s.heads; ++h)
          for (std::int64_t l = 0; l <= m; ++l) {
            const auto [at, part] = place(l, m, n);
            const T d = from[h * s.columns + l];
            dz[h * n + at] += static_cast<T>(1 - part) * d;
            if (part > 0) dz[h * n + at + 1] += static_cast<T>(part) * d;
          }
        vec::softplus_backward(width, z, dz, dz);
      }
      for (std::int64_t h = 0; h < s.heads; ++h) {
        const std::int64_t at = h * s.levels;
        vec::add_product(n, factor, dz + h * n, in + at, part_sums + at);
        vec::scaled_product(n, factor, dz + h * n, level + at, out + at);
        std::fill(out + at + n, out + at + s.levels, T(0));
      }
    }
  });
}

#define LOGLINEAR_LEVEL_SCALES(T)                                                                               \
  template void level_scales_forward(const LevelShape&, const std::int64_t*, const T*, std::int64_t, const T*,  \
                                     const T*, T, T*, int);                                                     \
  template void level_scales_backward(const LevelShape&, const std::int64_t*, const T*, std::int64_t, const T*, \
                                      const T*, T, const T*, T*, std::int64_t, T*, T*, int);
LOGLINEAR_LEVEL_SCALES(float)
LOGLINEAR_LEVEL_SCALES(double)
#undef LOGLINEAR_LEVEL_SCALES

}  // namespace loglinear
