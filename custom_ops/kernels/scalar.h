// The portable kernels. `quantize_scalar` has a name because instruction sets without a way of
// their own use it.
#pragma once

#include "kernels/kernel.h"

namespace onnxlr {

void quantize_scalar(const Weights& weights, const float* x, const float* input_scale,
                     int8_t* codes, int64_t stride, float* scale, int32_t* sums);

extern const Kernels kScalarKernels;

}  // namespace onnxlr
