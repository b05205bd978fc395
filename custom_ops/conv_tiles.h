// A convolution as tiles: some windows, next to each other, of one group of channels.
#pragma once

#include <cstdint>

#include "conv.h"
#include "kernels/kernel.h"
#include "patches.h"
#include "planes.h"

namespace onnxlr {

// Where the windows of a tile come from.
enum class Source {
  kImage,   // x as given: a window is a pixel
  kPixels,  // x with its channels last
  kPlanes,  // x as padded planes; only if rows are rounded
};

// The scratch of one tile.
struct TileMemory {
  float* patches;   // [patch_rows][K]
  float* products;  // [rows][columns]
  int8_t* codes;    // [rows][stride], at a multiple of 64 bytes
  int32_t* sums;    // [rows][groups]
  float* scales;    // [rows]
};

struct ConvRun {
  const Kernels& kernels;
  const Convolution& convolution;
  const Image& image;
  const Planes& planes;
  Source source;
  bool rounds_rows;
  const float* input_scale;
  const float* x;         // as given
  const float* prepared;  // pixels or planes
  float* y;
  int64_t stride;  // bytes of a rounded row
  int64_t rows;    // of a tile
  int64_t pieces;  // of a tile that are made ready at the same time

  // Places what a tile needs behind each other and returns the bytes. Sizes only if `memory` is
  // null.
  size_t lay_out(const Weights& w, uint8_t* memory, TileMemory* tile) const;

  // Makes a piece of the tile of windows first to last (exclusive) of a group of channels ready.
  void prepare(const Weights& w, int64_t group, int64_t first, int64_t last, int64_t piece,
               const TileMemory& tile) const;

  // Multiplies such a tile by panels and writes the products to y.
  void multiply(const Weights& w, int64_t group, int64_t first, int64_t last, int64_t first_panel,
                int64_t last_panel, const TileMemory& tile) const;

 private:
  int64_t patch_rows() const;
  void gather_pixels(const Weights& w, int64_t group, int64_t first, int64_t last, float* to) const;
};

}  // namespace onnxlr
