#pragma once

#include "kernels/kernel.h"
#include "ort_api.h"
#include "parallel.h"
#include "weights.h"

namespace onnxlr {

// Y = bias + X * ternary matrices; docs/operators.md.
class TernaryMatMul {
 public:
  static constexpr const char* kName = "TernaryMatMul";

  TernaryMatMul(const ort::Api& api, const ort::KernelInfo* info);
  void compute(ort::KernelContext* context) const;
  static void infer_shape(const ort::Api& api, ort::ShapeInference* context);

 private:
  const ort::Api& api_;
  Memory memory_;
  Format format_;
  PreparedWeights weights_;
  const Kernels* kernels_;
};

}  // namespace onnxlr
