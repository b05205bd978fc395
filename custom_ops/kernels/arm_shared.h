// What the tables of aarch64 share: they differ in multiply_int8 only, and there not for one row.
#pragma once

#include "kernels/kernel.h"

namespace onnxlr {

// neon.cc, for any aarch64.
void quantize_neon(const Weights& weights, const float* x, const float* input_scale, int8_t* codes,
                   int64_t stride, float* scale, int32_t* sums);
void multiply_float_neon(const Weights& weights, const float* x, int64_t stride, int64_t rows,
                         int64_t first_panel, int64_t last_panel, Output out);

// dotprod.cc: each row by itself, for a few rows.
void multiply_rows_dotprod(const Weights& weights, const Int8Rows& rows, int64_t first_panel,
                           int64_t last_panel, Output out);

}  // namespace onnxlr
