// The chunk kernel of log-linear attention, forward and backward, and the step kernel: docs/algorithm.md, sections 5
// and 6.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/log_linear/cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "base/matrix-inl.h"
#include "ops/log_linear/backward-inl.h"
#include "ops/log_linear/chunk-inl.h"
#include "ops/log_linear/step-inl.h"

HWY_BEFORE_NAMESPACE();
namespace loglinear::log_linear::cpu {
namespace HWY_NAMESPACE {

using loglinear::HWY_NAMESPACE::Heads;

// Calls body with the heads in the type of the states.
template <class Args, class Body>
void with_heads(Rule rule, const Args& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                std::int64_t last, Columns columns, const Body& body) {
  with_rule(rule, [&]<class Rule>() {
    if (plan.sizes.state_dtype == DType::f64)
      body(Heads<Rule, double>(args, plan, sequence, first, last, columns));
    else
      body(Heads<Rule, float>(args, plan, sequence, first, last, columns));
  });
}

void forward(const ForwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first, std::int64_t last,
             Columns columns, FinalState* final_state) {
  with_heads(args.rule, args, plan, sequence, first, last, columns,
             [&](auto&& heads) { heads.forward(args.out, final_state); });
}

void backward(const BackwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
              std::int64_t last, const State* dfinal, const BackwardTarget& target, FinalState* dinitial) {
  with_heads(args.rule, args, plan, sequence, first, last, {0, plan.sizes.V},
             [&](auto&& heads) { heads.backward(args, dfinal, target, dinitial); });
}

void states_at(const BackwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
               std::int64_t last, Columns columns, std::vector<Cut>& cuts) {
  with_heads(args.rule, args, plan, sequence, first, last, columns, [&](auto&& heads) { heads.states_at(cuts); });
}

void dstates_at(const BackwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                std::int64_t last, Columns columns, const State* dfinal, std::vector<Cut>& cuts) {
  with_heads(args.rule, args, plan, sequence, first, last, columns,
             [&](auto&& heads) { heads.dstates_at(args.dout, dfinal, cuts); });
}

void fold(Rule rule, const Plan& plan, const Sequence& sequence, std::int64_t first, std::int64_t last,
          FinalState& final_state) {
  const ForwardArgs nothing;  // every row is in the state
  with_heads(rule, nothing, plan, sequence, first, last, {0, plan.sizes.V},
             [&](auto&& heads) { heads.fold(final_state); });
}

void step(const StepArgs& args, const Plan& plan, std::int64_t b, State::Open& open, std::int64_t first,
          std::int64_t last) {
  with_rule(args.rule, [&]<class Rule>() {
    if (plan.sizes.state_dtype == DType::f64)
      loglinear::HWY_NAMESPACE::step_heads<Rule, double>(args, plan, b, open, first, last);
    else
      loglinear::HWY_NAMESPACE::step_heads<Rule, float>(args, plan, b, open, first, last);
  });
}

const char* instruction_set() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace loglinear::log_linear::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace loglinear::log_linear::cpu {
namespace {

void trim_scratch() {
  Pool<float>::trim(kKeepBytes);
  Pool<double>::trim(kKeepBytes);
  Pool<std::uint16_t>::trim(kKeepBytes);
}

}  // namespace

HWY_EXPORT(forward);
HWY_EXPORT(backward);
HWY_EXPORT(states_at);
HWY_EXPORT(dstates_at);
HWY_EXPORT(fold);
HWY_EXPORT(step);
HWY_EXPORT(instruction_set);

void forward_heads(const ForwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                   std::int64_t last, Columns columns, FinalState* final_state) {
  HWY_DYNAMIC_DISPATCH(forward)(args, plan, sequence, first, last, columns, final_state);
  trim_scratch();
}

void backward_heads(const BackwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                    std::int64_t last, const State* dfinal, const BackwardTarget& target, FinalState* dinitial) {
  HWY_DYNAMIC_DISPATCH(backward)(args, plan, sequence, first, last, dfinal, target, dinitial);
  trim_scratch();
}

void states_at_cuts(const BackwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                    std::int64_t last, Columns columns, std::vector<Cut>& cuts) {
  HWY_DYNAMIC_DISPATCH(states_at)(args, plan, sequence, first, last, columns, cuts);
  trim_scratch();
}

void dstates_at_cuts(const BackwardArgs& args, const Plan& plan, const Sequence& sequence, std::int64_t first,
                     std::int64_t last, Columns columns, const State* dfinal, std::vector<Cut>& cuts) {
  HWY_DYNAMIC_DISPATCH(dstates_at)(args, plan, sequence, first, last, columns, dfinal, cuts);
  trim_scratch();
}

void fold_heads(Rule rule, const Plan& plan, const Sequence& sequence, std::int64_t first, std::int64_t last,
                FinalState& final_state) {
  HWY_DYNAMIC_DISPATCH(fold)(rule, plan, sequence, first, last, final_state);
}

void step_heads(const StepArgs& args, const Plan& plan, std::int64_t b, State::Open& open, std::int64_t first,
                std::int64_t last) {
  HWY_DYNAMIC_DISPATCH(step)(args, plan, b, open, first, last);
}

const char* instruction_set() { return HWY_DYNAMIC_DISPATCH(instruction_set)(); }

}  // namespace loglinear::log_linear::cpu
#endif
