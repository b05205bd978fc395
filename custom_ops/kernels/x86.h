// The kernels of x86-64, and whether this machine has what they need.
#pragma once

#include "kernels/kernel.h"

namespace onnxlr {

extern const Kernels kAmxKernels;         // "amx"
extern const Kernels kAvx512VnniKernels;  // "avx512vnni"
extern const Kernels kAvxVnniKernels;     // "avxvnni"
extern const Kernels kAvx2Kernels;        // "avx2"

bool has_amx();
bool has_avx512vnni();
bool has_avxvnni();
bool has_avx2();

}  // namespace onnxlr
