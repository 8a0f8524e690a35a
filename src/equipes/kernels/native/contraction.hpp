// MACE's symmetric contraction, channel by channel: m_M = Σ_t c[M, t] Π_{k in t} A_k, a sparse polynomial in the components
// of an atom's features. The coefficients c = Σ_p K[M, t, p] W[p] belong to the atom's species.
//
//   forward   m, and how it changes with A and c
//   reverse   from cotangents g of m: those of A and c, or how they change with A, c and g
//
// Monomials are walked through as a tree, by Horner's rule: those that begin with the same factors hang from the same node,
//
//   V(node) = c[node] + Σ_children A[child] V(child),   m = V(root),
//
// so that a term costs one multiplication and addition, and one more on the way back, of which nothing is kept.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
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

  // The terms of every component of m as a tree. A node stands for the product of its factors from the root down; its
  // children are nodes [first, last) of the next level, each by the factor that it adds.
  struct Node {
    std::int32_t factor;
    std::int32_t coefficient;  // place in `order`; the one after the last: there is none
    std::int32_t first, last;
  };
  std::array<std::vector<Node>, kMaxDegree> nodes = {};  // by level
  std::vector<std::int32_t> roots = {};  // [outputs + 1] the nodes of the first level that belong to each component of m
  std::vector<std::int32_t> order = {};  // [coefficients] as the tree meets them

  // Throws if an index leads nowhere; then makes the tree.
  void check(int weights) {
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
    make_tree();
  }

 private:
  using Monomial = std::vector<std::int32_t>;

  void make_tree() {
    const std::int32_t none = coefficients();
    // The coefficients of each component's monomials and, without one, of what these begin with, level by level.
    std::vector<std::array<std::map<Monomial, std::int32_t>, kMaxDegree>> found(outputs);
    for (std::size_t d = 0; d < degrees.size(); ++d)
      for (std::size_t t = 0; t + 1 < degrees[d].begin.size(); ++t)
        for (std::int32_t e = degrees[d].begin[t]; e < degrees[d].begin[t + 1]; ++e) {
          Monomial monomial(degrees[d].factors.begin() + t * (d + 1), degrees[d].factors.begin() + (t + 1) * (d + 1));
          if (!found[output[e]][d].emplace(monomial, e).second)
            throw std::invalid_argument("a monomial of the symmetric contraction occurs twice");
          while (monomial.size() > 1) {
            monomial.pop_back();
            found[output[e]][monomial.size() - 1].emplace(monomial, none);
          }
        }
    for (auto& level : nodes) level.clear();
    order.clear();
    roots = {0};
    for (const auto& levels : found) {
      std::array<std::int32_t, kMaxDegree> start;
      for (int d = 0; d < kMaxDegree; ++d) start[d] = std::int32_t(nodes[d].size());
      for (int d = 0; d < kMaxDegree; ++d) {
        // Both levels are sorted, so that the children of one node lie side by side.
        auto child = d + 1 < kMaxDegree ? levels[d + 1].begin() : levels[d].end();
        std::int32_t at = d + 1 < kMaxDegree ? start[d + 1] : 0;
        for (const auto& [monomial, e] : levels[d]) {
          Node node{monomial.back(), none, at, at};
          if (d + 1 < kMaxDegree)
            for (; child != levels[d + 1].end() && std::equal(monomial.begin(), monomial.end(), child->first.begin()); ++child)
              node.last = ++at;
          if (e != none) {
            node.coefficient = std::int32_t(order.size());
            order.push_back(e);
          }
          nodes[d].push_back(node);
        }
      }
      roots.push_back(std::int32_t(nodes[0].size()));
    }
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
