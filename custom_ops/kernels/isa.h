// The instruction sets of this build, best first. The last one runs everywhere.
#pragma once

#include "kernels/kernel.h"

namespace onnxlr {

struct Isa {
  const Kernels* kernels;
  bool (*available)();  // does this machine have it? Asked again on each call: it must be cheap
};

extern const Isa kIsas[];
extern const int kIsaCount;

}  // namespace onnxlr
