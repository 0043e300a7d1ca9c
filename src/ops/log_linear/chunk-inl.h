// The pieces of a sequence that every form in chunks shares, and the forward. Compiled once per instruction set. The
// mathematics and the names are those of docs/algorithm.md, sections 5 and 6.

#if defined(LOGLINEAR_OPS_LOG_LINEAR_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOGLINEAR_OPS_LOG_LINEAR_CHUNK_INL_H_
#undef LOGLINEAR_OPS_LOG_LINEAR_CHUNK_INL_H_
#else
#define LOGLINEAR_OPS_LOG_LINEAR_CHUNK_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/bf16_matrix.hpp"
#include "base/exp-inl.h"
#include "base/matrix-inl.h"
#include "base/padding.hpp"
#include "base/pool.hpp"
#include "base/state_access.hpp"
#include "ops/log_linear/cpu.hpp"
#include "ops/log_linear/element.hpp"
#include "rules/rules.hpp"

HWY_BEFORE_NAMESPACE();
namespace loglinear {
namespace HWY_NAMESPACE {

using log_linear::BackwardArgs;
using log_linear::ForwardArgs;
using log_linear::Plan;
using log_linear::Sequence;
using log_linear::Sizes;
using log_linear::StepArgs;
using log_linear::cpu::BackwardTarget;
using log_linear::cpu::Columns;
using log_linear::cpu::Cut;
using log_linear::cpu::FinalSlot;
using log_linear::cpu::FinalState;
using log_linear::cpu::kCutChunks;

// Levels past this one do not exist: positions have 62 bits.
inline constexpr std::int64_t kMaxLevels = 64;

// y = exp(x), whole vectors.
template <class T>
HWY_INLINE void exp_all(std::int64_t n, const T* x, T* y) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t i = 0; i < n; i += N) {
    hn::StoreU(exp_or_nan(d, hn::LoadU(d, x + i)), d, y + i);
  }
}

// y[i] = exp(sign (from - x[i])) for i < n, and 1 up to the end of a block of kPad. sign: 1 or -1. Differences are
// taken in double.
template <class T>
HWY_INLINE void decays_between(std::int64_t n, double sign, double from, const double* x, T* y) {
  const hn::CappedTag<double, static_cast<std::size_t>(kPad)> d;
  const hn::Rebind<T, decltype(d)> to;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  const auto by = hn::Set(d, sign), begin = hn::Set(d, sign * from);
  for (std::int64_t i = 0; i < padded(n); i += N) {
    const auto there = hn::FirstN(d, static_cast<std::size_t>(std::clamp<std::int64_t>(n - i, 0, N)));
    const auto exponent = hn::IfThenElseZero(there, hn::NegMulAdd(by, hn::LoadU(d, x + i), begin));
    if constexpr (std::is_same_v<T, double>)
      hn::StoreU(exponent, to, y + i);
    else
      hn::StoreU(hn::DemoteTo(to, exponent), to, y + i);
  }
  exp_all(padded(n), y, y);
}

// bit_width(i XOR s) for i and s below kPad: the level through which a token reads another of its block.
template <class Index>
struct BlockLevels {
  alignas(64) Index of[kPad][kPad];
  constexpr BlockLevels() : of{} {
    for (unsigned i = 0; i < kPad; ++i)
      for (unsigned s = 0; s < kPad; ++s) of[i][s] = static_cast<Index>(std::bit_width(i ^ s));
  }
};
template <class Index>
inline constexpr BlockLevels<Index> kBlockLevels;

// Sum of x[i] * y[i].
template <class T>
HWY_INLINE T dot(std::int64_t n, const T* x, const T* y) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + N <= n; i += N) sum = hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, y + i), sum);
  T total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) total += x[i] * y[i];
  return total;
}

template <class T>
HWY_INLINE T sum_of(std::int64_t n, const T* x) {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + N <= n; i += N) sum = hn::Add(hn::LoadU(d, x + i), sum);
  T total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) total += x[i];
  return total;
}

// y = diag(scale) x for (rows, width) matrices.
template <class T>
HWY_INLINE void scale_rows(std::int64_t rows, std::int64_t width, std::int64_t ld, const T* scale, const T* x, T* y) {
  const Lanes<T> d;
  for (std::int64_t i = 0; i < rows; ++i) {
    const auto by = hn::Set(d, scale[i]);
    for (std::int64_t j = 0; j < width; j += static_cast<std::int64_t>(hn::Lanes(d)))
      hn::StoreU(hn::Mul(by, hn::LoadU(d, x + i * ld + j)), d, y + i * ld + j);
  }
}

// y += scale x for (rows, width) matrices.
template <class T>
HWY_INLINE void add_scaled(std::int64_t rows, std::int64_t width, std::int64_t ld, T scale, const T* x, T* y) {
  const Lanes<T> d;
  const auto by = hn::Set(d, scale);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = i * ld; j < i * ld + width; j += static_cast<std::int64_t>(hn::Lanes(d)))
      hn::StoreU(hn::MulAdd(by, hn::LoadU(d, x + j), hn::LoadU(d, y + j)), d, y + j);
}

// A few elements, n not known before: no call, no vector beyond them.
template <class T>
HWY_INLINE void copy_few(std::int64_t n, const T* HWY_RESTRICT from, T* HWY_RESTRICT to) {
  const hn::CappedTag<T, 4> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t i = 0;
  for (; i + N <= n; i += N) hn::StoreU(hn::LoadU(d, from + i), d, to + i);
  for (; i < n; ++i) to[i] = from[i];
}

// Rows t .. t + n of head h of x (B, T, heads, width) into `to` (n, ld); padding up to a whole vector is zero.
template <class T>
void load_rows(const ConstTensor& x, std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t n, std::int64_t width,
               T* to, std::int64_t ld) {
  const auto copy = [&]<class From>(const From* from) HWY_ATTR {
    for (std::int64_t i = 0; i < n; ++i) {
      const From* row = from + log_linear::offset(x, b, t + i, h);
      T* out = to + i * ld;
      for (std::int64_t j = 0; j < width; ++j) out[j] = static_cast<T>(row[j]);
      for (std::int64_t j = width; j < padded(width); ++j) out[j] = T(0);
    }
  };
  if (x.dtype == DType::f32)
    copy(static_cast<const float*>(x.data));
  else if (x.dtype == DType::bf16)
    copy(static_cast<const bfloat16*>(x.data));
  else
    copy(static_cast<const double*>(x.data));
}

template <class T>
void store_rows(const Tensor& x, std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t n, std::int64_t width,
                const T* from, std::int64_t ld) {
  const auto copy = [&]<class To>(To* to) HWY_ATTR {
    for (std::int64_t i = 0; i < n; ++i) {
      To* row = to + log_linear::offset(x, b, t + i, h);
      for (std::int64_t j = 0; j < width; ++j) {
        if constexpr (std::is_same_v<To, bfloat16>)
          row[j] = bfloat16(static_cast<float>(from[i * ld + j]));
        else
          row[j] = static_cast<To>(from[i * ld + j]);
      }
    }
  };
  if (x.dtype == DType::f32)
    copy(static_cast<float*>(x.data));
  else if (x.dtype == DType::bf16)
    copy(static_cast<bfloat16*>(x.data));
  else
    copy(static_cast<double*>(x.data));
}

// A view of some columns of x.
template <class Tensor>
Tensor columns_of(Tensor x, Columns columns) {
  using Byte = std::conditional_t<std::is_same_v<Tensor, ConstTensor>, const std::byte, std::byte>;
  if (x.data) x.data = static_cast<Byte*>(x.data) + columns.first * static_cast<std::int64_t>(size_of(x.dtype));
  return x;
}

// A live state: a block of 2^bit tokens (the oldest: or more), as it was written, and the decay from then to the end of
// the last full chunk.
template <class T>
struct Live {
  int bit = 0;
  double log_decay = 0;
  Matrix<T> matrix;            // (K, Vp)
  Matrix<T> erased = nullptr;  // (C, Vp) W S of the piece after it, where backward() will want it
  bf16::Packed packed = {};    // the matrix, once it was read in bfloat16
};

// Heads [first_head, last_head) of one group of one sequence. They are taken together, so that what depends on q and k
// alone is computed once for all of them.
template <class Rule, class T>
class Heads {
 public:
  // args: of forward or backward.
  // columns: of the values; no other column depends on them.
  template <class Args>
  Heads(const Args& args, const Plan& plan, const Sequence& sequence, std::int64_t first_head, std::int64_t last_head,
        Columns columns)
      : q_in_(args.q),
        k_in_(args.k),
        v_in_(columns_of(args.v, columns)),
        g_in_(args.g),
        beta_in_(args.beta),
        scales_in_(args.level_scales),
        sequence_(sequence),
        first_head_(first_head),
        last_head_(last_head),
        heads_(plan.sizes.H / plan.sizes.G),
        h_(first_head),
        group_(first_head / heads_),
        C_(sequence.chunk),
        K_(plan.sizes.K),
        V_(columns.last - columns.first),
        columns_(columns),
        state_V_(plan.sizes.V),
        L_(plan.sizes.L),
        Ls_(std::min(plan.sizes.L, kMaxLevels)),
        last_bit_(last_bit(sequence.chunk, plan.sizes.L)),
        open_(sequence.open_rows),
        Cp_(panel_stride<T>(sequence.chunk)),
        Kp_(panel_stride<T>(plan.sizes.K)),
        Vp_(panel_stride<T>(columns.last - columns.first)),
        backward_(std::is_same_v<Args, BackwardArgs>),
        bf16_(plan.sizes.dtype == DType::bf16 ? bf16_unit() : Bf16Unit::none),
        flow_pieces_(bf16_ == Bf16Unit::none ? kCutChunks : 1),
        reads_ahead_(log_linear::cpu::reads_ahead(Rule::kErases, plan.sizes.dtype, last_head - first_head)),
        keeps_rests_(bf16_ == Bf16Unit::tiles),
        bf16_scope_(bf16_) {}

  void forward(const Tensor& out, FinalState* final_state) {
    if (sequence_.tokens > 0) take_scratch(false);
    std::vector<std::vector<Live<T>>> lives;
    for (h_ = first_head_; h_ < last_head_; ++h_) lives.push_back(import_state(sequence_.initial));
    for (std::int64_t first = -sequence_.open; first < sequence_.tokens && sequence_.tokens > 0;) {
      // A few pieces at a time: their queries and keys stay in cache while every head goes over them.
      std::size_t count = 0;
      for (; count < pieces_.size() && first < sequence_.tokens; ++count, first += n_) {
        select(count, first);
        load_keys();
        load_queries();
      }
      for (h_ = first_head_; h_ < last_head_; ++h_) {
        std::vector<Live<T>>& live = lives[h_ - first_head_];
        for (std::size_t i = 0; i < count; ++i) {
          select(i, pieces_[i].first);
          load_head();
          load_reads();
          prefetch_next(columns_of(out, columns_), live.size(), i, count);
          multiply(n_, V_, n_, p_, Cp_, 1, v_, Vp_, out_, Vp_, {.part = Part::lower_a});
          for (Live<T>& state : live) {
            read_weights(state);
            read_state(qe_, piece_->qe_packed, state, out_, {.beta = 1, .row_scale = weight_}, bf16::Rest::none);
          }
          store_tokens(columns_of(out, columns_), h_, V_, out_, Vp_);
          if (n_ < C_ || (first_ + n_ == sequence_.tokens && !final_state)) continue;
          if (first_ + n_ + C_ > sequence_.tokens && final_state && !final_state->before.empty())
            export_state(live, final_state->before);
          advance(live);
        }
      }
    }
    for (h_ = first_head_; final_state && h_ < last_head_; ++h_)
      export_state(lives[h_ - first_head_], final_state->slots);
  }

  // Folds the full chunk of open tokens of the initial state, and nothing else.
  void fold(FinalState& final_state) {
    take_scratch(false);
    for (h_ = first_head_; h_ < last_head_; ++h_) {
      // Without erasure the states that do not merge stay as they are.
      std::vector<Live<T>> live = import_state(sequence_.initial, Rule::kErases ? 0 : final_state.slots.size() - 1);
      load(-sequence_.open);
      advance(live);
      export_state(live, final_state.slots);
    }
  }

  // Definitions in backward-inl.h.
  void backward(const BackwardArgs& args, const State* dfinal, const BackwardTarget& target, FinalState* dinitial);
  void states_at(std::vector<Cut>& cuts);
  void dstates_at(const ConstTensor& dout, const State* dfinal, std::vector<Cut>& cuts);

 private:
  using Kernel = MatrixKernel<T>;

  // Operands of a product that others take too: packed once, where products are bfloat16 ones. rests: of both.
  struct Shared {
    bf16::Packed *a = nullptr, *b = nullptr;
    bool rests = false;
  };

  void multiply(std::int64_t M, std::int64_t N, std::int64_t K, const T* a, std::int64_t a_row, std::int64_t a_col,
                const T* b, std::int64_t ldb, T* c, std::int64_t ldc, Epilogue<T> e = {},
                bf16::Rest rest = bf16::Rest::none, Shared shared = {}) {
    e.prefetch = &soon_;
    if constexpr (std::is_same_v<T, float>)
      if (bf16_ != Bf16Unit::none && (rest == bf16::Rest::none || keeps_rests_)) {
        if (!shared.a && !shared.b) return bf16::product(M, N, K, a, a_row, a_col, b, ldb, c, ldc, e, rest);
        bf16::Packed own_a, own_b;
        bf16::Packed &packed_a = shared.a ? *shared.a : own_a, &packed_b = shared.b ? *shared.b : own_b;
        if (!packed_a) packed_a = bf16::pack_a(M, K, a, a_row, a_col, shared.a ? shared.rests : of_a(rest));
        if (!packed_b) packed_b = bf16::pack_b(K, N, b, ldb, shared.b ? shared.rests : of_b(rest));
        return bf16::product(M, N, K, packed_a, packed_b, c, ldc, e, rest);
      }
    product<T>(M, N, K, a, a_row, a_col, b, ldb, c, ldc, e);
  }

  // c (n, V) = A S for A (n, K) that is used for several states, as the state is for several A.
  void read_state(const T* a, bf16::Packed& packed, Live<T>& state, T* c, const Epilogue<T>& e, bf16::Rest rest) {
    multiply(n_, V_, K_, a, Kp_, 1, state.matrix.get(), Vp_, c, Vp_, e, rest,
             {&packed, &state.packed, Rule::kErases && keeps_rests_});
  }

  // c (K, V) = K^T b for b (n, V): what goes into a state, with what rounding would take away.
  void write_state(const T* b, T* c, const Epilogue<T>& e = {}) {
    multiply(K_, V_, n_, kt_, Cp_, 1, b, Vp_, c, Vp_, e, bf16::Rest::b, {.a = &piece_->kt_packed});
  }

  // One allocation, cut up. Matrices are (rows, padded columns).
  void take_scratch(bool backward) {
    const std::int64_t CC = C_ * Cp_, CK = C_ * Kp_, CV = C_ * Vp_, KC = K_ * Cp_, VC = V_ * Cp_;
    struct Share {
      T** to;
      std::int64_t size;
    };
    std::vector<Share> parts = {{&v_, CV},
                                {&ue_, CV},
                                {&beta_, Cp_},
                                {&gamma_, Cp_},
                                {&to_end_, Cp_},
                                {&token_decay_, Cp_},
                                {&weight_, Cp_},
                                {&p_, CC},
                                {&decay_, CC},
                                {&out_, CV},
                                {&from_block_, Cp_},
                                {&to_block_end_, kPad},
                                {&scales_, padded(C_ * Ls_)}};
    pieces_.resize(last_head_ - first_head_ > 1 && !backward ? kPiecesTogether : 1);
    for (Piece& piece : pieces_) {
      const std::vector<Share> more = {
          {&piece.q, CK}, {&piece.k, CK}, {&piece.kt, KC}, {&piece.qk, CC}, {&piece.kk, Rule::kErases ? CC : 0}};
      parts.insert(parts.end(), more.begin(), more.end());
    }
    if (Rule::kErases) {
      const std::vector<Share> more = {
          {&mix_, CC}, {&inverse_, CC}, {&w_, CK},      {&tg_, CC},
          {&p0_, CC},  {&qe_, CK},      {&erased_, CV}, {&transition_, !backward_ && K_ <= C_ ? K_ * Kp_ : 0}};
      parts.insert(parts.end(), more.begin(), more.end());
    }
    if (backward) {
      const std::vector<Share> more = {{&dout_, CV},   {&doutt_, VC},  {&vt_, VC},      {&uet_, VC},
                                       {&dqet_, KC},   {&dkt_, KC},    {&qet_, KC},     {&dv_, CV},
                                       {&scaled_, CV}, {&due_, CV},    {&dp_, CC},      {&dqk_, CC},
                                       {&read_, Cp_},  {&dq_, CK},     {&dk_, CK},      {&rows_, CK},
                                       {&dots_, Cp_},  {&found_, Cp_}, {&column_, Cp_}, {&dscales_, padded(C_ * Ls_)}};
      parts.insert(parts.end(), more.begin(), more.end());
      if (Rule::kErases) {
        const std::vector<Share> erase = {{&dwt_, KC},  {&wt_, KC},  {&dw_, CK},       {&dtg_, CC},
                                          {&dmix_, CC}, {&dkk_, CC}, {&work_, 2 * CC}, {&cc_, CC},
                                          {&yt_, VC},   {&y_, CV},   {&zt_, VC},       {&dbeta_, Cp_}};
        parts.insert(parts.end(), erase.begin(), erase.end());
      }
    }
    std::int64_t total = 0;
    for (const Share& part : parts) total += padded(part.size);
    scratch_ = Pool<T>::take(static_cast<std::size_t>(total));
    T* at = scratch_.get();
    for (const Share& part : parts) {
      *part.to = at;
      at += padded(part.size);
    }
    sums_.resize(padded(C_));
    dsums_.resize(C_);
  }

  // Pieces are chunks: the first one begins with the open tokens of the initial state (first < 0), the last one may not
  // be full.
  std::int64_t piece_length(std::int64_t first) const { return std::min(C_, sequence_.tokens - first); }

  // Makes the piece at token `first` the current one, its queries and keys in pieces_[i].
  void select(std::size_t i, std::int64_t first) {
    Piece& piece = pieces_[i];
    piece_ = &piece;
    piece.first = first_ = first;
    n_ = piece_length(first);
    skip_ = std::max<std::int64_t>(0, -first);
    q_ = piece.q, k_ = piece.k, kt_ = piece.kt, qk_ = piece.qk, kk_ = piece.kk;
    if constexpr (!Rule::kErases) qe_ = q_, p0_ = qk_;
  }

  // Everything of the piece at token `first` that does not depend on q: what advance() needs.
  void load(std::int64_t first) {
    select(0, first);
    load_keys();
    load_head();
  }

  void load_keys() {
    piece_->kt_packed = {};
    load_tokens(k_in_, group_, K_, open_ ? open_row(open_->k, group_, K_) : nullptr, K_, k_, Kp_);
    transpose<T>(n_, K_, k_, Kp_, kt_, Cp_);
    if constexpr (Rule::kErases) multiply(n_, n_, K_, k_, Kp_, 1, kt_, Cp_, kk_, Cp_, {.part = Part::lower_c});
  }

  void load_queries() {
    piece_->qe_packed = piece_->qet_packed = {};
    load_tokens(q_in_, group_, K_, nullptr, 0, q_, Kp_);
    multiply(n_, n_, K_, q_, Kp_, 1, kt_, Cp_, qk_, Cp_, {.part = Part::lower_c});
  }

  // Values and gates of the current head.
  void load_head() {
    load_tokens(v_in_, h_, V_, open_ ? open_row(open_->v, h_, state_V_) + columns_.first : nullptr, state_V_, v_, Vp_);
    // Decays are sums inside the piece, in double: differences of them lose nothing.
    double sum = 0;
    for (std::int64_t i = 0; i < n_; ++i) {
      const double g = log_linear::bounded_decay(gate(g_in_, open_ ? &open_->g : nullptr, i));
      sums_[i] = sum += g;
      token_decay_[i] = static_cast<T>(g);
    }
    clear_padding(token_decay_);
    exp_all(n_, token_decay_, token_decay_);
    decays_between(n_, -1, 0, sums_.data(), gamma_);
    decays_between(n_, 1, sum, sums_.data(), to_end_);

    if constexpr (Rule::kErases) {
      for (std::int64_t i = 0; i < n_; ++i) beta_[i] = gate(beta_in_, open_ ? &open_->beta : nullptr, i);
      Rule::mix(Kernel(), n_, Cp_, kk_, beta_, inverse_, mix_);
      multiply(n_, K_, n_, mix_, Cp_, 1, k_, Kp_, w_, Kp_, {.part = Part::lower_a}, bf16::Rest::a);
      w_packed_ = {};
      fill_decay();
      for (std::int64_t i = 0; i < n_; ++i) {
        const T *decay = decay_ + i * Cp_, *mix = mix_ + i * Cp_;
        T* tg = tg_ + i * Cp_;
        for (std::int64_t s = 0; s <= i; ++s) tg[s] = decay[s] * mix[s];
        for (std::int64_t s = i + 1; s < padded(n_); ++s) tg[s] = T(0);
      }
    }
  }

  void load_scales() {
    std::fill(scales_, scales_ + skip_ * Ls_, T(0));
    for (std::int64_t i = skip_; i < n_; ++i) {
      const T* scales = static_cast<const T*>(scales_in_.data) + gate_offset(scales_in_, sequence_.first + first_ + i);
      copy_few(Ls_, scales, scales_ + i * Ls_);
    }
  }

  // Qe = Q - QK W
  void load_effective_queries() {
    if constexpr (Rule::kErases) {
      std::copy(q_, q_ + n_ * Kp_, qe_);
      multiply(n_, K_, n_, qk_, Cp_, 1, w_, Kp_, qe_, Kp_, {.alpha = -1, .beta = 1, .part = Part::lower_a},
               bf16::Rest::both);
      piece_->qe_packed = piece_->qet_packed = {};
    }
  }

  // What reading needs in addition: P, the effective queries, the level scales.
  void load_reads() {
    const Lanes<T> d;
    const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
    load_scales();
    load_effective_queries();
    if constexpr (Rule::kErases)
      multiply(n_, n_, n_, qk_, Cp_, 1, mix_, Cp_, p0_, Cp_, {.part = Part::lower_a}, bf16::Rest::both);
    else
      fill_decay();
    for (std::int64_t i = 0; i < n_; ++i) {
      const T *p0 = p0_ + i * Cp_, *decay = decay_ + i * Cp_;
      T* p = p_ + i * Cp_;
      for (std::int64_t s = 0; s <= i; s += N)  // entries above the diagonal mean nothing
        hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, p0 + s), hn::LoadU(d, decay + s)), scales_from(i, s)), d, p + s);
    }
  }

  // decay[i, s] = exp(sum of g over s < . <= i) for s <= i. Blocks of kPad columns: where row and column share a block,
  // the row before times the token's own decay; elsewhere the product of two decays, to the end of the column's block
  // and on from there. Few factors, so that their rounding does not add up.
  void fill_decay() {
    const Lanes<T> d;
    const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
    for (std::int64_t first = 0; first < n_; first += kPad) {
      const std::int64_t end = std::min(first + kPad, n_);
      for (std::int64_t s = 0; s < kPad; s += N) {
        auto row = hn::Set(d, T(1));
        for (std::int64_t i = first; i < end; ++i) {
          const auto older = hn::FirstN(d, static_cast<std::size_t>(std::clamp<std::int64_t>(i - first - s, 0, N)));
          row = hn::IfThenElse(older, hn::Mul(hn::Set(d, token_decay_[i]), row), hn::Set(d, T(1)));
          hn::StoreU(row, d, decay_ + i * Cp_ + first + s);
        }
      }
      // The rows below: from the row back to the end of the block, and from there to the column.
      if (end == n_) break;
      decays_between(kPad, 1, sums_[end - 1], sums_.data() + first, to_block_end_);
      decays_between(n_ - end, -1, sums_[end - 1], sums_.data() + end, from_block_ + end);
      for (std::int64_t i = end; i < n_; ++i) {
        const auto from = hn::Set(d, from_block_[i]);
        for (std::int64_t s = 0; s < kPad; s += N)
          hn::StoreU(hn::Mul(from, hn::Load(d, to_block_end_ + s)), d, decay_ + i * Cp_ + first + s);
      }
    }
  }

  // Calls body(level, s0, s1) for the runs of tokens [s0, s1) of the piece that token i reads through one level, itself
  // included.
  template <class Body>
  HWY_INLINE void for_runs(std::int64_t i, const Body& body) const {
    body(0, i, i + 1);
    for (std::int64_t bits = i; bits != 0; bits &= bits - 1) {
      const int bit = std::countr_zero(static_cast<std::uint64_t>(bits));
      const std::int64_t begin = ((i >> bit) - 1) << bit;
      body(level(bit + 1), begin, begin + (std::int64_t{1} << bit));
    }
  }

  std::int64_t level(std::int64_t l) const { return std::min(l, Ls_ - 1); }

  // level_scales[i, level(i, s)] for a vector of tokens from s on, up to the end of the block of i. Tokens of another
  // block of kPad are read through one level.
  HWY_INLINE hn::Vec<Lanes<T>> scales_from(std::int64_t i, std::int64_t s) const {
    const Lanes<T> d;
    const hn::RebindToSigned<Lanes<T>> index;
    using Index = hn::TFromD<decltype(index)>;
    constexpr int kInside = std::countr_zero(static_cast<std::uint64_t>(kPad));  // the last level inside a block
    const T* scales = scales_ + i * Ls_;
    const std::int64_t own = i / kPad, block = s / kPad;
    if (own != block)
      return hn::Set(d, scales[level(std::bit_width(static_cast<std::uint64_t>(block ^ own)) + kInside)]);
    const auto levels = hn::Load(index, kBlockLevels<Index>.of[i % kPad] + s % kPad);
    auto row = hn::Set(d, scales[0]);
    for (int l = 1; l <= kInside; ++l)
      row = hn::IfThenElse(hn::RebindMask(d, hn::Eq(levels, hn::Set(index, static_cast<Index>(l)))),
                           hn::Set(d, scales[level(l)]), row);
    return row;
  }

  // found[i] = the decay between a live state and token i; weight[i] = that times the level scale.
  void read_weights(const Live<T>& state, T* found = nullptr) {
    const T decay = static_cast<T>(std::exp(state.log_decay));
    const std::int64_t l = level(state.bit + 1);
    for (std::int64_t i = 0; i < n_; ++i) {
      const T to_token = decay * gamma_[i];
      if (found) found[i] = to_token;
      weight_[i] = to_token * scales_[i * Ls_ + l];
    }
  }

  // Rows of head h for the tokens of the piece that begins at token `first`: share `part` of `parts`.
  template <class Tensor>
  void prefetch_rows(const Tensor& x, std::int64_t h, std::int64_t first, std::int64_t width, std::int64_t part = 0,
                     std::int64_t parts = 1) {
    const std::int64_t begin = std::max<std::int64_t>(first, 0);
    if (begin >= sequence_.tokens) return;  // (an empty sequence may have no data)
    const std::int64_t element = static_cast<std::int64_t>(size_of(x.dtype)),
                       rows = first + piece_length(first) - begin, from = rows * part / parts;
    soon_.add(static_cast<const char*>(x.data) +
                  log_linear::offset(x, sequence_.batch, sequence_.first + begin + from, h) * element,
              rows * (part + 1) / parts - from, x.stride[1] * element, width * element);
  }

  // What piece i of `count` of the current head writes at last, and what the one after it in forward() reads.
  void prefetch_next(const Tensor& out, std::size_t live, std::size_t i, std::size_t count) {
    soon_.begin(n_ * n_ * V_ / 2 + static_cast<std::int64_t>(live + 1) * n_ * K_ * V_);
    prefetch_rows(out, h_, first_, V_);
    const bool last_head = h_ + 1 == last_head_;
    std::int64_t h = h_, first = first_ + n_;
    if (i + 1 == count) h = last_head ? first_head_ : h_ + 1, first = last_head ? first : pieces_[0].first;
    prefetch_rows(v_in_, h, first, V_);
    prefetch_rows(scales_in_, h, first, Ls_);
    // Every head its share of the keys and queries of the next round.
    const std::int64_t next = first_ + static_cast<std::int64_t>(count) * C_;
    for (const ConstTensor* x : {&k_in_, &q_in_})
      prefetch_rows(*x, group_, next, K_, h_ - first_head_, last_head_ - first_head_);
  }

  void clear_padding(T* x) const {
    for (std::int64_t i = n_; i < padded(n_); ++i) x[i] = T(0);
  }

  std::int64_t gate_offset(const ConstTensor& x, std::int64_t t) const {
    return log_linear::offset(x, sequence_.batch, t, h_);
  }
  // g or beta of token i of the piece: they have the type of the states.
  T gate(const ConstTensor& x, const Buffer* open, std::int64_t i) const {
    if (i < skip_) return reinterpret_cast<const T*>(open->data())[h_ * C_ + i];
    return static_cast<const T*>(x.data)[gate_offset(x, sequence_.first + first_ + i)];
  }

  // First row of head h in open tokens (heads, C, width).
  const T* open_row(const Buffer& x, std::int64_t h, std::int64_t width) const {
    return reinterpret_cast<const T*>(x.data()) + h * C_ * width;
  }

  // Rows of head h of the piece: those of tokens that are open in the initial state from `open`, or zero without it,
  // the others from x.
  void load_tokens(const ConstTensor& x, std::int64_t h, std::int64_t width, const T* open, std::int64_t ld_open, T* to,
                   std::int64_t ld) {
    for (std::int64_t i = 0; i < skip_; ++i) {
      T* out = to + i * ld;
      for (std::int64_t j = 0; j < width; ++j) out[j] = open ? open[i * ld_open + j] : T(0);
      for (std::int64_t j = width; j < padded(width); ++j) out[j] = T(0);
    }
    if (skip_ < n_)
      load_rows<T>(x, sequence_.batch, sequence_.first + first_ + skip_, h, n_ - skip_, width, to + skip_ * ld, ld);
  }

  // Rows of the piece that belong to tokens of the call.
  void store_tokens(const Tensor& x, std::int64_t h, std::int64_t width, const T* from, std::int64_t ld) const {
    if (skip_ < n_)
      store_rows<T>(x, sequence_.batch, sequence_.first + first_ + skip_, h, n_ - skip_, width, from + skip_ * ld, ld);
  }

  Matrix<T> take_matrix() const { return Pool<T>::take(static_cast<std::size_t>(K_ * Vp_)); }

  // The counter takes in the loaded piece, a full chunk: live states are erased and decay, the new one is built and
  // merges. before: null, or the states before the piece, which keep what is erased from each.
  void advance(std::vector<Live<T>>& live, std::vector<Live<T>>* before = nullptr) {
    const bool combined = combines(live.size());
    if (combined) {  // I - K^T W: the decay beside it is noted, as where W S is made
      multiply(K_, K_, n_, kt_, Cp_, 1, w_, Kp_, transition_, Kp_, {.alpha = -1}, bf16::Rest::both);
      for (std::int64_t a = 0; a < K_; ++a) transition_[a * Kp_ + a] += T(1);
    }
    for (std::size_t i = 0; i < live.size(); ++i) {
      Live<T>& state = live[i];
      if (combined) {
        Matrix<T> next = take_matrix();
        multiply(K_, V_, K_, transition_, Kp_, 1, state.matrix.get(), Vp_, next.get(), Vp_, {}, bf16::Rest::both);
        state.matrix = std::move(next);
        state.packed = {};
      } else if constexpr (Rule::kErases) {
        T* erased = erased_;
        if (before) {
          (*before)[i].erased = Pool<T>::take(static_cast<std::size_t>(C_ * Vp_));
          erased = (*before)[i].erased.get();
        }
        read_state(w_, w_packed_, state, erased, {}, bf16::Rest::both);
        if (state.matrix.use_count() > 1) {  // kept for the backward sweep: change a copy
          Matrix<T> copy = take_matrix();
          std::copy(state.matrix.get(), state.matrix.get() + K_ * Vp_, copy.get());
          state.matrix = std::move(copy);
        }
        write_state(erased, state.matrix.get(), {.alpha = -1, .beta = 1});
        state.packed = {};
      }
      state.log_decay += sums_[n_ - 1];
    }
    Carry carry =
        carry_of(live.size(), chunk_bit(sequence_.chunk), last_bit_, [&](std::size_t i) { return live[i].bit; });
    Live<T> fresh{carry.bit, 0, take_matrix()};
    effective_values(ue_);
    write_state(ue_, fresh.matrix.get());
    for (; carry.merged > 0; --carry.merged, live.pop_back()) {
      const T decay = static_cast<T>(std::exp(live.back().log_decay));
      add_scaled(K_, padded(V_), Vp_, decay, live.back().matrix.get(), fresh.matrix.get());
    }
    live.push_back(std::move(fresh));
  }

  // Whether a chunk takes `live` states through the K x K transition in place of W S: where that is less work. Backward
  // wants W S, and its states to be the same bits with and without cuts.
  bool combines(std::size_t live) const {
    const std::int64_t V = static_cast<std::int64_t>(live) * state_V_;  // of all, whatever columns are taken here
    return Rule::kErases && !backward_ && !keeps_rests_ && K_ <= C_ && K_ * V + C_ * K_ < 2 * C_ * V;
  }

  // ue = diag(to_end) U, where U is what the tokens of the piece write.
  void effective_values(T* ue) {
    if constexpr (Rule::kErases) {
      multiply(n_, V_, n_, tg_, Cp_, 1, v_, Vp_, ue, Vp_, {.row_scale = to_end_, .part = Part::lower_a}, bf16::Rest::a);
    } else {
      scale_rows(n_, padded(V_), Vp_, to_end_, v_, ue);
    }
  }

  // One head of a backward. Definitions in backward-inl.h.
  struct Sweep {
    std::vector<Live<T>> live;                 // of the sweep forward
    std::vector<std::vector<Live<T>>> kept;    // of the sweep forward, for the sweep back
    std::vector<std::vector<Live<T>>> before;  // each piece of the current segment, without reads_ahead_
    std::vector<Matrix<T>> adjoints;           // of the sweep back: gradients of live states, null for zero
    double flow = 0;                           // <state, adjoint>, of all live states: docs/algorithm.md, section 6.2
  };
  std::int64_t segment_length(std::int64_t pieces) const;
  std::vector<std::uint64_t> masks_of(std::vector<int> bits, std::int64_t pieces) const;
  void begin_reads();
  void backward_reads(const BackwardArgs& args, const std::vector<Live<T>>& live);
  void finish_reads(const BackwardArgs& args, const BackwardTarget& target);
  void begin_keys(const BackwardArgs& args, const BackwardTarget& target);
  void finish_keys(const BackwardArgs& args, const BackwardTarget& target, const State* dfinal, FinalState* dinitial);
  void store_keys(const Tensor& to, const T* rows, T* target, Buffer* open);
  void load_keys_of(const Tensor& from, const T* target, T* rows);
  void store_open(Buffer& open, std::int64_t h, std::int64_t width, const T* rows, std::int64_t ld) const;
  void add_rows(const T* rows, std::int64_t width, T* to, std::int64_t ld) const;
  void prefetch_next_of(const ConstTensor& dout, std::int64_t direction);
  void prefetch_piece(const BackwardArgs& args, const Sweep& sweep, int live);
  void backward_piece(const BackwardArgs& args, std::uint64_t live, Sweep& sweep, const State* dfinal,
                      FinalState* dinitial);
  void backward_inside();
  double backward_build(const T* adjoint);
  std::vector<Matrix<T>> receive(const std::vector<Matrix<T>>& after, std::size_t live) const;
  double backward_read(const Live<T>& state);
  void backward_erase(const Live<T>& state, const Matrix<T>& adjoint);
  void read_adjoint(const Matrix<T>& adjoint);
  void advance_adjoint(int bit, Matrix<T>& adjoint);
  void measure_flow(const std::vector<Live<T>>& live, Sweep& sweep) const;
  void take_queries();
  void backward_rule();
  void store_gates(const BackwardArgs& args, State::Open* open) const;
  void begin_gates();
  double load_gates(const BackwardArgs& args);
  double inner(const T* x, const T* y) const;
  std::vector<Matrix<T>> import_adjoints(const State* state);
  void export_adjoints(const std::vector<Matrix<T>>& adjoints, std::vector<FinalSlot>& to) const;

  // The live states of `state`; the matrices of the first ones are left out.
  std::vector<Live<T>> import_state(const State* state, std::size_t left_out = 0) {
    std::vector<Live<T>> live;
    if (!state) return live;
    for (const State::Slot& slot : state->slots()) {
      live.push_back({slot.bit, slot.log_decay[h_], nullptr});
      if (live.size() <= left_out) continue;
      live.back().matrix = take_matrix();
      import_matrix(slot, T(1), live.back().matrix.get());
    }
    return live;
  }

  void import_matrix(const State::Slot& slot, T decay, T* to) const {
    const T* from = reinterpret_cast<const T*>(slot.matrix->data()) + h_ * K_ * state_V_ + columns_.first;
    for (std::int64_t a = 0; a < K_; ++a) {
      for (std::int64_t j = 0; j < V_; ++j) to[a * Vp_ + j] = decay * from[a * state_V_ + j];
      for (std::int64_t j = V_; j < Vp_; ++j) to[a * Vp_ + j] = T(0);
    }
  }

  void export_matrix(const T* from, State::Slot& slot) const {
    T* to = reinterpret_cast<T*>(slot.matrix->data()) + h_ * K_ * state_V_ + columns_.first;
    for (std::int64_t a = 0; a < K_; ++a)
      for (std::int64_t j = 0; j < V_; ++j) to[a * state_V_ + j] = from ? from[a * Vp_ + j] : T(0);
  }

  void export_state(const std::vector<Live<T>>& live, std::vector<FinalSlot>& to) const {
    for (std::size_t i = 0; i < live.size(); ++i) {
      if (columns_.first == 0) to[i].slot.log_decay[h_] = live[i].log_decay;  // once for all columns
      if (!to[i].shared) export_matrix(live[i].matrix.get(), to[i].slot);
    }
  }

  const ConstTensor q_in_, k_in_, v_in_, g_in_, beta_in_, scales_in_;
  const Sequence& sequence_;
  const std::int64_t first_head_, last_head_, heads_;  // heads: of a group
  std::int64_t h_;                                     // the current head
  const std::int64_t group_;
  const std::int64_t C_, K_, V_;
  const Columns columns_;
  const std::int64_t state_V_, L_;
  const std::int64_t Ls_;            // level scales that can be read: min(L, kMaxLevels)
  const int last_bit_;               // states of this bit are read through the last level, with all older ones
  const State::Open* open_;          // the open tokens of the initial state
  const std::int64_t Cp_, Kp_, Vp_;  // from row to row of a matrix that is so wide
  const bool backward_;              // made for one, which keeps what is erased
  const Bf16Unit bf16_;              // what multiplies: bfloat16 inputs need no better
  // Pieces after which backward() measures the flow again: between them it is a difference, which rounding to bfloat16
  // would spoil.
  const std::int64_t flow_pieces_;
  const bool reads_ahead_;  // backward() reads states while it makes them: see begin_reads()
  const bool
      keeps_rests_;  // rests are multiplied in bfloat16: with dot products, twice as fast as float32, they gain nothing
  const bf16::Scope bf16_scope_;

  // What a piece of the sequence has in common for all heads of the group.
  struct Piece {
    std::int64_t first = 0;                         // token
    T *q, *k;                                       // (n, K)
    T* kt;                                          // (K, n)
    T *qk, *kk;                                     // (n, n) lower triangles of Q K^T and K K^T
    bf16::Packed kt_packed, qe_packed, qet_packed;  // (qe of the current head, where it is not q)
  };
  static constexpr std::size_t kPiecesTogether = 4;
  // Of states that backward() recomputes together, a thread. Erasing is dear to repeat: there it pays to keep more.
  static constexpr std::int64_t kSegmentBytes = std::int64_t{Rule::kErases ? 128 : 32} << 20;
  std::vector<Piece> pieces_;

  // The current piece.
  Piece* piece_ = nullptr;
  std::int64_t first_ = 0, n_ = 0;  // tokens [first, first + n) of the sequence, open ones before 0
  std::int64_t skip_ = 0;           // the first rows: those of open tokens
  std::vector<double> sums_;        // (n) sum of g up to and including each token
  std::vector<double> dsums_;       // (n) gradient in sums
  Prefetch soon_;                   // rows that will be read or written after it

  Matrix<T> scratch_;
  T *q_, *k_, *kt_, *qk_, *kk_;  // of pieces_
  T* v_;                         // (n, V)
  T *beta_, *gamma_, *to_end_;   // (n) beta, exp(sums), exp(sum of g after each token)
  T *mix_, *inverse_, *tg_;      // (n, n) lower triangles; tg = decay * mix
  T *p0_, *p_, *decay_;          // (n, n) P without and with decay and scales
  T *w_, *qe_;                   // (n, K) erase vectors and effective queries
  T* transition_;                // (K, K)
  bf16::Packed w_packed_;
  T *ue_, *erased_, *out_;             // (n, V)
  T* scales_;                          // (n, Ls)
  T *token_decay_, *weight_, *found_;  // (n)
  T *from_block_, *to_block_end_;      // (n)
  T *dout_, *doutt_, *vt_, *uet_;      // (n, V) (V, n) (V, n) (V, n)
  bf16::Packed doutt_packed_;
  T *dq_, *dk_, *rows_, *dw_;                 // (n, K)
  T *dqet_, *dkt_, *dwt_, *qet_, *wt_;        // (K, n)
  T *dv_, *due_, *y_, *scaled_;               // (n, V)
  T *yt_, *zt_;                               // (V, n)
  T *dp_, *dqk_, *dtg_, *dmix_, *dkk_, *cc_;  // (n, n)
  T *work_, *dots_, *column_, *read_, *dscales_, *dbeta_;
};

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#endif
