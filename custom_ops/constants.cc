#include "constants.h"

#include <cmath>
#include <cstring>

#include "status.h"

namespace onnxlr {

const char* name_of(Input input) {
  static const char* const kNames[] = {"X", "codes", "scales", "input_scale", "bias"};
  return kNames[input];
}

std::string to_string(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

std::vector<int64_t> shape_of(const ort::Api& api, const ort::Value* value) {
  Owned<ort::TensorShape> info(api.ReleaseTensorTypeAndShapeInfo);
  check(api, api.GetTensorTypeAndShape(value, info.out()));
  size_t rank = 0;
  check(api, api.GetDimensionsCount(info.get(), &rank));
  std::vector<int64_t> shape(rank);
  check(api, api.GetDimensions(info.get(), shape.data(), rank));
  return shape;
}

const void* constant_input(const ort::Api& api, const ort::KernelInfo* info, Input input,
                           const std::vector<int64_t>& expected) {
  const std::string what = std::string("input ") + name_of(input);
  int is_constant = 0;
  const ort::Value* value = nullptr;
  check(api, api.KernelInfoGetConstantInput_tensor(info, input, &is_constant, &value));
  if (!is_constant || value == nullptr) {
    // Older releases do not show a branch or a loop body the initializers of the graphs around it.
    throw Problem(what +
                  " is not constant; expected an initializer, which is no graph input, or a "
                  "Constant of the same graph that the node is in");
  }
  const std::vector<int64_t> shape = shape_of(api, value);
  if (shape != expected) {
    throw Problem(what + " has the shape " + to_string(shape) + "; expected " +
                  to_string(expected));
  }
  void* data = nullptr;
  check(api, api.GetTensorMutableData(const_cast<ort::Value*>(value), &data));
  return data;
}

std::vector<float> finite_input(const ort::Api& api, const ort::KernelInfo* info, Input input,
                                const std::vector<int64_t>& expected) {
  const void* data = constant_input(api, info, input, expected);
  int64_t count = 1;
  for (int64_t dim : expected) count *= dim;
  std::vector<float> values(static_cast<size_t>(count));
  std::memcpy(values.data(), data, values.size() * sizeof(float));
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    throw Problem(std::string("input ") + name_of(input) + " holds " + std::to_string(values[i]) +
                  " at entry " + std::to_string(i) + "; expected finite numbers");
  }
  return values;
}

}  // namespace onnxlr
