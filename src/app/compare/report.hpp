#pragma once
// What `loglinear compare` found, for programs, terminals and browsers.

#include <string>

#include <nlohmann/json.hpp>

#include "app/compare/quality.hpp"
#include "app/compare/run.hpp"

namespace loglinear::app::compare {

// {machine, command, settings, mechanisms, rows, summary}. Each row has the keys mechanism T forward_ms
// forward_backward_ms step_ms peak_bytes state_bytes time_exponent error extrapolated and more; null where there is no
// number. `command` is what the user typed.
nlohmann::ordered_json to_json(const Outcome& outcome, const Settings& settings, const std::string& command);

// A table for each length, the best of a column marked, and one of exponents and crossovers. Lines end with '\n'.
std::string to_text(const Outcome& outcome, const Settings& settings);

// What `--quality` adds: the object of the key "quality" above, whose rows have the keys mechanism parameters
// sees_future, recall_accuracy and bits_per_byte (means), each of these two with _spread and _values; and a table.
nlohmann::ordered_json quality_json(const QualityResult& quality);
std::string quality_text(const QualityResult& quality);

// A page that holds the JSON above and draws it (page.html): nothing is loaded from anywhere.
std::string to_html(const nlohmann::ordered_json& comparison);

// The list of mechanisms for a terminal.
std::string list_text();

}  // namespace loglinear::app::compare
