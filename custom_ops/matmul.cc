#include "matmul.h"

#include <algorithm>

#include "constants.h"
#include "shape_inference.h"
#include "tensors.h"

namespace onnxlr {
namespace {

// The rows of one task stay in the second-level cache while the panels go by.
constexpr int64_t kRowBytes = 1 << 20;
constexpr int64_t kRowStep = 32;   // rows that kernels like to see together
constexpr int64_t kPanelStep = 6;  // panels, likewise; two at least
constexpr int64_t kLeastPanels = 2;
constexpr double kRoundWork = 32;  // of rounding a number, in multiply-adds of int8

// `all` in parts of nearly the same size, each (but the last) a multiple of `step`.
struct Split {
  int64_t all, step, parts;

  Split(int64_t count, int64_t wanted_step, int64_t wanted_parts)
      : all(count),
        step(wanted_step),
        parts(std::min(wanted_parts, divide_up(count, wanted_step))) {}

  int64_t begin(int64_t part) const {
    return std::min(all, divide_up(all, step) * part / parts * step);
  }
  int64_t end(int64_t part) const { return begin(part + 1); }
};

// The product as a grid of tasks.
struct Grid {
  Split rows, panels;

  Grid(int64_t all_rows, int64_t all_panels, int64_t bytes_per_row, int64_t tasks)
      : rows(split_rows(all_rows, divide_up(all_rows, most_rows(bytes_per_row)))),
        panels(split_panels(all_panels, divide_up(tasks, rows.parts))) {
    if (this->tasks() < tasks) rows = split_rows(all_rows, divide_up(tasks, panels.parts));
  }

  int64_t tasks() const { return rows.parts * panels.parts; }

 private:
  static int64_t most_rows(int64_t bytes_per_row) {
    return std::max(kRowStep, kRowBytes / bytes_per_row / kRowStep * kRowStep);
  }
  static Split split_rows(int64_t all, int64_t parts) { return {all, kRowStep, parts}; }
  static Split split_panels(int64_t all, int64_t parts) {
    return {all, all < parts * kPanelStep ? kLeastPanels : kPanelStep, parts};
  }
};

// One run: rows made ready for the kernels, then multiplied.
struct Run {
  const Kernels& kernels;
  const Weights& w;
  const float* input_scale;
  const float* x;
  float* y;
  bool rounds_rows;
  int64_t stride;  // bytes of a rounded row
  // Scratch: rounded rows with their ranges and sums, or rows times input_scale.
  int8_t* codes;
  int32_t* sums;
  float* scales;
  float* scaled;

  void prepare(int64_t first, int64_t last) const {
    for (int64_t i = first; i < last; ++i) {
      const float* row = x + i * w.inputs;
      if (rounds_rows) {
        kernels.quantize(w, row, input_scale, codes + i * stride, stride, scales + i,
                         sums + i * w.groups);
      } else if (input_scale != nullptr) {
        float* to = scaled + i * w.inputs;
        for (int64_t k = 0; k < w.inputs; ++k) to[k] = row[k] * input_scale[k];
      }
    }
  }

  void multiply(int64_t first, int64_t last, int64_t first_panel, int64_t last_panel) const {
    const Output out{y + first * w.outputs, w.outputs};
    if (rounds_rows) {
      const Int8Rows rows{codes + first * stride, stride, scales + first, sums + first * w.groups,
                          last - first};
      kernels.multiply_int8(w, rows, first_panel, last_panel, out);
    } else {
      const float* from = (input_scale != nullptr ? scaled : x) + first * w.inputs;
      kernels.multiply_float(w, from, w.inputs, last - first, first_panel, last_panel, out);
    }
  }
};

void prefetch(const void* first, int64_t bytes) {
#if defined(__GNUC__)
  constexpr int64_t kMost = 4096;
  const char* at = static_cast<const char*>(first);
  for (int64_t i = 0; i < std::min(bytes, kMost); i += 64) __builtin_prefetch(at + i);
#endif
}

// The first weights are on their way from memory while rows are made ready. In a model that does
// not fit the cache, a small product waits for memory most of its time.
void prefetch_first_weights(const Weights& w) {
  prefetch(w.codes, w.panels * w.blocks * kBlockBytes);
  prefetch(w.scales, w.panels * w.terms * w.groups * kPanelColumns * 4);
  prefetch(w.bias, w.panels * kPanelColumns * 4);
}

size_t scratch_bytes(const Weights& w, int64_t rows, int64_t stride, bool rounds, bool scales) {
  if (rounds) return static_cast<size_t>(rows * (stride + 4 * w.groups + 4));
  return scales ? static_cast<size_t>(rows * w.inputs * 4) : 0;
}

}  // namespace

TernaryMatMul::TernaryMatMul(const ort::Api& api, const ort::KernelInfo* info)
    : api_(api),
      memory_(api),
      format_(read_format(api, info)),
      weights_(api, info, {format_, 1, false, format_.inputs}),
      kernels_(kernels_to_use()) {}

void TernaryMatMul::compute(ort::KernelContext* context) const {
  const Weights& w = weights_.matrix();
  const InputTensor x(api_, context);
  if (x.rank == 0 || x.shape[x.rank - 1] != w.inputs) {
    throw Problem("input X has the shape " + to_string(x.dims()) + "; expected K (" +
                  std::to_string(w.inputs) + ") numbers in its last dimension");
  }
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < x.rank; ++i) rows *= x.shape[i];
  int64_t shape[kMostDimensions];
  std::copy_n(x.shape, x.rank, shape);
  shape[x.rank - 1] = w.outputs;
  float* y = output_tensor(api_, context, shape, x.rank);
  if (rows == 0) return;

  const float* input_scale = weights_.input_scale();
  const bool rounds = format_.rounds_rows;
  const int64_t stride = row_stride(w.inputs);
  const Scratch scratch(memory_, context,
                        scratch_bytes(w, rows, stride, rounds, input_scale != nullptr));
  Run run{*kernels_, w, input_scale, x.data, y, rounds, stride, nullptr, nullptr, nullptr, nullptr};
  if (rounds) {
    run.codes = reinterpret_cast<int8_t*>(scratch.data());
    run.sums = reinterpret_cast<int32_t*>(run.codes + rows * stride);
    run.scales = reinterpret_cast<float*>(run.sums + rows * w.groups);
  } else {
    run.scaled = reinterpret_cast<float*>(scratch.data());
  }

  prefetch_first_weights(w);
  const double work = static_cast<double>(rows) * static_cast<double>(w.inputs) *
                      static_cast<double>(w.outputs * w.terms) * (rounds ? 1 : kFloatWork);
  const int64_t tasks = task_count(work);
  const Grid grid(rows, w.panels, rounds ? stride : 4 * w.inputs, tasks);
  if (grid.panels.parts == 1) {  // whoever multiplies rows makes them ready as well
    for_tasks(api_, context, tasks > 1, grid.rows.parts, [&](int64_t part) {
      run.prepare(grid.rows.begin(part), grid.rows.end(part));
      run.multiply(grid.rows.begin(part), grid.rows.end(part), 0, w.panels);
    });
    return;
  }

  if (rounds || input_scale != nullptr) {
    const double values = static_cast<double>(rows) * static_cast<double>(w.inputs);
    const int64_t parts = std::min(rows, task_count(values * kRoundWork));
    for_tasks(api_, context, true, parts,
              [&](int64_t part) { run.prepare(rows * part / parts, rows * (part + 1) / parts); });
  }
  for_tasks(api_, context, true, grid.tasks(), [&](int64_t task) {
    const int64_t row = task / grid.panels.parts, panel = task % grid.panels.parts;
    run.multiply(grid.rows.begin(row), grid.rows.end(row), grid.panels.begin(panel),
                 grid.panels.end(panel));
  });
}

void TernaryMatMul::infer_shape(const ort::Api& api, ort::ShapeInference* context) {
  std::vector<Dim> shape = inferred_input(api, context, kX);
  if (shape.empty()) return;
  shape.back() = {inferred_int(api, context, "N"), ""};
  set_inferred_output(api, context, shape);
}

}  // namespace onnxlr
