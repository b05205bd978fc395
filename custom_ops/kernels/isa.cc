#include "kernels/isa.h"

#include "kernels/scalar.h"

#if defined(__x86_64__) || defined(_M_X64)
#include "kernels/x86.h"
#elif defined(__aarch64__)
#include "kernels/arm.h"
#endif

namespace onnxlr {
namespace {

bool always() { return true; }

}  // namespace

const Isa kIsas[] = {
#if defined(__x86_64__) || defined(_M_X64)
    {&kAmxKernels, has_amx},         {&kAvx512VnniKernels, has_avx512vnni},
    {&kAvxVnniKernels, has_avxvnni}, {&kAvx2Kernels, has_avx2},
#elif defined(__aarch64__)
    {&kI8mmKernels, has_i8mm},
    {&kDotprodKernels, has_dotprod},
    {&kNeonKernels, has_neon},
#endif
    {&kScalarKernels, always},
};

const int kIsaCount = sizeof(kIsas) / sizeof(kIsas[0]);

}  // namespace onnxlr
