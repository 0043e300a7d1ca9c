// The backward of a range of heads of one sequence in chunks: docs/algorithm.md, section 6. Compiled once per
// instruction set.

#if defined(LOGLINEAR_OPS_LOG_LINEAR_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOGLINEAR_OPS_LOG_LINEAR_BACKWARD_INL_H_
#undef LOGLINEAR_OPS_LOG_LINEAR_BACKWARD_INL_H_
#else
#define LOGLINEAR_OPS_LOG_LINEAR_BACKWARD_INL_H_
#endif

#include "ops/log_linear/chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace loglinear {
namespace HWY_NAMESPACE {

// y += x, whole vectors.
template <class T>
HWY_INLINE void add_to(std::int64_t n, const T* x, T* y) {
  const Lanes<T> d;
  for (std::int64_t j = 0; j < n; j += static_cast<std::int64_t>(hn::Lanes(d)))
    hn::StoreU(hn::Add(hn::LoadU(d, x + j), hn::LoadU(d, y + j)), d, y + j);
}

// y = x diag(scale) for (rows, width) matrices.
template <class T>
HWY_INLINE void scale_columns(std::int64_t rows, std::int64_t width, std::int64_t ld, const T* scale, const T* x,
                              T* y) {
  const Lanes<T> d;
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < width; j += static_cast<std::int64_t>(hn::Lanes(d)))
      hn::StoreU(hn::Mul(hn::LoadU(d, scale + j), hn::LoadU(d, x + i * ld + j)), d, y + i * ld + j);
}

template <class Rule, class T>
void Heads<Rule, T>::backward(const BackwardArgs& args, const State* dfinal, const BackwardTarget& target,
                              FinalState* dinitial) {
  std::vector<std::int64_t> firsts;  // of the pieces
  for (std::int64_t first = -sequence_.open; first < sequence_.tokens; first += piece_length(first))
    firsts.push_back(first);
  const std::int64_t pieces = static_cast<std::int64_t>(firsts.size());
  if (pieces > 0) take_scratch(true);
  std::vector<Sweep> sweeps(last_head_ - first_head_);
  const auto for_heads = [&](const auto& body) {
    for (h_ = first_head_; h_ < last_head_; ++h_) body(sweeps[h_ - first_head_]);
  };
  for_heads([&](Sweep& sweep) {
    sweep.live = import_state(sequence_.initial);
    sweep.adjoints = import_adjoints(dfinal);
  });

  std::vector<int> bits;
  for (const Live<T>& state : sweeps.front().live) bits.push_back(state.bit);
  const std::vector<std::uint64_t> live = masks_of(std::move(bits), pieces);

  // What is kept of the sweep forward: the states where the flow is measured if nothing else asks for states later, or
  // those at the beginning of every segment of pieces, from which the others are made again.
  const std::int64_t segment = reads_ahead_ ? std::max<std::int64_t>(pieces, 1) : segment_length(pieces),
                     last_segment = (pieces - 1) / segment * segment;
  for (std::int64_t z = 0; z < pieces; ++z) {
    if (z % (reads_ahead_ ? flow_pieces_ : segment) == 0)
      for_heads([&](Sweep& sweep) { sweep.kept.push_back(sweep.live); });
    if (!reads_ahead_ && z == last_segment) break;  // computed below
    select(0, firsts[z]);
    load_keys();
    if (reads_ahead_) begin_reads();
    for_heads([&](Sweep& sweep) {
      load_head();
      if (reads_ahead_) backward_reads(args, sweep.live);
      if (n_ == C_ && (z + 1 < pieces || dfinal)) advance(sweep.live);
    });
    if (reads_ahead_) finish_reads(args, target);
  }

  // The states before each piece of a segment, from those that were kept.
  const auto make_states = [&](std::int64_t first, std::int64_t last) {
    for_heads([&](Sweep& sweep) {
      sweep.live = std::move(sweep.kept.back());
      sweep.kept.pop_back();
    });
    for (std::int64_t z = first; z < last; ++z) {
      select(0, firsts[z]);
      load_keys();
      for_heads([&](Sweep& sweep) {
        sweep.before.push_back(sweep.live);
        // What comes after the last piece only a rule that erases asks for, and the gradient of the final state; a
        // piece that is no full chunk changes nothing.
        if (n_ < C_ || (z + 1 == last && !Rule::kErases && !(last == pieces && dfinal))) return;
        load_head();
        advance(sweep.live, &sweep.before.back());
      });
    }
  };

  for (std::int64_t last = pieces; last > 0;) {
    const std::int64_t first = (last - 1) / segment * segment;
    if (!reads_ahead_) make_states(first, last);
    if (last == pieces && dfinal) for_heads([&](Sweep& sweep) { measure_flow(sweep.live, sweep); });
    for_heads([&](Sweep& sweep) { sweep.live.clear(); });
    for (std::int64_t z = last - 1; z >= first; --z) {
      select(0, firsts[z]);
      load_keys();
      load_queries();
      begin_keys(args, target);
      for_heads([&](Sweep& sweep) {
        prefetch_piece(args, sweep, std::popcount(live[z]));
        load_head();
        load_reads();
        backward_piece(args, live[z], sweep, dfinal, dinitial);
        std::vector<std::vector<Live<T>>>& states = reads_ahead_ ? sweep.kept : sweep.before;
        if (z > 0 && z % flow_pieces_ == 0) measure_flow(states.back(), sweep);
        if (!reads_ahead_ || z % flow_pieces_ == 0) states.pop_back();
      });
      finish_keys(args, target, dfinal, dinitial);
    }
    last = first;
  }
  if (dinitial) for_heads([&](Sweep& sweep) { export_adjoints(sweep.adjoints, dinitial->slots); });
}

// The bits of the states before each of `pieces` pieces as a mask, since no two states have one bit; of those before
// the first piece: bits, the largest first.
template <class Rule, class T>
std::vector<std::uint64_t> Heads<Rule, T>::masks_of(std::vector<int> bits, std::int64_t pieces) const {
  std::vector<std::uint64_t> masks;
  for (; pieces > 0; --pieces) {
    masks.push_back(0);
    for (const int bit : bits) masks.back() |= std::uint64_t{1} << bit;
    const Carry carry =
        carry_of(bits.size(), chunk_bit(sequence_.chunk), last_bit_, [&](std::size_t i) { return bits[i]; });
    bits.resize(bits.size() - carry.merged);
    bits.push_back(carry.bit);
  }
  return masks;
}

template <class Rule, class T>
void Heads<Rule, T>::states_at(std::vector<Cut>& cuts) {
  take_scratch(false);
  std::vector<std::vector<Live<T>>> lives;
  for (h_ = first_head_; h_ < last_head_; ++h_) lives.push_back(import_state(sequence_.initial));
  std::int64_t first = -sequence_.open;
  for (Cut& cut : cuts) {
    for (; first < cut.tokens; first += n_) {
      select(0, first);
      load_keys();
      for (h_ = first_head_; h_ < last_head_; ++h_) {
        load_head();
        advance(lives[h_ - first_head_]);
      }
    }
    for (h_ = first_head_; h_ < last_head_; ++h_) export_state(lives[h_ - first_head_], cut.state);
  }
}

template <class Rule, class T>
void Heads<Rule, T>::dstates_at(const ConstTensor& dout, const State* dfinal, std::vector<Cut>& cuts) {
  take_scratch(true);
  std::vector<int> bits;
  for (const FinalSlot& one : cuts.front().state) bits.push_back(one.slot.bit);
  std::vector<std::uint64_t> before = masks_of(std::move(bits), (sequence_.tokens - cuts.front().tokens + C_ - 1) / C_);
  std::vector<std::vector<Matrix<T>>> adjoints;
  for (h_ = first_head_; h_ < last_head_; ++h_) adjoints.push_back(import_adjoints(dfinal));
  for (std::size_t c = cuts.size(); c-- > 0;) {
    const std::int64_t begin = (cuts[c].tokens - cuts.front().tokens) / C_;
    while (static_cast<std::int64_t>(before.size()) > begin) {
      select(0, cuts.front().tokens + (static_cast<std::int64_t>(before.size()) - 1) * C_);
      load_keys();
      load_queries();
      for (h_ = first_head_; h_ < last_head_; ++h_) {
        load_head();
        load_scales();
        load_effective_queries();
        load_tokens(columns_of(dout, columns_), h_, V_, nullptr, 0, dout_, Vp_);
        std::vector<Matrix<T>>& own = adjoints[h_ - first_head_];
        own = receive(own, static_cast<std::size_t>(std::popcount(before.back())));
        std::uint64_t rest = before.back();
        for (Matrix<T>& adjoint : own) {  // oldest first: the highest bit
          if (Rule::kErases && n_ == C_ && adjoint) read_adjoint(adjoint);
          advance_adjoint(std::bit_width(rest) - 1, adjoint);
          rest &= ~std::bit_floor(rest);
        }
      }
      before.pop_back();
    }
    for (h_ = first_head_; h_ < last_head_; ++h_) export_adjoints(adjoints[h_ - first_head_], cuts[c].dstate);
  }
}

// Pieces of a segment: about sqrt(pieces), which bounds memory by sqrt(T); more while they take little memory, because
// a sequence of one segment is swept forward only once and to read a state, even from memory, is cheaper than to make
// it.
template <class Rule, class T>
std::int64_t Heads<Rule, T>::segment_length(std::int64_t pieces) const {
  // A piece leaves one new matrix a head; a rule that erases leaves every live one and what was erased.
  const std::int64_t live = std::bit_width(static_cast<std::uint64_t>(pieces)) / 2 + 1,
                     elements = Rule::kErases ? live * (K_ + C_) * Vp_ : K_ * Vp_,
                     fit = kSegmentBytes / ((last_head_ - first_head_) * elements * std::int64_t{sizeof(T)});
  std::int64_t segment = 1;
  while (segment * segment < pieces || (segment < pieces && 2 * segment <= fit)) segment *= 2;
  return segment;
}

// What the heads add up in the gradients of the piece's queries and keys: rows in dq and dk, columns in dqet and dkt,
// and dqk, the gradient in Q K^T.
template <class Rule, class T>
void Heads<Rule, T>::begin_keys(const BackwardArgs& args, const BackwardTarget& target) {
  reads_ahead_ ? load_keys_of(args.dq, static_cast<T*>(target.dq), dq_) : std::fill(dq_, dq_ + n_ * Kp_, T(0));
  std::fill(dk_, dk_ + n_ * Kp_, T(0));
  std::fill(dqk_, dqk_ + n_ * Cp_, T(0));
  std::fill(dkt_, dkt_ + K_ * Cp_, T(0));
  if (Rule::kErases || reads_ahead_) return;
  transpose<T>(n_, K_, q_, Kp_, qet_, Cp_);
  std::fill(dqet_, dqet_ + K_ * Cp_, T(0));
}

template <class Rule, class T>
void Heads<Rule, T>::finish_keys(const BackwardArgs& args, const BackwardTarget& target, const State* dfinal,
                                 FinalState* dinitial) {
  if (!Rule::kErases && !reads_ahead_) take_queries();
  transpose<T>(K_, n_, dkt_, Cp_, rows_, Kp_);
  add_to(n_ * Kp_, rows_, dk_);
  // QK = lower(Q K^T)
  multiply(n_, K_, n_, dqk_, Cp_, 1, k_, Kp_, dq_, Kp_, {.beta = 1, .part = Part::lower_a});
  multiply(n_, K_, n_, dqk_, 1, Cp_, q_, Kp_, dk_, Kp_, {.beta = 1, .part = Part::upper_a});
  // The last tokens of a sequence are also in its final state, as they are: once for the heads that share the key.
  if (n_ < C_ && dfinal && first_head_ == group_ * heads_)
    add_rows(open_row(dfinal->open()->k, group_, K_), K_, dk_, Kp_);
  store_keys(args.dq, dq_, static_cast<T*>(target.dq), nullptr);
  store_keys(args.dk, dk_, static_cast<T*>(target.dk), skip_ > 0 && dinitial ? &dinitial->open->k : nullptr);
}

// To rows of the tensor, those of open tokens to `open` if there is one; or to the target, whose first rows are those
// of open tokens.
template <class Rule, class T>
void Heads<Rule, T>::store_keys(const Tensor& to, const T* rows, T* target, Buffer* open) {
  if (!target) {
    if (open) store_open(*open, group_, K_, rows, Kp_);
    return store_tokens(to, group_, K_, rows, Kp_);
  }
  for (std::int64_t i = 0; i < n_; ++i)
    std::copy(rows + i * Kp_, rows + i * Kp_ + K_, target + (sequence_.open + first_ + i) * K_);
}

// What store_keys() wrote.
template <class Rule, class T>
void Heads<Rule, T>::load_keys_of(const Tensor& from, const T* target, T* rows) {
  if (!target) return load_tokens(from, group_, K_, nullptr, 0, rows, Kp_);
  for (std::int64_t i = 0; i < n_; ++i) {
    const T* row = target + (sequence_.open + first_ + i) * K_;
    std::copy(row, row + K_, rows + i * Kp_);
  }
}

// Rows of the piece that belong to open tokens into (heads, C, width).
template <class Rule, class T>
void Heads<Rule, T>::store_open(Buffer& open, std::int64_t h, std::int64_t width, const T* rows,
                                std::int64_t ld) const {
  T* to = reinterpret_cast<T*>(open.data()) + h * C_ * width;
  for (std::int64_t i = 0; i < skip_; ++i) std::copy(rows + i * ld, rows + i * ld + width, to + i * width);
}

// to (n, ld) += rows (n, width).
template <class Rule, class T>
void Heads<Rule, T>::add_rows(const T* rows, std::int64_t width, T* to, std::int64_t ld) const {
  for (std::int64_t i = 0; i < n_; ++i)
    for (std::int64_t j = 0; j < width; ++j) to[i * ld + j] += rows[i * width + j];
}

// Reads of live states. Without erasure they need no adjoints, and one sweep forward makes them beside the states: dq
// goes to its rows, what belongs to tokens to theirs in dlevel_scales and dg, until the sweep back adds the rest.
template <class Rule, class T>
void Heads<Rule, T>::begin_reads() {
  load_tokens(q_in_, group_, K_, nullptr, 0, q_, Kp_);
  transpose<T>(n_, K_, q_, Kp_, qet_, Cp_);
  std::fill(dqet_, dqet_ + K_ * Cp_, T(0));
}

template <class Rule, class T>
void Heads<Rule, T>::backward_reads(const BackwardArgs& args, const std::vector<Live<T>>& live) {
  load_scales();
  load_tokens(args.dout, h_, V_, nullptr, 0, dout_, Vp_);
  begin_gates();
  soon_.begin(static_cast<std::int64_t>(live.size() + 1) * n_ * K_ * V_);
  prefetch_rows(args.dlevel_scales, h_, first_, Ls_);
  prefetch_rows(args.dg, h_, first_, 1);
  prefetch_next_of(args.dout, 1);
  for (const Live<T>& state : live) backward_read(state);
  store_gates(args, nullptr);
}

template <class Rule, class T>
void Heads<Rule, T>::finish_reads(const BackwardArgs& args, const BackwardTarget& target) {
  transpose<T>(K_, n_, dqet_, Cp_, rows_, Kp_);
  store_keys(args.dq, rows_, static_cast<T*>(target.dq), nullptr);
}

// What a sweep over pieces reads after the current head of the current piece, in the order of time or against it.
template <class Rule, class T>
void Heads<Rule, T>::prefetch_next_of(const ConstTensor& dout, std::int64_t direction) {
  const std::int64_t piece = direction > 0 ? first_ + n_ : first_ - C_, part = h_ - first_head_,
                     parts = last_head_ - first_head_;
  const bool last_head = h_ + 1 == last_head_;
  const std::int64_t first = last_head ? piece : first_, h = last_head ? first_head_ : h_ + 1;
  if (first + C_ > 0) {
    prefetch_rows(dout, h, first, V_);
    prefetch_rows(v_in_, h, first, V_);
    prefetch_rows(scales_in_, h, first, Ls_);
  }
  if (piece + C_ > 0)  // every head its share of the next keys and queries
    for (const ConstTensor* x : {&k_in_, &q_in_}) prefetch_rows(*x, group_, piece, K_, part, parts);
}

// What backward_piece() reads and writes, and what comes after it. States that a rule has changed in every chunk come
// from far away.
template <class Rule, class T>
void Heads<Rule, T>::prefetch_piece(const BackwardArgs& args, const Sweep& sweep, int live) {
  constexpr std::int64_t element = static_cast<std::int64_t>(sizeof(T));
  const std::int64_t products = reads_ahead_ ? 1 : Rule::kErases ? 6 : 2;  // of each live state
  soon_.begin(n_ * n_ * V_ + (products * static_cast<std::int64_t>(live) + 2) * n_ * K_ * V_);
  if (!reads_ahead_)
    for (const Live<T>& state : sweep.before.back()) {
      soon_.add(state.matrix.get(), K_, Vp_ * element, V_ * element);
      if (state.erased) soon_.add(state.erased.get(), n_, Vp_ * element, V_ * element);
    }
  prefetch_rows(args.dv, h_, first_, V_);
  prefetch_rows(args.dlevel_scales, h_, first_, Ls_);
  prefetch_rows(args.dg, h_, first_, 1);
  prefetch_next_of(args.dout, -1);
}

// The adjoint of what the loaded piece of one head does. live: the bits of the states before it, a mask; the adjoints
// in sweep: in, of the states after it; out, before it.
template <class Rule, class T>
void Heads<Rule, T>::backward_piece(const BackwardArgs& args, std::uint64_t live, Sweep& sweep, const State* dfinal,
                                    FinalState* dinitial) {
  load_tokens(args.dout, h_, V_, nullptr, 0, dout_, Vp_);
  transpose<T>(n_, V_, v_, Vp_, vt_, Cp_);
  double reads = 0;
  if (reads_ahead_) {
    reads = load_gates(args);
  } else {
    begin_gates();
  }
  if constexpr (Rule::kErases) {
    transpose<T>(n_, K_, qe_, Kp_, qet_, Cp_);
    std::fill(dqet_, dqet_ + K_ * Cp_, T(0));
    std::fill(dwt_, dwt_ + K_ * Cp_, T(0));
    std::fill(dtg_, dtg_ + n_ * Cp_, T(0));
    std::fill(dbeta_, dbeta_ + n_, T(0));
  }

  backward_inside();

  // Only a full chunk changes the states: its sum of g decays all that later pieces find in them, and it adds a new
  // one.
  std::vector<Matrix<T>>& adjoints = sweep.adjoints;
  const bool full = n_ == C_;
  if (full) {
    dsums_[n_ - 1] += sweep.flow;
    if (adjoints.back()) sweep.flow -= backward_build(adjoints.back().get());
  }
  adjoints = receive(adjoints, static_cast<std::size_t>(std::popcount(live)));
  std::size_t i = 0;
  for (std::uint64_t rest = live; rest != 0; rest &= ~std::bit_floor(rest), ++i) {  // oldest first: the highest bit
    if (!reads_ahead_) reads += backward_read(sweep.before.back()[i]);
    if constexpr (Rule::kErases)
      if (full && adjoints[i]) backward_erase(sweep.before.back()[i], adjoints[i]);
    advance_adjoint(std::bit_width(rest) - 1, adjoints[i]);
  }
  sweep.flow += reads;

  if constexpr (Rule::kErases) {
    backward_rule();
  } else {
    add_to(n_ * Cp_, dp_, dqk_);
  }
  double sum = 0;  // g enters through its sums
  for (std::int64_t t = n_ - 1; t >= 0; --t) dsums_[t] = sum += dsums_[t];
  if (!full && dfinal) {
    const State::Open& open = *dfinal->open();
    add_rows(open_row(open.v, h_, V_), V_, dv_, Vp_);
    for (std::int64_t t = 0; t < n_; ++t) {
      dsums_[t] += open_row(open.g, h_, 1)[t];
      if constexpr (Rule::kErases) dbeta_[t] += open_row(open.beta, h_, 1)[t];
    }
  }
  store_gates(args, skip_ > 0 && dinitial ? dinitial->open.get() : nullptr);
  store_tokens(args.dv, h_, V_, dv_, Vp_);
}

// out = P V with P = P0 * decay * scales. dp becomes the gradient in P0, zero above the diagonal.
template <class Rule, class T>
void Heads<Rule, T>::backward_inside() {
  const Lanes<T> d;
  const std::int64_t N = static_cast<std::int64_t>(hn::Lanes(d));
  multiply(n_, V_, n_, p_, 1, Cp_, dout_, Vp_, dv_, Vp_, {.part = Part::upper_a});
  multiply(n_, n_, V_, dout_, Vp_, 1, vt_, Cp_, dp_, Cp_, {.part = Part::lower_c});
  std::fill(column_, column_ + Cp_, T(0));
  for (std::int64_t i = 0; i < n_; ++i) {
    const T *p0 = p0_ + i * Cp_, *decay = decay_ + i * Cp_;
    T* dp = dp_ + i * Cp_;
    for (std::int64_t s = 0; s <= i; s += N) {
      const auto below = hn::FirstN(d, static_cast<std::size_t>(std::min(N, i + 1 - s)));
      const auto decayed = hn::IfThenElseZero(below, hn::Mul(hn::LoadU(d, dp + s), hn::LoadU(d, decay + s)));
      const auto read = hn::IfThenElseZero(below, hn::Mul(decayed, hn::LoadU(d, p0 + s)));
      const auto scale = hn::IfThenElseZero(below, scales_from(i, s));
      hn::StoreU(read, d, read_ + s);
      hn::StoreU(hn::MulAdd(read, scale, hn::LoadU(d, column_ + s)), d, column_ + s);
      hn::StoreU(hn::Mul(decayed, scale), d, dp + s);
    }
    for (std::int64_t s = (i / N + 1) * N; s < padded(n_); ++s) dp[s] = T(0);
    column_[i] = T(0);  // a token does not decay what it writes itself; later rows begin here
    for_runs(i, [&](std::int64_t l, std::int64_t s0, std::int64_t s1) HWY_ATTR {
      const T sum = sum_of(s1 - s0, read_ + s0);
      dscales_[i * Ls_ + l] += sum;
      if (s0 < i) dsums_[i] += static_cast<double>(sum) * scales_[i * Ls_ + l];
    });
  }
  for (std::int64_t s = 0; s < n_; ++s) dsums_[s] -= column_[s];
}

// The new state K^T diag(to_end) U with the given adjoint (K, Vp). Returns the flow through it.
template <class Rule, class T>
double Heads<Rule, T>::backward_build(const T* adjoint) {
  const Lanes<T> d;
  if constexpr (Rule::kErases) {
    effective_values(ue_);
    transpose<T>(n_, V_, ue_, Vp_, uet_, Cp_);
  } else {
    scale_columns(V_, padded(n_), Cp_, to_end_, vt_, uet_);
  }
  multiply(K_, n_, V_, adjoint, Vp_, 1, uet_, Cp_, dkt_, Cp_, {.beta = 1});

  multiply(n_, V_, K_, k_, Kp_, 1, adjoint, Vp_, due_, Vp_);
  double flow = 0;
  for (std::int64_t i = 0; i < n_; ++i) {
    T *due = due_ + i * Vp_, *dv = dv_ + i * Vp_;
    const auto to_end = hn::Set(d, to_end_[i]);
    auto sum = hn::Zero(d);
    for (std::int64_t j = 0; j < V_; j += static_cast<std::int64_t>(hn::Lanes(d))) {
      const auto du = hn::Mul(to_end, hn::LoadU(d, due + j));
      if constexpr (Rule::kErases) {
        sum = hn::MulAdd(hn::LoadU(d, due + j), hn::LoadU(d, ue_ + i * Vp_ + j), sum);
        hn::StoreU(du, d, due + j);  // now dU
      } else {
        sum = hn::MulAdd(du, hn::LoadU(d, v_ + i * Vp_ + j), sum);
        hn::StoreU(hn::Add(du, hn::LoadU(d, dv + j)), d, dv + j);  // U = V
      }
    }
    const double token = hn::GetLane(hn::SumOfLanes(d, sum));
    dsums_[i] -= token;
    flow += token;
  }
  if constexpr (Rule::kErases) {
    // U = Tg V
    multiply(n_, n_, V_, due_, Vp_, 1, vt_, Cp_, dtg_, Cp_, {.part = Part::lower_c});
    multiply(n_, V_, n_, tg_, 1, Cp_, due_, Vp_, dv_, Vp_, {.beta = 1, .part = Part::upper_a});
  }
  return flow;
}

// The adjoints of `live` states before the piece from those after it: states that a full chunk merged receive the
// adjoint of the block that took them in.
template <class Rule, class T>
std::vector<Matrix<T>> Heads<Rule, T>::receive(const std::vector<Matrix<T>>& after, std::size_t live) const {
  const std::size_t stay = after.size() - (n_ == C_ ? 1 : 0);
  std::vector<Matrix<T>> before(after.begin(), after.begin() + static_cast<std::ptrdiff_t>(stay));
  if (live > stay) before.resize(live, after[stay]);
  return before;
}

// One live state, read by every token of the piece. Returns the flow that the reads are.
template <class Rule, class T>
double Heads<Rule, T>::backward_read(const Live<T>& state) {
  read_weights(state, found_);
  clear_padding(weight_);
  std::fill(dots_, dots_ + Cp_, T(0));
  multiply(K_, n_, V_, state.matrix.get(), Vp_, 1, doutt_, Cp_, dqet_, Cp_,
           {.beta = 1, .column_scale = weight_, .dots_with = qet_, .dots = dots_}, bf16::Rest::none,
           {.b = &doutt_packed_});
  double reads = 0;
  const std::int64_t l = level(state.bit + 1);
  for (std::int64_t i = 0; i < n_; ++i) {
    dscales_[i * Ls_ + l] += dots_[i] * found_[i];
    const double read = static_cast<double>(dots_[i]) * weight_[i];
    dsums_[i] += read;
    reads += read;
  }
  return reads;
}

// What a full chunk erased of a live state, with the adjoint after it.
template <class Rule, class T>
void Heads<Rule, T>::backward_erase(const Live<T>& state, const Matrix<T>& adjoint) {
  const T minus = static_cast<T>(-std::exp(state.log_decay + sums_[n_ - 1]));
  read_adjoint(adjoint);
  multiply(K_, n_, V_, state.matrix.get(), Vp_, 1, yt_, Cp_, dwt_, Cp_, {.alpha = minus, .beta = 1});
  transpose<T>(n_, V_, state.erased.get(), Vp_, zt_, Cp_);
  multiply(K_, n_, V_, adjoint.get(), Vp_, 1, zt_, Cp_, dkt_, Cp_, {.alpha = minus, .beta = 1});
}

// yt = (K adjoint)^T: what the decay step of a rule that erases takes from the adjoint, and how it enters W.
template <class Rule, class T>
void Heads<Rule, T>::read_adjoint(const Matrix<T>& adjoint) {
  multiply(V_, n_, K_, adjoint.get(), 1, Vp_, kt_, Cp_, yt_, Cp_);
}

// The adjoint of a live state of this bit before the piece from that after it: what the tokens of the piece read from
// the state, and what is left of the later reads. yt: as read_adjoint() leaves it, where a full chunk erases.
template <class Rule, class T>
void Heads<Rule, T>::advance_adjoint(int bit, Matrix<T>& adjoint) {
  const std::int64_t l = level(bit + 1);
  for (std::int64_t i = 0; i < n_; ++i) column_[i] = gamma_[i] * scales_[i * Ls_ + l];
  scale_rows(n_, padded(V_), Vp_, column_, dout_, scaled_);
  if (!adjoint) {
    adjoint = take_matrix();
    multiply(K_, V_, n_, qe_, 1, Kp_, scaled_, Vp_, adjoint.get(), Vp_, {}, bf16::Rest::none,
             {.a = &piece_->qet_packed});
    return;
  }
  const bool full = n_ == C_;
  const T decay = full ? static_cast<T>(std::exp(sums_[n_ - 1])) : T(1);
  if (adjoint.use_count() > 1) {
    Matrix<T> copy = take_matrix();
    std::copy(adjoint.get(), adjoint.get() + K_ * Vp_, copy.get());
    adjoint = std::move(copy);
  }
  // A decay of exactly zero must still clear the adjoint: beta = 0 means that it is not read, which is the same.
  multiply(K_, V_, n_, qe_, 1, Kp_, scaled_, Vp_, adjoint.get(), Vp_, {.beta = decay}, bf16::Rest::none,
           {.a = &piece_->qet_packed});
  if (Rule::kErases && full) {
    transpose<T>(V_, n_, yt_, Cp_, y_, Vp_);
    multiply(K_, V_, n_, w_, 1, Kp_, y_, Vp_, adjoint.get(), Vp_, {.alpha = -decay, .beta = 1});
  }
}

// The flow through all live states, from the states and their adjoints at one place.
template <class Rule, class T>
void Heads<Rule, T>::measure_flow(const std::vector<Live<T>>& live, Sweep& sweep) const {
  sweep.flow = 0;
  for (std::size_t i = 0; i < live.size(); ++i)
    sweep.flow += std::exp(live[i].log_decay) * inner(live[i].matrix.get(), sweep.adjoints[i].get());
}

// dq gets the columns that reads have added up; they stay in rows as the gradient in Qe.
template <class Rule, class T>
void Heads<Rule, T>::take_queries() {
  transpose<T>(K_, n_, dqet_, Cp_, rows_, Kp_);
  add_to(n_ * Kp_, rows_, dq_);
}

// From P0, the effective queries and mix back to q, k and beta.
template <class Rule, class T>
void Heads<Rule, T>::backward_rule() {
  // tg = decay * mix
  std::fill(column_, column_ + Cp_, T(0));
  for (std::int64_t i = 0; i < n_; ++i) {
    const T *dtg = dtg_ + i * Cp_, *tg = tg_ + i * Cp_, *decay = decay_ + i * Cp_;
    T* dmix = dmix_ + i * Cp_;
    for (std::int64_t s = 0; s <= i; ++s) {
      read_[s] = dtg[s] * tg[s];
      column_[s] += read_[s];
      dmix[s] = dtg[s] * decay[s];
    }
    column_[i] = T(0);
    dsums_[i] += sum_of(i, read_);
  }
  for (std::int64_t s = 0; s < n_; ++s) dsums_[s] -= column_[s];
  // P0 = QK mix
  transpose<T>(n_, n_, mix_, Cp_, cc_, Cp_);
  multiply(n_, n_, n_, dp_, Cp_, 1, cc_, Cp_, dqk_, Cp_, {.beta = 1, .part = Part::lower_a});
  multiply(n_, n_, n_, qk_, 1, Cp_, dp_, Cp_, dmix_, Cp_, {.beta = 1, .part = Part::upper_a});
  // Qe = Q - QK W
  take_queries();
  transpose<T>(n_, K_, w_, Kp_, wt_, Cp_);
  multiply(n_, n_, K_, rows_, Kp_, 1, wt_, Cp_, dqk_, Cp_, {.alpha = -1, .beta = 1, .part = Part::lower_c});
  transpose<T>(K_, n_, dwt_, Cp_, dw_, Kp_);
  multiply(n_, K_, n_, qk_, 1, Cp_, rows_, Kp_, dw_, Kp_, {.alpha = -1, .beta = 1, .part = Part::upper_a});
  // W = mix K
  multiply(n_, n_, K_, dw_, Kp_, 1, kt_, Cp_, dmix_, Cp_, {.beta = 1, .part = Part::lower_c});
  multiply(n_, K_, n_, mix_, 1, Cp_, dw_, Kp_, dk_, Kp_, {.beta = 1, .part = Part::upper_a});
  // mix from K K^T and beta
  Rule::mix_backward(Kernel(), n_, Cp_, kk_, beta_, inverse_, dmix_, dkk_, dbeta_, work_);
  multiply(n_, K_, n_, dkk_, Cp_, 1, k_, Kp_, dk_, Kp_, {.beta = 1, .part = Part::lower_a});
  multiply(n_, K_, n_, dkk_, 1, Cp_, k_, Kp_, dk_, Kp_, {.beta = 1, .part = Part::upper_a});
}

// dsums holds dg. Rows of open tokens go to `open`, or nowhere.
template <class Rule, class T>
void Heads<Rule, T>::store_gates(const BackwardArgs& args, State::Open* open) const {
  if (open) {
    store_open(open->v, h_, V_, dv_, Vp_);
    for (std::int64_t i = 0; i < skip_; ++i)
      reinterpret_cast<T*>(open->g.data())[h_ * C_ + i] = static_cast<T>(dsums_[i]);
    if constexpr (Rule::kErases) store_open(open->beta, h_, 1, dbeta_, 1);
  }
  const auto entry = [&](const Tensor& x, std::int64_t i) {
    return static_cast<T*>(x.data) + log_linear::offset(x, sequence_.batch, sequence_.first + first_ + i, h_);
  };
  for (std::int64_t i = skip_; i < n_; ++i) {
    *entry(args.dg, i) = static_cast<T>(dsums_[i]);
    if constexpr (Rule::kErases) *entry(args.dbeta, i) = dbeta_[i];
    T* scales = entry(args.dlevel_scales, i);
    copy_few(Ls_, dscales_ + i * Ls_, scales);
    std::fill(scales + Ls_, scales + L_, T(0));
  }
}

// Nothing yet in dscales and dsums, and dout as the reads want it.
template <class Rule, class T>
void Heads<Rule, T>::begin_gates() {
  transpose<T>(n_, V_, dout_, Vp_, doutt_, Cp_);
  doutt_packed_ = {};
  std::fill(dscales_, dscales_ + n_ * Ls_, T(0));
  std::fill(dsums_.begin(), dsums_.end(), 0.0);
}

// What the sweep forward left in dscales and dsums. Returns the sum of the latter.
template <class Rule, class T>
double Heads<Rule, T>::load_gates(const BackwardArgs& args) {
  std::fill(dscales_, dscales_ + skip_ * Ls_, T(0));
  std::fill(dsums_.begin(), dsums_.begin() + skip_, 0.0);
  double sum = 0;
  const auto entry = [&](const Tensor& x, std::int64_t i) {
    return static_cast<const T*>(x.data) + log_linear::offset(x, sequence_.batch, sequence_.first + first_ + i, h_);
  };
  for (std::int64_t i = skip_; i < n_; ++i) {
    sum += dsums_[i] = *entry(args.dg, i);
    copy_few(Ls_, entry(args.dlevel_scales, i), dscales_ + i * Ls_);
  }
  return sum;
}

// Sum of x * y over (K, Vp) matrices.
template <class Rule, class T>
double Heads<Rule, T>::inner(const T* x, const T* y) const {
  double sum = 0;
  for (std::int64_t a = 0; a < K_; ++a) sum += dot(V_, x + a * Vp_, y + a * Vp_);
  return sum;
}

template <class Rule, class T>
std::vector<Matrix<T>> Heads<Rule, T>::import_adjoints(const State* state) {
  std::vector<Matrix<T>> adjoints(live_slots(sequence_, L_, sequence_.full_chunks()).size());
  for (std::size_t i = 0; state && i < adjoints.size(); ++i) {
    const State::Slot& slot = state->slots()[i];
    adjoints[i] = take_matrix();
    import_matrix(slot, static_cast<T>(std::exp(slot.log_decay[h_])), adjoints[i].get());
  }
  return adjoints;
}

template <class Rule, class T>
void Heads<Rule, T>::export_adjoints(const std::vector<Matrix<T>>& adjoints, std::vector<FinalSlot>& to) const {
  for (std::size_t i = 0; i < adjoints.size(); ++i) export_matrix(adjoints[i].get(), to[i].slot);
}

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#endif
