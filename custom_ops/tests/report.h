// Counts of what held, for each instruction set, and where the program is should it be stopped.
#pragma once

#include <string>

#include "kernels/kernel.h"

namespace onnxlr::testing {

struct Tally {
  int passed = 0, failed = 0;
};

// The tables that this machine can run, best first.
const Kernels* const* available_tables(int* count);

// Says what is being tried, so that a stop by a guard page names it.
void now_trying(const Kernels& table, const std::string& what);

// Counts one case; an empty problem is a pass. The first problems of each table are printed.
void count_case(const Kernels& table, const std::string& problem);

void try_dispatch(Tally& tally);
void try_quantize();
void try_multiply_int8();
void try_multiply_float();

}  // namespace onnxlr::testing
