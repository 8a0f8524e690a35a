// A team of threads that walks through the same code and shares the work of each step.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace equipes {

struct Team {
  int rank = 0;
  int size = 1;

  // This thread's part of 0 .. n-1: contiguous, and the same in every run.
  std::pair<std::int64_t, std::int64_t> share(std::int64_t n) const {
    return {n * rank / size, n * (rank + 1) / size};
  }

  // Waits until every thread has come here.
  void wait() const {
#ifdef _OPENMP
    if (size > 1) {
#pragma omp barrier
    }
#endif
  }
};

// Runs f(team) on each of `threads` threads.
template <class F>
void with_team(int threads, F&& f) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    f(Team{omp_get_thread_num(), omp_get_num_threads()});
    return;
  }
#endif
  f(Team{});
}

}  // namespace equipes
