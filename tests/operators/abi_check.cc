// Compares custom_ops/ort_api.h with ONNX Runtime's own header: compiles only where they agree.
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

#include "ort_api.h"

namespace ours = onnxlr::ort;

// The same type, but for the names of opaque structs and of enums.
template <typename Ours, typename Theirs>
struct Same : std::bool_constant<std::is_same_v<Ours, Theirs> ||
                                 (std::is_enum_v<Ours> && std::is_enum_v<Theirs> &&
                                  sizeof(Ours) == sizeof(Theirs))> {};
template <typename Ours, typename Theirs>
struct Same<Ours*, Theirs*> : Same<Ours, Theirs> {};
template <typename Ours, typename Theirs>
struct Same<const Ours, const Theirs> : Same<Ours, Theirs> {};
template <typename R, typename... A, typename S, typename... B>
struct Same<R(A...), S(B...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(A) == sizeof...(B)) {
      return Same<R, S>::value && std::conjunction_v<Same<A, B>...>;
    }
    return false;
  }();
};
template <typename R, typename... A, typename S, typename... B>
struct Same<R(A...), S(B...) noexcept> : Same<R(A...), S(B...)> {};
template <> struct Same<ours::Allocator, OrtAllocator> : std::true_type {};
template <> struct Same<ours::Api, OrtApi> : std::true_type {};
template <> struct Same<ours::CustomOp, OrtCustomOp> : std::true_type {};
template <> struct Same<ours::CustomOpDomain, OrtCustomOpDomain> : std::true_type {};
template <> struct Same<ours::KernelContext, OrtKernelContext> : std::true_type {};
template <> struct Same<ours::KernelInfo, OrtKernelInfo> : std::true_type {};
template <> struct Same<ours::MemoryInfo, OrtMemoryInfo> : std::true_type {};
template <> struct Same<ours::OpAttribute, OrtOpAttr> : std::true_type {};
template <> struct Same<ours::SessionOptions, OrtSessionOptions> : std::true_type {};
template <> struct Same<ours::ShapeInference, OrtShapeInferContext> : std::true_type {};
template <> struct Same<ours::Status, OrtStatus> : std::true_type {};
template <> struct Same<ours::TensorShape, OrtTensorTypeAndShapeInfo> : std::true_type {};
template <> struct Same<ours::Value, OrtValue> : std::true_type {};

#define MEMBER(Ours, Theirs, name)                                                 \
  static_assert(offsetof(Ours, name) == offsetof(Theirs, name), #name " is elsewhere"); \
  static_assert(Same<decltype(Ours::name), decltype(Theirs::name)>::value, #name " has another type")
#define API(name) MEMBER(ours::Api, OrtApi, name)
#define BASE(name) MEMBER(ours::ApiBase, OrtApiBase, name)
#define OP(name) MEMBER(ours::CustomOp, OrtCustomOp, name)
#define VALUE(mine, theirs) static_assert(static_cast<int>(ours::mine) == static_cast<int>(theirs))

@MEMBERS@

VALUE(kFail, ORT_FAIL);
VALUE(kInvalidArgument, ORT_INVALID_ARGUMENT);
VALUE(kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
VALUE(kUint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
VALUE(kArenaAllocator, OrtArenaAllocator);
VALUE(kDefaultMemory, OrtMemTypeDefault);
VALUE(kRequired, INPUT_OUTPUT_REQUIRED);
VALUE(kInt, ORT_OP_ATTR_INT);
VALUE(kInts, ORT_OP_ATTR_INTS);

int main() {}
