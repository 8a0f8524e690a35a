// What one evaluation of a frozen potential works on.
#pragma once

#include "frozen.hpp"

namespace equipes {

template <class T>
struct Frozen<T>::Pass : Slots {
  const FrozenInput* input = nullptr;
  std::int64_t atoms = 0;
  std::shared_ptr<Arena> arena;
  std::int64_t *begin = nullptr, *end = nullptr;  // edges, by slot
  std::int64_t stride = 0;
  std::int32_t *sender = nullptr, *type = nullptr, *interval = nullptr;
  T *place = nullptr, *harmonics = nullptr, *cotangent = nullptr;
  double *vectors = nullptr, *slope = nullptr, *repulsion = nullptr;  // [3][stride]; dt/dr; dE/dr beside the splines'
  double* repulsion_energy = nullptr;  // by slot
  SplineEdges<T> edges;
  std::vector<T*> z, h;  // of each layer
  T* z_cotangent[2] = {};
  // Of MACE's layers: A, x of the next layer, Σ tanh².. and its derivatives by the distances.
  std::vector<T*> a, x;
  T* x_cotangent[2] = {};
  std::vector<double*> density, density_slope;  // by slot, by edge
  double* layer_energy = nullptr;  // by slot: what the layers but the last one read out
  struct Local {  // of a thread
    T *x, *x_cotangent, *messages, *h_cotangent, *m;
    std::vector<T*> readout, readout_slope;
    std::int64_t first_tile, last_tile;
  };
  std::vector<Local> local;
  ForceSums sums;
  bool differentiate = false;
};

}  // namespace equipes
