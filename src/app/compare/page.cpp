#include <string>
#include <string_view>

#include "app/compare/report.hpp"

namespace loglinear::app::compare {
namespace {

constexpr std::string_view kPage =
#include "app/compare/page.inc"
    ;
constexpr std::string_view kPlace = "COMPARISON_DATA";

}  // namespace

std::string to_html(const nlohmann::ordered_json& comparison) {
  // Within a script nothing may look like its end: JSON can spell every '<' otherwise.
  std::string data;
  for (const char c : comparison.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace))
    if (c == '<')
      data += "\\u003c";
    else
      data += c;
  std::string page(kPage);
  return page.replace(page.find(kPlace), kPlace.size(), data);
}

}  // namespace loglinear::app::compare
