#include "app/source.hpp"

#include <cmath>
#include <numbers>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "app/evaluate.hpp"
#include "app/progress.hpp"
#include "app/score.hpp"
#include "base/error.hpp"
#include "io/text.hpp"

namespace loglinear::app {
namespace {

std::vector<std::string> read_documents(const std::vector<std::string>& paths, std::int64_t limit, const Warn& warn) {
  io::Corpus corpus =
      io::read_text(std::vector<io::Path>(paths.begin(), paths.end()), static_cast<std::uint64_t>(limit));
  if (corpus.binary_files > 0 && warn)
    warn(fmt::format("{} binary files (with zero bytes) are left out", corpus.binary_files));
  return std::move(corpus.documents);
}

std::string bytes_text(const Text& text) { return format_count(static_cast<double>(text.bytes())) + " bytes"; }

class TextSource : public Source {
 public:
  TextSource(const TrainSettings& s, const Warn& warn) : s_(s) {
    auto [text, held_out] = read_training_text(s, warn);
    text_ = std::move(text), held_out_ = std::move(held_out);
    if (text_.bytes() < s.seq_len)
      fail("train", "the training text has {} bytes, less than one sequence of {} (--seq-len)", text_.bytes(),
           s.seq_len);
    scored_ = beginning_of(held_out_, s.val_bytes);
    seek({});
  }

  std::string summary() const override {
    return fmt::format("text      {} in {} documents to train on, {} to validate on", bytes_text(text_),
                       text_.documents(), bytes_text(held_out_));
  }
  std::uint64_t hash() const override { return text_.hash(); }
  std::uint64_t validation_hash() const override { return held_out_.hash(); }

  void seek(DataPosition position) override {
    const Packing packing = s_.packing == "blocks" ? Packing::blocks : Packing::documents;
    reader_.emplace(text_, cut_pieces(text_, packing, s_.seq_len), s_.batch_tokens, static_cast<std::uint64_t>(s_.seed),
                    position);
  }
  void next(Batch& batch) override { reader_->next(batch); }
  DataPosition position() const override { return reader_->position(); }
  std::int64_t batches_in_epoch(std::int64_t epoch) const override { return reader_->batches_in_epoch(epoch); }

  bool validates() const override { return scored_.bytes() > 0; }
  Validation validate(nn::Model<float>& model, const std::function<void(double)>& progress) const override {
    EvaluationOptions options;
    options.seq_len = s_.seq_len;
    options.batch_tokens = s_.batch_tokens;
    options.progress = [&](std::int64_t done, std::int64_t all) {
      progress(static_cast<double>(done) / static_cast<double>(all));
    };
    Validation result;
    try {
      result.value = evaluate(model, scored_, options).bits_per_byte();
    } catch (const Error&) {  // not finite
    }
    result.loss = result.value * std::numbers::ln2;
    result.log["bytes"] = scored_.bytes();
    return result;
  }
  bool better(double a, double b) const override { return a < b; }

  const char* key() const override { return "bits_per_byte"; }
  void describe(double loss, nlohmann::json& row) const override {
    const double bits = loss / std::numbers::ln2;
    row["bits_per_byte"] = std::isfinite(bits) ? nlohmann::json(bits) : nlohmann::json();
  }
  std::string line(double loss) const override {
    return fmt::format("loss {:7.4f}  bits/byte {:7.4f}", loss, loss / std::numbers::ln2);
  }
  std::string line(const Validation& v) const override {
    return fmt::format("validation    bits/byte {:7.4f}", v.value);
  }
  std::string value(double value) const override { return fmt::format("{:.4f} bits/byte", value); }

 private:
  TrainSettings s_;
  Text text_, held_out_;
  Text scored_;  // the part of held_out_ that a validation reads
  std::optional<BatchReader> reader_;
};

class TaskSource : public Source {
 public:
  TaskSource(const TrainSettings& s, const Warn& warn) : s_(s) {
    if (!s.data.empty()) {
      auto [text, held_out] = read_training_text(s, warn);
      text_ = std::move(text), held_out_ = std::move(held_out);
      if (text_.bytes() == 0) fail("train", "--data: there is no text");
    }
    task_.emplace(task_of(s), haystack(text_));
    try {
      if (s.val_examples > 0) scored_.emplace(task_of(s), haystack(held_out_.bytes() > 0 ? held_out_ : text_));
    } catch (const Error&) {  // the same task was made of text_: this text is too short
      fail("train",
           "the text that is held out has {} bytes, too few for an example of {} tokens: give a larger --val-fraction, "
           "or --val-data",
           held_out_.bytes(), s.seq_len);
    }
    seek({});
  }

  std::string summary() const override {
    const TaskSettings& t = task_->settings();
    return fmt::format(
        "task      {}, examples of {} tokens, vocabulary {}{}, {} held out to validate on", t.name,
        t.min_length == t.length ? fmt::format("{}", t.length) : fmt::format("{} to {}", t.min_length, t.length),
        t.vocab, text_.bytes() > 0 ? ", made from " + bytes_text(text_) : "",
        held_out_.bytes() > 0 ? fmt::format("{} made from {}", s_.val_examples, bytes_text(held_out_))
                              : fmt::format("{}", s_.val_examples));
  }
  std::uint64_t hash() const override { return text_.bytes() > 0 ? text_.hash() : 0; }
  std::uint64_t validation_hash() const override { return held_out_.bytes() > 0 ? held_out_.hash() : hash(); }

  // The position counts examples, which have no end: all are of epoch 0.
  void seek(DataPosition position) override {
    reader_.emplace(*task_, s_.batch_tokens, static_cast<std::uint64_t>(s_.seed),
                    static_cast<std::uint64_t>(position.piece));
  }
  void next(Batch& batch) override { reader_->next(batch); }
  DataPosition position() const override { return {0, static_cast<std::int64_t>(reader_->position())}; }
  std::int64_t batches_in_epoch(std::int64_t) const override { return 0; }

  bool validates() const override { return s_.val_examples > 0; }
  Validation validate(nn::Model<float>& model, const std::function<void(double)>& progress) const override {
    ScoreOptions options;
    options.examples = s_.val_examples;
    options.batch_tokens = s_.batch_tokens;
    options.progress = [&](std::int64_t done) {
      progress(static_cast<double>(done) / static_cast<double>(s_.val_examples));
    };
    const TaskScore score = score_task(model, *scored_, options);
    Validation result{score.mean_loss(), score.all.accuracy()};
    result.log = {{"answers", score.all.answers}, {"right", score.all.right}, {"examples", score.examples}};
    return result;
  }
  bool better(double a, double b) const override { return a > b; }

  const char* key() const override { return "accuracy"; }
  void describe(double, nlohmann::json&) const override {}
  std::string line(double loss) const override { return fmt::format("loss {:7.4f}", loss); }
  std::string line(const Validation& v) const override {
    return fmt::format("validation accuracy {:.4f}  loss {:.4f}", v.value, v.loss);
  }
  std::string value(double value) const override { return fmt::format("accuracy {:.4f}", value); }

 private:
  TrainSettings s_;
  Text text_, held_out_;        // empty when the examples are made without
  std::optional<Task> task_;    // of text_
  std::optional<Task> scored_;  // of held_out_; of text_ when nothing is held out
  std::optional<TaskReader> reader_;
};

}  // namespace

const Text* haystack(const Text& text) { return text.bytes() > 0 ? &text : nullptr; }

TrainingText read_training_text(const TrainSettings& s, const Warn& warn) {
  std::vector<std::string> documents = read_documents(s.data, s.data_bytes, warn);
  if (!s.val_data.empty()) {
    Text held_out(read_documents(s.val_data, 0, warn));
    return {Text(documents), std::move(held_out)};
  }
  if (!(s.val_fraction > 0)) return {Text(documents), {}};
  const io::TextSplit split = io::split_text(std::move(documents), s.val_fraction);
  return {Text(split.train), Text(split.held_out)};
}

std::unique_ptr<Source> open_source(const TrainSettings& settings, const Warn& warn) {
  if (settings.task.name.empty()) return std::make_unique<TextSource>(settings, warn);
  return std::make_unique<TaskSource>(settings, warn);
}

}  // namespace loglinear::app
