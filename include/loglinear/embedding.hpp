#pragma once
// Token embeddings.

#include <cstdint>
#include <span>

#include "loglinear/error.hpp"

namespace loglinear {

// out[n, :] = table[tokens[n], :]        tokens (N), table (vocab, width), out (N, width), both dense
//
// T is float or double. Throws Error on a negative size, a token outside [0, vocab), or a null array that has elements;
// then nothing has been written.
template <class T>
void embedding_forward(std::span<const std::int32_t> tokens, std::int64_t vocab, std::int64_t width, const T* table,
                       T* out, int threads = 0);

// dtable (vocab, width) is ADDED to: dtable[tokens[n], :] += dout[n, :], in the order of n for each token, for any
// number of threads. Errors as above.
template <class T>
void embedding_backward(std::span<const std::int32_t> tokens, std::int64_t vocab, std::int64_t width, const T* dout,
                        T* dtable, int threads = 0);

}  // namespace loglinear
