#include "loglinear/matmul.hpp"

#include <dnnl.h>
#include <omp.h>

#include <algorithm>
#include <vector>

#include "base/op_timer.hpp"
#include "base/rows.hpp"
#include "base/vector_math.hpp"

namespace loglinear {
namespace {

constexpr const char* kWhere = "matmul";

// oneDNN blocks by the number of threads it may use, so it is given one, and the caller's setting back.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

void tile(bool a_t, bool b_t, std::int64_t M, std::int64_t N, std::int64_t K, const float* a, std::int64_t lda,
          const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  const OneThread one;
  const dnnl_status_t status =
      dnnl_sgemm(a_t ? 'T' : 'N', b_t ? 'T' : 'N', M, N, K, 1.0f, a, lda, b, ldb, beta, c, ldc);
  if (status != dnnl_success) fail(kWhere, "oneDNN sgemm failed with status {}", static_cast<int>(status));
}

// The tile of op(B) is copied into rows, so that one loop serves both layouts.
void tile(bool a_t, bool b_t, std::int64_t M, std::int64_t N, std::int64_t K, const double* a, std::int64_t lda,
          const double* b, std::int64_t ldb, double beta, double* c, std::int64_t ldc) {
  if (beta == 0)
    for (std::int64_t m = 0; m < M; ++m) std::fill_n(c + m * ldc, N, 0.0);
  constexpr std::int64_t kDepth = 128;
  std::vector<double> rows(static_cast<std::size_t>(kDepth * N));
  for (std::int64_t k0 = 0; k0 < K; k0 += kDepth) {
    const std::int64_t depth = std::min(kDepth, K - k0);
    for (std::int64_t k = 0; k < depth; ++k)
      for (std::int64_t n = 0; n < N; ++n) rows[k * N + n] = b_t ? b[n * ldb + k0 + k] : b[(k0 + k) * ldb + n];
    vec::add_tile_product(M, N, depth, a_t ? a + k0 * lda : a + k0, a_t ? 1 : lda, a_t ? lda : 1, rows.data(), N, c,
                          ldc);
  }
}

}  // namespace

template <class T>
void matmul(Transpose a_transposed, Transpose b_transposed, std::int64_t M, std::int64_t N, std::int64_t K, const T* a,
            std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc, int threads) {
  const TimedOperator timed("matmul", 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K));
  const bool a_t = a_transposed == Transpose::yes, b_t = b_transposed == Transpose::yes;
  check_sizes(kWhere, {M, N});
  check_sizes(kWhere, {M, K});
  check_sizes(kWhere, {K, N});
  if (!(beta == 0 || beta == 1)) fail(kWhere, "beta is {}, need 0 or 1", beta);
  if (M == 0 || N == 0) return;
  check_rows(kWhere, "a", a_t ? K : M, a_t ? M : K, a, lda);
  check_rows(kWhere, "b", b_t ? N : K, b_t ? K : N, b, ldb);
  check_rows(kWhere, "c", M, N, c, ldc);

  // oneDNN copies its operands anew for every tile, so large tiles lose least (a few percent to one whole product); but
  // there must be enough of them to share out.
  constexpr std::int64_t kLargeRows = 256, kLargeColumns = 512, kEnough = 16;
  const auto ceil_div = [](std::int64_t n, std::int64_t by) { return (n + by - 1) / by; };
  const bool large = ceil_div(M, kLargeRows) * ceil_div(N, kLargeColumns) >= kEnough;
  const std::int64_t tile_rows = large ? kLargeRows : kLargeRows / 2;
  const std::int64_t tile_columns = large ? kLargeColumns : kLargeColumns / 2;
  const std::int64_t down = ceil_div(M, tile_rows), across = ceil_div(N, tile_columns);
  // A product this small is done before other threads have woken up.
  const bool small = static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K) < 1e5;
  parallel_for(down * across, small ? 1 : threads, [&](std::int64_t i) {
    const std::int64_t m = i / across * tile_rows, n = i % across * tile_columns;
    const std::int64_t rows = std::min(tile_rows, M - m), columns = std::min(tile_columns, N - n);
    T* to = c + m * ldc + n;
    if (K == 0) {
      if (beta == 0)
        for (std::int64_t r = 0; r < rows; ++r) std::fill_n(to + r * ldc, columns, T(0));
      return;
    }
    tile(a_t, b_t, rows, columns, K, a_t ? a + m : a + m * lda, lda, b_t ? b + n * ldb : b + n, ldb, beta, to, ldc);
  });
}

template void matmul(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, const float*, std::int64_t,
                     const float*, std::int64_t, float, float*, std::int64_t, int);
template void matmul(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, const double*, std::int64_t,
                     const double*, std::int64_t, double, double*, std::int64_t, int);

}  // namespace loglinear
