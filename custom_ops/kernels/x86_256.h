// Kernels on 256-bit registers, written once for AVX2 and AVX-VNNI: they differ in how products of
// unsigned codes and int8 data are summed, which the `Dot` of each says.
//
// Include after all standard headers and after `#pragma GCC target`.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/kernel.h"
#include "kernels/unrolled.h"

namespace onnxlr {
namespace {

constexpr int64_t kHalfBytes = 32;  // eight columns of a block
constexpr int64_t kPrefetchBytes = 4096;
constexpr int64_t kFloatBlocks = 16;  // blocks summed in float before the sum joins the total

inline __m256i load_half(const uint8_t* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}

inline __m256i broadcast4(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

// Writes the columns of one half of a panel that exist.
inline void store_columns(const Weights& w, int64_t column, __m256 value, float* y) {
  const int64_t columns = w.outputs - column;
  if (columns >= 8) {
    _mm256_storeu_ps(y, value);
  } else if (columns > 0) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, value);
    std::memcpy(y, lanes, static_cast<size_t>(columns) * 4);
  }
}

// Sums of R rows with one panel over blocks first to last. Few rows use several sums each, since a
// sum must wait for its last product.
template <typename Dot, int R>
ONNXLR_NOINLINE void add_blocks(const uint8_t* panel, const int8_t* row, int64_t stride,
                                int64_t first, int64_t last, __m256i (&result)[R][2]) {
  constexpr int kSums = R == 1 ? 4 : R == 2 ? 2 : 1;
  const __m256i mask = _mm256_set1_epi32(0x03030303);
  unrolled<R>([&](auto r) { unrolled<2>([&](auto h) { result[r][h] = _mm256_setzero_si256(); }); });
  for (int64_t begin = first; begin < last; begin += Dot::kBlocks) {
    const int64_t end = std::min(begin + Dot::kBlocks, last);
    __m256i sum[R][2][kSums];
    unrolled<R>([&](auto r) {
      unrolled<2>(
          [&](auto h) { unrolled<kSums>([&](auto i) { sum[r][h][i] = _mm256_setzero_si256(); }); });
    });
    const uint8_t* codes = panel + begin * kBlockBytes;
    const int8_t* x = row + begin * kBlockInputs;
    for (int64_t b = begin; b < end; ++b, codes += kBlockBytes, x += kBlockInputs) {
      // Panels follow each other in memory: what comes next is asked for.
      _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetchBytes), _MM_HINT_T1);
      unrolled<4>([&](auto q) {
        __m256i weights[2];
        unrolled<2>([&](auto h) {
          const __m256i half = load_half(codes + h * kHalfBytes);
          weights[h] = _mm256_and_si256(_mm256_srli_epi32(half, 2 * q), mask);
        });
        unrolled<R>([&](auto r) {
          const __m256i data = broadcast4(x + r * stride + 4 * q);
          unrolled<2>([&](auto h) {
            constexpr int i = q % kSums;
            sum[r][h][i] = Dot::add(sum[r][h][i], weights[h], data);
          });
        });
      });
    }
    unrolled<R>([&](auto r) {
      unrolled<2>([&](auto h) {
        unrolled<kSums>([&](auto i) {
          result[r][h] = _mm256_add_epi32(result[r][h], Dot::widen(sum[r][h][i]));
        });
      });
    });
  }
}

template <typename Dot, int R>
void multiply_tile(const Weights& w, const Int8Rows& rows, int64_t row, int64_t panel, Output out) {
  const int8_t* x = rows.codes + row * rows.stride;
  __m256 total[R][2];
  unrolled<R>([&](auto r) { unrolled<2>([&](auto h) { total[r][h] = _mm256_setzero_ps(); }); });
  for (int64_t t = 0; t < w.terms; ++t) {
    const uint8_t* codes = w.codes + (t * w.panels + panel) * w.blocks * kBlockBytes;
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t first = g * w.group_blocks;
      const float* scales = w.scales + ((panel * w.terms + t) * w.groups + g) * kPanelColumns;
      __m256i sum[R][2];
      add_blocks<Dot, R>(codes, x, rows.stride, first, std::min(first + w.group_blocks, w.blocks),
                         sum);
      unrolled<R>([&](auto r) {
        const __m256i row_sum = _mm256_set1_epi32(rows.sums[(row + r) * w.groups + g]);
        unrolled<2>([&](auto h) {
          const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum[r][h], row_sum));
          total[r][h] = _mm256_fmadd_ps(exact, _mm256_loadu_ps(scales + 8 * h), total[r][h]);
        });
      });
    }
  }
  unrolled<R>([&](auto r) {
    const __m256 scale = _mm256_set1_ps(rows.scales[row + r]);
    unrolled<2>([&](auto h) {
      const int64_t column = panel * kPanelColumns + 8 * h;
      const __m256 value = _mm256_fmadd_ps(total[r][h], scale, _mm256_loadu_ps(w.bias + column));
      store_columns(w, column, value, out.y + (row + r) * out.stride + column);
    });
  });
}

template <typename Dot>
void multiply_int8_256(const Weights& w, const Int8Rows& rows, int64_t first_panel,
                       int64_t last_panel, Output out) {
  using Tile = void (*)(const Weights&, const Int8Rows&, int64_t, int64_t, Output);
  constexpr Tile kTiles[] = {multiply_tile<Dot, 1>, multiply_tile<Dot, 2>, multiply_tile<Dot, 3>,
                             multiply_tile<Dot, 4>, multiply_tile<Dot, 5>};
  constexpr int64_t kMostRows = 5;
  const int64_t strips = (rows.rows + kMostRows - 1) / kMostRows;
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t row = rows.rows * s / strips;
      kTiles[rows.rows * (s + 1) / strips - row - 1](w, rows, row, panel, out);
    }
  }
}

void quantize_256(const Weights& w, const float* x, const float* input_scale, int8_t* codes,
                  int64_t stride, float* scale, int32_t* sums) {
  const auto load = [&](const float* from, int64_t k) {
    const int64_t left = w.inputs - k;
    if (left >= 8) return _mm256_loadu_ps(from + k);
    alignas(32) float lanes[8] = {};
    if (left > 0) std::memcpy(lanes, from + k, static_cast<size_t>(left) * 4);
    return _mm256_load_ps(lanes);
  };
  const auto scaled = [&](int64_t k) {
    const __m256 value = load(x, k);
    return input_scale == nullptr ? value : _mm256_mul_ps(value, load(input_scale, k));
  };
  // As integers, absolute values order the same way, and what is not finite is largest of all.
  const __m256i absolute = _mm256_set1_epi32(0x7FFFFFFF);
  __m256i most = _mm256_setzero_si256();
  for (int64_t k = 0; k < w.inputs; k += 8) {
    most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(scaled(k)), absolute));
  }
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
  const uint32_t bits = *std::max_element(lanes, lanes + 8);
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
  const __m256 inverse = _mm256_set1_ps(127.0f / largest);
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const auto rounded = [&](int64_t k) {
    return _mm256_cvtps_epi32(_mm256_round_ps(_mm256_mul_ps(scaled(k), inverse), kNearest));
  };
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i one_bytes = _mm256_set1_epi8(1), one_words = _mm256_set1_epi16(1);
  const int64_t group_inputs = w.group_blocks * kBlockInputs;
  int64_t group = 0;
  __m256i sum = _mm256_setzero_si256();
  for (int64_t k = 0; k < stride; k += 32) {
    __m256i packed = _mm256_setzero_si256();
    if (k < w.inputs) {
      const __m256i low = _mm256_packs_epi32(rounded(k), rounded(k + 8));
      const __m256i high = _mm256_packs_epi32(rounded(k + 16), rounded(k + 24));
      packed = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + k), packed);
    sum = _mm256_add_epi32(sum,
                           _mm256_madd_epi16(_mm256_maddubs_epi16(one_bytes, packed), one_words));
    const int64_t end = k + 32;
    if (group < w.groups && (end >= w.inputs || end == (group + 1) * group_inputs)) {
      alignas(32) int32_t parts[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(parts), sum);
      int32_t total = 0;
      for (const int32_t part : parts) total += part;
      sums[group++] = total;
      sum = _mm256_setzero_si256();
    }
  }
}

// For each input, two masks say which of eight columns add it and which subtract it.
template <int R>
void float_tile(const Weights& w, const float* x, int64_t stride, int64_t panel, int h, float* y,
                int64_t y_stride) {
  __m256 total[R];
  unrolled<R>([&](auto r) { total[r] = _mm256_setzero_ps(); });
  for (int64_t t = 0; t < w.terms; ++t) {
    const uint8_t* codes =
        w.codes + (t * w.panels + panel) * w.blocks * kBlockBytes + h * kHalfBytes;
    for (int64_t g = 0; g < w.groups; ++g) {
      const int64_t end = std::min((g + 1) * w.group_blocks, w.blocks);
      __m256 group[R];
      unrolled<R>([&](auto r) { group[r] = _mm256_setzero_ps(); });
      for (int64_t first = g * w.group_blocks; first < end; first += kFloatBlocks) {
        __m256 sum[R];
        unrolled<R>([&](auto r) { sum[r] = _mm256_setzero_ps(); });
        for (int64_t b = first; b < std::min(first + kFloatBlocks, end); ++b) {
          const __m256i block = load_half(codes + b * kBlockBytes);
          const int64_t count = std::min(kBlockInputs, w.inputs - b * kBlockInputs);
          for (int64_t i = 0; i < count; ++i) {
            const int bit = static_cast<int>(8 * (i % 4) + 2 * (i / 4));
            const __m256i two = _mm256_set1_epi32(static_cast<int32_t>(2u << bit));
            const __m256i any = _mm256_set1_epi32(static_cast<int32_t>(3u << bit));
            const __m256 add =
                _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(block, two), two));
            const __m256 subtract = _mm256_castsi256_ps(
                _mm256_cmpeq_epi32(_mm256_and_si256(block, any), _mm256_setzero_si256()));
            unrolled<R>([&](auto r) {
              const __m256 value = _mm256_set1_ps(x[r * stride + b * kBlockInputs + i]);
              sum[r] = _mm256_add_ps(sum[r], _mm256_and_ps(value, add));
              sum[r] = _mm256_sub_ps(sum[r], _mm256_and_ps(value, subtract));
            });
          }
        }
        unrolled<R>([&](auto r) { group[r] = _mm256_add_ps(group[r], sum[r]); });
      }
      const __m256 scale = _mm256_loadu_ps(
          w.scales + ((panel * w.terms + t) * w.groups + g) * kPanelColumns + 8 * h);
      unrolled<R>([&](auto r) { total[r] = _mm256_fmadd_ps(group[r], scale, total[r]); });
    }
  }
  const int64_t column = panel * kPanelColumns + 8 * h;
  unrolled<R>([&](auto r) {
    store_columns(w, column, _mm256_add_ps(total[r], _mm256_loadu_ps(w.bias + column)),
                  y + r * y_stride + column);
  });
}

void multiply_float_256(const Weights& w, const float* x, int64_t stride, int64_t rows,
                        int64_t first_panel, int64_t last_panel, Output out) {
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int h = 0; h < 2; ++h) {
      int64_t row = 0;
      for (; row + 4 <= rows; row += 4) {
        float_tile<4>(w, x + row * stride, stride, panel, h, out.y + row * out.stride, out.stride);
      }
      for (; row < rows; ++row) {
        float_tile<1>(w, x + row * stride, stride, panel, h, out.y + row * out.stride, out.stride);
      }
    }
  }
}

}  // namespace
}  // namespace onnxlr
