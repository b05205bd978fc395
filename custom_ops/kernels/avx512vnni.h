// What AVX-512 with VNNI brings; AMX, which every machine has beside it, uses it for few rows.
#pragma once

#include "kernels/kernel.h"

namespace onnxlr {

void quantize_avx512(const Weights& weights, const float* x, const float* input_scale,
                     int8_t* codes, int64_t stride, float* scale, int32_t* sums);
void multiply_int8_avx512(const Weights& weights, const Int8Rows& rows, int64_t first_panel,
                          int64_t last_panel, Output out);
// The same for many rows, where groups are long.
void multiply_many_rows_avx512(const Weights& weights, const Int8Rows& rows, int64_t first_panel,
                               int64_t last_panel, Output out);
void multiply_float_avx512(const Weights& weights, const float* x, int64_t stride, int64_t rows,
                           int64_t first_panel, int64_t last_panel, Output out);

}  // namespace onnxlr
