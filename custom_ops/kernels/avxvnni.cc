// AVX-VNNI: vpdpbusd on 256-bit registers, which most client processors have.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/x86.h"

#if defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#pragma GCC target("avx2,fma,avxvnni")
#endif
#include "kernels/x86_256.h"

namespace onnxlr {
namespace {

struct FoursToInt32 {
  static constexpr int64_t kBlocks = std::numeric_limits<int32_t>::max();  // K is limited instead

  static ONNXLR_INLINE __m256i add(__m256i sum, __m256i weights, __m256i data) {
    return _mm256_dpbusd_avx_epi32(sum, weights, data);
  }
  static ONNXLR_INLINE __m256i widen(__m256i sum) { return sum; }
};

}  // namespace

const Kernels kAvxVnniKernels = {"avxvnni", quantize_256, multiply_int8_256<FoursToInt32>,
                                 multiply_float_256};

bool has_avxvnni() {
  // gcc 12 has no name for it: leaf 7, sub-leaf 1, bit 4 of EAX.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!has_avx2() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || eax < 1) return false;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1u);
}

}  // namespace onnxlr
