// A frozen SchNet, PhysNet or ANI. Their features are scalars, so that a model is a network on the numbers of each atom:
// nodes, and links between them,
//   to += W a(from) + b   or, number by number,   to += s ∘ a(from),   a: nothing, shifted softplus or SiLU.
// It goes in stages. In each a node may receive something of the neighbours first, and then links follow one another:
//   messages            Σ_j F(r_ij) ∘ sent_j, F splines
//   of the species      Σ_j F(r_ij; species of j), where what would be sent depends on the species alone
//   symmetry functions  of ANI
// The first node holds the energies. Analytic forward and reverse sweeps; for an edge nothing is kept but its geometry.
#pragma once

#include <memory>
#include <vector>

#include "frozen_parts.hpp"
#include "profile.hpp"
#include "symmetry_functions.hpp"

namespace equipes {

enum class Activation { kNone, kSoftplus, kSilu };

struct InvariantLinkSpec {
  int from = -1, to = 0;  // -1: nothing but the constants
  Activation activation = Activation::kNone;
  FrozenMatrix matrix;  // without rows: number by number
  std::vector<double> factors;  // s; empty: 1
  std::vector<double> constants;  // [1 or n_species, numbers]; empty: 0
};

struct InvariantStageSpec {
  int sent = -1, received = -1;  // nodes; -1: there is none
  std::vector<double> splines;  // [intervals, coefficients, numbers]; without a sent node [species of the sender, ..]
  std::vector<InvariantLinkSpec> links;
};

struct InvariantSpec {
  int n_species = 0;
  double r_max = 0;  // Å
  std::vector<int> widths;  // of the nodes
  std::vector<double> knots;  // of the reduced distance r / r_max; empty: there are no splines
  std::vector<InvariantStageSpec> stages;
  bool symmetric = false;  // the first stage receives symmetry functions
  SymmetrySpec symmetry;
  std::vector<double> scales, shifts;  // [n_species] eV
};

template <class T>
class Invariant {
 public:
  explicit Invariant(const InvariantSpec& spec);

  void evaluate(int threads, const FrozenInput& input, const FrozenOutput& output) const;

  std::int64_t table_bytes() const { return tables_.bytes(); }

 private:
  struct Pass;

  struct Node {
    Channels<T> channels;
    bool kept = false;  // beyond a tile's turn in one stage: its values and cotangents have a place for every atom
    bool alive = false;  // depends on where atoms are
    std::int64_t width() const { return channels.width(); }
  };

  struct Link {
    int number, from, to;
    Activation activation;
    bool adds, adds_cotangent;  // to what is there already, in the forward and in the reverse sweep
    std::vector<Panels<T>> forward, reverse;  // one for all species or one for each; empty: number by number
    std::vector<T> factors, constants;
    bool constants_by_species = false;
    const Panels<T>& of(const std::vector<Panels<T>>& panels, int type) const {
      return panels[panels.size() == 1 ? 0 : type];
    }
  };

  // Some channels of the messages, so that their splines stay in the cache.
  struct Section {
    int channel, vectors;
    const T* table;
    std::int64_t interval_stride;
  };

  struct Stage {
    int sent, received;
    std::vector<Section> sections;  // of messages
    const T* table = nullptr;  // by species
    std::int64_t type_stride = 0, interval_stride = 0;
    std::vector<Link> links;
    bool by_species() const { return table != nullptr; }
  };

  void add_stage(const InvariantStageSpec& spec);
  void add_splines(const InvariantStageSpec& spec, Stage& stage);
  Link make_link(const InvariantLinkSpec& spec);
  void find_uses();
  int node(int index) const;
  void prepare(Pass& pass, int threads, const FrozenInput& input, bool differentiate) const;
  void find_edges(Team team, Pass& pass) const;
  void receive(Team team, Pass& pass, const Stage& stage, std::int64_t first_tile, std::int64_t last_tile) const;
  void receive_reverse(Team team, Pass& pass, const Stage& stage, std::int64_t first_tile, std::int64_t last_tile) const;
  void follow(Team team, Pass& pass, const Link& link, const FrozenTile& tile) const;
  void follow_reverse(Team team, Pass& pass, const Link& link, const FrozenTile& tile) const;
  void read_out(Team team, Pass& pass, const FrozenOutput& output) const;
  void gather_forces(Team team, Pass& pass, const FrozenOutput& output) const;

  int n_species_;
  double r_max_;
  std::vector<double> scales_, shifts_;
  Knots knots_;
  bool symmetric_, by_species_ = false;  // some matrix is
  SymmetryFunctions symmetry_;
  std::vector<Node> nodes_;
  std::vector<Stage> stages_;
  std::vector<bool> written_, read_;  // nodes, while stages are added
  int links_ = 0;
  Tables<T> tables_;
  std::shared_ptr<ArenaPool> arenas_ = std::make_shared<ArenaPool>();
};

// What one evaluation works on.
template <class T>
struct Invariant<T>::Pass : Slots {
  const FrozenInput* input = nullptr;
  std::int64_t atoms = 0, stride = 0;
  bool differentiate = false;
  std::shared_ptr<Arena> arena;
  std::int64_t *begin = nullptr, *end = nullptr;  // edges, by slot
  std::int32_t *sender = nullptr, *type = nullptr, *interval = nullptr;
  T *place = nullptr, *cotangent = nullptr;
  double *vectors = nullptr, *slope = nullptr;  // [3][stride] Å; dt/dr
  double* gradient = nullptr;  // [3][stride] eV/Å, of symmetry functions
  SplineEdges<T> edges;
  std::vector<T*> values, cotangents;  // of nodes that are kept
  std::vector<T*> slopes;  // of each link: derivatives of its activation; nullptr: nobody asks for them
  struct Local {  // of a thread
    T *scratch, *sent_cotangent;
    std::vector<T*> values, cotangents;  // of nodes that are not kept, of a tile
    SymmetryFunctions::Room room;
    std::int64_t first_tile, last_tile;
  };
  std::vector<Local> local;
  ForceSums sums;

  T* values_of(const Node& node, int index, int rank, const FrozenTile& tile) const {
    return node.kept ? values[index] + tile.first * node.width() : local[rank].values[index];
  }
  T* cotangents_of(const Node& node, int index, int rank, const FrozenTile& tile) const {
    return node.kept ? cotangents[index] + tile.first * node.width() : local[rank].cotangents[index];
  }
};

}  // namespace equipes
