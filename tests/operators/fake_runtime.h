// As much of ONNX Runtime as the op library asks for, in a few lines that a sanitizer can see into.
#pragma once

#include <atomic>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "ort_api.h"

namespace onnxlr::ort {

struct Status {
  std::string message;
};
struct CustomOpDomain {
  std::vector<const CustomOp*> ops;
};
struct SessionOptions {
  std::vector<CustomOpDomain*> domains;
};
struct MemoryInfo {};
struct Allocator {};
struct TensorShape {
  std::vector<int64_t> dims;
};
struct Value {
  std::vector<int64_t> dims;
  std::vector<float> floats;
  std::vector<uint8_t> bytes;
};
struct KernelInfo {
  std::map<std::string, int64_t> ints;
  std::map<std::string, std::vector<int64_t>> lists;
  std::vector<const Value*> inputs;
};
struct KernelContext {
  const Value* input;
  Value* output;
  int threads;
};

inline Status* problem(const std::string& message) { return new Status{message}; }

inline Status* parallel_for(const KernelContext* context, void (*task)(void*, size_t), size_t total,
                            size_t, void* data) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < total; i = next++) task(data, i);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < context->threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  return nullptr;
}

inline Api make_api() {
  Api api{};
  api.CreateStatus = [](ErrorCode, const char* message) { return problem(message); };
  api.GetErrorMessage = [](const Status* status) { return status->message.c_str(); };
  api.ReleaseStatus = [](Status* status) { delete status; };
  api.CreateCustomOpDomain = [](const char*, CustomOpDomain** out) -> Status* {
    *out = new CustomOpDomain;
    return nullptr;
  };
  api.CustomOpDomain_Add = [](CustomOpDomain* domain, const CustomOp* op) -> Status* {
    domain->ops.push_back(op);
    return nullptr;
  };
  api.AddCustomOpDomain = [](SessionOptions* options, CustomOpDomain* domain) -> Status* {
    options->domains.push_back(domain);
    return nullptr;
  };
  api.CreateCpuMemoryInfo = [](AllocatorKind, MemoryType, MemoryInfo** out) -> Status* {
    *out = new MemoryInfo;
    return nullptr;
  };
  api.ReleaseMemoryInfo = [](MemoryInfo* info) { delete info; };
  api.KernelContext_GetAllocator = [](const KernelContext*, const MemoryInfo*,
                                      Allocator** out) -> Status* {
    *out = new Allocator;
    return nullptr;
  };
  api.ReleaseAllocator = [](Allocator* allocator) { delete allocator; };
  api.AllocatorAlloc = [](Allocator*, size_t size, void** out) -> Status* {
    *out = std::malloc(size);
    return *out == nullptr ? problem("no memory") : nullptr;
  };
  api.AllocatorFree = [](Allocator*, void* p) -> Status* {
    std::free(p);
    return nullptr;
  };
  api.GetTensorMutableData = [](Value* value, void** out) -> Status* {
    *out = value->bytes.empty() ? static_cast<void*>(value->floats.data()) : value->bytes.data();
    return nullptr;
  };
  api.GetTensorTypeAndShape = [](const Value* value, TensorShape** out) -> Status* {
    *out = new TensorShape{value->dims};
    return nullptr;
  };
  api.ReleaseTensorTypeAndShapeInfo = [](TensorShape* shape) { delete shape; };
  api.GetDimensionsCount = [](const TensorShape* shape, size_t* out) -> Status* {
    *out = shape->dims.size();
    return nullptr;
  };
  api.GetDimensions = [](const TensorShape* shape, int64_t* dims, size_t count) -> Status* {
    for (size_t i = 0; i < count; ++i) dims[i] = shape->dims[i];
    return nullptr;
  };
  api.KernelInfo_GetNodeName = [](const KernelInfo*, char* out, size_t* size) -> Status* {
    *size = 1;
    if (out != nullptr) *out = '\0';
    return nullptr;
  };
  api.KernelInfoGetAttribute_int64 = [](const KernelInfo* info, const char* name,
                                        int64_t* out) -> Status* {
    const auto found = info->ints.find(name);
    if (found == info->ints.end()) return problem("no such attribute");
    *out = found->second;
    return nullptr;
  };
  api.KernelInfoGetAttributeArray_int64 = [](const KernelInfo* info, const char* name, int64_t* out,
                                             size_t* size) -> Status* {
    const auto found = info->lists.find(name);
    if (found == info->lists.end()) return problem("no such attribute");
    *size = found->second.size();
    for (size_t i = 0; i < *size && out != nullptr; ++i) out[i] = found->second[i];
    return nullptr;
  };
  api.KernelInfoGetConstantInput_tensor = [](const KernelInfo* info, size_t index, int* is_constant,
                                             const Value** out) -> Status* {
    *is_constant = 1;
    *out = info->inputs[index];
    return nullptr;
  };
  api.KernelContext_GetInput = [](const KernelContext* context, size_t, const Value** out) -> Status* {
    *out = context->input;
    return nullptr;
  };
  api.KernelContext_GetOutput = [](KernelContext* context, size_t, const int64_t* dims, size_t count,
                                   Value** out) -> Status* {
    int64_t size = 1;
    for (size_t i = 0; i < count; ++i) size *= dims[i];
    context->output->dims.assign(dims, dims + count);
    context->output->floats.resize(static_cast<size_t>(size));
    *out = context->output;
    return nullptr;
  };
  api.KernelContext_ParallelFor = parallel_for;
  return api;
}

inline const Api* api() {
  static const Api table = make_api();
  return &table;
}

}  // namespace onnxlr::ort
