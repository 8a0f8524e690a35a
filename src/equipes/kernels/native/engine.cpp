#include "engine.hpp"

#include <cmath>

namespace equipes {

namespace {

template <class T>
void clear(Team team, T* data, std::int64_t n) {
  const auto [first, last] = team.share(n);
  std::fill(data + first, data + last, T(0));
}

// data += Σ_threads extra, in the order of the threads.
template <class T>
void gather(Team team, T* data, const std::vector<T*>& extra, std::int64_t n) {
  const auto [first, last] = team.share(n);
  for (int r = 0; r + 1 < team.size; ++r)
    for (std::int64_t i = first; i < last; ++i) data[i] += extra[r][i];
}

template <class V>
std::vector<V> pick(const std::vector<V>& from, const std::vector<int>& indices) {
  std::vector<V> result;
  for (int index : indices) result.push_back(from[index]);
  return result;
}

int group_size(const std::vector<Irrep>& irreps, int l, int p) {
  for (const Irrep& irrep : irreps)
    if (irrep.l == l && irrep.p == p) return irrep.multiplicity;
  return 0;
}

bool contains(const std::vector<Irrep>& irreps, const Irrep& kind) {
  return std::any_of(irreps.begin(), irreps.end(), [&](const Irrep& irrep) { return irrep.same_kind(kind); });
}

// Marks what cannot reach the energy. The last layer makes scalars only, of which features with p = -(-1)^l know nothing;
// so these need not be made in the layer before, nor what only they would have needed.
void mark_idle(std::vector<LayerSpec>& layers) {
  if (layers.back().product()) return;  // a contraction makes scalars of everything
  std::vector<Irrep> wanted = layers.back().scalars;
  for (std::size_t k = layers.size(); k-- > 0;) {
    LayerSpec& layer = layers[k];
    const auto mark = [](std::vector<Irrep>& irreps, const std::vector<Irrep>& used) {
      for (Irrep& irrep : irreps) irrep.idle = !contains(used, irrep);
    };
    mark(layer.scalars, wanted);
    mark(layer.gated, wanted);
    wanted.push_back({0, 0, 1});  // even scalars hold the gates
    mark(layer.gate_in, wanted);
    mark(layer.messages, wanted);
    std::vector<Irrep> used;
    for (PathSpec& path : layer.paths) {
      path.idle = !contains(wanted, {0, path.l3, path.p3});
      if (!path.idle) used.push_back(layer.irreps_in[path.block]);
    }
    if (layer.self_connection)
      for (const Irrep& irrep : layer.irreps_in)
        if (contains(wanted, irrep)) used.push_back(irrep);
    mark(layer.irreps_in, used);
    wanted = std::move(used);
  }
}

std::vector<Irrep> busy(const std::vector<Irrep>& irreps) {
  std::vector<Irrep> result;
  std::copy_if(irreps.begin(), irreps.end(), std::back_inserter(result), [](const Irrep& irrep) { return !irrep.idle; });
  return result;
}

// Paths that are not idle, with the blocks that they come from counted among those that are not.
std::vector<PathSpec> busy_paths(const LayerSpec& layer) {
  std::vector<PathSpec> result;
  for (PathSpec path : layer.paths) {
    if (path.idle) continue;
    path.block = int(std::count_if(layer.irreps_in.begin(), layer.irreps_in.begin() + path.block,
                                   [](const Irrep& irrep) { return !irrep.idle; }));
    result.push_back(path);
  }
  return result;
}

}  // namespace

// ---- Construction

template <class T>
std::vector<int> Engine<T>::add_network(Network<T>& network, int n_in, const std::vector<int>& hidden,
                                        Channels<T> out) {
  std::vector<int> indices;
  Channels<T> rows({n_in});
  for (std::size_t k = 0; k <= hidden.size(); ++k) {
    Channels<T> columns = k < hidden.size() ? Channels<T>({hidden[k]}) : out;
    indices.push_back(add_weight(rows, columns));
    network.weights.push_back(weights_.back());
    rows = columns;
  }
  return indices;
}

// Parameters of idle features are counted, so that those after them are found; their gradients are zero.
template <class T>
typename Engine<T>::Layer Engine<T>::make_layer(const LayerSpec& stated) {
  Layer layer;
  for (const Irrep& irrep : busy(stated.irreps_in)) layer.in.add(irrep, Channels<T>({irrep.multiplicity}));
  layer.convolution = Convolution<T>(busy(stated.irreps_in), busy_paths(stated), busy(stated.messages));
  layer.radial.gain = spec_.gain;
  if (stated.product())
    for (const Irrep& irrep : stated.gate_in) layer.gate_in.add(irrep, Channels<T>({irrep.multiplicity}));
  else
    add_gate(stated, layer);

  for (const Irrep& irrep : stated.irreps_in) {
    const int block = layer.in.find(irrep);
    const Channels<T> channels({irrep.multiplicity});
    const int weight = add_weight(channels, channels, 1, irrep.idle);
    if (!irrep.idle) layer.linear_1.push_back({block, block, weight});
  }
  std::vector<int> path_sizes;
  std::vector<bool> path_idle;
  for (const PathSpec& path : stated.paths) {
    path_sizes.push_back(stated.irreps_in[path.block].multiplicity);
    path_idle.push_back(path.idle);
  }
  layer.radial_weights =
      add_network(layer.radial, spec_.n_roots, stated.radial_widths, Channels<T>(path_sizes, path_idle));
  if (stated.density != 0) {
    if (!stated.product()) throw std::invalid_argument("only layers with a product know densities");
    layer.density = add_weight(Channels<T>::dense(1), Channels<T>({spec_.n_roots}));
    layer.density_numerator = stated.density;
  }
  for (const Irrep& irrep : stated.gate_in) {
    const int to = layer.gate_in.find(irrep), from = layer.convolution.messages().find(irrep);
    const Channels<T> columns = gate_channels(stated, irrep);
    if (irrep.idle) {
      std::vector<int> rows;
      for (const PathSpec& path : stated.paths)
        if (path.l3 == irrep.l && path.p3 == irrep.p) rows.push_back(stated.irreps_in[path.block].multiplicity);
      if (!rows.empty()) add_weight(Channels<T>(rows), columns, 1, true);
    } else if (from < 0) {
      layer.untouched.push_back(to);
    } else {
      layer.linear_2.push_back(
          {from, to, add_weight(layer.convolution.messages().blocks[from].channels, columns)});
    }
  }
  if (stated.self_connection)
    for (const Irrep& irrep : stated.gate_in)
      for (const Irrep& source : stated.irreps_in) {
        if (!source.same_kind(irrep)) continue;
        const int weight = add_weight(Channels<T>::dense(n_attributes()), gate_channels(stated, irrep),
                                      source.multiplicity, irrep.idle);
        if (!irrep.idle) layer.self_connection.push_back({layer.in.find(irrep), layer.gate_in.find(irrep), weight});
      }
  if (stated.product()) add_product(stated, layer, &stated == &spec_.layers.back());
  if (&stated == &spec_.layers.front()) add_moments(layer);
  return layer;
}

// Even scalars hold the gates of the other features beside themselves.
template <class T>
Channels<T> Engine<T>::gate_channels(const LayerSpec& stated, const Irrep& irrep) const {
  if (stated.product()) return Channels<T>({irrep.multiplicity});
  std::vector<int> groups = {irrep.multiplicity};
  std::vector<bool> idle = {irrep.idle};
  if (irrep.l == 0 && irrep.p == 1) {
    groups = {group_size(stated.scalars, 0, 1)};
    idle = {false};
    for (const Irrep& gated : stated.gated) {
      groups.push_back(gated.multiplicity);
      idle.push_back(gated.idle);
    }
  }
  return Channels<T>(groups, idle);
}

template <class T>
void Engine<T>::add_gate(const LayerSpec& stated, Layer& layer) const {
  for (const Irrep& irrep : busy(stated.gate_in)) layer.gate_in.add(irrep, gate_channels(stated, irrep));
  layer.scalars = layer.gate_in.find({0, 0, 1});
  for (const Irrep& irrep : busy(stated.scalars)) {
    layer.out.add(irrep, Channels<T>({irrep.multiplicity}));
    layer.gate.push_back({irrep.p == 1 ? GateOutput::kSilu : GateOutput::kTanh, layer.gate_in.find(irrep), 0});
  }
  const std::vector<Irrep> gated = busy(stated.gated);
  for (std::size_t g = 0; g < gated.size(); ++g) {
    layer.out.add(gated[g], Channels<T>({gated[g].multiplicity}));
    const int gate = layer.gate_in.blocks[layer.scalars].channels.start(int(g) + 1);
    layer.gate.push_back({GateOutput::kGated, layer.gate_in.find(gated[g]), gate});
  }
}

template <class T>
Engine<T>::Engine(const ModelSpec& spec) : spec_(spec) {
  if (spec.l_max > kMaxL) throw std::invalid_argument("l_max is too large for the native kernels");
  mark_idle(spec_.layers);
  embedding_ = add_weight(Channels<T>::dense(spec.n_species), Channels<T>({spec.n_features}));
  for (const LayerSpec& stated : spec_.layers) layers_.push_back(make_layer(stated));
  const Features<T>& last = layers_.back().out;
  if (last.blocks.size() != 1 || last.blocks[0].irrep.l != 0)
    throw std::invalid_argument("the last layer must give even scalars only");
  readout_.gain = spec.gain;
  readout_weights_ =
      add_network(readout_, last.blocks[0].channels.count(), spec.readout_widths, Channels<T>(std::vector<int>{1}));
  scales_ = int(sizes_.size());
  shifts_ = scales_ + 1;
  roots_ = scales_ + 2;
  sizes_.insert(sizes_.end(), {spec.n_species, spec.n_species, spec.n_roots});
}

// ---- Linear layers

// Atoms that share a norm: all of them, or those of each species.
template <class T>
std::vector<SpeciesRange> Engine<T>::ranges_of_norms(const Pass& pass) const {
  for (double norm : spec_.norms)
    if (norm != spec_.norms[0]) return pass.plan.species;
  return {{0, 0, pass.plan.atoms}};
}

// y = x W norm / √channels, norm that of the atom's species; or, in reverse, the cotangent of x (in y) from that of y.
template <class T>
void Engine<T>::linear(Team team, const Pass& pass, const Layer& layer, const T* x, T* y, bool reverse) const {
  const Timer timer(team, Routine::kLinear);
  const std::vector<SpeciesRange> ranges = ranges_of_norms(pass);
  for (const BlockWeight& entry : layer.linear_1) {
    const Block<T>& block = layer.in.blocks[entry.from];
    const int width = block.width();
    const Matrix<T> weight{pass.values[entry.weight], width};
    count_operations(team, Routine::kLinear, 2.0 * pass.plan.atoms * block.components() * width * width);
    for (const SpeciesRange& range : ranges) {
      const T factor = T(spec_.norms[range.type] / std::sqrt(double(block.channels.count())));
      const std::int64_t start = range.first * block.size(), rows = (range.last - range.first) * block.components();
      multiply<T>(team, rows, width, width, {block.of(x, pass.plan.atoms) + start, width},
                  reverse ? weight.transposed() : weight, block.of(y, pass.plan.atoms) + start, width, false, factor);
    }
  }
}

// z = messages W / √channels; or, in reverse, the cotangent of the messages (in z) from that of z (in messages).
template <class T>
void Engine<T>::mix(Team team, const Pass& pass, const Layer& layer, const T* from, T* to, bool reverse) const {
  const Timer timer(team, Routine::kLinear);
  const std::int64_t atoms = pass.plan.atoms;
  for (const BlockWeight& entry : layer.linear_2) {
    const Block<T>& in = layer.convolution.messages().blocks[entry.from];
    const Block<T>& out = layer.gate_in.blocks[entry.to];
    const Matrix<T> weight{pass.values[entry.weight], out.width()};
    const T factor = factor_of_map(layer, entry);
    const std::int64_t rows = atoms * in.components();
    count_operations(team, Routine::kLinear, 2.0 * rows * in.width() * out.width());
    if (reverse)
      multiply<T>(team, rows, in.width(), out.width(), {out.of(from, atoms), out.width()}, weight.transposed(),
                  in.of(to, atoms), in.width(), false, factor);
    else
      multiply<T>(team, rows, out.width(), in.width(), {in.of(from, atoms), in.width()}, weight, out.of(to, atoms),
                  out.width(), false, factor);
  }
  if (!reverse) clear_untouched(team, pass, layer, to);
}

// z += x W_species; or, in reverse, the cotangent of x (in z) += that of z (in x) W_speciesᵀ.
template <class T>
void Engine<T>::self_connect(Team team, const Pass& pass, const Layer& layer, int k, const T* from, T* to,
                             bool reverse) const {
  const Timer timer(team, Routine::kSelfConnection);
  const std::int64_t atoms = pass.plan.atoms;
  for (std::size_t c = 0; c < layer.self_connection.size(); ++c) {
    const BlockWeight& entry = layer.self_connection[c];
    const Block<T>& in = layer.in.blocks[entry.from];
    const Block<T>& out = layer.gate_in.blocks[entry.to];
    count_operations(team, Routine::kSelfConnection, 2.0 * atoms * in.components() * in.width() * out.width());
    for (std::size_t s = 0; s < pass.kinds.size(); ++s) {
      const SpeciesRange& range = pass.kinds[s];
      const Matrix<T> weight{pass.layers[k].species_matrices[c] + s * in.width() * out.width(), out.width()};
      const std::int64_t rows = (range.last - range.first) * in.components();
      const std::int64_t at_in = range.first * in.size(), at_out = range.first * out.size();
      if (reverse)
        multiply<T>(team, rows, in.width(), out.width(), {out.of(from, atoms) + at_out, out.width()},
                    weight.transposed(), in.of(to, atoms) + at_in, in.width(), true, T(1));
      else
        multiply<T>(team, rows, out.width(), in.width(), {in.of(from, atoms) + at_in, in.width()}, weight,
                    out.of(to, atoms) + at_out, out.width(), true, T(1));
    }
  }
}

// W_species[u, w] = Σ_v a_species[v] W[u, v, w] / √(channels · attributes); without species there is one, a = 1
template <class T>
void Engine<T>::make_species_matrices(Team team, Pass& pass, int k) const {
  const Timer timer(team, Routine::kSpeciesMatrices);
  const Layer& layer = layers_[k];
  const std::int64_t n_kinds = std::int64_t(pass.kinds.size());
  const int depth = Channels<T>::padded(n_attributes());
  for (std::size_t c = 0; c < layer.self_connection.size(); ++c) {
    const BlockWeight& entry = layer.self_connection[c];
    const Block<T>& in = layer.in.blocks[entry.from];
    const int width = layer.gate_in.blocks[entry.to].width();
    const std::int64_t stride = std::int64_t(in.width()) * width;
    const T factor = T(1.0 / std::sqrt(double(in.channels.count()) * n_attributes()));
    const auto [first, last] = team.share(in.width());
    for (std::int64_t u = first; u < last; ++u) {
      T* target = pass.layers[k].species_matrices[c] + u * width;
      if (u < in.channels.count())
        multiply<T>(Team{}, n_kinds, width, n_attributes(), {pass.attributes, depth},
                    {pass.values[entry.weight] + u * weights_[entry.weight].matrix_size(), width}, target, stride, false,
                    factor);
      else
        for (std::int64_t s = 0; s < n_kinds; ++s) std::fill_n(target + s * stride, width, T(0));
    }
    count_operations(team, Routine::kSpeciesMatrices, 2.0 * in.channels.count() * n_attributes() * width * n_kinds);
  }
}

// ---- Gradients of the linear layers: xᵀ (change of the cotangent) + (tangent of x)ᵀ cotangent

template <class T>
void Engine<T>::linear_gradient(Team team, const Pass& pass, int k, const std::vector<T*>& targets) const {
  const Timer timer(team, Routine::kLinearGradient);
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  const std::vector<SpeciesRange> ranges = ranges_of_norms(pass);
  for (const BlockWeight& entry : layer.linear_1) {
    const Block<T>& block = layer.in.blocks[entry.from];
    const int width = block.width();
    T* target = targets[entry.weight];
    for (const SpeciesRange& range : ranges) {
      const T norm = T(spec_.norms[range.type] / std::sqrt(double(block.channels.count())));
      const std::int64_t start = range.first * block.size(), rows = (range.last - range.first) * block.components();
      multiply<T>(team, width, width, rows, Matrix<T>{block.of(state.x, atoms) + start, width}.transposed(),
                  {block.of(state.y_change, atoms) + start, width}, target, width, &range != &ranges[0], norm);
      if (k > 0)  // the first features do not change
        multiply<T>(team, width, width, rows, Matrix<T>{block.of(state.x_tangent, atoms) + start, width}.transposed(),
                    {block.of(state.y_cotangent, atoms) + start, width}, target, width, true, norm);
    }
    count_operations(team, Routine::kLinearGradient,
                     (k > 0 ? 4.0 : 2.0) * atoms * block.components() * width * width);
  }
}

template <class T>
void Engine<T>::mix_gradient(Team team, const Pass& pass, int k, const std::vector<T*>& targets) const {
  const Timer timer(team, Routine::kLinearGradient);
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  for (const BlockWeight& entry : layer.linear_2) {
    const Block<T>& in = layer.convolution.messages().blocks[entry.from];
    const Block<T>& out = layer.gate_in.blocks[entry.to];
    const T norm = factor_of_map(layer, entry);
    const std::int64_t rows = atoms * in.components();
    T* target = targets[entry.weight];
    multiply<T>(team, in.width(), out.width(), rows, Matrix<T>{in.of(state.messages, atoms), in.width()}.transposed(),
                {out.of(state.z_change, atoms), out.width()}, target, out.width(), false, norm);
    multiply<T>(team, in.width(), out.width(), rows,
                Matrix<T>{in.of(state.messages_tangent, atoms), in.width()}.transposed(),
                {out.of(state.z_cotangent, atoms), out.width()}, target, out.width(), true, norm);
    count_operations(team, Routine::kLinearGradient, 4.0 * rows * in.width() * out.width());
  }
}

// First by the matrices of the species, then by what these are made of.
template <class T>
void Engine<T>::self_connection_gradient(Team team, const Pass& pass, int k, const std::vector<T*>& targets) const {
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  const std::vector<SpeciesRange>& species = pass.kinds;
  {
    const Timer timer(team, Routine::kSelfConnectionGradient);
    for (std::size_t c = 0; c < layer.self_connection.size(); ++c) {
      const BlockWeight& entry = layer.self_connection[c];
      const Block<T>& in = layer.in.blocks[entry.from];
      const Block<T>& out = layer.gate_in.blocks[entry.to];
      for (std::size_t s = 0; s < species.size(); ++s) {
        const std::int64_t rows = (species[s].last - species[s].first) * in.components();
        const std::int64_t at_in = species[s].first * in.size(), at_out = species[s].first * out.size();
        T* target = state.species_changes[c] + s * in.width() * out.width();
        multiply<T>(team, in.width(), out.width(), rows,
                    Matrix<T>{in.of(state.x, atoms) + at_in, in.width()}.transposed(),
                    {out.of(state.z_change, atoms) + at_out, out.width()}, target, out.width(), false, T(1));
        multiply<T>(team, in.width(), out.width(), rows,
                    Matrix<T>{in.of(state.x_tangent, atoms) + at_in, in.width()}.transposed(),
                    {out.of(state.z_cotangent, atoms) + at_out, out.width()}, target, out.width(), true, T(1));
      }
      count_operations(team, Routine::kSelfConnectionGradient, 4.0 * atoms * in.components() * in.width() * out.width());
    }
  }
  team.wait();
  const Timer timer(team, Routine::kSpeciesMatrices);
  const int depth = Channels<T>::padded(n_attributes());
  for (std::size_t c = 0; c < layer.self_connection.size(); ++c) {
    const BlockWeight& entry = layer.self_connection[c];
    const Block<T>& in = layer.in.blocks[entry.from];
    const int width = layer.gate_in.blocks[entry.to].width(), channels = in.channels.count();
    const Weight<T>& cube = weights_[entry.weight];
    const T norm = T(1.0 / std::sqrt(double(channels) * n_attributes()));
    const std::int64_t size = std::int64_t(in.width()) * width;
    const auto [first_row, last_row] = team.share(channels);
    for (std::int64_t u = first_row; u < last_row; ++u)
      multiply<T>(Team{}, n_attributes(), width, species.size(),
                  Matrix<T>{pass.attributes, depth}.transposed(), {state.species_changes[c] + u * width, size},
                  targets[entry.weight] + u * cube.matrix_size(), width, false, norm);
    count_operations(team, Routine::kSpeciesMatrices, 4.0 * channels * n_attributes() * width * species.size());
    if (!spec_.species_aware) continue;
    const auto [first, last] = team.share(n_attributes());
    for (std::int64_t v = first; v < last; ++v)
      for (std::size_t s = 0; s < species.size(); ++s) {
        Vector<T> total{};
        for (int u = 0; u < channels; ++u) {
          const T* matrix = pass.values[entry.weight] + u * cube.matrix_size() + v * width;
          const T* change = state.species_changes[c] + s * size + u * width;
          for (int w = 0; w < width; w += kLanes<T>) total += load(matrix + w) * load(change + w);
        }
        targets[embedding_][species[s].type * depth + v] += sum<T>(total) * norm;
      }
  }
}

// ---- Radial network

// All but the last layer, whose results are made when message passing needs them.
template <class T>
void Engine<T>::radial_forward(Team team, Pass& pass, int k) const {
  const Timer timer(team, Routine::kRadialForward);
  const Network<T>& network = layers_[k].radial;
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t rows = 2 * pass.plan.pairs;
  const std::vector<const T*> values = pick(pass.values, layers_[k].radial_weights);
  network.hidden(team, state.radial, values);
  for (const Weight<T>& weight : network.weights)
    if (!by_moments(pass, k) || &weight != &network.weights.back())
      count_operations(team, Routine::kRadialForward, 2.0 * rows * weight.rows.width() * weight.columns.width());
}

// From the changes of the last layer's cotangents, which message passing left, to the gradient of the network.
template <class T>
void Engine<T>::radial_backward(Team team, Pass& pass, int k, const std::vector<T*>& targets,
                                double* roots_gradient) const {
  const Timer timer(team, Routine::kRadialBackward);
  const Network<T>& network = layers_[k].radial;
  network.reverse_hidden(team, pass.layers[k].radial, pick(pass.values, layers_[k].radial_weights), pass.hidden_change,
                         pick(targets, layers_[k].radial_weights), pass.basis_change);
  if (roots_gradient != nullptr && team.rank == 0)
    pass.basis.roots_gradient(pass.plan, Channels<T>::padded(spec_.n_roots),
                              network.last() > 0 ? pass.basis_change : pass.hidden_change, roots_gradient);
  for (const Weight<T>& weight : network.weights)
    if (!by_moments(pass, k) || &weight != &network.weights.back())
      count_operations(team, Routine::kRadialBackward,
                       8.0 * pass.plan.pairs * weight.rows.width() * weight.columns.width());
}

// ---- Gate

template <class T>
void Engine<T>::gate(Team team, Pass& pass, int k) const {
  if (layers_[k].product) return product_forward(team, pass, k);
  const Timer timer(team, Routine::kGate);
  const Layer& layer = layers_[k];
  typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  const auto [first, last] = team.share(atoms);
  const Block<T>& scalars = layer.gate_in.blocks[layer.scalars];
  const int n_scalars = scalars.width();
  const T* z = scalars.of(state.z, atoms);
  for (std::int64_t i = first * n_scalars; i < last * n_scalars; i += kLanes<T>) {
    const Silu<T> silu(load(z + i));
    store<T>(state.activation + i, silu.value * kSiluScale<T>);
    store<T>(state.slope + i, silu.slope * kSiluScale<T>);
    store<T>(state.curvature + i, silu.curvature * kSiluScale<T>);
  }
  for (std::size_t b = 0; b < layer.gate.size(); ++b) {
    const GateOutput& output = layer.gate[b];
    const Block<T>& block = layer.out.blocks[b];
    const Block<T>& source = layer.gate_in.blocks[output.source];
    const T* in = source.of(state.z, atoms);
    T* out = block.of(pass.layers[k + 1].x, atoms);
    const int width = block.width();
    for (std::int64_t n = first; n < last; ++n) {
      if (output.kind == GateOutput::kSilu) {
        std::copy_n(state.activation + n * n_scalars, width, out + n * width);
      } else if (output.kind == GateOutput::kTanh) {
        for (std::int64_t i = n * width; i < (n + 1) * width; ++i) {
          const T t = std::tanh(in[i]);
          out[i] = kTanhScale<T> * t;
          state.odd_slope[i] = kTanhScale<T> * (1 - t * t);
          state.odd_curvature[i] = -2 * t * state.odd_slope[i];
        }
      } else {
        const T* gates = state.activation + n * n_scalars + output.gate;
        for (int m = 0; m < block.components(); ++m)
          for (int u = 0; u < width; u += kLanes<T>) {
            const std::int64_t i = (n * block.components() + m) * width + u;
            store<T>(out + i, load(in + i) * load(gates + u));
          }
      }
    }
  }
}

template <class T>
void Engine<T>::gate_reverse(Team team, Pass& pass, int k) const {
  if (layers_[k].product) return product_reverse(team, pass, k);
  const Timer timer(team, Routine::kGate);
  const Layer& layer = layers_[k];
  typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  const auto [first, last] = team.share(atoms);
  const Block<T>& scalars = layer.gate_in.blocks[layer.scalars];
  const int n_scalars = scalars.width();
  T* scalar_cotangent = scalars.of(state.z_cotangent, atoms);
  for (std::size_t b = 0; b < layer.gate.size(); ++b) {
    const GateOutput& output = layer.gate[b];
    const Block<T>& block = layer.out.blocks[b];
    const Block<T>& source = layer.gate_in.blocks[output.source];
    const T* z = source.of(state.z, atoms);
    const T* g = block.of(pass.layers[k + 1].x_cotangent, atoms);
    T* cotangent = source.of(state.z_cotangent, atoms);
    const int width = block.width();
    for (std::int64_t n = first; n < last; ++n)
      for (int u = 0; u < width; u += kLanes<T>) {
        const std::int64_t i = n * width + u, at_scalar = n * n_scalars + output.gate + u;
        if (output.kind == GateOutput::kSilu) {
          store<T>(cotangent + n * n_scalars + u, load(g + i) * load(state.slope + at_scalar));
        } else if (output.kind == GateOutput::kTanh) {
          store<T>(cotangent + i, load(g + i) * load(state.odd_slope + i));
        } else {
          const Vector<T> gate = load(state.activation + at_scalar);
          Vector<T> sum{};
          for (int m = 0; m < block.components(); ++m) {
            const std::int64_t at = (n * block.components() + m) * width + u;
            store<T>(cotangent + at, load(g + at) * gate);
            sum += load(g + at) * load(z + at);
          }
          store<T>(scalar_cotangent + at_scalar, sum * load(state.slope + at_scalar));
        }
      }
  }
}

template <class T>
void Engine<T>::gate_tangent(Team team, Pass& pass, int k) const {
  if (layers_[k].product) return product_tangent(team, pass, k);
  const Timer timer(team, Routine::kGate);
  const Layer& layer = layers_[k];
  typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  const auto [first, last] = team.share(atoms);
  const Block<T>& scalars = layer.gate_in.blocks[layer.scalars];
  const int n_scalars = scalars.width();
  const T* scalar_tangent = scalars.of(state.z_tangent, atoms);
  for (std::size_t b = 0; b < layer.gate.size(); ++b) {
    const GateOutput& output = layer.gate[b];
    const Block<T>& block = layer.out.blocks[b];
    const Block<T>& source = layer.gate_in.blocks[output.source];
    const T* z = source.of(state.z, atoms);
    const T* tangent = source.of(state.z_tangent, atoms);
    T* out = block.of(pass.layers[k + 1].x_tangent, atoms);
    const int width = block.width();
    for (std::int64_t n = first; n < last; ++n)
      for (int u = 0; u < width; u += kLanes<T>) {
        const std::int64_t i = n * width + u, at_scalar = n * n_scalars + output.gate + u;
        if (output.kind == GateOutput::kSilu) {
          store<T>(out + i, load(tangent + n * n_scalars + u) * load(state.slope + at_scalar));
        } else if (output.kind == GateOutput::kTanh) {
          store<T>(out + i, load(tangent + i) * load(state.odd_slope + i));
        } else {
          const Vector<T> gate = load(state.activation + at_scalar);
          const Vector<T> change = load(state.slope + at_scalar) * load(scalar_tangent + at_scalar);
          for (int m = 0; m < block.components(); ++m) {
            const std::int64_t at = (n * block.components() + m) * width + u;
            store<T>(out + at, load(tangent + at) * gate + load(z + at) * change);
          }
        }
      }
  }
}

template <class T>
void Engine<T>::gate_dual(Team team, Pass& pass, int k, const T* change, const std::vector<T*>& targets) const {
  if (layers_[k].product) return product_dual(team, pass, k, change, targets);
  const Timer timer(team, Routine::kGate);
  const Layer& layer = layers_[k];
  typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  const auto [first, last] = team.share(atoms);
  const Block<T>& scalars = layer.gate_in.blocks[layer.scalars];
  const int n_scalars = scalars.width();
  const T* scalar_tangent = scalars.of(state.z_tangent, atoms);
  T* scalar_change = scalars.of(state.z_change, atoms);
  for (std::size_t b = 0; b < layer.gate.size(); ++b) {
    const GateOutput& output = layer.gate[b];
    const Block<T>& block = layer.out.blocks[b];
    const Block<T>& source = layer.gate_in.blocks[output.source];
    const T* z = source.of(state.z, atoms);
    const T* tangent = source.of(state.z_tangent, atoms);
    const T* g = block.of(pass.layers[k + 1].x_cotangent, atoms);
    const T* f = block.of(change, atoms);
    T* result = source.of(state.z_change, atoms);
    const int width = block.width();
    for (std::int64_t n = first; n < last; ++n)
      for (int u = 0; u < width; u += kLanes<T>) {
        const std::int64_t i = n * width + u, at_scalar = n * n_scalars + output.gate + u;
        const Vector<T> slope = load(state.slope + at_scalar), curvature = load(state.curvature + at_scalar);
        const Vector<T> scalar = load(scalar_tangent + at_scalar);
        if (output.kind == GateOutput::kSilu) {
          store<T>(result + n * n_scalars + u, load(f + i) * slope + load(g + i) * curvature * scalar);
        } else if (output.kind == GateOutput::kTanh) {
          store<T>(result + i, load(f + i) * load(state.odd_slope + i) +
                                   load(g + i) * load(state.odd_curvature + i) * load(tangent + i));
        } else {
          const Vector<T> gate = load(state.activation + at_scalar), gate_change = slope * scalar;
          Vector<T> sum{}, sum_change{};
          for (int m = 0; m < block.components(); ++m) {
            const std::int64_t at = (n * block.components() + m) * width + u;
            const Vector<T> gs = load(g + at), fs = load(f + at), zs = load(z + at);
            store<T>(result + at, fs * gate + gs * gate_change);
            sum += gs * zs;
            sum_change += fs * zs + gs * load(tangent + at);
          }
          store<T>(scalar_change + at_scalar, sum_change * slope + sum * curvature * scalar);
        }
      }
  }
}

// ---- Messages

// Radial weights are made job by job, just before they are first read.
template <class T>
void Engine<T>::messages_forward(Team team, Pass& pass, int k) const {
  const Timer timer(team, Routine::kForward);
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  const Weight<T>& widening = layer.radial.weights.back();
  const int depth = widening.rows.width();
  const auto make_weights = [&](const auto& job, const Group& group) {
    const Timer inner(team, Routine::kRadialForward, Routine::kForward);
    for (int index : job.tile) {
      if (index < 0) continue;
      const WeightTile<T>& tile = state.tiles[index];
      const int column = widening.columns.start(tile.path) + tile.channel;
      multiply<T>(Team{}, 2 * (group.last_pair - group.first_pair), tile.derivative, depth,
                  {state.radial.inputs.back() + 2 * group.first_pair * depth, depth},
                  {pass.values[layer.radial_weights.back()] + column, widening.columns.width()},
                  const_cast<T*>(tile.w) + group.first_pair * tile.stride, tile.derivative, false,
                  layer.radial.last_scale());
    }
  };
  MessageArrays<T> arrays;
  arrays.x = rows_of(layer.in, state.y, atoms);
  arrays.messages = rows_of(layer.convolution.messages(), state.messages, atoms);
  layer.convolution.run(MessageSweep::kForward, team, pass.edges, pass.plan.groups, state.tiles, arrays, depth,
                        make_weights, [](const auto&, const Group&) {});
}

template <class T>
void Engine<T>::messages_tangent(Team team, Pass& pass, int k) const {
  const Timer timer(team, Routine::kTangent);
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  MessageArrays<T> arrays;
  arrays.x = rows_of(layer.in, state.y, atoms);
  arrays.x_tangent = rows_of(layer.in, state.y_tangent, atoms);
  arrays.messages = rows_of(layer.convolution.messages(), state.messages_tangent, atoms);
  layer.convolution.run(MessageSweep::kTangent, team, pass.edges, pass.plan.groups, state.tiles, arrays);
}

// From the messages' cotangents to those of y, harmonics and lengths.
template <class T>
void Engine<T>::messages_reverse(Team team, Pass& pass, int k) const {
  const Timer timer(team, Routine::kReverse);
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms, size = atoms * layer.in.size;
  const bool lead = team.rank == 0;
  T* y_cotangent = lead ? state.y_cotangent : pass.private_features[team.rank - 1];
  T* numbers = lead ? pass.harmonics_cotangent : pass.private_edges[team.rank - 1];
  std::fill_n(y_cotangent, size, T(0));
  MessageArrays<T> arrays;
  arrays.x = rows_of(layer.in, state.y, atoms);
  arrays.x_cotangent = rows_of(layer.in, y_cotangent, atoms);
  arrays.messages = rows_of(layer.convolution.messages(), state.messages_cotangent, atoms);
  arrays.harmonics_cotangent = numbers;
  arrays.length_cotangent = numbers + (pass.length_cotangent - pass.harmonics_cotangent);
  layer.convolution.run(MessageSweep::kReverse, team, pass.edges, pass.plan.groups, state.tiles, arrays);
  team.wait();
  gather(team, state.y_cotangent, pass.private_features, size);
  team.wait();
}

// From the changes of the messages' cotangents to those of y and of the radial network's last layer. The cotangents of the
// radial weights never leave the cache: they are used up job by job.
template <class T>
void Engine<T>::messages_dual(Team team, Pass& pass, int k, const std::vector<T*>& targets) const {
  const Timer timer(team, Routine::kDualReverse);
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms, size = atoms * layer.in.size;
  const std::vector<Group>& groups = pass.plan.groups;
  const Weight<T>& widening = layer.radial.weights.back();
  const int depth = widening.rows.width(), n_weights = widening.columns.width();
  const T* last_weights = pass.values[layer.radial_weights.back()];
  const bool lead = team.rank == 0;
  T* y_change = lead ? state.y_change : pass.private_features[team.rank - 1];
  T* gradient = lead ? targets[layer.radial_weights.back()] : pass.private_gradients[team.rank - 1];
  T* hidden_change = lead ? pass.hidden_change : pass.private_hidden[team.rank - 1];
  std::vector<WeightTile<T>> tiles = state.tiles;
  std::vector<bool> job_done(layer.convolution.jobs().size()), group_done(groups.size());

  const auto place_cotangents = [&](const auto& job, const Group& group) {
    T* cotangent = pass.w_change[team.rank];
    for (int index : job.tile) {
      if (index < 0) continue;
      WeightTile<T>& tile = tiles[index];
      tile.cotangent = cotangent - group.first_pair * tile.stride;
      cotangent += (group.last_pair - group.first_pair) * tile.stride;
    }
  };
  const auto use_cotangents = [&](const auto& job, const Group& group) {
    const Timer inner(team, Routine::kRadialBackward, Routine::kDualReverse);
    const std::int64_t rows = 2 * (group.last_pair - group.first_pair);
    const std::size_t j = &job - layer.convolution.jobs().data(), g = &group - groups.data();
    for (int index : job.tile) {
      if (index < 0) continue;
      const WeightTile<T>& tile = tiles[index];
      const int column = widening.columns.start(tile.path) + tile.channel, width = tile.derivative;
      const Matrix<T> cotangent{tile.cotangent + group.first_pair * tile.stride, width};
      const Matrix<T> hidden{state.radial.inputs.back() + 2 * group.first_pair * depth, depth};
      multiply<T>(Team{}, depth, width, rows, hidden.transposed(), cotangent, gradient + column, n_weights, job_done[j],
                  layer.radial.last_scale());
      multiply<T>(Team{}, rows, depth, width, cotangent, Matrix<T>{last_weights + column, n_weights}.transposed(),
                  hidden_change + 2 * group.first_pair * depth, depth, group_done[g], layer.radial.last_scale());
      group_done[g] = true;
    }
    job_done[j] = true;
  };
  std::fill_n(y_change, size, T(0));
  MessageArrays<T> arrays;
  arrays.x = rows_of(layer.in, state.y, atoms);
  arrays.x_tangent = rows_of(layer.in, state.y_tangent, atoms);
  arrays.x_cotangent = rows_of(layer.in, y_change, atoms);
  arrays.messages = rows_of(layer.convolution.messages(), state.messages_cotangent, atoms);
  arrays.messages_tangent = rows_of(layer.convolution.messages(), state.messages_change, atoms);
  layer.convolution.run(MessageSweep::kDualReverse, team, pass.edges, groups, tiles, arrays, 2.0 * depth,
                        place_cotangents, use_cotangents);
  // What other threads did counts as nothing here.
  for (std::size_t j = 0; j < job_done.size(); ++j)
    for (int index : layer.convolution.jobs()[j].tile)
      if (index >= 0 && !job_done[j])
        for (int i = 0; i < depth; ++i)
          std::fill_n(gradient + i * n_weights + widening.columns.start(tiles[index].path) + tiles[index].channel,
                      tiles[index].derivative, T(0));
  for (std::size_t g = 0; g < groups.size(); ++g)
    if (!group_done[g])
      std::fill(hidden_change + 2 * groups[g].first_pair * depth, hidden_change + 2 * groups[g].last_pair * depth, T(0));
  team.wait();
  gather(team, state.y_change, pass.private_features, size);
  gather(team, targets[layer.radial_weights.back()], pass.private_gradients, std::int64_t(depth) * n_weights);
  gather(team, pass.hidden_change, pass.private_hidden, 2 * pass.plan.pairs * depth);
  team.wait();
}

// ---- Readout

// Energies, and the cotangents of the last hidden layer if every atom's energy counts once.
template <class T>
void Engine<T>::read_out(Team team, Pass& pass, double* energies) const {
  const Timer timer(team, Routine::kReadout);
  const std::int64_t atoms = pass.plan.atoms;
  const int width = layers_.back().out.blocks[0].width();
  const std::vector<const T*> values = pick(pass.values, readout_weights_);
  const auto [first, last] = team.share(atoms);
  for (std::int64_t n = first; n < last; ++n) {
    T* rows = pass.readout.inputs[0] + 2 * n * width;
    std::copy_n(pass.layers.back().x + n * width, width, rows);
    std::fill_n(rows + width, width, T(0));  // the tangents are not known yet
  }
  team.wait();
  readout_.hidden(team, pass.readout, values);
  const int depth = readout_.weights.back().rows.width(), stride = readout_.weights.back().columns.width();
  const T factor = readout_.last_scale();
  for (std::int64_t n = first; n < last; ++n) {
    const T* row = pass.readout.inputs.back() + 2 * n * depth;
    T* cotangent = pass.readout_cotangent + 2 * n * depth;
    const T weight = T(pass.scales[pass.type_at[n]]) * factor;
    T sum = 0;
    for (int f = 0; f < depth; ++f) {
      sum += row[f] * values.back()[f * stride];
      cotangent[f] = weight * values.back()[f * stride];
      cotangent[depth + f] = T(0);
    }
    pass.readout_energy[n] = double(sum * factor) + layer_readouts(pass, n, false);
  }
  team.wait();
  for (std::int64_t i = first; i < last; ++i) {
    const int type = int(pass.types[i]);
    energies[i] = pass.shifts[type] + pass.scales[type] * pass.readout_energy[pass.plan.place[i]];
  }
}

// The gradient by the parameters from the last hidden layer on, with the features' tangents; cotangents of a readout e and
// its tangent e' are (c scale, scale).
template <class T>
void Engine<T>::read_out_dual(Team team, Pass& pass, const double* energy_cotangent, const Gradients& gradients) const {
  const Timer timer(team, Routine::kReadout);
  const std::int64_t atoms = pass.plan.atoms;
  const int width = layers_.back().out.blocks[0].width();
  const std::vector<const T*> values = pick(pass.values, readout_weights_);
  const auto [first, last] = team.share(atoms);
  for (std::int64_t n = first; n < last; ++n)
    std::copy_n(pass.layers.back().x_tangent + n * width, width, pass.readout.inputs[0] + (2 * n + 1) * width);
  team.wait();
  readout_.hidden(team, pass.readout, values);
  const Weight<T>& weight = readout_.weights.back();
  const int depth = weight.rows.width(), stride = weight.columns.width();
  const T factor = readout_.last_scale();
  for (std::int64_t i = first; i < last; ++i) {
    const std::int64_t n = pass.plan.place[i];
    T* cotangent = pass.readout_cotangent + 2 * n * depth;
    const T slope = T(pass.scales[pass.types[i]]) * factor;
    const T value = energy_cotangent != nullptr ? T(energy_cotangent[i]) * slope : T(0);
    for (int f = 0; f < depth; ++f) {
      cotangent[f] = value * values.back()[f * stride];
      cotangent[depth + f] = slope * values.back()[f * stride];
    }
  }
  team.wait();
  if (team.rank == 0) {
    T* target = gradients.weights[readout_weights_.back()];
    for (double* zeroed : {gradients.scales, gradients.shifts})
      if (zeroed != nullptr) std::fill_n(zeroed, spec_.n_species, 0.0);
    for (std::int64_t i = 0; i < atoms; ++i) {
      const std::int64_t n = pass.plan.place[i], type = pass.types[i];
      const T* row = pass.readout.inputs.back() + 2 * n * depth;
      const double c = energy_cotangent != nullptr ? energy_cotangent[i] : 0.0;
      const T slope = T(pass.scales[type]) * factor, value = T(c) * slope;
      T tangent = 0;
      for (int f = 0; f < weight.rows.count(); ++f) {
        target[f * stride] += value * row[f] + slope * row[depth + f];
        tangent += row[depth + f] * values.back()[f * stride];
      }
      if (gradients.scales != nullptr)
        gradients.scales[type] += c * pass.readout_energy[n] + double(tangent * factor) + layer_readouts(pass, n, true);
      if (gradients.shifts != nullptr) gradients.shifts[type] += c;
    }
    if (gradients.scales != nullptr) repulsion_scales_gradient(pass, energy_cotangent, gradients.scales);
  }
  layer_readouts_gradient(team, pass, gradients.weights);
  team.wait();
  reverse_readout(team, pass, pick(gradients.weights, readout_weights_), gradients.x_change[0]);
}

// From the cotangents of the last hidden layer to those of the features.
template <class T>
void Engine<T>::reverse_readout(Team team, Pass& pass, const std::vector<T*>& gradients, T* x_cotangent) const {
  const std::vector<const T*> values = pick(pass.values, readout_weights_);
  const int width = layers_.back().out.blocks[0].width();
  readout_.reverse_hidden(team, pass.readout, values, pass.readout_cotangent, gradients, nullptr);
  // Of each pair of rows the first is wanted: the cotangent of the value.
  if (readout_.last() > 0) {
    const Weight<T>& weight = readout_.weights[0];
    const int hidden = weight.columns.width();
    multiply<T>(team, pass.plan.atoms, width, hidden, {pass.readout_cotangent, 2 * hidden},
                Matrix<T>{values[0], hidden}.transposed(), x_cotangent, width, false, readout_.scale(0, weight));
  } else {
    const auto [first, last] = team.share(pass.plan.atoms);
    for (std::int64_t n = first; n < last; ++n)
      std::copy_n(pass.readout_cotangent + 2 * n * width, width, x_cotangent + n * width);
  }
  team.wait();
}

// ---- Sweeps

template <class T>
void Engine<T>::sweep_forward(Team team, Pass& pass, const double* vectors, double* energies) const {
  const Plan& plan = pass.plan;
  {
    const Timer timer(team, Routine::kGeometry);
    harmonics_of_edges<T>(team, plan, vectors, spec_.l_max, pass.geometry, pass.harmonics);
    pass.basis.evaluate(team, plan, Channels<T>::padded(spec_.n_roots), pass.basis_rows);
  }
  const T* embedding = pass.values[embedding_];
  const int width = int(layers_[0].in.size);
  if (team.rank == 0) {
    if (spec_.species_aware)
      for (std::size_t s = 0; s < pass.kinds.size(); ++s)
        std::copy_n(embedding + pass.kinds[s].type * width, width, pass.attributes + s * width);
    else
      pass.attributes[0] = T(1);
  }
  const auto [first, last] = team.share(plan.atoms);
  for (std::int64_t n = first; n < last; ++n)
    std::copy_n(embedding + pass.type_at[n] * width, width, pass.layers[0].x + n * width);
  team.wait();
  for (int k = 0; k < int(layers_.size()); ++k) {
    const Layer& layer = layers_[k];
    const typename Pass::State& state = pass.layers[k];
    radial_forward(team, pass, k);
    linear(team, pass, layer, state.x, state.y, false);
    make_species_matrices(team, pass, k);
    team.wait();
    if (by_moments(pass, k)) {
      moments_forward(team, pass);
    } else {
      messages_forward(team, pass, k);
      team.wait();
      mix(team, pass, layer, state.messages, state.z, false);
    }
    team.wait();
    density_forward(team, pass, k);
    self_connect(team, pass, layer, k, state.x, state.z, false);
    team.wait();
    gate(team, pass, k);
    team.wait();
  }
  read_out(team, pass, energies);
}

template <class T>
void Engine<T>::sweep_reverse(Team team, Pass& pass) const {
  std::fill_n(team.rank == 0 ? pass.harmonics_cotangent : pass.private_edges[team.rank - 1], pass.edge_numbers, T(0));
  reverse_readout(team, pass, {}, pass.layers.back().x_cotangent);
  for (int k = int(layers_.size()) - 1; k >= 0; --k) {
    const Layer& layer = layers_[k];
    const typename Pass::State& state = pass.layers[k];
    gate_reverse(team, pass, k);
    team.wait();
    density_reverse(team, pass, k);
    if (by_moments(pass, k)) {
      moments_reverse(team, pass);
      break;
    }
    mix(team, pass, layer, state.z_cotangent, state.messages_cotangent, true);
    team.wait();
    messages_reverse(team, pass, k);
    if (k == 0) break;  // the first features do not depend on where the atoms are
    linear(team, pass, layer, state.y_cotangent, state.x_cotangent, true);
    team.wait();
    self_connect(team, pass, layer, k, state.z_cotangent, state.x_cotangent, true);
    bypass_reverse(team, pass, k, pass.layers[k + 1].x_cotangent, false, state.x_cotangent);
    team.wait();
  }
  gather(team, pass.harmonics_cotangent, pass.private_edges, pass.edge_numbers);
  team.wait();
}

// From the cotangents of harmonics and lengths to those of the edge vectors, and what repulsion adds to energies and these.
template <class T>
void Engine<T>::differentiate_edges(Team team, Pass& pass, double* energies, double* gradient) const {
  const Plan& plan = pass.plan;
  const std::int64_t stride = pass.geometry.stride;
  const bool repulsive = !spec_.repulsion.charge_product.empty();
  const auto [first, last] = team.share(plan.atoms);
  for (std::int64_t i = first; i < last; ++i)
    for (std::int64_t e = plan.row[i]; e < plan.row[i + 1]; ++e) {
      double slope = 0;
      if (repulsive) {
        const int pair = int(pass.types[i] * spec_.n_species + pass.types[plan.sender[e]]);
        const auto [energy, derivative] = spec_.repulsion.evaluate(pair, plan.length[e], spec_.cutoffs[pair]);
        const double factor = spec_.repulsion.scaled ? pass.scales[pass.types[i]] : 1.0;
        energies[i] += factor * energy;
        slope = factor * derivative;
      }
      if (gradient == nullptr) continue;
      slope += double(pass.length_cotangent[e]);
      for (int c = 0; c < 3; ++c) {
        double sum = slope * pass.geometry.direction[c * stride + e];
        for (int m = 1; m < n_harmonics(); ++m)
          sum += double(pass.harmonics_cotangent[m * stride + e]) * pass.geometry.slopes[(3 * m + c) * stride + e];
        gradient[3 * plan.original[e] + c] = sum;
      }
    }
}

// The direction, [E, 3] or nullptr for none, as changes of harmonics and lengths.
template <class T>
void Engine<T>::set_direction(Team team, Pass& pass, const double* direction) const {
  const std::int64_t stride = pass.geometry.stride;
  const auto [first, last] = team.share(pass.plan.edges);
  for (std::int64_t e = first; e < last; ++e) {
    double v[3] = {0, 0, 0}, along = 0;
    for (int c = 0; c < 3; ++c) {
      if (direction != nullptr) v[c] = direction[3 * pass.plan.original[e] + c];
      along += v[c] * pass.geometry.direction[c * stride + e];
    }
    pass.length_tangent[e] = T(along);
    for (int m = 0; m < n_harmonics(); ++m) {
      double sum = 0;
      for (int c = 0; c < 3; ++c) sum += v[c] * pass.geometry.slopes[(3 * m + c) * stride + e];
      pass.harmonics_tangent[m * stride + e] = T(sum);
    }
  }
}

template <class T>
void Engine<T>::sweep_tangent(Team team, Pass& pass) const {
  const std::int64_t size = pass.plan.atoms * layers_[0].in.size;
  clear(team, pass.layers[0].x_tangent, size);
  clear(team, pass.layers[0].y_tangent, size);
  for (int k = 0; k < int(layers_.size()); ++k) {
    const Layer& layer = layers_[k];
    const typename Pass::State& state = pass.layers[k];
    if (k > 0) linear(team, pass, layer, state.x_tangent, state.y_tangent, false);
    team.wait();
    if (by_moments(pass, k)) {
      moments_tangent(team, pass);
    } else {
      messages_tangent(team, pass, k);
      team.wait();
      mix(team, pass, layer, state.messages_tangent, state.z_tangent, false);
    }
    team.wait();
    density_tangent(team, pass, k);
    self_connect(team, pass, layer, k, state.x_tangent, state.z_tangent, false);
    team.wait();
    gate_tangent(team, pass, k);
    team.wait();
  }
}

template <class T>
void Engine<T>::sweep_dual(Team team, Pass& pass, const Gradients& gradients) const {
  T *change = gradients.x_change[0], *below = gradients.x_change[1];
  for (int k = int(layers_.size()) - 1; k >= 0; --k) {
    const Layer& layer = layers_[k];
    const typename Pass::State& state = pass.layers[k];
    gate_dual(team, pass, k, change, gradients.weights);
    team.wait();
    density_dual(team, pass, k, gradients.weights);
    if (by_moments(pass, k)) {
      moments_dual(team, pass, gradients.weights);
    } else {
      mix(team, pass, layer, state.z_change, state.messages_change, true);
      mix_gradient(team, pass, k, gradients.weights);
      team.wait();
      messages_dual(team, pass, k, gradients.weights);
    }
    linear(team, pass, layer, state.y_change, below, true);
    linear_gradient(team, pass, k, gradients.weights);
    team.wait();
    self_connect(team, pass, layer, k, state.z_change, below, true);
    bypass_reverse(team, pass, k, change, true, below);
    self_connection_gradient(team, pass, k, gradients.weights);
    radial_backward(team, pass, k, gradients.weights, gradients.roots);
    team.wait();
    std::swap(change, below);
  }
  const int width = int(layers_[0].in.size);
  const auto [first, last] = team.share(width);
  for (std::int64_t n = 0; n < pass.plan.atoms; ++n)
    for (std::int64_t v = first; v < last; ++v)
      gradients.weights[embedding_][pass.type_at[n] * width + v] += change[n * width + v];
}

// ---- Passes

template <class T>
std::unique_ptr<typename Engine<T>::Pass> Engine<T>::forward(int threads, const GraphArrays& graph,
                                                             const std::vector<const void*>& parameters,
                                                             double* energies, double* gradient,
                                                             bool differentiate) const {
  if (parameters.size() != sizes_.size()) throw std::invalid_argument("wrong number of parameters");
  auto pass = [&] {
    const Timer timer(Team{}, Routine::kPlan);
    return std::make_unique<Pass>(graph, spec_);
  }();
  prepare(*pass, threads, parameters);
  with_team(threads, [&](Team team) {
    sweep_forward(team, *pass, graph.vectors, energies);
    if (differentiate) sweep_reverse(team, *pass);
    differentiate_edges(team, *pass, energies, differentiate ? gradient : nullptr);
  });
  pass->reversed = differentiate;
  return pass;
}

template <class T>
void Engine<T>::backward(int threads, Pass& pass, const double* energy_cotangent, const double* gradient_cotangent,
                         const std::vector<void*>& gradients) const {
  if (!pass.reversed) throw std::invalid_argument("the forward sweep was run without its derivative");
  threads = std::min(threads, 1 + int(pass.private_features.size()));
  const auto arena = arenas_->lease();
  const Gradients targets = prepare_gradients(pass, threads, gradients, *arena);
  with_team(threads, [&](Team team) {
    set_direction(team, pass, gradient_cotangent);
    if (team.rank == 0) pass.energy_cotangent = energy_cotangent;
    sweep_tangent(team, pass);
    read_out_dual(team, pass, energy_cotangent, targets);
    sweep_dual(team, pass, targets);
    team.wait();
    const auto [first, last] = team.share(std::int64_t(weights_.size()));
    for (std::int64_t w = first; w < last; ++w)
      if (weights_[w].copied())
        weights_[w].extract(targets.weights[w], static_cast<T*>(gradients[weights_[w].parameter]));
  });
}

// Memory and constants of a pass.
template <class T>
void Engine<T>::prepare(Pass& pass, int threads, const std::vector<const void*>& parameters) const {
  pass.arena = arenas_->lease();
  Arena& arena = *pass.arena;
  const Plan& plan = pass.plan;
  const std::int64_t atoms = plan.atoms, stride = edge_stride(plan.edges);

  for (const Weight<T>& weight : weights_)
    pass.values.push_back(weight.values(static_cast<const T*>(parameters[weight.parameter]), arena));
  pass.scales = static_cast<const double*>(parameters[scales_]);
  pass.shifts = static_cast<const double*>(parameters[shifts_]);
  pass.basis = spec_.basis;
  const double* roots = static_cast<const double*>(parameters[roots_]);
  pass.basis.roots.assign(roots, roots + spec_.n_roots);

  pass.geometry.stride = stride;
  pass.geometry.direction = arena.take<double>(3 * stride);
  pass.geometry.slopes = arena.take<double>(3 * n_harmonics() * stride);
  pass.harmonics = arena.take<T>(n_harmonics() * stride);
  pass.edge_numbers = (n_harmonics() + 1) * stride;
  pass.harmonics_cotangent = arena.take<T>(pass.edge_numbers);
  pass.length_cotangent = pass.harmonics_cotangent + n_harmonics() * stride;
  pass.basis_rows = arena.take<T>(2 * plan.pairs * Channels<T>::padded(spec_.n_roots));
  pass.edges.row = plan.row.data();
  pass.edges.place = plan.place.data();
  pass.edges.sender = plan.sender_place.data();
  pass.edges.weights = plan.pair.data();
  pass.edges.opens = plan.opens.data();
  pass.edges.stride = stride;
  pass.edges.harmonics = pass.harmonics;

  std::int64_t scratch = readout_.scratch_size(atoms), widest = 0;
  for (const Layer& layer : layers_) {
    scratch = std::max(scratch, layer.radial.scratch_size(plan.pairs));
    widest = std::max(widest, layer.in.size);
  }
  pass.scratch = arena.take<T>(scratch);
  for (int r = 1; r < threads; ++r) {
    pass.private_features.push_back(arena.take<T>(atoms * widest));
    pass.private_edges.push_back(arena.take<T>(pass.edge_numbers));
  }
  pass.kinds = spec_.species_aware ? plan.species : std::vector<SpeciesRange>{{0, 0, atoms}};
  pass.attributes = arena.take<T>(pass.kinds.size() * Channels<T>::padded(n_attributes()));
  prepare_moments(pass);
  for (const Layer& layer : layers_) {
    pass.layers.emplace_back();
    prepare_layer(pass, layer, pass.layers.back());
  }
  const Features<T>& last = layers_.back().out;
  pass.layers.emplace_back();
  pass.layers.back().x = arena.take<T>(atoms * last.size);
  pass.layers.back().x_cotangent = arena.take<T>(atoms * last.size);
  pass.readout = readout_.state(atoms, arena, arena.take<T>(2 * atoms * last.size), pass.scratch);
  pass.readout_cotangent = arena.take<T>(2 * atoms * readout_.widest());
  pass.readout_energy.assign(atoms, 0.0);
}

template <class T>
void Engine<T>::prepare_layer(Pass& pass, const Layer& layer, typename Pass::State& state) const {
  Arena& arena = *pass.arena;
  const std::int64_t atoms = pass.plan.atoms, pairs = pass.plan.pairs;
  const std::int64_t scalars = layer.product ? 0 : atoms * layer.gate_in.blocks[layer.scalars].size();
  for (T** features : {&state.x, &state.x_cotangent, &state.y, &state.y_cotangent})
    *features = arena.take<T>(atoms * layer.in.size);
  for (T** messages : {&state.messages, &state.messages_cotangent})
    *messages = arena.take<T>(atoms * layer.convolution.messages().size);
  for (T** z : {&state.z, &state.z_cotangent}) *z = arena.take<T>(atoms * layer.gate_in.size);
  for (T** activation : {&state.activation, &state.slope, &state.curvature}) *activation = arena.take<T>(scalars);
  for (std::size_t b = 0; b < layer.gate.size(); ++b)
    if (layer.gate[b].kind == GateOutput::kTanh) {
      state.odd_slope = arena.take<T>(atoms * layer.out.blocks[b].size());
      state.odd_curvature = arena.take<T>(atoms * layer.out.blocks[b].size());
    }
  state.radial = layer.radial.state(pairs, arena, pass.basis_rows, pass.scratch);
  state.tiles = layer.convolution.tiles();
  for (WeightTile<T>& tile : state.tiles) {
    tile.derivative = tile.vectors * kLanes<T>;
    tile.stride = 2 * tile.derivative;
    tile.w = arena.take<T>(pairs * tile.stride);
  }
  for (const BlockWeight& entry : layer.self_connection)
    state.species_matrices.push_back(arena.take<T>(species_matrices_size(pass, layer, entry)));
  if (layer.product) prepare_product(pass, layer, state);
  if (layer.density >= 0) prepare_density(pass, state.density);
}

// Memory of the way back.
template <class T>
typename Engine<T>::Gradients Engine<T>::prepare_gradients(Pass& pass, int threads, const std::vector<void*>& gradients,
                                                           Arena& arena) const {
  const Plan& plan = pass.plan;
  const std::int64_t atoms = plan.atoms, stride = pass.geometry.stride;
  Gradients targets;
  for (int parameter : idle_) std::fill_n(static_cast<T*>(gradients[parameter]), sizes_[parameter], T(0));
  for (const Weight<T>& weight : weights_) {
    T* target = weight.copied() ? arena.take<T>(weight.size()) : static_cast<T*>(gradients[weight.parameter]);
    // These are written in parts or added to; all others are overwritten, unless there is nothing to do.
    if (weight.copied() || atoms == 0 || weight.parameter == weights_[embedding_].parameter)
      std::fill_n(target, weight.size(), T(0));
    targets.weights.push_back(target);
  }
  for (int weight : partial_) std::fill_n(targets.weights[weight], weights_[weight].size(), T(0));
  targets.scales = static_cast<double*>(gradients[scales_]);
  targets.shifts = static_cast<double*>(gradients[shifts_]);
  targets.roots = static_cast<double*>(gradients[roots_]);
  if (targets.roots != nullptr) std::fill_n(targets.roots, spec_.n_roots, 0.0);

  pass.harmonics_tangent = arena.take<T>(n_harmonics() * stride);
  pass.length_tangent = arena.take<T>(stride);
  pass.edges.harmonics_tangent = pass.harmonics_tangent;
  pass.edges.length_tangent = pass.length_tangent;

  std::int64_t x = 0, messages = 0, z = 0, weights = 0, hidden = 0, pairs = 0;
  for (const Layer& layer : layers_) {
    x = std::max({x, layer.in.size, layer.out.size});
    messages = std::max(messages, layer.convolution.messages().size);
    z = std::max(z, layer.gate_in.size);
    weights = std::max(weights, layer.radial.weights.back().size());
    hidden = std::max<std::int64_t>(hidden, layer.radial.widest());
  }
  for (const Group& group : plan.groups) pairs = std::max(pairs, group.last_pair - group.first_pair);
  // Changes of cotangents are needed in one layer at a time.
  for (T*& change : targets.x_change) change = arena.take<T>(atoms * x);
  T* y_change = arena.take<T>(atoms * x);
  T* messages_change = arena.take<T>(atoms * messages);
  T* z_change = arena.take<T>(atoms * z);
  pass.hidden_change = arena.take<T>(2 * plan.pairs * hidden);
  pass.basis_change =
      targets.roots != nullptr ? arena.take<T>(2 * plan.pairs * Channels<T>::padded(spec_.n_roots)) : nullptr;
  pass.w_change.clear();
  pass.private_gradients.clear();
  pass.private_hidden.clear();
  for (int r = 0; r < threads; ++r) {
    pass.w_change.push_back(arena.take<T>(2 * pairs * kTile<T> * (kMaxL + 1)));
    if (r == 0) continue;
    pass.private_gradients.push_back(arena.take<T>(weights));
    pass.private_hidden.push_back(arena.take<T>(2 * plan.pairs * hidden));
  }
  for (std::size_t k = 0; k < layers_.size(); ++k) {
    const Layer& layer = layers_[k];
    typename Pass::State& state = pass.layers[k];
    state.x_tangent = arena.take<T>(atoms * layer.in.size);
    state.y_tangent = arena.take<T>(atoms * layer.in.size);
    state.messages_tangent = arena.take<T>(atoms * layer.convolution.messages().size);
    state.z_tangent = arena.take<T>(atoms * layer.gate_in.size);
    state.y_change = y_change;
    state.messages_change = messages_change;
    state.z_change = z_change;
    state.species_changes.clear();
    for (const BlockWeight& entry : layer.self_connection)
      state.species_changes.push_back(arena.take<T>(species_matrices_size(pass, layer, entry)));
    if (layer.product) prepare_product_gradients(pass, layer, state, arena);
    if (layer.density >= 0) prepare_density_gradients(pass, state.density, arena);
  }
  pass.layers.back().x_tangent = arena.take<T>(atoms * layers_.back().out.size);
  prepare_moments_gradients(pass, arena);
  return targets;
}

template class Engine<EQUIPES_REAL>;

}  // namespace equipes
