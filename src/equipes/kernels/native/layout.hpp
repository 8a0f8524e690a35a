// Where features, messages and weights lie inside the engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "memory.hpp"
#include "product.hpp"
#include "team.hpp"
#include "vector.hpp"

namespace equipes {

struct Irrep {
  int multiplicity = 0, l = 0, p = 0;
  bool idle = false;  // cannot reach the energy
  int components() const { return 2 * l + 1; }
  bool same_kind(const Irrep& other) const { return l == other.l && p == other.p; }
};

// Channels in groups that stay apart (scalars and gates, or the results of several paths). Each group is padded to whole
// vectors, and the padding is always zero. Idle groups have a place in the parameters, but none in the engine.
template <class T>
class Channels {
 public:
  Channels() = default;
  explicit Channels(const std::vector<int>& sizes, const std::vector<bool>& idle = {}) {
    for (std::size_t g = 0; g < sizes.size(); ++g) {
      if (idle.empty() || !idle[g]) {
        sizes_.push_back(sizes[g]);
        starts_.push_back(width_);
        real_starts_.push_back(count_);
        width_ += padded(sizes[g]);
        direct_ = direct_ && padded(sizes[g]) == sizes[g];
      } else {
        direct_ = false;
        partly_idle_ = true;
      }
      count_ += sizes[g];
    }
  }

  // One group without padding: rows that meet no features.
  static Channels dense(int size) {
    Channels channels(std::vector<int>{size});
    channels.width_ = size;
    channels.direct_ = true;
    return channels;
  }

  static int padded(int size) { return (size + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }
  int groups() const { return int(sizes_.size()); }
  int size(int group) const { return sizes_[group]; }
  int start(int group) const { return starts_[group]; }  // padded
  int real_start(int group) const { return real_starts_[group]; }
  int count() const { return count_; }  // of the parameters: without padding, with idle groups
  int width() const { return width_; }  // of the engine: with padding, without idle groups
  bool direct() const { return direct_; }  // whether both are the same
  bool partly_idle() const { return partly_idle_; }

 private:
  std::vector<int> sizes_, starts_, real_starts_;
  int count_ = 0, width_ = 0;
  bool direct_ = true, partly_idle_ = false;
};

// A block of features: rows of `width` channels, one for each component of each atom, `[atoms, 2l+1, width]`.
template <class T>
struct Block {
  Irrep irrep;
  Channels<T> channels;
  std::int64_t before = 0;  // elements of an atom in the blocks before this one

  int width() const { return channels.width(); }
  int components() const { return irrep.components(); }
  int size() const { return components() * width(); }
  // Blocks follow each other: all atoms of the first, then all of the second.
  template <class U>
  U* of(U* features, std::int64_t atoms) const {
    return features + before * atoms;
  }
};

template <class T>
struct Features {
  std::vector<Block<T>> blocks;
  std::int64_t size = 0;  // elements of an atom

  void add(Irrep irrep, Channels<T> channels) {
    blocks.push_back({irrep, std::move(channels), size});
    size += blocks.back().size();
  }
  int find(const Irrep& kind) const {
    for (std::size_t b = 0; b < blocks.size(); ++b)
      if (blocks[b].irrep.same_kind(kind)) return int(b);
    return -1;
  }
};

// A parameter used as `matrices` matrices [rows, columns]. Where rows or columns are padded or some are idle, the engine
// works on a copy.
template <class T>
struct Weight {
  int parameter = 0;
  Channels<T> rows, columns;
  int matrices = 1;

  // The parameter's values as padded matrices, and back.
  const T* values(const T* parameter, Arena& arena) const {
    if (!copied()) return parameter;
    T* copy = arena.take<T>(size());
    std::fill_n(copy, size(), T(0));
    for_runs([&](std::int64_t to, std::int64_t from, int n) { std::copy_n(parameter + from, n, copy + to); });
    return copy;
  }
  void extract(const T* matrices_, T* parameter) const {
    for_runs([&](std::int64_t from, std::int64_t to, int n) { std::copy_n(matrices_ + from, n, parameter + to); });
  }

  bool copied() const { return !rows.direct() || !columns.direct(); }
  std::int64_t matrix_size() const { return std::int64_t(rows.width()) * columns.width(); }
  std::int64_t size() const { return matrices * matrix_size(); }

  // Calls f(padded offset, real offset, length) for each run of elements.
  template <class F>
  void for_runs(F&& f) const {
    for (int m = 0; m < matrices; ++m)
      for (int r = 0; r < rows.groups(); ++r)
        for (int i = 0; i < rows.size(r); ++i)
          for (int c = 0; c < columns.groups(); ++c)
            f(m * matrix_size() + std::int64_t(rows.start(r) + i) * columns.width() + columns.start(c),
              (std::int64_t(m) * rows.count() + rows.real_start(r) + i) * columns.count() + columns.real_start(c),
              columns.size(c));
  }
};

}  // namespace equipes
