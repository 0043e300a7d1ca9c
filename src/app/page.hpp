#pragma once
// Pages that hold everything they need: HTML with a place for data.

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace loglinear::app {

// The page with `data` in the place that is called PAGE_DATA, which stands within a script of type application/json.
// Bytes that are not UTF-8 become U+FFFD.
std::string fill_page(std::string_view page, const nlohmann::ordered_json& data);

}  // namespace loglinear::app
