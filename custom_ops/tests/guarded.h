// Memory between two pages without access: whoever touches what lies beyond its ends is stopped.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace onnxlr::testing {

// `count` values of T that end exactly where a page without access begins. What is left of the
// first page before them holds a pattern that `intact` looks for.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(count) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t used = static_cast<size_t>(count) * sizeof(T);
    inside_ = (used + page - 1) / page * page;
    mapped_ = inside_ + 2 * page;
    void* area = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) std::abort();
    area_ = static_cast<uint8_t*>(area);
    first_ = area_ + page;
    if (mprotect(first_, inside_, PROT_READ | PROT_WRITE) != 0) std::abort();
    std::memset(first_, kPattern, inside_ - used);
    data_ = reinterpret_cast<T*>(first_ + inside_ - used);
  }
  ~Guarded() { munmap(area_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return count_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

  // From here on, a write stops the program as well.
  void make_constant() {
    if (mprotect(first_, inside_, PROT_READ) != 0) std::abort();
  }

  // Is everything between the start of the first page and the values as it was?
  bool intact() const {
    for (const uint8_t* byte = first_; byte < reinterpret_cast<const uint8_t*>(data_); ++byte) {
      if (*byte != kPattern) return false;
    }
    return true;
  }

 private:
  static constexpr uint8_t kPattern = 0xA5;
  int64_t count_;
  size_t inside_, mapped_;
  uint8_t *area_, *first_;
  T* data_;
};

}  // namespace onnxlr::testing
