#include "weights.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "constants.h"
#include "status.h"

namespace onnxlr {
namespace {

constexpr uint8_t kZeroCodes = 0x55;  // four codes of zero

// The code 3, the only one that means nothing, has both of its bits set.
bool holds_three(const uint8_t* codes, int64_t bytes) {
  uint64_t found = 0;
  for (int64_t i = 0; i < bytes; i += 8) {  // blocks of 64 bytes
    uint64_t word;
    std::memcpy(&word, codes + i, sizeof(word));
    found |= word & (word >> 1) & 0x5555555555555555u;
  }
  return found != 0;
}

// Inputs beyond K in the last block of a panel, and columns beyond N in its last panel.
bool is_padded(const uint8_t* panel, const Weights& w, int64_t columns) {
  const int64_t inputs = w.inputs - (w.blocks - 1) * kBlockInputs;
  const uint8_t* block = panel + (w.blocks - 1) * kBlockBytes;
  for (int64_t i = inputs; i < kBlockInputs; ++i) {
    for (int64_t c = 0; c < kPanelColumns; ++c) {
      if (((block[4 * c + i % 4] >> (2 * (i / 4))) & 3) != 1) return false;
    }
  }
  for (int64_t b = 0; b < w.blocks && columns < kPanelColumns; ++b) {
    const uint8_t* unused = panel + b * kBlockBytes + 4 * columns;
    for (int64_t i = 0; i < 4 * (kPanelColumns - columns); ++i) {
      if (unused[i] != kZeroCodes) return false;
    }
  }
  return true;
}

void check_codes(const Weights& w) {
  const int64_t panel_bytes = w.blocks * kBlockBytes;
  for (int64_t t = 0; t < w.terms; ++t) {
    for (int64_t p = 0; p < w.panels; ++p) {
      const uint8_t* panel = w.codes + (t * w.panels + p) * panel_bytes;
      if (holds_three(panel, panel_bytes)) {
        throw Problem("input codes holds the code 3 in panel " + std::to_string(p) + " of term " +
                      std::to_string(t) + "; expected 0, 1 and 2");
      }
      const int64_t columns = std::min(kPanelColumns, w.outputs - p * kPanelColumns);
      if (!is_padded(panel, w, columns)) {
        throw Problem("input codes holds values beyond K or N in panel " + std::to_string(p) +
                      " of term " + std::to_string(t) + "; expected the code 1 there");
      }
    }
  }
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kAlignment == 0; }

// The sizes of the matrix of one group of channels.
Weights sized(const WeightsShape& shape) {
  const Format& f = shape.format;
  Weights w{};
  w.inputs = f.inputs;
  w.outputs = f.outputs / shape.channel_groups;
  w.blocks = divide_up(f.inputs, kBlockInputs);
  w.panels = divide_up(w.outputs, kPanelColumns);
  w.terms = f.terms;
  w.groups = divide_up(f.inputs, f.group_size);
  w.group_blocks = w.groups == 1 ? w.blocks : f.group_size / kBlockInputs;
  return w;
}

// (terms, groups, N) of which the columns from `first` on, as [panels][terms][groups][16].
void order_scales(const Weights& w, const float* scales, int64_t first, int64_t all_columns,
                  float* ordered) {
  for (int64_t p = 0; p < w.panels; ++p) {
    const int64_t columns = std::min(kPanelColumns, w.outputs - p * kPanelColumns);
    for (int64_t i = 0; i < w.terms * w.groups; ++i) {
      const float* from = scales + i * all_columns + first + p * kPanelColumns;
      ordered = std::copy(from, from + columns, ordered);
      ordered = std::fill_n(ordered, kPanelColumns - columns, 0.0f);
    }
  }
}

}  // namespace

PreparedWeights::PreparedWeights(const ort::Api& api, const ort::KernelInfo* info,
                                 const WeightsShape& shape) {
  const Format& f = shape.format;
  const Weights size = sized(shape);
  const int64_t parts = shape.channel_groups;

  // The shape comes first: it shows that all of these sizes lie in memory, so products fit below.
  std::vector<int64_t> expected{f.terms, size.panels, size.blocks, kBlockBytes};
  if (shape.has_group_axis) expected.insert(expected.begin() + 1, parts);
  const auto* codes = static_cast<const uint8_t*>(constant_input(api, info, kCodes, expected));
  const std::vector<float> scales =
      finite_input(api, info, kScales, {f.terms, size.groups, f.outputs});
  const std::vector<float> bias = finite_input(api, info, kBias, {f.outputs});
  std::vector<float> input_scale = finite_input(api, info, kInputScale, {shape.input_scales});

  const int64_t term_bytes = size.panels * size.blocks * kBlockBytes;
  const int64_t scale_count = size.panels * size.terms * size.groups * kPanelColumns;
  const int64_t padded_outputs = size.panels * kPanelColumns;
  const bool in_place = is_aligned(codes) && (parts == 1 || f.terms == 1);
  if (!in_place) codes_ = AlignedArray<uint8_t>(static_cast<size_t>(parts * f.terms * term_bytes));
  scales_ = AlignedArray<float>(static_cast<size_t>(parts * scale_count));
  bias_ = AlignedArray<float>(static_cast<size_t>(parts * padded_outputs));

  for (int64_t part = 0; part < parts; ++part) {
    Weights w = size;
    if (in_place) {
      w.codes = codes + part * term_bytes;
    } else {
      uint8_t* own = codes_.get() + part * f.terms * term_bytes;
      for (int64_t t = 0; t < f.terms; ++t) {
        std::memcpy(own + t * term_bytes, codes + (t * parts + part) * term_bytes,
                    static_cast<size_t>(term_bytes));
      }
      w.codes = own;
    }
    float* own_scales = scales_.get() + part * scale_count;
    float* own_bias = bias_.get() + part * padded_outputs;
    order_scales(w, scales.data(), part * w.outputs, f.outputs, own_scales);
    std::copy_n(bias.data() + part * w.outputs, w.outputs, own_bias);
    std::fill(own_bias + w.outputs, own_bias + padded_outputs, 0.0f);
    w.scales = own_scales;
    w.bias = own_bias;
    check_codes(w);
    matrices_.push_back(w);
  }
  const auto is_one = [](float s) { return s == 1; };
  if (!std::all_of(input_scale.begin(), input_scale.end(), is_one)) {
    input_scale_ = std::move(input_scale);
  }
}

}  // namespace onnxlr
