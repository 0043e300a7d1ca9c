#pragma once
// Counter-based random numbers (Random123's Philox): value number i of stream (seed, stream) is a pure function of the
// three, so a position in the stream is all the state there is, and any part of it can be made by any thread.

#include <Random123/philox.h>

#include <cmath>
#include <cstdint>
#include <numbers>

namespace loglinear {

class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t stream, std::uint64_t position = 0)
      : seed_(seed), stream_(stream), position_(position) {}

  std::uint64_t position() const { return position_; }

  // Value number i, 64 uniform bits.
  std::uint64_t at(std::uint64_t i) const {
    const r123::Philox2x64 philox;
    // The seed keys the cipher; the stream and the index are its counter.
    return philox({{i, stream_}}, {{seed_}})[0];
  }

  std::uint64_t bits() { return at(position_++); }
  // Uniform in [0, 1).
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  // Uniform in 0 .. n - 1 (n > 0; the bias of 2^-64 n is accepted).
  std::uint64_t below(std::uint64_t n) {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(bits()) * n) >> 64);
  }
  // Standard normal (Box-Muller, one of the pair).
  double normal() {
    const double u = 1.0 - uniform(), w = uniform();
    return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * w);
  }

 private:
  std::uint64_t seed_, stream_, position_;
};

}  // namespace loglinear
