// What kernels on 512-bit registers have in common.
//
// Include after all standard headers and after `#pragma GCC target`.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/kernel.h"
#include "kernels/unrolled.h"

namespace onnxlr {
namespace {

inline __m512i decode(__m512i block, int quarter) {
  return _mm512_and_si512(_mm512_srli_epi32(block, static_cast<unsigned>(2 * quarter)),
                          _mm512_set1_epi32(0x03030303));
}

inline __m512i broadcast4(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

inline __m512i load(const uint8_t* p) {
  return _mm512_load_si512(reinterpret_cast<const void*>(p));
}

// Sums of products of one group, scaled: total += scale * (sum - sum of the row's codes).
inline __m512 add_group(__m512 total, __m512i sum, int32_t row_sum, __m512 scale) {
  const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(row_sum)));
  return _mm512_fmadd_ps(exact, scale, total);
}

inline __mmask16 columns_of(const Weights& w, int64_t panel) {
  const int64_t columns = std::min<int64_t>(kPanelColumns, w.outputs - panel * kPanelColumns);
  return static_cast<__mmask16>((1u << columns) - 1u);
}

inline void finish(const Weights& w, int64_t panel, __m512 total, float scale, float* y) {
  const __m512 bias = _mm512_loadu_ps(w.bias + panel * kPanelColumns);
  _mm512_mask_storeu_ps(y, columns_of(w, panel),
                        _mm512_fmadd_ps(total, _mm512_set1_ps(scale), bias));
}

// The rows and panels that one call of a tile works on.
struct Tile {
  const Weights& w;
  const Int8Rows& rows;
  Output out;
  int64_t row, panel;

  const uint8_t* codes(int64_t term, int64_t c) const {
    return w.codes + ((term * w.panels + panel + c) * w.blocks) * kBlockBytes;
  }
  const float* scales(int64_t term, int64_t group, int64_t c) const {
    return w.scales + (((panel + c) * w.terms + term) * w.groups + group) * kPanelColumns;
  }
  int32_t sum(int64_t r, int64_t group) const { return rows.sums[(row + r) * w.groups + group]; }
  const int8_t* x(int64_t r) const { return rows.codes + (row + r) * rows.stride; }
  void finish(int64_t r, int64_t c, __m512 total) const {
    onnxlr::finish(w, panel + c, total, rows.scales[row + r],
                   out.y + (row + r) * out.stride + (panel + c) * kPanelColumns);
  }
};

}  // namespace
}  // namespace onnxlr
