#include "tests/problem.h"

#include <algorithm>
#include <cmath>

namespace onnxlr::testing {
namespace {

int64_t up(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

int64_t group_size_of(const Shape& shape) {
  return shape.group_size == 0 ? shape.inputs : shape.group_size;
}

}  // namespace

std::string Shape::text() const {
  return "K=" + std::to_string(inputs) + " N=" + std::to_string(outputs) +
         " group_size=" + std::to_string(group_size_of(*this)) + " terms=" + std::to_string(terms);
}

Problem::Problem(const Shape& shape, Values values, Random& random)
    : shape_(shape),
      group_size_(group_size_of(shape)),
      groups_(up(shape.inputs, group_size_)),
      blocks_(up(shape.inputs, 16)),
      panels_(up(shape.outputs, 16)),
      ternary_(static_cast<size_t>(shape.terms * shape.inputs * shape.outputs)),
      scales_(static_cast<size_t>(shape.terms * groups_ * shape.outputs)),
      bias_(static_cast<size_t>(shape.outputs)),
      codes_(shape.terms * panels_ * blocks_ * 64),
      packed_scales_(panels_ * shape.terms * groups_ * 16),
      packed_bias_(panels_ * 16) {
  for (int8_t& value : ternary_) {
    value = static_cast<int8_t>(values == Values::kRandom ? random.between(-1, 1)
                                : values == Values::kPlus ? 1
                                                          : -1);
  }
  for (float& scale : scales_) scale = random.real(-1, 1);
  for (float& bias : bias_) bias = random.real(-3, 3);
  pack();
  const int64_t group_blocks = groups_ == 1 ? blocks_ : group_size_ / 16;
  weights_ = {codes_.data(), packed_scales_.data(), packed_bias_.data(),
              shape.inputs,  shape.outputs,         blocks_,
              panels_,       shape.terms,           groups_,
              group_blocks};
}

void Problem::pack() {
  std::fill(codes_.data(), codes_.data() + codes_.size(), uint8_t{0x55});  // all codes 1: zeros
  std::fill(packed_scales_.data(), packed_scales_.data() + packed_scales_.size(), 0.0f);
  std::fill(packed_bias_.data(), packed_bias_.data() + packed_bias_.size(), 0.0f);
  const auto [K, N] = std::pair(shape_.inputs, shape_.outputs);
  for (int64_t t = 0; t < shape_.terms; ++t) {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t n = 0; n < N; ++n) {
        const int64_t block = (t * panels_ + n / 16) * blocks_ + k / 16;
        const int64_t j = k % 4, g = k % 16 / 4;
        uint8_t& byte = codes_[block * 64 + 4 * (n % 16) + j];
        const int code = ternary_[static_cast<size_t>((t * K + k) * N + n)] + 1;
        byte = static_cast<uint8_t>((byte & ~(3 << (2 * g))) | (code << (2 * g)));
      }
    }
    for (int64_t g = 0; g < groups_; ++g) {
      for (int64_t n = 0; n < N; ++n) {
        packed_scales_[((n / 16 * shape_.terms + t) * groups_ + g) * 16 + n % 16] =
            scales_[static_cast<size_t>((t * groups_ + g) * N + n)];
      }
    }
  }
  for (int64_t n = 0; n < N; ++n) packed_bias_[n] = bias_[static_cast<size_t>(n)];
  codes_.make_constant();
  packed_scales_.make_constant();
  packed_bias_.make_constant();
}

template <typename Value, typename Sum>
void Problem::product(const Value* x, double scale, double* y, double* size) const {
  const size_t N = static_cast<size_t>(shape_.outputs);
  for (size_t n = 0; n < N; ++n) size[n] = std::fabs(y[n] = bias_[n]);
  std::vector<Sum> sums(N), sizes(N);
  for (int64_t t = 0; t < shape_.terms; ++t) {
    for (int64_t g = 0; g < groups_; ++g) {
      std::fill(sums.begin(), sums.end(), Sum{0});
      std::fill(sizes.begin(), sizes.end(), Sum{0});
      const int64_t last = std::min((g + 1) * group_size_, shape_.inputs);
      for (int64_t k = g * group_size_; k < last; ++k) {
        const int8_t* row = &ternary_[static_cast<size_t>(t * shape_.inputs + k) * N];
        const Sum value = static_cast<Sum>(x[k]);
        const Sum positive = value < 0 ? -value : value;
        for (size_t n = 0; n < N; ++n) {
          sums[n] += static_cast<Sum>(row[n]) * value;
          sizes[n] += row[n] != 0 ? positive : Sum{0};
        }
      }
      // Integer sums are exact, so that only what is done with them afterwards can err.
      const bool exact = std::is_integral_v<Sum>;
      for (size_t n = 0; n < N; ++n) {
        const double s = scale * scales_[static_cast<size_t>(t * groups_ + g) * N + n];
        y[n] += s * static_cast<double>(sums[n]);
        size[n] += std::fabs(s * static_cast<double>(exact ? sums[n] : sizes[n]));
      }
    }
  }
}

template void Problem::product<int8_t, int64_t>(const int8_t*, double, double*, double*) const;
template void Problem::product<float, double>(const float*, double, double*, double*) const;

}  // namespace onnxlr::testing
