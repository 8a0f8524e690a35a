// Processor time and operations of each routine, counted while profiling is switched on.
#pragma once

#include <array>
#include <cstdint>
#include <ctime>

#include "team.hpp"

namespace equipes {

enum class Routine {
  kPlan,
  kGeometry,
  kRadialForward,
  kRadialBackward,
  kLinear,
  kLinearGradient,
  kSelfConnection,
  kSelfConnectionGradient,
  kSpeciesMatrices,
  kGate,
  kForward,
  kReverse,
  kTangent,
  kDualReverse,
  kMoments,
  kReadout,
  kCount
};

constexpr std::array<const char*, std::size_t(Routine::kCount)> kRoutineNames = {
    "plan",
    "geometry",
    "radial network, forward",
    "radial network, backward",
    "linear",
    "linear, gradient",
    "self-connection",
    "self-connection, gradient",
    "species matrices",
    "gate",
    "messages, forward",
    "messages, reverse",
    "messages, tangent",
    "messages, dual reverse",
    "moments",
    "readout",
};

struct Profile {
  bool on = false;
  std::array<double, std::size_t(Routine::kCount)> seconds{};
  std::array<double, std::size_t(Routine::kCount)> operations{};

  static Profile& instance() {
    static Profile profile;
    return profile;
  }
};

// Time of the team's first thread from construction to destruction; inside another routine's timer it is taken off there.
class Timer {
 public:
  Timer(Team team, Routine routine, Routine inside = Routine::kCount)
      : index_(std::size_t(routine)), inside_(std::size_t(inside)), on_(team.rank == 0 && Profile::instance().on) {
    if (on_) start_ = now();
  }
  ~Timer() {
    if (!on_) return;
    const double time = now() - start_;
    Profile::instance().seconds[index_] += time;
    if (inside_ < std::size_t(Routine::kCount)) Profile::instance().seconds[inside_] -= time;
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  static double now() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
  }

  std::size_t index_, inside_;
  bool on_;
  double start_ = 0;
};

// Multiplications and additions of the whole team's work.
inline void count_operations(Team team, Routine routine, double operations) {
  if (team.rank == 0 && Profile::instance().on) Profile::instance().operations[std::size_t(routine)] += operations;
}

}  // namespace equipes
