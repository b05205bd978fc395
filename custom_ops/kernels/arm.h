// The kernels of aarch64, and whether this machine has what they need.
#pragma once

#include "kernels/kernel.h"

namespace onnxlr {

extern const Kernels kI8mmKernels;     // "i8mm"
extern const Kernels kDotprodKernels;  // "dotprod"
extern const Kernels kNeonKernels;     // "neon"

bool has_i8mm();
bool has_dotprod();
bool has_neon();

}  // namespace onnxlr
