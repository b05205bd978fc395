// Makes the table of functions that ONNX Runtime wants of an operator from a kernel class.
//
// A kernel class has
//   static constexpr const char* kName;
//   Kernel(const ort::Api&, const ort::KernelInfo*);                 at session creation, throws
//   void compute(ort::KernelContext*) const;                         may run in several threads
//   static void infer_shape(const ort::Api&, ort::ShapeInference*);
// and the five inputs of every ternary operator: X, codes, scales, input_scale, bias.
#pragma once

#include <string>

#include "attributes.h"
#include "ort_api.h"
#include "status.h"

namespace onnxlr {

template <typename Kernel>
class Op : public ort::CustomOp {
 public:
  explicit Op(const ort::Api& api) : ort::CustomOp{}, api_(api) {
    version = ort::kApiVersion;
    GetName = [](const CustomOp*) { return Kernel::kName; };
    GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
    GetInputType = [](const CustomOp*, size_t i) { return i == 1 ? ort::kUint8 : ort::kFloat; };
    GetInputTypeCount = [](const CustomOp*) -> size_t { return 5; };
    GetOutputType = [](const CustomOp*, size_t) { return ort::kFloat; };
    GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
    GetInputCharacteristic = [](const CustomOp*, size_t) { return ort::kRequired; };
    GetOutputCharacteristic = [](const CustomOp*, size_t) { return ort::kRequired; };
    GetInputMemoryType = [](const CustomOp*, size_t) { return ort::kDefaultMemory; };
    GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
    GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
    GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
    GetStartVersion = [](const CustomOp*) { return 1; };
    GetEndVersion = [](const CustomOp*) { return 1; };
    CreateKernelV2 = create;
    KernelComputeV2 = compute;
    KernelDestroy = [](void* bound) { delete static_cast<Bound*>(bound); };
    InferOutputShapeFn = infer;
  }

 private:
  struct Bound {  // a kernel and what it takes to report its problems
    Bound(const ort::Api& api, const ort::KernelInfo* info, std::string name)
        : api(api), where(std::move(name)), kernel(api, info) {}
    const ort::Api& api;
    std::string where;
    Kernel kernel;
  };

  static ort::Status* create(const CustomOp*, const ort::Api* api, const ort::KernelInfo* info,
                             void** bound) {
    *bound = nullptr;
    ort::Status* unnamed = nullptr;
    std::string where;
    unnamed = guarded(*api, Kernel::kName, [&] { where = place_of(*api, info, Kernel::kName); });
    if (unnamed != nullptr) return unnamed;
    return guarded(*api, where.c_str(), [&] { *bound = new Bound(*api, info, where); });
  }

  static ort::Status* compute(void* bound, ort::KernelContext* context) {
    const Bound& self = *static_cast<const Bound*>(bound);
    return guarded(self.api, self.where.c_str(), [&] { self.kernel.compute(context); });
  }

  static ort::Status* infer(const CustomOp* op, ort::ShapeInference* context) {
    const ort::Api& api = static_cast<const Op*>(op)->api_;
    return guarded(api, Kernel::kName, [&] { Kernel::infer_shape(api, context); });
  }

  const ort::Api& api_;
};

}  // namespace onnxlr
