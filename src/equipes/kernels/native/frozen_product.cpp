// MACE's layers in a frozen potential: what stands where other models have a gate.
//
//   z -> / density -> species' linear map -> A -> symmetric contraction -> m -> linear_3, + self-connection of x -> x of
//   the next layer; each x is read out
#include "frozen_pass.hpp"

namespace equipes {
namespace {

// The components of a block of atoms as the contraction wants them.
template <class T>
std::vector<Component<T>> components_of(const Features<T>& features, T* data, std::int64_t atoms) {
  std::vector<Component<T>> result;
  for (const Block<T>& block : features.blocks)
    for (int m = 0; m < block.components(); ++m)
      result.push_back({block.of(data, atoms) + m * block.width(), block.size()});
  return result;
}

// The value of a spline and its derivative by t.
std::pair<double, double> spline_at(const double* c, double t) {
  double value = c[kCoefficients - 1], slope = 0;
  for (int i = kCoefficients - 2; i >= 0; --i) {
    slope = slope * t + value;
    value = value * t + c[i];
  }
  return {value, slope};
}

}  // namespace

// What a layer has in the place of a gate.
template <class T>
void Frozen<T>::add_product(const FrozenLayerSpec& spec, Layer& layer) {
  by_species_ = true;
  layer.product = true;
  for (const Irrep& irrep : spec.out) {
    layer.m.add(irrep, Channels<T>({irrep.multiplicity}));
    layer.out.add(irrep, Channels<T>({irrep.multiplicity}));
  }
  layer.scalars = layer.out.find({0, 0, 1});
  require(layer.scalars >= 0, "a layer gives no even scalars");
  const Channels<T>& channels = layer.out.blocks[layer.scalars].channels;
  int inputs = 0, outputs = 0;
  for (const Block<T>& block : layer.z.blocks) inputs += block.components();
  for (const Block<T>& block : layer.m.blocks) outputs += block.components();
  for (const Features<T>* features : {&layer.z, &layer.m})
    for (const Block<T>& block : features->blocks)
      require(block.irrep.multiplicity == channels.count(), "the contraction's channels differ");
  layer.table = spec.contraction;
  layer.table.check(0);
  require(layer.table.inputs == inputs && layer.table.outputs == outputs, "the contraction does not fit its features");
  const std::int64_t size = std::int64_t(layer.table.coefficients()) * channels.count();
  require(std::int64_t(spec.coefficients.size()) == n_species_ * size, "the contraction's coefficients do not fit");
  for (int s = 0; s < n_species_; ++s) {
    T* to = tables_.keep(std::int64_t(layer.table.coefficients()) * channels.width());
    layer.coefficients.push_back(to);
    for (int e = 0; e < layer.table.coefficients(); ++e)
      for (int c = 0; c < channels.count(); ++c)
        to[std::int64_t(e) * channels.width() + c] = T(spec.coefficients[s * size + std::int64_t(e) * channels.count() + c]);
  }
  const auto block = [&](const Features<T>& features, int index) -> const Block<T>& {
    require(index >= 0 && index < int(features.blocks.size()), "a matrix names a block that is not there");
    return features.blocks[index];
  };
  for (const FrozenMatrix& matrix : spec.mixing) {
    require(matrix.from == matrix.to, "the features' map leaves its block");
    layer.mixing.push_back(make_map(matrix, block(layer.z, matrix.from).channels, block(layer.z, matrix.to).channels));
  }
  require(layer.mixing.empty() || layer.mixing.size() == layer.z.blocks.size(), "the features' map lacks a block");
  for (const FrozenMatrix& matrix : spec.linear_3) {
    require(block(layer.m, matrix.from).irrep.l == block(layer.out, matrix.to).irrep.l, "linear_3 changes the degree");
    layer.linear_3.push_back(make_map(matrix, block(layer.m, matrix.from).channels, block(layer.out, matrix.to).channels));
  }
  require(spec.readout.empty() || int(spec.readout.size()) == channels.count(), "a layer's readout does not fit");
  if (!spec.readout.empty())
    for (double value : padded<T>(spec.readout.data(), Channels<T>::dense(1), channels)) layer.readout.push_back(T(value));
  require(spec.density.empty() || std::int64_t(spec.density.size()) == std::int64_t(tables_of_pairs()) * intervals_ * kCoefficients,
          "a layer's density does not fit");
  layer.density = spec.density;
  require(int(spec.constants.size()) == n_species_ * channels.count(), "a layer's constants do not fit");
  for (double value : padded<T>(spec.constants.data(), Channels<T>::dense(n_species_), channels))
    layer.constants.push_back(T(value));
}

template <class T>
void Frozen<T>::prepare_products(Pass& pass, int threads) const {
  Arena& arena = *pass.arena;
  const std::int64_t N = pass.atoms;
  std::int64_t out_size = 0, m_size = 0;
  bool dense = false;
  for (const Layer& layer : layers_) {
    pass.x.push_back(arena.take<T>(N * layer.out.size));
    pass.a.push_back(layer.mixing.empty() ? pass.z[pass.a.size()] : arena.take<T>(N * layer.z.size));
    pass.density.push_back(layer.density.empty() ? nullptr : arena.take<double>(N));
    pass.density_slope.push_back(layer.density.empty() ? nullptr : arena.take<double>(pass.stride));
    out_size = std::max(out_size, layer.out.size);
    m_size = std::max(m_size, layer.m.size);
    dense = dense || !layer.density.empty();
  }
  for (T*& cotangent : pass.x_cotangent) cotangent = arena.take<T>(N * out_size);
  pass.layer_energy = arena.take<double>(N);
  if (dense && pass.repulsion == nullptr) pass.repulsion = arena.take<double>(pass.stride);
  for (int r = 0; r < threads; ++r) pass.local[r].m = arena.take<T>(kTileAtoms * m_size);
}

// Σ_e of each receiver's edges, and how each changes with the distance.
template <class T>
void Frozen<T>::find_densities(Team team, Pass& pass) const {
  if (!layers_[0].product) return;
  const Timer timer(team, Routine::kGeometry);
  const auto [first, last] = team.share(pass.atoms);
  if (pass.repulsion != nullptr && repulsion_.power == 0)
    for (std::int64_t s = first; s < last; ++s) std::fill(pass.repulsion + pass.begin[s], pass.repulsion + pass.end[s], 0.0);
  for (std::size_t k = 0; k < layers_.size(); ++k) {
    if (layers_[k].density.empty()) continue;
    for (std::int64_t s = first; s < last; ++s) {
      double sum = 1;
      for (std::int64_t e = pass.begin[s]; e < pass.end[s]; ++e) {
        const auto [value, slope] = spline_at(layers_[k].density.data() + std::int64_t(pass.interval[e]) * kCoefficients,
                                             double(pass.place[e]));
        sum += value;
        pass.density_slope[k][e] = slope * pass.slope[e];
      }
      pass.density[k][s] = sum;
    }
  }
}

// What x of the next layer is before the message is added: a constant of the species, and what the self-connection gives.
template <class T>
void Frozen<T>::start_x(Pass& pass, int k, std::int64_t first, std::int64_t last) const {
  const Layer& layer = layers_[k];
  for (int b = 0; b < int(layer.out.blocks.size()); ++b) {
    const Block<T>& block = layer.out.blocks[b];
    T* x = block.of(pass.x[k], pass.atoms);
    if (b != layer.scalars) {
      std::fill_n(x + first * block.size(), (last - first) * block.size(), T(0));
      continue;
    }
    for (std::int64_t s = first; s < last; ++s)
      std::copy_n(layer.constants.data() + std::int64_t(pass.type_at[s]) * block.width(), block.width(), x + s * block.size());
  }
}

template <class T>
void Frozen<T>::map_tile(Team team, const Map& map, const std::vector<Panels<T>>& panels, const Tile& tile,
                         const Block<T>& from, const T* in, const Block<T>& to, T* out, bool add) const {
  const std::int64_t rows = (tile.last - tile.first) * from.components();
  multiply_panels<T>(rows, {in, from.width()}, map.of(panels, tile.type), out, to.width(), add);
  count_operations(team, Routine::kLinear, 2.0 * team.size * double(rows) * from.width() * to.width());
}

// From z to x of the next layer, whose start is there already, and its readout.
template <class T>
void Frozen<T>::product(Team team, Pass& pass, int k, const Tile& tile) const {
  const Layer& layer = layers_[k];
  const std::int64_t N = pass.atoms, atoms = tile.last - tile.first;
  auto& local = pass.local[team.rank];
  if (!layer.density.empty())
    for (const Block<T>& block : layer.z.blocks)
      for (std::int64_t s = tile.first; s < tile.last; ++s) {
        T* z = block.of(pass.z[k], N) + s * block.size();
        const T factor = T(1.0 / pass.density[k][s]);
        for (int i = 0; i < block.size(); ++i) z[i] *= factor;
      }
  {
    const Timer timer(team, Routine::kLinear);
    for (const Map& map : layer.mixing) {
      const Block<T>& block = layer.z.blocks[map.from];
      map_tile(team, map, map.forward, tile, block, block.of(pass.z[k], N) + tile.first * block.size(), block,
               block.of(pass.a[k], N) + tile.first * block.size(), false);
    }
  }
  {
    const Timer timer(team, Routine::kGate);
    auto a = components_of(layer.z, pass.a[k], N);
    for (Component<T>& component : a) component.data += tile.first * component.stride;
    const auto m = components_of(layer.m, local.m, kTileAtoms);
    ContractionJob<T> job;
    job.table = &layer.table;
    job.last = atoms;
    job.width = job.last_channel = layer.m.blocks[0].width();
    job.a = a.data();
    job.m = m.data();
    job.c = layer.coefficients[tile.type];
    contraction_forward(job);
  }
  const Timer timer(team, Routine::kLinear);
  for (const Map& map : layer.linear_3) {
    const Block<T>&from = layer.m.blocks[map.from], &to = layer.out.blocks[map.to];
    map_tile(team, map, map.forward, tile, from, from.of(local.m, kTileAtoms), to,
             to.of(pass.x[k], N) + tile.first * to.size(), true);
  }
  const Block<T>& scalars = layer.out.blocks[layer.scalars];
  for (std::int64_t s = tile.first; s < tile.last; ++s) {
    if (k == 0) pass.layer_energy[s] = 0;
    if (layer.readout.empty()) continue;
    const T* x = scalars.of(pass.x[k], N) + s * scalars.size();
    Vector<T> total{};
    for (int c = 0; c < scalars.width(); c += kLanes<T>) total += load(x + c) * load(layer.readout.data() + c);
    pass.layer_energy[s] += double(sum<T>(total));
  }
}

// From the cotangent of x of the next layer to that of z.
template <class T>
void Frozen<T>::product_reverse(Team team, Pass& pass, int k, const Tile& tile) const {
  const Layer& layer = layers_[k];
  const std::int64_t N = pass.atoms;
  auto& local = pass.local[team.rank];
  T *x_cotangent = pass.x_cotangent[k % 2], *z_cotangent = pass.z_cotangent[k % 2];
  {
    const Timer timer(team, Routine::kLinear);
    std::fill_n(local.m, kTileAtoms * layer.m.size, T(0));
    for (const Map& map : layer.linear_3) {
      const Block<T>&from = layer.out.blocks[map.to], &to = layer.m.blocks[map.from];
      map_tile(team, map, map.reverse, tile, from, from.of(x_cotangent, N) + tile.first * from.size(), to,
               to.of(local.m, kTileAtoms), true);
    }
  }
  // A's own cotangent takes its place where a map follows: A itself is not needed any more.
  T* a_cotangent = layer.mixing.empty() ? z_cotangent : pass.a[k];
  {
    const Timer timer(team, Routine::kGate);
    auto a = components_of(layer.z, pass.a[k], N), result = components_of(layer.z, a_cotangent, N);
    for (auto* components : {&a, &result})
      for (Component<T>& component : *components) component.data += tile.first * component.stride;
    const auto m = components_of(layer.m, local.m, kTileAtoms);
    ContractionJob<T> job;
    job.table = &layer.table;
    job.last = tile.last - tile.first;
    job.width = job.last_channel = layer.m.blocks[0].width();
    job.a = a.data();
    job.m = m.data();
    job.a_result = result.data();
    job.c = layer.coefficients[tile.type];
    contraction_reverse(job);
  }
  {
    const Timer timer(team, Routine::kLinear);
    for (const Map& map : layer.mixing) {
      const Block<T>& block = layer.z.blocks[map.from];
      map_tile(team, map, map.reverse, tile, block, block.of(a_cotangent, N) + tile.first * block.size(), block,
               block.of(z_cotangent, N) + tile.first * block.size(), false);
    }
  }
  if (layer.density.empty()) return;
  for (std::int64_t s = tile.first; s < tile.last; ++s) {
    const double inverse = 1.0 / pass.density[k][s];
    double total = 0;
    for (const Block<T>& block : layer.z.blocks) {
      const T* z = block.of(pass.z[k], N) + s * block.size();
      T* g = block.of(z_cotangent, N) + s * block.size();
      Vector<T> product{};
      for (int i = 0; i < block.size(); i += kLanes<T>) {
        product += load(z + i) * load(g + i);
        store<T>(g + i, load(g + i) * T(inverse));
      }
      total += double(sum<T>(product));
    }
    for (std::int64_t e = pass.begin[s]; e < pass.end[s]; ++e)
      pass.repulsion[e] -= total * inverse * pass.density_slope[k][e];
  }
}

// From x of the layer before, which is finished here, to h of this one and to the start of its own x.
template <class T>
void Frozen<T>::enter_after_product(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  const std::int64_t N = pass.atoms;
  const auto& local = pass.local[team.rank];
  for (std::int64_t t = local.first_tile; t < local.last_tile; ++t) {
    const Tile& tile = pass.tiles[t];
    product(team, pass, k - 1, tile);
    const Timer timer(team, Routine::kLinear);
    for (const Map& map : layer.linear_1) {
      const Block<T>&from = layer.in.blocks[map.from], &to = layer.hidden.blocks[map.to];
      map_tile(team, map, map.forward, tile, from, from.of(pass.x[k - 1], N) + tile.first * from.size(), to,
               to.of(pass.h[k], N) + tile.first * to.size(), false);
    }
    start_z(pass, k, tile.first, tile.last);
    start_x(pass, k, tile.first, tile.last);
    for (const Map& map : layer.self_connection) {
      const Block<T>&from = layer.in.blocks[map.from], &to = layer.out.blocks[map.to];
      map_tile(team, map, map.forward, tile, from, from.of(pass.x[k - 1], N) + tile.first * from.size(), to,
               to.of(pass.x[k], N) + tile.first * to.size(), true);
    }
  }
}

// From the cotangents of h and of the next x to those of x and of z of the layer before.
template <class T>
void Frozen<T>::leave_to_product(Team team, Pass& pass, int k) const {
  const Layer &layer = layers_[k], &before = layers_[k - 1];
  const std::int64_t N = pass.atoms;
  const auto& local = pass.local[team.rank];
  T* x_cotangent = pass.x_cotangent[(k - 1) % 2];
  for (std::int64_t t = local.first_tile; t < local.last_tile; ++t) {
    const Tile& tile = pass.tiles[t];
    for (int b = 0; b < int(before.out.blocks.size()); ++b) {
      const Block<T>& block = before.out.blocks[b];
      T* x = block.of(x_cotangent, N);
      std::fill_n(x + tile.first * block.size(), (tile.last - tile.first) * block.size(), T(0));
      if (b == before.scalars && !before.readout.empty())
        for (std::int64_t s = tile.first; s < tile.last; ++s)
          for (int c = 0; c < block.width(); ++c)
            x[s * block.size() + c] = T(scales_[pass.type_at[s]]) * before.readout[c];
    }
    {
      const Timer timer(team, Routine::kLinear);
      for (const Map& map : layer.linear_1) {
        const Block<T>&from = layer.hidden.blocks[map.to], &to = layer.in.blocks[map.from];
        T* sum = from.of(pass.local[0].h_cotangent, N) + tile.first * from.size();
        for (int r = 1; r < team.size; ++r) {
          const T* part = from.of(pass.local[r].h_cotangent, N) + tile.first * from.size();
          for (std::int64_t i = 0; i < (tile.last - tile.first) * from.size(); ++i) sum[i] += part[i];
        }
        map_tile(team, map, map.reverse, tile, from, sum, to, to.of(x_cotangent, N) + tile.first * to.size(), true);
      }
      for (const Map& map : layer.self_connection) {
        const Block<T>&from = layer.out.blocks[map.to], &to = layer.in.blocks[map.from];
        map_tile(team, map, map.reverse, tile, from, from.of(pass.x_cotangent[k % 2], N) + tile.first * from.size(), to,
                 to.of(x_cotangent, N) + tile.first * to.size(), true);
      }
    }
    product_reverse(team, pass, k - 1, tile);
  }
}

using Real = EQUIPES_REAL;
template void Frozen<Real>::add_product(const FrozenLayerSpec&, Layer&);
template void Frozen<Real>::prepare_products(Pass&, int) const;
template void Frozen<Real>::find_densities(Team, Pass&) const;
template void Frozen<Real>::start_x(Pass&, int, std::int64_t, std::int64_t) const;
template void Frozen<Real>::map_tile(Team, const Map&, const std::vector<Panels<Real>>&, const Tile&, const Block<Real>&, const Real*,
                                     const Block<Real>&, Real*, bool) const;
template void Frozen<Real>::product(Team, Pass&, int, const Tile&) const;
template void Frozen<Real>::product_reverse(Team, Pass&, int, const Tile&) const;
template void Frozen<Real>::enter_after_product(Team, Pass&, int) const;
template void Frozen<Real>::leave_to_product(Team, Pass&, int) const;

}  // namespace equipes
