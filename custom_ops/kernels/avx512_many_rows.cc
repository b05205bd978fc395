// Many rows with AVX-512-VNNI.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "kernels/avx512vnni.h"

#if defined(__GNUC__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#include "kernels/avx512.h"

namespace onnxlr {
namespace {

// Many rows: a stretch of three panels is decoded once, to lie in the first-level cache while all
// rows pass over it eight at a time.
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
          sum[r][c] =
              _mm512_dpbusd_epi32(sum[r][c], load(weights + (q * C + c) * kBlockBytes), data);
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

}  // namespace

void multiply_many_rows_avx512(const Weights& w, const Int8Rows& rows, int64_t first_panel,
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

}  // namespace onnxlr
