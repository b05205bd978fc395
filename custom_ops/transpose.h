// Channels first to channels last, and back.
#pragma once

#include <cstdint>

namespace onnxlr {

// to[j * to_stride + i] = from[i * from_stride + j] * scale[i], for i < rows and j < columns;
// without a scale if it is null.
void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
               const float* scale, float* to, int64_t to_stride);

}  // namespace onnxlr
