#include <string>
#include <string_view>

#include "app/compare/report.hpp"
#include "app/page.hpp"

namespace loglinear::app::compare {

std::string to_html(const nlohmann::ordered_json& comparison) {
  static constexpr std::string_view kPage =
#include "app/compare/page.inc"
      ;
  return fill_page(kPage, comparison);
}

}  // namespace loglinear::app::compare
