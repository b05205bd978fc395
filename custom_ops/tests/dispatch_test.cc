// choose_kernels: the best table, and what ONNXLR_ISA makes of it.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/isa.h"
#include "tests/report.h"

namespace onnxlr::testing {
namespace {

const Kernels* choose(const char* wanted, const char** problem) {
  if (wanted == nullptr) {
    unsetenv("ONNXLR_ISA");
  } else {
    setenv("ONNXLR_ISA", wanted, 1);
  }
  *problem = nullptr;
  const Kernels* table = choose_kernels(problem);
  unsetenv("ONNXLR_ISA");
  return table;
}

void check(Tally& tally, bool holds, const char* wanted, const char* expected) {
  ++(holds ? tally.passed : tally.failed);
  if (!holds) {
    std::printf("dispatch: ONNXLR_ISA=%s: expected %s\n", wanted ? wanted : "(unset)", expected);
  }
}

void try_best(Tally& tally) {
  int count = 0;
  const Kernels* best = available_tables(&count)[0];
  const char* problem = nullptr;
  check(tally, choose(nullptr, &problem) == best, nullptr, best->name);
  check(tally, choose("", &problem) == best, "", best->name);
}

void try_names_of_this_build(Tally& tally) {
  for (int i = 0; i < kIsaCount; ++i) {
    const char* name = kIsas[i].kernels->name;
    const char* problem = nullptr;
    const Kernels* table = choose(name, &problem);
    if (kIsas[i].available()) {
      check(tally, table == kIsas[i].kernels, name, "the table of that name");
    } else {
      const bool refused = table == nullptr && problem != nullptr;
      check(tally, refused && std::strstr(problem, "machine") != nullptr, name,
            "a refusal that speaks of the machine");
    }
    for (int j = 0; j < i; ++j) {
      check(tally, std::strcmp(name, kIsas[j].kernels->name) != 0, name, "each name once");
    }
  }
}

void try_other_names(Tally& tally) {
#if defined(__aarch64__)
  const char* elsewhere = "avx2";
#else
  const char* elsewhere = "neon";
#endif
  const char* const names[] = {elsewhere, "sse9", "Scalar", "scalar ", "scala", "avx2,scalar", "1"};
  for (const char* name : names) {
    const char* problem = nullptr;
    const bool refused = choose(name, &problem) == nullptr && problem != nullptr;
    check(tally, refused && std::strstr(problem, "build") != nullptr, name,
          "a refusal that speaks of the build");
  }
}

}  // namespace

void try_dispatch(Tally& tally) {
  try_best(tally);
  try_names_of_this_build(tally);
  try_other_names(tally);
}

}  // namespace onnxlr::testing
