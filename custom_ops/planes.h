// The input of a convolution as padded planes, one for each channel, from which windows of few
// inputs are rounded to int8 four at a time: row by row, each would cost more than its products.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernel.h"
#include "patches.h"

namespace onnxlr {

class Planes {
 public:
  // Of no use (see `suits`) for large windows, nor where padding makes most of the image.
  Planes(const Window& window, const Image& image, int64_t channel_groups);
  bool suits() const { return suits_; }

  // Floats of all planes and of the ranges of their pixels.
  int64_t size() const { return size_; }

  // Writes line `line` of `lines()`, in any order: x times `input_scale`, which may be null.
  int64_t lines() const { return image_.batch * height_; }
  void fill(const float* x, const float* input_scale, int64_t line, float* planes) const;

  // Rounds windows `first` to `last` (exclusive) of a group of channels as Kernels::quantize does.
  void round(const float* planes, const Weights& w, int64_t group, int64_t first, int64_t last,
             int8_t* codes, int64_t stride, float* scales, int32_t* sums) const;

 private:
  // Lines hold every stride-th column, then those beside them, so that the same input of
  // neighbouring windows lies side by side.
  int64_t line_size() const { return step_ * phase_; }
  int64_t plane_size() const { return height_ * line_size(); }
  void round_four(const float* window, const float* ranges, const Weights& w, int64_t count,
                  int8_t* codes, int64_t stride, float* scales, int32_t* sums) const;

  Window window_;
  Image image_;
  int64_t groups_;
  int64_t step_;    // the stride along lines
  int64_t height_;  // lines of a plane
  int64_t width_;   // columns that windows reach
  int64_t phase_;   // columns of a line that are a stride apart
  int64_t size_ = 0;
  bool suits_ = false;
  std::vector<int64_t> positions_;  // where each kernel position lies in a plane
  std::vector<int64_t> inputs_;     // where each input of a window lies
};

}  // namespace onnxlr
