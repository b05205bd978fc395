// Runs a model of one float32 input X and one float32 output Y with the op library:
//
//   harness libonnxruntime.so libonnxlr_ops.so model.onnx input.bin output.bin dims...
//
// Both files hold plain float32 numbers. tools/check_aarch64.py runs it on emulated processors,
// where there is no Python, and compares the output.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

[[noreturn]] void stop(const std::string& problem) {
  std::fprintf(stderr, "%s\n", problem.c_str());
  std::exit(1);
}

const OrtApi* load_api(const char* runtime) {
  void* library = dlopen(runtime, RTLD_NOW);
  if (library == nullptr) stop(dlerror());
  auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  const OrtApi* api = base == nullptr ? nullptr : base()->GetApi(ORT_API_VERSION);
  if (api == nullptr) stop(std::string(runtime) + " is no ONNX Runtime of 1.17 or newer");
  return api;
}

void check(const OrtApi* api, OrtStatus* status) {
  if (status != nullptr) stop(api->GetErrorMessage(status));
}

std::vector<float> read_numbers(const char* file, size_t count) {
  std::vector<float> numbers(count + 1);
  std::FILE* stream = std::fopen(file, "rb");
  const size_t found = stream ? std::fread(numbers.data(), sizeof(float), count + 1, stream) : 0;
  if (found != count) stop(std::string(file) + " does not hold as many numbers as dims say");
  std::fclose(stream);
  numbers.resize(count);
  return numbers;
}

void write_numbers(const char* file, const float* numbers, size_t count) {
  std::FILE* stream = std::fopen(file, "wb");
  if (stream == nullptr || std::fwrite(numbers, sizeof(float), count, stream) != count ||
      std::fclose(stream) != 0) {
    stop(std::string(file) + " cannot be written");
  }
}

OrtSession* open_session(const OrtApi* api, const char* library, const char* model) {
  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  check(api, api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "harness", &env));
  check(api, api->CreateSessionOptions(&options));
  check(api, api->RegisterCustomOpsLibrary_V2(options, library));
  check(api, api->CreateSession(env, model, options, &session));
  return session;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 6) stop("usage: harness onnxruntime library model input.bin output.bin dims...");
  const OrtApi* api = load_api(arguments[1]);
  OrtSession* session = open_session(api, arguments[2], arguments[3]);
  std::vector<int64_t> dims;
  size_t size = 1;
  for (int i = 6; i < count; ++i) {
    dims.push_back(std::atoll(arguments[i]));
    size *= static_cast<size_t>(dims.back());
  }
  std::vector<float> numbers = read_numbers(arguments[4], size);

  OrtMemoryInfo* memory = nullptr;
  OrtValue* x = nullptr;
  OrtValue* y = nullptr;
  check(api, api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  check(api, api->CreateTensorWithDataAsOrtValue(memory, numbers.data(), size * sizeof(float),
                                                 dims.data(), dims.size(),
                                                 ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &x));
  const char *input = "X", *output = "Y";
  check(api, api->Run(session, nullptr, &input, &x, 1, &output, 1, &y));

  OrtTensorTypeAndShapeInfo* shape = nullptr;
  void* results = nullptr;
  check(api, api->GetTensorTypeAndShape(y, &shape));
  check(api, api->GetTensorShapeElementCount(shape, &size));
  check(api, api->GetTensorMutableData(y, &results));
  write_numbers(arguments[5], static_cast<const float*>(results), size);
  api->ReleaseSession(session);
  return 0;
}
