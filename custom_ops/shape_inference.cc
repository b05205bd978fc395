#include "shape_inference.h"

#include <atomic>
#include <random>

#include "status.h"

namespace onnxlr {
namespace {

// ONNX Runtime writes an unknown dimension without a name as -1, and lets values with equal names
// share memory: each unknown dimension needs a name of its own. A model that ONNX Runtime saves
// keeps the names, so that those of two processes meet.
std::string fresh_name() {
  static const std::string prefix = [] {
    std::random_device random;
    return "onnxlr_unknown_" + std::to_string((uint64_t{random()} << 32) ^ random()) + "_";
  }();
  static std::atomic<uint64_t> count{0};
  return prefix + std::to_string(count.fetch_add(1));
}

const ort::OpAttribute* attribute(const ort::Api& api, const ort::ShapeInference* context,
                                  const char* name) {
  const ort::OpAttribute* found = nullptr;
  check(api, api.ShapeInferContext_GetAttribute(context, name, &found));
  return found;
}

}  // namespace

std::vector<Dim> inferred_input(const ort::Api& api, const ort::ShapeInference* context,
                                size_t index) {
  ort::TensorShape* info = nullptr;  // stays the context's
  check(api, api.ShapeInferContext_GetInputTypeShape(context, index, &info));
  size_t rank = 0;
  check(api, api.GetDimensionsCount(info, &rank));
  std::vector<int64_t> values(rank);
  std::vector<const char*> names(rank, "");
  check(api, api.GetDimensions(info, values.data(), rank));
  check(api, api.GetSymbolicDimensions(info, names.data(), rank));
  std::vector<Dim> shape;
  for (size_t i = 0; i < rank; ++i) {
    shape.push_back({values[i] < 0 ? -1 : values[i], names[i] == nullptr ? "" : names[i]});
  }
  return shape;
}

void set_inferred_output(const ort::Api& api, const ort::ShapeInference* context,
                         const std::vector<Dim>& shape) {
  std::vector<int64_t> values;
  std::vector<std::string> names;
  for (const Dim& dim : shape) {
    values.push_back(dim.value);
    names.push_back(dim.value >= 0 ? "" : dim.name.empty() ? fresh_name() : dim.name);
  }
  std::vector<const char*> pointers;
  for (const std::string& name : names) pointers.push_back(name.c_str());

  Owned<ort::TensorShape> info(api.ReleaseTensorTypeAndShapeInfo);
  check(api, api.CreateTensorTypeAndShapeInfo(info.out()));
  check(api, api.SetTensorElementType(info.get(), ort::kFloat));
  check(api, api.SetDimensions(info.get(), values.data(), values.size()));
  check(api, api.SetSymbolicDimensions(info.get(), pointers.data(), pointers.size()));
  check(api, api.ShapeInferContext_SetOutputTypeShape(context, 0, info.get()));
}

int64_t inferred_int(const ort::Api& api, const ort::ShapeInference* context, const char* name) {
  int64_t value = 0;
  size_t size = 0;
  check(api,
        api.ReadOpAttr(attribute(api, context, name), ort::kInt, &value, sizeof(value), &size));
  if (value < 1) throw Problem(std::string("attribute ") + name + " is less than 1");
  return value;
}

std::vector<int64_t> inferred_ints(const ort::Api& api, const ort::ShapeInference* context,
                                   const char* name) {
  const ort::OpAttribute* found = attribute(api, context, name);
  // Enough for a convolution in two dimensions: none of its lists is longer than four.
  std::vector<int64_t> values(16);
  size_t size = 0;
  check(api,
        api.ReadOpAttr(found, ort::kInts, values.data(), values.size() * sizeof(int64_t), &size));
  values.resize(size / sizeof(int64_t));
  return values;
}

}  // namespace onnxlr
