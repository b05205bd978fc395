// multiply_int8 and multiply_float of each table against products in int64 and double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/problem.h"
#include "tests/report.h"

namespace onnxlr::testing {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
constexpr uint32_t kUntouched = 0x7FC5A5A5;  // a NaN that no sum gives

// Which panels of how many rows, and how far apart the rows of the output are.
struct Call {
  int64_t rows, first_panel, last_panel, stride;
  std::string text() const {
    return " rows=" + std::to_string(rows) + " panels=" + std::to_string(first_panel) + ".." +
           std::to_string(last_panel) + " stride=" + std::to_string(stride);
  }
};

uint32_t bits(float value) {
  uint32_t result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

// What each row is expected to be: outputs, and how far they may be off.
struct Expected {
  std::vector<double> y, margin;  // [rows][outputs]; NaN wants NaN, an infinite margin anything
};

template <typename Value, typename Sum>
Expected expect(const Problem& problem, const Call& call, const Value* x, int64_t stride,
                const float* scales, double units) {
  const int64_t N = problem.shape().outputs;
  Expected result{std::vector<double>(static_cast<size_t>(call.rows * N)), {}};
  result.margin = result.y;
  for (int64_t i = 0; i < call.rows; ++i) {
    problem.product<Value, Sum>(x + i * stride, scales ? scales[i] : 1.0, &result.y[i * N],
                                &result.margin[i * N]);
  }
  for (double& margin : result.margin) margin *= units * kEpsilon;
  return result;
}

// Empty if every number that was asked for is right and nothing else was written.
std::string compare(const Problem& problem, const Call& call, const Expected& expected,
                    const Guarded<float>& y) {
  const int64_t N = problem.shape().outputs;
  const int64_t first = 16 * call.first_panel, last = std::min(16 * call.last_panel, N);
  for (int64_t at = 0; at < y.size(); ++at) {
    const int64_t i = at / call.stride, n = at % call.stride;
    const std::string where = "row " + std::to_string(i) + ", column " + std::to_string(n);
    if (n < first || n >= last) {
      if (bits(y[at]) != kUntouched) return where + " was written but not asked for";
      continue;
    }
    const size_t k = static_cast<size_t>(i * N + n);
    const double want = expected.y[k];
    if (std::isinf(expected.margin[k])) continue;
    const bool holds = std::isnan(want) ? std::isnan(y[at]) && bits(y[at]) != kUntouched
                                        : std::fabs(y[at] - want) <= expected.margin[k];
    if (!holds) {
      return where + " is " + std::to_string(y[at]) + ", expected " + std::to_string(want) +
             " within " + std::to_string(expected.margin[k]);
    }
  }
  return y.intact() ? "" : "wrote before the output";
}

template <typename Multiply>
void try_tables(const std::string& what, const Problem& problem, const Call& call,
                const Expected& expected, const Multiply& multiply) {
  int count = 0;
  const Kernels* const* tables = available_tables(&count);
  for (int i = 0; i < count; ++i) {
    const std::string text = what + " " + problem.shape().text() + call.text();
    now_trying(*tables[i], text);
    Guarded<float> y((call.rows - 1) * call.stride + problem.shape().outputs);
    for (int64_t at = 0; at < y.size(); ++at) std::memcpy(&y[at], &kUntouched, sizeof kUntouched);
    multiply(*tables[i], Output{y.data(), call.stride});
    const std::string found = compare(problem, call, expected, y);
    count_case(*tables[i], found.empty() ? found : text + ": " + found);
  }
}

enum class Codes { kRandom, kExtreme };

void try_int8(const Shape& shape, Values values, const Call& call, Codes kind, Random& random) {
  const Problem problem(shape, values, random);
  const int64_t K = shape.inputs, groups = problem.weights().groups;
  const int64_t stride = (K + 63) / 64 * 64 + 64 * random.between(0, 1);
  Guarded<int8_t> codes(call.rows * stride);
  Guarded<float> scales(call.rows);
  Guarded<int32_t> sums(call.rows * groups);
  std::fill(codes.data(), codes.data() + codes.size(), int8_t{0});
  std::fill(sums.data(), sums.data() + sums.size(), 0);
  for (int64_t i = 0; i < call.rows; ++i) {
    scales[i] = random.real(0.001f, 0.1f);
    const int extreme = i % 2 == 0 ? 127 : -127;
    for (int64_t k = 0; k < K; ++k) {
      const int64_t code = kind == Codes::kExtreme ? extreme : random.between(-127, 127);
      codes[i * stride + k] = static_cast<int8_t>(code);
      sums[i * groups + problem.group_of(k)] += static_cast<int32_t>(code);
    }
  }
  const bool with_nan = kind == Codes::kRandom && random.between(0, 4) == 0;
  if (with_nan) scales[random.between(0, call.rows - 1)] = std::nanf("");
  codes.make_constant();
  scales.make_constant();
  sums.make_constant();
  const double units = 8 + static_cast<double>(shape.terms * groups);
  const Expected expected =
      expect<int8_t, int64_t>(problem, call, codes.data(), stride, scales.data(), units);
  const Int8Rows rows = {codes.data(), stride, scales.data(), sums.data(), call.rows};
  try_tables("multiply_int8", problem, call, expected, [&](const Kernels& table, Output out) {
    table.multiply_int8(problem.weights(), rows, call.first_panel, call.last_panel, out);
  });
}

enum class Inputs { kAnySign, kPositive, kRowOfNan };

void try_float(const Shape& shape, Values values, const Call& call, Inputs inputs, Random& random) {
  const Problem problem(shape, values, random);
  const int64_t K = shape.inputs, stride = K + random.between(0, 3);
  Guarded<float> x((call.rows - 1) * stride + K);
  for (int64_t k = 0; k < x.size(); ++k) {
    x[k] = random.real(inputs == Inputs::kPositive ? 0.0f : -1.0f, 1.0f);
  }
  const int64_t spoiled = inputs == Inputs::kRowOfNan ? random.between(0, call.rows - 1) : -1;
  if (spoiled >= 0) std::fill_n(x.data() + spoiled * stride, K, std::nanf(""));
  x.make_constant();
  // Sums in one float32 from end to end err by about 29 units in the longest case here.
  Expected expected = expect<float, double>(problem, call, x.data(), stride, nullptr, 24);
  if (spoiled >= 0) {  // columns of zeros alone may ignore it: only the other rows are looked at
    const int64_t N = shape.outputs;
    std::fill_n(expected.y.begin() + spoiled * N, N, 0.0);
    std::fill_n(expected.margin.begin() + spoiled * N, N, HUGE_VAL);
  }
  try_tables("multiply_float", problem, call, expected, [&](const Kernels& table, Output out) {
    table.multiply_float(problem.weights(), x.data(), stride, call.rows, call.first_panel,
                         call.last_panel, out);
  });
}

int64_t near(const std::vector<int64_t>& edges, int64_t most, Random& random) {
  if (random.between(0, 2) == 0) return random.between(1, most);
  const int64_t edge = edges[static_cast<size_t>(random.between(0, int64_t(edges.size()) - 1))];
  return std::clamp<int64_t>(edge + random.between(-1, 1), 1, most);
}

// A shape, and which rows and panels of it to ask for.
struct Question {
  Shape shape;
  Call call;
};

Question any_question(Random& random) {
  const int64_t group_sizes[] = {0, 32, 64, 128};
  const Shape shape = {near({1, 16, 32, 64, 96, 128, 256, 320, 512, 640, 699}, 700, random),
                       near({1, 16, 32, 48, 64, 96, 128, 199}, 200, random),
                       group_sizes[random.between(0, 3)], random.between(1, 3)};
  const int64_t panels = (shape.outputs + 15) / 16;
  Call call;
  call.rows = near({1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 69}, 70, random);
  const bool all = random.between(0, 1) == 0;
  call.first_panel = all ? 0 : random.between(0, panels - 1);
  call.last_panel = all ? panels : random.between(call.first_panel + 1, panels);
  call.stride = shape.outputs + random.between(0, 1) * random.between(1, 20);
  // Large in two directions at most, for the sake of time.
  const int64_t products = shape.terms * shape.inputs * shape.outputs * call.rows;
  return products <= 1000000 ? Question{shape, call} : any_question(random);
}

}  // namespace

void try_multiply_int8() {
  Random random(2);
  for (int i = 0; i < 400; ++i) {
    const auto [shape, call] = any_question(random);
    try_int8(shape, Values::kRandom, call, Codes::kRandom, random);
    const Values values = i % 8 == 0 ? Values::kMinus : Values::kPlus;
    if (i % 4 == 0) try_int8(shape, values, call, Codes::kExtreme, random);
  }
  // All codes as large as they get, and all of one sign: what is summed must not overflow.
  for (const int64_t rows : {1, 3, 4, 9}) {
    const Values values = rows % 2 == 0 ? Values::kMinus : Values::kPlus;
    try_int8({200000, 17, 0, 1}, values, {rows, 0, 2, 17}, Codes::kExtreme, random);
  }
  try_int8({200000, 17, 128, 1}, Values::kPlus, {5, 0, 2, 17}, Codes::kExtreme, random);
  try_int8({8388608, 1, 0, 1}, Values::kPlus, {1, 0, 1, 1}, Codes::kExtreme, random);
  try_int8({8388608, 1, 0, 1}, Values::kPlus, {8, 0, 1, 1}, Codes::kExtreme, random);
}

void try_multiply_float() {
  Random random(3);
  for (int i = 0; i < 300; ++i) {
    const auto [shape, call] = any_question(random);
    const Inputs inputs = static_cast<Inputs>(random.between(0, 2));
    try_float(shape, Values::kRandom, call, inputs, random);
  }
  for (const int64_t rows : {1, 4, 9}) {
    try_float({60000, 17, 0, 1}, Values::kPlus, {rows, 0, 2, 17}, Inputs::kPositive, random);
  }
}

}  // namespace onnxlr::testing
