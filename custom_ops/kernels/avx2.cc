// AVX2: vpmaddubsw multiplies unsigned codes by int8 data and adds two neighbours to int16.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/x86.h"

#if defined(__GNUC__)
#include <immintrin.h>
#pragma GCC target("avx2,fma")
#endif
#include "kernels/x86_256.h"

namespace onnxlr {
namespace {

struct PairsToInt16 {
  // 64 sums of two products of at most 2 · 127 stay within int16; a block makes four of them.
  static constexpr int64_t kBlocks = 16;

  static ONNXLR_INLINE __m256i add(__m256i sum, __m256i weights, __m256i data) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, data));
  }
  static ONNXLR_INLINE __m256i widen(__m256i sum) {
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  }
};

}  // namespace

const Kernels kAvx2Kernels = {"avx2", quantize_256, multiply_int8_256<PairsToInt16>,
                              multiply_float_256};

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace onnxlr
