// Rounding rows to int8 with AVX-512.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/avx512vnni.h"

#if defined(__GNUC__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#include "kernels/unrolled.h"

namespace onnxlr {
namespace {

// Numbers of a row, times their scales if there are any, sixteen at a time; zeros beyond the last.
template <bool with_scales>
struct Row {
  const float* x;
  const float* scales;
  int64_t count;

  ONNXLR_INLINE __m512 whole(int64_t k) const {
    const __m512 value = _mm512_loadu_ps(x + k);
    return with_scales ? _mm512_mul_ps(value, _mm512_loadu_ps(scales + k)) : value;
  }
  ONNXLR_INLINE __m512 partial(int64_t k) const {
    const int64_t left = std::clamp<int64_t>(count - k, 0, 16);
    const __mmask16 mask = static_cast<__mmask16>((1u << left) - 1u);
    const __m512 value = _mm512_maskz_loadu_ps(mask, x + k);
    return with_scales ? _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, scales + k)) : value;
  }
};

// The bits of the largest absolute value. As integers, absolute values order as they do as floats,
// and what is not finite is largest of all.
template <bool with_scales>
uint32_t largest_bits(const Row<with_scales>& row) {
  const __m512i absolute = _mm512_set1_epi32(0x7FFFFFFF);
  const auto larger = [&](__m512i most, __m512 value) ONNXLR_INLINE_LAMBDA {
    return _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(value), absolute));
  };
  __m512i most[4];
  unrolled<4>([&](auto i) ONNXLR_INLINE_LAMBDA { most[i] = _mm512_setzero_si512(); });
  int64_t k = 0;
  for (; k + 64 <= row.count; k += 64) {
    unrolled<4>([&](auto i)
                    ONNXLR_INLINE_LAMBDA { most[i] = larger(most[i], row.whole(k + 16 * i)); });
  }
  for (; k < row.count; k += 16) most[0] = larger(most[0], row.partial(k));
  return _mm512_reduce_max_epu32(
      _mm512_max_epu32(_mm512_max_epu32(most[0], most[1]), _mm512_max_epu32(most[2], most[3])));
}

template <bool with_scales>
void quantize_row(const Weights& w, const Row<with_scales>& row, int8_t* codes, int64_t stride,
                  float* scale, int32_t* sums) {
  const uint32_t bits = largest_bits(row);
  if (bits >= 0x7F800000u) {
    std::memset(codes, 0, static_cast<size_t>(stride));
    std::fill(sums, sums + w.groups, 0);
    *scale = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  float largest;
  std::memcpy(&largest, &bits, 4);
  largest = std::max(largest, kSmallestRange);
  *scale = largest / 127.0f;
  const __m512 inverse = _mm512_set1_ps(127.0f / largest);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const auto rounded = [&](__m512 value) ONNXLR_INLINE_LAMBDA {
    return _mm512_cvt_roundps_epi32(_mm512_mul_ps(value, inverse),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  };
  const auto packed = [&](__m512 a, __m512 b, __m512 c, __m512 d) ONNXLR_INLINE_LAMBDA {
    const __m512i low = _mm512_packs_epi32(rounded(a), rounded(b));
    const __m512i high = _mm512_packs_epi32(rounded(c), rounded(d));
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
  };
  const int64_t group_inputs = w.group_blocks * kBlockInputs;
  int64_t group = 0;
  __m512i sum = _mm512_setzero_si512();
  const auto store = [&](int64_t k, __m512i line) ONNXLR_INLINE_LAMBDA {
    _mm512_store_si512(codes + k, line);
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), line);
    const int64_t end = k + kRowAlignment;
    if (group_inputs == 32) {
      for (int half = 0; half < 2 && group < w.groups; ++half) {
        sums[group++] = _mm512_mask_reduce_add_epi32(half ? 0xFF00 : 0x00FF, sum);
      }
      sum = _mm512_setzero_si512();
    } else if (end >= (group + 1) * group_inputs && group + 1 < w.groups) {
      sums[group++] = _mm512_reduce_add_epi32(sum);
      sum = _mm512_setzero_si512();
    }
  };
  int64_t k = 0;
  for (; k + 64 <= row.count; k += 64) {
    store(k, packed(row.whole(k), row.whole(k + 16), row.whole(k + 32), row.whole(k + 48)));
  }
  if (k < row.count) {
    store(k, packed(row.partial(k), row.partial(k + 16), row.partial(k + 32), row.partial(k + 48)));
    k += kRowAlignment;
  }
  if (group < w.groups) sums[group] = _mm512_reduce_add_epi32(sum);
  for (; k < stride; k += kRowAlignment) _mm512_store_si512(codes + k, _mm512_setzero_si512());
}

}  // namespace

void quantize_avx512(const Weights& w, const float* x, const float* input_scale, int8_t* codes,
                     int64_t stride, float* scale, int32_t* sums) {
  if (input_scale == nullptr) {
    quantize_row(w, Row<false>{x, nullptr, w.inputs}, codes, stride, scale, sums);
  } else {
    quantize_row(w, Row<true>{x, input_scale, w.inputs}, codes, stride, scale, sums);
  }
}

}  // namespace onnxlr
