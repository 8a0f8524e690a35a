#include "frozen_pass.hpp"
#include "functions.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace equipes {
namespace {

// Vectors of channels of a section: more for scalars, which have fewer paths and nearly nothing to prepare for a receiver.
constexpr int section_vectors(int l1) { return l1 == 0 ? 8 : 4; }

template <class T>
constexpr T kSiluFactor = T(1.6791767923989418);
template <class T>
constexpr T kTanhFactor = T(1.5937334472592695);

template <class T>
Vector<T> hyperbolic_tangent(Vector<T> x) {
  // 1 - 2 / (e^2x + 1) loses digits where x is small; there a series serves.
  const Vector<T> q = x * x;
  const Vector<T> series = x * (T(1) + q * (T(-1.0 / 3) + q * (T(2.0 / 15) + q * (T(-17.0 / 315) + q * (T(62.0 / 2835) +
                               q * (T(-1382.0 / 155925) + q * T(21844.0 / 6081075)))))));
  const Vector<T> whole = T(1) - T(2) / (exponential<T>(x + x) + T(1));
  return q < T(sizeof(T) == 4 ? 0.01 : 0.0004) ? series : whole;
}

}  // namespace

template <class T>
typename Frozen<T>::Map Frozen<T>::make_map(const FrozenMatrix& matrix, const Channels<T>& rows,
                                            const Channels<T>& columns) {
  if (matrix.rows != rows.count() || matrix.columns != columns.count() ||
      (matrix.count != 1 && matrix.count != n_species_) ||
      std::int64_t(matrix.values.size()) != std::int64_t(matrix.count) * matrix.rows * matrix.columns)
    throw std::invalid_argument("a matrix does not fit its blocks");
  Map map{matrix.from, matrix.to, {}, {}};
  by_species_ |= matrix.count > 1;
  for (int s = 0; s < matrix.count; ++s) {
    const auto dense = padded<T>(matrix.values.data() + std::size_t(s) * matrix.rows * matrix.columns, rows, columns);
    map.forward.push_back(tables_.pack(dense, rows.width(), columns.width()));
    map.reverse.push_back(tables_.pack(transposed(dense, rows.width(), columns.width()), columns.width(), rows.width()));
  }
  return map;
}

template <class T>
Frozen<T>::Frozen(const FrozenSpec& spec)
    : n_species_(spec.n_species),
      l_max_(spec.l_max),
      intervals_(int(spec.knots.size()) - 1),
      by_pair_(spec.by_pair),
      cutoffs_(spec.cutoffs),
      scales_(spec.scales),
      shifts_(spec.shifts),
      knots_(spec.knots),
      repulsion_(spec.repulsion) {
  require(n_species_ > 0 && l_max_ >= 0 && l_max_ <= kMaxL, "the number of species or the highest degree is out of range");
  const std::size_t pairs = std::size_t(n_species_) * n_species_;
  require(cutoffs_.size() == pairs && scales_.size() == std::size_t(n_species_) && shifts_.size() == scales_.size(),
          "a table of species has a wrong size");
  require(repulsion_.power == 0 ||
              (repulsion_.charge_product.size() == pairs && repulsion_.inverse_length.size() == pairs &&
               (repulsion_.cutoffs.empty() || repulsion_.cutoffs.size() == pairs) &&
               repulsion_.screening.size() % 2 == 0),
          "a table of the repulsion has a wrong size");
  require(!spec.layers.empty(), "there are no layers");
  for (const FrozenLayerSpec& layer : spec.layers) add_layer(layer);

  require(layers_.back().out.blocks.size() == 1 || !layers_.back().product, "the last layer gives more than scalars");
  std::vector<Channels<T>> widths{layers_.back().out.blocks.at(0).channels};
  for (const FrozenMatrix& matrix : spec.readout) widths.push_back(Channels<T>({matrix.columns}));
  require(!spec.readout.empty() && spec.readout.back().columns == 1, "the readout does not end in one number");
  for (std::size_t i = 0; i < spec.readout.size(); ++i) {
    const Map map = make_map(spec.readout[i], widths[i], widths[i + 1]);
    readout_.push_back(map.forward.at(0));
    readout_reverse_.push_back(map.reverse.at(0));
  }
}

template <class T>
void Frozen<T>::add_layer(const FrozenLayerSpec& spec) {
  Layer layer;
  const Irrep even{0, 0, 1};
  const bool product = !spec.out.empty();
  require(layers_.empty() || product == layers_[0].product, "the layers are of two kinds");
  // The block of even scalars holds the scalars, then the gates of each gated irrep.
  std::vector<int> groups;
  for (const Irrep& irrep : spec.scalars)
    if (irrep.same_kind(even)) groups.push_back(irrep.multiplicity);
  const int first_gate = int(groups.size());
  for (const Irrep& irrep : spec.gated) groups.push_back(irrep.multiplicity);
  for (const Irrep& irrep : spec.gate_in)
    layer.z.add(irrep, Channels<T>(irrep.same_kind(even) && !product ? groups : std::vector<int>{irrep.multiplicity}));
  if (product)
    add_product(spec, layer);
  else
    add_gate(spec, layer, first_gate);
  if (layers_.empty()) {
    layers_.push_back(std::move(layer));
    add_first_layer(spec);
    return;
  }
  layer.in = layers_.back().out;
  require(spec.in.size() == layer.in.blocks.size(), "a layer does not take what the one before it gives");
  for (std::size_t b = 0; b < spec.in.size(); ++b)
    require(spec.in[b].same_kind(layer.in.blocks[b].irrep) &&
                spec.in[b].multiplicity == layer.in.blocks[b].irrep.multiplicity,
            "a layer does not take what the one before it gives");
  const auto block = [&](const Features<T>& features, int index) -> const Block<T>& {
    require(index >= 0 && index < int(features.blocks.size()), "a matrix names a block that is not there");
    return features.blocks[index];
  };
  for (const FrozenMatrix& matrix : spec.linear_1) {
    const Block<T>& from = block(layer.in, matrix.from);
    layer.hidden.add(from.irrep, Channels<T>({from.irrep.multiplicity}));
    layer.linear_1.push_back(make_map(matrix, from.channels, from.channels));
    layer.linear_1.back().to = int(layer.hidden.blocks.size()) - 1;
  }
  if (!spec.hidden_constants.empty()) {
    const int place = layer.hidden.find(even);
    require(place >= 0 && std::size_t(layer.hidden.blocks[place].channels.count()) == spec.hidden_constants.size(),
            "a layer's constants do not fit");
    for (double value : padded<T>(spec.hidden_constants.data(), Channels<T>::dense(1), layer.hidden.blocks[place].channels))
      layer.hidden_constants.push_back(T(value));
  }
  for (const FrozenMatrix& matrix : spec.self_connection) {
    const Block<T>&from = block(layer.in, matrix.from), &to = block(product ? layer.out : layer.z, matrix.to);
    require(from.irrep.l == to.irrep.l, "a self-connection changes the degree");
    layer.self_connection.push_back(make_map(matrix, from.channels, to.channels));
  }
  add_sections(spec, layer);
  layers_.push_back(std::move(layer));
}

// What the gate makes of z.
template <class T>
void Frozen<T>::add_gate(const FrozenLayerSpec& spec, Layer& layer, int first_gate) {
  const Irrep even{0, 0, 1}, odd{0, 0, -1};
  layer.scalars = layer.z.find(even);
  require(layer.scalars >= 0 && layer.z.blocks[layer.scalars].channels.count() == spec.gate_in[layer.scalars].multiplicity,
          "the even scalars are not the scalars and gates");
  const Channels<T>& scalars = layer.z.blocks[layer.scalars].channels;
  require(spec.constants.size() == std::size_t(n_species_) * scalars.count(), "a layer's constants do not fit");
  for (double value : padded<T>(spec.constants.data(), Channels<T>::dense(n_species_), scalars))
    layer.constants.push_back(T(value));
  for (const Irrep& irrep : spec.scalars) {
    const int source = layer.z.find(irrep);
    require(irrep.l == 0 && source >= 0, "the gate lacks a block");
    layer.gate.push_back({irrep.same_kind(odd) ? GateOutput::kTanh : GateOutput::kSilu, source, 0});
    layer.out.add(irrep, Channels<T>({irrep.multiplicity}));
  }
  for (std::size_t g = 0; g < spec.gated.size(); ++g) {
    const int source = layer.z.find(spec.gated[g]);
    require(source >= 0 && spec.gate_in[source].multiplicity == spec.gated[g].multiplicity, "the gate lacks a block");
    layer.gate.push_back({GateOutput::kGated, source, scalars.start(first_gate + int(g))});
    layer.out.add(spec.gated[g], Channels<T>({spec.gated[g].multiplicity}));
  }
}

template <class T>
void Frozen<T>::add_first_layer(const FrozenLayerSpec& spec) {
  constexpr int n = kLanes<T>;
  const Layer& layer = layers_[0];
  reached_ = spec.reached;
  require(int(reached_.size()) == l_max_ + 1, "the first layer does not say what its harmonics reach");
  std::int64_t channels = 0;
  for (int l = 0; l <= l_max_; ++l) {
    if (reached_[l] < 0) continue;
    require(reached_[l] < int(layer.z.blocks.size()) && layer.z.blocks[reached_[l]].irrep.l == l,
            "the first layer's harmonics reach a block of another degree");
    species_table_start_[l] = species_interval_stride_;
    species_interval_stride_ += layer.z.blocks[reached_[l]].width() * kCoefficients;
    channels += layer.z.blocks[reached_[l]].channels.count();
  }
  // Where splines are those of a pair of species, the sender's species is in them.
  const int tables = by_pair_ ? 1 : n_species_;
  const std::int64_t species_size = std::int64_t(rows_of_splines()) * kCoefficients * channels;
  require(std::int64_t(spec.splines.size()) == tables * species_size, "the first layer's splines do not fit");
  species_type_stride_ = by_pair_ ? 0 : species_interval_stride_ * rows_of_splines();
  T* table = tables_.keep(species_interval_stride_ * rows_of_splines() * tables);
  species_table_ = table;
  for (int s = 0; s < tables; ++s) {
    std::int64_t column = s * species_size;
    for (int l = 0; l <= l_max_; ++l) {
      if (reached_[l] < 0) continue;
      const Channels<T>& target = layer.z.blocks[reached_[l]].channels;
      for (int g = 0; g < target.groups(); ++g)
        for (int c = 0; c < target.size(g); c += n)
          fill_coefficients(rows_of_splines(), spec.splines.data() + column + target.real_start(g) + c, channels,
                            std::min(n, target.size(g) - c),
                            table + s * species_type_stride_ + species_table_start_[l] +
                                (target.start(g) + c) * kCoefficients,
                            species_interval_stride_);
      column += target.count();
    }
  }
}

template <class T>
void Frozen<T>::add_sections(const FrozenLayerSpec& spec, Layer& layer) {
  constexpr int n = kLanes<T>;
  // For each path: its first radial weight, the block of z it goes to, and its first row in that linear_2.
  std::vector<int> first_weight, to, first_row;
  std::vector<int> rows(layer.z.blocks.size(), 0);
  int weights = 0;
  for (const PathSpec& path : spec.paths) {
    require(path.block >= 0 && path.block < int(spec.in.size()) && path.l2 >= 0 && path.l2 <= l_max_ && path.l3 >= 0 &&
                path.l3 <= kMaxL,
            "a path names a block or degree that is not there");
    first_weight.push_back(weights);
    to.push_back(layer.z.find({0, path.l3, path.p3}));
    const int l1 = spec.in[path.block].l;
    require(to.back() >= 0 && std::abs(l1 - path.l2) <= path.l3 && path.l3 <= l1 + path.l2, "a path leads nowhere");
    first_row.push_back(rows[to.back()]);
    rows[to.back()] += spec.in[path.block].multiplicity;
    weights += spec.in[path.block].multiplicity;
  }
  require(std::int64_t(spec.splines.size()) == std::int64_t(rows_of_splines()) * kCoefficients * weights,
          "a layer's splines do not fit its paths");
  std::vector<const FrozenMatrix*> linear_2(layer.z.blocks.size(), nullptr);
  for (const FrozenMatrix& matrix : spec.linear_2) {
    require(matrix.to >= 0 && matrix.to < int(linear_2.size()) && matrix.count == 1 && matrix.rows == rows[matrix.to] &&
                matrix.columns == layer.z.blocks[matrix.to].channels.count() &&
                matrix.values.size() == std::size_t(matrix.rows) * matrix.columns,
            "linear_2 does not fit its paths");
    linear_2[matrix.to] = &matrix;
  }
  for (std::size_t b = 0; b < layer.linear_1.size(); ++b) {
    const int block = layer.linear_1[b].from, multiplicity = spec.in[block].multiplicity;
    const int most = section_vectors(spec.in[block].l) * n;
    for (int channel = 0; channel < multiplicity; channel += most) {
      const int real = std::min(most, multiplicity - channel);
      Section section;
      section.block = int(b);
      section.l1 = spec.in[block].l;
      section.channel = channel;
      section.vectors = (real + n - 1) / n;
      std::vector<int> used;
      for (std::size_t p = 0; p < spec.paths.size(); ++p) {
        const PathSpec& path = spec.paths[p];
        if (path.block != block) continue;
        int message = 0;
        while (message < int(section.messages.size()) && section.messages[message].to != to[p]) ++message;
        if (message == int(section.messages.size())) section.messages.push_back({to[p], 2 * path.l3 + 1, 0, 0, {}, {}});
        section.paths.push_back({path.l2, path.l3, std::int32_t(used.size()) * kCoefficients * n, message,
                                 section.messages[message].width});
        section.messages[message].width += section.vectors * n;
        used.push_back(int(p));
      }
      section.vector_stride = std::int64_t(used.size()) * kCoefficients * n;
      section.interval_stride = section.vector_stride * section.vectors;
      T* table = tables_.keep(section.interval_stride * rows_of_splines());
      section.table = table;
      for (std::size_t p = 0; p < used.size(); ++p)
        for (int v = 0; v < section.vectors; ++v)
          fill_coefficients(rows_of_splines(), spec.splines.data() + first_weight[used[p]] + channel + v * n, weights, std::min(n, real - v * n),
                            table + v * section.vector_stride + section.paths[p].table, section.interval_stride);
      for (int m = 0; m < int(section.messages.size()); ++m) {
        auto& message = section.messages[m];
        message.before = section.size;
        section.size += message.components * message.width;
        const Channels<T>& columns = layer.z.blocks[message.to].channels;
        std::vector<double> dense(std::size_t(message.width) * columns.width(), 0.0);
        require(linear_2[message.to] != nullptr, "linear_2 lacks a block");
        for (std::size_t p = 0; p < used.size(); ++p) {
          if (section.paths[p].message != m) continue;
          const auto part = padded<T>(linear_2[message.to]->values.data() +
                                       std::size_t(first_row[used[p]] + channel) * columns.count(),
                                   Channels<T>({real}), columns);
          std::copy(part.begin(), part.end(), dense.begin() + std::size_t(section.paths[p].column) * columns.width());
        }
        message.forward = tables_.pack(dense, message.width, columns.width());
        message.reverse = tables_.pack(transposed(dense, message.width, columns.width()), columns.width(), message.width);
      }
      layer.sections.push_back(std::move(section));
    }
  }
}

template <class T>
void Frozen<T>::prepare(Pass& pass, int threads, const FrozenInput& input, bool differentiate) const {
  const std::int64_t N = input.atoms;
  pass.input = &input;
  pass.atoms = N;
  pass.differentiate = differentiate;
  pass.arrange(input, n_species_, by_species_);
  Arena& arena = *pass.arena;
  pass.stride = Slots::edge_room(input, threads);
  const std::int64_t E = pass.stride;
  pass.begin = arena.take<std::int64_t>(N + 1);
  pass.end = arena.take<std::int64_t>(N + 1);
  pass.sender = arena.take<std::int32_t>(E);
  pass.type = arena.take<std::int32_t>(E);
  pass.interval = arena.take<std::int32_t>(E);
  pass.place = arena.take<T>(E);
  const int n_harmonics = (l_max_ + 1) * (l_max_ + 1);
  pass.harmonics = arena.take<T>(n_harmonics * E);
  pass.vectors = arena.take<double>(3 * E);
  pass.slope = arena.take<double>(E);
  if (repulsion_.power > 0) {
    pass.repulsion = arena.take<double>(E);
    pass.repulsion_energy = arena.take<double>(N);
  }
  const int width = cotangent_width<T>(l_max_);
  if (differentiate) pass.cotangent = arena.take<T>(E * width);
  pass.edges = {pass.begin, pass.end,       pass.sender, pass.type,      pass.interval,
                pass.place, pass.harmonics, E,           pass.cotangent, width};
  std::int64_t x_size = 0, h_size = 0, z_size = 0, message_size = 0;
  for (const Layer& layer : layers_) {
    pass.z.push_back(arena.take<T>(N * layer.z.size));
    pass.h.push_back(arena.take<T>(N * layer.hidden.size));
    x_size = std::max(x_size, layer.out.size);
    h_size = std::max(h_size, layer.hidden.size);
    z_size = std::max(z_size, layer.z.size);
    for (const Section& section : layer.sections) message_size = std::max(message_size, section.size);
  }
  if (differentiate)
    for (T*& cotangent : pass.z_cotangent) cotangent = arena.take<T>(N * z_size);
  for (int r = 0; r < threads; ++r) {
    typename Pass::Local local{};
    local.x = arena.take<T>(kTileAtoms * x_size);
    local.x_cotangent = arena.take<T>(kTileAtoms * x_size);
    local.messages = arena.take<T>(kTileAtoms * message_size);
    if (differentiate) local.h_cotangent = arena.take<T>(N * h_size);
    for (const Panels<T>& panels : readout_) {
      local.readout.push_back(arena.take<T>(kTileAtoms * panels.width));
      local.readout_slope.push_back(arena.take<T>(kTileAtoms * panels.width));
    }
    pass.local.push_back(std::move(local));
  }
  if (differentiate) pass.sums.take(arena, threads, input);
  if (layers_[0].product) prepare_products(pass, threads);
}

// Edges within the cutoff, in the caller's order, with what the kernels need of them.
template <class T>
void Frozen<T>::find_edges(Team team, Pass& pass) const {
  const Timer timer(team, Routine::kGeometry);
  const FrozenInput& in = *pass.input;
  const auto [first, last] = team.share(pass.atoms);
  std::int64_t e = pass.first_edge(in, team);
  const std::int64_t region = e, E = pass.stride;
  for (std::int64_t s = first; s < last; ++s) {
    const std::int64_t i = pass.atom[s];
    const double* cell = in.cell_of(i);
    const double* cutoffs = cutoffs_.data() + in.types[i] * n_species_;
    double repulsion = 0;
    pass.begin[s] = e;
    for (std::int64_t k = in.row[i]; k < in.row[i + 1]; ++k) {
      const std::int64_t j = in.sender[k];
      double r[3];
      const double distance = in.vector(i, k, cell, r);
      const int type = int(in.types[j]);
      const double cutoff = cutoffs[type], reduced = distance / cutoff;
      // Written so that a distance that is not a number stays and shows in the result.
      if (reduced >= 1.0) continue;
      const int interval = knots_.interval_of(reduced);
      const double width = knots_[interval + 1] - knots_[interval];
      for (int c = 0; c < 3; ++c) pass.vectors[c * E + e] = r[c];
      pass.sender[e] = pass.slot[j];
      pass.type[e] = type;
      pass.interval[e] = interval + (by_pair_ ? int(in.types[i] * n_species_ + type) * intervals_ : 0);
      pass.place[e] = T((reduced - knots_[interval]) / width);
      pass.slope[e] = 1.0 / (width * cutoff);
      if (repulsion_.power > 0) {
        const auto [energy, slope] = repulsion_.evaluate(int(in.types[i]) * n_species_ + type, distance, cutoff);
        repulsion += energy;
        pass.repulsion[e] = slope;
      }
      ++e;
    }
    pass.end[s] = e;
    if (repulsion_.power > 0) pass.repulsion_energy[s] = repulsion;
  }

  using detail::Doubles;
  constexpr int n = kLanes<double>, kCount = (kMaxL + 1) * (kMaxL + 1);
  const int count = (l_max_ + 1) * (l_max_ + 1);
  const std::int64_t end = e;
  for (std::int64_t start = region; start < end; start += n) {
    const int lanes = int(std::min<std::int64_t>(n, end - start));
    for (int k = lanes; k < n; ++k)
      for (int c = 0; c < 3; ++c) pass.vectors[c * E + start + k] = 1.0;
    Doubles u[3], y[kCount], dy[kCount][3] = {}, square{}, inverse{};
    for (int c = 0; c < 3; ++c) {
      u[c] = load(pass.vectors + c * E + start);
      square += u[c] * u[c];
    }
    for (int k = 0; k < n; ++k) inverse[k] = 1.0 / std::sqrt(square[k]);
    for (int c = 0; c < 3; ++c) u[c] *= inverse;
    y[0] = Doubles{} + 1.0;
    if (l_max_ > 0) {
      const double root = std::sqrt(3.0);
      for (int c = 0; c < 3; ++c) y[1 + c] = u[c] * root;
      detail::raise<1>(l_max_, u, y + 1, dy + 1, y + 4, dy + 4);
    }
    for (int m = 0; m < count; ++m)
      for (int k = 0; k < n; ++k) pass.harmonics[m * E + start + k] = T(y[m][k]);
  }
  if (pass.differentiate)
    std::fill_n(pass.cotangent + region * pass.edges.cotangent_width, (end - region) * pass.edges.cotangent_width, T(0));
}

// What z is before messages and self-connection are added.
template <class T>
void Frozen<T>::start_z(Pass& pass, int k, std::int64_t first, std::int64_t last) const {
  const Layer& layer = layers_[k];
  for (int b = 0; b < int(layer.z.blocks.size()); ++b) {
    const Block<T>& block = layer.z.blocks[b];
    T* z = block.of(pass.z[k], pass.atoms);
    if (b != layer.scalars || layer.product) {
      std::fill_n(z + first * block.size(), (last - first) * block.size(), T(0));
      continue;
    }
    for (std::int64_t s = first; s < last; ++s)
      std::copy_n(layer.constants.data() + std::int64_t(pass.type_at[s]) * block.width(), block.width(), z + s * block.size());
  }
}

template <class T>
void Frozen<T>::first_layer(Team team, Pass& pass, bool reverse) const {
  const Timer timer(team, reverse ? Routine::kReverse : Routine::kForward);
  const Layer& layer = layers_[0];
  const std::int64_t N = pass.atoms;
  T* z = reverse ? pass.z_cotangent[0] : pass.z[0];
  SpeciesSplineJob<T> job;
  job.edges = pass.edges;
  job.table = species_table_;
  job.type_stride = species_type_stride_;
  job.interval_stride = species_interval_stride_;
  for (int l = 0; l <= l_max_; ++l) {
    if (reached_[l] < 0) continue;
    const Block<T>& block = layer.z.blocks[reached_[l]];
    job.degrees[l].vectors = block.width() / kLanes<T>;
    job.degrees[l].table = species_table_start_[l];
    job.degrees[l].z = {block.of(z, N), block.size(), block.width()};
  }
  const auto& local = pass.local[team.rank];
  for (std::int64_t t = local.first_tile; t < local.last_tile; ++t) {
    const Tile& tile = pass.tiles[t];
    job.first = tile.first;
    job.last = tile.last;
    if (reverse) {
      species_spline_reverse(job);
      continue;
    }
    start_z(pass, 0, tile.first, tile.last);
    if (layer.product) start_x(pass, 0, tile.first, tile.last);
    species_spline_forward(job);
  }
}

template <class T>
void Frozen<T>::gate(const Layer& layer, const Pass& pass, const T* z, std::int64_t first, std::int64_t last, T* x) const {
  constexpr int n = kLanes<T>;
  const std::int64_t N = pass.atoms;
  const Block<T>& scalars = layer.z.blocks[layer.scalars];
  for (std::size_t b = 0; b < layer.gate.size(); ++b) {
    const GateOutput& output = layer.gate[b];
    const Block<T>&source = layer.z.blocks[output.source], &target = layer.out.blocks[b];
    const int width = target.width(), components = target.components();
    for (std::int64_t s = first; s < last; ++s) {
      const T* from = source.of(z, N) + s * source.size();
      const T* gates = scalars.of(z, N) + s * scalars.size() + output.gate;
      T* to = x + target.before * kTileAtoms + (s - first) * target.size();
      Vector<T> slope;
      for (int c = 0; c < width; c += n) {
        if (output.kind == GateOutput::kSilu) {
          store<T>(to + c, silu<T>(load(from + c), slope) * kSiluFactor<T>);
        } else if (output.kind == GateOutput::kTanh) {
          store<T>(to + c, hyperbolic_tangent<T>(load(from + c)) * kTanhFactor<T>);
        } else {
          const Vector<T> activated = silu<T>(load(gates + c), slope) * kSiluFactor<T>;
          for (int m = 0; m < components; ++m) store<T>(to + m * width + c, load(from + m * width + c) * activated);
        }
      }
    }
  }
}

template <class T>
void Frozen<T>::gate_reverse(const Layer& layer, const Pass& pass, const T* z, std::int64_t first, std::int64_t last,
                             const T* x_cotangent, T* z_cotangent) const {
  constexpr int n = kLanes<T>;
  const std::int64_t N = pass.atoms;
  const Block<T>& scalars = layer.z.blocks[layer.scalars];
  for (std::size_t b = 0; b < layer.gate.size(); ++b) {
    const GateOutput& output = layer.gate[b];
    const Block<T>&source = layer.z.blocks[output.source], &target = layer.out.blocks[b];
    const int width = target.width(), components = target.components();
    for (std::int64_t s = first; s < last; ++s) {
      const T* from = source.of(z, N) + s * source.size();
      const std::int64_t gates = s * scalars.size() + output.gate;
      const T* given = x_cotangent + target.before * kTileAtoms + (s - first) * target.size();
      T* to = source.of(z_cotangent, N) + s * source.size();
      Vector<T> slope;
      for (int c = 0; c < width; c += n) {
        if (output.kind == GateOutput::kSilu) {
          silu<T>(load(from + c), slope);
          store<T>(to + c, load(given + c) * slope * kSiluFactor<T>);
        } else if (output.kind == GateOutput::kTanh) {
          const Vector<T> value = hyperbolic_tangent<T>(load(from + c));
          store<T>(to + c, load(given + c) * (T(1) - value * value) * kTanhFactor<T>);
        } else {
          const Vector<T> activated = silu<T>(load(scalars.of(z, N) + gates + c), slope) * kSiluFactor<T>;
          Vector<T> product{};
          for (int m = 0; m < components; ++m) {
            const Vector<T> cotangent = load(given + m * width + c);
            product += cotangent * load(from + m * width + c);
            store<T>(to + m * width + c, cotangent * activated);
          }
          store<T>(scalars.of(z_cotangent, N) + gates + c, product * slope * kSiluFactor<T>);
        }
      }
    }
  }
}

// From z of the layer before to h of this one, and the self-connection to z.
template <class T>
void Frozen<T>::enter_layer(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  const std::int64_t N = pass.atoms;
  auto& local = pass.local[team.rank];
  for (std::int64_t t = local.first_tile; t < local.last_tile; ++t) {
    const Tile& tile = pass.tiles[t];
    {
      const Timer timer(team, Routine::kGate);
      gate(layers_[k - 1], pass, pass.z[k - 1], tile.first, tile.last, local.x);
    }
    const Timer timer(team, Routine::kLinear);
    const auto apply = [&](const Map& map, const Features<T>& features, T* data, bool add) {
      const Block<T>&from = layer.in.blocks[map.from], &to = features.blocks[map.to];
      const std::int64_t rows = (tile.last - tile.first) * from.components();
      multiply_panels<T>(rows, {local.x + from.before * kTileAtoms, from.width()}, map.of(map.forward, tile.type),
                         to.of(data, N) + tile.first * to.size(), to.width(), add);
      count_operations(team, Routine::kLinear, 2.0 * team.size * double(rows) * from.width() * to.width());
    };
    for (const Map& map : layer.linear_1) {
      const Block<T>& block = layer.hidden.blocks[map.to];
      const bool constants = !layer.hidden_constants.empty() && block.irrep.same_kind({0, 0, 1});
      if (constants)
        for (std::int64_t s = tile.first; s < tile.last; ++s)
          std::copy_n(layer.hidden_constants.data(), block.width(), block.of(pass.h[k], N) + s * block.size());
      apply(map, layer.hidden, pass.h[k], constants);
    }
    start_z(pass, k, tile.first, tile.last);
    for (const Map& map : layer.self_connection) apply(map, layer.z, pass.z[k], true);
  }
}

template <class T>
SplineJob<T> Frozen<T>::job_of(const Pass& pass, const Section& section, std::int64_t first, std::int64_t last,
                               T* messages) const {
  SplineJob<T> job;
  job.edges = pass.edges;
  job.first = first;
  job.last = last;
  job.vectors = section.vectors;
  job.table = section.table;
  job.interval_stride = section.interval_stride;
  job.vector_stride = section.vector_stride;
  for (const auto& path : section.paths) {
    const auto& message = section.messages[path.message];
    job.path(path.l2, path.l3) = {path.table, messages + message.before * kTileAtoms + path.column,
                                  std::int64_t(message.components) * message.width, message.width};
  }
  return job;
}

template <class T>
void Frozen<T>::messages_forward(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  const std::int64_t N = pass.atoms;
  auto& local = pass.local[team.rank];
  for (std::int64_t chunk = local.first_tile; chunk < local.last_tile; chunk += kChunkTiles)
    for (const Section& section : layer.sections) {
      const Block<T>& block = layer.hidden.blocks[section.block];
      for (std::int64_t t = chunk; t < std::min(chunk + kChunkTiles, local.last_tile); ++t) {
        const Tile& tile = pass.tiles[t];
        {
          const Timer timer(team, Routine::kForward);
          SplineJob<T> job = job_of(pass, section, tile.first, tile.last, local.messages);
          job.x = {block.of(pass.h[k], N) + section.channel, block.size(), block.width()};
          spline_forward(section.l1, job);
        }
        const Timer timer(team, Routine::kLinear);
        for (const auto& message : section.messages) {
          const Block<T>& to = layer.z.blocks[message.to];
          const std::int64_t rows = (tile.last - tile.first) * message.components;
          multiply_panels<T>(rows, {local.messages + message.before * kTileAtoms, message.width}, message.forward,
                             to.of(pass.z[k], N) + tile.first * to.size(), to.width(), true);
          count_operations(team, Routine::kLinear, 2.0 * team.size * double(rows) * message.width * to.width());
        }
      }
    }
}

template <class T>
void Frozen<T>::messages_reverse(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  const std::int64_t N = pass.atoms;
  auto& local = pass.local[team.rank];
  std::fill_n(local.h_cotangent, N * layer.hidden.size, T(0));
  const T* z_cotangent = pass.z_cotangent[k % 2];
  for (std::int64_t chunk = local.first_tile; chunk < local.last_tile; chunk += kChunkTiles)
    for (const Section& section : layer.sections) {
      const Block<T>& block = layer.hidden.blocks[section.block];
      for (std::int64_t t = chunk; t < std::min(chunk + kChunkTiles, local.last_tile); ++t) {
        const Tile& tile = pass.tiles[t];
        {
          const Timer timer(team, Routine::kLinear);
          for (const auto& message : section.messages) {
            const Block<T>& from = layer.z.blocks[message.to];
            const std::int64_t rows = (tile.last - tile.first) * message.components;
            multiply_panels<T>(rows, {from.of(z_cotangent, N) + tile.first * from.size(), from.width()}, message.reverse,
                               local.messages + message.before * kTileAtoms, message.width, false);
            count_operations(team, Routine::kLinear, 2.0 * team.size * double(rows) * message.width * from.width());
          }
        }
        const Timer timer(team, Routine::kReverse);
        SplineJob<T> job = job_of(pass, section, tile.first, tile.last, local.messages);
        job.x = {block.of(pass.h[k], N) + section.channel, block.size(), block.width()};
        job.x_cotangent = {block.of(local.h_cotangent, N) + section.channel, block.size(), block.width()};
        spline_reverse(section.l1, job);
      }
    }
}

// From the cotangents of h and z of this layer to that of z of the layer before.
template <class T>
void Frozen<T>::leave_layer(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  const std::int64_t N = pass.atoms;
  auto& local = pass.local[team.rank];
  for (std::int64_t t = local.first_tile; t < local.last_tile; ++t) {
    const Tile& tile = pass.tiles[t];
    {
      const Timer timer(team, Routine::kLinear);
      std::fill_n(local.x_cotangent, kTileAtoms * layer.in.size, T(0));
      const auto apply = [&](const Map& map, const Features<T>& features, T* data) {
        const Block<T>&from = features.blocks[map.to], &to = layer.in.blocks[map.from];
        const std::int64_t rows = (tile.last - tile.first) * from.components();
        multiply_panels<T>(rows, {from.of(data, N) + tile.first * from.size(), from.width()},
                           map.of(map.reverse, tile.type), local.x_cotangent + to.before * kTileAtoms, to.width(), true);
        count_operations(team, Routine::kLinear, 2.0 * team.size * double(rows) * from.width() * to.width());
      };
      for (const Map& map : layer.linear_1) {
        const Block<T>& block = layer.hidden.blocks[map.to];
        T* sum = block.of(pass.local[0].h_cotangent, N) + tile.first * block.size();
        for (int r = 1; r < team.size; ++r) {
          const T* part = block.of(pass.local[r].h_cotangent, N) + tile.first * block.size();
          for (std::int64_t i = 0; i < (tile.last - tile.first) * block.size(); ++i) sum[i] += part[i];
        }
        apply(map, layer.hidden, pass.local[0].h_cotangent);
      }
      for (const Map& map : layer.self_connection) apply(map, layer.z, pass.z_cotangent[k % 2]);
    }
    const Timer timer(team, Routine::kGate);
    gate_reverse(layers_[k - 1], pass, pass.z[k - 1], tile.first, tile.last, local.x_cotangent, pass.z_cotangent[(k - 1) % 2]);
  }
}

// Energies, and the cotangent of the last layer's z.
template <class T>
void Frozen<T>::read_out(Team team, Pass& pass, const FrozenOutput& output) const {
  constexpr int n = kLanes<T>;
  const int last_layer = int(layers_.size()) - 1;
  const Layer& layer = layers_[last_layer];
  auto& local = pass.local[team.rank];
  const int stages = int(readout_.size());
  for (std::int64_t t = local.first_tile; t < local.last_tile; ++t) {
    const Tile& tile = pass.tiles[t];
    const std::int64_t atoms = tile.last - tile.first;
    const T* x = local.x;
    T* x_cotangent = local.x_cotangent;
    if (layer.product) {  // the last layer's x is one block of scalars
      product(team, pass, last_layer, tile);
      x = pass.x[last_layer] + tile.first * layer.out.size;
      x_cotangent = pass.x_cotangent[last_layer % 2] + tile.first * layer.out.size;
    } else {
      const Timer timer(team, Routine::kGate);
      gate(layer, pass, pass.z[last_layer], tile.first, tile.last, local.x);
    }
    for (int i = 0; i < stages; ++i) {
      multiply_panels<T>(atoms, {x, readout_[i].depth}, readout_[i], local.readout[i], readout_[i].width, false);
      if (i + 1 < stages)
        for (std::int64_t c = 0; c < atoms * readout_[i].width; c += n) {
          Vector<T> slope;
          store<T>(local.readout[i] + c, silu<T>(load(local.readout[i] + c), slope));
          store<T>(local.readout_slope[i] + c, slope);
        }
      x = local.readout[i];
    }
    for (std::int64_t s = tile.first; s < tile.last; ++s) {
      const int type = pass.type_at[s];
      double energy = double(x[(s - tile.first) * readout_.back().width]);
      if (layer.product) energy += pass.layer_energy[s];
      energy = scales_[type] * energy + shifts_[type];
      if (repulsion_.power > 0) energy += pass.repulsion_energy[s];
      output.energies[pass.atom[s]] = energy;
    }
    if (!pass.differentiate) continue;
    T* cotangent = local.readout.back();
    std::fill_n(cotangent, atoms * readout_.back().width, T(0));
    for (std::int64_t a = 0; a < atoms; ++a)
      cotangent[a * readout_.back().width] = T(scales_[pass.type_at[tile.first + a]]);
    for (int i = stages - 1; i >= 0; --i) {
      T* to = i > 0 ? local.readout[i - 1] : x_cotangent;
      multiply_panels<T>(atoms, {local.readout[i], readout_[i].width}, readout_reverse_[i], to, readout_[i].depth, false);
      if (i > 0)
        for (std::int64_t c = 0; c < atoms * readout_[i].depth; c += n)
          store<T>(to + c, load(to + c) * load(local.readout_slope[i - 1] + c));
    }
    if (layer.product)
      product_reverse(team, pass, last_layer, tile);
    else
      gate_reverse(layer, pass, pass.z[last_layer], tile.first, tile.last, local.x_cotangent,
                   pass.z_cotangent[last_layer % 2]);
  }
}

template <class T>
void Frozen<T>::gather_forces(Team team, Pass& pass, const FrozenOutput& output) const {
  using detail::Doubles;
  constexpr int n = kLanes<double>, kCount = (kMaxL + 1) * (kMaxL + 1);
  const FrozenInput& in = *pass.input;
  const std::int64_t E = pass.stride;
  const int count = (l_max_ + 1) * (l_max_ + 1), width = pass.edges.cotangent_width;
  {
    const Timer timer(team, Routine::kGeometry);
    pass.sums.clear(team, in);
    const auto [first, last] = team.share(pass.atoms);  // as in find_edges: these edges lie side by side
    std::int64_t s = first;
    for (std::int64_t start = first < last ? pass.begin[first] : 0, end = first < last ? pass.end[last - 1] : 0;
         start < end; start += n) {
      Doubles u[3], y[kCount], dy[kCount][3] = {}, inverse, length, g[3];
      length = Doubles{};
      for (int c = 0; c < 3; ++c) {
        u[c] = load(pass.vectors + c * E + start);
        length += u[c] * u[c];
      }
      for (int k = 0; k < n; ++k) length[k] = std::sqrt(length[k]);
      inverse = 1.0 / length;
      for (int c = 0; c < 3; ++c) u[c] *= inverse;
      if (l_max_ > 0) {
        const double root = std::sqrt(3.0);
        for (int c = 0; c < 3; ++c) {
          y[1 + c] = u[c] * root;
          dy[1 + c][c] = Doubles{} + root;
        }
        detail::raise<1>(l_max_, u, y + 1, dy + 1, y + 4, dy + 4);
      }
      const int lanes = int(std::min<std::int64_t>(n, end - start));
      Doubles radial{};
      for (int k = 0; k < lanes; ++k) {
        radial[k] = double(pass.cotangent[(start + k) * width]) * pass.slope[start + k];
        if (pass.repulsion != nullptr) radial[k] += pass.repulsion[start + k];
      }
      for (int c = 0; c < 3; ++c) g[c] = Doubles{};
      for (int m = 1; m < count; ++m) {
        Doubles cotangent{};
        for (int k = 0; k < lanes; ++k) cotangent[k] = double(pass.cotangent[(start + k) * width + m]);
        for (int c = 0; c < 3; ++c) g[c] += cotangent * dy[m][c];
      }
      // The polynomials hold off the unit sphere too; only the change of direction counts: (1 - u uᵀ) / r.
      const Doubles along = g[0] * u[0] + g[1] * u[1] + g[2] * u[2];
      for (int c = 0; c < 3; ++c) g[c] = (g[c] - along * u[c]) * inverse + radial * u[c];
      for (int k = 0; k < lanes; ++k) {
        const std::int64_t e = start + k;
        while (e >= pass.end[s]) ++s;
        const double r[3] = {pass.vectors[e], pass.vectors[E + e], pass.vectors[2 * E + e]};
        const double its[3] = {g[0][k], g[1][k], g[2][k]};
        pass.sums.add(team, in, pass.atom[s], pass.atom[pass.sender[e]], r, its);
      }
    }
  }
  team.wait();
  pass.sums.total(team, in, output);
}

template <class T>
void Frozen<T>::evaluate(int threads, const FrozenInput& input, const FrozenOutput& output) const {
  Pass pass;
  pass.arena = arenas_->lease();
  const bool differentiate = output.forces != nullptr;
  prepare(pass, threads, input, differentiate);
  const int last = int(layers_.size()) - 1;
  with_team(threads, [&](Team team) {
    find_edges(team, pass);
    find_densities(team, pass);
    team.wait();
    auto& local = pass.local[team.rank];
    std::tie(local.first_tile, local.last_tile) = pass.share_tiles(team, pass.begin, pass.end);
    first_layer(team, pass, false);
    const bool products = layers_[0].product;
    for (int k = 1; k <= last; ++k) {
      products ? enter_after_product(team, pass, k) : enter_layer(team, pass, k);
      team.wait();
      messages_forward(team, pass, k);
    }
    read_out(team, pass, output);
    if (!differentiate) return;
    for (int k = last; k >= 1; --k) {
      messages_reverse(team, pass, k);
      team.wait();
      products ? leave_to_product(team, pass, k) : leave_layer(team, pass, k);
      team.wait();
    }
    first_layer(team, pass, true);
    team.wait();
    gather_forces(team, pass, output);
  });
}

template class Frozen<EQUIPES_REAL>;

}  // namespace equipes
