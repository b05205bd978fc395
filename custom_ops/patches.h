// The geometry of a convolution, and its input as rows: one for each window, position first and
// channel last.
#pragma once

#include <cstdint>
#include <vector>

#include "ort_api.h"
#include "shape_inference.h"

namespace onnxlr {

// One spatial axis.
struct Axis {
  int64_t kernel = 1, stride = 1, dilation = 1, begin = 0, end = 0;

  // Window positions in `size` inputs. Throws Problem if there is none.
  int64_t outputs(int64_t size) const;
};

// Two axes; a convolution in one dimension has a first axis that does nothing.
struct Window {
  size_t rank = 0;  // spatial dimensions, 1 or 2
  Axis axes[2];

  // Checks the lengths and entries of a node's lists; throws Problem.
  Window(const std::vector<int64_t>& kernel, const std::vector<int64_t>& strides,
         const std::vector<int64_t>& pads, const std::vector<int64_t>& dilations);

  // One input for each output, at the same place.
  bool is_pointwise() const;
  int64_t positions() const { return axes[0].kernel * axes[1].kernel; }
};

// Each entry of kernel_shape, strides, pads and dilations is at most this.
constexpr int64_t kMostExtent = 1 << 20;

// Of an axis of X, so that padding it does not overflow; X may be empty.
constexpr int64_t kMostSize = int64_t{1} << 62;

struct Image {
  int64_t batch, channels, height, width;
  int64_t out_height, out_width;

  int64_t size() const { return height * width; }
  int64_t outputs() const { return out_height * out_width; }
  int64_t rows() const { return batch * outputs(); }
};

// Writes window `row` (over batch, height, width of the output) of `count` channels from
// `first_channel` on. `pixels` is the input with its channels last.
void assemble_patch(const Window& window, const Image& image, const float* pixels, int64_t row,
                    int64_t first_channel, int64_t count, float* patch);

}  // namespace onnxlr
