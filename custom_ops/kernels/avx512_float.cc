// Float additions with AVX-512.
#include <algorithm>

#include "kernels/avx512vnni.h"

#if defined(__GNUC__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#include "kernels/avx512.h"

namespace onnxlr {
namespace {

constexpr int64_t kFloatBlocks = 16;  // blocks summed in float before the sum joins the total

// For each input, two masks say which of sixteen columns add it and which subtract it: bit 2g + 8j
// of the columns' words is set where the code is 1, the next where it is 2, neither where it is 0.
template <int R>
void float_tile(const Weights& w, const float* x, int64_t stride, int64_t panel, float* y,
                int64_t y_stride) {
  __m512 total[R];
  for (auto& value : total) value = _mm512_setzero_ps();
  for (int64_t t = 0; t < w.terms; ++t) {
    const uint8_t* codes = w.codes + (t * w.panels + panel) * w.blocks * kBlockBytes;
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t end = std::min((g + 1) * w.group_blocks, w.blocks);
      __m512 group[R];
      for (auto& value : group) value = _mm512_setzero_ps();
      for (int64_t first = g * w.group_blocks; first < end; first += kFloatBlocks) {
        __m512 sum[R];
        for (auto& value : sum) value = _mm512_setzero_ps();
        for (int64_t b = first; b < std::min(first + kFloatBlocks, end); ++b) {
          const __m512i block = load(codes + b * kBlockBytes);
          const int64_t count = std::min(kBlockInputs, w.inputs - b * kBlockInputs);
          for (int64_t i = 0; i < count; ++i) {
            const int bit = static_cast<int>(8 * (i % 4) + 2 * (i / 4));
            const __m512i plus = _mm512_set1_epi32(static_cast<int32_t>(2u << bit));
            const __m512i any = _mm512_set1_epi32(static_cast<int32_t>(3u << bit));
            const __mmask16 add = _mm512_test_epi32_mask(block, plus);
            const __mmask16 subtract = _mm512_testn_epi32_mask(block, any);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
              const __m512 value = _mm512_set1_ps(x[r * stride + b * kBlockInputs + i]);
              sum[r] = _mm512_mask_add_ps(sum[r], add, sum[r], value);
              sum[r] = _mm512_mask_sub_ps(sum[r], subtract, sum[r], value);
            }
          }
        }
        for (int r = 0; r < R; ++r) group[r] = _mm512_add_ps(group[r], sum[r]);
      }
      const __m512 scale =
          _mm512_loadu_ps(w.scales + ((panel * w.terms + t) * w.groups + g) * kPanelColumns);
      for (int r = 0; r < R; ++r) total[r] = _mm512_fmadd_ps(group[r], scale, total[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    finish(w, panel, total[r], 1.0f, y + r * y_stride + panel * kPanelColumns);
  }
}

}  // namespace

void multiply_float_avx512(const Weights& w, const float* x, int64_t stride, int64_t rows,
                           int64_t first_panel, int64_t last_panel, Output out) {
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    int64_t row = 0;
    for (; row + 8 <= rows; row += 8) {
      float_tile<8>(w, x + row * stride, stride, panel, out.y + row * out.stride, out.stride);
    }
    for (; row < rows; ++row) {
      float_tile<1>(w, x + row * stride, stride, panel, out.y + row * out.stride, out.stride);
    }
  }
}

}  // namespace onnxlr
