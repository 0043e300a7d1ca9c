// The backward of one head of one sequence in chunks: docs/algorithm.md, section 6. Compiled once per instruction set.

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

// Of the first head alone.
template <class Rule, class T>
void Heads<Rule, T>::backward(const BackwardArgs& args, const State* dfinal, const BackwardTarget& target,
                              FinalState* dinitial) {
  std::vector<std::int64_t> firsts;  // of the pieces
  for (std::int64_t first = -sequence_.open; first < sequence_.tokens; first += piece_length(first))
    firsts.push_back(first);
  const std::int64_t pieces = static_cast<std::int64_t>(firsts.size());
  if (pieces > 0) take_scratch(true);
  // Live states are kept at every stride-th piece and recomputed in between: about sqrt(T) of them at a time.
  std::int64_t stride = 1;
  while (stride * stride < pieces) stride *= 2;

  std::vector<std::vector<Live<T>>> kept;
  std::vector<Live<T>> live = import_state(sequence_.initial);
  for (std::int64_t z = 0; z < pieces; ++z) {
    if (z % stride == 0) kept.push_back(live);
    if (z >= (pieces - 1) / stride * stride) break;  // the last stride is recomputed below
    load(firsts[z]);
    advance(live);
  }

  std::vector<Matrix<T>> adjoints = import_adjoints(dfinal);
  while (!kept.empty()) {
    const std::int64_t first = (static_cast<std::int64_t>(kept.size()) - 1) * stride;
    const std::int64_t last = std::min(pieces, first + stride);
    std::vector<std::vector<Live<T>>> before;
    live = std::move(kept.back());
    kept.pop_back();
    for (std::int64_t z = first; z < last; ++z) {
      before.push_back(live);
      if (z + 1 == last) break;
      load(firsts[z]);
      advance(live);
    }
    live.clear();
    for (std::int64_t z = last - 1; z >= first; --z) {
      load(firsts[z]);
      load_queries();
      load_reads();
      backward_piece(args, before.back(), adjoints, dfinal, target, dinitial);
      before.pop_back();
    }
  }
  if (dinitial) export_adjoints(adjoints, *dinitial);
}

// The adjoint of reading and advancing over the loaded piece. adjoints: in, of the states after it; out, before it.
template <class Rule, class T>
void Heads<Rule, T>::backward_piece(const BackwardArgs& args, const std::vector<Live<T>>& live,
                                    std::vector<Matrix<T>>& adjoints, const State* dfinal, const BackwardTarget& target,
                                    FinalState* dinitial) {
  load_tokens(args.dout, h_, V_, nullptr, 0, dout_, Vp_);
  transpose<T>(n_, V_, dout_, Vp_, doutt_, Cp_);
  transpose<T>(n_, V_, v_, Vp_, vt_, Cp_);
  transpose<T>(n_, K_, qe_, Kp_, qet_, Cp_);
  std::fill(dqet_, dqet_ + K_ * Cp_, T(0));
  std::fill(dkt_, dkt_ + K_ * Cp_, T(0));
  std::fill(dscales_, dscales_ + n_ * Ls_, T(0));
  std::fill(dsums_.begin(), dsums_.end(), 0.0);
  double dend = 0;  // gradient in the sum of g over the whole piece
  if constexpr (Rule::kErases) {
    std::fill(dwt_, dwt_ + K_ * Cp_, T(0));
    std::fill(dtg_, dtg_ + n_ * Cp_, T(0));
    std::fill(dbeta_, dbeta_ + n_, T(0));
  }

  backward_inside();

  // Only a full chunk changes the states; the last tokens of a sequence may just read them.
  const bool full = n_ == C_;
  const std::size_t stay = adjoints.size() - (full ? 1 : 0);  // states that live through the piece
  if (full && adjoints[stay]) dend += backward_build(adjoints[stay].get());
  std::vector<Matrix<T>> before;
  for (std::size_t i = 0; i < live.size(); ++i) {
    // A state that was merged receives the adjoint of the block that took it in.
    Matrix<T> adjoint = i < stay ? std::move(adjoints[i]) : adjoints[stay];
    before.push_back(backward_state(live[i], std::move(adjoint), full, dend));
  }
  adjoints = std::move(before);

  backward_rule();

  dsums_[n_ - 1] += dend;
  double sum = 0;
  for (std::int64_t i = n_ - 1; i >= 0; --i) dsums_[i] = sum += dsums_[i];  // now dg
  // The last tokens of the sequence are also in the final state, as they are.
  if (!full && dfinal) add_open(*dfinal->open());

  State::Open* open = dinitial ? dinitial->open.get() : nullptr;
  const std::int64_t t = sequence_.first + first_;
  for (std::int64_t i = 0; open && i < skip_; ++i) {
    open_rows(open->g, 1)[i] = static_cast<T>(dsums_[i]);
    if constexpr (Rule::kErases) open_rows(open->beta, 1)[i] = dbeta_[i];
    std::copy(dv_ + i * Vp_, dv_ + i * Vp_ + V_, open_rows(open->v, V_) + i * V_);
  }
  for (std::int64_t i = skip_; i < n_; ++i) {
    log_linear::put<double>(args.dg, log_linear::offset(args.dg, sequence_.batch, t + i, h_), dsums_[i]);
    const std::int64_t at = log_linear::offset(args.dlevel_scales, sequence_.batch, t + i, h_);
    for (std::int64_t l = 0; l < L_; ++l)
      log_linear::put<T>(args.dlevel_scales, at + l, l < Ls_ ? dscales_[i * Ls_ + l] : T(0));
    if constexpr (Rule::kErases)
      log_linear::put<T>(args.dbeta, log_linear::offset(args.dbeta, sequence_.batch, t + i, h_), dbeta_[i]);
  }
  store_tokens(args.dv, h_, V_, dv_, Vp_);
  store_keys(args.dq, dqet_, static_cast<T*>(target.dq), target.add);
  store_keys(args.dk, dkt_, static_cast<T*>(target.dk), target.add);
}

// The gradient of the final state in its open tokens, which are those of the loaded piece.
template <class Rule, class T>
void Heads<Rule, T>::add_open(const State::Open& d) {
  const auto rows = [&](const Buffer& x, std::int64_t h, std::int64_t width) {
    return reinterpret_cast<const T*>(x.data()) + h * C_ * width;
  };
  const T *dk = rows(d.k, group_, K_), *dv = rows(d.v, h_, V_), *dg = rows(d.g, h_, 1), *dbeta = rows(d.beta, h_, 1);
  for (std::int64_t i = 0; i < n_; ++i) {
    dsums_[i] += dg[i];
    if constexpr (Rule::kErases) dbeta_[i] += dbeta[i];
    for (std::int64_t j = 0; j < V_; ++j) dv_[i * Vp_ + j] += dv[i * V_ + j];
    if (h_ == group_ * heads_)  // once for the heads that share the key
      for (std::int64_t a = 0; a < K_; ++a) dkt_[a * Cp_ + i] += dk[i * K_ + a];
  }
}

// out = P V with P = P0 * decay * scales.
template <class Rule, class T>
void Heads<Rule, T>::backward_inside() {
  product<T>(n_, V_, n_, p_, 1, Cp_, dout_, Vp_, dv_, Vp_, {.part = Part::upper_a});
  product<T>(n_, n_, V_, dout_, Vp_, 1, vt_, Cp_, dp_, Cp_, {.part = Part::lower_c});
  std::fill(column_, column_ + Cp_, T(0));
  for (std::int64_t i = 0; i < n_; ++i) {
    fill_scales(i);
    const T *p0 = p0_ + i * Cp_, *decay = decay_ + i * Cp_;
    T *dp = dp_ + i * Cp_, *read = cc_;
    for (std::int64_t s = 0; s <= i; ++s) {
      read[s] = dp[s] * p0[s] * decay[s];
      column_[s] += s < i ? read[s] * scale_row_[s] : T(0);  // a token does not decay what it writes itself
      dp[s] *= decay[s] * scale_row_[s];                     // now dP0
    }
    for (std::int64_t s = i + 1; s < padded(n_); ++s) dp[s] = T(0);
    for_runs(i, [&](std::int64_t l, std::int64_t s0, std::int64_t s1) HWY_ATTR {
      const T sum = sum_of(s1 - s0, read + s0);
      dscales_[i * Ls_ + l] += sum;
      if (s0 < i) dsums_[i] += static_cast<double>(sum) * scales_[i * Ls_ + l];
    });
  }
  for (std::int64_t s = 0; s < n_; ++s) dsums_[s] -= column_[s];
}

// The new state K^T diag(to_end) U with the given adjoint (K, Vp). Returns the gradient in the whole sum of g.
template <class Rule, class T>
double Heads<Rule, T>::backward_build(const T* adjoint) {
  double dend = 0;
  T* ue = Rule::kErases ? u_ : ue_;
  effective_values(ue);
  product<T>(n_, V_, K_, k_, Kp_, 1, adjoint, Vp_, due_, Vp_);
  for (std::int64_t i = 0; i < n_; ++i) {
    const double r = dot(V_, due_ + i * Vp_, ue + i * Vp_);
    dend += r;
    dsums_[i] -= r;
    for (std::int64_t j = 0; j < Vp_; ++j) due_[i * Vp_ + j] *= to_end_[i];  // now dU
  }
  if constexpr (Rule::kErases) {
    // U = Tg V
    product<T>(n_, n_, V_, due_, Vp_, 1, vt_, Cp_, dtg_, Cp_, {.part = Part::lower_c});
    product<T>(n_, V_, n_, tg_, 1, Cp_, due_, Vp_, dv_, Vp_, {.beta = 1, .part = Part::upper_a});
    transpose<T>(n_, V_, ue, Vp_, vct_, Cp_);
    product<T>(K_, n_, V_, adjoint, Vp_, 1, vct_, Cp_, dkt_, Cp_, {.beta = 1});
  } else {
    for (std::int64_t i = 0; i < n_; ++i)
      for (std::int64_t j = 0; j < Vp_; ++j) dv_[i * Vp_ + j] += due_[i * Vp_ + j];
    product<T>(K_, n_, V_, adjoint, Vp_, 1, vt_, Cp_, x_, Cp_);
    for (std::int64_t a = 0; a < K_; ++a)
      for (std::int64_t s = 0; s < n_; ++s) dkt_[a * Cp_ + s] += to_end_[s] * x_[a * Cp_ + s];
  }
  return dend;
}

// One live state over the piece: read by every token, and when the piece is a full chunk erased and decayed. Returns
// the adjoint before the piece.
template <class Rule, class T>
Matrix<T> Heads<Rule, T>::backward_state(const Live<T>& state, Matrix<T> adjoint, bool full, double& dend) {
  const T* S = state.matrix.get();
  read_weights(state, found_);
  product<T>(K_, n_, V_, S, Vp_, 1, doutt_, Cp_, x_, Cp_);
  std::fill(dots_, dots_ + Cp_, T(0));
  for (std::int64_t a = 0; a < K_; ++a) {
    const T *x = x_ + a * Cp_, *qe = qet_ + a * Cp_;
    T* dqe = dqet_ + a * Cp_;
    for (std::int64_t i = 0; i < n_; ++i) {
      dqe[i] += weight_[i] * x[i];
      dots_[i] += qe[i] * x[i];
    }
  }
  const std::int64_t l = level(state.bit + 1);
  for (std::int64_t i = 0; i < n_; ++i) {
    dscales_[i * Ls_ + l] += dots_[i] * found_[i];
    dsums_[i] += static_cast<double>(dots_[i]) * weight_[i];
    const T weight = gamma_[i] * scales_[i * Ls_ + l];
    for (std::int64_t j = 0; j < Vp_; ++j) scaled_[i * Vp_ + j] = weight * dout_[i * Vp_ + j];
  }
  if (!adjoint) {
    adjoint = take_matrix();
    product<T>(K_, V_, n_, qe_, 1, Kp_, scaled_, Vp_, adjoint.get(), Vp_);
    return adjoint;
  }

  const auto own = [&] {  // the adjoint may be shared with other parts of a merged state
    if (adjoint.use_count() == 1) return;
    Matrix<T> copy = take_matrix();
    std::copy(adjoint.get(), adjoint.get() + K_ * Vp_, copy.get());
    adjoint = std::move(copy);
  };
  if (!full) {
    own();
    product<T>(K_, V_, n_, qe_, 1, Kp_, scaled_, Vp_, adjoint.get(), Vp_, {.beta = 1});
    return adjoint;
  }
  const T decay = static_cast<T>(std::exp(sums_[n_ - 1]));
  const double whole = std::exp(state.log_decay + sums_[n_ - 1]);
  double change = inner(K_, adjoint.get(), S);
  if constexpr (Rule::kErases) {
    product<T>(n_, V_, K_, k_, Kp_, 1, adjoint.get(), Vp_, y_, Vp_);
    product<T>(n_, V_, K_, w_, Kp_, 1, S, Vp_, z_, Vp_);
    change -= inner(n_, y_, z_);
    const T minus = static_cast<T>(-whole);
    transpose<T>(n_, V_, y_, Vp_, vct_, Cp_);
    product<T>(K_, n_, V_, S, Vp_, 1, vct_, Cp_, dwt_, Cp_, {.alpha = minus, .beta = 1});
    transpose<T>(n_, V_, z_, Vp_, vct_, Cp_);
    product<T>(K_, n_, V_, adjoint.get(), Vp_, 1, vct_, Cp_, dkt_, Cp_, {.alpha = minus, .beta = 1});
  }
  dend += whole * change;
  own();
  // A decay of exactly zero must still clear the adjoint: beta = 0 means that it is not read, which is the same.
  product<T>(K_, V_, n_, qe_, 1, Kp_, scaled_, Vp_, adjoint.get(), Vp_, {.beta = decay});
  if constexpr (Rule::kErases)
    product<T>(K_, V_, n_, w_, 1, Kp_, y_, Vp_, adjoint.get(), Vp_, {.alpha = -decay, .beta = 1});
  return adjoint;
}

// From P0, the effective queries and mix back to q, k and beta.
template <class Rule, class T>
void Heads<Rule, T>::backward_rule() {
  T* dqk = dp_;
  if constexpr (Rule::kErases) {
    for (std::int64_t i = 0; i < n_; ++i)
      for (std::int64_t s = i + 1; s < padded(n_); ++s) qk_[i * Cp_ + s] = T(0);
    // tg = decay * mix
    std::fill(column_, column_ + Cp_, T(0));
    for (std::int64_t i = 0; i < n_; ++i) {
      for (std::int64_t s = 0; s <= i; ++s) {
        cc_[s] = dtg_[i * Cp_ + s] * tg_[i * Cp_ + s];
        column_[s] += s < i ? cc_[s] : T(0);
        dmix_[i * Cp_ + s] = dtg_[i * Cp_ + s] * decay_[i * Cp_ + s];
      }
      for (std::int64_t s = i + 1; s < padded(n_); ++s) dmix_[i * Cp_ + s] = T(0);
      dsums_[i] += sum_of(i, cc_);
    }
    for (std::int64_t s = 0; s < n_; ++s) dsums_[s] -= column_[s];
    // P0 = QK mix
    dqk = dqk_;
    transpose<T>(n_, n_, mix_, Cp_, cc_, Cp_);
    product<T>(n_, n_, n_, dp_, Cp_, 1, cc_, Cp_, dqk, Cp_, {.part = Part::lower_a});
    product<T>(n_, n_, n_, qk_, 1, Cp_, dp_, Cp_, dmix_, Cp_, {.beta = 1, .part = Part::upper_a});
    // Qe = Q - QK W
    transpose<T>(n_, K_, w_, Kp_, wt_, Cp_);
    product<T>(n_, n_, K_, dqet_, 1, Cp_, wt_, Cp_, dqk, Cp_, {.alpha = -1, .beta = 1});
    product<T>(K_, n_, n_, dqet_, Cp_, 1, qk_, Cp_, dwt_, Cp_, {.alpha = -1, .beta = 1});
    // W = mix K
    product<T>(n_, n_, K_, dwt_, 1, Cp_, kt_, Cp_, dmix_, Cp_, {.beta = 1});
    product<T>(K_, n_, n_, dwt_, Cp_, 1, mix_, Cp_, dkt_, Cp_, {.beta = 1});
    // mix from K K^T and beta
    Rule::mix_backward(Kernel(), n_, Cp_, kk_, beta_, inverse_, dmix_, dkk_, dbeta_, work_);
    transpose<T>(n_, n_, dkk_, Cp_, cc_, Cp_);
    for (std::int64_t i = 0; i < n_; ++i)
      for (std::int64_t s = 0; s < n_; ++s) cc_[i * Cp_ + s] += dkk_[i * Cp_ + s];
    product<T>(K_, n_, n_, kt_, Cp_, 1, cc_, Cp_, dkt_, Cp_, {.beta = 1});
    for (std::int64_t i = 0; i < n_; ++i)
      for (std::int64_t s = i + 1; s < padded(n_); ++s) dqk[i * Cp_ + s] = T(0);
  }
  // QK = lower(Q K^T)
  product<T>(K_, n_, n_, q_, 1, Kp_, dqk, Cp_, dkt_, Cp_, {.beta = 1});
  transpose<T>(n_, n_, dqk, Cp_, cc_, Cp_);
  product<T>(K_, n_, n_, kt_, Cp_, 1, cc_, Cp_, dqet_, Cp_, {.beta = 1});
}

// Sum of x * y over (rows, Vp) matrices with zero padding.
template <class Rule, class T>
double Heads<Rule, T>::inner(std::int64_t rows, const T* x, const T* y) {
  std::fill(products_, products_ + Vp_, T(0));
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < Vp_; ++j) products_[j] += x[i * Vp_ + j] * y[i * Vp_ + j];
  double sum = 0;
  for (std::int64_t j = 0; j < V_; ++j) sum += products_[j];
  return sum;
}

// transposed (K, Cp) -> rows of the tensor, or of the target, whose first rows are those of open tokens.
template <class Rule, class T>
void Heads<Rule, T>::store_keys(const Tensor& to, const T* transposed, T* target, bool add) {
  transpose<T>(K_, n_, transposed, Cp_, rows_, Kp_);
  if (!target) return store_tokens(to, group_, K_, rows_, Kp_);
  for (std::int64_t i = 0; i < n_; ++i) {
    T* out = target + (sequence_.open + first_ + i) * K_;
    const T* row = rows_ + i * Kp_;
    for (std::int64_t a = 0; a < K_; ++a) out[a] = add ? out[a] + row[a] : row[a];
  }
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
void Heads<Rule, T>::export_adjoints(const std::vector<Matrix<T>>& adjoints, FinalState& to) const {
  for (std::size_t i = 0; i < adjoints.size(); ++i) {
    to.slots[i].slot.log_decay[h_] = 0;
    export_matrix(adjoints[i].get(), to.slots[i].slot);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace loglinear
HWY_AFTER_NAMESPACE();

#endif
