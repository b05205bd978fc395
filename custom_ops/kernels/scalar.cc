// The reference: plain C++ for any machine, and what the other kernels are tested against.
#include "kernels/scalar.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace onnxlr {
namespace {

// The ternary value of input i (0..15) of column c in a block.
inline int ternary(const uint8_t* block, int64_t i, int64_t c) {
  const uint8_t byte = block[4 * c + i % 4];
  return ((byte >> (2 * (i / 4))) & 3) - 1;
}

struct Segment {  // the inputs of one group
  int64_t first_block, last_block;
};

Segment segment_of(const Weights& w, int64_t group) {
  const int64_t first = group * w.group_blocks;
  return {first, std::min(first + w.group_blocks, w.blocks)};
}

template <typename Sum, typename Value>
Sum dot(const Weights& w, const uint8_t* panel, Segment segment, int64_t column, const Value* x) {
  Sum total = 0;
  for (int64_t block = segment.first_block; block < segment.last_block; ++block) {
    Sum sum = 0;  // of one block, so that float sums stay accurate for long rows
    const int64_t first = block * kBlockInputs;
    const int64_t count = std::min(kBlockInputs, w.inputs - first);
    for (int64_t i = 0; i < count; ++i) {
      const int t = ternary(panel + block * kBlockBytes, i, column);
      if (t > 0) sum += x[first + i];
      if (t < 0) sum -= x[first + i];
    }
    total += sum;
  }
  return total;
}

// bias + scale * sum over terms and groups, for each column of the panels.
template <typename Sum, typename Value>
void multiply_row(const Weights& w, const Value* x, float scale, int64_t first_panel,
                  int64_t last_panel, float* y) {
  for (int64_t p = first_panel; p < last_panel; ++p) {
    const int64_t columns = std::min(kPanelColumns, w.outputs - p * kPanelColumns);
    for (int64_t c = 0; c < columns; ++c) {
      float total = 0;
      for (int64_t t = 0; t < w.terms; ++t) {
        const uint8_t* panel = w.codes + (t * w.panels + p) * w.blocks * kBlockBytes;
        for (int64_t g = 0; g < w.groups; ++g) {
          const float s = w.scales[((p * w.terms + t) * w.groups + g) * kPanelColumns + c];
          total += s * static_cast<float>(dot<Sum>(w, panel, segment_of(w, g), c, x));
        }
      }
      const int64_t n = p * kPanelColumns + c;
      y[n] = w.bias[n] + scale * total;
    }
  }
}

void multiply_int8(const Weights& w, const Int8Rows& rows, int64_t first_panel, int64_t last_panel,
                   Output out) {
  for (int64_t i = 0; i < rows.rows; ++i) {
    multiply_row<int32_t>(w, rows.codes + i * rows.stride, rows.scales[i], first_panel, last_panel,
                          out.y + i * out.stride);
  }
}

void multiply_float(const Weights& w, const float* x, int64_t stride, int64_t rows,
                    int64_t first_panel, int64_t last_panel, Output out) {
  for (int64_t i = 0; i < rows; ++i) {
    multiply_row<float>(w, x + i * stride, 1.0f, first_panel, last_panel, out.y + i * out.stride);
  }
}

}  // namespace

void quantize_scalar(const Weights& w, const float* x, const float* input_scale, int8_t* codes,
                     int64_t stride, float* scale, int32_t* sums) {
  const auto scaled = [&](int64_t k) { return input_scale ? x[k] * input_scale[k] : x[k]; };
  float largest = 0;
  bool finite = true;
  for (int64_t k = 0; k < w.inputs; ++k) {
    const float value = std::fabs(scaled(k));
    finite = finite && value <= std::numeric_limits<float>::max();
    largest = std::max(largest, value);
  }
  std::memset(codes, 0, static_cast<size_t>(stride));
  std::fill(sums, sums + w.groups, 0);
  if (!finite) {
    *scale = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  largest = std::max(largest, kSmallestRange);
  const float inverse = 127.0f / largest;
  *scale = largest / 127.0f;
  const int64_t group_inputs = w.group_blocks * kBlockInputs;
  for (int64_t k = 0; k < w.inputs; ++k) {
    codes[k] = static_cast<int8_t>(std::nearbyint(scaled(k) * inverse));
    sums[k / group_inputs] += codes[k];
  }
}

const Kernels kScalarKernels = {"scalar", quantize_scalar, multiply_int8, multiply_float};

}  // namespace onnxlr
