// A team of threads that walks through the same code and shares the work of each step.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#elif defined(EQUIPES_STANDARD_THREADS)
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace equipes {

#if !defined(_OPENMP) && defined(EQUIPES_STANDARD_THREADS)

// Where `size` threads wait for each other, again and again.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++round_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [this, round = round_] { return round_ != round; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  int size_, arrived_ = 0;
  std::uint64_t round_ = 0;
};

#else

struct Barrier;  // OpenMP has its own

#endif

struct Team {
  int rank = 0;
  int size = 1;
  Barrier* barrier = nullptr;

  // This thread's part of 0 .. n-1: contiguous, and the same in every run.
  std::pair<std::int64_t, std::int64_t> share(std::int64_t n) const {
    return {n * rank / size, n * (rank + 1) / size};
  }

  // Waits until every thread has come here.
  void wait() const {
    if (size == 1) return;
#ifdef _OPENMP
#pragma omp barrier
#elif defined(EQUIPES_STANDARD_THREADS)
    barrier->wait();
#endif
  }
};

// Runs f(team) on each of `threads` threads. OpenMP's are those of torch, kept between calls; without OpenMP each call
// starts its own, which costs some microseconds and can be followed by tools that do not know OpenMP.
template <class F>
void with_team(int threads, F&& f) {
  if (threads > 1) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    f(Team{omp_get_thread_num(), omp_get_num_threads()});
    return;
#elif defined(EQUIPES_STANDARD_THREADS)
    Barrier barrier(threads);
    std::vector<std::thread> others;
    for (int rank = 1; rank < threads; ++rank)
      others.emplace_back([&f, &barrier, rank, threads] { f(Team{rank, threads, &barrier}); });
    f(Team{0, threads, &barrier});
    for (std::thread& other : others) other.join();
    return;
#endif
  }
  f(Team{});
}

}  // namespace equipes
