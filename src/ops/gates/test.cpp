#include "loglinear/gates.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

// Every array of every gate; each test uses what it needs.
template <class T>
struct Problem {
  std::int64_t N, H, P;
  Grid<T> raw, b, x;          // inputs with row strides
  Grid<T> dt_bias, A_log, D;  // parameters
  Grid<T> dg, dbeta, dv;      // gradients of outputs

  Problem(std::int64_t N_, std::int64_t H_, std::int64_t P_, std::int64_t padding = 2)
      : N(N_),
        H(H_),
        P(P_),
        raw(N, H, padding),
        b(N, H, padding + 1),
        x(N, H * P, padding),
        dt_bias(1, H),
        A_log(1, H),
        D(1, H),
        dg(N, H),
        dbeta(N, H),
        dv(N, H * P, padding) {
    Random random(17, static_cast<std::uint64_t>(H));
    raw.fill(random, -6, 6), b.fill(random, -6, 6), x.fill(random);
    dt_bias.fill(random, -3, 0), A_log.fill(random, 0, 2), D.fill(random);
    dg.fill(random), dbeta.fill(random), dv.fill(random);
    if (N > 1) raw(1, 0) = 30;  // the linear part of softplus
  }

  struct Mamba {
    Grid<T> g, v;
  };
  Mamba mamba2(int threads = 0) const {
    Mamba out{Grid<T>(N, H), Grid<T>(N, H * P, 1)};
    mamba2_gates_forward<T>(N, H, P, raw.ptr(), raw.stride, dt_bias.ptr(), A_log.ptr(), x.ptr(), x.stride, out.g.ptr(),
                            out.v.ptr(), out.v.stride, threads);
    return out;
  }
  struct MambaGradients {
    Grid<T> draw, dx, ddt_bias, dA_log;
  };
  MambaGradients mamba2_backward(int threads = 0, double start = 0) const {
    MambaGradients o{Grid<T>(N, H, 3), Grid<T>(N, H * P, 1), Grid<T>(1, H), Grid<T>(1, H)};
    o.ddt_bias.fill(start), o.dA_log.fill(start);
    mamba2_gates_backward<T>(N, H, P, raw.ptr(), raw.stride, dt_bias.ptr(), A_log.ptr(), x.ptr(), x.stride, dg.ptr(),
                             dv.ptr(), dv.stride, o.draw.ptr(), o.draw.stride, o.dx.ptr(), o.dx.stride,
                             o.ddt_bias.ptr(), o.dA_log.ptr(), threads);
    return o;
  }
  // y starts as dv, so that the addition shows.
  Grid<T> skip(int threads = 0) const {
    Grid<T> y = dv;
    skip_forward<T>(N, H, P, x.ptr(), x.stride, D.ptr(), y.ptr(), y.stride, threads);
    return y;
  }
  std::pair<Grid<T>, Grid<T>> skip_gradients(int threads = 0, double start = 0) const {
    Grid<T> dx(N, H * P, 1), dD(1, H);
    dx.fill(start), dD.fill(start);
    loglinear::skip_backward<T>(N, H, P, x.ptr(), x.stride, D.ptr(), dv.ptr(), dv.stride, dx.ptr(), dx.stride, dD.ptr(),
                                threads);
    return {dx, dD};
  }
  struct Delta {
    Grid<T> g, beta;
  };
  Delta delta(int threads = 0) const {
    Delta out{Grid<T>(N, H), Grid<T>(N, H)};
    delta_gates_forward<T>(N, H, raw.ptr(), raw.stride, b.ptr(), b.stride, dt_bias.ptr(), A_log.ptr(), out.g.ptr(),
                           out.beta.ptr(), threads);
    return out;
  }
  struct DeltaGradients {
    Grid<T> da, db, ddt_bias, dA_log;
  };
  DeltaGradients delta_backward(int threads = 0, double start = 0) const {
    DeltaGradients o{Grid<T>(N, H, 1), Grid<T>(N, H, 2), Grid<T>(1, H), Grid<T>(1, H)};
    o.ddt_bias.fill(start), o.dA_log.fill(start);
    delta_gates_backward<T>(N, H, raw.ptr(), raw.stride, b.ptr(), b.stride, dt_bias.ptr(), A_log.ptr(), dg.ptr(),
                            dbeta.ptr(), o.da.ptr(), o.da.stride, o.db.ptr(), o.db.stride, o.ddt_bias.ptr(),
                            o.dA_log.ptr(), threads);
    return o;
  }
};

template <class T>
class Gates : public ::testing::Test {};
TYPED_TEST_SUITE(Gates, Floats);

TYPED_TEST(Gates, definitions) {
  using T = TypeParam;
  for (std::int64_t N : {0, 1, 30})
    for (std::int64_t H : {1, 5, 16})
      for (std::int64_t P : {1, 9}) {
        const Problem<T> p(N, H, P);
        Grid<double> g(N, H), v(N, H * P), beta(N, H), skip(N, H * P);
        for (std::int64_t n = 0; n < N; ++n)
          for (std::int64_t h = 0; h < H; ++h) {
            const double dt = softplus(static_cast<double>(p.raw(n, h)) + p.dt_bias(0, h));
            g(n, h) = -std::exp(static_cast<double>(p.A_log(0, h))) * dt;
            beta(n, h) = sigmoid(p.b(n, h));
            for (std::int64_t i = h * P; i < (h + 1) * P; ++i) {
              v(n, i) = p.x(n, i) * dt;
              skip(n, i) = p.dv(n, i) + static_cast<double>(p.D(0, h)) * p.x(n, i);
            }
          }
        const auto mamba = p.mamba2();
        expect_close(mamba.g, g, 2 * kBound<T>, "g");
        expect_close(mamba.v, v, 2 * kBound<T>, "v");
        const auto delta = p.delta();
        expect_close(delta.g, g, 2 * kBound<T>, "g");
        expect_close(delta.beta, beta, kBound<T>, "beta");
        expect_close(p.skip(), skip, kBound<T>, "skip");
      }
}

TEST(Gates, mamba2_gradients) {
  Problem<double> p(40, 3, 4);
  const auto [draw, dx, ddt_bias, dA_log] = p.mamba2_backward();
  const auto loss = [&] {
    const auto out = p.mamba2();
    return weighted_sum(p.dg, out.g) + weighted_sum(p.dv, out.v);
  };
  expect_gradient(p.raw, draw, loss, "ddt_raw");
  expect_gradient(p.x, dx, loss, "dx");
  expect_gradient(p.dt_bias, ddt_bias, loss, "ddt_bias", 1e-6);
  expect_gradient(p.A_log, dA_log, loss, "dA_log", 1e-6);
  EXPECT_TRUE(draw.padding_untouched() && dx.padding_untouched());
}

TEST(Gates, skip_gradients) {
  Problem<double> p(40, 3, 4);
  const auto [dx, dD] = p.skip_gradients();
  const auto loss = [&] { return weighted_sum(p.dv, p.skip()); };
  expect_gradient(p.x, dx, loss, "dx");
  expect_gradient(p.D, dD, loss, "dD");
}

TEST(Gates, delta_gradients) {
  Problem<double> p(40, 3, 1);
  const auto [da, db, ddt_bias, dA_log] = p.delta_backward();
  const auto loss = [&] {
    const auto out = p.delta();
    return weighted_sum(p.dg, out.g) + weighted_sum(p.dbeta, out.beta);
  };
  expect_gradient(p.raw, da, loss, "da");
  expect_gradient(p.b, db, loss, "db");
  expect_gradient(p.dt_bias, ddt_bias, loss, "ddt_bias", 1e-6);
  expect_gradient(p.A_log, dA_log, loss, "dA_log", 1e-6);
  EXPECT_TRUE(da.padding_untouched() && db.padding_untouched());
}

// Parameters' gradients are added, and float follows double.
TYPED_TEST(Gates, float_gradients_follow_double_and_are_added) {
  using T = TypeParam;
  const double bound = 20 * kBound<T>;
  const Problem<T> p(100, 5, 7);
  const Problem<double> exact(100, 5, 7);
  const auto mamba = p.mamba2_backward(0, 0.5);
  const auto mamba_exact = exact.mamba2_backward(0, 0);
  const auto plus = [](Grid<double> grid, double amount) {
    for (double& value : grid.data) value += amount;
    return grid;
  };
  expect_close(mamba.draw, mamba_exact.draw, bound, "ddt_raw");
  expect_close(mamba.dx, mamba_exact.dx, bound, "dx");
  expect_close(mamba.ddt_bias, plus(mamba_exact.ddt_bias, 0.5), bound, "ddt_bias");
  expect_close(mamba.dA_log, plus(mamba_exact.dA_log, 0.5), bound, "dA_log");
  const auto delta = p.delta_backward(0, 0.5);
  const auto delta_exact = exact.delta_backward(0, 0);
  expect_close(delta.da, delta_exact.da, bound, "da");
  expect_close(delta.db, delta_exact.db, bound, "db");
  expect_close(delta.ddt_bias, plus(delta_exact.ddt_bias, 0.5), bound, "ddt_bias");
  expect_close(delta.dA_log, plus(delta_exact.dA_log, 0.5), bound, "dA_log");
  expect_close(p.skip_gradients(0, 0.5).first, plus(exact.skip_gradients().first, 0.5), bound, "dx");
  expect_close(p.skip_gradients(0, 0.5).second, plus(exact.skip_gradients().second, 0.5), bound, "dD");
}

TYPED_TEST(Gates, same_bits_for_any_number_of_threads) {
  const Problem<TypeParam> p(2500, 3, 17);
  expect_same_for_threads([&](int t) {
    auto mamba = p.mamba2(t);
    auto dmamba = p.mamba2_backward(t);
    auto delta = p.delta(t);
    auto ddelta = p.delta_backward(t);
    auto [dx, dD] = p.skip_gradients(t);
    return std::vector{mamba.g.data,         mamba.v.data,         dmamba.draw.data, dmamba.dx.data, dmamba.dA_log.data,
                       dmamba.ddt_bias.data, delta.g.data,         delta.beta.data,  ddelta.da.data, ddelta.db.data,
                       ddelta.dA_log.data,   ddelta.ddt_bias.data, p.skip(t).data,   dx.data,        dD.data};
  });
}

TYPED_TEST(Gates, nan_stays_in_its_row) {
  using T = TypeParam;
  Problem<T> p(50, 3, 5);
  const auto mamba = p.mamba2();
  const auto delta = p.delta();
  const Grid<T> dx = p.mamba2_backward().dx, da = p.delta_backward().da;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  p.raw(20, 1) = nan, p.b(20, 1) = nan;
  const auto dirty = p.mamba2();
  const auto dirty_delta = p.delta();
  const Grid<T> dirty_dx = p.mamba2_backward().dx, dirty_da = p.delta_backward().da;
  for (std::int64_t n = 0; n < 50; ++n) {
    EXPECT_EQ(same_row_bits(dirty.g, mamba.g, n), n != 20);
    EXPECT_EQ(same_row_bits(dirty.v, mamba.v, n), n != 20);
    EXPECT_EQ(same_row_bits(dirty_delta.g, delta.g, n), n != 20);
    EXPECT_EQ(same_row_bits(dirty_delta.beta, delta.beta, n), n != 20);
    EXPECT_EQ(same_row_bits(dirty_dx, dx, n), n != 20);
    EXPECT_EQ(same_row_bits(dirty_da, da, n), n != 20);
  }
  EXPECT_TRUE(std::isnan(dirty.g(20, 1)));
}

TYPED_TEST(Gates, dx_may_be_dv) {
  Problem<TypeParam> p(20, 3, 5);
  const Grid<TypeParam> want = p.mamba2_backward().dx;
  Grid<TypeParam> draw(20, 3), sums(2, 3);
  sums.fill(0.0);
  mamba2_gates_backward<TypeParam>(20, 3, 5, p.raw.ptr(), p.raw.stride, p.dt_bias.ptr(), p.A_log.ptr(), p.x.ptr(),
                                   p.x.stride, p.dg.ptr(), p.dv.ptr(), p.dv.stride, draw.ptr(), draw.stride, p.dv.ptr(),
                                   p.dv.stride, sums.ptr(), sums.ptr() + 3);
  for (std::int64_t n = 0; n < 20; ++n) EXPECT_TRUE(same_row_bits(p.dv, want, n));
}

TEST(Gates, errors) {
  float x[32] = {};
  expect_error([&] { mamba2_gates_forward<float>(-1, 2, 2, x, 2, x, x, x, 4, x, x, 4); }, "size");
  expect_error([&] { mamba2_gates_forward<float>(1, 2, 2, x, 1, x, x, x, 4, x, x, 4); }, "dt_raw: row stride 1");
  expect_error([&] { mamba2_gates_forward<float>(1, 2, 2, x, 2, nullptr, x, x, 4, x, x, 4); }, "dt_bias is null");
  expect_error([&] { mamba2_gates_backward<float>(1, 2, 2, x, 2, x, x, x, 4, x, x, 3, x, 2, x, 4, x, x); },
               "dv: row stride 3");
  expect_error([&] { skip_forward<float>(1, 2, 2, x, 4, nullptr, x, 4); }, "D is null");
  expect_error([&] { skip_backward<float>(1, 2, 2, x, 4, x, x, 4, x, 3, x); }, "dx: row stride 3");
  expect_error([&] { delta_gates_forward<float>(1, 2, x, 2, x, 1, x, x, x, x); }, "b: row stride 1");
  expect_error([&] { delta_gates_backward<float>(1, 2, x, 2, x, 2, x, x, x, nullptr, x, 2, x, 2, x, x); },
               "dbeta is null");
}

}  // namespace
}  // namespace loglinear::testing
