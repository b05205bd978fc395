// The part of ONNX Runtime's C interface that the operators use, at version 17 of the interface.
//
// The interface is a table of function pointers that only ever grows at its end, so a table
// declared by slot stays right for every newer version. tests/operators/test_abi.py compares
// offsets and function types with the official header where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxlr::ort {

constexpr uint32_t kApiVersion = 17;

struct Allocator;
struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct MemoryInfo;
struct OpAttribute;
struct SessionOptions;
struct ShapeInference;
struct Status;
struct TensorShape;
struct Value;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kUint8 = 2 };
enum AllocatorKind : int { kArenaAllocator = 1 };
enum MemoryType : int { kDefaultMemory = 0 };
enum Characteristic : int { kRequired = 0 };
enum AttributeKind : int { kInt = 1, kInts = 2 };

struct Api {
  Status* (*CreateStatus)(ErrorCode code, const char* message);  // slot 0
  void* slot_1;
  const char* (*GetErrorMessage)(const Status* status);
  void* slots_3_25[23];
  Status* (*CreateCustomOpDomain)(const char* domain, CustomOpDomain** out);  // slot 26
  Status* (*CustomOpDomain_Add)(CustomOpDomain* domain, const struct CustomOp* op);
  Status* (*AddCustomOpDomain)(SessionOptions* options, CustomOpDomain* domain);
  void* slots_29_50[22];
  Status* (*GetTensorMutableData)(Value* value, void** out);  // slot 51
  void* slots_52_56[5];
  Status* (*CreateTensorTypeAndShapeInfo)(TensorShape** out);  // slot 57
  Status* (*SetTensorElementType)(TensorShape* shape, ElementType type);
  Status* (*SetDimensions)(TensorShape* shape, const int64_t* dims, size_t count);
  Status* (*GetTensorElementType)(const TensorShape* shape, ElementType* out);
  Status* (*GetDimensionsCount)(const TensorShape* shape, size_t* out);
  Status* (*GetDimensions)(const TensorShape* shape, int64_t* dims, size_t count);
  Status* (*GetSymbolicDimensions)(const TensorShape* shape, const char** names, size_t count);
  void* slot_64;
  Status* (*GetTensorTypeAndShape)(const Value* value, TensorShape** out);  // slot 65
  void* slots_66_68[3];
  Status* (*CreateCpuMemoryInfo)(AllocatorKind kind, MemoryType type, MemoryInfo** out);  // slot 69
  void* slots_70_74[5];
  Status* (*AllocatorAlloc)(Allocator* allocator, size_t size, void** out);  // slot 75
  Status* (*AllocatorFree)(Allocator* allocator, void* p);
  void* slots_77_85[9];
  Status* (*KernelInfoGetAttribute_int64)(const KernelInfo* info, const char* name,
                                          int64_t* out);  // slot 86
  void* slots_87_89[3];
  Status* (*KernelContext_GetInput)(const KernelContext* context, size_t index,
                                    const Value** out);  // slot 90
  Status* (*KernelContext_GetOutput)(KernelContext* context, size_t index, const int64_t* dims,
                                     size_t count, Value** out);
  void* slot_92;
  void (*ReleaseStatus)(Status* status);  // slot 93
  void (*ReleaseMemoryInfo)(MemoryInfo* info);
  void* slots_95_98[4];
  void (*ReleaseTensorTypeAndShapeInfo)(TensorShape* shape);  // slot 99
  void* slot_100;
  void (*ReleaseCustomOpDomain)(CustomOpDomain* domain);  // slot 101
  void* slots_102_131[30];
  void (*ReleaseAllocator)(Allocator* allocator);  // slot 132
  void* slots_133_162[30];
  Status* (*KernelInfoGetAttributeArray_int64)(const KernelInfo* info, const char* name,
                                               int64_t* out, size_t* size);  // slot 163
  void* slots_164_243[80];
  Status* (*KernelInfo_GetNodeName)(const KernelInfo* info, char* out, size_t* size);  // slot 244
  void* slots_245_248[4];
  Status* (*KernelInfoGetConstantInput_tensor)(const KernelInfo* info, size_t index,
                                               int* is_constant, const Value** out);  // slot 249
  void* slots_250_252[3];
  Status* (*KernelContext_GetAllocator)(const KernelContext* context, const MemoryInfo* info,
                                        Allocator** out);  // slot 253
  void* slots_254_267[14];
  Status* (*ShapeInferContext_GetInputTypeShape)(const ShapeInference* context, size_t index,
                                                 TensorShape** out);  // slot 268
  Status* (*ShapeInferContext_GetAttribute)(const ShapeInference* context, const char* name,
                                            const OpAttribute** out);
  Status* (*ShapeInferContext_SetOutputTypeShape)(const ShapeInference* context, size_t index,
                                                  const TensorShape* shape);
  Status* (*SetSymbolicDimensions)(TensorShape* shape, const char** names, size_t count);
  Status* (*ReadOpAttr)(const OpAttribute* attribute, AttributeKind kind, void* data, size_t size,
                        size_t* out);
  void* slot_273;
  Status* (*KernelContext_ParallelFor)(const KernelContext* context, void (*task)(void*, size_t),
                                       size_t total, size_t batches, void* data);  // slot 274
};

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);  // null for a version that this runtime does not have
  const char* (*GetVersionString)();
};

struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp* op, const Api* api, const KernelInfo* info);
  const char* (*GetName)(const CustomOp* op);
  const char* (*GetExecutionProviderType)(const CustomOp* op);
  ElementType (*GetInputType)(const CustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp* op);
  ElementType (*GetOutputType)(const CustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp* op);
  void (*KernelCompute)(void* kernel, KernelContext* context);
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp* op, size_t index);
  Characteristic (*GetOutputCharacteristic)(const CustomOp* op, size_t index);
  MemoryType (*GetInputMemoryType)(const CustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp* op);
  int (*GetVariadicInputHomogeneity)(const CustomOp* op);
  int (*GetVariadicOutputMinArity)(const CustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const CustomOp* op);
  Status* (*CreateKernelV2)(const CustomOp* op, const Api* api, const KernelInfo* info,
                            void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
  Status* (*InferOutputShapeFn)(const CustomOp* op, ShapeInference* context);
  int (*GetStartVersion)(const CustomOp* op);
  int (*GetEndVersion)(const CustomOp* op);
};

static_assert(offsetof(Api, KernelContext_ParallelFor) == 274 * sizeof(void*), "slots are counted");

}  // namespace onnxlr::ort
