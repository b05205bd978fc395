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

size_t ConvRun::lay_out(const Weights& w, uint8_t* memory, TileMemory* tile) const {
  size_t used = 0;
  const auto place = [&](int64_t bytes) {
    uint8_t* at = memory == nullptr ? nullptr : memory + used;
    used += static_cast<size_t>(round_up(bytes, 64));
    return at;
  };
  tile->patches = reinterpret_cast<float*>(place((keeps_patches() ? rows : 1) * w.inputs * 4));
  tile->products = reinterpret_cast<float*>(place(rows * w.outputs * 4));
  tile->codes = reinterpret_cast<int8_t*>(place(rounds_rows ? rows * stride : 0));
  tile->sums = reinterpret_cast<int32_t*>(place(rounds_rows ? rows * w.groups * 4 : 0));
  tile->scales = reinterpret_cast<float*>(place(rounds_rows ? rows * 4 : 0));
  return used;
}

void ConvRun::multiply(const Weights& w, int64_t group, int64_t first, int64_t last,
                       const TileMemory& tile) const {
  const int64_t count = last - first;
  if (is_pointwise) gather_pixels(w, group, first, last, tile.patches);
  const int64_t channels = convolution.group_channels();
  for (int64_t i = 0; i < count; ++i) {
    float* row = tile.patches + (keeps_patches() ? i * w.inputs : 0);
    if (!is_pointwise) {
      assemble_patch(convolution.window, image, pixels, first + i, group * channels, channels, row);
    }
    if (rounds_rows) {
      kernels.quantize(w, row, nullptr, tile.codes + i * stride, stride, tile.scales + i,
                       tile.sums + i * w.groups);
    }
  }
  const Output out{tile.products, w.outputs};
  if (rounds_rows) {
    kernels.multiply_int8(w, {tile.codes, stride, tile.scales, tile.sums, count}, 0, w.panels, out);
  } else {
    kernels.multiply_float(w, tile.patches, w.inputs, count, 0, w.panels, out);
  }
  scatter(w, group, first, last, tile.products);
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

void ConvRun::scatter(const Weights& w, int64_t group, int64_t first, int64_t last,
                      const float* products) const {
  const int64_t columns = w.outputs * convolution.groups;
  for_each_picture(image, first, last, [&](int64_t picture, int64_t start, int64_t count) {
    float* to = y + (picture * columns + group * w.outputs) * image.outputs() + start;
    transpose(products, w.outputs, count, w.outputs, nullptr, to, image.outputs());
    products += count * w.outputs;
  });
}

}  // namespace onnxlr
