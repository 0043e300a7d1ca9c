#pragma once
// Scalar decay: log-linear Mamba-2 (arXiv 2506.04761, section 3.3). A token erases nothing and writes its key.

#include <cstdint>

namespace loglinear::rules {

struct ScalarDecay {
  static constexpr bool kErases = false;

  // The definition, any scalar type S. state (K, V), k (K), w (K).
  template <class S>
  static void erase(std::int64_t, std::int64_t, const S*, S, S*) {}

  template <class S>
  static void erase_backward(std::int64_t, std::int64_t, const S*, S, const S*, S*, S*, S&) {}

  template <class S>
  static void write(std::int64_t K, const S* k, S, S* w) {
    for (std::int64_t a = 0; a < K; ++a) w[a] = k[a];
  }

  template <class S>
  static void write_backward(std::int64_t K, const S*, S, const S* dw, S* dk, S&) {
    for (std::int64_t a = 0; a < K; ++a) dk[a] += dw[a];
  }
};

}  // namespace loglinear::rules
