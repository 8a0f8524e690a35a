// MACE's layers in the training engine: what stands where others have a gate.
//
//   z -> [species' linear map] -> A -> symmetric contraction -> m -> linear_3, + self-connection of x -> x of the next
//
// and a readout of each x but the last, which the engine's own network reads.
#include <cmath>

#include "engine.hpp"

namespace equipes {
namespace {

// The components of features as the contraction wants them; none for no features.
template <class T>
std::vector<Component<T>> components_of(const Features<T>& features, T* data, std::int64_t atoms) {
  std::vector<Component<T>> result;
  if (data == nullptr) return result;
  for (const Block<T>& block : features.blocks)
    for (int m = 0; m < block.components(); ++m)
      result.push_back({block.of(data, atoms) + m * block.width(), block.size()});
  return result;
}

}  // namespace

// ---- Construction

// Parameters in this order: matrices of the species, weights of the contraction, linear_3, readout.
template <class T>
void Engine<T>::add_product(const LayerSpec& stated, Layer& layer, bool last) {
  layer.product = true;
  layer.residual = stated.residual;
  for (const Irrep& irrep : stated.out) {
    layer.m.add(irrep, Channels<T>({irrep.multiplicity}));
    layer.out.add(irrep, Channels<T>({irrep.multiplicity}));
  }
  const auto by_species = [&](int rows, int columns) {
    const int weight = add_weight(Channels<T>({rows}), Channels<T>(std::vector<int>(spec_.n_species, columns)));
    partial_.push_back(weight);
    return weight;
  };
  if (layer.residual) {
    for (const Irrep& irrep : stated.out) {
      const int from = layer.in.find(irrep);
      if (from >= 0)
        layer.species_maps.push_back({from, layer.out.find(irrep),
                                      by_species(layer.in.blocks[from].channels.count(), irrep.multiplicity)});
    }
  } else {
    for (const Irrep& irrep : stated.gate_in) {
      const int block = layer.gate_in.find(irrep);
      layer.species_maps.push_back({block, block, by_species(irrep.multiplicity, irrep.multiplicity)});
    }
  }
  const int channels = stated.out.at(0).multiplicity;
  int rows = 0, inputs = 0, outputs = 0;
  for (int count : stated.contraction_rows) {
    layer.contraction_weights.push_back(add_weight(Channels<T>::dense(count), Channels<T>({channels}), spec_.n_species));
    partial_.push_back(layer.contraction_weights.back());
    rows += count;
  }
  for (const Block<T>& block : layer.gate_in.blocks) inputs += block.components();
  for (const Block<T>& block : layer.m.blocks) outputs += block.components();
  layer.table = stated.contraction;
  layer.table.check(rows);
  if (layer.table.inputs != inputs || layer.table.outputs != outputs || layer.table.row.empty())
    throw std::invalid_argument("the contraction does not fit its features");
  for (const Features<T>* features : {&layer.gate_in, &layer.m})
    for (const Block<T>& block : features->blocks)
      if (block.channels.count() != channels) throw std::invalid_argument("the contraction's channels differ");
  for (std::size_t b = 0; b < layer.m.blocks.size(); ++b) {
    const Channels<T>& own = layer.m.blocks[b].channels;
    layer.linear_3.push_back({int(b), int(b), add_weight(own, own)});
  }
  layer.scalars = layer.out.find({0, 0, 1});
  if (layer.scalars < 0) throw std::invalid_argument("a layer gives no even scalars");
  if (!last) layer.readout = add_weight(Channels<T>::dense(1), Channels<T>({channels}));
}

template <class T>
void Engine<T>::prepare_product(Pass& pass, const Layer& layer, typename Pass::State& state) const {
  Arena& arena = *pass.arena;
  const std::int64_t atoms = pass.plan.atoms;
  for (T** m : {&state.m, &state.m_cotangent}) *m = arena.take<T>(atoms * layer.m.size);
  state.a = state.z;
  state.a_cotangent = state.z_cotangent;
  if (!layer.residual)
    for (T** a : {&state.a, &state.a_cotangent}) *a = arena.take<T>(atoms * layer.gate_in.size);
  state.coefficients =
      arena.take<T>(std::int64_t(pass.plan.species.size()) * layer.table.coefficients() * layer.m.blocks[0].width());
}

template <class T>
void Engine<T>::prepare_product_gradients(Pass& pass, const Layer& layer, typename Pass::State& state, Arena& arena) const {
  const std::int64_t atoms = pass.plan.atoms;
  for (T** m : {&state.m_tangent, &state.m_change}) *m = arena.take<T>(atoms * layer.m.size);
  state.a_tangent = state.z_tangent;
  state.a_change = state.z_change;
  if (!layer.residual)
    for (T** a : {&state.a_tangent, &state.a_change}) *a = arena.take<T>(atoms * layer.gate_in.size);
  state.coefficients_change =
      arena.take<T>(std::int64_t(pass.plan.species.size()) * layer.table.coefficients() * layer.m.blocks[0].width());
}

// ---- Linear maps

// y (+)= x W_species / √(channels · fan-in); or, in reverse, the cotangent of x (in y) from that of y (in x).
template <class T>
void Engine<T>::map_species(Team team, const Pass& pass, const Layer& layer, const T* from, T* to, bool reverse) const {
  const Timer timer(team, Routine::kSelfConnection);
  const std::int64_t atoms = pass.plan.atoms;
  const Features<T>&sources = layer.residual ? layer.in : layer.gate_in, &targets = layer.residual ? layer.out : layer.gate_in;
  for (const BlockWeight& entry : layer.species_maps) {
    const Block<T>&in = sources.blocks[entry.from], &out = targets.blocks[entry.to];
    const Channels<T>& columns = weights_[entry.weight].columns;
    const T factor = T(1.0 / std::sqrt(double(in.channels.count()) * spec_.species_fan_in));
    count_operations(team, Routine::kSelfConnection, 2.0 * atoms * in.components() * in.width() * out.width());
    for (const SpeciesRange& range : pass.plan.species) {
      const Matrix<T> weight{pass.values[entry.weight] + columns.start(range.type), columns.width()};
      const std::int64_t rows = (range.last - range.first) * in.components();
      const std::int64_t at_in = range.first * in.size(), at_out = range.first * out.size();
      if (reverse)
        multiply<T>(team, rows, in.width(), out.width(), {out.of(from, atoms) + at_out, out.width()}, weight.transposed(),
                    in.of(to, atoms) + at_in, in.width(), layer.residual, factor);
      else
        multiply<T>(team, rows, out.width(), in.width(), {in.of(from, atoms) + at_in, in.width()}, weight,
                    out.of(to, atoms) + at_out, out.width(), layer.residual, factor);
    }
  }
}

// xᵀ (change of y's cotangent) + (tangent of x)ᵀ (y's cotangent); no tangent: it is zero.
template <class T>
void Engine<T>::map_species_gradient(Team team, const Pass& pass, const Layer& layer, const T* x, const T* x_tangent,
                                     const T* cotangent, const T* change, const std::vector<T*>& targets) const {
  const Timer timer(team, Routine::kSelfConnectionGradient);
  const std::int64_t atoms = pass.plan.atoms;
  const Features<T>&sources = layer.residual ? layer.in : layer.gate_in, &results = layer.residual ? layer.out : layer.gate_in;
  for (const BlockWeight& entry : layer.species_maps) {
    const Block<T>&in = sources.blocks[entry.from], &out = results.blocks[entry.to];
    const Channels<T>& columns = weights_[entry.weight].columns;
    const T factor = T(1.0 / std::sqrt(double(in.channels.count()) * spec_.species_fan_in));
    for (const SpeciesRange& range : pass.plan.species) {
      const std::int64_t rows = (range.last - range.first) * in.components();
      const std::int64_t at_in = range.first * in.size(), at_out = range.first * out.size();
      T* target = targets[entry.weight] + columns.start(range.type);
      multiply<T>(team, in.width(), out.width(), rows, Matrix<T>{in.of(x, atoms) + at_in, in.width()}.transposed(),
                  {out.of(change, atoms) + at_out, out.width()}, target, columns.width(), false, factor);
      if (x_tangent != nullptr)
        multiply<T>(team, in.width(), out.width(), rows, Matrix<T>{in.of(x_tangent, atoms) + at_in, in.width()}.transposed(),
                    {out.of(cotangent, atoms) + at_out, out.width()}, target, columns.width(), true, factor);
    }
    count_operations(team, Routine::kSelfConnectionGradient, 4.0 * atoms * in.components() * in.width() * out.width());
  }
}

// x = m W / √channels; or, in reverse, the cotangent of m (in x) from that of x (in m).
template <class T>
void Engine<T>::map_messages(Team team, const Pass& pass, const Layer& layer, const T* from, T* to, bool reverse) const {
  const Timer timer(team, Routine::kLinear);
  const std::int64_t atoms = pass.plan.atoms;
  for (const BlockWeight& entry : layer.linear_3) {
    const Block<T>& block = layer.m.blocks[entry.from];
    const int width = block.width();
    const Matrix<T> weight{pass.values[entry.weight], width};
    const T factor = T(1.0 / std::sqrt(double(block.channels.count())));
    const std::int64_t rows = atoms * block.components();
    count_operations(team, Routine::kLinear, 2.0 * rows * width * width);
    multiply<T>(team, rows, width, width, {block.of(from, atoms), width}, reverse ? weight.transposed() : weight,
                block.of(to, atoms), width, false, factor);
  }
}

template <class T>
void Engine<T>::map_messages_gradient(Team team, const Pass& pass, const Layer& layer, const typename Pass::State& state,
                                      const T* cotangent, const T* change, const std::vector<T*>& targets) const {
  const Timer timer(team, Routine::kLinearGradient);
  const std::int64_t atoms = pass.plan.atoms;
  for (const BlockWeight& entry : layer.linear_3) {
    const Block<T>& block = layer.m.blocks[entry.from];
    const int width = block.width();
    const T factor = T(1.0 / std::sqrt(double(block.channels.count())));
    const std::int64_t rows = atoms * block.components();
    T* target = targets[entry.weight];
    multiply<T>(team, width, width, rows, Matrix<T>{block.of(state.m, atoms), width}.transposed(),
                {block.of(change, atoms), width}, target, width, false, factor);
    multiply<T>(team, width, width, rows, Matrix<T>{block.of(state.m_tangent, atoms), width}.transposed(),
                {block.of(cotangent, atoms), width}, target, width, true, factor);
    count_operations(team, Routine::kLinearGradient, 4.0 * rows * width * width);
  }
}

// ---- The contraction; threads share the channels

// Sets what every sweep needs and calls `sweep` for each species.
template <class T>
template <class F>
void Engine<T>::contract(Team team, const Pass& pass, const Layer& layer, const typename Pass::State& state, F&& sweep) const {
  const Timer timer(team, Routine::kGate);
  const int width = layer.m.blocks[0].width(), n = kLanes<T>;
  const auto [first, last] = team.share(width / n);
  if (first == last) return;
  const std::int64_t size = std::int64_t(layer.table.coefficients()) * width;
  for (std::size_t s = 0; s < pass.plan.species.size(); ++s) {
    ContractionJob<T> job;
    job.table = &layer.table;
    job.first = pass.plan.species[s].first;
    job.last = pass.plan.species[s].last;
    job.width = width;
    job.first_channel = int(first) * n;
    job.last_channel = int(last) * n;
    job.c = state.coefficients + s * size;
    sweep(job, s, std::int64_t(s) * size);
  }
}

// Rows of weights of one species.
template <class T>
template <class U>
std::vector<U*> Engine<T>::contraction_rows(const Layer& layer, int type, const std::vector<U*>& arrays) const {
  std::vector<U*> rows;
  for (int index : layer.contraction_weights) {
    const Weight<T>& weight = weights_[index];
    for (int r = 0; r < weight.rows.width(); ++r)
      rows.push_back(arrays[index] + type * weight.matrix_size() + std::int64_t(r) * weight.columns.width());
  }
  return rows;
}

// ---- Sweeps

template <class T>
void Engine<T>::product_forward(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  if (!layer.residual) {
    map_species(team, pass, layer, state.z, state.a, false);
    team.wait();
  }
  const auto a = components_of(layer.gate_in, state.a, atoms), m = components_of(layer.m, state.m, atoms);
  contract(team, pass, layer, state, [&](ContractionJob<T>& job, std::size_t s, std::int64_t offset) {
    contraction_coefficients<T>(job, contraction_rows(layer, pass.plan.species[s].type, pass.values),
                                state.coefficients + offset);
    job.a = a.data();
    job.m = m.data();
    contraction_forward(job);
  });
  team.wait();
  T* x = pass.layers[k + 1].x;
  map_messages(team, pass, layer, state.m, x, false);
  if (!layer.residual) return;
  team.wait();
  map_species(team, pass, layer, state.x, x, false);
}

template <class T>
void Engine<T>::product_reverse(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  map_messages(team, pass, layer, pass.layers[k + 1].x_cotangent, state.m_cotangent, true);
  team.wait();
  const auto a = components_of(layer.gate_in, state.a, atoms), m = components_of(layer.m, state.m_cotangent, atoms);
  const auto result = components_of(layer.gate_in, state.a_cotangent, atoms);
  contract(team, pass, layer, state, [&](ContractionJob<T>& job, std::size_t, std::int64_t) {
    job.a = a.data();
    job.m = m.data();
    job.a_result = result.data();
    contraction_reverse(job);
  });
  if (layer.residual) return;
  team.wait();
  map_species(team, pass, layer, state.a_cotangent, state.z_cotangent, true);
}

template <class T>
void Engine<T>::product_tangent(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  if (!layer.residual) {
    map_species(team, pass, layer, state.z_tangent, state.a_tangent, false);
    team.wait();
  }
  const auto a = components_of(layer.gate_in, state.a, atoms), a_tangent = components_of(layer.gate_in, state.a_tangent, atoms);
  const auto m_tangent = components_of(layer.m, state.m_tangent, atoms);
  contract(team, pass, layer, state, [&](ContractionJob<T>& job, std::size_t, std::int64_t) {
    job.a = a.data();
    job.a_tangent = a_tangent.data();
    job.m_tangent = m_tangent.data();
    contraction_forward(job);
  });
  team.wait();
  T* x = pass.layers[k + 1].x_tangent;
  map_messages(team, pass, layer, state.m_tangent, x, false);
  if (!layer.residual || k == 0) return;  // the first features do not change
  team.wait();
  map_species(team, pass, layer, state.x_tangent, x, false);
}

template <class T>
void Engine<T>::product_dual(Team team, Pass& pass, int k, const T* change, const std::vector<T*>& targets) const {
  const Layer& layer = layers_[k];
  const typename Pass::State& state = pass.layers[k];
  const std::int64_t atoms = pass.plan.atoms;
  const T* cotangent = pass.layers[k + 1].x_cotangent;
  map_messages(team, pass, layer, change, state.m_change, true);
  map_messages_gradient(team, pass, layer, state, cotangent, change, targets);
  team.wait();
  const auto a = components_of(layer.gate_in, state.a, atoms), a_tangent = components_of(layer.gate_in, state.a_tangent, atoms);
  const auto m = components_of(layer.m, state.m_cotangent, atoms), m_change = components_of(layer.m, state.m_change, atoms);
  const auto result = components_of(layer.gate_in, state.a_change, atoms);
  contract(team, pass, layer, state, [&](ContractionJob<T>& job, std::size_t s, std::int64_t offset) {
    T* c_change = state.coefficients_change + offset;
    for (int e = 0; e < layer.table.coefficients(); ++e)
      std::fill(c_change + std::int64_t(e) * job.width + job.first_channel,
                c_change + std::int64_t(e) * job.width + job.last_channel, T(0));
    job.a = a.data();
    job.a_tangent = a_tangent.data();
    job.m = m.data();
    job.m_tangent = m_change.data();
    job.a_result = result.data();
    job.c_result = c_change;
    contraction_reverse(job);
    contraction_weights<T>(job, c_change, contraction_rows(layer, pass.plan.species[s].type, targets));
  });
  if (layer.residual) {
    map_species_gradient(team, pass, layer, state.x, k > 0 ? state.x_tangent : nullptr, cotangent, change, targets);
  } else {
    team.wait();
    map_species(team, pass, layer, state.a_change, state.z_change, true);
    map_species_gradient(team, pass, layer, state.z, state.z_tangent, state.a_cotangent, state.a_change, targets);
  }
}

// What the x of a layer gives beside its messages: cotangents through the self-connection, and of its own readout. `next`
// are those of the next layer's x; with `dual` they are changes.
template <class T>
void Engine<T>::bypass_reverse(Team team, Pass& pass, int k, const T* next, bool dual, T* to) const {
  const Layer& layer = layers_[k];
  if (!layer.product) return;
  if (layer.residual) map_species(team, pass, layer, next, to, true);
  if (k == 0 || layers_[k - 1].readout < 0) return;
  team.wait();
  const Block<T>& block = layer.in.blocks[layer.in.find({0, 0, 1})];
  const T* weight = pass.values[layers_[k - 1].readout];
  const T factor = T(1.0 / std::sqrt(double(block.channels.count())));
  T* scalars = block.of(to, pass.plan.atoms);
  const auto [first, last] = team.share(pass.plan.atoms);
  for (std::int64_t i = first; i < last; ++i) {
    const T scale = factor * T(pass.scales[pass.types[i]]);
    const T own = !dual ? scale : pass.energy_cotangent != nullptr ? T(pass.energy_cotangent[i]) * scale : T(0);
    T* row = scalars + pass.plan.place[i] * block.size();
    for (int c = 0; c < block.width(); c += kLanes<T>) add_to<T>(row + c, load(weight + c) * own);
  }
}

// What the layers but the last one read out of one atom, of their x or, with `tangent`, of its changes.
template <class T>
double Engine<T>::layer_readouts(const Pass& pass, std::int64_t n, bool tangent) const {
  double total = 0;
  for (std::size_t k = 0; k + 1 < layers_.size(); ++k) {
    if (layers_[k].readout < 0) continue;
    const Block<T>& block = layers_[k].out.blocks[layers_[k].scalars];
    const T* x = block.of(tangent ? pass.layers[k + 1].x_tangent : pass.layers[k + 1].x, pass.plan.atoms) + n * block.size();
    const T* w = pass.values[layers_[k].readout];
    Vector<T> product{};
    for (int c = 0; c < block.width(); c += kLanes<T>) product += load(x + c) * load(w + c);
    total += double(sum<T>(product)) / std::sqrt(double(block.channels.count()));
  }
  return total;
}

template <class T>
void Engine<T>::layer_readouts_gradient(Team team, const Pass& pass, const std::vector<T*>& targets) const {
  if (team.rank > 0) return;
  const std::int64_t atoms = pass.plan.atoms;
  for (std::size_t k = 0; k + 1 < layers_.size(); ++k) {
    if (layers_[k].readout < 0) continue;
    const Block<T>& block = layers_[k].out.blocks[layers_[k].scalars];
    const T *x = block.of(pass.layers[k + 1].x, atoms), *tangent = block.of(pass.layers[k + 1].x_tangent, atoms);
    const T factor = T(1.0 / std::sqrt(double(block.channels.count())));
    T* target = targets[layers_[k].readout];
    std::fill_n(target, block.width(), T(0));
    for (std::int64_t i = 0; i < atoms; ++i) {
      const T scale = factor * T(pass.scales[pass.types[i]]);
      const T own = pass.energy_cotangent != nullptr ? T(pass.energy_cotangent[i]) * scale : T(0);
      const std::int64_t at = pass.plan.place[i] * block.size();
      for (int c = 0; c < block.width(); c += kLanes<T>)
        add_to<T>(target + c, load(x + at + c) * own + load(tangent + at + c) * scale);
    }
  }
}

// What a scaled repulsion adds to the gradient by the scales.
template <class T>
void Engine<T>::repulsion_scales_gradient(const Pass& pass, const double* energy_cotangent, double* scales) const {
  const Plan& plan = pass.plan;
  if (!spec_.repulsion.scaled || spec_.repulsion.charge_product.empty()) return;
  for (std::int64_t i = 0; i < plan.atoms; ++i)
    for (std::int64_t e = plan.row[i]; e < plan.row[i + 1]; ++e) {
      const int pair = int(pass.types[i] * spec_.n_species + pass.types[plan.sender[e]]);
      const auto [energy, slope] = spec_.repulsion.evaluate(pair, plan.length[e], spec_.cutoffs[pair]);
      scales[pass.types[i]] +=
          (energy_cotangent != nullptr ? energy_cotangent[i] * energy : 0.0) + slope * double(pass.length_tangent[e]);
    }
}

using Real = EQUIPES_REAL;
using RealEngine = Engine<Real>;
template void RealEngine::add_product(const LayerSpec&, Layer&, bool);
template void RealEngine::prepare_product(Pass&, const Layer&, typename Pass::State&) const;
template void RealEngine::prepare_product_gradients(Pass&, const Layer&, typename Pass::State&, Arena&) const;
template void RealEngine::product_forward(Team, Pass&, int) const;
template void RealEngine::product_reverse(Team, Pass&, int) const;
template void RealEngine::product_tangent(Team, Pass&, int) const;
template void RealEngine::product_dual(Team, Pass&, int, const Real*, const std::vector<Real*>&) const;
template void RealEngine::bypass_reverse(Team, Pass&, int, const Real*, bool, Real*) const;
template double RealEngine::layer_readouts(const Pass&, std::int64_t, bool) const;
template void RealEngine::repulsion_scales_gradient(const Pass&, const double*, double*) const;
template void RealEngine::layer_readouts_gradient(Team, const Pass&, const std::vector<Real*>&) const;

}  // namespace equipes
