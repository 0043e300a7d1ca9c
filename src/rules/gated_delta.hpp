#pragma once
// Gated delta: log-linear Gated DeltaNet (arXiv 2506.04761, section 3.4). A token first erases what the state holds for
// its key, then writes: erase(S) = S - beta k (k^T S), w = beta k.

#include <cstdint>
#include <vector>

namespace loglinear::rules {

struct GatedDelta {
  static constexpr bool kErases = true;

  // The definition, any scalar type S. state (K, V), k (K), w (K). erase_backward takes the state before the erasure
  // and turns dstate from the gradient after it into the gradient before it; dk and dbeta are added to.
  template <class S>
  static void erase(std::int64_t K, std::int64_t V, const S* k, S beta, S* state) {
    for (std::int64_t b = 0; b < V; ++b) {
      S found = S(0);  // (k^T S)_b
      for (std::int64_t a = 0; a < K; ++a) found += k[a] * state[a * V + b];
      for (std::int64_t a = 0; a < K; ++a) state[a * V + b] -= beta * k[a] * found;
    }
  }

  template <class S>
  static void erase_backward(std::int64_t K, std::int64_t V, const S* k, S beta, const S* state, S* dstate, S* dk,
                             S& dbeta) {
    for (std::int64_t b = 0; b < V; ++b) {
      S found = S(0), dfound = S(0);  // (k^T S)_b and (k^T dS)_b
      for (std::int64_t a = 0; a < K; ++a) {
        found += k[a] * state[a * V + b];
        dfound += k[a] * dstate[a * V + b];
      }
      dbeta -= found * dfound;
      for (std::int64_t a = 0; a < K; ++a) {
        dk[a] -= beta * (dstate[a * V + b] * found + state[a * V + b] * dfound);
        dstate[a * V + b] -= beta * k[a] * dfound;
      }
    }
  }

  template <class S>
  static void write(std::int64_t K, const S* k, S beta, S* w) {
    for (std::int64_t a = 0; a < K; ++a) w[a] = beta * k[a];
  }

  template <class S>
  static void write_backward(std::int64_t K, const S* k, S beta, const S* dw, S* dk, S& dbeta) {
    for (std::int64_t a = 0; a < K; ++a) {
      dk[a] += beta * dw[a];
      dbeta += k[a] * dw[a];
    }
  }

  // The chunk form. With N = strictly_lower(diag(beta) K K^T), inverse = (I + N)^-1 and mix = inverse diag(beta).
  // Kernel: the matrix kernel of the instruction set (base/matrix-inl.h). All matrices (n, ld) row-major, lower
  // triangular with zeros above the diagonal; kk = K K^T, of which only the part below the diagonal is read.
  template <class Kernel, class T>
  static void mix(const Kernel& kernel, std::int64_t n, std::int64_t ld, const T* kk, const T* beta, T* inverse,
                  T* mix) {
    for (std::int64_t t = 0; t < n; ++t)
      for (std::int64_t s = 0; s < t; ++s) mix[t * ld + s] = beta[t] * kk[t * ld + s];
    kernel.unit_lower_inverse(n, ld, mix, inverse);
    for (std::int64_t t = 0; t < n; ++t)
      for (std::int64_t s = 0; s < ld; ++s) mix[t * ld + s] = s <= t ? inverse[t * ld + s] * beta[s] : T(0);
  }

  // dmix (lower triangle read; overwritten) -> dkk (strictly lower, zero elsewhere), dbeta (n) added to. work: 2 n ld.
  template <class Kernel, class T>
  static void mix_backward(const Kernel& kernel, std::int64_t n, std::int64_t ld, const T* kk, const T* beta,
                           const T* inverse, T* dmix, T* dkk, T* dbeta, T* work) {
    // mix = inverse diag(beta)
    for (std::int64_t t = 0; t < n; ++t)
      for (std::int64_t s = 0; s < ld; ++s) {
        if (s <= t) dbeta[s] += dmix[t * ld + s] * inverse[t * ld + s];
        dmix[t * ld + s] = s <= t ? dmix[t * ld + s] * beta[s] : T(0);
      }
    // d(I + N) = -inverse^T dinverse inverse^T, of which the strictly lower part belongs to N.
    T *left = work, *transposed = work + n * ld;
    kernel.transpose(n, n, inverse, ld, transposed, ld);
    kernel.product(n, n, n, transposed, ld, 1, dmix, ld, left, ld, kernel.upper_a());
    kernel.product(n, n, n, left, ld, 1, transposed, ld, dkk, ld, kernel.lower_c());
    for (std::int64_t t = 0; t < n; ++t)
      for (std::int64_t s = 0; s < ld; ++s) {
        const T dn = s < t ? -dkk[t * ld + s] : T(0);
        if (s < t) dbeta[t] += dn * kk[t * ld + s];
        dkk[t * ld + s] = dn * beta[t];
      }
  }
};

}  // namespace loglinear::rules
