#include "app/compare/mechanisms.hpp"

#include <algorithm>
#include <bit>
#include <vector>

#include <fmt/format.h>

#include "loglinear/state.hpp"
#include "nn/families.hpp"

namespace loglinear::app::compare {
namespace {

// Keys and values of n tokens.
double cache_bytes(const Sizes& s, std::int64_t n) {
  return 4.0 * static_cast<double>(n) * 2.0 * static_cast<double>(s.H * s.W);
}

std::int64_t before_last(const Sizes& s) { return std::max<std::int64_t>(0, s.T - 1); }

double cache_of_all(const Sizes& s) { return cache_bytes(s, before_last(s)); }
double cache_of_window(const Sizes& s) { return cache_bytes(s, std::min(before_last(s), kWindow - 1)); }

// Keys, values and two bits for each element of a key, in blocks of 128 tokens.
double cache_and_codes(const Sizes& s) {
  return cache_of_all(s) + static_cast<double>((before_last(s) + 127) / 128 * 128 * s.H * ((s.W + 3) / 4));
}

double one_matrix(const Sizes& s) { return 4.0 * static_cast<double>(s.H * s.W * s.W); }

// What State::bytes() counts: matrices with a decay for each head, and the tokens of the open chunk with their gates.
double chunked_state(const Sizes& s, bool log_linear, int gates) {
  const std::int64_t read = before_last(s), chunk = default_chunk(s.W, s.W);
  const std::int64_t full = read / chunk, open = read % chunk;
  const int slots = log_linear ? std::popcount(static_cast<std::uint64_t>(full)) : full > 0;
  return slots * (one_matrix(s) + 8.0 * static_cast<double>(s.H)) +
         4.0 * static_cast<double>(open * s.H * (2 * s.W + gates));
}

double scalar_state(const Sizes& s) { return chunked_state(s, false, 1); }
double delta_state(const Sizes& s) { return chunked_state(s, false, 2); }
double log_linear_scalar_state(const Sizes& s) { return chunked_state(s, true, 1); }
double log_linear_delta_state(const Sizes& s) { return chunked_state(s, true, 2); }
double nothing(const Sizes&) { return 0; }

constexpr const char* kCache = "T keys and values";
constexpr const char* kOneState = "one K x V matrix";
constexpr const char* kLiveStates = "popcount(T / chunk) K x V matrices";

// In the order of the user's comparison: from all pairs to few.
const Mechanism kMechanisms[] = {
    {.name = "standard",
     .title = "standard softmax attention",
     .computes = "softmax(Q K^T / sqrt(K)) V, the scores of all pairs written down",
     .time = "T^2",
     .memory = "T^2",
     .state = kCache,
     .source = "Vaswani et al. 2017, arXiv 1706.03762",
     .state_bytes = cache_of_all},
    {.name = "flash",
     .title = "flash attention",
     .computes = "the same in tiles, with the softmax of what was seen so far",
     .time = "T^2",
     .memory = "T",
     .state = kCache,
     .source = "Dao et al. 2022, arXiv 2205.14135; Dao 2023, arXiv 2307.08691",
     .state_bytes = cache_of_all},
    {.name = "sliding_window",
     .title = "sparse attention, sliding window",
     .computes = "softmax attention to the newest w = 256 tokens",
     .time = "T w",
     .memory = "T",
     .state = "w keys and values",
     .source = "Beltagy et al. 2020, arXiv 2004.05150",
     .state_bytes = cache_of_window},
    {.name = "local_strided",
     .title = "sparse attention, local and strided",
     .computes = "softmax attention to the newest sqrt(T) tokens and to every sqrt(T)-th token",
     .time = "T sqrt(T)",
     .memory = "T",
     .state = kCache,
     .source = "Child et al. 2019, arXiv 1904.10509",
     .state_bytes = cache_of_all},
    {.name = "linear",
     .title = "linear attention",
     .computes = "S += k v^T, out = q^T S",
     .time = "T",
     .memory = "T",
     .state = kOneState,
     .source = "Katharopoulos et al. 2020, arXiv 2006.16236",
     .state_bytes = scalar_state},
    {.name = "mamba2",
     .title = "linear attention, scalar decay (Mamba-2)",
     .computes = "S = exp(g) S + k v^T, out = q^T S",
     .time = "T",
     .memory = "T",
     .state = kOneState,
     .source = "Dao and Gu 2024, arXiv 2405.21060",
     .state_bytes = scalar_state},
    {.name = "gated_deltanet",
     .title = "linear attention, gated delta rule",
     .computes = "S = exp(g) (S - beta k (k^T S)) + beta k v^T, out = q^T S",
     .time = "T",
     .memory = "T",
     .state = kOneState,
     .source = "Yang et al. 2024, arXiv 2412.06464",
     .state_bytes = delta_state},
    {.name = "log_linear_mamba2",
     .title = "log-linear attention, scalar decay",
     .computes = "a Mamba-2 state for every set bit of the position, each read with a scale of its own",
     .time = "T log T",
     .memory = "T",
     .state = kLiveStates,
     .source = "Guo et al. 2025, arXiv 2506.04761",
     .state_bytes = log_linear_scalar_state},
    {.name = "log_linear_gated_deltanet",
     .title = "log-linear attention, gated delta rule",
     .computes = "a gated delta state for every set bit of the position, each read with a scale of its own",
     .time = "T log T",
     .memory = "T",
     .state = kLiveStates,
     .source = "Guo et al. 2025, arXiv 2506.04761",
     .state_bytes = log_linear_delta_state},
    {.name = "mosa",
     .title = "mixture of sparse attention (MoSA)",
     .computes = "each head chooses T / 16 tokens of the whole sequence and attends among them",
     .time = "(T / 16)^2 + T",
     .memory = "T",
     .state = "-",
     .source = "MoSA 2025, arXiv 2505.00315",
     .stream = false,
     .causal = false,
     .state_bytes = nothing},
    {.name = "adamas",
     .title = "Hadamard sparse decoding (Adamas)",
     .computes = "softmax attention of a new token to the 128 cached ones whose 2-bit codes are nearest",
     .time = "T / 16 a token",
     .memory = "T a token",
     .state = "T keys, values and 2-bit codes",
     .source = "Adamas 2025, arXiv 2510.18413",
     .forward = false,
     .train = false,
     .state_bytes = cache_and_codes},
    {.name = "qla",
     .title = "quasi-linear attention (VISTA)",
     .computes = "Z = phi(K)^T V over all tokens, out = phi(Q) Z; a candidate sees the history and itself",
     .time = "T",
     .memory = "T",
     .state = kOneState,
     .source = "VISTA 2025, arXiv 2510.22049",
     .causal = false,
     .state_bytes = one_matrix},
};

std::string yes(bool b) { return b ? "yes" : "no"; }

}  // namespace

std::span<const Mechanism> mechanisms() { return kMechanisms; }

const Mechanism* find_mechanism(std::string_view name) {
  for (const Mechanism& m : kMechanisms)
    if (name == m.name) return &m;
  return nullptr;
}

std::string mechanism_names() {
  std::string names;
  for (const Mechanism& m : kMechanisms) names += std::string(names.empty() ? "" : ", ") + m.name;
  return names;
}

std::string mechanisms_markdown() {
  std::string out =
      "| name | mechanism | computes | time | memory | streaming state | forward | train | stream | causal | source |\n"
      "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
  for (const Mechanism& m : kMechanisms)
    out += fmt::format("| `{}` | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n", m.name, m.title, m.computes,
                       m.time, m.memory, m.state, yes(m.forward), yes(m.train), yes(m.stream), yes(m.causal), m.source);
  return out;
}

nlohmann::ordered_json mechanisms_json() {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const Mechanism& m : kMechanisms)
    all.push_back({{"name", m.name},
                   {"title", m.title},
                   {"computes", m.computes},
                   {"time", m.time},
                   {"memory", m.memory},
                   {"state", m.state},
                   {"source", m.source},
                   {"mixer", nn::find_family(m.name) != nullptr},
                   {"forward", m.forward},
                   {"train", m.train},
                   {"stream", m.stream},
                   {"causal", m.causal}});
  return all;
}

}  // namespace loglinear::app::compare
