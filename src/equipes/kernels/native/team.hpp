// A team of threads that walks through the same code and shares the work of each step.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#ifdef _OPENMP
#include <omp.h>
#else
#include <vector>
#endif

namespace equipes {

// Where threads wait for each other. They spin only for as long as a step of the work takes, and then let others run:
// OpenMP's own barrier spins for milliseconds, which on a busy machine is many times what the work takes.
class Barrier {
 public:
  void wait(int size) {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < kSpins)
        pause();
      else
        std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 2000;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

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
    if (size > 1) barrier->wait(size);
  }
};

// Runs f(team) on each of `threads` threads. OpenMP's are those of torch, kept from call to call. Without OpenMP each call
// starts its own, which takes some tens of microseconds, and which tools can follow that do not know OpenMP.
template <class F>
void with_team(int threads, F&& f) {
  if (threads <= 1) {
    f(Team{});
    return;
  }
  Barrier barrier;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  f(Team{omp_get_thread_num(), omp_get_num_threads(), &barrier});
#else
  std::vector<std::thread> others;
  for (int rank = 1; rank < threads; ++rank)
    others.emplace_back([&f, &barrier, rank, threads] { f(Team{rank, threads, &barrier}); });
  f(Team{0, threads, &barrier});
  for (std::thread& other : others) other.join();
#endif
}

}  // namespace equipes
