// Forks a process while its threads are busy with a trial.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "trial.cpp"

// How many of so many children, of which each has a turn at a trial and reports on all, did not come to their end.
extern "C" int children_that_hang(int forks) {
  static memoir::Trial trial("a trial", {"one way", "another"});
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 2; ++thread) {
    threads.emplace_back([&] {
      while (!stop) trial.record(trial.turn(), 1, 0);
      memoir::trial_reports();
    });
  }
  int hung = 0;
  for (int number = 0; number < forks; ++number) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(30);  // a machine may be busy
      trial.record(trial.turn(), 1, 0);
      memoir::trial_reports();
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0) ++hung;
    if (hung > 0) break;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  return hung;
}
