// Which of several functions with one result is the fastest on the machine at hand: told by the work that comes.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace memoir {

struct TrialReport {
  std::map<std::string, double> reached;  // bytes per second of each way so far; 0 before its first piece
  std::string taken;                      // the winner, or "" while it is not known
};

// Some ways to do a thing take turns, piece of work by piece of work, until each has had kPieces; then the one that was
// quicker in a quarter of its pieces than the others in theirs is the winner for good: other processes only ever slow a
// piece down. Any number of threads may take turns at once. A trial is never destroyed.
class Trial {
 public:
  static constexpr size_t kPieces = 25;

  Trial(const std::string& what, std::vector<std::string> ways);

  // The winner's number, or -1 while it is not known.
  int winner() const { return winner_.load(std::memory_order_acquire); }

  // Whose turn it is. In no regular order: the pieces of a call differ, and no way shall have all of a kind.
  int turn();

  // What it did with its turn.
  void record(int way, double bytes, double seconds);

  TrialReport report();

 private:
  friend struct HeldInForks;

  const std::vector<std::string> ways_;
  std::mutex recording_;
  std::vector<std::vector<double>> rates_;
  std::atomic<uint64_t> turns_{0};
  std::atomic<int> winner_{-1};
};

// Of every trial that has begun, by what it is about.
std::map<std::string, TrialReport> trial_reports();

// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
};

}  // namespace memoir
