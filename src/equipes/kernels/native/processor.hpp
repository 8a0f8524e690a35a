// What the processor that this runs on can run.
#pragma once
#include <string>

// "baseline" runs everywhere; "avx2" and "avx512" stand for the levels x86-64-v3 and x86-64-v4.
inline bool supports(const std::string& set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
  if (set == "avx2") return avx2;
  if (set == "avx512")
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
#endif
  return set == "baseline";
}
