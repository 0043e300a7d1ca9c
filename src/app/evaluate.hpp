#pragma once
// Bits per byte of a model on a text.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "app/data.hpp"
#include "nn/model.hpp"

namespace loglinear::app {

struct EvaluationBin {
  std::int64_t first = 0, last = 0;  // positions within the sequence: 0, 1, 2-3, 4-7, ..., or parts of these
  std::int64_t bytes = 0;            // scored there
  double bits = 0;                   // sum of -log2 p
};

struct Evaluation {
  std::int64_t bytes = 0, sequences = 0, documents = 0;  // documents: that bytes were scored of
  std::int64_t places = 1;                               // where each byte was scored: seq_len / stride, or one
  double bits = 0;
  std::vector<EvaluationBin> bins;  // those with bytes

  double bits_per_byte() const { return bits / static_cast<double>(bytes); }
  double perplexity() const;  // 2 ^ bits per byte, of a byte
};

struct EvaluationOptions {
  std::int64_t seq_len = 0;  // documents are cut into sequences of this many tokens; 0: whole documents
  // 0, or what divides seq_len: a sequence begins at every so many bytes of a document, and scored are the bytes that
  // have been at each of the seq_len / stride places of a sequence, once there. So every stretch of `stride` positions,
  // and every bin made of such, has the same bytes, and bins differ by what stands before them alone.
  std::int64_t stride = 0;
  // Tokens of one pass, >= 1: shorter sequences are packed together, longer ones read in parts from state to state.
  std::int64_t batch_tokens = 16384;
  // Bins are 0, 1, 2-3, 4-7, ..., each of these in so many equal ones (>= 1) where it has as many positions.
  std::int64_t bins_per_doubling = 1;
  // Called now and then with the bytes scored so far, of all.
  std::function<void(std::int64_t done, std::int64_t all)> progress;
};

// Empty for a causal model. Otherwise a line that says what its loss is worth: its mixer looks at later tokens, so the
// loss is not that of a language model.
std::string future_warning(const nn::ModelConfig& config);

// Throws what evaluate() would throw for this text and these options, whatever the model.
void check_text(const Text& text, const EvaluationOptions& options);

// Scores every byte of the text once (but for a stride), each document (or piece of it) from an empty state; separators
// are context, not scored. A model that is not causal has no state to go on from: its documents are cut into sequences
// of batch_tokens where they are longer. The model's vocabulary must be the 256 bytes. Throws Error when the text has
// no bytes or the result is not finite, and of kind usage when the stride does not divide seq_len or no document has
// the 2 seq_len - stride bytes that it takes. The same bits for any number of threads.
Evaluation evaluate(nn::Model<float>& model, const Text& text, const EvaluationOptions& options = {});

}  // namespace loglinear::app
