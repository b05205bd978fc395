// Kernels for any aarch64: int8 products widened to int16, float products, and the rounding to
// int8.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/arm.h"
#include "kernels/arm_int8.h"
#include "kernels/arm_panels.h"
#include "kernels/arm_shared.h"

namespace onnxlr {
namespace {

// An int16 takes 2 * 127 for each of four inputs of a block, for 32 blocks: 32512.
constexpr int64_t kInt16Blocks = 32;

struct NeonProduct : Int8Product {
  static constexpr int kTileRows = 4;
  static constexpr int64_t kChunkBlocks = kInt16Blocks;

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

  template <int R>
  void tile(const uint8_t* decoded, const Segment& segment, int64_t row, float* totals,
            int32_t* kept) const {
    const int8_t* first = row_at(row, segment.first_block);
    for (int half = 0; half < 2; ++half) {
      int16x8_t sums[R][4];  // two columns of four inputs each
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) sums[r][c] = vdupq_n_s16(0);
      }
      const uint8_t* codes = decoded + 128 * half;
      const int8_t* x = first;
      for (int64_t b = 0; b < segment.blocks; ++b, codes += 128) {
        for (int g = 0; g < 4; ++g, codes += 32, x += 4) add_quarter<R>(codes, x, sums);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int32_t sum = row_sum(row + r, segment.group);
#pragma GCC unroll 2
        for (int q = 0; q < 2; ++q) {
          const int32x4_t left = vpaddlq_s16(sums[r][2 * q]);
          const int32x4_t right = vpaddlq_s16(sums[r][2 * q + 1]);
          settle(vpaddq_s32(left, right), segment, sum, 8 * half + 4 * q,
                 totals + r * kPanelColumns, kept + r * kPanelColumns);
        }
      }
    }
  }

  // Four inputs of R rows times eight columns.
  template <int R>
  ONNXLR_INLINE_METHOD void add_quarter(const uint8_t* decoded, const int8_t* x,
                                        int16x8_t (&sums)[R][4]) const {
    const int8x16_t left = vreinterpretq_s8_u8(vld1q_u8(decoded));
    const int8x16_t right = vreinterpretq_s8_u8(vld1q_u8(decoded + 16));
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, x + r * rows.stride, sizeof four);
      const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(four));
      sums[r][0] = vmlal_s8(sums[r][0], vget_low_s8(left), vget_low_s8(inputs));
      sums[r][1] = vmlal_high_s8(sums[r][1], left, inputs);
      sums[r][2] = vmlal_s8(sums[r][2], vget_low_s8(right), vget_low_s8(inputs));
      sums[r][3] = vmlal_high_s8(sums[r][3], right, inputs);
    }
  }
};

void multiply_int8(const Weights& w, const Int8Rows& rows, int64_t first_panel, int64_t last_panel,
                   Output out) {
  multiply_panels(NeonProduct{{w, rows}}, rows.rows, first_panel, last_panel, out);
}

// Products with -1, 0 and +1 as float32 numbers: multiplying by them is exact, and a multiply-add
// of four columns takes no more than the addition.
struct FloatProduct {
  using Decoded = float;
  static constexpr int kTileRows = 8;
  static constexpr int64_t kChunkBlocks = 8;  // 128 inputs are summed before their scale is applied
  const Weights& weights;
  const float* x;
  int64_t stride;

  float row_scale(int64_t) const { return 1; }

  // [2 halves of the columns][16 inputs][8 columns]
  static void decode(const uint8_t* block, float* out) {
    for (int q = 0; q < 4; ++q) {
      const uint32x4_t packed = vreinterpretq_u32_u8(vld1q_u8(block + 16 * q));
      // In each two bits, code - 1 in two's complement: 0, 1, 2 become 3, 0, 1.
      const uint32x4_t low = vbicq_u32(vdupq_n_u32(0x55555555), packed);
      const uint32x4_t high = vbicq_u32(vshlq_n_u32(low, 1), packed);
      const int32x4_t signs = vreinterpretq_s32_u32(vorrq_u32(low, high));
      float* to = out + q / 2 * 128 + q % 2 * 4;
      for (int i = 0; i < 16; ++i) {
        const int up = 30 - (8 * (i % 4) + 2 * (i / 4));
        const int32x4_t value = vshrq_n_s32(vshlq_s32(signs, vdupq_n_s32(up)), 30);
        vst1q_f32(to + 8 * i, vcvtq_f32_s32(value));
      }
    }
  }

  // R rows of four inputs, one row to x[r], times eight columns.
  template <int R>
  ONNXLR_INLINE void add_four(const float* decoded, const float32x4_t (&x)[R],
                              float32x4_t (&sums)[R][2]) {
    add_one<R, 0>(decoded, x, sums);
    add_one<R, 1>(decoded, x, sums);
    add_one<R, 2>(decoded, x, sums);
    add_one<R, 3>(decoded, x, sums);
  }

  template <int R, int I>
  ONNXLR_INLINE void add_one(const float* decoded, const float32x4_t (&x)[R],
                             float32x4_t (&sums)[R][2]) {
    const float32x4_t left = vld1q_f32(decoded + 8 * I);
    const float32x4_t right = vld1q_f32(decoded + 8 * I + 4);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      sums[r][0] = vfmaq_laneq_f32(sums[r][0], left, x[r], I);
      sums[r][1] = vfmaq_laneq_f32(sums[r][1], right, x[r], I);
    }
  }

  // Inputs that make no whole four: rows end at K.
  template <int R>
  ONNXLR_INLINE void load_last(const float* x, int64_t stride, int64_t count,
                               float32x4_t (&loaded)[R]) {
    for (int r = 0; r < R; ++r) {
      float some[4] = {};
      for (int64_t i = 0; i < count; ++i) some[i] = x[r * stride + i];
      loaded[r] = vld1q_f32(some);
    }
  }

  template <int R>
  void tile(const float* decoded, const Segment& segment, int64_t row, float* totals,
            int32_t*) const {
    const int64_t first_input = segment.first_block * kBlockInputs;
    const int64_t inputs = smaller(segment.blocks * kBlockInputs, weights.inputs - first_input);
    for (int half = 0; half < 2; ++half) {
      float32x4_t sums[R][2];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = vdupq_n_f32(0);
      for (int64_t i = 0; i < inputs; i += 4) {
        const float* from = x + row * stride + first_input + i;
        float32x4_t loaded[R];
        if (i + 4 <= inputs) {
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) loaded[r] = vld1q_f32(from + r * stride);
        } else {
          load_last<R>(from, stride, inputs - i, loaded);
        }
        const float* codes = decoded + i / 16 * kBlockCodes + half * 128 + i % 16 * 8;
        add_four<R>(codes, loaded, sums);
      }
      const float* scales = segment.scales + 8 * half;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        float* total = totals + r * kPanelColumns + 8 * half;
        vst1q_f32(total, vfmaq_f32(vld1q_f32(total), sums[r][0], vld1q_f32(scales)));
        vst1q_f32(total + 4, vfmaq_f32(vld1q_f32(total + 4), sums[r][1], vld1q_f32(scales + 4)));
      }
    }
  }
};

// Four numbers of a row, times input_scale if there is one; zeros from `count` on.
ONNXLR_INLINE float32x4_t scaled(const float* x, const float* input_scale, int64_t count) {
  if (count >= 4) {
    const float32x4_t four = vld1q_f32(x);
    return input_scale ? vmulq_f32(four, vld1q_f32(input_scale)) : four;
  }
  float some[4] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = input_scale ? x[i] * input_scale[i] : x[i];
  return vld1q_f32(some);
}

// The largest size of a row's numbers; NaN or infinite if one of them is.
float range_of(const float* x, const float* input_scale, int64_t count) {
  float32x4_t largest = vdupq_n_f32(0);
  for (int64_t k = 0; k < count; k += 4) {
    const float* factors = input_scale ? input_scale + k : nullptr;
    // FMAX gives NaN if either operand is one.
    largest = vmaxq_f32(largest, vabsq_f32(scaled(x + k, factors, count - k)));
  }
  return vmaxvq_f32(largest);
}

}  // namespace

void quantize_neon(const Weights& w, const float* x, const float* input_scale, int8_t* codes,
                   int64_t stride, float* scale, int32_t* sums) {
  const float found = range_of(x, input_scale, w.inputs);
  if (!(found <= std::numeric_limits<float>::max())) {
    std::memset(codes, 0, static_cast<size_t>(stride));
    std::memset(sums, 0, static_cast<size_t>(w.groups) * sizeof *sums);
    *scale = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const float range = std::fmax(found, kSmallestRange);
  const float ratio = 127.0f / range;
  *scale = range / 127.0f;
  for (int64_t g = 0; g < w.groups; ++g) {
    const int64_t first = g * w.group_blocks * kBlockInputs;
    const int64_t last = smaller(first + w.group_blocks * kBlockInputs, w.inputs);
    int32x4_t sum = vdupq_n_s32(0);
    for (int64_t k = first; k < last; k += 4) {
      const float* factors = input_scale ? input_scale + k : nullptr;
      const float32x4_t ready = vmulq_n_f32(scaled(x + k, factors, last - k), ratio);
      const int32x4_t rounded = vcvtnq_s32_f32(ready);  // half to even
      sum = vaddq_s32(sum, rounded);
      const int16x4_t narrow = vmovn_s32(rounded);
      const int8x8_t bytes = vmovn_s16(vcombine_s16(narrow, narrow));
      // Up to three zeros beyond the last input: the stride has room for them.
      vst1_lane_s32(reinterpret_cast<int32_t*>(codes + k), vreinterpret_s32_s8(bytes), 0);
    }
    sums[g] = vaddvq_s32(sum);
  }
  std::memset(codes + w.inputs, 0, static_cast<size_t>(stride - w.inputs));
}

void multiply_float_neon(const Weights& w, const float* x, int64_t stride, int64_t rows,
                         int64_t first_panel, int64_t last_panel, Output out) {
  multiply_panels(FloatProduct{w, x, stride}, rows, first_panel, last_panel, out);
}

bool has_neon() { return true; }

const Kernels kNeonKernels = {"neon", quantize_neon, multiply_int8, multiply_float_neon};

}  // namespace onnxlr
