#include "planes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "weights.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace onnxlr {
namespace {

constexpr int64_t kLanes = 4;
constexpr int64_t kMostWindow = 256;  // inputs of a window
constexpr int64_t kMostGrowth = 4;    // planes per image
constexpr int64_t kSlack = 16;        // floats that the last windows read beyond the last line
constexpr uint32_t kInfinity = 0x7F800000u;

typedef float Floats __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));

inline Floats load(const float* p) {
  Floats value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// To the nearest integer, ties to even.
inline Words rounded(Floats value) {
#if defined(__SSE2__)
  return reinterpret_cast<Words>(_mm_cvtps_epi32(reinterpret_cast<__m128>(value)));
#elif defined(__aarch64__)
  return (Words)vcvtnq_s32_f32((float32x4_t)value);
#else
  Words result;
  for (int i = 0; i < kLanes; ++i) {
    const float nearest = std::nearbyint(value[i]);
    result[i] = std::isfinite(nearest) ? static_cast<uint32_t>(static_cast<int32_t>(nearest)) : 0;
  }
  return result;
#endif
}

// to[lane][i] = words[i][lane]
inline void transpose_words(const Words (&words)[4], uint32_t (&to)[4][4]) {
#if defined(__SSE2__)
  const __m128i a = reinterpret_cast<__m128i>(words[0]), b = reinterpret_cast<__m128i>(words[1]);
  const __m128i c = reinterpret_cast<__m128i>(words[2]), d = reinterpret_cast<__m128i>(words[3]);
  const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
  const __m128i AB = _mm_unpackhi_epi32(a, b), CD = _mm_unpackhi_epi32(c, d);
  _mm_store_si128(reinterpret_cast<__m128i*>(to[0]), _mm_unpacklo_epi64(ab, cd));
  _mm_store_si128(reinterpret_cast<__m128i*>(to[1]), _mm_unpackhi_epi64(ab, cd));
  _mm_store_si128(reinterpret_cast<__m128i*>(to[2]), _mm_unpacklo_epi64(AB, CD));
  _mm_store_si128(reinterpret_cast<__m128i*>(to[3]), _mm_unpackhi_epi64(AB, CD));
#elif defined(__aarch64__)
  vst4q_u32(to[0], {{(uint32x4_t)words[0], (uint32x4_t)words[1], (uint32x4_t)words[2],
                     (uint32x4_t)words[3]}});
#else
  for (int lane = 0; lane < 4; ++lane) {
    for (int i = 0; i < 4; ++i) to[lane][i] = words[i][lane];
  }
#endif
}

inline int64_t reach(const Axis& axis, int64_t outputs) {
  return (outputs - 1) * axis.stride + axis.dilation * (axis.kernel - 1) + 1;
}

// |value|, as bits, which order the same way; what is not finite is infinite.
inline uint32_t magnitude(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return std::min(bits & 0x7FFFFFFFu, kInfinity);
}

}  // namespace

Planes::Planes(const Window& window, const Image& image, int64_t channel_groups)
    : window_(window), image_(image), groups_(channel_groups), step_(window.axes[1].stride) {
  const Axis& down = window.axes[0];
  const Axis& across = window.axes[1];
  const int64_t channels = image.channels / channel_groups;
  if (window.positions() > kMostWindow || window.positions() * channels > kMostWindow) return;
  height_ = reach(down, image.out_height);
  width_ = reach(across, image.out_width);
  phase_ = divide_up(width_, step_);
  // In double: none of the factors is bounded yet.
  const double planes = static_cast<double>(height_) * static_cast<double>(line_size());
  if (planes > static_cast<double>(kMostGrowth) * static_cast<double>(image.size())) return;
  suits_ = true;
  size_ = image.batch * (image.channels + groups_) * plane_size() + kSlack;
  for (int64_t i = 0; i < down.kernel; ++i) {
    for (int64_t j = 0; j < across.kernel; ++j) {
      const int64_t column = j * across.dilation;
      positions_.push_back(i * down.dilation * line_size() + column % step_ * phase_ +
                           column / step_);
      for (int64_t c = 0; c < channels; ++c)
        inputs_.push_back(c * plane_size() + positions_.back());
    }
  }
}

void Planes::fill(const float* x, const float* input_scale, int64_t line, float* planes) const {
  const int64_t picture = line / height_, top = line % height_;
  const int64_t y = top - window_.axes[0].begin;
  const int64_t channels = image_.channels / groups_;
  float* ranges = planes + image_.batch * image_.channels * plane_size();
  if (line == 0) std::fill_n(planes + size_ - kSlack, kSlack, 0.0f);
  for (int64_t group = 0; group < groups_; ++group) {
    float* largest = ranges + (picture * groups_ + group) * plane_size() + top * line_size();
    std::fill_n(largest, line_size(), 0.0f);
    for (int64_t i = 0; i < channels; ++i) {
      const int64_t channel = group * channels + i;
      const int64_t plane = picture * image_.channels + channel;
      float* to = planes + plane * plane_size() + top * line_size();
      if (y < 0 || y >= image_.height) {
        std::fill_n(to, line_size(), 0.0f);
        continue;
      }
      const float* from = x + (plane * image_.height + y) * image_.width;
      const float scale = input_scale == nullptr ? 1.0f : input_scale[channel];
      for (int64_t p = 0; p < step_; ++p, to += phase_) {
        // Column q of this part is column `start + q * step_` of the image.
        const int64_t start = p - window_.axes[1].begin;
        const int64_t first = std::min(phase_, start >= 0 ? 0 : divide_up(-start, step_));
        const int64_t room = image_.width - start;
        const int64_t last = std::clamp(room <= 0 ? 0 : divide_up(room, step_), first, phase_);
        std::fill_n(to, first, 0.0f);
        std::fill_n(to + last, phase_ - last, 0.0f);
        const float* column = from + (start + first * step_);
        const int64_t count = last - first;
        if (step_ == 1) {
          for (int64_t q = 0; q < count; ++q) to[first + q] = column[q] * scale;
        } else {
          for (int64_t q = 0; q < count; ++q) to[first + q] = column[q * step_] * scale;
        }
        float* seen = largest + p * phase_ + first;
        for (int64_t q = 0; q < count; ++q) {
          uint32_t before;
          std::memcpy(&before, seen + q, sizeof(before));
          const uint32_t most = std::max(before, magnitude(to[first + q]));
          std::memcpy(seen + q, &most, sizeof(most));
        }
      }
    }
  }
}

void Planes::round(const float* planes, const Weights& w, int64_t group, int64_t first,
                   int64_t last, int8_t* codes, int64_t stride, float* scales,
                   int32_t* sums) const {
  const int64_t channels = image_.channels / groups_;
  const float* all_ranges = planes + image_.batch * image_.channels * plane_size();
  std::memset(codes, 0, static_cast<size_t>((last - first) * stride));
  while (first < last) {
    const int64_t picture = first / image_.outputs();
    const int64_t out_y = first % image_.outputs() / image_.out_width;
    const int64_t out_x = first % image_.out_width;
    const int64_t count = std::min({kLanes, last - first, image_.out_width - out_x});
    const int64_t place = out_y * window_.axes[0].stride * line_size() + out_x;
    const int64_t plane = picture * image_.channels + group * channels;
    round_four(planes + plane * plane_size() + place,
               all_ranges + (picture * groups_ + group) * plane_size() + place, w, count, codes,
               stride, scales, sums);
    first += count;
    codes += count * stride;
    scales += count;
    sums += count * w.groups;
  }
}

void Planes::round_four(const float* window, const float* ranges, const Weights& w, int64_t count,
                        int8_t* codes, int64_t stride, float* scales, int32_t* sums) const {
  Floats largest = {kSmallestRange, kSmallestRange, kSmallestRange, kSmallestRange};
  for (const int64_t position : positions_) {
    const Floats range = load(ranges + position);
    largest = range > largest ? range : largest;
  }
  const Floats inverse = 127.0f / largest;
  const Floats scale = largest / 127.0f;

  Words sum = {};
  int64_t group = 0;
  const auto code = [&](int64_t k) {
    const Words result = rounded(load(window + inputs_[static_cast<size_t>(k)]) * inverse);
    sum += result;
    return result;
  };
  for (int64_t block = 0; block < w.blocks; ++block) {
    const int64_t first = block * kBlockInputs;
    Words words[4] = {};
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t k = first + 4 * i;
      if (k + 4 <= w.inputs) {
        words[i] = (code(k) & 255) | (code(k + 1) & 255) << 8 | (code(k + 2) & 255) << 16 |
                   code(k + 3) << 24;
        continue;
      }
      for (int64_t j = 0; k + j < w.inputs; ++j) words[i] |= (code(k + j) & 255) << (8 * j);
      break;
    }
    alignas(16) uint32_t rows[4][4];
    transpose_words(words, rows);
    for (int64_t row = 0; row < count; ++row) {
      std::memcpy(codes + row * stride + first, rows[row], sizeof(rows[row]));
    }
    if ((block + 1) % w.group_blocks == 0 || block + 1 == w.blocks) {
      for (int64_t row = 0; row < count; ++row) {
        sums[row * w.groups + group] = static_cast<int32_t>(sum[row]);
      }
      ++group;
      sum = Words{};
    }
  }
  for (int64_t row = 0; row < count; ++row) {
    scales[row] = scale[row];
    if (std::isfinite(scale[row])) continue;
    scales[row] = std::numeric_limits<float>::quiet_NaN();
    std::memset(codes + row * stride, 0, static_cast<size_t>(stride));
    std::fill_n(sums + row * w.groups, w.groups, 0);
  }
}

}  // namespace onnxlr
