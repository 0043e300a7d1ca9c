#include "loglinear/gates.hpp"

#include <cmath>
#include <vector>

#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

// -exp(A_log): the continuous-time decay of each head.
template <class T>
std::vector<T> decay_rates(std::int64_t H, const T* A_log) {
  std::vector<T> rate(static_cast<std::size_t>(H));
  for (std::int64_t h = 0; h < H; ++h) rate[h] = -std::exp(A_log[h]);
  return rate;
}

template <class T>
void add(std::int64_t n, const T* a, const T* b, T* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = a[i] + b[i];
}

}  // namespace

template <class T>
void mamba2_gates_forward(std::int64_t N, std::int64_t H, std::int64_t P, const T* dt_raw, std::int64_t dt_stride,
                          const T* dt_bias, const T* A_log, const T* x, std::int64_t x_stride, T* g, T* v,
                          std::int64_t v_stride, int threads) {
  const TimedOperator timed("gates");
  constexpr const char* where = "mamba2_gates.forward";
  check_sizes(where, {N, H, P});
  check_rows(where, "dt_raw", N, H, dt_raw, dt_stride);
  check_rows(where, "x", N, H * P, x, x_stride);
  check_rows(where, "v", N, H * P, v, v_stride);
  if (N > 0) {
    check_array(where, "dt_bias", H, dt_bias);
    check_array(where, "A_log", H, A_log);
    check_array(where, "g", H, g);
  }
  if (N == 0 || H == 0) return;
  const std::vector<T> rate = decay_rates(H, A_log);
  for_row_blocks(N, H * P, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> dt(static_cast<std::size_t>(H));
    for (std::int64_t n = begin; n < end; ++n) {
      add(H, dt_raw + n * dt_stride, dt_bias, dt.data());
      vec::softplus(H, dt.data(), dt.data());
      for (std::int64_t h = 0; h < H; ++h) {
        g[n * H + h] = rate[h] * dt[h];
        vec::scale(P, dt[h], x + n * x_stride + h * P, v + n * v_stride + h * P);
      }
    }
  });
}

template <class T>
void mamba2_gates_backward(std::int64_t N, std::int64_t H, std::int64_t P, const T* dt_raw, std::int64_t dt_stride,
                           const T* dt_bias, const T* A_log, const T* x, std::int64_t x_stride, const T* dg,
                           const T* dv, std::int64_t dv_stride, T* ddt_raw, std::int64_t ddt_stride, T* dx,
                           std::int64_t dx_stride, T* ddt_bias, T* dA_log, int threads) {
  const TimedOperator timed("gates");
  constexpr const char* where = "mamba2_gates.backward";
  check_sizes(where, {N, H, P});
  check_rows(where, "dt_raw", N, H, dt_raw, dt_stride);
  check_rows(where, "x", N, H * P, x, x_stride);
  check_rows(where, "dv", N, H * P, dv, dv_stride);
  check_rows(where, "ddt_raw", N, H, ddt_raw, ddt_stride);
  check_rows(where, "dx", N, H * P, dx, dx_stride);
  if (N > 0) {
    check_array(where, "dt_bias", H, dt_bias);
    check_array(where, "A_log", H, A_log);
    check_array(where, "dg", H, dg);
    check_array(where, "ddt_bias", H, ddt_bias);
    check_array(where, "dA_log", H, dA_log);
  }
  if (N == 0 || H == 0) return;
  const std::vector<T> rate = decay_rates(H, A_log);
  std::vector<T> sums(static_cast<std::size_t>(2 * H), T(0));  // ddt_bias, dA_log
  add_row_sums(N, 2 * H, sums.data(), threads, [&](std::int64_t begin, std::int64_t end, T* part) {
    std::vector<T> scratch(static_cast<std::size_t>(3 * H));
    T *raw = scratch.data(), *dt = raw + H, *ddt = dt + H;
    for (std::int64_t n = begin; n < end; ++n) {
      add(H, dt_raw + n * dt_stride, dt_bias, raw);
      vec::softplus(H, raw, dt);
      for (std::int64_t h = 0; h < H; ++h) {
        const T* dout = dv + n * dv_stride + h * P;
        const T gradient = dg[n * H + h];
        ddt[h] = rate[h] * gradient + vec::dot(P, dout, x + n * x_stride + h * P);
        part[H + h] += rate[h] * dt[h] * gradient;
        vec::scale(P, dt[h], dout, dx + n * dx_stride + h * P);
      }
      T* draw = ddt_raw + n * ddt_stride;
      vec::softplus_backward(H, raw, ddt, draw);
      for (std::int64_t h = 0; h < H; ++h) part[h] += draw[h];
    }
  });
  for (std::int64_t h = 0; h < H; ++h) {
    ddt_bias[h] += sums[h];
    dA_log[h] += sums[H + h];
  }
}

template <class T>
void skip_forward(std::int64_t N, std::int64_t H, std::int64_t P, const T* x, std::int64_t x_stride, const T* D, T* y,
                  std::int64_t y_stride, int threads) {
  const TimedOperator timed("gates");
  constexpr const char* where = "skip.forward";
  check_sizes(where, {N, H, P});
  check_rows(where, "x", N, H * P, x, x_stride);
  check_rows(where, "y", N, H * P, y, y_stride);
  if (N > 0) check_array(where, "D", H, D);
  for_row_blocks(N, H * P, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t h = 0; h < H; ++h) vec::add_scaled(P, D[h], x + n * x_stride + h * P, y + n * y_stride + h * P);
  });
}

template <class T>
void skip_backward(std::int64_t N, std::int64_t H, std::int64_t P, const T* x, std::int64_t x_stride, const T* D,
                   const T* dy, std::int64_t dy_stride, T* dx, std::int64_t dx_stride, T* dD, int threads) {
  const TimedOperator timed("gates");
  constexpr const char* where = "skip.backward";
  check_sizes(where, {N, H, P});
  check_rows(where, "x", N, H * P, x, x_stride);
  check_rows(where, "dy", N, H * P, dy, dy_stride);
  check_rows(where, "dx", N, H * P, dx, dx_stride);
  if (N > 0) {
    check_array(where, "D", H, D);
    check_array(where, "dD", H, dD);
  }
  add_row_sums(N, H, dD, threads, [&](std::int64_t begin, std::int64_t end, T* part) {
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t h = 0; h < H; ++h) {
        const T* dout = dy + n * dy_stride + h * P;
        part[h] += vec::dot(P, dout, x + n * x_stride + h * P);
        vec::add_scaled(P, D[h], dout, dx + n * dx_stride + h * P);
      }
  });
}

template <class T>
void delta_gates_forward(std::int64_t N, std::int64_t H, const T* a, std::int64_t a_stride, const T* b,
                         std::int64_t b_stride, const T* dt_bias, const T* A_log, T* g, T* beta, int threads) {
  const TimedOperator timed("gates");
  constexpr const char* where = "delta_gates.forward";
  check_sizes(where, {N, H});
  check_rows(where, "a", N, H, a, a_stride);
  check_rows(where, "b", N, H, b, b_stride);
  check_rows(where, "g", N, H, g, H);
  check_rows(where, "beta", N, H, beta, H);
  if (N > 0) {
    check_array(where, "dt_bias", H, dt_bias);
    check_array(where, "A_log", H, A_log);
  }
  if (N == 0 || H == 0) return;
  const std::vector<T> rate = decay_rates(H, A_log);
  for_row_blocks(N, H, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> dt(static_cast<std::size_t>(H));
    for (std::int64_t n = begin; n < end; ++n) {
      add(H, a + n * a_stride, dt_bias, dt.data());
      vec::softplus(H, dt.data(), dt.data());
      for (std::int64_t h = 0; h < H; ++h) g[n * H + h] = rate[h] * dt[h];
      vec::sigmoid(H, b + n * b_stride, beta + n * H);
    }
  });
}

template <class T>
void delta_gates_backward(std::int64_t N, std::int64_t H, const T* a, std::int64_t a_stride, const T* b,
                          std::int64_t b_stride, const T* dt_bias, const T* A_log, const T* dg, const T* dbeta, T* da,
                          std::int64_t da_stride, T* db, std::int64_t db_stride, T* ddt_bias, T* dA_log, int threads) {
  const TimedOperator timed("gates");
  constexpr const char* where = "delta_gates.backward";
  check_sizes(where, {N, H});
  check_rows(where, "a", N, H, a, a_stride);
  check_rows(where, "b", N, H, b, b_stride);
  check_rows(where, "dg", N, H, dg, H);
  check_rows(where, "dbeta", N, H, dbeta, H);
  check_rows(where, "da", N, H, da, da_stride);
  check_rows(where, "db", N, H, db, db_stride);
  if (N > 0) {
    check_array(where, "dt_bias", H, dt_bias);
    check_array(where, "A_log", H, A_log);
    check_array(where, "ddt_bias", H, ddt_bias);
    check_array(where, "dA_log", H, dA_log);
  }
  if (N == 0 || H == 0) return;
  const std::vector<T> rate = decay_rates(H, A_log);
  std::vector<T> sums(static_cast<std::size_t>(2 * H), T(0));  // ddt_bias, dA_log
  add_row_sums(N, 2 * H, sums.data(), threads, [&](std::int64_t begin, std::int64_t end, T* part) {
    std::vector<T> scratch(static_cast<std::size_t>(3 * H));
    T *raw = scratch.data(), *dt = raw + H, *ddt = dt + H;
    for (std::int64_t n = begin; n < end; ++n) {
      add(H, a + n * a_stride, dt_bias, raw);
      vec::softplus(H, raw, dt);
      for (std::int64_t h = 0; h < H; ++h) {
        ddt[h] = rate[h] * dg[n * H + h];
        part[H + h] += ddt[h] * dt[h];
      }
      T* draw = da + n * da_stride;
      vec::softplus_backward(H, raw, ddt, draw);
      for (std::int64_t h = 0; h < H; ++h) part[h] += draw[h];
      T* dlogit = db + n * db_stride;
      vec::sigmoid(H, b + n * b_stride, raw);
      for (std::int64_t h = 0; h < H; ++h) dlogit[h] = dbeta[n * H + h] * raw[h] * (T(1) - raw[h]);
    }
  });
  for (std::int64_t h = 0; h < H; ++h) {
    ddt_bias[h] += sums[h];
    dA_log[h] += sums[H + h];
  }
}

#define LOGLINEAR_GATES(T)                                                                                           \
  template void mamba2_gates_forward(std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, const T*,     \
                                     const T*, const T*, std::int64_t, T*, T*, std::int64_t, int);                   \
  template void mamba2_gates_backward(std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, const T*,    \
                                      const T*, const T*, std::int64_t, const T*, const T*, std::int64_t, T*,        \
                                      std::int64_t, T*, std::int64_t, T*, T*, int);                                  \
  template void skip_forward(std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, const T*, T*,         \
                             std::int64_t, int);                                                                     \
  template void skip_backward(std::int64_t, std::int64_t, std::int64_t, const T*, std::int64_t, const T*, const T*,  \
                              std::int64_t, T*, std::int64_t, T*, int);                                              \
  template void delta_gates_forward(std::int64_t, std::int64_t, const T*, std::int64_t, const T*, std::int64_t,      \
                                    const T*, const T*, T*, T*, int);                                                \
  template void delta_gates_backward(std::int64_t, std::int64_t, const T*, std::int64_t, const T*, std::int64_t,     \
                                     const T*, const T*, const T*, const T*, T*, std::int64_t, T*, std::int64_t, T*, \
                                     T*, int);
LOGLINEAR_GATES(float)
LOGLINEAR_GATES(double)
#undef LOGLINEAR_GATES

}  // namespace loglinear
