// For CMake, which builds for this processor alone if asked to: the best instruction set of those it is given.
#include <cstdio>

#include "processor.hpp"

int main(int, char** sets) {
  const char* best = "baseline";
  for (++sets; *sets; ++sets)
    if (supports(*sets)) best = *sets;
  std::fputs(best, stdout);
  return 0;
}
