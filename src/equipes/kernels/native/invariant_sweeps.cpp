// What the nodes of a frozen SchNet, PhysNet or ANI receive from the neighbours, and the links between them.
#include "invariant.hpp"

namespace equipes {
namespace {

// Of n numbers, whole vectors, the activated ones and, where they are asked for, the derivatives.
template <class T>
void activate(Activation activation, std::int64_t n, const T* x, T* y, T* slopes) {
  const auto all = [&](auto function) {
    Vector<T> slope;
    if (slopes == nullptr)
      for (std::int64_t c = 0; c < n; c += kLanes<T>) store<T>(y + c, function(load(x + c), slope));
    else
      for (std::int64_t c = 0; c < n; c += kLanes<T>) {
        store<T>(y + c, function(load(x + c), slope));
        store<T>(slopes + c, slope);
      }
  };
  if (activation == Activation::kSoftplus)
    all([](Vector<T> v, Vector<T>& slope) EQUIPES_INLINE { return shifted_softplus<T>(v, slope); });
  else
    all([](Vector<T> v, Vector<T>& slope) EQUIPES_INLINE { return silu<T>(v, slope); });
}

}  // namespace

// The messages of some tiles, or their symmetry functions.
template <class T>
void Invariant<T>::receive(Team team, Pass& pass, const Stage& stage, std::int64_t first_tile,
                           std::int64_t last_tile) const {
  if (stage.received < 0) return;
  const Timer timer(team, Routine::kForward);
  const Node& node = nodes_[stage.received];
  const std::int64_t width = node.width();
  T* received = pass.values[stage.received];
  if (stage.sent < 0) {
    for (std::int64_t t = first_tile; t < last_tile; ++t) {
      const FrozenTile& tile = pass.tiles[t];
      std::fill(received + tile.first * width, received + tile.last * width, T(0));
      if (!stage.by_species()) {
        for (std::int64_t s = tile.first; s < tile.last; ++s)
          symmetry_.forward(pass.begin[s], pass.end[s], pass.vectors, pass.stride, pass.type, pass.local[team.rank].room,
                            received + s * width);
        continue;
      }
      SpeciesSplineJob<T> job;
      job.edges = pass.edges;
      job.first = tile.first;
      job.last = tile.last;
      job.table = stage.table;
      job.type_stride = stage.type_stride;
      job.interval_stride = stage.interval_stride;
      job.degrees[0] = {int(width) / kLanes<T>, 0, {received, width, width}};
      species_spline_forward(job);
    }
    return;
  }
  for (const Section& section : stage.sections) {
    SplineJob<T> job;
    job.edges = pass.edges;
    job.vectors = section.vectors;
    job.x = {pass.values[stage.sent] + section.channel, width, width};
    job.table = section.table;
    job.interval_stride = section.interval_stride;
    job.vector_stride = kCoefficients * kLanes<T>;
    for (std::int64_t t = first_tile; t < last_tile; ++t) {
      job.first = pass.tiles[t].first;
      job.last = pass.tiles[t].last;
      job.path(0, 0) = {0, received + job.first * width + section.channel, width, width};
      spline_forward(0, job);
    }
  }
}

// From the cotangents of what was received to those of what was sent and of the edges.
template <class T>
void Invariant<T>::receive_reverse(Team team, Pass& pass, const Stage& stage, std::int64_t first_tile,
                                   std::int64_t last_tile) const {
  if (stage.received < 0) return;
  const Timer timer(team, Routine::kReverse);
  const std::int64_t width = nodes_[stage.received].width();
  T* received = pass.cotangents[stage.received];
  auto& local = pass.local[team.rank];
  if (stage.sent < 0) {
    for (std::int64_t t = first_tile; t < last_tile; ++t) {
      const FrozenTile& tile = pass.tiles[t];
      if (!stage.by_species()) {
        for (std::int64_t s = tile.first; s < tile.last; ++s)
          symmetry_.reverse(pass.begin[s], pass.end[s], pass.vectors, pass.stride, pass.type, local.room,
                            received + s * width, pass.gradient);
        continue;
      }
      SpeciesSplineJob<T> job;
      job.edges = pass.edges;
      job.first = tile.first;
      job.last = tile.last;
      job.table = stage.table;
      job.type_stride = stage.type_stride;
      job.interval_stride = stage.interval_stride;
      job.degrees[0] = {int(width) / kLanes<T>, 0, {received, width, width}};
      species_spline_reverse(job);
    }
    return;
  }
  for (const Section& section : stage.sections) {
    SplineJob<T> job;
    job.edges = pass.edges;
    job.vectors = section.vectors;
    job.x = {pass.values[stage.sent] + section.channel, width, width};
    job.x_cotangent = {local.sent_cotangent + section.channel, width, width};
    job.table = section.table;
    job.interval_stride = section.interval_stride;
    job.vector_stride = kCoefficients * kLanes<T>;
    for (std::int64_t t = first_tile; t < last_tile; ++t) {
      job.first = pass.tiles[t].first;
      job.last = pass.tiles[t].last;
      job.path(0, 0) = {0, received + job.first * width + section.channel, width, width};
      spline_reverse(0, job);
    }
  }
}

template <class T>
void Invariant<T>::follow(Team team, Pass& pass, const Link& link, const FrozenTile& tile) const {
  constexpr int n = kLanes<T>;
  const Node& to = nodes_[link.to];
  const std::int64_t rows = tile.last - tile.first, width = to.width();
  T* target = pass.values_of(to, link.to, team.rank, tile);
  bool adds = link.adds;
  if (!link.constants.empty()) {
    for (std::int64_t a = 0; a < rows; ++a) {
      const T* constants = link.constants.data() + (link.constants_by_species ? pass.type_at[tile.first + a] * width : 0);
      for (std::int64_t c = 0; c < width; c += n) {
        const Vector<T> constant = load(constants + c);
        store<T>(target + a * width + c, adds ? load(target + a * width + c) + constant : constant);
      }
    }
    adds = true;
  }
  if (link.from < 0) return;
  const Node& from = nodes_[link.from];
  const T* source = pass.values_of(from, link.from, team.rank, tile);
  if (link.activation != Activation::kNone) {
    const Timer timer(team, Routine::kGate);
    T* slopes = pass.slopes[link.number];
    T* scratch = pass.local[team.rank].scratch;
    activate<T>(link.activation, rows * from.width(), source, scratch,
                slopes == nullptr ? nullptr : slopes + tile.first * from.width());
    source = scratch;
  }
  if (link.forward.empty()) {
    const Timer timer(team, Routine::kGate);
    for (std::int64_t a = 0; a < rows * width; a += width)
      for (std::int64_t c = 0; c < width; c += n) {
        const Vector<T> value = load(source + a + c) * load(&link.factors[c]);
        store<T>(target + a + c, adds ? load(target + a + c) + value : value);
      }
    return;
  }
  const Timer timer(team, Routine::kLinear);
  multiply_panels<T>(rows, {source, from.width()}, link.of(link.forward, tile.type), target, width, adds);
  count_operations(team, Routine::kLinear, 2.0 * team.size * double(rows) * double(from.width()) * double(width));
}

template <class T>
void Invariant<T>::follow_reverse(Team team, Pass& pass, const Link& link, const FrozenTile& tile) const {
  constexpr int n = kLanes<T>;
  if (link.from < 0 || !nodes_[link.from].alive) return;
  const Node &from = nodes_[link.from], &to = nodes_[link.to];
  const std::int64_t rows = tile.last - tile.first, width = from.width();
  const T* given = pass.cotangents_of(to, link.to, team.rank, tile);
  T* target = pass.cotangents_of(from, link.from, team.rank, tile);
  const T* slopes = pass.slopes[link.number];
  if (!link.reverse.empty()) {
    const Timer timer(team, Routine::kLinear);
    T* product = slopes != nullptr ? pass.local[team.rank].scratch : target;
    multiply_panels<T>(rows, {given, to.width()}, link.of(link.reverse, tile.type), product, width,
                       slopes == nullptr && link.adds_cotangent);
    count_operations(team, Routine::kLinear, 2.0 * team.size * double(rows) * double(to.width()) * double(width));
    if (slopes == nullptr) return;
    given = product;
  }
  const Timer timer(team, Routine::kGate);
  if (slopes != nullptr) slopes += tile.first * width;
  for (std::int64_t a = 0; a < rows * width; a += width)
    for (std::int64_t c = 0; c < width; c += n) {
      Vector<T> value = load(given + a + c);
      if (slopes != nullptr) value *= load(slopes + a + c);
      if (link.reverse.empty()) value *= load(&link.factors[c]);
      store<T>(target + a + c, link.adds_cotangent ? load(target + a + c) + value : value);
    }
}

using Real = EQUIPES_REAL;
template void Invariant<Real>::receive(Team, Pass&, const Stage&, std::int64_t, std::int64_t) const;
template void Invariant<Real>::receive_reverse(Team, Pass&, const Stage&, std::int64_t, std::int64_t) const;
template void Invariant<Real>::follow(Team, Pass&, const Link&, const FrozenTile&) const;
template void Invariant<Real>::follow_reverse(Team, Pass&, const Link&, const FrozenTile&) const;

}  // namespace equipes
