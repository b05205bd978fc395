// AVX-512 with VNNI: vpdpbusd multiplies unsigned codes 0, 1, 2 by int8 data and adds four neighbours.
//
// Since the codes are the weights plus one, the sum of the row is taken off at the end of each group.
#include "kernels/avx512vnni.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/x86.h"

#if defined(__GNUC__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#include "kernels/unrolled.h"

namespace onnxlr {
namespace {

constexpr float kSmallestRange = 1e-30f;
constexpr int64_t kFloatBlocks = 16;       // blocks summed in float before the sum joins the total
constexpr int64_t kShiftlessBlocks = 1 << 14;  // 64 · 2 · 127 · 4 a block stays below 2^31

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

// One row: the four codes of a byte stay where they are, at 1, 4, 16 and 64 times their value, each in
// a sum of its own. It saves the shifts, which would cost as much as the products. Panels are read one
// after the other, so that memory sees a single stream, asked for ahead of the processor's own guess.
constexpr int64_t kPrefetchBytes = 4096;

template <int blocks>
ONNXLR_INLINE void add_blocks_of_row(const uint8_t* codes, const int8_t* x, __m512i (*sum)[4]) {
  unrolled<blocks>([&](auto i) {
    const uint8_t* at = codes + i * kBlockBytes;
    _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetchBytes), _MM_HINT_T0);
    const __m512i block = load(at);
    unrolled<4>([&](auto q) {
      const __m512i mask = _mm512_set1_epi32(static_cast<int32_t>(0x03030303u << (2 * q)));
      sum[i][q] = _mm512_dpbusd_epi32(sum[i][q], _mm512_and_si512(block, mask),
                                      broadcast4(x + i * kBlockInputs + 4 * q));
    });
  });
}

ONNXLR_NOINLINE __m512i sum_of_row(const uint8_t* codes, const int8_t* x, int64_t blocks) {
  __m512i sum[2][4];  // two blocks at a time: a sum must wait for its last product
  unrolled<2>([&](auto i) { unrolled<4>([&](auto q) { sum[i][q] = _mm512_setzero_si512(); }); });
  for (int64_t pair = 0; pair < blocks / 2; ++pair) {
    add_blocks_of_row<2>(codes, x, sum);
    codes += 2 * kBlockBytes;
    x += 2 * kBlockInputs;
  }
  if (blocks % 2 != 0) add_blocks_of_row<1>(codes, x, sum);
  __m512i quarter[4];
  unrolled<4>([&](auto q) {
    quarter[q] = _mm512_srai_epi32(_mm512_add_epi32(sum[0][q], sum[1][q]),
                                   static_cast<unsigned>(2 * q));
  });
  return _mm512_add_epi32(_mm512_add_epi32(quarter[0], quarter[1]),
                          _mm512_add_epi32(quarter[2], quarter[3]));
}

void multiply_row(const Weights& w, const Int8Rows& rows, int64_t first_panel, int64_t last_panel,
                  Output out) {
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    __m512 total = _mm512_setzero_ps();
    for (int64_t t = 0; t < w.terms; ++t) {
      const uint8_t* codes = w.codes + (t * w.panels + panel) * w.blocks * kBlockBytes;
      const float* scales = w.scales + (panel * w.terms + t) * w.groups * kPanelColumns;
      for (int64_t g = 0; g < w.groups; ++g) {
        const int64_t end = std::min((g + 1) * w.group_blocks, w.blocks);
        __m512i sum = _mm512_setzero_si512();
        for (int64_t b = g * w.group_blocks; b < end; b += kShiftlessBlocks) {
          sum = _mm512_add_epi32(sum, sum_of_row(codes + b * kBlockBytes,
                                                 rows.codes + b * kBlockInputs,
                                                 std::min(kShiftlessBlocks, end - b)));
        }
        total = add_group(total, sum, rows.sums[g], _mm512_loadu_ps(scales + g * kPanelColumns));
      }
    }
    finish(w, panel, total, rows.scales[0], out.y + panel * kPanelColumns);
  }
}

// More rows: codes are shifted to their place once for all rows of the tile. Not inlined: with the
// sums as its own variables, the compiler keeps all of them in registers.
template <int R, int C>
ONNXLR_NOINLINE void add_blocks(const Tile& tile, int64_t term, int64_t first, int64_t last,
                                __m512i (&result)[R][C]) {
  __m512i sum[R][C];
  unrolled<R>([&](auto r) { unrolled<C>([&](auto c) { sum[r][c] = _mm512_setzero_si512(); }); });
  const uint8_t* codes[C];
  unrolled<C>([&](auto c) { codes[c] = tile.codes(term, c) + first * kBlockBytes; });
  // Rows in fours: one pointer for each four, and the stride, keep all addresses in registers.
  constexpr int kFours = (R + 3) / 4;
  const int64_t stride = tile.rows.stride;
  const int8_t* x[kFours];
  unrolled<kFours>([&](auto f) { x[f] = tile.x(4 * f) + first * kBlockInputs; });
  const int64_t next_tile = C * tile.w.blocks * kBlockBytes;
  for (int64_t b = first; b < last; ++b) {
    unrolled<C>([&](auto c) {
      _mm_prefetch(reinterpret_cast<const char*>(codes[c] + next_tile), _MM_HINT_T1);
    });
    unrolled<4>([&](auto q) {
      __m512i weights[C];
      unrolled<C>([&](auto c) { weights[c] = decode(load(codes[c]), q); });
      unrolled<R>([&](auto r) {
        const __m512i data = broadcast4(x[r / 4] + (r % 4) * stride + 4 * q);
        unrolled<C>(
            [&](auto c) { sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], weights[c], data); });
      });
    });
    unrolled<C>([&](auto c) { codes[c] += kBlockBytes; });
    unrolled<kFours>([&](auto f) { x[f] += kBlockInputs; });
  }
  unrolled<R>([&](auto r) { unrolled<C>([&](auto c) { result[r][c] = sum[r][c]; }); });
}

// R rows of C panels. The sums of a group stay in registers; totals over groups need not.
template <int R, int C>
void multiply_tile(const Tile& tile) {
  const Weights& w = tile.w;
  __m512 total[R][C];
  unrolled<R>([&](auto r) { unrolled<C>([&](auto c) { total[r][c] = _mm512_setzero_ps(); }); });
  for (int64_t t = 0; t < w.terms; ++t) {
    for (int64_t g = 0; g < w.groups; ++g) {
      __m512i sum[R][C];
      const int64_t first = g * w.group_blocks;
      const int64_t last = std::min(first + w.group_blocks, w.blocks);
      add_blocks<R, C>(tile, t, first, last, sum);
      unrolled<R>([&](auto r) {
        unrolled<C>([&](auto c) {
          const __m512 scale = _mm512_loadu_ps(tile.scales(t, g, c));
          total[r][c] = add_group(total[r][c], sum[r][c], tile.sum(r, g), scale);
        });
      });
    }
  }
  unrolled<R>([&](auto r) { unrolled<C>([&](auto c) { tile.finish(r, c, total[r][c]); }); });
}

using TileFunction = void (*)(const Tile&);

constexpr int kMostRows = 11;
constexpr int kMostPanels = 4;
constexpr int kMostSums = 24;  // registers for sums; with more, gcc keeps some in memory

template <int R, int C>
constexpr TileFunction tile_function() {
  if constexpr (R * C > kMostSums) {
    return nullptr;
  } else {
    return multiply_tile<R, C>;
  }
}

template <int... I>
constexpr std::array<TileFunction, sizeof...(I)> tile_table(std::integer_sequence<int, I...>) {
  return {tile_function<I / kMostPanels + 1, I % kMostPanels + 1>()...};
}

constexpr auto kTiles = tile_table(std::make_integer_sequence<int, kMostRows * kMostPanels>());

// Panels side by side for a number of rows: as many as leave the sums in registers.
constexpr int64_t width_for(int64_t rows) {
  return std::min<int64_t>(kMostPanels, kMostSums / rows);
}

void multiply_few_rows(const Weights& w, const Int8Rows& rows, int64_t first_panel,
                       int64_t last_panel, Output out) {
  // Rows are split evenly: 32 rows are 11 + 11 + 10, not 14 + 14 + 4.
  const int64_t strips = (rows.rows + kMostRows - 1) / kMostRows;
  const int64_t widest = width_for((rows.rows + strips - 1) / strips);
  for (int64_t panel = first_panel; panel < last_panel; panel += widest) {
    const int64_t width = std::min(widest, last_panel - panel);
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t row = rows.rows * s / strips;
      const int64_t count = rows.rows * (s + 1) / strips - row;
      kTiles[(count - 1) * kMostPanels + width - 1]({w, rows, out, row, panel});
    }
  }
}

// Many rows: a stretch of three panels is decoded once, to lie in the first-level cache while all
// rows pass over it eight at a time.
constexpr int64_t kFewRows = 24;   // up to here, decoding as it goes costs less
constexpr int64_t kManyRows = 64;
constexpr int kStripRows = 8;
constexpr int kStripPanels = 3;
constexpr int64_t kStretchBlocks = 32;

struct Stretch {
  alignas(64) uint8_t weights[kStretchBlocks * 4 * kStripPanels * kBlockBytes];
  alignas(64) int32_t sums[kManyRows * kStripPanels * kPanelColumns];
  alignas(64) float totals[kManyRows * kStripPanels * kPanelColumns];
};

// weights[block][quarter][panel][64]: one code a byte, in the order in which vpdpbusd takes them.
void decode_stretch(const Weights& w, int64_t term, int64_t panel, int64_t panels, int64_t first,
                    int64_t last, uint8_t* weights) {
  for (int64_t c = 0; c < panels; ++c) {
    const uint8_t* codes = w.codes + (term * w.panels + panel + c) * w.blocks * kBlockBytes;
    uint8_t* to = weights + c * kBlockBytes;
    for (int64_t b = first; b < last; ++b) {
      const __m512i block = load(codes + b * kBlockBytes);
      unrolled<4>([&](auto q) {
        _mm512_store_si512(to, decode(block, q));
        to += panels * kBlockBytes;
      });
    }
  }
}

using StripFunction = void (*)(const uint8_t* weights, const int8_t* x, int64_t stride,
                               int64_t blocks, int32_t* sums);

// sums[row][panel][16] += products of R rows with C decoded panels.
template <int R, int C>
void add_strip(const uint8_t* weights, const int8_t* first_row, int64_t stride, int64_t blocks,
               int32_t* sums) {
  __m512i sum[R][C];
  unrolled<R>([&](auto r) {
    unrolled<C>([&](auto c) { sum[r][c] = _mm512_load_si512(sums + (r * C + c) * kPanelColumns); });
  });
  constexpr int kFours = (R + 3) / 4;
  const int8_t* x[kFours];
  unrolled<kFours>([&](auto f) { x[f] = first_row + 4 * f * stride; });
  for (int64_t b = 0; b < blocks; ++b) {
    unrolled<4>([&](auto q) {
      unrolled<R>([&](auto r) {
        const __m512i data = broadcast4(x[r / 4] + (r % 4) * stride + 4 * q);
        unrolled<C>([&](auto c) {
          sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], load(weights + (q * C + c) * kBlockBytes), data);
        });
      });
    });
    weights += 4 * C * kBlockBytes;
    unrolled<kFours>([&](auto f) { x[f] += kBlockInputs; });
  }
  unrolled<R>([&](auto r) {
    unrolled<C>([&](auto c) { _mm512_store_si512(sums + (r * C + c) * kPanelColumns, sum[r][c]); });
  });
}

template <int... I>
constexpr std::array<StripFunction, sizeof...(I)> strip_table(std::integer_sequence<int, I...>) {
  return {add_strip<I / kStripPanels + 1, I % kStripPanels + 1>...};
}

constexpr auto kStrips = strip_table(std::make_integer_sequence<int, kStripRows * kStripPanels>());

// The products of all rows with one group of inputs of a few panels, added to the totals.
void add_group_of_many(const Tile& tile, int64_t count, int64_t panels, int64_t term, int64_t group,
                       Stretch& stretch) {
  const Weights& w = tile.w;
  const int64_t end = std::min((group + 1) * w.group_blocks, w.blocks);
  const int64_t strips = (count + kStripRows - 1) / kStripRows;
  std::memset(stretch.sums, 0, static_cast<size_t>(count * panels * kPanelColumns) * 4);
  for (int64_t first = group * w.group_blocks; first < end; first += kStretchBlocks) {
    const int64_t last = std::min(first + kStretchBlocks, end);
    decode_stretch(w, term, tile.panel, panels, first, last, stretch.weights);
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t row = count * s / strips;
      const int64_t rows = count * (s + 1) / strips - row;
      kStrips[(rows - 1) * kStripPanels + panels - 1](
          stretch.weights, tile.x(row) + first * kBlockInputs, tile.rows.stride, last - first,
          stretch.sums + row * panels * kPanelColumns);
    }
  }
  for (int64_t c = 0; c < panels; ++c) {
    const __m512 scale = _mm512_loadu_ps(tile.scales(term, group, c));
    const int32_t* row_sum = tile.rows.sums + tile.row * w.groups + group;
    for (int64_t r = 0; r < count; ++r, row_sum += w.groups) {
      const int64_t at = (r * panels + c) * kPanelColumns;
      const __m512i sum = _mm512_load_si512(stretch.sums + at);
      const __m512 total = _mm512_load_ps(stretch.totals + at);
      _mm512_store_ps(stretch.totals + at, add_group(total, sum, *row_sum, scale));
    }
  }
}

void multiply_many_rows(const Weights& w, const Int8Rows& rows, int64_t first_panel,
                        int64_t last_panel, Output out) {
  Stretch stretch;
  const int64_t bands = (rows.rows + kManyRows - 1) / kManyRows;
  for (int64_t band = 0; band < bands; ++band) {
    const int64_t row = rows.rows * band / bands;
    const int64_t count = rows.rows * (band + 1) / bands - row;
    for (int64_t panel = first_panel; panel < last_panel; panel += kStripPanels) {
      const int64_t panels = std::min<int64_t>(kStripPanels, last_panel - panel);
      const Tile tile{w, rows, out, row, panel};
      std::memset(stretch.totals, 0, static_cast<size_t>(count * panels * kPanelColumns) * 4);
      for (int64_t t = 0; t < w.terms; ++t) {
        for (int64_t g = 0; g < w.groups; ++g) {
          add_group_of_many(tile, count, panels, t, g, stretch);
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t c = 0; c < panels; ++c) {
          tile.finish(r, c, _mm512_load_ps(stretch.totals + (r * panels + c) * kPanelColumns));
        }
      }
    }
  }
}

}  // namespace

void multiply_int8_avx512(const Weights& w, const Int8Rows& rows, int64_t first_panel,
                          int64_t last_panel, Output out) {
  if (rows.rows == 0) return;
  if (rows.rows == 1) {
    multiply_row(w, rows, first_panel, last_panel, out);
  } else if (rows.rows > kFewRows && w.group_blocks >= kStretchBlocks) {
    multiply_many_rows(w, rows, first_panel, last_panel, out);
  } else {
    multiply_few_rows(w, rows, first_panel, last_panel, out);
  }
}

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

// The bits of the largest absolute value. As integers, absolute values order as they do as floats, and
// what is not finite is largest of all.
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
    unrolled<4>([&](auto i) ONNXLR_INLINE_LAMBDA {
      most[i] = larger(most[i], row.whole(k + 16 * i));
    });
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

namespace {

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

const Kernels kAvx512VnniKernels = {"avx512vnni", quantize_avx512, multiply_int8_avx512,
                                    multiply_float_avx512};

bool has_avx512vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

}  // namespace onnxlr
