// Reads and checks what a node says of itself.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ort_api.h"

namespace onnxlr {

// `TernaryMatMul node "name"`, the beginning of messages.
std::string place_of(const ort::Api& api, const ort::KernelInfo* info, const char* op);

// An int attribute between `least` and `most`; throws Problem otherwise.
int64_t int_attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name,
                      int64_t least, int64_t most);

// A list of ints, of any length and size.
std::vector<int64_t> ints_attribute(const ort::Api& api, const ort::KernelInfo* info,
                                    const char* name);

// The attributes that both operators have.
struct Format {
  int64_t inputs;      // K
  int64_t outputs;     // N
  int64_t group_size;  // inputs that share a scale
  int64_t terms;
  bool rounds_rows;  // accuracy level 4
};

constexpr int64_t kMostInputs = 8388608;  // int32 sums of int8 codes stay exact

Format read_format(const ort::Api& api, const ort::KernelInfo* info);

}  // namespace onnxlr
