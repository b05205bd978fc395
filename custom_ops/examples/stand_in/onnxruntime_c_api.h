// The part of ONNX Runtime's C interface that the example uses, under its official names, for
// machines without ONNX Runtime's headers. Where they are installed, CMake takes those instead.
//
// The interface is a table of function pointers that only ever grows at its end: a table declared
// by slot stays right for every newer version. This one is that of version 17.
#pragma once

#include <cstddef>
#include <cstdint>

#define ORT_API_VERSION 17

struct OrtEnv;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1 };

struct OrtApi {
  void* slots_0_1[2];
  const char* (*GetErrorMessage)(const OrtStatus* status);
  OrtStatus* (*CreateEnv)(OrtLoggingLevel level, const char* name, OrtEnv** out);
  void* slots_4_6[3];
  OrtStatus* (*CreateSession)(const OrtEnv* env, const char* model,
                              const OrtSessionOptions* options, OrtSession** out);  // slot 7
  void* slot_8;
  OrtStatus* (*Run)(OrtSession* session, const OrtRunOptions* options, const char* const* inputs,
                    const OrtValue* const* values, size_t input_count, const char* const* outputs,
                    size_t output_count, OrtValue** results);  // slot 9
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** out);
  void* slots_11_48[38];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo* memory, void* data,
                                               size_t bytes, const int64_t* dims, size_t count,
                                               ONNXTensorElementDataType type,
                                               OrtValue** out);  // slot 49
  void* slot_50;
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** out);  // slot 51
  void* slots_52_63[12];
  OrtStatus* (*GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo* shape,
                                           size_t* out);  // slot 64
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** out);
  void* slots_66_68[3];
  OrtStatus* (*CreateCpuMemoryInfo)(OrtAllocatorType kind, OrtMemType type,
                                    OrtMemoryInfo** out);  // slot 69
  void* slots_70_91[22];
  void (*ReleaseEnv)(OrtEnv* env);  // slot 92
  void (*ReleaseStatus)(OrtStatus* status);
  void (*ReleaseMemoryInfo)(OrtMemoryInfo* memory);
  void (*ReleaseSession)(OrtSession* session);
  void (*ReleaseValue)(OrtValue* value);
  void* slots_97_98[2];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* shape);  // slot 99
  void (*ReleaseSessionOptions)(OrtSessionOptions* options);
  void* slots_101_227[127];
  OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions* options,
                                            const char* library);  // slot 228
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null for a version that this runtime does not have
  const char* (*GetVersionString)();
};

static_assert(offsetof(OrtApi, RegisterCustomOpsLibrary_V2) == 228 * sizeof(void*),
              "slots are counted");
