// What the int8 products of aarch64 share. Codes are multiplied as 0, 1 and 2, one more than the
// ternary value, so that the sum of a row's own codes is taken off at the end of each group.
#pragma once

#include "kernels/arm_panels.h"

namespace onnxlr {
namespace {

// Int8Rows as a Product of arm_panels.h sees them.
struct Int8Product {
  using Decoded = uint8_t;
  const Weights& weights;
  const Int8Rows& rows;

  const int8_t* row_at(int64_t row, int64_t block) const {
    return rows.codes + row * rows.stride + block * kBlockInputs;
  }
  int32_t row_sum(int64_t row, int64_t group) const {
    return rows.sums[row * weights.groups + group];
  }
  float row_scale(int64_t row) const { return rows.scales[row]; }
};

// The codes of inputs 4G to 4G + 3 of four columns, one to a byte.
template <int G>
ONNXLR_INLINE uint8x16_t quarter(uint8x16_t packed) {
  if constexpr (G == 0)
    return vandq_u8(packed, vdupq_n_u8(3));
  else if constexpr (G == 3)
    return vshrq_n_u8(packed, 6);
  else
    return vandq_u8(vshrq_n_u8(packed, 2 * G), vdupq_n_u8(3));
}

// Takes the products of a segment with four columns: adds what its group had, then either keeps the
// sum or, where the group closes, adds it to the total.
ONNXLR_INLINE void settle(int32x4_t sum, const Segment& segment, int32_t row_sum, int column,
                          float* totals, int32_t* sums) {
  if (!segment.opens) sum = vaddq_s32(sum, vld1q_s32(sums + column));
  if (!segment.closes) {
    vst1q_s32(sums + column, sum);
    return;
  }
  const float32x4_t exact = vcvtq_f32_s32(vsubq_s32(sum, vdupq_n_s32(row_sum)));
  const float32x4_t scale = vld1q_f32(segment.scales + column);
  vst1q_f32(totals + column, vfmaq_f32(vld1q_f32(totals + column), exact, scale));
}

}  // namespace
}  // namespace onnxlr
