// What is known of shapes when a model is loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ort_api.h"

namespace onnxlr {

struct Dim {
  int64_t value;     // -1 if unknown
  std::string name;  // of an unknown one, may be empty
};

// The shape of an input; no dimensions if nothing is known of it.
std::vector<Dim> inferred_input(const ort::Api& api, const ort::ShapeInference* context,
                                size_t index);

void set_inferred_output(const ort::Api& api, const ort::ShapeInference* context,
                         const std::vector<Dim>& shape);

// At least 1; throws Problem otherwise.
int64_t inferred_int(const ort::Api& api, const ort::ShapeInference* context, const char* name);
std::vector<int64_t> inferred_ints(const ort::Api& api, const ort::ShapeInference* context,
                                   const char* name);

}  // namespace onnxlr
