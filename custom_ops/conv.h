#pragma once

#include "kernels/kernel.h"
#include "ort_api.h"
#include "parallel.h"
#include "patches.h"
#include "weights.h"

namespace onnxlr {

// What a convolution's attributes say besides the format.
struct Convolution {
  Window window;
  int64_t channels, groups;  // groups of channels

  int64_t group_channels() const { return channels / groups; }
};

// TernaryMatMul on the windows of the padded input, for each group of channels; docs/operators.md.
class TernaryConv {
 public:
  static constexpr const char* kName = "TernaryConv";

  TernaryConv(const ort::Api& api, const ort::KernelInfo* info);
  void compute(ort::KernelContext* context) const;
  static void infer_shape(const ort::Api& api, ort::ShapeInference* context);

 private:
  const ort::Api& api_;
  Memory memory_;
  Format format_;
  Convolution convolution_;
  PreparedWeights weights_;
  const Kernels* kernels_;
};

}  // namespace onnxlr
