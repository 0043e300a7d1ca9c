#pragma once
// The list of rules (rules.def) as an enumeration.

#include <optional>
#include <string_view>

namespace loglinear {

enum class Rule {
#define LOGLINEAR_RULE(name, Type, has_beta) name,
#include "loglinear/rules.def"
#undef LOGLINEAR_RULE
};

inline constexpr Rule kRules[] = {
#define LOGLINEAR_RULE(name, Type, has_beta) Rule::name,
#include "loglinear/rules.def"
#undef LOGLINEAR_RULE
};

inline constexpr const char* name_of(Rule rule) {
  switch (rule) {
#define LOGLINEAR_RULE(name, Type, has_beta) \
  case Rule::name:                           \
    return #name;
#include "loglinear/rules.def"
#undef LOGLINEAR_RULE
  }
  return "?";
}

inline constexpr bool has_beta(Rule rule) {
  switch (rule) {
#define LOGLINEAR_RULE(name, Type, has_beta) \
  case Rule::name:                           \
    return has_beta;
#include "loglinear/rules.def"
#undef LOGLINEAR_RULE
  }
  return false;
}

inline std::optional<Rule> rule_from_name(std::string_view name) {
  for (Rule rule : kRules)
    if (name == name_of(rule)) return rule;
  return std::nullopt;
}

}  // namespace loglinear
