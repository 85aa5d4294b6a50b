#include "cpu_path.h"

#include <atomic>
#include <stdexcept>
#include <string>

namespace memoir {
namespace {

constexpr CpuPath kPaths[] = {CpuPath::avx512, CpuPath::avx2, CpuPath::portable};

std::atomic<CpuPath>& current() {
  static std::atomic<CpuPath> path{widest_cpu_path()};
  return path;
}

std::atomic<bool> forced{false};

}  // namespace

bool cpu_supports(CpuPath path) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (path) {
    case CpuPath::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vpopcntdq");
    case CpuPath::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    case CpuPath::portable:
      return true;
  }
#endif
  return path == CpuPath::portable;
}

CpuPath widest_cpu_path() {
  for (CpuPath path : kPaths) {
    if (cpu_supports(path)) return path;
  }
  return CpuPath::portable;
}

CpuPath cpu_path() { return current().load(std::memory_order_relaxed); }

bool cpu_path_is_forced() { return forced.load(std::memory_order_relaxed); }

const char* name_of(CpuPath path) {
  switch (path) {
    case CpuPath::avx512:
      return "avx512";
    case CpuPath::avx2:
      return "avx2";
    case CpuPath::portable:
      break;
  }
  return "portable";
}

void set_cpu_path(const char* name) {
  const std::string wanted = name;
  if (wanted == "auto") {
    current() = widest_cpu_path();
    forced = false;
    return;
  }
  for (CpuPath path : kPaths) {
    if (wanted != name_of(path)) continue;
    if (!cpu_supports(path)) throw std::runtime_error("this CPU lacks the instructions of the path " + wanted);
    current() = path;
    forced = true;
    return;
  }
  throw std::invalid_argument("a CPU path is auto, avx512, avx2 or portable, got " + wanted);
}

}  // namespace memoir
