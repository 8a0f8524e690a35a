// A frozen potential: energies, forces and virial of a model whose linear layers are folded and whose radial functions are
// splines. Analytic forward and reverse sweeps; for an edge nothing is kept but its geometry.
//
// The layers, each a list of blocks of irreps:
//   x -> linear_1 -> h;  messages of h at the neighbours -> linear_2, + self-connection of x -> z -> gate -> x of the next
// In the first layer all of this up to z is in one table for each species.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "contraction.hpp"
#include "convolution.hpp"
#include "frozen_parts.hpp"
#include "geometry.hpp"
#include "profile.hpp"

namespace equipes {

struct FrozenLayerSpec {
  std::vector<Irrep> in;  // of x; none in the first layer
  std::vector<PathSpec> paths;
  std::vector<Irrep> gate_in;  // of z, united and sorted
  std::vector<Irrep> scalars, gated;  // what the gate puts out
  std::vector<FrozenMatrix> linear_1;  // block to the same block, for blocks that have paths
  std::vector<FrozenMatrix> linear_2;  // to a block of z, from the channels of all paths to it in the order of paths
  std::vector<FrozenMatrix> self_connection;
  // Radial weights between knots as polynomials of 0..1, [intervals, coefficients, weights]. In the first layer [species,
  // intervals, coefficients, channels], channels of the blocks of z in `reached`.
  std::vector<double> splines;
  std::vector<int> reached;  // first layer: the block of z that l = 0, 1, .. goes to, or -1
  std::vector<double> constants;  // [species, even scalars], added to z
  std::vector<double> hidden_constants;  // added to the even scalars of h; empty: nothing is

  // MACE's layers have a symmetric contraction in the place of the gate (frozen_product.cpp); `out` is what they give, and
  // constants and self_connection are added to that.
  std::vector<Irrep> out;
  ContractionTable contraction;
  std::vector<double> coefficients;  // [species, coefficients, channels]
  std::vector<FrozenMatrix> mixing;  // of z, before the contraction; none or all blocks
  std::vector<FrozenMatrix> linear_3;  // after it
  std::vector<double> readout;  // [channels] of the even scalars; empty in the last layer
  std::vector<double> density;  // splines of what each edge adds to the density that z is divided by; empty: it is not
};

struct FrozenSpec {
  int n_species = 0, l_max = 0;
  std::vector<double> cutoffs;  // [n_species, n_species] Å, by receiver and sender
  std::vector<double> knots;  // of the reduced distance r / cutoff: 0, .., 1
  bool by_pair = false;  // splines are those of a receiver's and a sender's species: in the place of [intervals] there is
                         // [receivers, senders, intervals], also in the first layer, which then has no [species] before it
  std::vector<FrozenLayerSpec> layers;
  std::vector<FrozenMatrix> readout;  // with SiLU between
  std::vector<double> scales, shifts;  // [n_species] eV
  Repulsion repulsion;
};

template <class T>
class Frozen {
 public:
  explicit Frozen(const FrozenSpec& spec);

  void evaluate(int threads, const FrozenInput& input, const FrozenOutput& output) const;

  std::int64_t table_bytes() const { return tables_.bytes(); }

 private:
  struct Pass;
  using Tile = FrozenTile;

  // One matrix, or one for each species.
  struct Map {
    int from, to;
    std::vector<Panels<T>> forward, reverse;
    const Panels<T>& of(const std::vector<Panels<T>>& panels, int type) const {
      return panels[panels.size() == 1 ? 0 : type];
    }
  };

  // Some channels of a block: what message passing and linear_2 do in one go, so that the splines stay in the cache.
  struct Section {
    int block = 0, l1 = 0, channel = 0, vectors = 0;
    const T* table = nullptr;
    std::int64_t interval_stride = 0, vector_stride = 0;
    struct Path {
      int l2, l3;
      std::int32_t table;
      int message, column;
    };
    std::vector<Path> paths;
    struct Message {
      int to, components, width = 0;
      std::int64_t before = 0;  // numbers of an atom in the messages before this one
      Panels<T> forward, reverse;
    };
    std::vector<Message> messages;
    std::int64_t size = 0;  // numbers of an atom in all messages
  };

  struct GateOutput {
    enum Kind { kSilu, kTanh, kGated } kind;
    int source, gate;  // block of z; first channel of the gates in the block of even scalars
  };

  struct Layer {
    Features<T> in, hidden, z, out;
    std::vector<Map> linear_1, self_connection;
    std::vector<Section> sections;
    std::vector<GateOutput> gate;
    int scalars = -1;  // block of even scalars of z; in MACE's layers of what they give
    std::vector<T> constants;  // [species, width of the even scalars of z]
    std::vector<T> hidden_constants;  // of the even scalars of h
    bool product = false;  // what follows is MACE's
    Features<T> m;
    ContractionTable table;
    std::vector<const T*> coefficients;  // by species, [coefficients, width]
    std::vector<Map> mixing, linear_3;
    std::vector<T> readout;
    std::vector<double> density;
  };

  void add_layer(const FrozenLayerSpec& spec);
  void add_gate(const FrozenLayerSpec& spec, Layer& layer, int first_gate);
  void add_product(const FrozenLayerSpec& spec, Layer& layer);
  void add_first_layer(const FrozenLayerSpec& spec);
  void add_sections(const FrozenLayerSpec& spec, Layer& layer);
  Map make_map(const FrozenMatrix& matrix, const Channels<T>& rows, const Channels<T>& columns);
  void prepare(Pass& pass, int threads, const FrozenInput& input, bool differentiate) const;
  void find_edges(Team team, Pass& pass) const;
  void first_layer(Team team, Pass& pass, bool reverse) const;
  void enter_layer(Team team, Pass& pass, int k) const;
  void messages_forward(Team team, Pass& pass, int k) const;
  void messages_reverse(Team team, Pass& pass, int k) const;
  void leave_layer(Team team, Pass& pass, int k) const;
  void read_out(Team team, Pass& pass, const FrozenOutput& output) const;
  void gather_forces(Team team, Pass& pass, const FrozenOutput& output) const;
  void start_z(Pass& pass, int k, std::int64_t first, std::int64_t last) const;
  void gate(const Layer& layer, const Pass& pass, const T* z, std::int64_t first, std::int64_t last, T* x) const;
  void gate_reverse(const Layer& layer, const Pass& pass, const T* z, std::int64_t first, std::int64_t last,
                    const T* x_cotangent, T* z_cotangent) const;
  void prepare_products(Pass& pass, int threads) const;
  void find_densities(Team team, Pass& pass) const;
  void start_x(Pass& pass, int k, std::int64_t first, std::int64_t last) const;
  void map_tile(Team team, const Map& map, const std::vector<Panels<T>>& panels, const Tile& tile, const Block<T>& from,
                const T* in, const Block<T>& to, T* out, bool add) const;
  void product(Team team, Pass& pass, int k, const Tile& tile) const;
  void product_reverse(Team team, Pass& pass, int k, const Tile& tile) const;
  void enter_after_product(Team team, Pass& pass, int k) const;
  void leave_to_product(Team team, Pass& pass, int k) const;
  int tables_of_pairs() const { return by_pair_ ? n_species_ * n_species_ : 1; }
  int rows_of_splines() const { return tables_of_pairs() * intervals_; }
  SplineJob<T> job_of(const Pass& pass, const Section& section, std::int64_t first, std::int64_t last, T* messages) const;

  int n_species_, l_max_, intervals_;
  bool by_pair_ = false;
  bool by_species_ = false;  // some matrix is
  std::vector<double> cutoffs_, scales_, shifts_;
  Knots knots_;
  Repulsion repulsion_;
  std::vector<Layer> layers_;
  const T* species_table_ = nullptr;
  std::int64_t species_type_stride_ = 0, species_interval_stride_ = 0;
  std::array<std::int64_t, kMaxL + 1> species_table_start_{};
  std::vector<int> reached_;
  std::vector<Panels<T>> readout_, readout_reverse_;
  Tables<T> tables_;
  std::shared_ptr<ArenaPool> arenas_ = std::make_shared<ArenaPool>();
};

}  // namespace equipes
