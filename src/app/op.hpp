#pragma once
// The operator on a file: how others hold it against their own code.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/file.hpp"
#include "loglinear/log_linear.hpp"

namespace loglinear::app {

enum class Form {
  ref,    // the definition, token by token
  chunk,  // chunks of tokens, as in training
  step,   // one token at a time, as in decoding; has no backward
};

const char* name_of(Form form);
std::optional<Form> form_from_name(std::string_view name);

struct OpSettings {
  io::Path in, out;
  std::optional<Rule> rule;  // absent: gated_delta when the file has beta, else scalar_decay
  Form form = Form::chunk;
  std::optional<DType> dtype;  // absent: f64 when q is F64, bf16 when q is BF16, else f32
  std::vector<std::int64_t> split;
  log_linear::PastLast past_last = log_linear::PastLast::share;
  int chunk = 0;    // as in ForwardArgs
  int threads = 0;  // 0: all cores
};

struct OpReport {
  Rule rule = Rule::scalar_decay;
  DType dtype = DType::f32;
  std::vector<std::string> written;  // names of the tensors in the output file
  std::vector<std::string> notes;    // one line each: what was left out or ignored
};

// Reads a safetensors file with
//
//   q k           (B, T, G, K)      any float type, as are all but cu_seqlens
//   v             (B, T, H, V)
//   g             (B, T, H)         <= 0
//   level_scales  (B, T, H, L)
//   beta          (B, T, H)         for gated_delta
//   cu_seqlens    (N + 1)           optional, I64 or I32, B = 1: N sequences packed along T
//   do            (B, T, H, V)      optional: gradient of the loss in o
//
// and writes o and, given do and a form with a backward, dq dk dv dg dlevel_scales (dbeta), atomically. Results that
// such a file may hold (o, d*) are ignored; any other tensor is an error, as are wrong shapes or types, values that are
// NaN or infinite (also only after conversion to dtype) and g > 0.
//
// dtype: f64 computes and writes everything in float64. f32: float32. bf16: q k v do are rounded to bfloat16, and o dq
// dk dv written as such; g beta level_scales and their gradients are float32.
//
// split: T is cut before these tokens (0 <= a <= b <= .. <= T), and each piece begins from the state in which the one
// before it ended; gradients go back through the states in the same way. With cu_seqlens the cuts are places on the
// packed axis.
//
// A rule that was asked for wins over the presence of beta, which is then ignored with a note.
OpReport run_op(const OpSettings& settings);

}  // namespace loglinear::app
