// What one instruction set brings: rows of numbers times packed ternary matrices.
//
// Kernels know nothing of ONNX Runtime, allocate nothing, never fail: whoever calls them has
// checked every size. docs/operators.md describes the packed format and the arithmetic.
#pragma once

#include <cstdint>

namespace onnxlr {

constexpr int64_t kPanelColumns = 16;  // columns in a panel
constexpr int64_t kBlockInputs = 16;   // inputs in a block
constexpr int64_t kBlockBytes = 64;    // 16 x 16 codes of two bits

// Rows of int8 codes are zero from K up to a multiple of this, and a stride apart that is one as
// well.
constexpr int64_t kRowAlignment = 64;

// The range of a row is at least this, so that 127 / range stays finite.
constexpr float kSmallestRange = 1e-30f;

// A good stride: an odd number of cache lines, since rows an even number apart share the sets of a
// cache and drive each other out of it.
inline int64_t row_stride(int64_t inputs) {
  const int64_t lines = (inputs + kRowAlignment - 1) / kRowAlignment;
  return (lines | 1) * kRowAlignment;
}

// A packed ternary matrix with its scales, as validated and prepared when a session is made.
struct Weights {
  const uint8_t* codes;  // [terms][panels][blocks][64], aligned to 64 bytes, no code is 3
  const float* scales;   // [panels][terms][groups][16], zero beyond the last column
  const float* bias;     // [panels][16], zero beyond the last column
  int64_t inputs;        // K
  int64_t outputs;       // N
  int64_t blocks;        // ceil(K / 16)
  int64_t panels;        // ceil(N / 16)
  int64_t terms;
  int64_t groups;        // groups of inputs that share a scale; 1 if all do
  int64_t group_blocks;  // blocks of a group (the last may have fewer): 2, 4, 8, or `blocks`
};

// Rows rounded to int8, each with a range of its own: x is about scales[row] * codes[row][k].
struct Int8Rows {
  const int8_t* codes;  // [rows][stride], aligned to 64 bytes, zero from K on
  int64_t stride;       // bytes from row to row, a multiple of 64, at least K rounded up to one
  const float* scales;  // [rows]: a / 127, or NaN for a row that had an entry that is not finite
  const int32_t* sums;  // [rows][groups]: the sum of the codes of each group
  int64_t rows;
};

// Where the products go: row i, column n at y[i * stride + n].
struct Output {
  float* y;
  int64_t stride;
};

struct Kernels {
  const char* name;

  // Rounds one row of `weights.inputs` numbers to int8. `input_scale` is null where it is all ones.
  // Writes codes up to `stride` (zeros from K on), *scale and sums[groups].
  void (*quantize)(const Weights& weights, const float* x, const float* input_scale, int8_t* codes,
                   int64_t stride, float* scale, int32_t* sums);

  // y = bias + rows * weights, for the panels first_panel to last_panel (exclusive) and all rows.
  void (*multiply_int8)(const Weights& weights, const Int8Rows& rows, int64_t first_panel,
                        int64_t last_panel, Output out);

  // The same with float32 additions. Row i of x is at x + i * stride, `weights.inputs` numbers.
  void (*multiply_float)(const Weights& weights, const float* x, int64_t stride, int64_t rows,
                         int64_t first_panel, int64_t last_panel, Output out);
};

// The best table that this machine can run, or the one that ONNXLR_ISA names. Null with a message
// in *problem if ONNXLR_ISA names one that is unknown, not in this build or not on this machine.
const Kernels* choose_kernels(const char** problem);

}  // namespace onnxlr
