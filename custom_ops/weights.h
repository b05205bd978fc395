// Checks the constant inputs of a node and brings them into the order that kernels read.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "attributes.h"
#include "kernels/kernel.h"
#include "ort_api.h"

namespace onnxlr {

constexpr size_t kAlignment = 64;

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }
};

// `count` entries at a multiple of 64 bytes, not initialised.
template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(kAlignment)))) {}
  T* get() const { return data_.get(); }

 private:
  std::unique_ptr<T, AlignedDelete> data_;
};

inline int64_t divide_up(int64_t a, int64_t b) { return a / b + (a % b != 0); }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Where the packed matrices stand among the inputs of a node.
struct WeightsShape {
  Format format;
  int64_t channel_groups;  // groups of a convolution's channels, each with a matrix of its own
  bool has_group_axis;     // codes are (terms, group, panels, blocks, 64)
  int64_t input_scales;    // entries of input_scale
};

// The matrices of a node, one for each group of channels. Holds what is not in ONNX Runtime's own
// tensors, so it must not outlive the session.
class PreparedWeights {
 public:
  // Throws Problem for an input that is not constant, has another shape or holds what it must not.
  PreparedWeights(const ort::Api& api, const ort::KernelInfo* info, const WeightsShape& shape);

  const Weights& matrix(int64_t channel_group = 0) const {
    return matrices_[static_cast<size_t>(channel_group)];
  }
  // Null where all are one.
  const float* input_scale() const { return input_scale_.empty() ? nullptr : input_scale_.data(); }

 private:
  AlignedArray<uint8_t> codes_;
  AlignedArray<float> scales_;
  AlignedArray<float> bias_;
  std::vector<float> input_scale_;
  std::vector<Weights> matrices_;
};

}  // namespace onnxlr
