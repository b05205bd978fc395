// Panels of weights as AMX takes them: decoded to tiles, a step of each panel at a time.
//
// Include after all standard headers and after `#pragma GCC target`.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/kernel.h"
#include "kernels/unrolled.h"

namespace onnxlr {
namespace {

constexpr int64_t kSlots = 4;  // steps that the ring holds

// A step of one panel: `blocks` blocks of 16 inputs to rows of a tile, four rows each. Tables turn
// the codes of a nibble into -1, 0 and 1, so that sums need no correction.
template <int blocks>
ONNXLR_INLINE void decode_tile(const uint8_t* codes, uint8_t* tile) {
  const __m512i low_code =
      _mm512_broadcast_i32x4(_mm_setr_epi8(-1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0));
  const __m512i high_code =
      _mm512_broadcast_i32x4(_mm_setr_epi8(-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0));
  const __m512i nibble = _mm512_set1_epi32(0x0F0F0F0F);
  unrolled<blocks>([&](auto i) {
    const __m512i block = _mm512_load_si512(codes + i * kBlockBytes);
    const __m512i low = _mm512_and_si512(block, nibble);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi32(block, 4), nibble);
    uint8_t* rows = tile + 4 * i * kBlockBytes;
    _mm512_store_si512(rows, _mm512_shuffle_epi8(low_code, low));
    _mm512_store_si512(rows + kBlockBytes, _mm512_shuffle_epi8(high_code, low));
    _mm512_store_si512(rows + 2 * kBlockBytes, _mm512_shuffle_epi8(low_code, high));
    _mm512_store_si512(rows + 3 * kBlockBytes, _mm512_shuffle_epi8(high_code, high));
  });
}

// P panels of one term, step by step. `B` is the number of blocks in a step.
template <int P, int B>
struct Codes {
  static constexpr int64_t kStepBytes = B * kBlockBytes;  // of a panel, packed
  static constexpr int64_t kTile = 4 * B * kBlockBytes;   // of a panel, decoded
  static constexpr int64_t kSlot = P * kTile;

  const uint8_t* first;  // the first panel
  int64_t stride;        // to the next
  int64_t prefetch;      // how far ahead memory is asked for
  uint8_t* ring;

  uint8_t* slot(int64_t step) const { return ring + (step & (kSlots - 1)) * kSlot; }
  uint8_t* last_slot() const { return ring + kSlots * kSlot; }  // of a last step that is not full

  // A step comes in parts, which are done between products.
  static constexpr int kPanelParts = P <= 2 ? 2 : 1;
  static constexpr int kParts = P * kPanelParts;
  static constexpr int kPartBlocks = B / kPanelParts;

  template <int part>
  ONNXLR_INLINE void decode_part(int64_t step) const {
    constexpr int panel = part / kPanelParts;
    constexpr int64_t block = part % kPanelParts * kPartBlocks;
    const uint8_t* from = first + panel * stride + step * kStepBytes + block * kBlockBytes;
    unrolled<kPartBlocks>([&](auto i) ONNXLR_INLINE_LAMBDA {
      const uint8_t* soon = from + prefetch + i * kBlockBytes;
      _mm_prefetch(reinterpret_cast<const char*>(soon), _MM_HINT_T1);
    });
    decode_tile<kPartBlocks>(from, slot(step) + panel * kTile + 4 * block * kBlockBytes);
  }

  void decode(int64_t step) const {
    unrolled<kParts>([&](auto part) ONNXLR_INLINE_LAMBDA { decode_part<part>(step); });
  }

  // A last step of fewer blocks: what is missing is zero.
  void decode_last(int64_t step, int64_t blocks) const {
    std::memset(last_slot(), 0, kSlot);
    for (int64_t c = 0; c < P; ++c) {
      for (int64_t i = 0; i < blocks; ++i) {
        decode_tile<1>(first + c * stride + step * kStepBytes + i * kBlockBytes,
                       last_slot() + c * kTile + 4 * i * kBlockBytes);
      }
    }
  }
};

}  // namespace
}  // namespace onnxlr
