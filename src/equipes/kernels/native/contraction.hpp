// MACE's symmetric contraction, channel by channel: m_M = Σ_t c[M, t] Π_{k in t} A_k, a sparse polynomial in the components
// of an atom's features. The coefficients c = Σ_p K[M, t, p] W[p] belong to the atom's species.
//
//   forward   m, and how it changes with A and c
//   reverse   from cotangents g of m: those of A and c, or how they change with A, c and g
//
// Monomials are walked through as a tree, by Horner's rule: those that begin with the same factors hang from the same node,
//
//   V(node) = c[node] + Σ_children A[child] V(child),   m = V(root);
//
// cotangents go down the same tree in the same walk, and nothing is kept.
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

  // The terms of every component of m as a tree. A node stands for the product of its factors from the root down, and a level
  // has nodes of as many factors. The last level is that of all factors but two: what follows there are lists of one factor
  // more and of two, since few terms share more than that.
  struct Node {
    std::int32_t factor;
    std::int32_t coefficient;  // place in `order`; the one after the last: there is none
    std::int32_t first, last;  // children, of the next level
    std::int32_t first_single, last_single, first_pair, last_pair;  // on the last level
  };
  struct Single {
    std::int32_t factor, coefficient;
  };
  struct Pair {
    std::int32_t factor_1, factor_2, coefficient;
  };
  std::array<std::vector<Node>, kMaxDegree - 1> nodes = {};  // by level; the first has the root of each component of m
  std::vector<Single> singles = {};
  std::vector<Pair> pairs = {};
  std::vector<std::int32_t> order = {};  // [coefficients] as the tree meets them
  int last_level() const { return std::max(int(degrees.size()), 2) - 2; }

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
    const int last = last_level();
    // Of each component: the coefficients of the nodes or none, level by level, and of what hangs from the last level.
    std::vector<std::array<std::map<Monomial, std::int32_t>, kMaxDegree + 1>> found(outputs);
    for (auto& levels : found) levels[0].emplace(Monomial{}, none);
    for (int d = 1; d <= int(degrees.size()); ++d)
      for (std::size_t t = 0; t + 1 < degrees[d - 1].begin.size(); ++t)
        for (std::int32_t e = degrees[d - 1].begin[t]; e < degrees[d - 1].begin[t + 1]; ++e) {
          auto& levels = found[output[e]];
          Monomial monomial(degrees[d - 1].factors.begin() + t * d, degrees[d - 1].factors.begin() + (t + 1) * d);
          if (!levels[d].emplace(monomial, e).second)
            throw std::invalid_argument("a monomial of the symmetric contraction occurs twice");
          monomial.resize(std::min(d - 1, last));
          for (; !monomial.empty(); monomial.pop_back()) levels[monomial.size()].emplace(monomial, none);
        }
    for (auto& level : nodes) level.clear();
    singles.clear();
    pairs.clear();
    order.clear();
    const auto place = [&](std::int32_t e) {
      if (e == none) return none;
      order.push_back(e);
      return std::int32_t(order.size() - 1);
    };
    for (const auto& levels : found)
      for (int d = 0; d <= last; ++d) {
        // All levels are sorted, so that what hangs from one node lies side by side.
        std::int32_t child = d < last ? std::int32_t(nodes[d + 1].size()) : 0;
        for (const auto& [monomial, e] : levels[d]) {
          Node node{d > 0 ? monomial.back() : 0, place(e), child, child, std::int32_t(singles.size()), 0,
                    std::int32_t(pairs.size()), 0};
          const auto for_following = [&](int more, auto&& f) {
            for (auto at = levels[d + more].lower_bound(monomial); at != levels[d + more].end(); ++at) {
              if (!std::equal(monomial.begin(), monomial.end(), at->first.begin())) break;
              f(at->first, at->second);
            }
          };
          if (d < last) {
            for_following(1, [&](const Monomial&, std::int32_t) { node.last = ++child; });
          } else {
            for_following(1, [&](const Monomial& m, std::int32_t own) { singles.push_back({m[d], place(own)}); });
            for_following(2, [&](const Monomial& m, std::int32_t own) { pairs.push_back({m[d], m[d + 1], place(own)}); });
          }
          node.last_single = std::int32_t(singles.size());
          node.last_pair = std::int32_t(pairs.size());
          nodes[d].push_back(node);
        }
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
