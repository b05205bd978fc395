#include "attributes.h"

#include <limits>

#include "status.h"

namespace onnxlr {
namespace {

void check_range(const std::string& what, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  std::string expected = least == most ? std::to_string(least)
                         : most == std::numeric_limits<int64_t>::max()
                             ? "at least " + std::to_string(least)
                             : std::to_string(least) + " to " + std::to_string(most);
  throw Problem(what + " is " + std::to_string(value) + "; expected " + expected);
}

void check_group_size(const Format& format) {
  const int64_t size = format.group_size;
  if (size == 32 || size == 64 || size == 128 || size == format.inputs) return;
  throw Problem("attribute group_size is " + std::to_string(size) +
                "; expected 32, 64, 128 or K (" + std::to_string(format.inputs) + ")");
}

}  // namespace

std::string place_of(const ort::Api& api, const ort::KernelInfo* info, const char* op) {
  size_t size = 0;
  check(api, api.KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  check(api, api.KernelInfo_GetNodeName(info, name.data(), &size));
  name.resize(size > 0 ? size - 1 : 0);
  return std::string(op) + " node \"" + name + "\"";
}

int64_t int_attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name,
                      int64_t least, int64_t most) {
  int64_t value = 0;
  const std::string problem = message_of(api, api.KernelInfoGetAttribute_int64(info, name, &value));
  const std::string what = std::string("attribute ") + name;
  if (!problem.empty()) throw Problem(what + ": expected an int (" + problem + ")");
  check_range(what, value, least, most);
  return value;
}

std::vector<int64_t> ints_attribute(const ort::Api& api, const ort::KernelInfo* info,
                                    const char* name) {
  const std::string what = std::string("attribute ") + name;
  size_t size = 0;
  std::string problem =
      message_of(api, api.KernelInfoGetAttributeArray_int64(info, name, nullptr, &size));
  std::vector<int64_t> values(size);
  if (problem.empty() && size > 0) {
    problem =
        message_of(api, api.KernelInfoGetAttributeArray_int64(info, name, values.data(), &size));
  }
  if (!problem.empty()) throw Problem(what + ": expected a list of ints (" + problem + ")");
  return values;
}

Format read_format(const ort::Api& api, const ort::KernelInfo* info) {
  const int64_t any = std::numeric_limits<int64_t>::max();
  int_attribute(api, info, "layout", 1, 1);
  Format format{};
  format.inputs = int_attribute(api, info, "K", 1, kMostInputs);
  format.outputs = int_attribute(api, info, "N", 1, any);
  format.group_size = int_attribute(api, info, "group_size", 1, any);
  format.terms = int_attribute(api, info, "terms", 1, 8);
  const int64_t level = int_attribute(api, info, "accuracy_level", 0, 4);
  if (level != 0 && level != 4) {
    throw Problem("attribute accuracy_level is " + std::to_string(level) + "; expected 0 or 4");
  }
  format.rounds_rows = level == 4;
  check_group_size(format);
  return format;
}

}  // namespace onnxlr
