// Which instruction set the CPU kernels use: chosen from the features of the running CPU, never of the building one.
#pragma once

namespace memoir {

enum class CpuPath { portable, avx2, avx512 };

// Whether this CPU and its operating system can run `path`.
bool cpu_supports(CpuPath path);

// The path of the widest instructions that this CPU supports.
CpuPath widest_cpu_path();

// The path in force: the one set last, else the widest.
CpuPath cpu_path();

// Whether it was set, by another name than "auto".
bool cpu_path_is_forced();

// Sets the path for this process; its names: "auto", "avx512", "avx2", "portable".
// Throws std::invalid_argument for another name, std::runtime_error where the CPU lacks the instructions.
void set_cpu_path(const char* name);

const char* name_of(CpuPath path);

// The function of the path in force, of three that do the same.
template <class F>
F* of_cpu_path(F* avx512, F* avx2, F* portable) {
  switch (cpu_path()) {
    case CpuPath::avx512:
      return avx512;
    case CpuPath::avx2:
      return avx2;
    case CpuPath::portable:
      break;
  }
  return portable;
}

// That function, by its name in the namespaces of the paths.
#if defined(__x86_64__)
#define OF_CPU_PATH(...) of_cpu_path(avx512::__VA_ARGS__, avx2::__VA_ARGS__, portable::__VA_ARGS__)
#else
#define OF_CPU_PATH(...) portable::__VA_ARGS__
#endif

}  // namespace memoir
