#include "invariant.hpp"

#include <algorithm>
#include <tuple>

namespace equipes {

// What is built once.

template <class T>
int Invariant<T>::node(int index) const {
  require(index >= 0 && index < int(nodes_.size()), "a stage or link names a node that is not there");
  return index;
}

template <class T>
Invariant<T>::Invariant(const InvariantSpec& spec)
    : n_species_(spec.n_species),
      r_max_(spec.r_max),
      scales_(spec.scales),
      shifts_(spec.shifts),
      symmetric_(spec.symmetric) {
  require(n_species_ > 0 && scales_.size() == std::size_t(n_species_) && shifts_.size() == scales_.size(),
          "a table of species has a wrong size");
  require(r_max_ > 0 && !spec.stages.empty() && !spec.widths.empty() && spec.widths[0] == 1,
          "there are no stages, or the first node is not one number");
  if (!spec.knots.empty()) knots_ = Knots(spec.knots);
  for (int width : spec.widths) {
    require(width > 0, "a node has no numbers");
    nodes_.push_back({Channels<T>({width}), false, false});
  }
  written_.assign(nodes_.size(), false);
  read_ = written_;
  if (symmetric_) {
    require(spec.symmetry.r_max <= r_max_, "symmetry functions reach beyond the cutoff");
    symmetry_ = SymmetryFunctions(spec.symmetry, n_species_);
    const int received = node(spec.stages[0].received);
    require(spec.stages[0].sent < 0 && spec.widths[received] == symmetry_.count(), "the symmetry functions do not fit");
  }
  for (const InvariantStageSpec& stage : spec.stages) add_stage(stage);
  find_uses();
}

template <class T>
void Invariant<T>::add_stage(const InvariantStageSpec& spec) {
  Stage stage{spec.sent, spec.received, {}, nullptr, 0, 0, {}};
  if (spec.received >= 0) {
    require(spec.received != 0 && !written_[node(spec.received)], "a node that receives has something already");
    if (spec.sent >= 0) {
      require(written_[node(spec.sent)] && nodes_[spec.sent].channels.count() == nodes_[spec.received].channels.count(),
              "what is sent is not what is received");
      read_[spec.sent] = true;
    }
    if (!symmetric_ || !stages_.empty()) add_splines(spec, stage);
    written_[spec.received] = nodes_[spec.received].alive = true;
  } else {
    require(spec.sent < 0, "what is sent is not received");
  }
  for (const InvariantLinkSpec& link : spec.links) stage.links.push_back(make_link(link));
  stages_.push_back(std::move(stage));
}

template <class T>
void Invariant<T>::add_splines(const InvariantStageSpec& spec, Stage& stage) {
  constexpr int n = kLanes<T>;
  const int numbers = nodes_[spec.received].channels.count(), vectors = int(nodes_[spec.received].width()) / n;
  const int intervals = knots_.intervals(), tables = spec.sent >= 0 ? 1 : n_species_;
  const std::int64_t size = std::int64_t(std::max(intervals, 0)) * kCoefficients * numbers;
  require(size > 0 && std::int64_t(spec.splines.size()) == tables * size, "a stage's splines do not fit");
  const auto fill = [&](const double* splines, int first, int count, T* target, std::int64_t interval_stride) {
    for (int v = 0; v < count; ++v)
      fill_coefficients(intervals, splines + (first + v) * n, numbers, std::min(n, numbers - (first + v) * n),
                        target + v * kCoefficients * n, interval_stride);
  };
  if (spec.sent < 0) {
    stage.interval_stride = std::int64_t(vectors) * kCoefficients * n;
    stage.type_stride = stage.interval_stride * intervals;
    T* table = tables_.keep(stage.type_stride * n_species_);
    for (int s = 0; s < n_species_; ++s)
      fill(spec.splines.data() + s * size, 0, vectors, table + s * stage.type_stride, stage.interval_stride);
    stage.table = table;
    return;
  }
  for (int first = 0; first < vectors; first += kMaxSplineVectors) {
    const int count = std::min(kMaxSplineVectors, vectors - first);
    const std::int64_t stride = std::int64_t(count) * kCoefficients * n;
    T* table = tables_.keep(stride * intervals);
    fill(spec.splines.data(), first, count, table, stride);
    stage.sections.push_back({first * n, count, table, stride});
  }
}

template <class T>
typename Invariant<T>::Link Invariant<T>::make_link(const InvariantLinkSpec& spec) {
  const Channels<T>& to = nodes_[node(spec.to)].channels;
  Link link{links_++, spec.from, spec.to, spec.activation, written_[spec.to], true, {}, {}, {}, {}, false};
  require(!read_[spec.to], "a link goes to a node that was read already");
  if (spec.from >= 0) {
    const Channels<T>& from = nodes_[node(spec.from)].channels;
    require(written_[spec.from] && spec.from != spec.to, "a link comes from a node that has nothing yet");
    read_[spec.from] = true;
    nodes_[spec.to].alive |= nodes_[spec.from].alive;
    const FrozenMatrix& matrix = spec.matrix;
    if (matrix.rows > 0) {
      require(matrix.rows == from.count() && matrix.columns == to.count() &&
                  (matrix.count == 1 || matrix.count == n_species_) && spec.factors.empty(),
              "a matrix does not fit its nodes");
      by_species_ |= matrix.count > 1;
      for (int s = 0; s < matrix.count; ++s) {
        const auto dense = padded<T>(matrix.values.data() + std::size_t(s) * matrix.rows * matrix.columns, from, to);
        link.forward.push_back(tables_.pack(dense, from.width(), to.width()));
        link.reverse.push_back(tables_.pack(transposed(dense, from.width(), to.width()), to.width(), from.width()));
      }
    } else {
      require(from.count() == to.count() && (spec.factors.empty() || spec.factors.size() == std::size_t(to.count())),
              "a link does not fit its nodes");
      std::vector<double> factors = spec.factors;
      if (factors.empty()) factors.assign(std::size_t(to.count()), 1.0);
      for (double factor : padded<T>(factors.data(), Channels<T>::dense(1), to)) link.factors.push_back(T(factor));
    }
  }
  const std::size_t rows = spec.constants.size() / std::size_t(to.count());
  require(spec.constants.size() == rows * std::size_t(to.count()) && (rows <= 1 || rows == std::size_t(n_species_)) &&
              (rows > 0 || spec.from >= 0),
          "a link's constants do not fit");
  link.constants_by_species = rows > 1;
  if (rows > 0)
    for (double number : padded<T>(spec.constants.data(), Channels<T>::dense(int(rows)), to))
      link.constants.push_back(T(number));
  written_[spec.to] = true;
  return link;
}

// Which link is the first to give a node its cotangent, and which nodes live beyond one stage.
template <class T>
void Invariant<T>::find_uses() {
  require(written_[0], "the first node has nothing");
  std::vector<bool> given(nodes_.size(), false);
  std::vector<int> stage_of(nodes_.size(), -1);
  const auto use = [&](int index, int k) {
    nodes_[index].kept |= stage_of[index] >= 0 && stage_of[index] != k;
    stage_of[index] = k;
  };
  given[0] = nodes_[0].kept = true;
  for (int k = int(stages_.size()) - 1; k >= 0; --k) {
    for (std::size_t l = stages_[k].links.size(); l-- > 0;) {
      Link& link = stages_[k].links[l];
      require(given[link.to], "a node is not used");
      use(link.to, k);
      if (link.from < 0) continue;
      require(link.from != 0, "a link comes from the first node");
      use(link.from, k);
      link.adds_cotangent = given[link.from];
      given[link.from] = true;
    }
    const auto& stage = stages_[k];
    if (stage.received >= 0) {
      require(given[stage.received], "a node is not used");
      nodes_[stage.received].kept = true;
    }
    if (stage.sent < 0) continue;
    require(!given[stage.sent], "what is sent is used otherwise, too");
    given[stage.sent] = nodes_[stage.sent].kept = true;
  }
}

// What is done at each evaluation.

template <class T>
void Invariant<T>::prepare(Pass& pass, int threads, const FrozenInput& input, bool differentiate) const {
  pass.input = &input;
  pass.atoms = input.atoms;
  pass.differentiate = differentiate;
  pass.arrange(input, n_species_, by_species_);
  pass.stride = Slots::edge_room(input, threads);
  Arena& arena = *pass.arena;
  const std::int64_t N = input.atoms, E = pass.stride;
  pass.begin = arena.take<std::int64_t>(N + 1);
  pass.end = arena.take<std::int64_t>(N + 1);
  for (std::int32_t** numbers : {&pass.sender, &pass.type, &pass.interval}) *numbers = arena.take<std::int32_t>(E);
  pass.place = arena.take<T>(E);
  pass.vectors = arena.take<double>(3 * E);
  pass.slope = arena.take<double>(E);
  const int width = cotangent_width<T>(0);
  if (differentiate && knots_.intervals() > 0) pass.cotangent = arena.take<T>(E * width);
  if (differentiate && symmetric_) pass.gradient = arena.take<double>(3 * E);
  // There are no harmonics but Y_0, which nobody reads.
  pass.edges = {pass.begin, pass.end,   pass.sender, pass.type,      pass.interval,
                pass.place, pass.place, E,           pass.cotangent, width};
  std::int64_t widest = 0, most = 0;
  for (const Node& node : nodes_) {
    widest = std::max(widest, node.width());
    pass.values.push_back(node.kept ? arena.take<T>(N * node.width()) : nullptr);
    pass.cotangents.push_back(differentiate && node.kept ? arena.take<T>(N * node.width()) : nullptr);
  }
  for (const Stage& stage : stages_)
    for (const Link& link : stage.links) {
      const bool asked = differentiate && link.activation != Activation::kNone && link.from >= 0 && nodes_[link.from].alive;
      pass.slopes.push_back(asked ? arena.take<T>(N * nodes_[link.from].width()) : nullptr);
    }
  for (std::int64_t i = 0; i < N; ++i) most = std::max(most, input.row[i + 1] - input.row[i]);
  for (int r = 0; r < threads; ++r) {
    typename Pass::Local local{};
    local.scratch = arena.take<T>(kTileAtoms * widest);
    if (differentiate) local.sent_cotangent = arena.take<T>(N * widest);
    for (const Node& node : nodes_) {
      local.values.push_back(node.kept ? nullptr : arena.take<T>(kTileAtoms * node.width()));
      local.cotangents.push_back(differentiate && !node.kept ? arena.take<T>(kTileAtoms * node.width()) : nullptr);
    }
    if (symmetric_) local.room = symmetry_.room(arena, most);
    pass.local.push_back(std::move(local));
  }
  if (differentiate) pass.sums.take(arena, threads, input);
}

// Edges within the cutoff, in the caller's order.
template <class T>
void Invariant<T>::find_edges(Team team, Pass& pass) const {
  const Timer timer(team, Routine::kGeometry);
  const FrozenInput& in = *pass.input;
  const auto [first, last] = team.share(pass.atoms);
  const std::int64_t region = pass.first_edge(in, team), E = pass.stride;
  const int width = pass.edges.cotangent_width;
  std::int64_t e = region;
  for (std::int64_t s = first; s < last; ++s) {
    const std::int64_t i = pass.atom[s];
    const double* cell = in.cell_of(i);
    pass.begin[s] = e;
    for (std::int64_t k = in.row[i]; k < in.row[i + 1]; ++k) {
      double r[3];
      const double reduced = in.vector(i, k, cell, r) / r_max_;
      // Written so that a distance that is not a number stays and shows in the result.
      if (reduced >= 1.0) continue;
      for (int c = 0; c < 3; ++c) pass.vectors[c * E + e] = r[c];
      pass.sender[e] = pass.slot[in.sender[k]];
      pass.type[e] = int(in.types[in.sender[k]]);
      if (knots_.intervals() > 0) {
        const int interval = knots_.interval_of(reduced);
        const double interval_width = knots_[interval + 1] - knots_[interval];
        pass.interval[e] = interval;
        pass.place[e] = T((reduced - knots_[interval]) / interval_width);
        pass.slope[e] = 1.0 / (interval_width * r_max_);
      }
      ++e;
    }
    pass.end[s] = e;
  }
  if (pass.cotangent != nullptr) std::fill_n(pass.cotangent + region * width, (e - region) * width, T(0));
}

// Energies, and the cotangent of the first node.
template <class T>
void Invariant<T>::read_out(Team team, Pass& pass, const FrozenOutput& output) const {
  const auto& local = pass.local[team.rank];
  const std::int64_t width = nodes_[0].width();
  for (std::int64_t t = local.first_tile; t < local.last_tile; ++t)
    for (std::int64_t s = pass.tiles[t].first; s < pass.tiles[t].last; ++s) {
      const double scale = scales_[pass.type_at[s]];
      output.energies[pass.atom[s]] = scale * double(pass.values[0][s * width]) + shifts_[pass.type_at[s]];
      if (!pass.differentiate) continue;
      std::fill_n(pass.cotangents[0] + s * width, width, T(0));
      pass.cotangents[0][s * width] = T(scale);
    }
}

template <class T>
void Invariant<T>::gather_forces(Team team, Pass& pass, const FrozenOutput& output) const {
  {
    const Timer timer(team, Routine::kGeometry);
    const FrozenInput& in = *pass.input;
    const std::int64_t E = pass.stride;
    pass.sums.clear(team, in);
    const auto [first, last] = team.share(pass.atoms);
    for (std::int64_t s = first; s < last; ++s)
      for (std::int64_t e = pass.begin[s]; e < pass.end[s]; ++e) {
        const double r[3] = {pass.vectors[e], pass.vectors[E + e], pass.vectors[2 * E + e]};
        double g[3] = {0.0, 0.0, 0.0};
        if (pass.gradient != nullptr)
          for (int c = 0; c < 3; ++c) g[c] = pass.gradient[c * E + e];
        if (pass.cotangent != nullptr) {
          const double length = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
          const double along = double(pass.cotangent[e * pass.edges.cotangent_width]) * pass.slope[e] / length;
          for (int c = 0; c < 3; ++c) g[c] += along * r[c];
        }
        pass.sums.add(team, in, pass.atom[s], pass.atom[pass.sender[e]], r, g);
      }
  }
  team.wait();
  pass.sums.total(team, *pass.input, output);
}

template <class T>
void Invariant<T>::evaluate(int threads, const FrozenInput& input, const FrozenOutput& output) const {
  Pass pass;
  pass.arena = arenas_->lease();
  prepare(pass, threads, input, output.forces != nullptr);
  with_team(threads, [&](Team team) {
    find_edges(team, pass);
    team.wait();
    auto& local = pass.local[team.rank];
    std::tie(local.first_tile, local.last_tile) = pass.share_tiles(team, pass.begin, pass.end);
    for (const Stage& stage : stages_) {
      if (stage.sent >= 0) team.wait();
      for (std::int64_t chunk = local.first_tile; chunk < local.last_tile; chunk += kChunkTiles) {
        const std::int64_t end = std::min(chunk + kChunkTiles, local.last_tile);
        receive(team, pass, stage, chunk, end);
        for (std::int64_t t = chunk; t < end; ++t)
          for (const Link& link : stage.links) follow(team, pass, link, pass.tiles[t]);
      }
    }
    read_out(team, pass, output);
    if (!pass.differentiate) return;
    for (auto stage = stages_.rbegin(); stage != stages_.rend(); ++stage) {
      if (stage->sent >= 0) {
        // Others may still read what this thread gave the senders of the stage after this one.
        team.wait();
        std::fill_n(local.sent_cotangent, pass.atoms * nodes_[stage->sent].width(), T(0));
      }
      for (std::int64_t chunk = local.first_tile; chunk < local.last_tile; chunk += kChunkTiles) {
        const std::int64_t end = std::min(chunk + kChunkTiles, local.last_tile);
        for (std::int64_t t = chunk; t < end; ++t)
          for (auto link = stage->links.rbegin(); link != stage->links.rend(); ++link)
            follow_reverse(team, pass, *link, pass.tiles[t]);
        receive_reverse(team, pass, *stage, chunk, end);
      }
      if (stage->sent < 0) continue;
      team.wait();
      const Node& sent = nodes_[stage->sent];
      for (std::int64_t t = local.first_tile; t < local.last_tile; ++t) {
        const std::int64_t first = pass.tiles[t].first * sent.width(), last = pass.tiles[t].last * sent.width();
        T* sum = pass.cotangents[stage->sent];
        std::copy(pass.local[0].sent_cotangent + first, pass.local[0].sent_cotangent + last, sum + first);
        for (int r = 1; r < team.size; ++r)
          for (std::int64_t i = first; i < last; ++i) sum[i] += pass.local[r].sent_cotangent[i];
      }
    }
    team.wait();
    gather_forces(team, pass, output);
  });
}

template class Invariant<EQUIPES_REAL>;

}  // namespace equipes
