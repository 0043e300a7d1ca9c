#pragma once
// Every rule of rules.def. A rule says how one token changes a state, apart from the decay exp(g), which all rules
// share:
//
//     S <- exp(g_t) erase_t(S),  then the token writes w_t v_t^T
//
// For the definition (any scalar type): erase, write and their adjoints. For the chunk kernel: the matrix `mix` below,
// which is all that the hierarchy needs to know about a chunk (docs/algorithm.md, section 5.3):
//
//     mix (C, C) lower triangular: the chunk's tokens together write K^T (mix V) and erase S <- S - K^T (mix K S)
//
// with kErases = false where mix is the identity and nothing is erased.

#include <rules/files.hpp>  // the file of every rule in rules.def

#include "loglinear/rule.hpp"

namespace loglinear {

// Calls body.operator()<Type>() with the struct of the rule.
template <class Body>
decltype(auto) with_rule(Rule rule, Body&& body) {
  switch (rule) {
#define LOGLINEAR_RULE(name, Type, has_beta) \
  case Rule::name:                           \
    return body.template operator()<rules::Type>();
#include "loglinear/rules.def"
#undef LOGLINEAR_RULE
  }
  __builtin_unreachable();
}

// Whether a token of this rule changes what older tokens wrote, apart from the decay.
inline bool erases(Rule rule) {
  return with_rule(rule, []<class R>() { return R::kErases; });
}

}  // namespace loglinear
