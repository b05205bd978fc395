// Loops that are gone when the optimiser looks, so that arrays of sums become registers.
//
// Include after `#pragma GCC target`: a body for a newer target is not inlined into these
// otherwise.
#pragma once

#include <type_traits>
#include <utility>

#if defined(_MSC_VER)
#define ONNXLR_INLINE __forceinline
#define ONNXLR_NOINLINE __declspec(noinline)
#define ONNXLR_INLINE_LAMBDA [[msvc::forceinline]]
#else
#define ONNXLR_INLINE inline __attribute__((always_inline))
#define ONNXLR_NOINLINE __attribute__((noinline))
#define ONNXLR_INLINE_LAMBDA __attribute__((always_inline))
#endif

namespace onnxlr {

template <typename Body, int... I>
ONNXLR_INLINE void unrolled(Body&& body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>{}), ...);
}

// body(0), body(1), … body(count - 1), with the number known to the compiler.
template <int count, typename Body>
ONNXLR_INLINE void unrolled(Body&& body) {
  unrolled(body, std::make_integer_sequence<int, count>{});
}

}  // namespace onnxlr
