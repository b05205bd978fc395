// int8 products with SDOT (Armv8.2 dot products): four inputs of four columns in one instruction.
#include "kernels/arm.h"
#include "kernels/arm_features.h"
#include "kernels/arm_shared.h"
#include "kernels/arm_target.h"
#include "kernels/kernel.h"

#include <arm_neon.h>

namespace onnxlr {

bool has_dotprod() {
  static const bool has = machine_has(kHwcapDotprod, 0, "hw.optional.arm.FEAT_DotProd");
  return has;
}

}  // namespace onnxlr

ONNXLR_TARGET_BEGIN("arch=armv8.2-a+dotprod", "dotprod")
#include "kernels/arm_int8.h"

namespace onnxlr {
namespace {

// Fewer rows than this do not pay for the decoding.
constexpr int64_t kManyRows = 4;

struct DotprodProduct : Int8Product {
  static constexpr int kTileRows = 8;
  static constexpr int64_t kChunkBlocks = 32;

  // [2 halves of the columns][4 quarters of the inputs][8 columns][4 inputs]
  static void decode(const uint8_t* block, uint8_t* out) {
    for (int q = 0; q < 4; ++q) {
      const uint8x16_t packed = vld1q_u8(block + 16 * q);
      uint8_t* to = out + q / 2 * 128 + q % 2 * 16;
      vst1q_u8(to, quarter<0>(packed));
      vst1q_u8(to + 32, quarter<1>(packed));
      vst1q_u8(to + 64, quarter<2>(packed));
      vst1q_u8(to + 96, quarter<3>(packed));
    }
  }

  // Inputs 4G to 4G + 3 of R rows times eight columns.
  template <int R, int G>
  ONNXLR_INLINE void quarter_products(const uint8_t* decoded, const int8x16_t (&x)[R],
                                      int32x4_t (&sums)[R][2]) {
    const int8x16_t low = vreinterpretq_s8_u8(vld1q_u8(decoded + 32 * G));
    const int8x16_t high = vreinterpretq_s8_u8(vld1q_u8(decoded + 32 * G + 16));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      sums[r][0] = vdotq_laneq_s32(sums[r][0], low, x[r], G);
      sums[r][1] = vdotq_laneq_s32(sums[r][1], high, x[r], G);
    }
  }

  template <int R>
  void tile(const uint8_t* decoded, const Segment& segment, int64_t row, float* totals,
            int32_t* kept) const {
    const int8_t* first = row_at(row, segment.first_block);
    for (int half = 0; half < 2; ++half) {
      int32x4_t sums[R][2];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = vdupq_n_s32(0);
      const uint8_t* codes = decoded + 128 * half;
      const int8_t* x_block = first;
      for (int64_t b = 0; b < segment.blocks; ++b, codes += kBlockCodes, x_block += kBlockInputs) {
        int8x16_t x[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) x[r] = vld1q_s8(x_block + r * rows.stride);
        quarter_products<R, 0>(codes, x, sums);
        quarter_products<R, 1>(codes, x, sums);
        quarter_products<R, 2>(codes, x, sums);
        quarter_products<R, 3>(codes, x, sums);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int32_t sum = row_sum(row + r, segment.group);
        for (int q = 0; q < 2; ++q) {
          settle(sums[r][q], segment, sum, 8 * half + 4 * q, totals + r * kPanelColumns,
                 kept + r * kPanelColumns);
        }
      }
    }
  }
};

// One row. Codes of three of the four quarters are multiplied where they lie in their bytes, as 0,
// 4 and 8 or 0, 16 and 32, and the sums shifted; at the top of the byte they would be negative.
struct RowSums {
  int32x4_t quarters[4][4];
};

// Sums of 16 * 2 * 127 for each of four inputs stay below 2^31 for this many blocks.
constexpr int64_t kUnshiftedBlocks = 65536;

ONNXLR_INLINE void add_blocks(const uint8_t* codes, const int8_t* x, int64_t blocks,
                              int32x4_t (&sums)[4]) {
  int32x4_t quarters[4][4];
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    for (int g = 0; g < 4; ++g) quarters[q][g] = vdupq_n_s32(0);
  }
  for (int64_t b = 0; b < blocks; ++b, codes += kBlockBytes, x += kBlockInputs) {
    const int8x16_t inputs = vld1q_s8(x);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const uint8x16_t packed = vld1q_u8(codes + 16 * q);
      const int8x16_t c0 = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(0x03)));
      const int8x16_t c1 = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(0x0C)));
      const int8x16_t c2 = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(0x30)));
      const int8x16_t c3 = vreinterpretq_s8_u8(vshrq_n_u8(packed, 6));
      quarters[q][0] = vdotq_laneq_s32(quarters[q][0], c0, inputs, 0);
      quarters[q][1] = vdotq_laneq_s32(quarters[q][1], c1, inputs, 1);
      quarters[q][2] = vdotq_laneq_s32(quarters[q][2], c2, inputs, 2);
      quarters[q][3] = vdotq_laneq_s32(quarters[q][3], c3, inputs, 3);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const int32x4_t even = vaddq_s32(quarters[q][0], quarters[q][3]);
    const int32x4_t shifted = vsraq_n_s32(vshrq_n_s32(quarters[q][1], 2), quarters[q][2], 4);
    sums[q] = vaddq_s32(sums[q], vaddq_s32(even, shifted));
  }
}

void multiply_row_panel(const Int8Product& product, int64_t row, int64_t panel, Output out) {
  const Weights& w = product.weights;
  alignas(64) float totals[kPanelColumns] = {};
  for (int64_t t = 0; t < w.terms; ++t) {
    const uint8_t* codes = w.codes + (t * w.panels + panel) * w.blocks * kBlockBytes;
    const float* scales = w.scales + (panel * w.terms + t) * w.groups * kPanelColumns;
    for (int64_t block = 0; block < w.blocks;) {
      const Segment group = segment_at(w, scales, block, w.blocks);
      int32x4_t sums[4];
      for (int q = 0; q < 4; ++q) sums[q] = vdupq_n_s32(-product.row_sum(row, group.group));
      for (const int64_t end = block + group.blocks; block < end;) {
        const int64_t count = smaller(kUnshiftedBlocks, end - block);
        add_blocks(codes + block * kBlockBytes, product.row_at(row, block), count, sums);
        block += count;
      }
      for (int q = 0; q < 4; ++q) {
        const float32x4_t total = vld1q_f32(totals + 4 * q);
        const float32x4_t scale = vld1q_f32(group.scales + 4 * q);
        vst1q_f32(totals + 4 * q, vfmaq_f32(total, vcvtq_f32_s32(sums[q]), scale));
      }
    }
  }
  finish_row(w, panel, totals, product.row_scale(row), out.y + row * out.stride);
}

void multiply_int8(const Weights& w, const Int8Rows& rows, int64_t first_panel, int64_t last_panel,
                   Output out) {
  if (rows.rows < kManyRows) {
    multiply_rows_dotprod(w, rows, first_panel, last_panel, out);
    return;
  }
  multiply_panels(DotprodProduct{{w, rows}}, rows.rows, first_panel, last_panel, out);
}

}  // namespace

void multiply_rows_dotprod(const Weights& w, const Int8Rows& rows, int64_t first_panel,
                           int64_t last_panel, Output out) {
  const Int8Product product = {w, rows};
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int64_t row = 0; row < rows.rows; ++row) multiply_row_panel(product, row, panel, out);
  }
}

}  // namespace onnxlr
ONNXLR_TARGET_END

namespace onnxlr {

const Kernels kDotprodKernels = {"dotprod", quantize_neon, multiply_int8, multiply_float_neon};

}  // namespace onnxlr
