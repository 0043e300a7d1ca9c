#include <string>
#include <string_view>

#include "app/evaluation/report.hpp"
#include "app/page.hpp"

namespace loglinear::app {

std::string to_html(nlohmann::ordered_json evaluation, const ModelNote& model, const std::string& command) {
  static constexpr std::string_view kPage =
#include "app/evaluation/page.inc"
      ;
  evaluation["command"] = command;
  evaluation["model"] = {{"checkpoint", model.checkpoint},
                         {"family", model.family},
                         {"parameters", model.parameters},
                         {"trained_length", model.trained_length}};
  return fill_page(kPage, evaluation);
}

}  // namespace loglinear::app
