#include "trial.h"

#include <pthread.h>

#include <algorithm>

namespace memoir {
namespace {

std::mutex listing;
std::map<std::string, Trial*>& trials() {
  static std::map<std::string, Trial*> by_what;
  return by_what;
}

}  // namespace

// A forked child has only the thread that forked: what another held would stay locked there for ever. So whoever forks
// holds all of these meanwhile, and lets them go in parent and child.
struct HeldInForks {
  static void hold() {
    listing.lock();
    for (const auto& [what, trial] : trials()) trial->recording_.lock();
  }
  static void let_go() {
    for (const auto& [what, trial] : trials()) trial->recording_.unlock();
    listing.unlock();
  }
  HeldInForks() { pthread_atfork(hold, let_go, let_go); }
};

namespace {

const HeldInForks held_in_forks;

// What one in four reaches: other processes only ever slow a piece down.
double upper_quartile(std::vector<double> rates) {
  if (rates.empty()) return 0.0;
  const auto quarter = rates.begin() + static_cast<int64_t>(rates.size() * 3 / 4);
  std::nth_element(rates.begin(), quarter, rates.end());
  return *quarter;
}

// SplitMix64: a number that looks random, of one that counts up.
uint64_t mixed(uint64_t number) {
  number = (number + 1) * 0x9e3779b97f4a7c15u;
  number = (number ^ number >> 30) * 0xbf58476d1ce4e5b9u;
  number = (number ^ number >> 27) * 0x94d049bb133111ebu;
  return number ^ number >> 31;
}

}  // namespace

Trial::Trial(const std::string& what, std::vector<std::string> ways)
    : ways_(std::move(ways)), rates_(ways_.size()), winner_(ways_.size() == 1 ? 0 : -1) {
  const std::lock_guard<std::mutex> lock(listing);
  trials()[what] = this;
}

int Trial::turn() {
  return static_cast<int>(mixed(turns_.fetch_add(1, std::memory_order_relaxed)) % ways_.size());
}

void Trial::record(int way, double bytes, double seconds) {
  const std::lock_guard<std::mutex> lock(recording_);
  if (winner() >= 0 || seconds <= 0) return;
  if (rates_[way].size() < kPieces) rates_[way].push_back(bytes / seconds);
  for (const std::vector<double>& rates : rates_) {
    if (rates.size() < kPieces) return;
  }
  int best = 0;
  for (int one = 1; one < static_cast<int>(rates_.size()); ++one) {
    if (upper_quartile(rates_[one]) > upper_quartile(rates_[best])) best = one;
  }
  winner_.store(best, std::memory_order_release);
}

TrialReport Trial::report() {
  const std::lock_guard<std::mutex> lock(recording_);
  TrialReport found;
  for (size_t way = 0; way < ways_.size(); ++way) found.reached[ways_[way]] = upper_quartile(rates_[way]);
  if (winner() >= 0) found.taken = ways_[winner()];
  return found;
}

std::map<std::string, TrialReport> trial_reports() {
  const std::lock_guard<std::mutex> lock(listing);
  std::map<std::string, TrialReport> found;
  for (const auto& [what, trial] : trials()) {
    TrialReport report = trial->report();
    const auto begun = [](const auto& way) { return way.second > 0; };
    if (std::any_of(report.reached.begin(), report.reached.end(), begun)) found[what] = std::move(report);
  }
  return found;
}

}  // namespace memoir
