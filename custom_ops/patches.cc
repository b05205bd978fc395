#include "patches.h"

#include <algorithm>
#include <string>

#include "status.h"

namespace onnxlr {
namespace {

void check_list(const char* name, const std::vector<int64_t>& values, size_t length,
                int64_t least) {
  const std::string what = std::string("attribute ") + name;
  if (values.size() != length) {
    throw Problem(what + " has " + std::to_string(values.size()) + " entries; expected " +
                  std::to_string(length));
  }
  for (int64_t value : values) {
    if (value >= least && value <= kMostExtent) continue;
    throw Problem(what + " holds " + std::to_string(value) + "; expected " + std::to_string(least) +
                  " to " + std::to_string(kMostExtent));
  }
}

}  // namespace

int64_t Axis::outputs(int64_t size) const {
  if (size > kMostSize) {
    throw Problem("input X has " + std::to_string(size) +
                  " entries along an axis; expected at most " + std::to_string(kMostSize));
  }
  const int64_t extent = dilation * (kernel - 1) + 1;
  const int64_t room = size + begin + end - extent;
  if (room < 0) {
    throw Problem("input X has " + std::to_string(size) + " entries along an axis, " +
                  std::to_string(size + begin + end) + " with its padding; expected at least " +
                  std::to_string(extent) + ", the extent of the kernel");
  }
  return room / stride + 1;
}

Window::Window(const std::vector<int64_t>& kernel, const std::vector<int64_t>& strides,
               const std::vector<int64_t>& pads, const std::vector<int64_t>& dilations)
    : rank(kernel.size()) {
  if (rank != 1 && rank != 2) {
    throw Problem("attribute kernel_shape has " + std::to_string(rank) +
                  " entries; expected 1 or 2");
  }
  check_list("kernel_shape", kernel, rank, 1);
  check_list("strides", strides, rank, 1);
  check_list("pads", pads, 2 * rank, 0);
  check_list("dilations", dilations, rank, 1);
  for (size_t i = 0; i < rank; ++i) {
    axes[i + 2 - rank] = {kernel[i], strides[i], dilations[i], pads[i], pads[i + rank]};
  }
}

bool Window::is_pointwise() const {
  return std::all_of(axes, axes + 2, [](const Axis& axis) {
    return axis.kernel == 1 && axis.stride == 1 && axis.begin == 0 && axis.end == 0;
  });
}

void assemble_patch(const Window& window, const Image& image, const float* pixels, int64_t row,
                    int64_t first_channel, int64_t count, float* patch) {
  const Axis& down = window.axes[0];
  const Axis& across = window.axes[1];
  const int64_t out_y = row / image.out_width % image.out_height;
  const int64_t top = out_y * down.stride - down.begin;
  const int64_t left = row % image.out_width * across.stride - across.begin;
  const float* picture = pixels + row / image.outputs() * image.size() * image.channels;
  const int64_t line_values = across.kernel * count;

  // The positions of the window from `first` up to `last` lie within the width.
  const int64_t first = std::min(across.kernel, left >= 0 ? 0 : (-left - 1) / across.dilation + 1);
  const int64_t space = image.width - left;
  const int64_t last =
      std::clamp(space <= 0 ? 0 : (space - 1) / across.dilation + 1, first, across.kernel);
  // Neighbouring positions are one run if they have no other channels between them.
  const bool is_run = across.dilation == 1 && count == image.channels;

  for (int64_t i = 0; i < down.kernel; ++i, patch += line_values) {
    const int64_t y = top + i * down.dilation;
    if (y < 0 || y >= image.height || first >= last) {
      std::fill_n(patch, line_values, 0.0f);
      continue;
    }
    const int64_t start = y * image.width + left + first * across.dilation;
    const float* from = picture + start * image.channels + first_channel;
    float* to = std::fill_n(patch, first * count, 0.0f);
    if (is_run) {
      to = std::copy_n(from, (last - first) * count, to);
    } else {
      for (int64_t j = first; j < last; ++j, from += across.dilation * image.channels) {
        to = std::copy_n(from, count, to);
      }
    }
    std::fill(to, patch + line_values, 0.0f);
  }
}

}  // namespace onnxlr
