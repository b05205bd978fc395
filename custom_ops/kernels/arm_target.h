// Lets functions use instructions that not every machine has. Include everything else before
// ONNXLR_TARGET_BEGIN: an inline function of a header that is compiled after it could be the copy
// that the linker keeps for all, and stop an older machine.
#pragma once

#if defined(__clang__)
#define ONNXLR_PRAGMA(text) _Pragma(#text)
#define ONNXLR_TARGET_BEGIN(gcc_target, clang_target) \
  ONNXLR_PRAGMA(clang attribute push(__attribute__((target(clang_target))), apply_to = function))
#define ONNXLR_TARGET_END _Pragma("clang attribute pop")
#else
#define ONNXLR_PRAGMA(text) _Pragma(#text)
#define ONNXLR_TARGET_BEGIN(gcc_target, clang_target) \
  ONNXLR_PRAGMA(GCC push_options) ONNXLR_PRAGMA(GCC target(gcc_target))
#define ONNXLR_TARGET_END _Pragma("GCC pop_options")
#endif

#define ONNXLR_INLINE static inline __attribute__((always_inline))
#define ONNXLR_INLINE_METHOD inline __attribute__((always_inline))
