// The two functions that the library exports.
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "conv.h"
#include "kernels/isa.h"
#include "kernels/kernel.h"
#include "matmul.h"
#include "op.h"
#include "ort_api.h"
#include "status.h"

namespace onnxlr {
namespace {

constexpr const char* kDomain = "onnxlr";
constexpr uint32_t kOldestApi = 1;

struct Library {
  explicit Library(const ort::Api& api)
      : conv(api), matmul(api), domain(api.ReleaseCustomOpDomain) {
    check(api, api.CreateCustomOpDomain(kDomain, domain.out()));
    check(api, api.CustomOpDomain_Add(domain.get(), &conv));
    check(api, api.CustomOpDomain_Add(domain.get(), &matmul));
  }

  Op<TernaryConv> conv;
  Op<TernaryMatMul> matmul;
  Owned<ort::CustomOpDomain> domain;
};

// Sessions keep pointers into the library's operators for as long as they live, and nobody tells
// when that ends: the operators stay until the process does. A process may hold more than one ONNX
// Runtime.
Library& library_for(const ort::Api& api) {
  static std::mutex mutex;
  static auto* libraries = new std::map<const ort::Api*, std::unique_ptr<Library>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Library>& library = (*libraries)[&api];
  if (library == nullptr) library = std::make_unique<Library>(api);
  return *library;
}

std::string description() {
  const char* problem = nullptr;
  const Kernels* kernels = choose_kernels(&problem);
  std::string available;
  for (int i = 0; i < kIsaCount; ++i) {
    if (!kIsas[i].available()) continue;
    available += (available.empty() ? "" : ",") + std::string(kIsas[i].kernels->name);
  }
  return "version=" ONNXLR_VERSION ";layout=1;isa=" +
         std::string(kernels == nullptr ? "" : kernels->name) + ";available=" + available;
}

}  // namespace
}  // namespace onnxlr

#define ONNXLR_EXPORT extern "C" __attribute__((visibility("default")))

// Adds the domain "onnxlr" to the options of a session. ONNX Runtime calls it when the library is
// registered; a second time on the same options fails when a session is made of them.
ONNXLR_EXPORT onnxlr::ort::Status* RegisterCustomOps(onnxlr::ort::SessionOptions* options,
                                                     const onnxlr::ort::ApiBase* base) {
  using namespace onnxlr;
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) {
    char message[128];
    std::snprintf(message, sizeof(message), "onnxlr needs ONNX Runtime >= 1.17; found %s",
                  base->GetVersionString());
    return base->GetApi(kOldestApi)->CreateStatus(ort::kFail, message);
  }
  return guarded(*api, "onnxlr", [&] {
    check(*api, api->AddCustomOpDomain(options, library_for(*api).domain.get()));
  });
}

// `version=0.1.0;layout=1;isa=avx2;available=avx2,scalar`: of the library, the packed format it
// reads, the instruction set that sessions made now would use (empty if ONNXLR_ISA asks for one
// that is not there), and those of this build that this machine has. Valid until the same thread
// asks again.
ONNXLR_EXPORT const char* OnnxlrOpsDescription(void) {
  thread_local std::string text;
  try {
    text = onnxlr::description();
  } catch (...) {
    return "";
  }
  return text.c_str();
}
