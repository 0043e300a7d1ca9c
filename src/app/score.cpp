#include "app/score.hpp"

#include <algorithm>
#include <cmath>

#include "base/error.hpp"

namespace loglinear::app {

void TaskReader::next(Batch& batch, std::vector<Answer>* answers, std::uint64_t end) {
  batch.clear();
  if (answers) answers->clear();
  for (; position_ < end; ++position_) {
    if (example_.tokens.empty()) {
      example_answers_.clear();
      task_.add_example(seed_, position_, example_, &example_answers_);
    }
    const std::int64_t begin = static_cast<std::int64_t>(batch.tokens.size());
    const std::int64_t length = static_cast<std::int64_t>(example_.tokens.size());
    if (begin > 0 && begin + length > batch_tokens_) return;
    batch.tokens.insert(batch.tokens.end(), example_.tokens.begin(), example_.tokens.end());
    batch.targets.insert(batch.targets.end(), example_.targets.begin(), example_.targets.end());
    batch.cu_seqlens.push_back(begin + length);
    batch.scored += example_.scored;
    if (answers)
      for (const Answer& a : example_answers_)
        answers->push_back({a.begin + begin, a.end + begin, a.evidence + begin, a.start + begin});
    example_.clear();
  }
}

Interval wilson(std::int64_t right, std::int64_t all) {
  if (all <= 0) return {};
  constexpr double kZ = 1.959963984540054;  // of 95 %
  const double n = static_cast<double>(all), p = static_cast<double>(right) / n, z2 = kZ * kZ;
  const double middle = (p + z2 / (2 * n)) / (1 + z2 / n);
  const double half = kZ / (1 + z2 / n) * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  // The ends are 0 and 1 exactly where all were wrong or right, not off by a rounding.
  return {right == 0 ? 0 : std::max(0.0, middle - half), right == all ? 1 : std::min(1.0, middle + half)};
}

void check_vocabulary(const nn::Model<float>& model, const Task& task) {
  if (model.config().vocab_size < task.vocab())
    fail_usage("score", "the model has a vocabulary of {}, the task {} one of {}", model.config().vocab_size,
               task.info().name, task.vocab());
}

TaskScore score_task(nn::Model<float>& model, const Task& task, const ScoreOptions& options) {
  check_vocabulary(model, task);
  TaskScore score;
  TaskReader reader(task, options.batch_tokens, options.seed);
  Batch batch;
  std::vector<Answer> answers;
  std::vector<std::int32_t> predicted;
  while (score.examples < options.examples) {
    if (options.interrupted && options.interrupted()) {
      score.interrupted = true;
      break;
    }
    reader.next(batch, &answers, static_cast<std::uint64_t>(options.examples));
    predicted.assign(batch.tokens.size(), -1);
    score.loss += model.predict(batch.tokens, batch.cu_seqlens, predicted, batch.targets);
    for (const Answer& answer : answers) {
      bool right = true;
      for (std::int64_t t = answer.begin; t < answer.end; ++t) right = right && predicted[t] == batch.targets[t];
      Tally& depth = score.depths[std::clamp(static_cast<int>(answer.depth() * kDepthBins), 0, kDepthBins - 1)];
      for (Tally* tally : {&score.all, &depth}) ++tally->answers, tally->right += right;
    }
    score.scored += batch.scored;
    score.examples = static_cast<std::int64_t>(reader.position());
    if (options.progress) options.progress(score.examples);
  }
  return score;
}

}  // namespace loglinear::app
