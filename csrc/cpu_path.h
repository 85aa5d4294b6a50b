// Which instruction set the CPU kernels use: chosen from the features of the running CPU, never of the building one.
#pragma once

namespace memoir {

enum class CpuPath { portable, avx2, avx512 };

// Whether this CPU and its operating system can run `path`.
bool cpu_supports(CpuPath path);

// The path in force: the one set last, else the widest that this CPU supports.
CpuPath cpu_path();

// Sets the path for this process; its names: "auto", "avx512", "avx2", "portable".
// Throws std::invalid_argument for another name, std::runtime_error where the CPU lacks the instructions.
void set_cpu_path(const char* name);

const char* name_of(CpuPath path);

}  // namespace memoir
