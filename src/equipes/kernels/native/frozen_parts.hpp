// What frozen potentials of every kind have in common: their input and output, matrices and splines as the kernels read
// them, the places of atoms and edges in memory, and the way from the edges' gradients to forces and virials.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "layout.hpp"
#include "memory.hpp"
#include "product.hpp"
#include "spline_messages.hpp"
#include "team.hpp"

namespace equipes {

// Atoms that go through the linear layers together.
constexpr int kTileAtoms = 24;
// Tiles that go through some channels of the splines before the next: few enough for their features to stay in the
// third-level cache, enough for the splines to be worth fetching.
constexpr int kChunkTiles = 40;
// With fewer atoms all features fit into the cache in any order.
constexpr std::int64_t kOrderedAtoms = 1000;

// From one block to another, one matrix for all species or one for each: [count, rows, columns].
struct FrozenMatrix {
  int from = 0, to = 0;
  int count = 1, rows = 0, columns = 0;
  std::vector<double> values;
};

// Arrays of the caller. The list of neighbours may reach too far: what is beyond the cutoff does not count.
struct FrozenInput {
  std::int64_t atoms = 0, structures = 0;
  const std::int64_t* types = nullptr;  // [N]
  const std::int64_t* structure = nullptr;  // [N]; nullptr: there is one
  const double* positions = nullptr;  // [N, 3] Å
  const double* cell = nullptr;  // [S, 3, 3] Å
  const std::int64_t* row = nullptr;  // [N + 1] the edges of a receiver
  const std::int64_t* sender = nullptr;  // [E]
  const double* shift = nullptr;  // [E, 3] whole lattice vectors; nullptr: all zero

  const double* cell_of(std::int64_t atom) const { return cell + (structure != nullptr ? 9 * structure[atom] : 0); }

  // From receiver i to the sender of edge k, and how long it is.
  double vector(std::int64_t i, std::int64_t k, const double* its_cell, double* r) const {
    const std::int64_t j = sender[k];
    for (int c = 0; c < 3; ++c) r[c] = positions[3 * j + c] - positions[3 * i + c];
    if (shift != nullptr) {
      const double* n = shift + 3 * k;
      for (int c = 0; c < 3; ++c) r[c] += n[0] * its_cell[c] + n[1] * its_cell[3 + c] + n[2] * its_cell[6 + c];
    }
    return std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
  }
};

struct FrozenOutput {
  double* energies = nullptr;  // [N] eV
  double* forces = nullptr;  // [N, 3] eV/Å; nullptr: energies only
  double* virial = nullptr;  // [S, 3, 3] eV, -dE/dstrain
};

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

// Matrices cut into panels of two vectors of columns, so that products read them in order.
template <class T>
struct Panels {
  int depth = 0, width = 0;
  const T* data = nullptr;
};

// Memory of matrices and splines.
template <class T>
class Tables {
 public:
  std::int64_t bytes() const { return bytes_; }

  // n zeros.
  T* keep(std::int64_t n) {
    bytes_ += n * std::int64_t(sizeof(T));
    T* data = arena_.take<T>(n);
    std::fill_n(data, n, T(0));
    return data;
  }

  Panels<T> pack(const std::vector<double>& dense, int depth, int width) {
    T* data = keep(std::int64_t(depth) * width);
    const Panels<T> panels{depth, width, data};
    for (int n0 = 0; n0 < width; n0 += 2 * kLanes<T>) {
      const int columns = std::min(2 * kLanes<T>, width - n0);
      for (int k = 0; k < depth; ++k)
        for (int c = 0; c < columns; ++c) *data++ = T(dense[std::size_t(k) * width + n0 + c]);
    }
    return panels;
  }

 private:
  Arena arena_;
  std::int64_t bytes_ = 0;
};

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

// A matrix [rows, columns] with the padding of both.
template <class T>
std::vector<double> padded(const double* values, const Channels<T>& rows, const Channels<T>& columns) {
  std::vector<double> dense(std::size_t(rows.width()) * columns.width(), 0.0);
  for (int r = 0; r < rows.groups(); ++r)
    for (int i = 0; i < rows.size(r); ++i)
      for (int c = 0; c < columns.groups(); ++c)
        std::copy_n(values + std::size_t(rows.real_start(r) + i) * columns.count() + columns.real_start(c), columns.size(c),
                    dense.begin() + std::size_t(rows.start(r) + i) * columns.width() + columns.start(c));
  return dense;
}

inline std::vector<double> transposed(const std::vector<double>& dense, int rows, int columns) {
  std::vector<double> result(dense.size());
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) result[std::size_t(j) * rows + i] = dense[std::size_t(i) * columns + j];
  return result;
}

// Coefficients [intervals, coefficients, stride] of neighbouring channels, as many as fit into a vector.
template <class T>
void fill_coefficients(int intervals, const double* splines, std::int64_t stride, int channels, T* target,
                       std::int64_t interval_stride) {
  for (int k = 0; k < intervals; ++k)
    for (int i = 0; i < kCoefficients; ++i)
      for (int c = 0; c < channels; ++c)
        target[k * interval_stride + i * kLanes<T> + c] = T(splines[(std::int64_t(k) * kCoefficients + i) * stride + c]);
}

// Knots of a reduced distance, 0, .., 1.
class Knots {
 public:
  Knots() = default;
  explicit Knots(const std::vector<double>& knots) : knots_(knots) {
    require(intervals() >= 1 && knots_.front() == 0.0 && knots_.back() == 1.0, "the knots do not go from 0 to 1");
    for (int k = 0; k < intervals(); ++k) require(knots_[k + 1] > knots_[k], "the knots do not ascend");
    interval_at_.resize(4 * intervals());
    for (std::size_t i = 0, k = 0; i < interval_at_.size(); ++i) {
      while (int(k) + 1 < intervals() && knots_[k + 1] <= double(i) / double(interval_at_.size())) ++k;
      interval_at_[i] = int(k);
    }
  }

  int intervals() const { return int(knots_.size()) - 1; }
  double operator[](int k) const { return knots_[k]; }

  // The interval of a number below 1; of what is no number the first.
  int interval_of(double reduced) const {
    const int lookups = int(interval_at_.size());
    int interval = reduced >= 0.0 ? interval_at_[std::min(int(reduced * lookups), lookups - 1)] : 0;
    while (interval + 1 < intervals() && knots_[interval + 1] <= reduced) ++interval;
    return interval;
  }

 private:
  std::vector<double> knots_;
  std::vector<int> interval_at_;  // by distance in steps of 1 / size: the interval where a step begins
};

// Atoms so ordered that neighbours are near in memory, too: along a curve of Morton through boxes of a few Å. It depends on
// the positions alone, so that equal structures still give equal bits.
inline std::vector<std::int64_t> order_in_space(const double* positions, std::int64_t atoms) {
  constexpr double kBox = 4.0;  // Å
  constexpr int kBits = 16;
  std::vector<std::int64_t> order(atoms);
  for (std::int64_t i = 0; i < atoms; ++i) order[i] = i;
  if (atoms < kOrderedAtoms) return order;
  double low[3] = {positions[0], positions[1], positions[2]};
  for (std::int64_t i = 0; i < 3 * atoms; ++i) low[i % 3] = std::min(low[i % 3], positions[i]);
  std::vector<std::uint64_t> keys(atoms, 0);
  for (std::int64_t i = 0; i < atoms; ++i)
    for (int c = 0; c < 3; ++c) {
      const double box = (positions[3 * i + c] - low[c]) / kBox;
      // Also what is no number or very far must have some place.
      const std::uint64_t place = box >= 0 ? std::uint64_t(std::min(box, double((1 << kBits) - 1))) : 0;
      for (int b = 0; b < kBits; ++b) keys[i] |= (place >> b & 1) << (3 * b + c);
    }
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return keys[a] < keys[b]; });
  return order;
}

struct FrozenTile {
  std::int64_t first, last;  // slots
  int type;  // of all its atoms, where matrices depend on the species
};

// Atoms stand in slots, those of a species side by side where matrices depend on the species, and are cut into tiles.
struct Slots {
  std::vector<FrozenTile> tiles;
  std::vector<std::int64_t> atom;  // by slot
  std::vector<int> type_at;  // by slot
  std::vector<std::int32_t> slot;  // by atom

  void arrange(const FrozenInput& input, int n_species, bool by_species) {
    const std::int64_t N = input.atoms;
    const int groups = by_species ? n_species : 1;
    const auto group_of = [&](std::int64_t i) { return by_species ? int(input.types[i]) : 0; };
    std::vector<std::int64_t> start(groups + 1, 0);
    for (std::int64_t i = 0; i < N; ++i) ++start[group_of(i) + 1];
    for (int g = 0; g < groups; ++g) {
      start[g + 1] += start[g];
      for (std::int64_t first = start[g]; first < start[g + 1]; first += kTileAtoms)
        tiles.push_back({first, std::min(first + kTileAtoms, start[g + 1]), g});
    }
    atom.resize(N);
    slot.resize(N);
    type_at.resize(N);
    for (const std::int64_t i : order_in_space(input.positions, N)) {
      const std::int64_t its_slot = start[group_of(i)]++;
      slot[i] = std::int32_t(its_slot);
      atom[its_slot] = i;
      type_at[its_slot] = int(input.types[i]);
    }
  }

  // Room for the edges of all threads; each thread's begin at a multiple of 64 after as many as its atoms can have.
  static std::int64_t edge_room(const FrozenInput& input, int threads) {
    return (input.row[input.atoms] + 63) / 64 * 64 + 128 * threads;
  }
  std::int64_t first_edge(const FrozenInput& input, Team team) const {
    std::int64_t e = 0;
    for (std::int64_t s = 0; s < team.share(input.atoms).first; ++s) e += input.row[atom[s] + 1] - input.row[atom[s]];
    return (e + 63) / 64 * 64 + 128 * team.rank;
  }

  // The thread's tiles, first and last: all threads have as many edges, with an atom's linear layers as so many more.
  std::pair<std::int64_t, std::int64_t> share_tiles(Team team, const std::int64_t* begin, const std::int64_t* end) const {
    constexpr std::int64_t kAtomCost = 30;
    std::int64_t total = 0, done = 0, first_tile = 0, last_tile = 0;
    for (std::size_t s = 0; s < atom.size(); ++s) total += kAtomCost + end[s] - begin[s];
    for (std::size_t t = 0; t < tiles.size(); ++t) {
      const int owner = int(done * team.size / total);
      for (std::int64_t s = tiles[t].first; s < tiles[t].last; ++s) done += kAtomCost + end[s] - begin[s];
      if (owner < team.rank) first_tile = std::int64_t(t) + 1;
      if (owner <= team.rank) last_tile = std::int64_t(t) + 1;
    }
    return {first_tile, last_tile};
  }
};

// Forces and virials from the gradients dE/dr of the edges: each thread adds up those of its edges, then all are added.
struct ForceSums {
  std::vector<double*> forces, virials;  // of each thread, [N, 3] and [S, 3, 3]

  void take(Arena& arena, int threads, const FrozenInput& input) {
    for (int r = 0; r < threads; ++r) {
      forces.push_back(arena.take<double>(3 * input.atoms));
      virials.push_back(arena.take<double>(9 * input.structures));
    }
  }
  void clear(Team team, const FrozenInput& input) const {
    std::fill_n(forces[team.rank], 3 * input.atoms, 0.0);
    std::fill_n(virials[team.rank], 9 * input.structures, 0.0);
  }
  // Of the edge to atom i from atom j, along r.
  void add(Team team, const FrozenInput& input, std::int64_t i, std::int64_t j, const double* r, const double* g) const {
    double* force = forces[team.rank];
    double* virial = virials[team.rank] + (input.structure != nullptr ? 9 * input.structure[i] : 0);
    for (int c = 0; c < 3; ++c) {
      force[3 * i + c] += g[c];
      force[3 * j + c] -= g[c];
      for (int d = 0; d < 3; ++d) virial[3 * c + d] -= r[c] * g[d];
    }
  }
  // All threads must have added theirs.
  void total(Team team, const FrozenInput& input, const FrozenOutput& output) const {
    const auto [first, last] = team.share(3 * input.atoms);
    for (std::int64_t c = first; c < last; ++c) {
      double sum = 0;
      for (const double* part : forces) sum += part[c];
      output.forces[c] = sum;
    }
    const auto [first_structure, last_structure] = team.share(input.structures);
    for (std::int64_t s = first_structure; s < last_structure; ++s)
      for (int c = 0; c < 3; ++c)
        for (int d = 0; d < 3; ++d) {
          double sum = 0;
          for (const double* part : virials) sum += part[9 * s + 3 * c + d] + part[9 * s + 3 * d + c];
          output.virial[9 * s + 3 * c + d] = 0.5 * sum;
        }
  }
};

}  // namespace equipes
