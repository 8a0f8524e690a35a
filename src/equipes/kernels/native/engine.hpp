// The whole model: energies of atoms, their derivative by the edge vectors, and the gradient of any function of both.
//
// Four sweeps over the layers:
//   forward    features, energies
//   reverse    cotangents of the features, dE/dr of the edges (the force pass)
//   tangent    how features change when the edge vectors change in a direction v
//   dual       how the gradient of the energy by the parameters changes in that direction and with the atoms' weights:
//              the ε part of reverse on r + ε v, with cotangents (1 + ε c_i) of the energies
// With c and v the cotangents of energies and edge gradient, the last one is the gradient of the loss.
#pragma once

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>

#include "contraction.hpp"
#include "convolution.hpp"
#include "geometry.hpp"
#include "layout.hpp"
#include "network.hpp"
#include "plan.hpp"
#include "profile.hpp"

namespace equipes {

// A model as its layers state it; parameters follow in the order in which they are listed here.
struct LayerSpec {
  std::vector<Irrep> irreps_in;
  std::vector<int> radial_widths;  // hidden layers of the radial network
  std::vector<PathSpec> paths;
  std::vector<Irrep> messages;
  std::vector<Irrep> gate_in;  // united and sorted
  std::vector<Irrep> scalars, gated;  // what the gate puts out
  bool self_connection = false;

  // MACE's layers have a symmetric contraction in the place of the gate (engine_product.cpp). `out` is what they give; with
  // `residual` the species' matrices act on x and are added to that, otherwise they act on what is contracted.
  std::vector<Irrep> out;
  ContractionTable contraction;
  std::vector<int> contraction_rows;  // of each parameter with weights [n_species, rows, channels]
  bool residual = false;
  double density = 0;  // not 0: messages are divided by the density of neighbours and multiplied by this (engine_density.cpp)
  bool product() const { return !out.empty(); }
};

struct ModelSpec {
  int n_species = 0, n_features = 0, l_max = 0;  // n_features: of the first layer, the embedding of the species
  bool species_aware = true;  // self-connections have a matrix for each species, made of its embedding
  std::vector<double> cutoffs;  // [n_species, n_species] Å, by receiver and sender
  std::vector<double> norms;  // [n_species], of senders
  RadialBasis basis;  // without roots: they are a parameter
  int n_roots = 0;
  std::vector<LayerSpec> layers;
  std::vector<int> readout_widths;  // hidden layers of the readout
  Repulsion repulsion;
  double gain = 2.0;  // square of the factor of the activations in networks
  double species_fan_in = 1.0;  // of the species' matrices in MACE's layers, beside the channels
  int moments = 0;  // 1, -1: always or never do the first layer by moments; 0: where it is shorter
};

template <class T>
constexpr T kSiluScale = T(1.6791767923989418);
template <class T>
constexpr T kTanhScale = T(1.5937334472592695);

template <class T>
class Engine {
 public:
  explicit Engine(const ModelSpec& spec);

  struct Pass;
  struct Moments;
  struct Density;

  // Parameters: pointers in the model's order; scales, shifts and roots are float64, all others T. They must stay alive
  // and unchanged while the pass is in use. `gradient` is written if `differentiate` is set.
  std::unique_ptr<Pass> forward(int threads, const GraphArrays& graph, const std::vector<const void*>& parameters,
                                double* energies, double* gradient, bool differentiate) const;

  // Gradients of Σ c_i E_i + Σ v_e · gradient_e by the parameters, at the same places in `gradients`.
  void backward(int threads, Pass& pass, const double* energy_cotangent, const double* gradient_cotangent,
                const std::vector<void*>& gradients) const;

  // Number of elements of each parameter; those of the last three are float64.
  const std::vector<std::int64_t>& parameter_sizes() const { return sizes_; }

 private:
  // One matrix of a linear layer: from a block to a block.
  struct BlockWeight {
    int from, to;
    int weight;  // in weights_
  };

  // What the gate makes one block of its output of.
  struct GateOutput {
    enum Kind { kSilu, kTanh, kGated } kind;
    int source;  // block of its input
    int gate;  // first channel of the gates in the block of even scalars
  };

  // A block of the first layer's messages, and where its path's channels begin in the last radial layer; engine_moments.cpp.
  struct MomentBlock {
    int l, column;
    BlockWeight map;
  };

  struct Layer {
    Features<T> in, gate_in, out;
    Convolution<T> convolution;
    std::vector<BlockWeight> linear_1, linear_2, self_connection;
    Network<T> radial;
    std::vector<int> radial_weights;  // in weights_
    std::vector<GateOutput> gate;
    int scalars = -1;  // block of even scalars in gate_in
    std::vector<int> untouched;  // blocks of gate_in that linear_2 does not write
    std::vector<MomentBlock> moments;  // empty if its features are not scalars
    int density = -1;  // in weights_; -1: the layer has none
    double density_numerator = 1;

    bool product = false, residual = false;  // MACE's; `scalars` is then a block of out
    Features<T> m;  // what the contraction gives
    ContractionTable table;
    std::vector<int> contraction_weights;  // in weights_
    std::vector<BlockWeight> species_maps, linear_3;
    int readout = -1;  // in weights_; the last layer has none
  };

  // Where gradients go: of the weights to the caller's arrays or to padded copies; nullptr: not wanted.
  struct Gradients {
    std::vector<T*> weights;
    double *scales, *shifts, *roots;
    T* x_change[2];  // changes of the features' cotangents, of one layer and the next
  };

  // The weight's place in weights_, or -1 if it is idle.
  int add_weight(Channels<T> rows, Channels<T> columns, int matrices = 1, bool idle = false) {
    Weight<T> weight{int(sizes_.size()), std::move(rows), std::move(columns), matrices};
    sizes_.push_back(std::int64_t(weight.matrices) * weight.rows.count() * weight.columns.count());
    if (idle || weight.rows.partly_idle() || weight.columns.partly_idle()) idle_.push_back(weight.parameter);
    if (idle) return -1;
    weights_.push_back(std::move(weight));
    return int(weights_.size()) - 1;
  }
  Layer make_layer(const LayerSpec& stated);
  Channels<T> gate_channels(const LayerSpec& stated, const Irrep& irrep) const;
  void add_gate(const LayerSpec& stated, Layer& layer) const;
  std::vector<int> add_network(Network<T>& network, int n_in, const std::vector<int>& hidden, Channels<T> out);

  void linear(Team, const Pass&, const Layer&, const T* x, T* y, bool reverse) const;
  void mix(Team, const Pass&, const Layer&, const T* messages, T* z, bool reverse) const;
  void self_connect(Team, const Pass&, const Layer&, int k, const T* x, T* z, bool reverse) const;
  std::vector<SpeciesRange> ranges_of_norms(const Pass&) const;
  void make_species_matrices(Team, Pass&, int k) const;
  void linear_gradient(Team, const Pass&, int k, const std::vector<T*>& targets) const;
  void mix_gradient(Team, const Pass&, int k, const std::vector<T*>& targets) const;
  void self_connection_gradient(Team, const Pass&, int k, const std::vector<T*>& targets) const;
  void radial_forward(Team, Pass&, int k) const;
  void radial_backward(Team, Pass&, int k, const std::vector<T*>& targets, double* roots_gradient) const;
  void gate(Team, Pass&, int k) const;
  void gate_reverse(Team, Pass&, int k) const;
  void gate_tangent(Team, Pass&, int k) const;
  void gate_dual(Team, Pass&, int k, const T* cotangent, const std::vector<T*>& targets) const;
  void add_product(const LayerSpec& stated, Layer& layer, bool last);
  void prepare_product(Pass&, const Layer&, typename Pass::State&) const;
  void prepare_product_gradients(Pass&, const Layer&, typename Pass::State&, Arena&) const;
  void map_species(Team, const Pass&, const Layer&, const T* from, T* to, bool reverse) const;
  void map_species_gradient(Team, const Pass&, const Layer&, const T* x, const T* x_tangent, const T* cotangent,
                            const T* change, const std::vector<T*>& targets) const;
  void map_messages(Team, const Pass&, const Layer&, const T* from, T* to, bool reverse) const;
  void map_messages_gradient(Team, const Pass&, const Layer&, const typename Pass::State&, const T* cotangent,
                             const T* change, const std::vector<T*>& targets) const;
  template <class F>
  void contract(Team, const Pass&, const Layer&, const typename Pass::State&, F&& sweep) const;
  template <class U>
  std::vector<U*> contraction_rows(const Layer& layer, int type, const std::vector<U*>& arrays) const;
  void product_forward(Team, Pass&, int k) const;
  void product_reverse(Team, Pass&, int k) const;
  void product_tangent(Team, Pass&, int k) const;
  void product_dual(Team, Pass&, int k, const T* change, const std::vector<T*>& targets) const;
  void bypass_reverse(Team, Pass&, int k, const T* next, bool dual, T* to) const;
  double layer_readouts(const Pass&, std::int64_t n, bool tangent) const;
  void layer_readouts_gradient(Team, const Pass&, const std::vector<T*>& targets) const;
  void repulsion_scales_gradient(const Pass&, const double* energy_cotangent, double* scales) const;
  void messages_forward(Team, Pass&, int k) const;
  void messages_tangent(Team, Pass&, int k) const;
  void messages_reverse(Team, Pass&, int k) const;
  void messages_dual(Team, Pass&, int k, const std::vector<T*>& targets) const;
  void add_moments(Layer& layer) const;
  static bool by_moments(const Pass& pass, int k) { return k == 0 && pass.moments.on; }
  bool moments_are_shorter(const Plan& plan) const;
  void prepare_moments(Pass&) const;
  void prepare_moments_gradients(Pass&, Arena&) const;
  template <bool Tangent>
  void sum_moments(Team, const Pass&, const std::vector<T*>& targets) const;
  void spread_moments(Team, Pass&) const;
  void spread_moments_dual(Team, Pass&) const;
  void map_moments(Team, const Pass&, const std::vector<T*>& moments, T* z, bool reverse) const;
  void moments_forward(Team, Pass&) const;
  void moments_reverse(Team, Pass&) const;
  void moments_tangent(Team, Pass&) const;
  void moments_dual(Team, Pass&, const std::vector<T*>& targets) const;
  void split_joined_change(Team, Pass&, T* target) const;
  void prepare_density(const Pass&, Density&) const;
  void prepare_density_gradients(const Pass&, Density&, Arena&) const;
  void density_forward(Team, Pass&, int k) const;
  void density_reverse(Team, Pass&, int k) const;
  void density_tangent(Team, Pass&, int k) const;
  void density_dual(Team, Pass&, int k, const std::vector<T*>& targets) const;
  void density_gradient(const Pass&, int k, T* target) const;
  void read_out(Team, Pass&, double* energies) const;
  void read_out_dual(Team, Pass&, const double* energy_cotangent, const Gradients&) const;
  void reverse_readout(Team, Pass&, const std::vector<T*>& gradients, T* x_cotangent) const;
  void sweep_forward(Team, Pass&, const double* vectors, double* energies) const;
  void sweep_reverse(Team, Pass&) const;
  void differentiate_edges(Team, Pass&, double* energies, double* gradient) const;
  void set_direction(Team, Pass&, const double* direction) const;
  void sweep_tangent(Team, Pass&) const;
  void sweep_dual(Team, Pass&, const Gradients&) const;
  void prepare(Pass&, int threads, const std::vector<const void*>& parameters) const;
  void prepare_layer(Pass&, const Layer&, typename Pass::State&) const;
  Gradients prepare_gradients(Pass&, int threads, const std::vector<void*>& gradients, Arena&) const;

  int n_harmonics() const { return (spec_.l_max + 1) * (spec_.l_max + 1); }
  int n_attributes() const { return spec_.species_aware ? spec_.n_features : 1; }
  std::int64_t species_matrices_size(const Pass& pass, const Layer& layer, const BlockWeight& entry) const {
    return std::int64_t(pass.kinds.size()) * layer.in.blocks[entry.from].width() *
           layer.gate_in.blocks[entry.to].width();
  }

  // Of the linear map of the messages.
  T factor_of_map(const Layer& layer, const BlockWeight& entry) const {
    return T(1.0 / std::sqrt(double(layer.convolution.messages().blocks[entry.from].channels.count())));
  }
  void clear_untouched(Team team, const Pass& pass, const Layer& layer, T* z) const {
    for (int b : layer.untouched) {
      const auto [first, last] = team.share(pass.plan.atoms * layer.gate_in.blocks[b].size());
      T* data = layer.gate_in.blocks[b].of(z, pass.plan.atoms);
      std::fill(data + first, data + last, T(0));
    }
  }

  std::vector<Rows<T>> rows_of(const Features<T>& features, T* data, std::int64_t atoms) const {
    std::vector<Rows<T>> rows;
    for (const Block<T>& block : features.blocks)
      rows.push_back({block.of(data, atoms), block.size(), block.width()});
    return rows;
  }

  ModelSpec spec_;
  std::vector<Layer> layers_;
  Network<T> readout_;
  std::vector<int> readout_weights_;
  int embedding_ = 0;
  std::vector<Weight<T>> weights_;
  std::vector<std::int64_t> sizes_;
  std::vector<int> idle_;  // parameters of which some or all elements cannot change the energy
  std::vector<int> partial_;  // weights of which a sweep writes those of the species that occur
  int scales_ = 0, shifts_ = 0, roots_ = 0;  // parameters
  std::shared_ptr<ArenaPool> arenas_ = std::make_shared<ArenaPool>();
};

// What there is of the first layer's moments; a vector has an entry for each block of messages.
template <class T>
struct Engine<T>::Moments {
  bool on = false;  // whether the first layer is done by moments
  int depth = 0;  // of h
  std::int64_t width = 0;  // species that occur · depth
  std::vector<std::int32_t> kind;  // [edges] the sender's species, counting those that occur
  std::vector<std::int32_t> order;  // edges by receiver and kind
  std::vector<std::int64_t> start;  // [atoms · kinds + 1] where they begin
  std::vector<std::int32_t> edges;  // [pairs, 2] the edges that share a row of h; -1: no second
  std::vector<T*> values, cotangents, tangents, changes;  // B and the like, [atoms, 2l + 1, width]
  std::vector<T*> joined, joined_changes;  // W y_s, [width, channels]
  std::vector<T*> maps, map_changes;  // V, [width, channels of z]
};

// Of the densities of one layer: t, dt/dq, d²t/dq² and dq/dr by pair; s, the cotangent of D, its change and the change of s
// by atom.
template <class T>
struct Engine<T>::Density {
  double *value, *by_q, *by_q_twice, *q_slope;
  double *scale, *cotangent, *change, *scale_tangent;
};

// What a forward sweep leaves for the backward one.
template <class T>
struct Engine<T>::Pass {
  // What the sweeps leave behind in a layer. Names: x -> linear_1 -> y -> messages -> linear_2, self-connection -> z
  // -> gate -> x of the next layer.
  struct State {
    T *x, *y, *messages, *z;
    T *activation, *slope, *curvature;  // of the even scalars: c silu(z) and its derivatives
    T *odd_slope = nullptr, *odd_curvature = nullptr;  // of the odd scalars: c tanh(z)
    typename Network<T>::State radial;
    std::vector<WeightTile<T>> tiles;  // radial weights, each [pairs, 2, channels]: w and dw/dr
    std::vector<T*> species_matrices, species_changes;  // of the self-connection, [kinds, rows, columns]
    T *x_cotangent, *y_cotangent, *messages_cotangent, *z_cotangent;  // of the energy
    T *x_tangent, *y_tangent, *messages_tangent, *z_tangent;
    T *x_change, *y_change, *messages_change, *z_change;  // how the cotangents change
    // Of MACE's layers: z or what the species' matrices make of it, what the contraction makes of that, and the
    // contraction's coefficients, [species, coefficients, channels].
    T *a, *m, *coefficients;
    T *a_cotangent, *m_cotangent, *a_tangent, *m_tangent, *a_change, *m_change, *coefficients_change;
    Density density;
  };

  Pass(const GraphArrays& graph, const ModelSpec& spec) : plan(graph, spec.n_species, spec.cutoffs) {
    types.assign(graph.types, graph.types + graph.atoms);
    type_at.resize(graph.atoms);
    for (std::int64_t i = 0; i < graph.atoms; ++i) type_at[plan.place[i]] = int(types[i]);
  }

  Plan plan;
  Moments moments;
  std::vector<std::int64_t> types;
  std::vector<int> type_at;  // by place
  std::shared_ptr<Arena> arena;
  Geometry geometry;
  Neighbours<T> edges;
  RadialBasis basis;
  T* basis_rows;
  T* harmonics;
  std::vector<const T*> values;  // of the weights
  const double *scales, *shifts;
  std::vector<SpeciesRange> kinds;  // atoms that share a self-connection: those of each species, or all
  T* attributes;  // what the self-connections of these are made of: embeddings, or 1; [kinds, attributes]
  std::vector<State> layers;  // one more than the model has: the last holds what the readout takes
  typename Network<T>::State readout;
  T* readout_cotangent;
  std::vector<double> readout_energy;  // by place
  T* scratch;
  T *harmonics_tangent, *length_tangent;
  T *hidden_change, *basis_change;  // changes of the radial networks' cotangents
  T *harmonics_cotangent, *length_cotangent;
  std::vector<T*> private_features, private_edges, private_gradients, private_hidden;  // of threads after the first
  std::vector<T*> w_change;  // of each thread: changes of the radial weights' cotangents in one job
  std::int64_t edge_numbers;  // elements of harmonics_cotangent and length_cotangent together
  const double* energy_cotangent = nullptr;
  bool reversed = false;
};

}  // namespace equipes
