#pragma once
// The loss of a language model.

#include <cstdint>
#include <span>

#include "loglinear/error.hpp"

namespace loglinear {

// For every row n with target y >= 0:
//
//   losses[n]     = log(sum over j of exp(logits[n, j])) - logits[n, y]           natural log
//   dlogits[n, :] = scale * (softmax(logits[n, :]) - onehot(y))
//
// and zero for rows whose target is -1.
//
//   targets   (N), in [-1, vocab)
//   logits    (N, vocab), rows logits_stride elements apart
//   losses    (N), written, in float64; or null
//   dlogits   (N, vocab), rows dlogits_stride elements apart, written; may be logits with the same stride; or null
//
// T is float or double; a row's sum of exponentials is taken relative to its maximum, in T over vector lanes. A logit
// of -infinity has probability zero; a row with NaN or +infinity has loss and gradient NaN; other rows are not touched
// by it. Same bits for any number of threads. Throws Error on a negative size, vocab < 1, a target out of range, a row
// stride below vocab, or a null array that has elements; then nothing has been written.
template <class T>
void cross_entropy(std::span<const std::int32_t> targets, std::int64_t vocab, const T* logits,
                   std::int64_t logits_stride, T scale, double* losses, T* dlogits, std::int64_t dlogits_stride,
                   int threads = 0);

}  // namespace loglinear
