#include "transpose.h"

#include <algorithm>

#if defined(__SSE__)
#include <xmmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace onnxlr {
namespace {

constexpr int64_t kSide = 4;   // rows and columns of a step
constexpr int64_t kTile = 64;  // so that both sides stay in the first-level cache

// to[j][i] = from[i][j] * scale[i] for four rows and columns, with what every x86-64 and aarch64
// has.
#if defined(__SSE__)
inline void step(const float* from, int64_t from_stride, const float* scale, float* to,
                 int64_t to_stride) {
  __m128 row[kSide];
  for (int i = 0; i < kSide; ++i) {
    row[i] = _mm_loadu_ps(from + i * from_stride);
    if (scale != nullptr) row[i] = _mm_mul_ps(row[i], _mm_set1_ps(scale[i]));
  }
  _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
  for (int j = 0; j < kSide; ++j) _mm_storeu_ps(to + j * to_stride, row[j]);
}
#elif defined(__ARM_NEON)
inline void step(const float* from, int64_t from_stride, const float* scale, float* to,
                 int64_t to_stride) {
  float32x4_t row[kSide];
  for (int i = 0; i < kSide; ++i) {
    row[i] = vld1q_f32(from + i * from_stride);
    if (scale != nullptr) row[i] = vmulq_n_f32(row[i], scale[i]);
  }
  const float32x4x2_t a = vtrnq_f32(row[0], row[1]);
  const float32x4x2_t b = vtrnq_f32(row[2], row[3]);
  for (int j = 0; j < 2; ++j) {
    vst1q_f32(to + j * to_stride, vcombine_f32(vget_low_f32(a.val[j]), vget_low_f32(b.val[j])));
    vst1q_f32(to + (j + 2) * to_stride,
              vcombine_f32(vget_high_f32(a.val[j]), vget_high_f32(b.val[j])));
  }
}
#else
inline void step(const float* from, int64_t from_stride, const float* scale, float* to,
                 int64_t to_stride) {
  for (int j = 0; j < kSide; ++j) {
    for (int i = 0; i < kSide; ++i) {
      to[j * to_stride + i] = from[i * from_stride + j] * (scale == nullptr ? 1.0f : scale[i]);
    }
  }
}
#endif

}  // namespace

void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
               const float* scale, float* to, int64_t to_stride) {
  const auto one = [&](int64_t i, int64_t j) {
    const float value = from[i * from_stride + j];
    to[j * to_stride + i] = scale == nullptr ? value : value * scale[i];
  };
  const int64_t whole_columns = columns / kSide * kSide;
  for (int64_t i0 = 0; i0 < rows; i0 += kTile) {
    const int64_t i1 = std::min(rows, i0 + kTile);
    const int64_t whole = i1 / kSide * kSide;
    for (int64_t j = 0; j < whole_columns; j += kSide) {
      for (int64_t i = i0; i < whole; i += kSide) {
        step(from + i * from_stride + j, from_stride, scale == nullptr ? nullptr : scale + i,
             to + j * to_stride + i, to_stride);
      }
    }
    for (int64_t i = std::max(i0, whole); i < i1; ++i) {
      for (int64_t j = 0; j < whole_columns; ++j) one(i, j);
    }
    for (int64_t j = whole_columns; j < columns; ++j) {
      for (int64_t i = i0; i < i1; ++i) one(i, j);
    }
  }
}

}  // namespace onnxlr
