#pragma once
// What the mixers with softmax attention share.

#include <vector>

#include "loglinear/attention.hpp"
#include "nn/mixer.hpp"

namespace loglinear::nn {

// The sequences of a pass without a state, whose queries, keys and values are rows of one array.
template <class T>
std::vector<AttentionSequence> packed_sequences(const Pass<T>& pass) {
  std::vector<AttentionSequence> list;
  for (std::size_t s = 0; s + 1 < pass.cu_seqlens.size(); ++s) {
    const std::int64_t begin = pass.cu_seqlens[s], count = pass.cu_seqlens[s + 1] - begin;
    list.push_back({begin, count, begin, count});
  }
  return list;
}

}  // namespace loglinear::nn
