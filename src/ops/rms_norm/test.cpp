#include "loglinear/rms_norm.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

constexpr double kEps = 1e-5;
constexpr NormGate kGates[] = {NormGate::none, NormGate::before, NormGate::after};

template <class T>
struct Problem {
  NormGate gate;
  std::int64_t rows, heads, width;
  Grid<T> x, z, weight, dy;

  Problem(NormGate gate_, std::int64_t rows_, std::int64_t heads_, std::int64_t width_, std::int64_t padding = 0)
      : gate(gate_),
        rows(rows_),
        heads(heads_),
        width(width_),
        x(rows, heads * width, padding),
        z(rows, heads * width, 2 * padding),
        weight(1, width),
        dy(rows, heads * width, padding) {
    Random random(3, static_cast<std::uint64_t>(width));
    x.fill(random, -2, 2);
    z.fill(random, -4, 4);
    weight.fill(random, 0.5, 1.5);
    dy.fill(random);
  }
  const T* gates() const { return gate == NormGate::none ? nullptr : z.ptr(); }

  Grid<T> forward(int threads = 0) const {
    Grid<T> y(rows, heads * width, x.stride - x.width);
    rms_norm_forward<T>(gate, rows, heads, width, x.ptr(), x.stride, gates(), z.stride, weight.ptr(), kEps, y.ptr(),
                        y.stride, threads);
    return y;
  }
  struct Gradients {
    Grid<T> dx, dz, dweight;
  };
  Gradients backward(T dx_beta, double start, int threads = 0) const {
    Gradients g{Grid<T>(rows, heads * width, 1), Grid<T>(rows, heads * width, 4), Grid<T>(1, width)};
    if (dx_beta != 0) g.dx.fill(start);
    g.dweight.fill(start);
    rms_norm_backward<T>(gate, rows, heads, width, x.ptr(), x.stride, gates(), z.stride, weight.ptr(), kEps, dy.ptr(),
                         dy.stride, dx_beta, g.dx.ptr(), g.dx.stride, gate == NormGate::none ? nullptr : g.dz.ptr(),
                         g.dz.stride, g.dweight.ptr(), threads);
    return g;
  }
  Grid<double> definition() const {
    Grid<double> y(rows, heads * width);
    for (std::int64_t n = 0; n < rows; ++n)
      for (std::int64_t h = 0; h < heads; ++h) {
        const auto in = [&](std::int64_t i) {
          const double u = x(n, h * width + i);
          return gate == NormGate::before ? u * silu(z(n, h * width + i)) : u;
        };
        double mean = 0;
        for (std::int64_t i = 0; i < width; ++i) mean += in(i)*in(i) / static_cast<double>(width);
        for (std::int64_t i = 0; i < width; ++i) {
          y(n, h * width + i) = in(i) / std::sqrt(mean + kEps) * weight(0, i);
          if (gate == NormGate::after) y(n, h * width + i) *= silu(z(n, h * width + i));
        }
      }
    return y;
  }
};

template <class T>
class RmsNorm : public ::testing::Test {};
TYPED_TEST_SUITE(RmsNorm, Floats);

TYPED_TEST(RmsNorm, definition) {
  for (NormGate gate : kGates)
    for (std::int64_t rows : {0, 1, 5, 70})
      for (std::int64_t heads : {1, 3})
        for (std::int64_t width : {1, 7, 16, 33, 100}) {
          const Problem<TypeParam> p(gate, rows, heads, width, 5);
          expect_close(p.forward(), p.definition(), 4 * kBound<TypeParam>, "y");
        }
}

TEST(RmsNorm, gradients) {
  for (NormGate gate : kGates) {
    Problem<double> p(gate, 70, 2, 9, 2);
    const auto [dx, dz, dweight] = p.backward(0, 0);
    const auto loss = [&] { return weighted_sum(p.dy, p.forward()); };
    expect_gradient(p.x, dx, loss, "dx");
    expect_gradient(p.weight, dweight, loss, "dweight");
    if (gate != NormGate::none) expect_gradient(p.z, dz, loss, "dz");
    EXPECT_TRUE(dx.padding_untouched() && dz.padding_untouched());
  }
}

TYPED_TEST(RmsNorm, float_gradients_follow_double_and_are_added_where_said) {
  using T = TypeParam;
  for (NormGate gate : kGates) {
    const Problem<T> p(gate, 90, 2, 33);
    const Problem<double> exact(gate, 90, 2, 33);
    const auto got = p.backward(0, 0), added = p.backward(1, 0.5);
    auto want = exact.backward(0, 0);
    expect_close(got.dx, want.dx, 10 * kBound<T>, "dx");
    expect_close(got.dweight, want.dweight, 10 * kBound<T>, "dweight");
    if (gate != NormGate::none) expect_close(got.dz, want.dz, 10 * kBound<T>, "dz");
    for (Grid<double>* g : {&want.dx, &want.dweight})
      for (std::int64_t r = 0; r < g->rows; ++r)
        for (std::int64_t c = 0; c < g->width; ++c) (*g)(r, c) += 0.5;
    expect_close(added.dx, want.dx, 10 * kBound<T>, "dx added");
    expect_close(added.dweight, want.dweight, 10 * kBound<T>, "dweight added");
  }
}

TYPED_TEST(RmsNorm, in_place) {
  using T = TypeParam;
  for (NormGate gate : kGates) {
    Problem<T> p(gate, 9, 2, 21);
    const Grid<T> y = p.forward();
    const auto want = p.backward(0, 0);
    Grid<T> dx = p.dy, dz = p.z, dweight(1, 21);
    dweight.fill(0.0);
    rms_norm_backward<T>(gate, 9, 2, 21, p.x.ptr(), p.x.stride, gate == NormGate::none ? nullptr : dz.ptr(), dz.stride,
                         p.weight.ptr(), kEps, dx.ptr(), dx.stride, T(0), dx.ptr(), dx.stride,
                         gate == NormGate::none ? nullptr : dz.ptr(), dz.stride, dweight.ptr());
    for (std::int64_t r = 0; r < 9; ++r) {
      EXPECT_TRUE(same_row_bits(dx, want.dx, r));
      EXPECT_TRUE(gate == NormGate::none || same_row_bits(dz, want.dz, r));
    }
    rms_norm_forward<T>(gate, 9, 2, 21, p.x.ptr(), p.x.stride, p.gates(), p.z.stride, p.weight.ptr(), kEps, p.x.ptr(),
                        p.x.stride);
    EXPECT_TRUE(same_bits(p.x.data, y.data));
  }
}

TYPED_TEST(RmsNorm, same_bits_for_any_number_of_threads) {
  for (NormGate gate : kGates) {
    const Problem<TypeParam> p(gate, 3000, 2, 40, 3);
    expect_same_for_threads([&](int threads) {
      auto g = p.backward(0, 0, threads);
      return std::vector{p.forward(threads).data, g.dx.data, g.dz.data, g.dweight.data};
    });
  }
}

TYPED_TEST(RmsNorm, nan_stays_in_its_row_and_head) {
  for (NormGate gate : kGates) {
    Problem<TypeParam> p(gate, 40, 2, 20);
    const Grid<TypeParam> clean = p.forward(), clean_dx = p.backward(0, 0).dx;
    p.x(17, 3) = std::numeric_limits<TypeParam>::quiet_NaN();
    const Grid<TypeParam> dirty = p.forward(), dirty_dx = p.backward(0, 0).dx;
    for (std::int64_t n = 0; n < 40; ++n)
      for (std::int64_t c = 0; c < 40; ++c) {
        if (n == 17 && c < 20) {
          EXPECT_TRUE(std::isnan(dirty(n, c)));
        } else {
          EXPECT_EQ(dirty(n, c), clean(n, c));
          EXPECT_EQ(dirty_dx(n, c), clean_dx(n, c));
        }
      }
  }
}

TEST(RmsNorm, errors) {
  float x[12] = {};
  const auto call = [&](NormGate gate, std::int64_t rows, std::int64_t width, std::int64_t stride, const float* z,
                        double eps) {
    return [=, &x] { rms_norm_forward<float>(gate, rows, 1, width, x, stride, z, 4, x, eps, x, 4); };
  };
  expect_error(call(NormGate::none, -1, 4, 4, nullptr, 1e-5), "size");
  expect_error(call(NormGate::none, 2, 0, 4, nullptr, 1e-5), "width");
  expect_error(call(NormGate::none, 2, 4, 3, nullptr, 1e-5), "stride");
  expect_error(call(NormGate::none, 2, 4, 4, nullptr, 0), "eps");
  expect_error(call(NormGate::none, 2, 4, 4, nullptr, std::nan("")), "eps");
  expect_error(call(NormGate::after, 2, 4, 4, nullptr, 1e-5), "z is null");
}

}  // namespace
}  // namespace loglinear::testing
