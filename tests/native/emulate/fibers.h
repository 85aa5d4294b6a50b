// Threads that run together, as fibers of one thread: each runs until it waits at a meeting, then one of those that can
// go on is drawn, the same ones in every run. A switch costs a hundredth of that between threads of the system, and who
// comes first, or last by far, at what a barrier should keep apart differs from meeting to meeting.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace memoir {

// A stack, and where on it the execution stands.
struct Fiber {
  static constexpr size_t kStack = 256 * 1024;

  Fiber() {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (stack == MAP_FAILED) std::perror("a fiber's stack"), std::abort();
  }
  ~Fiber() { munmap(stack, kStack); }
  Fiber(const Fiber&) = delete;

  void* stack;
  ucontext_t context{};
  size_t number = 0;
  bool done = false;
  void* own = nullptr;         // what belongs to the thread that it stands for
  void* fake_stack = nullptr;  // AddressSanitizer's
};

class Fibers {
 public:
  // Runs body(0) .. body(count - 1) together, until all have ended.
  void run(size_t count, const std::function<void(size_t)>& body) {
    while (fibers_.size() < count) fibers_.push_back(std::make_unique<Fiber>());
    body_ = &body;
    for (size_t i = 0; i < count; ++i) {
      Fiber& fiber = *fibers_[i];
      fiber.number = i, fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack, fiber.context.uc_stack.ss_size = Fiber::kStack;
      makecontext(&fiber.context, enter, 0);
      ready_.push_back(&fiber);
    }
    size_t left = count;
    while (!ready_.empty()) {
      std::swap(ready_[draw_() % ready_.size()], ready_.back());
      running_ = ready_.back();
      ready_.pop_back();
      resume();
      left -= running_->done;
    }
    if (left != 0) {
      std::fprintf(stderr, "%zu of %zu threads wait where the others never come\n", left, count);
      std::abort();
    }
  }

  Fiber& running() { return *running_; }
  void make_ready(const std::vector<Fiber*>& fibers) { ready_.insert(ready_.end(), fibers.begin(), fibers.end()); }

  // Leaves the running fiber until it is ready again, or for good.
  void leave() {
    Fiber& fiber = *running_;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fiber.fake_stack, main_stack_, main_size_);
#endif
    swapcontext(&fiber.context, &main_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
  }

 private:
  void resume() {
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, running_->stack, Fiber::kStack);
#endif
    swapcontext(&main_, &running_->context);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  static void enter();

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> ready_;
  Fiber* running_ = nullptr;
  const std::function<void(size_t)>* body_ = nullptr;
  ucontext_t main_{};
  const void* main_stack_ = nullptr;
  size_t main_size_ = 0;
  std::minstd_rand draw_{1};
};

inline Fibers fibers;

inline void Fibers::enter() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &fibers.main_stack_, &fibers.main_size_);
#endif
  (*fibers.body_)(fibers.running_->number);
  fibers.running_->done = true;
  fibers.leave();
}

// Where `count` threads wait for each other, again and again.
class Meeting {
 public:
  explicit Meeting(size_t count) : count_(count) {}

  void arrive_and_wait() {
    waiting_.push_back(&fibers.running());
    if (waiting_.size() == count_) fibers.make_ready(std::exchange(waiting_, {}));
    fibers.leave();  // the last to come, too: who goes on first is drawn
  }

 private:
  size_t count_;
  std::vector<Fiber*> waiting_;
};

inline void run_together(size_t count, const std::function<void(size_t)>& body) { fibers.run(count, body); }
inline void*& own_data() { return fibers.running().own; }

}  // namespace memoir
