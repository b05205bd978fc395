// quantize of each table against the four steps of docs/operators.md, bit by bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/problem.h"
#include "tests/report.h"

namespace onnxlr::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kDenormal = std::numeric_limits<float>::denorm_min();

enum class Row {
  kUsual,
  kZeros,
  kMinusZeros,
  kTiny,
  kBelowSmallestRange,
  kDenormals,
  kHuge,
  kHalves,
  kNan,
  kInfinity,
  kMinusInfinity,
  kOverflowsWithScale,
};
constexpr int kRowKinds = 12;

float entry(Row kind, Random& random) {
  const float unit = random.real(-1, 1);
  switch (kind) {
    case Row::kZeros:
      return 0;
    case Row::kMinusZeros:
      return -0.0f;
    case Row::kTiny:
      return unit * 1e-20f;
    case Row::kBelowSmallestRange:
      return unit * 1e-31f;
    case Row::kDenormals:
      return unit * 1000 * kDenormal;
    case Row::kHuge:
      return unit * kLargest;
    case Row::kHalves:  // with a range of 127: exactly between two codes
      return static_cast<float>(random.between(-126, 125)) + 0.5f;
    default:
      return unit * 8;
  }
}

// One entry that decides what becomes of the row.
void place_special(Row kind, float* x, int64_t at) {
  if (kind == Row::kHalves) x[at] = 127;
  if (kind == Row::kNan) x[at] = kNan;
  if (kind == Row::kInfinity) x[at] = kInfinity;
  if (kind == Row::kMinusInfinity) x[at] = -kInfinity;
  if (kind == Row::kOverflowsWithScale) x[at] = kLargest;
}

struct Quantized {
  std::vector<int8_t> codes;
  float scale;
  std::vector<int32_t> sums;
};

// The steps of docs/operators.md, with zeros for a row that has no finite range.
Quantized expected(const Problem& problem, const float* x, const float* input_scale,
                   int64_t stride) {
  const int64_t K = problem.shape().inputs;
  Quantized result{std::vector<int8_t>(static_cast<size_t>(stride)), 0,
                   std::vector<int32_t>(static_cast<size_t>(problem.weights().groups))};
  std::vector<float> scaled(x, x + K);
  float range = 1e-30f;
  for (int64_t k = 0; k < K; ++k) {
    float& value = scaled[static_cast<size_t>(k)];
    if (input_scale != nullptr) value *= input_scale[k];
    if (!std::isfinite(value)) {
      result.scale = kNan;
      return result;
    }
    range = std::max(range, std::fabs(value));
  }
  const float ratio = 127.0f / range;
  result.scale = range / 127.0f;
  for (int64_t k = 0; k < K; ++k) {
    const float product = scaled[static_cast<size_t>(k)] * ratio;
    const int code = static_cast<int>(std::rint(product));
    result.codes[static_cast<size_t>(k)] = static_cast<int8_t>(code);
    result.sums[static_cast<size_t>(problem.group_of(k))] += code;
  }
  return result;
}

bool same_scale(float a, float b) {
  return std::isnan(b) ? std::isnan(a) : std::memcmp(&a, &b, sizeof a) == 0;
}

std::string compare(const Kernels& table, const Problem& problem, const Guarded<float>& x,
                    const Guarded<float>* input_scale, int64_t stride) {
  const float* factors = input_scale ? input_scale->data() : nullptr;
  const Quantized want = expected(problem, x.data(), factors, stride);
  Guarded<int8_t> codes(stride);
  Guarded<float> scale(1);
  Guarded<int32_t> sums(problem.weights().groups);
  std::memset(codes.data(), 0x7E, static_cast<size_t>(stride));
  table.quantize(problem.weights(), x.data(), factors, codes.data(), stride, scale.data(),
                 sums.data());
  if (!same_scale(scale[0], want.scale)) return "scale differs";
  if (std::memcmp(codes.data(), want.codes.data(), want.codes.size()) != 0) return "codes differ";
  for (size_t g = 0; g < want.sums.size(); ++g) {
    if (sums[static_cast<int64_t>(g)] != want.sums[g]) return "sums differ";
  }
  if (!codes.intact() || !scale.intact() || !sums.intact()) return "wrote before its results";
  return "";
}

void try_row(const Shape& shape, int kind, bool with_scale, Random& random) {
  const Problem problem(shape, Values::kRandom, random);
  const Row row = static_cast<Row>(kind);
  Guarded<float> x(shape.inputs), input_scale(shape.inputs);
  for (int64_t k = 0; k < shape.inputs; ++k) {
    x[k] = entry(row, random);
    input_scale[k] = random.real(-2, 2);
  }
  const int64_t at = random.between(0, shape.inputs - 1);
  place_special(row, x.data(), at);
  input_scale[at] = row == Row::kHalves ? 1 : 2;
  if (row == Row::kHalves) std::fill(input_scale.data(), input_scale.data() + shape.inputs, 1.0f);
  x.make_constant();
  input_scale.make_constant();
  const int64_t stride = (shape.inputs + 63) / 64 * 64 + 64 * random.between(0, 2);
  const std::string what = "quantize " + shape.text() + " row of kind " + std::to_string(kind) +
                           (with_scale ? " with input_scale" : "");
  int count = 0;
  const Kernels* const* tables = available_tables(&count);
  for (int i = 0; i < count; ++i) {
    now_trying(*tables[i], what);
    const std::string found =
        compare(*tables[i], problem, x, with_scale ? &input_scale : nullptr, stride);
    count_case(*tables[i], found.empty() ? found : what + ": " + found);
  }
}

}  // namespace

void try_quantize() {
  Random random(1);
  const int64_t lengths[] = {1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200};
  const int64_t group_sizes[] = {0, 32, 64, 128};
  for (int kind = 0; kind < kRowKinds; ++kind) {
    for (const int64_t length : lengths) {
      for (const bool with_scale : {false, true}) {
        const int64_t K = length == 200 ? random.between(130, 1500) : length;
        try_row({K, 1, group_sizes[random.between(0, 3)], 1}, kind, with_scale, random);
      }
    }
  }
}

}  // namespace onnxlr::testing
