// Tries every instruction set that this machine has, without ONNX Runtime.
#include <csignal>
#include <cstdio>
#include <cstring>
#include <vector>

#include <unistd.h>

#include "kernels/isa.h"
#include "tests/report.h"

namespace onnxlr::testing {
namespace {

constexpr int kShownProblems = 8;  // of each table

char current[400] = "";  // read by the signal handler: no allocation

struct Tables {
  std::vector<const Kernels*> tables;
  std::vector<Tally> tallies;
};

Tables& all() {
  static Tables found = [] {
    Tables result;
    for (int i = 0; i < kIsaCount; ++i) {
      if (kIsas[i].available()) result.tables.push_back(kIsas[i].kernels);
    }
    result.tallies.resize(result.tables.size());
    return result;
  }();
  return found;
}

void stopped(int signal) {
  const char* message = signal == SIGILL ? "\nan instruction that this machine does not have: "
                                         : "\nread or wrote where nothing is: ";
  const char* const parts[] = {message, current, "\n"};
  for (const char* part : parts) {
    if (write(STDOUT_FILENO, part, std::strlen(part)) < 0) break;
  }
  _exit(2);
}

}  // namespace

const Kernels* const* available_tables(int* count) {
  *count = static_cast<int>(all().tables.size());
  return all().tables.data();
}

void now_trying(const Kernels& table, const std::string& what) {
  std::snprintf(current, sizeof current, "%s: %s", table.name, what.c_str());
}

void count_case(const Kernels& table, const std::string& problem) {
  for (size_t i = 0; i < all().tables.size(); ++i) {
    if (all().tables[i] != &table) continue;
    Tally& tally = all().tallies[i];
    ++(problem.empty() ? tally.passed : tally.failed);
    if (!problem.empty() && tally.failed <= kShownProblems) {
      std::printf("%s: %s\n", table.name, problem.c_str());
    }
  }
}

int run() {
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL}) std::signal(signal, stopped);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::printf("best: %s\n", all().tables[0]->name);
  Tally total;
  try_dispatch(total);
  std::printf("%-12s %d cases\n", "dispatch", total.passed + total.failed);
  try_quantize();
  try_multiply_int8();
  try_multiply_float();
  for (size_t i = 0; i < all().tables.size(); ++i) {
    const Tally& tally = all().tallies[i];
    std::printf("%-12s %d cases\n", all().tables[i]->name, tally.passed + tally.failed);
    total.passed += tally.passed;
    total.failed += tally.failed;
  }
  std::printf("%d passed, %d failed\n", total.passed, total.failed);
  return total.failed == 0 ? 0 : 1;
}

}  // namespace onnxlr::testing

int main() { return onnxlr::testing::run(); }
