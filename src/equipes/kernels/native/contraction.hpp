// MACE's symmetric contraction, channel by channel: m_M = Σ_t c[M, t] Π_{k in t} A_k, a sparse polynomial in the components
// of an atom's features. The coefficients c = Σ_p K[M, t, p] W[p] belong to the atom's species.
//
//   forward   m, and how it changes with A and c
//   reverse   from cotangents g of m: those of A and c, or how they change with A, c and g
//
// Derivatives of a monomial are its products without one factor, of which nothing is kept.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "vector.hpp"

namespace equipes {

constexpr int kMaxDegree = 4;
constexpr int kMaxComponents = 50;  // of A or m: both parities up to l = 4

// Which monomials there are, what they add to, and how their coefficients are made of weights.
struct ContractionTable {
  int inputs = 0, outputs = 0;  // components
  struct Degree {
    std::vector<std::int32_t> factors;  // [terms, degree] components of A
    std::vector<std::int32_t> begin;  // [terms + 1] the coefficients of a term
  };
  std::vector<Degree> degrees;  // of degree 1, 2, ..
  std::vector<std::int32_t> output;  // [coefficients] the component of m
  std::vector<std::int32_t> row;  // [coefficients + 1] where the couplings of a coefficient begin
  std::vector<std::int32_t> weight;  // [couplings] a row of weights
  std::vector<double> coupling;  // [couplings] K

  int coefficients() const { return int(output.size()); }

  // Throws if an index leads nowhere.
  void check(int weights) const {
    const auto require = [](bool condition) {
      if (!condition) throw std::invalid_argument("a table of the symmetric contraction does not fit");
    };
    const auto within = [&](const std::vector<std::int32_t>& numbers, int end) {
      for (std::int32_t number : numbers) require(number >= 0 && number < end);
    };
    const auto ascending = [&](const std::vector<std::int32_t>& numbers) {
      for (std::size_t i = 1; i < numbers.size(); ++i) require(numbers[i] >= numbers[i - 1]);
    };
    require(inputs > 0 && inputs <= kMaxComponents && outputs > 0 && outputs <= kMaxComponents);
    require(degrees.size() <= std::size_t(kMaxDegree));
    std::int32_t start = 0;
    for (std::size_t d = 0; d < degrees.size(); ++d) {
      const Degree& degree = degrees[d];
      require(!degree.begin.empty() && degree.factors.size() == (degree.begin.size() - 1) * (d + 1));
      require(degree.begin.front() == start);
      ascending(degree.begin);
      within(degree.factors, inputs);
      start = degree.begin.back();
    }
    require(start == coefficients());
    within(output, outputs);
    require(row.empty() ? weight.empty() : row.size() == output.size() + 1 && row.front() == 0);
    ascending(row);
    require(row.empty() || row.back() == std::int32_t(weight.size()));
    require(weight.size() == coupling.size());
    within(weight, weights);
  }
};

// One component of the features of all atoms.
template <class T>
struct Component {
  T* data = nullptr;
  std::int64_t stride = 0;  // to the next atom
};

template <class T>
struct ContractionJob {
  const ContractionTable* table = nullptr;
  std::int64_t first = 0, last = 0;  // atoms of one species
  const std::int64_t* order = nullptr;  // atom at first, ..; nullptr: themselves
  int width = 0;  // channels, whole vectors
  int first_channel = 0, last_channel = 0;  // those to work on
  const Component<T>*a = nullptr, *a_tangent = nullptr;  // [inputs]; no tangent: it is zero
  const Component<T>*m = nullptr, *m_tangent = nullptr;  // [outputs]; in reverse, cotangents and their changes
  const Component<T>* a_result = nullptr;  // reverse: cotangents of A, or their changes
  const T *c = nullptr, *c_tangent = nullptr;  // [coefficients, width]
  T* c_result = nullptr;  // reverse: cotangents of c or their changes are added to; nullptr: not wanted
};

// Writes m and, where there is one to write it to, m_tangent.
template <class T>
void contraction_forward(const ContractionJob<T>& job);

// With m_tangent: a_result and c_result are changes of the cotangents when A, c and g = m change by their tangents.
// Without: the cotangents themselves; tangents of A and c are not looked at.
template <class T>
void contraction_reverse(const ContractionJob<T>& job);

// c = K W and, in reverse, W += Kᵀ c, for the job's species and channels. `weights` has the address of each row of weights.
template <class T>
void contraction_coefficients(const ContractionJob<T>& job, const std::vector<const T*>& weights, T* c);
template <class T>
void contraction_weights(const ContractionJob<T>& job, const T* c, const std::vector<T*>& weights);

}  // namespace equipes
