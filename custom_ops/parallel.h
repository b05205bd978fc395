// Scratch memory and threads for a run of a kernel, both ONNX Runtime's own.
#pragma once

#include <cstdint>
#include <string>
#include <thread>

#include "ort_api.h"
#include "status.h"

namespace onnxlr {

// Where a session allocates.
class Memory {
 public:
  explicit Memory(const ort::Api& api) : api_(api) {
    check(api, api.CreateCpuMemoryInfo(ort::kArenaAllocator, ort::kDefaultMemory, &info_));
  }
  ~Memory() { api_.ReleaseMemoryInfo(info_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  const ort::Api& api() const { return api_; }
  const ort::MemoryInfo* info() const { return info_; }

 private:
  const ort::Api& api_;
  ort::MemoryInfo* info_ = nullptr;
};

// Bytes at a multiple of 64 for the time of a run; on the stack where they are few, because asking
// ONNX Runtime for memory takes as long as a small product.
class Scratch {
 public:
  Scratch(const Memory& memory, const ort::KernelContext* context, size_t bytes)
      : api_(memory.api()), allocator_(memory.api().ReleaseAllocator) {
    if (bytes <= sizeof(local_)) {
      data_ = local_;
      return;
    }
    check(api_, api_.KernelContext_GetAllocator(context, memory.info(), allocator_.out()));
    const std::string problem =
        message_of(api_, api_.AllocatorAlloc(allocator_.get(), bytes + 64, &owned_));
    if (owned_ == nullptr) {
      throw Problem("cannot allocate " + std::to_string(bytes) + " bytes of scratch. " + problem);
    }
    data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(owned_) + 63) & ~uintptr_t{63});
  }

  ~Scratch() {
    if (owned_ == nullptr) return;
    ort::Status* status = api_.AllocatorFree(allocator_.get(), owned_);
    if (status != nullptr) api_.ReleaseStatus(status);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  uint8_t* data() const { return data_; }

 private:
  alignas(64) uint8_t local_[16384];
  const ort::Api& api_;
  Owned<ort::Allocator> allocator_;
  void* owned_ = nullptr;
  uint8_t* data_ = nullptr;
};

// Calls body(0) … body(tasks - 1), `in_parallel` in the threads of the session. The body must not
// throw.
template <typename Body>
void for_tasks(const ort::Api& api, const ort::KernelContext* context, bool in_parallel,
               int64_t tasks, const Body& body) {
  if (!in_parallel || tasks <= 1) {
    for (int64_t i = 0; i < tasks; ++i) body(i);
    return;
  }
  const auto task = [](void* data, size_t i) {
    (*static_cast<const Body*>(data))(static_cast<int64_t>(i));
  };
  check(api, api.KernelContext_ParallelFor(context, task, static_cast<size_t>(tasks), 0,
                                           const_cast<Body*>(&body)));
}

inline int64_t processor_count() {
  static const int64_t count = [] {
    const unsigned found = std::thread::hardware_concurrency();
    return static_cast<int64_t>(found == 0 ? 1 : found);
  }();
  return count;
}

// Tasks worth making of `work`, in multiply-adds of int8. A task below kLeastWork (some
// microseconds) costs more to hand out than it saves.
constexpr int64_t kLeastWork = 1 << 20;

inline int64_t task_count(double work) {
  const double wanted = work / static_cast<double>(kLeastWork);
  if (wanted < 2) return 1;
  const int64_t most = 4 * processor_count();  // the session's number of threads is not known here
  return wanted < static_cast<double>(most) ? static_cast<int64_t>(wanted) : most;
}

// A float addition takes about as long as this many int8 ones.
constexpr double kFloatWork = 8;

}  // namespace onnxlr
