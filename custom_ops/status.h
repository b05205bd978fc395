// Errors on both sides of the C interface: exceptions inside the library, statuses outside.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "ort_api.h"

namespace onnxlr {

// What a user did wrong, as one sentence.
class Problem : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What one of ONNX Runtime's functions releases, at the end of a scope.
template <typename Object>
class Owned {
 public:
  Owned(void (*release)(Object*), Object* object = nullptr) : release_(release), object_(object) {}
  ~Owned() {
    if (object_ != nullptr) release_(object_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

  Object* get() const { return object_; }
  Object** out() { return &object_; }

 private:
  void (*release_)(Object*);
  Object* object_;
};

// Takes over a status: the problem it tells, or an empty string if it is none.
inline std::string message_of(const ort::Api& api, ort::Status* status) {
  if (status == nullptr) return {};
  const Owned<ort::Status> owned(api.ReleaseStatus, status);
  std::string message = api.GetErrorMessage(status);
  return message.empty() ? "ONNX Runtime reports a problem without a message" : message;
}

inline void check(const ort::Api& api, ort::Status* status) {
  if (status != nullptr) throw Problem(message_of(api, status));
}

// Runs `body`; what it throws becomes a status. `where` begins the message.
template <typename Body>
ort::Status* guarded(const ort::Api& api, const char* where, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Problem& problem) {
    try {
      return api.CreateStatus(ort::kInvalidArgument,
                              (std::string(where) + ": " + problem.what()).c_str());
    } catch (...) {
      return api.CreateStatus(ort::kInvalidArgument, problem.what());
    }
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ort::kFail, "onnxlr: there is not enough memory");
  } catch (const std::exception& error) {
    return api.CreateStatus(ort::kFail, error.what());
  } catch (...) {
    return api.CreateStatus(ort::kFail, "onnxlr: an unknown exception");
  }
}

}  // namespace onnxlr
