// Work spread over torch's own threads.
#pragma once

#include <pthread.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>

namespace memoir {

// OpenMP's threads do not come along into a forked child, and a parallel region there would wait for them for ever. So
// a child of a process that had such threads at work here does its own work in one thread.
struct ForkedWorkers {
  ForkedWorkers() {
    pthread_atfork(nullptr, nullptr, [] { gone = begun.load(); });
  }
  static inline std::atomic<bool> begun{false}, gone{false};
};

inline const ForkedWorkers forked_workers;

// work(begin, end) for parts of units, none smaller than grain but the last.
template <class F>
void spread(int64_t units, int64_t grain, const F& work) {
  if (units <= 0) return;
  if (ForkedWorkers::gone.load(std::memory_order_relaxed)) return work(0, units);
  if (units > grain && torch::stable::get_num_threads() > 1) {
    ForkedWorkers::begun.store(true, std::memory_order_relaxed);
  }
  torch::stable::parallel_for(0, units, grain, work);
}

}  // namespace memoir
