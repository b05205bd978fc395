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
constexpr int64_t kPixelStep = 256;  // pixels that a task brings into order
constexpr int64_t kPieceRows = 8;    // rows that a task makes ready where tiles are few
constexpr int64_t kLeastPanels = 2;  // that a task multiplies
constexpr double kPixelWork = 16;    // of moving a float, in multiply-adds of int8

Convolution read_convolution(const ort::Api& api, const ort::KernelInfo* info,
                             const Format& format) {
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

// Of a convolution, in multiply-adds of int8. Kernels multiply whole panels.
double work_of(const Weights& w, int64_t rows, bool rounds) {
  const double panels = static_cast<double>(w.panels * kPanelColumns * w.terms);
  return static_cast<double>(rows) * static_cast<double>(w.inputs) *
         (kPixelWork + panels * (rounds ? 1 : kFloatWork));
}

void order_pixels(const Image& image, const float* x, const float* input_scale, float* pixels,
                  int64_t task) {
  const int64_t steps = divide_up(image.size(), kPixelStep);
  const int64_t picture = task / steps;
  const int64_t first = task % steps * kPixelStep;
  const int64_t count = std::min(kPixelStep, image.size() - first);
  transpose(x + picture * image.channels * image.size() + first, image.size(), image.channels,
            count, input_scale, pixels + (picture * image.size() + first) * image.channels,
            image.channels);
}

// Floats that the image takes as windows are read from it.
int64_t values_of(const ConvRun& run) {
  const Image& image = run.image;
  if (run.source == Source::kPlanes) return run.planes.size();
  return run.source == Source::kPixels ? image.batch * image.channels * image.size() : 0;
}

void prepare_input(const ort::Api& api, const ort::KernelContext* context, const ConvRun& run,
                   bool in_parallel, float* prepared) {
  const Image& image = run.image;
  if (run.source == Source::kPlanes) {
    const int64_t lines = run.planes.lines();
    const int64_t tasks = std::min(lines, 4 * processor_count());
    for_tasks(api, context, in_parallel, tasks, [&](int64_t task) {
      for (int64_t i = lines * task / tasks; i < lines * (task + 1) / tasks; ++i) {
        run.planes.fill(run.x, run.input_scale, i, prepared);
      }
    });
  } else if (run.source == Source::kPixels) {
    const int64_t steps = image.batch * divide_up(image.size(), kPixelStep);
    for_tasks(api, context, in_parallel, steps,
              [&](int64_t step) { order_pixels(image, run.x, run.input_scale, prepared, step); });
  }
}

// The tiles of all groups of channels, and how threads share them.
struct Tiles {
  const PreparedWeights& weights;
  ConvRun run;
  bool in_parallel;
  int64_t row_tiles, count;
  int64_t parts;  // of the panels: tiles that are too few for all threads are divided
  size_t tile_bytes;
  int64_t slots;  // pieces of memory for tiles
  uint8_t* memory = nullptr;

  Tiles(const PreparedWeights& prepared, const ConvRun& wanted, int64_t tasks)
      : weights(prepared), run(wanted), in_parallel(tasks > 1) {
    row_tiles = divide_up(run.image.rows(), run.rows);
    count = row_tiles * run.convolution.groups;
    const int64_t most = divide_up(weights.matrix().panels, kLeastPanels);
    parts = count < tasks ? std::min(divide_up(tasks, count), most) : 1;
    if (parts > 1) run.pieces = divide_up(run.rows, kPieceRows);
    slots = parts > 1 ? count : in_parallel ? std::min(count, processor_count()) : 1;
    TileMemory sizes{};
    tile_bytes = run.lay_out(weights.matrix(), nullptr, &sizes);
  }

  size_t bytes() const { return static_cast<size_t>(slots) * tile_bytes; }

  void multiply(const ort::Api& api, const ort::KernelContext* context) const {
    if (parts == 1) {
      const Slots free(slots);
      for_tasks(api, context, in_parallel, count, [&](int64_t i) {
        const int64_t slot = free.take();
        const Tile tile = at(i, slot);
        prepare(tile, 0);
        multiply(tile, 0);
        free.give_back(slot);
      });
      return;
    }
    for_tasks(api, context, true, count * run.pieces, [&](int64_t task) {
      prepare(at(task / run.pieces, task / run.pieces), task % run.pieces);
    });
    for_tasks(api, context, true, count * parts,
              [&](int64_t task) { multiply(at(task / parts, task / parts), task % parts); });
  }

 private:
  struct Tile {
    const Weights& w;
    int64_t group, first, last;
    TileMemory memory;
  };

  Tile at(int64_t tile, int64_t slot) const {
    const int64_t group = tile / row_tiles, first = tile % row_tiles * run.rows;
    Tile found{
        weights.matrix(group), group, first, std::min(run.image.rows(), first + run.rows), {}};
    run.lay_out(found.w, memory + static_cast<size_t>(slot) * tile_bytes, &found.memory);
    return found;
  }
  void prepare(const Tile& tile, int64_t piece) const {
    run.prepare(tile.w, tile.group, tile.first, tile.last, piece, tile.memory);
  }
  void multiply(const Tile& tile, int64_t part) const {
    const int64_t panels = tile.w.panels;
    run.multiply(tile.w, tile.group, tile.first, tile.last, panels * part / parts,
                 panels * (part + 1) / parts, tile.memory);
  }
};

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
                  std::to_string(window.rank + 2) +
                  " dimensions, of which the second is channels (" +
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
  const int64_t tasks = task_count(work_of(w, rows * convolution_.groups, rounds));

  const Planes planes(window, image, convolution_.groups);
  const Source source = window.is_pointwise()      ? Source::kImage
                        : rounds && planes.suits() ? Source::kPlanes
                                                   : Source::kPixels;
  ConvRun run{*kernels_,
              convolution_,
              image,
              planes,
              source,
              rounds,
              weights_.input_scale(),
              x.data,
              nullptr,
              y,
              row_stride(w.inputs),
              1,
              1};
  TileMemory sizes{};
  const int64_t row_bytes = static_cast<int64_t>(run.lay_out(w, nullptr, &sizes));
  run.rows = tile_rows(w, row_bytes, rows, divide_up(tasks, convolution_.groups));

  Tiles tiles(weights_, run, tasks);
  const int64_t values = values_of(run);
  const size_t prepared_bytes = static_cast<size_t>(round_up(4 * values, 64));
  const Scratch scratch(memory_, context, prepared_bytes + tiles.bytes());
  float* prepared = reinterpret_cast<float*>(scratch.data());
  tiles.run.prepared = prepared;
  tiles.memory = scratch.data() + prepared_bytes;
  const bool is_much = task_count(static_cast<double>(values) * kPixelWork) > 1;
  prepare_input(api_, context, run, is_much, prepared);
  tiles.multiply(api_, context);
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
