// The tensors of a run, with as few calls of ONNX Runtime as possible.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernel.h"
#include "ort_api.h"
#include "status.h"

namespace onnxlr {

constexpr size_t kMostDimensions = 32;

// The float input X.
struct InputTensor {
  InputTensor(const ort::Api& api, const ort::KernelContext* context) {
    const ort::Value* value = nullptr;
    check(api, api.KernelContext_GetInput(context, 0, &value));
    if (value == nullptr) throw Problem("input X is missing; expected a tensor");
    Owned<ort::TensorShape> info(api.ReleaseTensorTypeAndShapeInfo);
    check(api, api.GetTensorTypeAndShape(value, info.out()));
    check(api, api.GetDimensionsCount(info.get(), &rank));
    if (rank > kMostDimensions) {
      throw Problem("input X has " + std::to_string(rank) + " dimensions; expected at most " +
                    std::to_string(kMostDimensions));
    }
    check(api, api.GetDimensions(info.get(), shape, rank));
    void* pointer = nullptr;
    check(api, api.GetTensorMutableData(const_cast<ort::Value*>(value), &pointer));
    data = static_cast<const float*>(pointer);
  }

  std::vector<int64_t> dims() const { return {shape, shape + rank}; }

  size_t rank = 0;
  int64_t shape[kMostDimensions];
  const float* data = nullptr;
};

inline float* output_tensor(const ort::Api& api, ort::KernelContext* context, const int64_t* shape,
                            size_t rank) {
  ort::Value* value = nullptr;
  check(api, api.KernelContext_GetOutput(context, 0, shape, rank, &value));
  if (value == nullptr) throw Problem("output Y is missing; expected a tensor");
  void* pointer = nullptr;
  check(api, api.GetTensorMutableData(value, &pointer));
  return static_cast<float*>(pointer);
}

inline const Kernels* kernels_to_use() {
  const char* problem = "no kernels";
  const Kernels* kernels = choose_kernels(&problem);
  if (kernels == nullptr) throw Problem(problem);
  return kernels;
}

}  // namespace onnxlr
