#include "nn/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.hpp"
#include "base/op_timer.hpp"
#include "base/parallel.hpp"
#include "loglinear/cross_entropy.hpp"
#include "loglinear/embedding.hpp"
#include "loglinear/rms_norm.hpp"
#include "loglinear/swiglu.hpp"
#include "nn/decode_state.hpp"
#include "nn/mixer.hpp"
#include "nn/parameters.hpp"
#include "nn/projection.hpp"

namespace loglinear::nn {
namespace {

// Logits are made a few rows at a time: about this many of them.
constexpr std::int64_t kLogits = std::int64_t{1} << 21;
// Tokens that read() takes at a time.
constexpr std::int64_t kReadTokens = 2048;

// The root-mean-square norm of rows of the residual stream.
template <class T>
struct Norm {
  Weight<T> weight;  // (D)
  std::int64_t width = 0;
  double eps = 0;

  void forward(std::int64_t rows, const T* x, T* y, int threads) const {
    rms_norm_forward<T>(NormGate::none, rows, 1, width, x, width, nullptr, 0, weight.value, eps, y, width, threads);
  }
  // dx = dx_beta * dx + the gradient from dy.
  void backward(std::int64_t rows, const T* x, const T* dy, T dx_beta, T* dx, int threads) const {
    rms_norm_backward<T>(NormGate::none, rows, 1, width, x, width, nullptr, 0, weight.value, eps, dy, width, dx_beta,
                         dx, width, nullptr, 0, weight.grad, threads);
  }
};

// h + mixer(norm(h)), then h + mlp(norm(h)): the block that all families share.
template <class T>
class Block {
 public:
  Block(const ModelConfig& c, const ParameterStore<T>& store, std::int64_t layer) : D_(c.hidden_size), M_(c.mlp_width) {
    const std::string prefix = layer_prefix(c, layer), mixer = prefix + mixer_name(c);
    mixer_norm_ = {store.find(mixer + "_norm.weight"), D_, c.norm_eps};
    mlp_norm_ = {store.find(prefix + "mlp_norm.weight"), D_, c.norm_eps};
    gate_up_ = {store.find(prefix + "mlp.gate_proj.weight"), 2 * M_, D_};
    down_ = {store.find(prefix + "mlp.down_proj.weight"), D_, M_};
    const MixerKind kind = mixer_kind(c, layer);
    switch (kind) {
      case MixerKind::mamba2:
        mixer_ = make_mamba2(c, store, mixer + ".");
        break;
      case MixerKind::gated_deltanet:
        mixer_ = make_gated_deltanet(c, store, mixer + ".");
        break;
      case MixerKind::linear:
        mixer_ = make_linear(c, store, mixer + ".");
        break;
      case MixerKind::flash:
      case MixerKind::standard:
      case MixerKind::sliding_window:
      case MixerKind::local_strided:
        mixer_ = make_attention(kind, c, store, mixer + ".");
        break;
      case MixerKind::mosa:
        mixer_ = make_mosa(c, store, mixer + ".");
        break;
    }
  }

  const Mixer<T>& mixer() const { return *mixer_; }

  // From h (N, D), which backward needs as it is, to the next block's, in pass.keep.
  T* forward(const Pass<T>& pass, T* h) {
    const std::int64_t N = pass.tokens;
    input_ = h;
    middle_ = copy(pass, input_);
    {
      const ArenaScope scope(*pass.scratch);
      mixer_->forward(pass, normed(pass, mixer_norm_, input_), middle_);
    }
    T* out = copy(pass, middle_);
    gate_up_out_ = pass.keep->template take<T>(N * 2 * M_);
    const ArenaScope scope(*pass.scratch);
    gate_up_.forward(N, normed(pass, mlp_norm_, middle_), T{0}, gate_up_out_, pass.threads);
    down_.forward(N, activated(pass), T{1}, out, pass.threads);
    return out;
  }

  // dh (N, D): the gradient of the output becomes that of the input.
  void backward(const Pass<T>& pass, T* dh) {
    const std::int64_t N = pass.tokens;
    const ArenaScope scope(*pass.scratch);
    T* dx = pass.scratch->template take<T>(N * D_);
    {
      const ArenaScope mlp_scope(*pass.scratch);
      T* dactivated = pass.scratch->template take<T>(N * M_);
      down_.backward_weight(N, activated(pass), dh, pass.threads);
      down_.backward_input(N, dh, dactivated, pass.threads);
      T* dgate_up = gate_up_out_;  // in place
      swiglu_backward(N, M_, gate_up_out_, 2 * M_, gate_up_out_ + M_, 2 * M_, dactivated, M_, dgate_up, 2 * M_,
                      dgate_up + M_, 2 * M_, pass.threads);
      gate_up_.backward_weight(N, normed(pass, mlp_norm_, middle_), dgate_up, pass.threads);
      gate_up_.backward_input(N, dgate_up, dx, pass.threads);
      mlp_norm_.backward(N, middle_, dx, T{1}, dh, pass.threads);
    }
    mixer_->backward(pass, normed(pass, mixer_norm_, input_), dh, dx);
    mixer_norm_.backward(N, input_, dx, T{1}, dh, pass.threads);
  }

 private:
  // The norms and the gated middle are cheaper to make again in backward than to keep.
  const T* normed(const Pass<T>& pass, const Norm<T>& norm, const T* x) const {
    T* y = pass.scratch->template take<T>(pass.tokens * D_);
    norm.forward(pass.tokens, x, y, pass.threads);
    return y;
  }
  const T* activated(const Pass<T>& pass) const {
    T* y = pass.scratch->template take<T>(pass.tokens * M_);
    swiglu_forward(pass.tokens, M_, gate_up_out_, 2 * M_, gate_up_out_ + M_, 2 * M_, y, M_, pass.threads);
    return y;
  }
  T* copy(const Pass<T>& pass, const T* x) const {
    const TimedOperator timed("copy");
    T* y = pass.keep->template take<T>(pass.tokens * D_);
    constexpr std::int64_t kRows = 256;
    parallel_for((pass.tokens + kRows - 1) / kRows, pass.threads, [&](std::int64_t block) {
      const std::int64_t begin = block * kRows, count = std::min(kRows, pass.tokens - begin);
      std::memcpy(y + begin * D_, x + begin * D_, static_cast<std::size_t>(count * D_) * sizeof(T));
    });
    return y;
  }

  std::int64_t D_, M_;
  Norm<T> mixer_norm_, mlp_norm_;
  std::unique_ptr<Mixer<T>> mixer_;
  Projection<T> gate_up_, down_;

  T* input_ = nullptr;        // (N, D)
  T* middle_ = nullptr;       // (N, D) between mixer and MLP
  T* gate_up_out_ = nullptr;  // (N, 2 M)
};

void check_tokens(const char* where, std::span<const std::int32_t> tokens, std::int64_t vocab, std::int32_t least) {
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < least || tokens[i] >= vocab)
      fail(where, "token {} is {}, need {} to {}", i, tokens[i], least, vocab - 1);
}

void check_sequences(const char* where, std::span<const std::int64_t> cu_seqlens, std::int64_t N) {
  if (cu_seqlens.empty() || cu_seqlens.front() != 0 || cu_seqlens.back() != N ||
      !std::is_sorted(cu_seqlens.begin(), cu_seqlens.end()))
    fail(where, "cu_seqlens: need ascending positions from 0 to {}", N);
}

// Of one row of logits.
template <class T>
std::int32_t most_probable(const T* logits, std::int64_t vocab) {
  std::int64_t best = 0;
  for (std::int64_t i = 0; i < vocab; ++i) {
    if (std::isnan(logits[i])) return -1;
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<std::int32_t>(best);
}

}  // namespace

template <class T>
struct Model<T>::Impl {
  explicit Impl(const ModelConfig& given)
      : config(std::make_shared<const ModelConfig>(resolved(given))),
        store(*config),
        embeddings(store.find(embeddings_name(*config))),
        final_norm{store.find(final_norm_name(*config)), config->hidden_size, config->norm_eps},
        head{store.find("lm_head.weight"), config->vocab_size, config->hidden_size} {
    for (std::int64_t layer = 0; layer < config->num_layers; ++layer) blocks.emplace_back(*config, store, layer);
  }

  std::shared_ptr<const ModelConfig> config;
  ParameterStore<T> store;
  Weight<T> embeddings;  // (vocab, D)
  std::vector<Block<T>> blocks;
  Norm<T> final_norm;
  Projection<T> head;
  Arena keep, scratch;

  Pass<T> pass(std::span<const std::int64_t> cu_seqlens, int threads) {
    Pass<T> pass;
    pass.tokens = cu_seqlens.back();
    pass.cu_seqlens = cu_seqlens;
    pass.keep = &keep;
    pass.scratch = &scratch;
    pass.threads = threads;
    return pass;
  }

  T* embed(const Pass<T>& pass, std::span<const std::int32_t> tokens) {
    T* h = pass.keep->template take<T>(pass.tokens * config->hidden_size);
    embedding_forward(tokens, config->vocab_size, config->hidden_size, embeddings.value, h, pass.threads);
    return h;
  }

  // All blocks without backward: what a block keeps is given back at once, only its output stays.
  T* run(const Pass<T>& pass, T* h) {
    const std::size_t bytes = static_cast<std::size_t>(pass.tokens * config->hidden_size) * sizeof(T);
    for (Block<T>& block : blocks) {
      const ArenaScope scope(*pass.keep);
      std::memcpy(h, block.forward(pass, h), bytes);
    }
    return h;
  }

  std::int64_t logit_rows(std::int64_t N) const {
    return std::min(N, std::max<std::int64_t>(16, kLogits / config->vocab_size));
  }

  // The most probable tokens after the hidden states h, and the loss of the targets when there are any.
  double predict(const Pass<T>& pass, const T* h, std::span<std::int32_t> predicted,
                 std::span<const std::int32_t> targets) {
    const ArenaScope scope(*pass.scratch);
    const std::int64_t N = pass.tokens, D = config->hidden_size, vocab = config->vocab_size, rows = logit_rows(N);
    T* normed = pass.scratch->template take<T>(N * D);
    T* logits = pass.scratch->template take<T>(rows * vocab);
    double* losses = pass.scratch->template take<double>(rows);
    double sum = 0;
    final_norm.forward(N, h, normed, pass.threads);
    for (std::int64_t begin = 0; begin < N; begin += rows) {
      const std::int64_t count = std::min(rows, N - begin);
      head.forward(count, normed + begin * D, T{0}, logits, pass.threads);
      parallel_for(count, pass.threads,
                   [&](std::int64_t i) { predicted[begin + i] = most_probable(logits + i * vocab, vocab); });
      if (targets.empty()) continue;
      cross_entropy<T>(targets.subspan(begin, count), vocab, logits, vocab, T{0}, losses, nullptr, vocab, pass.threads);
      for (std::int64_t i = 0; i < count; ++i) sum += losses[i];
    }
    return sum;
  }

  // The loss of the hidden states h; with dh, its gradient in h too (and in the parameters of norm and head).
  double loss(const Pass<T>& pass, const T* h, std::span<const std::int32_t> targets, T scale, T* dh, double* losses) {
    const ArenaScope scope(*pass.scratch);
    const std::int64_t N = pass.tokens, D = config->hidden_size, vocab = config->vocab_size, rows = logit_rows(N);
    T* normed = pass.scratch->template take<T>(N * D);
    T* logits = pass.scratch->template take<T>(rows * vocab);
    final_norm.forward(N, h, normed, pass.threads);
    for (std::int64_t begin = 0; begin < N; begin += rows) {
      const std::int64_t count = std::min(rows, N - begin);
      T* part = normed + begin * D;
      head.forward(count, part, T{0}, logits, pass.threads);
      cross_entropy<T>(targets.subspan(begin, count), vocab, logits, vocab, scale, losses + begin,
                       dh ? logits : nullptr, vocab, pass.threads);
      if (!dh) continue;
      head.backward_weight(count, part, logits, pass.threads);
      head.backward_input(count, logits, part, pass.threads);  // the norm's output is not needed any more
    }
    if (dh) final_norm.backward(N, h, normed, T{0}, dh, pass.threads);
    double sum = 0;
    for (std::int64_t n = 0; n < N; ++n) sum += losses[n];
    return sum;
  }

  // Takes tokens into the state, a part at a time: each(pass, h, begin) sees the last hidden states h (pass.tokens, D)
  // of the part that begins at tokens[begin].
  template <class Each>
  void advance(const char* where, DecodeState& given, std::span<const std::int32_t> tokens, int threads,
               const Each& each) {
    auto* state = dynamic_cast<DecodeStateOf<T>*>(given.impl.get());
    if (!state || *state->config != *config) fail(where, "the state was made by another model");
    check_tokens(where, tokens, config->vocab_size, 0);
    for (std::size_t begin = 0; begin < tokens.size(); begin += kReadTokens) {
      const ArenaScope keep_scope(keep), scratch_scope(scratch);
      const auto part = tokens.subspan(begin, std::min<std::size_t>(tokens.size() - begin, kReadTokens));
      const std::int64_t N = static_cast<std::int64_t>(part.size()), cu_seqlens[] = {0, N};
      Pass<T> pass = this->pass(cu_seqlens, threads);
      pass.position = state->position;
      T* h = embed(pass, part);
      for (std::size_t i = 0; i < blocks.size(); ++i) {
        const ArenaScope scope(keep);
        pass.state = &state->layers[i];
        const T* out = blocks[i].forward(pass, h);
        std::memcpy(h, out, static_cast<std::size_t>(N * config->hidden_size) * sizeof(T));
      }
      state->position += N;
      each(pass, h, static_cast<std::int64_t>(begin));
    }
  }
};

template <class T>
Model<T>::Model(const ModelConfig& config) : impl_(std::make_unique<Impl>(config)) {}
template <class T>
Model<T>::~Model() = default;

template <class T>
const ModelConfig& Model<T>::config() const {
  return *impl_->config;
}
template <class T>
std::span<Parameter<T>> Model<T>::parameters() {
  return impl_->store.list();
}
template <class T>
std::int64_t Model<T>::parameter_count() const {
  return impl_->store.count();
}
template <class T>
void Model<T>::initialise(std::uint64_t seed) {
  impl_->store.initialise(*impl_->config, seed, threads);
}
template <class T>
void Model<T>::zero_grad() {
  const TimedOperator timed("zero_grad");
  impl_->store.zero_grad();
}

template <class T>
double Model<T>::loss(std::span<const std::int32_t> tokens, std::span<const std::int32_t> targets,
                      std::span<const std::int64_t> cu_seqlens, bool backward, double scale, std::span<float> losses,
                      std::span<const std::int64_t> offsets) {
  const std::int64_t N = static_cast<std::int64_t>(tokens.size());
  if (targets.size() != tokens.size())
    fail("model.loss", "got {} tokens and {} targets", tokens.size(), targets.size());
  if (!losses.empty() && losses.size() != tokens.size())
    fail("model.loss", "losses: got {}, need none or {}", losses.size(), tokens.size());
  check_sequences("model.loss", cu_seqlens, N);
  check_tokens("model.loss", tokens, impl_->config->vocab_size, 0);
  check_tokens("model.loss targets", targets, impl_->config->vocab_size, -1);
  if (!offsets.empty() && offsets.size() + 1 != cu_seqlens.size())
    fail("model.loss", "offsets: got {}, need none or one for each of {} sequences", offsets.size(),
         cu_seqlens.size() - 1);
  for (const std::int64_t offset : offsets)
    if (offset < 0 || offset > std::int64_t{1} << 61) fail("model.loss", "offsets: got {}, need 0 to 2^61", offset);
  if (N == 0) return 0;

  Impl& m = *impl_;
  const ArenaScope keep_scope(m.keep), scratch_scope(m.scratch);
  Pass<T> pass = m.pass(cu_seqlens, threads);
  pass.offsets = offsets;
  double* all_losses = m.keep.template take<double>(N);
  T* h = m.embed(pass, tokens);
  T* dh = nullptr;
  if (backward) {
    for (Block<T>& block : m.blocks) h = block.forward(pass, h);
    dh = m.keep.template take<T>(N * m.config->hidden_size);
  } else {
    m.run(pass, h);
  }
  const double sum = m.loss(pass, h, targets, static_cast<T>(scale), dh, all_losses);
  if (backward) {
    for (auto block = m.blocks.rbegin(); block != m.blocks.rend(); ++block) block->backward(pass, dh);
    embedding_backward(tokens, m.config->vocab_size, m.config->hidden_size, dh, m.embeddings.grad, threads);
  }
  for (std::size_t n = 0; n < losses.size(); ++n) losses[n] = static_cast<float>(all_losses[n]);
  return sum;
}

template <class T>
double Model<T>::predict(std::span<const std::int32_t> tokens, std::span<const std::int64_t> cu_seqlens,
                         std::span<std::int32_t> predicted, std::span<const std::int32_t> targets) {
  const std::int64_t N = static_cast<std::int64_t>(tokens.size());
  if (predicted.size() != tokens.size())
    fail("model.predict", "got {} tokens and room for {}", tokens.size(), predicted.size());
  if (!targets.empty() && targets.size() != tokens.size())
    fail("model.predict", "got {} tokens and {} targets", tokens.size(), targets.size());
  check_sequences("model.predict", cu_seqlens, N);
  check_tokens("model.predict", tokens, impl_->config->vocab_size, 0);
  check_tokens("model.predict targets", targets, impl_->config->vocab_size, -1);
  if (N == 0) return 0;
  Impl& m = *impl_;
  const ArenaScope keep_scope(m.keep), scratch_scope(m.scratch);
  const Pass<T> pass = m.pass(cu_seqlens, threads);
  return m.predict(pass, m.run(pass, m.embed(pass, tokens)), predicted, targets);
}

template <class T>
DecodeState Model<T>::new_state() const {
  auto state = std::make_unique<DecodeStateOf<T>>();
  state->config = impl_->config;
  for (const Block<T>& block : impl_->blocks) state->layers.push_back(block.mixer().new_state());
  DecodeState result;
  result.impl = std::move(state);
  return result;
}

template <class T>
DecodeState Model<T>::load_state(const std::vector<StateTensor>& tensors) const {
  DecodeState result = new_state();
  static_cast<DecodeStateOf<T>&>(*result.impl).load(tensors);
  return result;
}

template <class T>
void Model<T>::read(DecodeState& state, std::span<const std::int32_t> tokens, std::span<T> logits) {
  Impl& m = *impl_;
  if (tokens.empty()) fail("model.read", "got no tokens");
  if (static_cast<std::int64_t>(logits.size()) != m.config->vocab_size)
    fail("model.read", "logits: got {}, need {}", logits.size(), m.config->vocab_size);
  const std::int64_t last = static_cast<std::int64_t>(tokens.size()) - 1, D = m.config->hidden_size;
  m.advance("model.read", state, tokens, threads, [&](const Pass<T>& pass, const T* h, std::int64_t begin) {
    if (begin + pass.tokens <= last) return;
    T* normed = m.scratch.template take<T>(D);
    m.final_norm.forward(1, h + (last - begin) * D, normed, threads);
    m.head.forward(1, normed, T{0}, logits.data(), threads);
  });
}

template <class T>
double Model<T>::score(DecodeState& state, std::span<const std::int32_t> tokens, std::span<const std::int32_t> targets,
                       std::span<float> losses) {
  if (targets.size() != tokens.size())
    fail("model.score", "got {} tokens and {} targets", tokens.size(), targets.size());
  if (!losses.empty() && losses.size() != tokens.size())
    fail("model.score", "losses: got {}, need none or {}", losses.size(), tokens.size());
  check_tokens("model.score targets", targets, impl_->config->vocab_size, -1);
  double sum = 0;
  impl_->advance("model.score", state, tokens, threads, [&](const Pass<T>& pass, const T* h, std::int64_t begin) {
    double* part = pass.keep->template take<double>(pass.tokens);
    sum += impl_->loss(pass, h, targets.subspan(begin, pass.tokens), T{0}, nullptr, part);
    for (std::int64_t n = 0; n < pass.tokens && !losses.empty(); ++n) losses[begin + n] = static_cast<float>(part[n]);
  });
  return sum;
}

template class Model<float>;
template class Model<double>;

}  // namespace loglinear::nn
