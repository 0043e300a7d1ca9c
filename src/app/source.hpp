#pragma once
// What a training reads and what it is measured by: text, or the examples of a task.

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>

#include "app/checkpoint.hpp"
#include "app/data.hpp"
#include "app/train.hpp"
#include "nn/model.hpp"

namespace loglinear::app {

// What a validation found; NaN where it is not finite.
struct Validation {
  double loss = std::numeric_limits<double>::quiet_NaN();   // nats of a scored token
  double value = std::numeric_limits<double>::quiet_NaN();  // bits per byte of text, accuracy of a task
  nlohmann::json log = nlohmann::json::object();            // more for the line in the log
};

// Batches without end, a pure function of the settings and the position, and held-out data.
class Source {
 public:
  virtual ~Source() = default;

  virtual std::string summary() const = 0;  // a line for the console
  // Of the text that is read, and of that which is held out.
  virtual std::uint64_t hash() const = 0;
  virtual std::uint64_t validation_hash() const = 0;

  virtual void seek(DataPosition position) = 0;  // once, before the first batch
  virtual void next(Batch& batch) = 0;
  virtual DataPosition position() const = 0;
  virtual std::int64_t batches_in_epoch(std::int64_t epoch) const = 0;

  // False when there is nothing to validate on.
  virtual bool validates() const = 0;
  // progress: called now and then with the part that is done.
  virtual Validation validate(nn::Model<float>& model, const std::function<void(double part)>& progress) const = 0;
  virtual bool better(double a, double b) const = 0;  // of two values, neither of which is NaN

  virtual const char* key() const = 0;                                // what a value is called in files
  virtual void describe(double loss, nlohmann::json& row) const = 0;  // adds what else is said of a mean loss
  // For the console.
  virtual std::string line(double loss) const = 0;
  virtual std::string line(const Validation& validation) const = 0;
  virtual std::string value(double value) const = 0;
};

// The text of data (at most data_bytes of it, val_fraction of which is held out unless there is val_data) and that of
// val_data. Warns of files that are left out.
struct TrainingText {
  Text train, held_out;
};
TrainingText read_training_text(const TrainSettings& settings, const Warn& warn);

// What Task is to make examples from: null, its own text, when this one is empty.
const Text* haystack(const Text& text);

// Reads the text that complete settings name, all of it. Throws Error when it is missing, or too short for the
// settings.
std::unique_ptr<Source> open_source(const TrainSettings& settings, const Warn& warn);

}  // namespace loglinear::app
