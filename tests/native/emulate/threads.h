// As fibers.h, with threads of the system: slow, but one may be interrupted anywhere, so that a counter of several
// threads that is not counted atomically shows.
#pragma once

#include <barrier>
#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

namespace memoir {

class Meeting {
 public:
  explicit Meeting(size_t count) : barrier_(static_cast<std::ptrdiff_t>(count)) {}
  void arrive_and_wait() { barrier_.arrive_and_wait(); }

 private:
  std::barrier<> barrier_;
};

inline void run_together(size_t count, const std::function<void(size_t)>& body) {
  std::vector<std::thread> running;
  for (size_t i = 0; i < count; ++i) running.emplace_back([&body, i] { body(i); });
  for (auto& thread : running) thread.join();
}

inline void*& own_data() {
  static thread_local void* own = nullptr;
  return own;
}

}  // namespace memoir
