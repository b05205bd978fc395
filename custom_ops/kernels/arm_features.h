// What the operating system says of this machine's instructions.
#pragma once

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace onnxlr {
namespace {

// `hwcap` and `hwcap2` are bits of the Linux vectors, `apple_name` a sysctl. False elsewhere.
inline bool machine_has(unsigned long hwcap, unsigned long hwcap2, const char* apple_name) {
#if defined(__linux__)
  (void)apple_name;
  return (getauxval(AT_HWCAP) & hwcap) == hwcap && (getauxval(AT_HWCAP2) & hwcap2) == hwcap2;
#elif defined(__APPLE__)
  (void)hwcap;
  (void)hwcap2;
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(apple_name, &value, &size, nullptr, 0) == 0 && value != 0;
#else
  (void)hwcap;
  (void)hwcap2;
  (void)apple_name;
  return false;
#endif
}

// Linux: linux/arch/arm64/include/uapi/asm/hwcap.h. Older headers lack the newer names.
constexpr unsigned long kHwcapDotprod = 1ul << 20;  // HWCAP_ASIMDDP
constexpr unsigned long kHwcap2I8mm = 1ul << 13;    // HWCAP2_I8MM

}  // namespace
}  // namespace onnxlr
