// A convolution as tiles: some windows, next to each other, of one group of channels.
#pragma once

#include <cstdint>

#include "conv.h"
#include "kernels/kernel.h"
#include "patches.h"

namespace onnxlr {

// The scratch of one tile.
struct TileMemory {
  float* patches;   // [rows or 1][K]
  float* products;  // [rows][columns]
  int8_t* codes;    // [rows][stride], at a multiple of 64 bytes
  int32_t* sums;    // [rows][groups]
  float* scales;    // [rows]
};

struct ConvRun {
  const Kernels& kernels;
  const Convolution& convolution;
  const Image& image;
  bool rounds_rows;
  bool is_pointwise;
  const float* input_scale;
  const float* x;       // as given
  const float* pixels;  // channels last, times input_scale; not used if pointwise
  float* y;
  int64_t stride;  // bytes of a rounded row
  int64_t rows;    // of a tile

  // Places what a tile needs behind each other and returns the bytes. Sizes only if `memory` is null.
  size_t lay_out(const Weights& w, uint8_t* memory, TileMemory* tile) const;

  // Windows first to last (exclusive) of a group of channels: reads, multiplies, writes to y.
  void multiply(const Weights& w, int64_t group, int64_t first, int64_t last,
                const TileMemory& tile) const;

 private:
  bool keeps_patches() const { return is_pointwise || !rounds_rows; }
  void gather_pixels(const Weights& w, int64_t group, int64_t first, int64_t last, float* to) const;
  void scatter(const Weights& w, int64_t group, int64_t first, int64_t last,
               const float* products) const;
};

}  // namespace onnxlr
