#include "app/page.hpp"

namespace loglinear::app {

std::string fill_page(std::string_view page, const nlohmann::ordered_json& data) {
  // Within a script nothing may look like its end: JSON can spell every '<' otherwise.
  std::string json;
  for (const char c : data.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace))
    if (c == '<')
      json += "\\u003c";
    else
      json += c;
  constexpr std::string_view kPlace = "PAGE_DATA";
  std::string filled(page);
  return filled.replace(filled.find(kPlace), kPlace.size(), json);
}

}  // namespace loglinear::app
