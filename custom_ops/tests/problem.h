// Random ternary matrices, packed by this file's own reading of docs/operators.md, and their
// products in int64 and double.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernel.h"
#include "tests/guarded.h"

namespace onnxlr::testing {

// The same numbers on every platform, which std::uniform_int_distribution does not promise.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t between(int64_t low, int64_t high) {  // both included
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  float real(float low, float high) {
    return low + (high - low) * static_cast<float>(engine_() >> 40) * 0x1p-24f;
  }

 private:
  std::mt19937_64 engine_;
};

struct Shape {
  int64_t inputs = 1, outputs = 1;
  int64_t group_size = 0;  // 0: one group
  int64_t terms = 1;
  std::string text() const;
};

enum class Values { kRandom, kPlus, kMinus };  // of the matrix: any, all +1, all -1

// A ternary matrix as numbers and as the kernels want it.
class Problem {
 public:
  Problem(const Shape& shape, Values values, Random& random);

  const Shape& shape() const { return shape_; }
  const Weights& weights() const { return weights_; }
  int64_t group_of(int64_t input) const { return input / group_size_; }

  // Reference products of one row x, and the sum of what their terms are in size: [outputs] each.
  template <typename Value, typename Sum>
  void product(const Value* x, double scale, double* y, double* size) const;

 private:
  void pack();

  Shape shape_;
  int64_t group_size_, groups_, blocks_, panels_;
  std::vector<int8_t> ternary_;  // [terms][inputs][outputs]
  std::vector<float> scales_;    // [terms][groups][outputs]
  std::vector<float> bias_;      // [outputs]
  Guarded<uint8_t> codes_;
  Guarded<float> packed_scales_, packed_bias_;
  Weights weights_;
};

}  // namespace onnxlr::testing
