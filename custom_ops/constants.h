// The constant inputs of a node.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ort_api.h"

namespace onnxlr {

// The inputs of both operators, in their order.
enum Input : size_t { kX = 0, kCodes = 1, kScales = 2, kInputScale = 3, kBias = 4 };
const char* name_of(Input input);

// `(2, 3)`
std::string to_string(const std::vector<int64_t>& shape);

std::vector<int64_t> shape_of(const ort::Api& api, const ort::Value* value);

// The data of an input whose shape must be `expected`; throws Problem if it is another or not
// constant.
const void* constant_input(const ort::Api& api, const ort::KernelInfo* info, Input input,
                           const std::vector<int64_t>& expected);

// A copy of floats, which must be finite. In a file that is mapped, they lie at any address.
std::vector<float> finite_input(const ort::Api& api, const ort::KernelInfo* info, Input input,
                                const std::vector<int64_t>& expected);

}  // namespace onnxlr
