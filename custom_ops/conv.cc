#include "conv.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <thread>

#include "constants.h"
#include "conv_tiles.h"
#include "shape_inference.h"
#include "tensors.h"
#include "transpose.h"

namespace onnxlr {
namespace {

constexpr int64_t kTileBytes = 1 << 18;  // a tile and its panels share the second-level cache
constexpr int64_t kRowStep = 32;         // rows that kernels like to see together
constexpr int64_t kMostRows = 256;
constexpr int64_t kPixelStep = 256;      // pixels that a task brings into order
constexpr double kPixelWork = 16;        // of moving a float, in multiply-adds of int8

Convolution read_convolution(const ort::Api& api, const ort::KernelInfo* info, const Format& format) {
  const auto list = [&](const char* name) { return ints_attribute(api, info, name); };
  const Window window(list("kernel_shape"), list("strides"), list("pads"), list("dilations"));
  const int64_t any = std::numeric_limits<int64_t>::max();
  const int64_t channels = int_attribute(api, info, "channels", 1, any);
  const int64_t groups = int_attribute(api, info, "group", 1, channels);
  if (channels % groups != 0 || format.outputs % groups != 0) {
    throw Problem("attribute group is " + std::to_string(groups) +
                  "; expected a divisor of channels (" + std::to_string(channels) + ") and N (" +
                  std::to_string(format.outputs) + ")");
  }
  const int64_t positions = window.positions();
  if (format.inputs % positions != 0 || format.inputs / positions != channels / groups) {
    throw Problem("attribute K is " + std::to_string(format.inputs) +
                  "; expected channels / group times the entries of kernel_shape (" +
                  std::to_string(channels / groups) + " times " + std::to_string(positions) + ")");
  }
  return {window, channels, groups};
}

// Hands the scratch of tiles to as many threads as run at a time. One thread alone always gets the
// same piece, which stays in its cache.
class Slots {
 public:
  explicit Slots(int64_t count) : count_(count), busy_(new std::atomic<bool>[count]) {
    for (int64_t i = 0; i < count; ++i) busy_[i] = false;
  }
  int64_t take() const {
    for (;;) {
      for (int64_t i = 0; i < count_; ++i) {
        if (!busy_[i].exchange(true, std::memory_order_acquire)) return i;
      }
      std::this_thread::yield();
    }
  }
  void give_back(int64_t slot) const { busy_[slot].store(false, std::memory_order_release); }

 private:
  int64_t count_;
  std::unique_ptr<std::atomic<bool>[]> busy_;
};

// Rows of a tile: as its scratch stays in cache, and no more than leave each task some.
int64_t tile_rows(const Weights& w, int64_t bytes_per_row, int64_t rows, int64_t tasks) {
  const int64_t share = divide_up(rows, divide_up(tasks, std::max<int64_t>(1, w.panels / 64)));
  const int64_t most = std::min({kTileBytes / bytes_per_row, kMostRows, round_up(share, kRowStep)});
  return std::min(rows, std::max(kRowStep, most / kRowStep * kRowStep));
}

void order_pixels(const Image& image, const float* x, const float* input_scale, float* pixels,
                  int64_t task) {
  const int64_t steps = divide_up(image.size(), kPixelStep);
  const int64_t picture = task / steps;
  const int64_t first = task % steps * kPixelStep;
  const int64_t count = std::min(kPixelStep, image.size() - first);
  transpose(x + picture * image.channels * image.size() + first, image.size(), image.channels, count,
            input_scale, pixels + (picture * image.size() + first) * image.channels,
            image.channels);
}

}  // namespace

TernaryConv::TernaryConv(const ort::Api& api, const ort::KernelInfo* info)
    : api_(api),
      memory_(api),
      format_(read_format(api, info)),
      convolution_(read_convolution(api, info, format_)),
      weights_(api, info, {format_, convolution_.groups, true, convolution_.channels}),
      kernels_(kernels_to_use()) {}

void TernaryConv::compute(ort::KernelContext* context) const {
  const Window& window = convolution_.window;
  const InputTensor x(api_, context);
  if (x.rank != window.rank + 2 || x.shape[1] != convolution_.channels) {
    throw Problem("input X has the shape " + to_string(x.dims()) + "; expected " +
                  std::to_string(window.rank + 2) + " dimensions, of which the second is channels (" +
                  std::to_string(convolution_.channels) + ")");
  }
  Image image{x.shape[0], x.shape[1], window.rank == 2 ? x.shape[2] : 1, x.shape[x.rank - 1], 0, 0};
  image.out_height = window.axes[0].outputs(image.height);
  image.out_width = window.axes[1].outputs(image.width);
  const int64_t shape[4] = {image.batch, format_.outputs,
                            window.rank == 2 ? image.out_height : image.out_width, image.out_width};
  float* y = output_tensor(api_, context, shape, x.rank);
  if (image.batch == 0) return;

  const Weights& w = weights_.matrix();
  const int64_t rows = image.rows();
  const bool rounds = format_.rounds_rows;
  const double work = static_cast<double>(rows) * static_cast<double>(w.inputs) *
                      static_cast<double>(format_.outputs * w.terms) * (rounds ? 1 : kFloatWork);
  const int64_t tasks = task_count(work);

  const bool pointwise = window.is_pointwise();
  const int64_t stride = row_stride(w.inputs);
  ConvRun run{*kernels_, convolution_, image,   rounds, pointwise, weights_.input_scale(),
              x.data,    nullptr,      y,       stride, 1};
  TileMemory sizes{};
  const int64_t row_bytes = static_cast<int64_t>(run.lay_out(w, nullptr, &sizes));
  run.rows = tile_rows(w, row_bytes, rows, divide_up(tasks, convolution_.groups));

  const int64_t row_tiles = divide_up(rows, run.rows);
  const int64_t tiles = row_tiles * convolution_.groups;
  const int64_t slot_count = tasks == 1 ? 1 : std::min(tiles, processor_count());
  const size_t tile_bytes = run.lay_out(w, nullptr, &sizes);
  const int64_t pixel_values = pointwise ? 0 : image.batch * image.channels * image.size();
  const size_t pixel_bytes = static_cast<size_t>(round_up(4 * pixel_values, 64));
  const Scratch scratch(memory_, context,
                        pixel_bytes + static_cast<size_t>(slot_count) * tile_bytes);

  if (!pointwise) {
    float* pixels = reinterpret_cast<float*>(scratch.data());
    run.pixels = pixels;
    const int64_t parts = image.batch * divide_up(image.size(), kPixelStep);
    const bool is_much = task_count(static_cast<double>(pixel_values) * kPixelWork) > 1;
    for_tasks(api_, context, is_much, parts, [&](int64_t part) {
      order_pixels(image, x.data, run.input_scale, pixels, part);
    });
  }

  const Slots slots(slot_count);
  for_tasks(api_, context, tasks > 1, tiles, [&](int64_t i) {
    const int64_t group = i / row_tiles;
    const int64_t first = i % row_tiles * run.rows;
    const int64_t slot = slots.take();
    TileMemory memory{};
    run.lay_out(w, scratch.data() + pixel_bytes + static_cast<size_t>(slot) * tile_bytes, &memory);
    run.multiply(weights_.matrix(group), group, first, std::min(rows, first + run.rows), memory);
    slots.give_back(slot);
  });
}

void TernaryConv::infer_shape(const ort::Api& api, ort::ShapeInference* context) {
  std::vector<Dim> shape = inferred_input(api, context, kX);
  if (shape.empty()) return;
  const Window window(inferred_ints(api, context, "kernel_shape"),
                      inferred_ints(api, context, "strides"), inferred_ints(api, context, "pads"),
                      inferred_ints(api, context, "dilations"));
  if (shape.size() != window.rank + 2) return;
  shape[1] = {inferred_int(api, context, "N"), ""};
  for (size_t i = 0; i < window.rank; ++i) {
    Dim& dim = shape[i + 2];
    const Axis& axis = window.axes[i + 2 - window.rank];
    dim = {dim.value < 0 ? -1 : axis.outputs(dim.value), ""};
  }
  set_inferred_output(api, context, shape);
}

}  // namespace onnxlr
