// AMX int8: a tile of 16 rows by 64 int8 times a tile of 64 codes by 16 columns, sixteen cycles.
//
// Four tiles of sums: 32 rows by two panels. Panels are decoded into a small ring, two steps ahead
// of the products: what is loaded as a tile must have left the store buffer, or the load waits for
// it. The vector units decode while the matrix unit multiplies, so that decoding again for each 32
// rows costs little, and nothing but the ring has to stay in the first-level cache.
#include <algorithm>
#include <cstring>

#include "kernels/avx512vnni.h"
#include "kernels/x86.h"

#if defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prfchw,amx-tile,amx-int8")
#endif
#include "kernels/amx_codes.h"

namespace onnxlr {
namespace {

constexpr int64_t kFewRows = 3;  // up to here AVX-512 is as fast
constexpr int64_t kTileRows = 16;
constexpr int64_t kBandRows = 32;  // rows that are multiplied together
constexpr int64_t kPassRows = 64;  // rows that pass over a panel before the next panel's turn
constexpr int64_t kMostPanels = 2;
constexpr int64_t kPanelsAhead = 4;  // panels from those at work to those asked for
constexpr int64_t kTileBytes = 1024;
constexpr int64_t kAhead = 2;  // steps

struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

struct Scratch {
  alignas(64) uint8_t ring[(kSlots + 1) * kMostPanels * kTileBytes];
  alignas(64) int32_t sums[2][kBandRows * kMostPanels * kPanelColumns];
  alignas(64) float totals[kBandRows * kMostPanels * kPanelColumns];
};

// Tiles 0 to 3 hold sums, by row tile and panel; 4 and 5 rows, 6 and 7 weights. Steps have four
// blocks, or two where groups are that short.
void configure(int64_t rows, int64_t step_blocks) {
  TileConfiguration configuration;
  const auto set = [&](int tile, int64_t tile_rows, int64_t bytes) {
    configuration.rows[tile] = static_cast<uint8_t>(tile_rows);
    configuration.row_bytes[tile] = static_cast<uint16_t>(bytes);
  };
  const bool two_row_tiles = rows > kTileRows;
  const int64_t lower = two_row_tiles ? rows - kTileRows : rows;
  const int64_t step_inputs = step_blocks * kBlockInputs;
  for (int tile : {0, 1}) set(tile, std::min(rows, kTileRows), 64);
  for (int tile : {2, 3}) set(tile, lower, 64);
  for (int tile : {6, 7}) set(tile, 4 * step_blocks, 64);
  set(4, std::min(rows, kTileRows), step_inputs);
  set(5, lower, step_inputs);
  asm volatile("" ::: "memory");  // gcc 12 does not know that the instruction reads memory
  _tile_loadconfig(&configuration);
}

// Rows and panels whose sums fit the tiles.
struct Band {
  const Weights& w;
  const Int8Rows& rows;
  Output out;
  int64_t row, count;
  int64_t panel;
  bool leads;  // the first band to meet these panels: the next panels are asked for on its way
};

ONNXLR_INLINE void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// A tile of inputs of each row, times the tiles of P panels in a slot; part(i) is done between
// them.
template <bool two_row_tiles, int P, int B, typename Part>
ONNXLR_INLINE void multiply_step(const int8_t* x, int64_t stride, const uint8_t* slot,
                                 const Part& part) {
  constexpr int64_t kTile = Codes<P, B>::kTile;
  part(std::integral_constant<int, 0>{});
  _tile_loadd(4, x, stride);
  _tile_loadd(6, slot, kBlockBytes);
  if constexpr (P > 1) _tile_loadd(7, slot + kTile, kBlockBytes);
  if constexpr (two_row_tiles) _tile_loadd(5, x + kTileRows * stride, stride);
  _tile_dpbssd(0, 4, 6);
  part(std::integral_constant<int, 1>{});
  if constexpr (P > 1) _tile_dpbssd(1, 4, 7);
  part(std::integral_constant<int, 2>{});
  if constexpr (two_row_tiles) _tile_dpbssd(2, 5, 6);
  part(std::integral_constant<int, 3>{});
  if constexpr (two_row_tiles && P > 1) _tile_dpbssd(3, 5, 7);
}

// Steps first to last of a term, of which steps below `decoded_to` are decoded ahead here. A
// function of its own, so that the compiler has registers enough for its addresses.
template <bool two_row_tiles, int P, int B>
ONNXLR_NOINLINE void multiply_steps(const Codes<P, B> codes, const int8_t* x, int64_t stride,
                                    int64_t first, int64_t last, int64_t decoded_to) {
  x += first * (B * kBlockInputs);
  int64_t step = first;
  for (; step < last && step + kAhead < decoded_to; ++step, x += B * kBlockInputs) {
    const auto decode_part = [&](auto part) ONNXLR_INLINE_LAMBDA {
      if constexpr (part < Codes<P, B>::kParts) {
        codes.template decode_part<part>(step + kAhead);
      }
    };
    multiply_step<two_row_tiles, P, B>(x, stride, codes.slot(step), decode_part);
  }
  for (; step < last; ++step, x += B * kBlockInputs) {
    const uint8_t* slot = step < decoded_to ? codes.slot(step) : codes.last_slot();
    multiply_step<two_row_tiles, P, B>(x, stride, slot, [](auto) {});
  }
}

// sums[row][panel][16]
template <bool two_row_tiles, int P>
ONNXLR_INLINE void store_sums(int32_t* sums) {
  constexpr int64_t kRow = P * kPanelColumns;
  _tile_stored(0, sums, kRow * 4);
  if constexpr (P > 1) _tile_stored(1, sums + kPanelColumns, kRow * 4);
  if constexpr (two_row_tiles) {
    _tile_stored(2, sums + kTileRows * kRow, kRow * 4);
    if constexpr (P > 1) _tile_stored(3, sums + kTileRows * kRow + kPanelColumns, kRow * 4);
  }
}

// Groups are counted through all terms.
template <int P>
ONNXLR_INLINE void load_scales(const Band& band, int64_t group, __m512 (&scale)[P]) {
  const int64_t groups = band.w.terms * band.w.groups;
  unrolled<P>([&](auto c) {
    scale[c] = _mm512_loadu_ps(band.w.scales + ((band.panel + c) * groups + group) * kPanelColumns);
  });
}

// totals = or += scale * sums
template <int P, bool first>
ONNXLR_INLINE void add_group(const Band& band, int64_t group, const int32_t* sums, float* totals) {
  __m512 scale[P];
  load_scales<P>(band, group, scale);
  const int64_t vectors = band.count * P;
  const auto add = [&](int64_t v, __m512 column_scale) {
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + v * kPanelColumns));
    float* total = totals + v * kPanelColumns;
    _mm512_store_ps(total, first ? _mm512_mul_ps(sum, column_scale)
                                 : _mm512_fmadd_ps(sum, column_scale, _mm512_load_ps(total)));
  };
  int64_t v = 0;
  for (; v + 4 * P <= vectors; v += 4 * P) {
    unrolled<4 * P>([&](auto i) { add(v + i, scale[i % P]); });
  }
  for (; v < vectors; v += P) unrolled<P>([&](auto i) { add(v + i, scale[i]); });
}

// The last group: y = bias + range of the row * (totals + scale * sums). `alone` says
// that there is no other group, and no totals.
template <int P, bool alone>
ONNXLR_INLINE void finish(const Band& band, const int32_t* sums, const float* totals) {
  const Weights& w = band.w;
  __m512 scale[P], bias[P];
  load_scales<P>(band, w.terms * w.groups - 1, scale);
  const int64_t n = band.panel * kPanelColumns;
  const int64_t tail = std::min(P * kPanelColumns, w.outputs - n) - (P - 1) * kPanelColumns;
  const __mmask16 last = static_cast<__mmask16>((1u << tail) - 1u);
  unrolled<P>([&](auto c) { bias[c] = _mm512_loadu_ps(w.bias + n + c * kPanelColumns); });
  float* y = band.out.y + band.row * band.out.stride + n;
  for (int64_t r = 0; r < band.count; ++r) {
    const __m512 range = _mm512_set1_ps(band.rows.scales[band.row + r]);
    unrolled<P>([&](auto c) {
      const int64_t at = c * kPanelColumns;
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + at));
      const __m512 total = alone ? _mm512_mul_ps(sum, scale[c])
                                 : _mm512_fmadd_ps(sum, scale[c], _mm512_load_ps(totals + at));
      const __m512 value = _mm512_fmadd_ps(total, range, bias[c]);
      if constexpr (c < P - 1) {
        _mm512_storeu_ps(y + at, value);
      } else {
        _mm512_mask_storeu_ps(y + at, last, value);
      }
    });
    sums += P * kPanelColumns;
    totals += P * kPanelColumns;
    y += band.out.stride;
  }
}

template <bool two_row_tiles, int P, int B>
void multiply_band(const Band& band, Scratch& scratch) {
  const Weights& w = band.w;
  // The lines of y are asked for now, and are there when the sums are done.
  float* y = band.out.y + band.row * band.out.stride + band.panel * kPanelColumns;
  for (int64_t r = 0; r < band.count; ++r, y += band.out.stride) {
    unrolled<P>([&](auto c) { __builtin_prefetch(y + c * kPanelColumns, 1); });
  }
  const int8_t* x = band.rows.codes + band.row * band.rows.stride;
  const int64_t panel_bytes = w.blocks * kBlockBytes;
  const int64_t full_steps = w.blocks / B;
  const int64_t steps = (w.blocks + B - 1) / B;
  const int64_t group_steps = (w.group_blocks + B - 1) / B;
  // What becomes of a group's sums waits until the next group's products are under way, so that the
  // vector units do it meanwhile.
  int32_t* sums = scratch.sums[0];
  const int64_t prefetch = band.leads ? kPanelsAhead * panel_bytes : 0;
  int64_t done = 0;  // groups of all terms
  for (int64_t t = 0; t < w.terms; ++t) {
    const Codes<P, B> codes{w.codes + (t * w.panels + band.panel) * panel_bytes, panel_bytes,
                            prefetch, scratch.ring};
    for (int64_t s = 0; s < std::min(kAhead, full_steps); ++s) codes.decode(s);
    if (steps > full_steps) codes.decode_last(full_steps, w.blocks - full_steps * B);
    for (int64_t g = 0; g < w.groups; ++g, ++done) {
      zero_sums();
      multiply_steps<two_row_tiles, P, B>(codes, x, band.rows.stride, g * group_steps,
                                          std::min((g + 1) * group_steps, steps), full_steps);
      if (done == 1) add_group<P, true>(band, 0, sums, scratch.totals);
      if (done > 1) add_group<P, false>(band, done - 1, sums, scratch.totals);
      sums = scratch.sums[done % 2];
      store_sums<two_row_tiles, P>(sums);
    }
  }
  if (done == 1) {
    finish<P, true>(band, sums, scratch.totals);
  } else {
    finish<P, false>(band, sums, scratch.totals);
  }
}

using BandFunction = void (*)(const Band&, Scratch&);

// By blocks in a step, row tiles, panels.
template <int B>
constexpr BandFunction kBands[2][kMostPanels] = {
    {multiply_band<false, 1, B>, multiply_band<false, 2, B>},
    {multiply_band<true, 1, B>, multiply_band<true, 2, B>}};

// Bands of equal height, over all panels: as many bands at a time as keep the rows in the cache.
void multiply_bands(const Weights& w, const Int8Rows& rows, int64_t row, int64_t bands,
                    int64_t height, int64_t first_panel, int64_t last_panel, Output out,
                    Scratch& scratch) {
  const bool short_steps = w.group_blocks == 2;
  const bool two_row_tiles = height > kTileRows;
  configure(height, short_steps ? 2 : 4);
  constexpr int64_t kPassBands = kPassRows / kBandRows;
  for (int64_t pass = 0; pass < bands; pass += kPassBands) {
    for (int64_t panel = first_panel; panel < last_panel; panel += kMostPanels) {
      const int64_t panels = std::min(kMostPanels, last_panel - panel);
      const BandFunction multiply =
          (short_steps ? kBands<2> : kBands<4>)[two_row_tiles][panels - 1];
      for (int64_t band = pass; band < std::min(pass + kPassBands, bands); ++band) {
        multiply({w, rows, out, row + band * height, height, panel, band == pass}, scratch);
      }
    }
  }
}

void multiply_int8_amx(const Weights& w, const Int8Rows& rows, int64_t first_panel,
                       int64_t last_panel, Output out) {
  if (rows.rows <= kFewRows) {
    multiply_int8_avx512(w, rows, first_panel, last_panel, out);
    return;
  }
  // Rows are split into bands of two heights at most: each height is a configuration of the tiles.
  const int64_t bands = (rows.rows + kBandRows - 1) / kBandRows;
  const int64_t height = rows.rows / bands;
  const int64_t higher = rows.rows % bands;
  Scratch scratch;
  if (higher > 0) {
    multiply_bands(w, rows, 0, higher, height + 1, first_panel, last_panel, out, scratch);
  }
  multiply_bands(w, rows, higher * (height + 1), bands - higher, height, first_panel, last_panel,
                 out, scratch);
  _tile_release();
}

}  // namespace

const Kernels kAmxKernels = {"amx", quantize_avx512, multiply_int8_amx, multiply_float_avx512};

bool has_amx() {
#if defined(__linux__)
  // The kernel hands out the tile registers on request, once for the process.
  static const bool available = [] {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    const bool amx = (edx >> 24 & 1u) && (edx >> 25 & 1u);  // tiles, and int8 products
    return amx && has_avx512vnni() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return available;
#else
  return false;
#endif
}

}  // namespace onnxlr
