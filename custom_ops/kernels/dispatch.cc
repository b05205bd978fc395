// Which instruction set to use: the best this machine has, or what ONNXLR_ISA asks for.
#include <cstdlib>
#include <cstring>

#include "kernels/isa.h"
#include "kernels/kernel.h"

namespace onnxlr {

const Kernels* choose_kernels(const char** problem) {
  const char* wanted = std::getenv("ONNXLR_ISA");
  const bool forced = wanted != nullptr && *wanted != '\0';
  for (int i = 0; i < kIsaCount; ++i) {
    const Isa& isa = kIsas[i];
    if (forced && std::strcmp(wanted, isa.kernels->name) != 0) continue;
    if (isa.available()) return isa.kernels;
    if (forced) {
      *problem = "ONNXLR_ISA names an instruction set that this machine does not have";
      return nullptr;
    }
  }
  *problem = "ONNXLR_ISA names an instruction set that this build of the op library does not have";
  return nullptr;
}

}  // namespace onnxlr
