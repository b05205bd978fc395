#include "conv_tiles.h"

#include <algorithm>

#include "transpose.h"

namespace onnxlr {
namespace {

// Cuts windows `first` to `last` where pictures of the batch end.
template <typename Body>
void for_each_picture(const Image& image, int64_t first, int64_t last, Body&& body) {
  while (first < last) {
    const int64_t picture = first / image.outputs();
    const int64_t end = std::min(last, (picture + 1) * image.outputs());
    body(picture, first - picture * image.outputs(), end - first);
    first = end;
  }
}

}  // namespace

// All of them if they are multiplied as they are or come in one go; otherwise each is rounded at
// once.
int64_t ConvRun::patch_rows() const {
  if (source == Source::kPlanes) return 0;
  return source == Source::kImage || !rounds_rows ? rows : pieces;
}

size_t ConvRun::lay_out(const Weights& w, uint8_t* memory, TileMemory* tile) const {
  size_t used = 0;
  const auto place = [&](int64_t bytes) {
    uint8_t* at = memory == nullptr ? nullptr : memory + used;
    used += static_cast<size_t>(round_up(bytes, 64));
    return at;
  };
  tile->patches = reinterpret_cast<float*>(place(patch_rows() * w.inputs * 4));
  tile->products = reinterpret_cast<float*>(place(rows * w.outputs * 4));
  tile->codes = reinterpret_cast<int8_t*>(place(rounds_rows ? rows * stride : 0));
  tile->sums = reinterpret_cast<int32_t*>(place(rounds_rows ? rows * w.groups * 4 : 0));
  tile->scales = reinterpret_cast<float*>(place(rounds_rows ? rows * 4 : 0));
  return used;
}

void ConvRun::prepare(const Weights& w, int64_t group, int64_t first, int64_t last, int64_t piece,
                      const TileMemory& tile) const {
  const int64_t count = last - first;
  const int64_t begin = count * piece / pieces, end = count * (piece + 1) / pieces;
  if (source == Source::kPlanes) {
    planes.round(prepared, w, group, first + begin, first + end, tile.codes + begin * stride,
                 stride, tile.scales + begin, tile.sums + begin * w.groups);
    return;
  }
  if (source == Source::kImage) {
    gather_pixels(w, group, first + begin, first + end, tile.patches + begin * w.inputs);
  }
  const bool keeps_patches = patch_rows() == rows;
  const int64_t channels = convolution.group_channels();
  for (int64_t i = begin; i < end; ++i) {
    float* row = tile.patches + (keeps_patches ? i : piece) * w.inputs;
    if (source == Source::kPixels) {
      assemble_patch(convolution.window, image, prepared, first + i, group * channels, channels,
                     row);
    }
    if (rounds_rows) {
      kernels.quantize(w, row, nullptr, tile.codes + i * stride, stride, tile.scales + i,
                       tile.sums + i * w.groups);
    }
  }
}

void ConvRun::multiply(const Weights& w, int64_t group, int64_t first, int64_t last,
                       int64_t first_panel, int64_t last_panel, const TileMemory& tile) const {
  const int64_t count = last - first;
  const Output out{tile.products, w.outputs};
  if (rounds_rows) {
    kernels.multiply_int8(w, {tile.codes, stride, tile.scales, tile.sums, count}, first_panel,
                          last_panel, out);
  } else {
    kernels.multiply_float(w, tile.patches, w.inputs, count, first_panel, last_panel, out);
  }
  const int64_t column = first_panel * kPanelColumns;
  const int64_t columns = std::min(w.outputs, last_panel * kPanelColumns) - column;
  const int64_t all_columns = w.outputs * convolution.groups;
  const float* products = tile.products + column;
  for_each_picture(image, first, last, [&](int64_t picture, int64_t start, int64_t windows) {
    float* to = y + (picture * all_columns + group * w.outputs + column) * image.outputs() + start;
    transpose(products, w.outputs, windows, columns, nullptr, to, image.outputs());
    products += windows * w.outputs;
  });
}

void ConvRun::gather_pixels(const Weights& w, int64_t group, int64_t first, int64_t last,
                            float* to) const {
  const int64_t channel = group * w.inputs;
  for_each_picture(image, first, last, [&](int64_t picture, int64_t start, int64_t count) {
    const float* from = x + (picture * image.channels + channel) * image.size() + start;
    transpose(from, image.size(), w.inputs, count,
              input_scale == nullptr ? nullptr : input_scale + channel, to, w.inputs);
    to += count * w.inputs;
  });
}

}  // namespace onnxlr
