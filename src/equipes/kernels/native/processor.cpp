// What this processor runs. Compiled for every processor, unlike the modules that it is asked about.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "processor.hpp"

NB_MODULE(_processor, module) { module.def("supports", &supports); }
