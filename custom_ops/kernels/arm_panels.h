// The way through a product that the kernels for many rows share: a piece of a panel is decoded
// once and then used by all rows of a strip, in tiles of a few rows.
//
// Everything here has internal linkage: each file that includes it has its own copy, for its own
// instruction set. So nothing of the standard library is called here.
#pragma once

#include <arm_neon.h>

#include "kernels/arm_target.h"
#include "kernels/kernel.h"

namespace onnxlr {
namespace {

constexpr int64_t kStripRows = 64;
constexpr int64_t kBlockCodes = kBlockInputs * kPanelColumns;

ONNXLR_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Blocks of one group, all of them or as many as are decoded at a time.
struct Segment {
  int64_t first_block;  // in the matrix
  int64_t blocks;
  int64_t group;
  bool opens, closes;   // does its group begin and end in it?
  const float* scales;  // of its group: [16]
};

// What a strip keeps of each row while it goes through the inputs: [rows][16].
struct Strip {
  alignas(64) float totals[kStripRows * kPanelColumns];
  alignas(64) int32_t sums[kStripRows * kPanelColumns];  // of a group that has not closed
};

// The segment that begins at `block`, within the blocks before `end`.
ONNXLR_INLINE Segment segment_at(const Weights& w, const float* scales, int64_t block,
                                 int64_t end) {
  const int64_t group = block / w.group_blocks;
  const int64_t first = group * w.group_blocks;
  const int64_t last = smaller(first + w.group_blocks, w.blocks);
  const int64_t stop = smaller(last, end);
  return {block, stop - block, group, block == first, stop == last, scales + group * kPanelColumns};
}

// y = bias + scale * total for one row of a panel; the last panel may have fewer columns.
ONNXLR_INLINE void finish_row(const Weights& w, int64_t panel, const float* totals, float scale,
                              float* row) {
  const float* bias = w.bias + panel * kPanelColumns;
  const int64_t columns = smaller(kPanelColumns, w.outputs - panel * kPanelColumns);
  float* y = row + panel * kPanelColumns;
  float whole[kPanelColumns];
  float* to = columns == kPanelColumns ? y : whole;
  for (int q = 0; q < 16; q += 4) {
    vst1q_f32(to + q, vfmaq_n_f32(vld1q_f32(bias + q), vld1q_f32(totals + q), scale));
  }
  if (to == whole) {
    for (int64_t c = 0; c < columns; ++c) y[c] = whole[c];
  }
}

// Rows `row` to `row + count` of a strip against what is decoded. Product::tile<R> takes R rows.
template <typename Product>
void tiles(const Product& product, const typename Product::Decoded* decoded, const Segment& segment,
           int64_t first_row, int64_t count, Strip& strip) {
  int64_t i = 0;
  const auto at = [&](int64_t row) { return row * kPanelColumns; };
  for (; Product::kTileRows == 8 && i + 8 <= count; i += 8) {
    product.template tile<Product::kTileRows>(decoded, segment, first_row + i, strip.totals + at(i),
                                              strip.sums + at(i));
  }
  for (; i + 4 <= count; i += 4) {
    product.template tile<4>(decoded, segment, first_row + i, strip.totals + at(i),
                             strip.sums + at(i));
  }
  for (; i + 2 <= count; i += 2) {
    product.template tile<2>(decoded, segment, first_row + i, strip.totals + at(i),
                             strip.sums + at(i));
  }
  if (i < count) {
    product.template tile<1>(decoded, segment, first_row + i, strip.totals + at(i),
                             strip.sums + at(i));
  }
}

// One panel for up to kStripRows rows.
template <typename Product>
void multiply_strip(const Product& product, int64_t panel, int64_t first_row, int64_t count,
                    Output out) {
  const Weights& w = product.weights;
  alignas(64) typename Product::Decoded decoded[Product::kChunkBlocks * kBlockCodes];
  Strip strip;
  for (int64_t i = 0; i < count * kPanelColumns; ++i) strip.totals[i] = 0;
  for (int64_t t = 0; t < w.terms; ++t) {
    const uint8_t* codes = w.codes + (t * w.panels + panel) * w.blocks * kBlockBytes;
    const float* scales = w.scales + (panel * w.terms + t) * w.groups * kPanelColumns;
    for (int64_t chunk = 0; chunk < w.blocks; chunk += Product::kChunkBlocks) {
      const int64_t end = smaller(chunk + Product::kChunkBlocks, w.blocks);
      for (int64_t b = chunk; b < end; ++b) {
        Product::decode(codes + b * kBlockBytes, decoded + (b - chunk) * kBlockCodes);
      }
      for (int64_t b = chunk; b < end;) {
        const Segment segment = segment_at(w, scales, b, end);
        tiles(product, decoded + (b - chunk) * kBlockCodes, segment, first_row, count, strip);
        b += segment.blocks;
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    finish_row(w, panel, strip.totals + i * kPanelColumns, product.row_scale(first_row + i),
               out.y + (first_row + i) * out.stride);
  }
}

template <typename Product>
void multiply_panels(const Product& product, int64_t rows, int64_t first_panel, int64_t last_panel,
                     Output out) {
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int64_t row = 0; row < rows; row += kStripRows) {
      multiply_strip(product, panel, row, smaller(kStripRows, rows - row), out);
    }
  }
}

}  // namespace
}  // namespace onnxlr
