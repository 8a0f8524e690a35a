// What one evaluation of a frozen potential works on, and the products of its linear layers.
#pragma once

#include "frozen.hpp"

namespace equipes {

// Atoms whose messages are made before linear_2 takes them.
constexpr int kTileAtoms = 24;

// C[M, width] (+)= A[M, depth] B
template <class T>
void multiply_panels(std::int64_t M, Matrix<T> a, const Panels<T>& b, T* c, std::int64_t c_row, bool add) {
  constexpr int n = kLanes<T>;
  if (b.depth == 0 && !add)
    for (std::int64_t i = 0; i < M; ++i) std::fill_n(c + i * c_row, b.width, T(0));
  const T* panel = b.data;
  for (int n0 = 0; n0 < b.width; n0 += 2 * n) {
    const int vectors = b.width - n0 >= 2 * n ? 2 : 1;
    for (int k0 = 0; k0 < b.depth; k0 += kDepth) {
      const int depth = std::min(kDepth, b.depth - k0);
      for (std::int64_t i = 0; i < M; i += kTileRows) {
        const int rows = int(std::min<std::int64_t>(kTileRows, M - i));
        T* target = c + i * c_row + n0;
        if (vectors == 2)
          multiply_rows<T, 2>(rows, depth, a.from(i, k0), panel, 2 * n, target, c_row, add || k0 > 0, T(1));
        else
          multiply_rows<T, 1>(rows, depth, a.from(i, k0), panel, n, target, c_row, add || k0 > 0, T(1));
      }
      panel += depth * vectors * n;
    }
  }
}

// Atoms stand in slots, those of a species side by side where matrices depend on the species.
template <class T>
struct Frozen<T>::Tile {
  std::int64_t first, last;  // slots
  int type;  // of all its atoms, where matrices depend on the species
};

template <class T>
struct Frozen<T>::Pass {
  const FrozenInput* input = nullptr;
  std::int64_t atoms = 0;
  std::shared_ptr<Arena> arena;
  std::vector<Tile> tiles;
  std::vector<std::int64_t> atom;  // by slot
  std::vector<int> type_at;  // by slot
  std::vector<std::int32_t> slot;  // by atom
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
    double *forces, *virial;
    std::vector<T*> readout, readout_slope;
    std::int64_t first_tile, last_tile;
  };
  std::vector<Local> local;
  bool differentiate = false;
};

}  // namespace equipes
