// Several threads make kernels and run the same one, each with several threads: for ThreadSanitizer,
// which cannot see into ONNX Runtime. Also fails where results differ.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "fake_runtime.h"

using namespace onnxlr::ort;

extern "C" Status* RegisterCustomOps(SessionOptions* options, const ApiBase* base);
extern "C" const char* OnnxlrOpsDescription();

namespace {

const ApiBase kBase = {[](uint32_t) { return api(); }, [] { return "fake"; }};

void check(Status* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "%s\n", status->message.c_str());
  std::exit(1);
}

struct Case {
  const char* op;
  KernelInfo info;
  Value x, codes, scales, input_scale, bias;
};

std::vector<float> numbers(int64_t count) {
  static std::mt19937 random(7);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = std::normal_distribution<float>()(random);
  return values;
}

// Packed codes of 0, 1 and 2; a multiple of 16 inputs and columns, so that nothing is beyond them.
Value codes_of(std::vector<int64_t> dims) {
  size_t size = 1;
  for (int64_t dim : dims) size *= static_cast<size_t>(dim);
  std::vector<uint8_t> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = i % 3 == 0 ? 0x55 : i % 3 == 1 ? 0x24 : 0x81;
  return {std::move(dims), {}, std::move(bytes)};
}

Case matmul(int64_t rows, int64_t inputs, int64_t outputs, int64_t level) {
  Case made{"TernaryMatMul", {}, {}, {}, {}, {}, {}};
  made.info.ints = {{"K", inputs}, {"N", outputs},    {"group_size", inputs},
                    {"terms", 1},  {"layout", 1}, {"accuracy_level", level}};
  made.x = {{rows, inputs}, numbers(rows * inputs), {}};
  made.codes = codes_of({1, outputs / 16, inputs / 16, 64});
  made.scales = {{1, 1, outputs}, numbers(outputs), {}};
  made.input_scale = {{inputs}, numbers(inputs), {}};
  made.bias = {{outputs}, numbers(outputs), {}};
  return made;
}

Case conv(int64_t channels, int64_t outputs, int64_t kernel, int64_t side, int64_t level) {
  const int64_t inputs = channels * kernel * kernel;
  Case made = matmul(1, inputs, outputs, level);
  made.op = "TernaryConv";
  made.info.ints["group"] = 1;
  made.info.ints["channels"] = channels;
  const int64_t pad = kernel / 2;
  made.info.lists = {{"kernel_shape", {kernel, kernel}},
                     {"strides", {1, 1}},
                     {"dilations", {1, 1}},
                     {"pads", {pad, pad, pad, pad}}};
  made.x = {{2, channels, side, side}, numbers(2 * channels * side * side), {}};
  made.codes.dims.insert(made.codes.dims.begin() + 1, 1);
  made.input_scale = {{channels}, numbers(channels), {}};
  return made;
}

const CustomOp* find(const char* name) {
  SessionOptions options;
  check(RegisterCustomOps(&options, &kBase));
  for (const CustomOp* op : options.domains.front()->ops) {
    if (std::string(op->GetName(op)) == name) return op;
  }
  std::exit(1);
}

std::vector<float> run(const CustomOp* op, void* kernel, const Value& x, int threads) {
  Value y;
  KernelContext context{&x, &y, threads};
  check(op->KernelComputeV2(kernel, &context));
  return y.floats;
}

void try_one(Case& one) {
  one.info.inputs = {&one.x, &one.codes, &one.scales, &one.input_scale, &one.bias};
  const CustomOp* op = find(one.op);
  void* shared = nullptr;
  check(op->CreateKernelV2(op, api(), &one.info, &shared));
  const std::vector<float> expected = run(op, shared, one.x, 1);
  std::vector<std::thread> users;
  std::atomic<int> differing{0};
  for (int user = 0; user < 4; ++user) {
    users.emplace_back([&, user] {
      const CustomOp* own_op = find(one.op);
      void* own = nullptr;
      check(own_op->CreateKernelV2(own_op, api(), &one.info, &own));
      for (int round = 0; round < 3; ++round) {
        differing += run(op, shared, one.x, 1 + user) != expected;
        differing += run(own_op, own, one.x, 2) != expected;
      }
      own_op->KernelDestroy(own);
    });
  }
  for (std::thread& user : users) user.join();
  op->KernelDestroy(shared);
  if (differing == 0) return;
  std::fprintf(stderr, "%s: %d results differ\n", one.op, differing.load());
  std::exit(1);
}

}  // namespace

int main() {
  std::printf("%s\n", OnnxlrOpsDescription());
  Case cases[] = {matmul(1, 64, 48, 4),      matmul(1, 1024, 4096, 4), matmul(130, 256, 320, 4),
                  matmul(600, 512, 64, 4),   matmul(70, 256, 320, 0),  conv(16, 32, 1, 40, 4),
                  conv(16, 48, 3, 40, 4),    conv(16, 32, 3, 20, 0)};
  for (Case& one : cases) try_one(one);
}
