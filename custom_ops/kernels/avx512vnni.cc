// AVX-512 with VNNI: vpdpbusd multiplies unsigned codes 0, 1, 2 by int8 data and adds four
// neighbours.
//
// Since the codes are the weights plus one, the sum of the row is taken off at the end of each
// group.
#include "kernels/avx512vnni.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "kernels/x86.h"

#if defined(__GNUC__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#include "kernels/avx512.h"

namespace onnxlr {
namespace {

constexpr int64_t kFewRows = 24;               // up to here, decoding as it goes costs less
constexpr int64_t kLongGroupBlocks = 32;       // in shorter groups as well
constexpr int64_t kShiftlessBlocks = 1 << 14;  // 64 · 2 · 127 · 4 a block stays below 2^31

// One row: the four codes of a byte stay where they are, at 1, 4, 16 and 64 times their value, each
// in a sum of its own. It saves the shifts, which would cost as much as the products. Panels are
// read one after the other, so that memory sees a single stream, asked for ahead of the processor's
// own guess.
constexpr int64_t kPrefetchBytes = 4096;

template <int blocks>
ONNXLR_INLINE void add_blocks_of_row(const uint8_t* codes, const int8_t* x, __m512i (*sum)[4]) {
  unrolled<blocks>([&](auto i) {
    const uint8_t* at = codes + i * kBlockBytes;
    _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetchBytes), _MM_HINT_T1);
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
    quarter[q] =
        _mm512_srai_epi32(_mm512_add_epi32(sum[0][q], sum[1][q]), static_cast<unsigned>(2 * q));
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
          sum = _mm512_add_epi32(sum,
                                 sum_of_row(codes + b * kBlockBytes, rows.codes + b * kBlockInputs,
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
        unrolled<C>([&](auto c) { sum[r][c] = _mm512_dpbusd_epi32(sum[r][c], weights[c], data); });
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
  // Rows are split evenly: 24 rows are 8 + 8 + 8, not 11 + 11 + 2.
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

}  // namespace

void multiply_int8_avx512(const Weights& w, const Int8Rows& rows, int64_t first_panel,
                          int64_t last_panel, Output out) {
  if (rows.rows == 0) return;
  if (rows.rows == 1) {
    multiply_row(w, rows, first_panel, last_panel, out);
  } else if (rows.rows > kFewRows && w.group_blocks >= kLongGroupBlocks) {
    multiply_many_rows_avx512(w, rows, first_panel, last_panel, out);
  } else {
    multiply_few_rows(w, rows, first_panel, last_panel, out);
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
