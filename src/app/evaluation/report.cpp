#include "app/evaluation/report.hpp"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace loglinear::app {
namespace {

using nlohmann::ordered_json;

ordered_json number_or_null(double x) { return std::isfinite(x) ? ordered_json(x) : ordered_json(); }

std::string accuracy_text(const Tally& tally) {
  return tally.answers == 0 ? "-" : fmt::format("{:.3f}", tally.accuracy());
}

double bin_edge(int bin) { return static_cast<double>(bin) / kDepthBins; }

}  // namespace

TaskEvaluation evaluate_task(nn::Model<float>& model, const TaskSettings& settings, const Text* text,
                             const TaskEvaluationOptions& options) {
  std::vector<Task> tasks;
  for (const std::int64_t items : options.items)
    for (const std::int64_t length : options.lengths) {
      TaskSettings row = settings;
      row.items = items;
      row.length = length;
      check_vocabulary(model, tasks.emplace_back(row, text));
    }
  TaskEvaluation result{settings.name, options.score.examples, {}, static_cast<std::int64_t>(options.lengths.size())};
  for (const Task& task : tasks) {
    ScoreOptions score = options.score;
    score.progress = [&](std::int64_t done) {
      if (options.progress)
        options.progress(task.settings(), static_cast<std::int64_t>(result.rows.size()),
                         static_cast<std::int64_t>(tasks.size()), done);
    };
    score.progress(0);
    result.rows.push_back({task.settings(), task.chance(), score_task(model, task, score)});
  }
  return result;
}

ordered_json to_json(const TaskEvaluation& evaluation) {
  ordered_json cells = ordered_json::array(), totals = ordered_json::array();
  for (const TaskRow& row : evaluation.rows) {
    for (int bin = 0; bin < kDepthBins; ++bin) {
      const Tally& tally = row.score.depths[bin];
      cells.push_back({{"length", row.task.length},
                       {"items", row.task.items},
                       {"depth_first", bin_edge(bin)},
                       {"depth_last", bin_edge(bin + 1)},
                       {"answers", tally.answers},
                       {"right", tally.right},
                       {"accuracy", number_or_null(tally.accuracy())}});
    }
    const Tally& all = row.score.all;
    totals.push_back({{"length", row.task.length},
                      {"items", row.task.items},
                      {"answers", all.answers},
                      {"right", all.right},
                      {"accuracy", number_or_null(all.accuracy())},
                      {"accuracy_low", all.interval().low},
                      {"accuracy_high", all.interval().high},
                      {"loss", number_or_null(row.score.mean_loss())},
                      {"chance", number_or_null(row.chance)}});
  }
  return {{"task", evaluation.task}, {"examples", evaluation.examples}, {"cells", cells}, {"totals", totals}};
}

std::string to_text(const TaskEvaluation& evaluation) {
  const bool items = std::any_of(evaluation.rows.begin(), evaluation.rows.end(),
                                 [](const TaskRow& row) { return row.task.items > 0; });
  std::string head = "  length" + std::string(items ? "   items" : "");
  for (int bin = 0; bin < kDepthBins; ++bin) head += fmt::format("{:>7.1f}", bin_edge(bin));
  head += fmt::format("{:>9}  {:>15}{:>9}{:>10}{:>10}\n", "all", "95 % interval", "answers", "guessing", "loss");
  std::string out = fmt::format(
      "task {}, {} examples a row: accuracy by length and by depth of what is asked for,\nfrom 0 (beginning) to 1 "
      "(just before the question)\n",
      evaluation.task, evaluation.examples);
  for (std::size_t i = 0; i < evaluation.rows.size(); ++i) {
    const TaskRow& row = evaluation.rows[i];
    if (i % static_cast<std::size_t>(evaluation.lengths) == 0) out += "\n" + head;
    out += fmt::format("{:>8}", row.task.length) + (items ? fmt::format("{:>8}", row.task.items) : "");
    for (const Tally& tally : row.score.depths) out += fmt::format("{:>7}", accuracy_text(tally));
    const Interval interval = row.score.all.interval();
    out += fmt::format("{:>9}  {:>15}{:>9}{:>10.2g}{:>10.4f}\n", accuracy_text(row.score.all),
                       fmt::format("{:.3f} - {:.3f}", interval.low, interval.high), row.score.all.answers, row.chance,
                       row.score.mean_loss());
  }
  return out;
}

ordered_json to_json(const Evaluation& evaluation, bool cut) {
  ordered_json positions = ordered_json::array();
  for (const EvaluationBin& bin : evaluation.bins)
    positions.push_back({{"first", bin.first},
                         {"last", bin.last},
                         {"bytes", bin.bytes},
                         {"bits_per_byte", bin.bits / static_cast<double>(bin.bytes)}});
  return {{"bytes", evaluation.bytes},
          {"documents", evaluation.documents},
          {"sequences", evaluation.sequences},
          {"places", evaluation.places},
          {"bits", evaluation.bits},
          {"bits_per_byte", evaluation.bits_per_byte()},
          {"perplexity", evaluation.perplexity()},
          {"cut", cut},
          {"positions", positions}};
}

std::string to_text(const Evaluation& evaluation, bool cut) {
  const std::string places =
      evaluation.places > 1 ? fmt::format(", each at {} places of a sequence,", evaluation.places) : "";
  std::string out =
      fmt::format("{} bytes{} in {} document{}{}\nbits per byte  {:.4f}\nperplexity     {:.4f}\n\n{:>24}  {:>10}  {}\n",
                  evaluation.bytes / evaluation.places, places, evaluation.documents,
                  evaluation.documents == 1 ? "" : "s", cut ? " (cut by --max-bytes)" : "", evaluation.bits_per_byte(),
                  evaluation.perplexity(), "position", "bytes", "bits/byte");
  for (const EvaluationBin& bin : evaluation.bins)
    out +=
        fmt::format("{:>24}  {:>10}  {:9.4f}\n",
                    bin.first == bin.last ? fmt::format("{}", bin.first) : fmt::format("{} - {}", bin.first, bin.last),
                    bin.bytes, bin.bits / static_cast<double>(bin.bytes));
  return out;
}

}  // namespace loglinear::app
