// Runs a model that has onnxlr's operators, with the op library's kernels:
//
//   register_ops libonnxruntime.so libonnxlr_ops.so model.onnx INPUT OUTPUT rows columns
//
// reads rows * columns float32 numbers from standard input, prints those of OUTPUT, one a line.
//
// ONNX Runtime is loaded as the program runs, so that it builds without it. A program that links to
// it calls OrtGetApiBase() itself; with the C++ interface, what concerns the library is one line:
//
//   Ort::SessionOptions options;
//   options.RegisterCustomOpsLibrary("libonnxlr_ops.so");
//   Ort::Session session(env, "model.onnx", options);
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

// The interface at the version that the op library needs, or newer.
const OrtApi* load_api(const char* runtime) {
  void* library = dlopen(runtime, RTLD_NOW);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return nullptr;
  }
  auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  const OrtApi* api = base == nullptr ? nullptr : base()->GetApi(17);
  if (api == nullptr) std::fprintf(stderr, "%s is no ONNX Runtime of 1.17 or newer\n", runtime);
  return api;
}

void check(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  api->ReleaseStatus(status);
  std::exit(1);
}

std::vector<float> read_numbers(size_t count) {
  std::vector<float> numbers(count);
  for (float& number : numbers) {
    if (std::scanf("%f", &number) == 1) continue;
    std::fprintf(stderr, "fewer than %zu numbers were read\n", count);
    std::exit(1);
  }
  return numbers;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 8) {
    std::fprintf(stderr, "usage: %s onnxruntime library model input output rows columns\n",
                 arguments[0]);
    return 2;
  }
  const OrtApi* api = load_api(arguments[1]);
  if (api == nullptr) return 1;

  OrtEnv* env = nullptr;
  check(api, api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "register_ops", &env));
  OrtSessionOptions* options = nullptr;
  check(api, api->CreateSessionOptions(&options));
  check(api, api->RegisterCustomOpsLibrary_V2(options, arguments[2]));
  OrtSession* session = nullptr;
  check(api, api->CreateSession(env, arguments[3], options, &session));

  const int64_t dims[] = {std::atoll(arguments[6]), std::atoll(arguments[7])};
  std::vector<float> numbers = read_numbers(static_cast<size_t>(dims[0] * dims[1]));
  OrtMemoryInfo* memory = nullptr;
  check(api, api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  OrtValue* input = nullptr;
  check(api,
        api->CreateTensorWithDataAsOrtValue(memory, numbers.data(), numbers.size() * sizeof(float),
                                            dims, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
  OrtValue* output = nullptr;
  check(api, api->Run(session, nullptr, &arguments[4], &input, 1, &arguments[5], 1, &output));

  OrtTensorTypeAndShapeInfo* shape = nullptr;
  size_t size = 0;
  void* results = nullptr;
  check(api, api->GetTensorTypeAndShape(output, &shape));
  check(api, api->GetTensorShapeElementCount(shape, &size));
  check(api, api->GetTensorMutableData(output, &results));
  for (size_t i = 0; i < size; ++i) std::printf("%.9g\n", static_cast<float*>(results)[i]);

  api->ReleaseTensorTypeAndShapeInfo(shape);
  api->ReleaseValue(output);
  api->ReleaseValue(input);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseSession(session);
  api->ReleaseSessionOptions(options);
  api->ReleaseEnv(env);
  return 0;
}
