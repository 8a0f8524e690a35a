// A batch of structures as the engine walks through it: which edges count, where atoms and radial weights lie.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "messages.hpp"

namespace equipes {

// Arrays of the caller: N atoms, E edges sorted by receiver.
struct GraphArrays {
  std::int64_t atoms = 0, edges = 0;
  const std::int64_t* types = nullptr;  // [N]
  const std::int64_t* structure = nullptr;  // [N], ascending
  const std::int64_t* receiver = nullptr;  // [E]
  const std::int64_t* sender = nullptr;  // [E]
  const double* shift = nullptr;  // [E, 3]
  const double* vectors = nullptr;  // [E, 3], Å
};

// Atoms of one species lie side by side, so that a matrix per species is one product.
struct SpeciesRange {
  int type;
  std::int64_t first, last;  // places
};

// Whole structures, side by side: no edge leaves them.
struct Group {
  std::int64_t first, last;  // atoms
  std::int64_t first_pair, last_pair;
};

struct Plan {
  std::int64_t atoms = 0, edges = 0, pairs = 0;
  std::vector<std::int32_t> place;  // [atoms] of an atom's features
  std::vector<std::int64_t> row;  // [atoms + 1] edges of a receiver
  std::vector<std::int64_t> original;  // [edges] the caller's number of an edge
  std::vector<std::int32_t> receiver, sender;  // [edges] atoms
  std::vector<std::int32_t> sender_place;  // [edges]
  std::vector<std::int32_t> pair;  // [edges, and some] the row of radial weights; i->j and j->i share one
  std::vector<std::uint8_t> opens;  // [edges] the first edge of its pair
  std::vector<double> length;  // [edges] Å
  std::vector<double> pair_length, pair_cutoff;  // [pairs] Å
  std::vector<int> pair_species;  // [pairs] receiver · n_species + sender, of the edge that opens it
  std::vector<SpeciesRange> species;
  std::vector<Group> groups;

  // `cutoffs` is [n_species, n_species] by receiver and sender. Edges at or beyond it have no weights and are left out.
  Plan(const GraphArrays& graph, int n_species, const std::vector<double>& cutoffs) : atoms(graph.atoms) {
    place_atoms(graph, n_species);
    keep_edges(graph, n_species, cutoffs);
    unite_pairs(graph, n_species, cutoffs);
    group_structures(graph);
  }

 private:
  // Message passing goes through a group path by path: the radial weights of a path shall stay in the second-level cache.
  static constexpr std::int64_t kGroupEdges = 600;

  void place_atoms(const GraphArrays& graph, int n_species) {
    std::vector<std::int64_t> start(n_species + 1, 0);
    for (std::int64_t i = 0; i < atoms; ++i) ++start[graph.types[i] + 1];
    for (int t = 0; t < n_species; ++t) {
      if (start[t + 1] > 0) species.push_back({t, start[t], start[t] + start[t + 1]});
      start[t + 1] += start[t];
    }
    place.resize(atoms);
    for (std::int64_t i = 0; i < atoms; ++i) place[i] = std::int32_t(start[graph.types[i]]++);
  }

  void keep_edges(const GraphArrays& graph, int n_species, const std::vector<double>& cutoffs) {
    row.assign(atoms + 1, 0);
    for (auto* list : {&receiver, &sender, &sender_place}) list->reserve(graph.edges);
    original.reserve(graph.edges);
    length.reserve(graph.edges);
    for (std::int64_t e = 0; e < graph.edges; ++e) {
      const double* r = graph.vectors + 3 * e;
      const double distance = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
      const std::int64_t i = graph.receiver[e], j = graph.sender[e];
      // Written so that a distance that is not a number stays and shows in the result.
      if (distance >= cutoffs[graph.types[i] * n_species + graph.types[j]]) continue;
      original.push_back(e);
      receiver.push_back(std::int32_t(i));
      sender.push_back(std::int32_t(j));
      sender_place.push_back(place[j]);
      length.push_back(distance);
      ++row[i + 1];
    }
    edges = std::int64_t(original.size());
    for (std::int64_t i = 0; i < atoms; ++i) row[i + 1] += row[i];
  }

  // The radial network sees the length only, so an edge and its opposite share a row, unless their cutoffs differ.
  void unite_pairs(const GraphArrays& graph, int n_species, const std::vector<double>& cutoffs) {
    pair.assign(edges, -1);
    pair.reserve(edges + kFetchAhead);
    opens.assign(edges, 0);
    for (std::int64_t e = 0; e < edges; ++e) {
      if (pair[e] >= 0) continue;
      const std::int32_t i = receiver[e], j = sender[e];
      const double cutoff = cutoffs[graph.types[i] * n_species + graph.types[j]];
      pair[e] = std::int32_t(pairs++);
      opens[e] = 1;
      pair_length.push_back(length[e]);
      pair_cutoff.push_back(cutoff);
      pair_species.push_back(int(graph.types[i] * n_species + graph.types[j]));
      if (cutoffs[graph.types[j] * n_species + graph.types[i]] != cutoff) continue;
      for (std::int64_t other = row[j]; other < row[j + 1]; ++other)
        if (sender[other] == i && pair[other] < 0 && opposite(graph, original[e], original[other])) {
          pair[other] = pair[e];
          break;
        }
    }
    pair.resize(edges + kFetchAhead, 0);
  }

  static bool opposite(const GraphArrays& graph, std::int64_t e, std::int64_t other) {
    for (int c = 0; c < 3; ++c)
      if (graph.shift[3 * e + c] != -graph.shift[3 * other + c] ||
          graph.vectors[3 * e + c] != -graph.vectors[3 * other + c])
        return false;
    return true;
  }

  void group_structures(const GraphArrays& graph) {
    Group group{0, 0, 0, 0};
    for (std::int64_t i = 0; i < atoms; ++i) {
      if (i > 0 && graph.structure[i] != graph.structure[i - 1] && row[i] - row[group.first] >= kGroupEdges) {
        groups.push_back(group);
        group = {i, i, group.last_pair, group.last_pair};
      }
      group.last = i + 1;
      for (std::int64_t e = row[i]; e < row[i + 1]; ++e) group.last_pair += opens[e];
    }
    groups.push_back(group);
  }
};

}  // namespace equipes
