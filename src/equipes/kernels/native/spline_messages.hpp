// Message passing of a frozen model: radial weights are splines that the kernels evaluate, so that nothing wider than the
// geometry is kept for an edge.
//
//   forward   the sums of messages ∂F/∂g (see messages.hpp)
//   reverse   from their cotangents g: ∂F/∂x at the senders, and for each edge ∂F/∂Y and ∂F/∂(place in the spline)
//
// The cotangents of an edge lie side by side, so that one vector adds to them: element (l, m) of Y at l² + m, and the
// spline's in the place of Y_0, which is constant.
#pragma once

#include <array>

#include "couplings.hpp"
#include "messages.hpp"
#include "vector.hpp"

namespace equipes {

// Coefficients of a piece of a spline: c0 + c1 t + .. + c5 t⁵.
constexpr int kCoefficients = 6;

// Edges sorted by receiver. Receivers and senders are rows of features.
template <class T>
struct SplineEdges {
  const std::int64_t *begin = nullptr, *end = nullptr;  // edges of receiver i: begin[i] .. end[i]
  const std::int32_t* sender = nullptr;
  const std::int32_t* type = nullptr;  // of the sender
  const std::int32_t* interval = nullptr;  // between which knots
  const T* place = nullptr;  // t, 0 at one knot and 1 at the next
  const T* harmonics = nullptr;  // [(l_max + 1)²][stride]
  std::int64_t stride = 0;
  T* cotangent = nullptr;  // [edges][cotangent_width], added to
  int cotangent_width = 0;
};

// Numbers kept for the cotangents of an edge: whole vectors.
template <class T>
constexpr int cotangent_width(int l_max) {
  return ((l_max + 1) * (l_max + 1) + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <class T>
struct SplinePath {
  std::int32_t table = -1;  // where its coefficients begin in those of a vector of channels; -1: there is no such path
  T* messages = nullptr;  // of receiver `first`; the cotangent in the reverse sweep
  std::int64_t stride = 0, component = 0;  // to the next receiver, to the next m3
};

// All paths from some channels of one block of features.
template <class T>
struct SplineJob {
  SplineEdges<T> edges;
  std::int64_t first = 0, last = 0;  // receivers
  int vectors = 0;  // of channels
  Rows<T> x, x_cotangent;  // the latter is added to
  const T* table = nullptr;  // [interval][vector][path][coefficient][lane]
  std::int64_t interval_stride = 0, vector_stride = 0;
  std::array<SplinePath<T>, (kMaxL + 1) * (kMaxL + 1)> paths;  // by (l2, l3)

  SplinePath<T>& path(int l2, int l3) { return paths[l2 * (kMaxL + 1) + l3]; }
  const SplinePath<T>& path(int l2, int l3) const { return paths[l2 * (kMaxL + 1) + l3]; }
};

constexpr int kMaxSplineVectors = 8;

template <class T>
void spline_forward(int l1, const SplineJob<T>& job);

template <class T>
void spline_reverse(int l1, const SplineJob<T>& job);

// In the first layer features depend on the species alone, and everything up to the next nonlinearity is in the table:
// z[l, m] = Σ_e W_l(r_e; species of the sender) Y_lm(e), one function for each channel of z.
template <class T>
struct SpeciesSplineJob {
  SplineEdges<T> edges;
  std::int64_t first = 0, last = 0;
  const T* table = nullptr;  // [type][interval][vector][coefficient][lane], vectors of l = 0 first, then of 1, ..
  std::int64_t type_stride = 0, interval_stride = 0;
  struct Degree {
    int vectors = 0;
    std::int64_t table = 0;  // where its coefficients begin in those of an interval
    Rows<T> z;  // added to; the cotangent in the reverse sweep
  };
  std::array<Degree, kMaxL + 1> degrees;  // by l
};

template <class T>
void species_spline_forward(const SpeciesSplineJob<T>& job);

template <class T>
void species_spline_reverse(const SpeciesSplineJob<T>& job);

}  // namespace equipes
