// int8 products with SMMLA (Armv8.6 int8 matrix multiplication): two rows times two columns, eight
// inputs, in one instruction. A few rows go the way of dotprod.cc: half of each SMMLA would be
// idle.
#include "kernels/arm.h"
#include "kernels/arm_features.h"
#include "kernels/arm_shared.h"
#include "kernels/arm_target.h"
#include "kernels/kernel.h"

#include <arm_neon.h>

namespace onnxlr {

bool has_i8mm() {
  static const bool has = machine_has(kHwcapDotprod, kHwcap2I8mm, "hw.optional.arm.FEAT_I8MM");
  return has;
}

}  // namespace onnxlr

ONNXLR_TARGET_BEGIN("arch=armv8.2-a+dotprod+i8mm", "dotprod,i8mm")
#include "kernels/arm_int8.h"

namespace onnxlr {
namespace {

constexpr int64_t kManyRows = 4;

struct I8mmProduct : Int8Product {
  static constexpr int kTileRows = 8;
  static constexpr int64_t kChunkBlocks = 32;

  // [2 halves of the columns][2 halves of the inputs][4 pairs of columns][2 columns][8 inputs]
  static void decode(const uint8_t* block, uint8_t* out) {
    for (int q = 0; q < 4; ++q) {
      const uint32x4_t packed = vreinterpretq_u32_u8(vld1q_u8(block + 16 * q));
      const uint32x4_t next = vshrq_n_u32(packed, 2);  // the odd quarters where the even ones were
      const uint8x16_t pairs[2] = {vreinterpretq_u8_u32(vzip1q_u32(packed, next)),
                                   vreinterpretq_u8_u32(vzip2q_u32(packed, next))};
      uint8_t* to = out + q / 2 * 128 + q % 2 * 32;
      for (int pair = 0; pair < 2; ++pair) {
        vst1q_u8(to + 16 * pair, quarter<0>(pairs[pair]));
        vst1q_u8(to + 64 + 16 * pair, quarter<2>(pairs[pair]));
      }
    }
  }

  // Eight inputs of P pairs of rows times four pairs of columns.
  template <int P>
  ONNXLR_INLINE void half_products(const uint8_t* decoded, const int8x16_t (&x)[P],
                                   int32x4_t (&sums)[P][4]) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const int8x16_t codes = vreinterpretq_s8_u8(vld1q_u8(decoded + 16 * c));
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) sums[p][c] = vmmlaq_s32(sums[p][c], x[p], codes);
    }
  }

  // A row without a second one is its own, and its second results are dropped.
  template <int R>
  void tile(const uint8_t* decoded, const Segment& segment, int64_t row, float* totals,
            int32_t* kept) const {
    constexpr int kPairs = (R + 1) / 2;
    const int64_t second = R == 1 ? 0 : rows.stride;
    const int8_t* first = row_at(row, segment.first_block);
    for (int half = 0; half < 2; ++half) {
      int32x4_t sums[kPairs][4];
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) sums[p][c] = vdupq_n_s32(0);
      }
      const uint8_t* codes = decoded + 128 * half;
      const int8_t* x_block = first;
      for (int64_t b = 0; b < segment.blocks; ++b, codes += kBlockCodes, x_block += kBlockInputs) {
        int8x16_t low[kPairs], high[kPairs];
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p) {
          const int8_t* pair = x_block + 2 * p * rows.stride;
          const int64x2_t upper = vreinterpretq_s64_s8(vld1q_s8(pair));
          const int64x2_t lower = vreinterpretq_s64_s8(vld1q_s8(pair + second));
          low[p] = vreinterpretq_s8_s64(vzip1q_s64(upper, lower));
          high[p] = vreinterpretq_s8_s64(vzip2q_s64(upper, lower));
        }
        half_products<kPairs>(codes, low, sums);
        half_products<kPairs>(codes + 64, high, sums);
      }
      settle_pairs<R>(sums, segment, row, 8 * half, totals, kept);
    }
  }

  // Each sum holds two columns of the first row, then the same two of the second.
  template <int R>
  ONNXLR_INLINE_METHOD void settle_pairs(const int32x4_t (&sums)[(R + 1) / 2][4],
                                         const Segment& segment, int64_t row, int column,
                                         float* totals, int32_t* kept) const {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int32_t sum = row_sum(row + r, segment.group);
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        const int64x2_t left = vreinterpretq_s64_s32(sums[r / 2][2 * q]);
        const int64x2_t right = vreinterpretq_s64_s32(sums[r / 2][2 * q + 1]);
        const int64x2_t both = r % 2 == 0 ? vzip1q_s64(left, right) : vzip2q_s64(left, right);
        settle(vreinterpretq_s32_s64(both), segment, sum, column + 4 * q,
               totals + r * kPanelColumns, kept + r * kPanelColumns);
      }
    }
  }
};

void multiply_int8(const Weights& w, const Int8Rows& rows, int64_t first_panel, int64_t last_panel,
                   Output out) {
  if (rows.rows < kManyRows) {
    multiply_rows_dotprod(w, rows, first_panel, last_panel, out);
    return;
  }
  multiply_panels(I8mmProduct{{w, rows}}, rows.rows, first_panel, last_panel, out);
}

}  // namespace
}  // namespace onnxlr
ONNXLR_TARGET_END

namespace onnxlr {

const Kernels kI8mmKernels = {"i8mm", quantize_neon, multiply_int8, multiply_float_neon};

}  // namespace onnxlr
