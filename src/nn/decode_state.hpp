#pragma once
// Behind DecodeState: one LayerState a layer.

#include "nn/mixer.hpp"

namespace loglinear::nn {

struct DecodeState::Impl {
  virtual ~Impl() = default;
  virtual std::unique_ptr<Impl> clone() const = 0;
  virtual std::size_t bytes() const = 0;
  virtual std::vector<StateTensor> save() const = 0;

  std::shared_ptr<const ModelConfig> config;  // of the model that made it
  std::int64_t position = 0;
};

template <class T>
struct DecodeStateOf final : DecodeState::Impl {
  std::vector<LayerState<T>> layers;

  std::unique_ptr<Impl> clone() const override { return std::make_unique<DecodeStateOf>(*this); }
  std::size_t bytes() const override;
  std::vector<StateTensor> save() const override;
  // Replaces position and layers (new ones, as Mixer::new_state gives them) by what save() gave. Throws Error.
  void load(const std::vector<StateTensor>& tensors);
};

extern template struct DecodeStateOf<float>;
extern template struct DecodeStateOf<double>;

}  // namespace loglinear::nn
