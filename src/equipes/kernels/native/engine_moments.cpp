// The first layer by moments of the neighbourhoods. There features are those of the species, y_s, so that the sum over edges
// can be done before the last layer of the radial network, W, and before the linear map of the messages, M_l:
//
//   z_i,lm = Σ_s B_i,s,lm V_s,l,   B_i,s,lm[k] = Σ_{j of species s} Y_lm(r_ij) h_k(r_ij),   V_s,l[k, w] = Σ_u W_l[k, u] y_s[u] M_l[u, w]
//
// with h what W acts on. An edge then costs h times Y, of which there are far fewer than messages; an atom costs products with
// V, more of them the more species there are. Which way is shorter depends on the batch.
#include <cmath>

#include "engine.hpp"

namespace equipes {
namespace {

// About how many operations of a matrix product the messages of one edge take the time of, for each component and channel,
// all sweeps together (measured).
constexpr double kMessageCost = 90;

// Vectors of h that go through an edge together.
constexpr int kChunk = 4;

// Calls f(l as a number known to the compiler).
template <class F>
[[gnu::always_inline]] inline void for_degree(int l, F&& f) {
  unroll<kMaxL + 1>([&](auto degree) EQUIPES_INLINE {
    if (l == degree) f(degree);
  });
}

}  // namespace

// ---- Which layers and batches

// Whether the layer's messages are made of scalars, so that each block of them belongs to one path.
template <class T>
void Engine<T>::add_moments(Layer& layer) const {
  if (layer.in.blocks.size() != 1 || layer.in.blocks[0].irrep.l != 0) return;
  const std::vector<PathSpec>& paths = layer.convolution.paths();
  const Features<T>& messages = layer.convolution.messages();
  for (const BlockWeight& entry : layer.linear_2) {
    const Block<T>& block = messages.blocks[entry.from];
    for (std::size_t p = 0; p < paths.size(); ++p)
      if (paths[p].l3 == block.irrep.l && paths[p].p3 == block.irrep.p && block.channels.groups() == 1)
        layer.moments.push_back({block.irrep.l, layer.radial.weights.back().columns.start(int(p)), entry});
  }
  if (layer.moments.size() != paths.size()) layer.moments.clear();
}

template <class T>
bool Engine<T>::moments_are_shorter(const Plan& plan) const {
  const Layer& layer = layers_[0];
  if (layer.moments.empty() || plan.edges == 0) return false;
  if (spec_.moments != 0) return spec_.moments > 0;
  const double atoms = double(plan.atoms), pairs = double(plan.pairs), edges = double(plan.edges);
  const double rows = double(plan.species.size()) * layer.radial.weights.back().rows.width();
  double with = 0, without = 0;
  for (const MomentBlock& block : layer.moments) {
    const double components = 2 * block.l + 1, channels = layer.in.blocks[0].width();
    const double width = layer.gate_in.blocks[block.map.to].width();
    with += 12 * atoms * components * rows * width + 6 * rows * channels * width + 20 * edges * components * rows;
    without += 12 * atoms * components * channels * width + 12 * pairs * rows / double(plan.species.size()) * channels +
               kMessageCost * edges * components * channels;
  }
  return with < without;
}

// ---- Memory

template <class T>
void Engine<T>::prepare_moments(Pass& pass) const {
  pass.moments.on = moments_are_shorter(pass.plan);
  if (!pass.moments.on) return;
  const Layer& layer = layers_[0];
  const Plan& plan = pass.plan;
  Moments& moments = pass.moments;
  Arena& arena = *pass.arena;
  const int kinds = int(plan.species.size());
  moments.depth = layer.radial.weights.back().rows.width();
  moments.width = std::int64_t(kinds) * moments.depth;
  std::vector<int> kind_at(plan.atoms);
  for (int s = 0; s < kinds; ++s)
    std::fill(kind_at.begin() + plan.species[s].first, kind_at.begin() + plan.species[s].last, s);
  moments.kind.resize(plan.edges);
  moments.edges.resize(2 * plan.pairs, -1);
  moments.order.resize(plan.edges);
  moments.start.assign(plan.atoms * kinds + 1, 0);
  for (std::int64_t e = 0; e < plan.edges; ++e) {
    moments.kind[e] = kind_at[plan.sender_place[e]];
    ++moments.start[std::int64_t(plan.receiver[e]) * kinds + moments.kind[e] + 1];
    moments.edges[2 * plan.pair[e] + (plan.opens[e] ? 0 : 1)] = std::int32_t(e);
  }
  for (std::size_t i = 1; i < moments.start.size(); ++i) moments.start[i] += moments.start[i - 1];
  std::vector<std::int64_t> next(moments.start.begin(), moments.start.end() - 1);
  for (std::int64_t e = 0; e < plan.edges; ++e)
    moments.order[next[std::int64_t(plan.receiver[e]) * kinds + moments.kind[e]]++] = std::int32_t(e);
  for (const MomentBlock& block : layer.moments) {
    const std::int64_t size = plan.atoms * (2 * block.l + 1) * moments.width;
    const int channels = layer.in.blocks[0].width(), width = layer.gate_in.blocks[block.map.to].width();
    moments.values.push_back(arena.take<T>(size));
    moments.cotangents.push_back(arena.take<T>(size));
    moments.joined.push_back(arena.take<T>(moments.width * channels));
    moments.maps.push_back(arena.take<T>(moments.width * width));
  }
}

template <class T>
void Engine<T>::prepare_moments_gradients(Pass& pass, Arena& arena) const {
  Moments& moments = pass.moments;
  moments.tangents.clear();
  moments.changes.clear();
  moments.map_changes.clear();
  moments.joined_changes.clear();
  if (!moments.on) return;
  for (const MomentBlock& block : layers_[0].moments) {
    const std::int64_t size = pass.plan.atoms * (2 * block.l + 1) * moments.width;
    const int channels = layers_[0].in.blocks[0].width(), width = layers_[0].gate_in.blocks[block.map.to].width();
    moments.tangents.push_back(arena.take<T>(size));
    moments.changes.push_back(arena.take<T>(size));
    moments.map_changes.push_back(arena.take<T>(moments.width * width));
    moments.joined_changes.push_back(arena.take<T>(moments.width * channels));
  }
}

// ---- Sums over the edges

// B, or with `tangent` its change, of the team's receivers.
template <class T>
template <bool Tangent>
void Engine<T>::sum_moments(Team team, const Pass& pass, const std::vector<T*>& targets) const {
  constexpr int n = kLanes<T>;
  const Plan& plan = pass.plan;
  const Moments& moments = pass.moments;
  const Neighbours<T>& edges = pass.edges;
  const T* hidden = pass.layers[0].radial.inputs.back();
  const std::int64_t stride = edges.stride, kinds = std::int64_t(plan.species.size());
  const int depth = moments.depth;
  const auto [first, last] = team.share(plan.atoms);
  for (std::int64_t i = first; i < last; ++i)
    for (std::int64_t s = 0; s < kinds; ++s) {
      const std::int32_t* begin = moments.order.data() + moments.start[i * kinds + s];
      const std::int32_t* end = moments.order.data() + moments.start[i * kinds + s + 1];
      for (std::size_t b = 0; b < targets.size(); ++b)
        for_degree(layers_[0].moments[b].l, [&](auto l) {
          constexpr int count = 2 * l + 1;
          const T* harmonics = edges.harmonics + l * l * stride;
          const T* changes = Tangent ? edges.harmonics_tangent + l * l * stride : nullptr;
          T* target = targets[b] + plan.place[i] * count * moments.width + s * depth;
          const auto sum = [&](auto vectors, int v) EQUIPES_INLINE {
            constexpr int m_vectors = vectors;
            Vector<T> sums[count][m_vectors] = {};
            for (const std::int32_t* edge = begin; edge < end; ++edge) {
              const T* h = hidden + 2 * std::int64_t(plan.pair[*edge]) * depth + v;
              Vector<T> values[m_vectors], slopes[m_vectors];
              unroll<m_vectors>([&](auto k) EQUIPES_INLINE {
                values[k] = load(h + k * n);
                if constexpr (Tangent) slopes[k] = load(h + depth + k * n) * edges.length_tangent[*edge];
              });
              unroll<count>([&](auto m) EQUIPES_INLINE {
                const T y = harmonics[m * stride + *edge];
                unroll<m_vectors>([&](auto k) EQUIPES_INLINE {
                  if constexpr (Tangent) {
                    sums[m][k] += slopes[k] * y;
                    if constexpr (l > 0) sums[m][k] += values[k] * changes[m * stride + *edge];  // Y_0 does not change
                  } else {
                    sums[m][k] += values[k] * y;
                  }
                });
              });
            }
            unroll<count>([&](auto m) EQUIPES_INLINE {
              unroll<m_vectors>([&](auto k) EQUIPES_INLINE { store<T>(target + m * moments.width + v + k * n, sums[m][k]); });
            });
          };
          int v = 0;
          for (; v + 2 * n <= depth; v += 2 * n) sum(std::integral_constant<int, 2>{}, v);
          if (v < depth) sum(std::integral_constant<int, 1>{}, v);
        });
    }
}

// From the cotangents of B to those of the harmonics and lengths of the team's receivers' edges.
template <class T>
void Engine<T>::spread_moments(Team team, Pass& pass) const {
  constexpr int n = kLanes<T>;
  const Plan& plan = pass.plan;
  const Moments& moments = pass.moments;
  const T* hidden = pass.layers[0].radial.inputs.back();
  const std::int64_t stride = pass.edges.stride;
  const int depth = moments.depth;
  const auto [first, last] = team.share(plan.atoms);
  for (std::int64_t i = first; i < last; ++i)
    for (std::int64_t e = plan.row[i]; e < plan.row[i + 1]; ++e) {
      const T* h = hidden + 2 * std::int64_t(plan.pair[e]) * depth;
      Vector<T> along{};
      const auto spread = [&](auto vectors, int v) EQUIPES_INLINE {
        constexpr int m_vectors = vectors;
        Vector<T> values[m_vectors], cotangents[m_vectors] = {};
        unroll<m_vectors>([&](auto k) EQUIPES_INLINE { values[k] = load(h + v + k * n); });
        for (std::size_t b = 0; b < moments.cotangents.size(); ++b)
          for_degree(layers_[0].moments[b].l, [&](auto l) EQUIPES_INLINE {
            constexpr int count = 2 * l + 1;
            const T* from = moments.cotangents[b] + plan.place[i] * count * moments.width + moments.kind[e] * depth + v;
            unroll<count>([&](auto m) EQUIPES_INLINE {
              const std::int64_t at = (l * l + m) * stride + e;
              const T y = pass.harmonics[at];
              Vector<T> product{};
              unroll<m_vectors>([&](auto k) EQUIPES_INLINE {
                const Vector<T> g = load(from + m * moments.width + k * n);
                cotangents[k] += g * y;
                product += g * values[k];
              });
              // Y_0 is constant.
              if constexpr (l > 0) pass.harmonics_cotangent[at] += equipes::sum<T>(product);
            });
          });
        unroll<m_vectors>([&](auto k) EQUIPES_INLINE { along += cotangents[k] * load(h + depth + v + k * n); });
      };
      int v = 0;
      for (; v + kChunk * n <= depth; v += kChunk * n) spread(std::integral_constant<int, kChunk>{}, v);
      for (; v < depth; v += n) spread(std::integral_constant<int, 1>{}, v);
      pass.length_cotangent[e] += equipes::sum<T>(along);
    }
}

// From the changes of B's cotangents to those of h and of dh/dr, of the team's pairs.
template <class T>
void Engine<T>::spread_moments_dual(Team team, Pass& pass) const {
  constexpr int n = kLanes<T>;
  const Plan& plan = pass.plan;
  const Moments& moments = pass.moments;
  const std::int64_t stride = pass.edges.stride;
  const int depth = moments.depth;
  const auto [first, last] = team.share(plan.pairs);
  for (std::int64_t p = first; p < last; ++p) {
    T* target = pass.hidden_change + 2 * p * depth;
    const auto spread = [&](auto vectors, int v) EQUIPES_INLINE {
      constexpr int m_vectors = vectors;
      Vector<T> values[m_vectors] = {}, slopes[m_vectors] = {};
      for (int side = 0; side < 2; ++side) {
        const std::int64_t e = moments.edges[2 * p + side];
        if (e < 0) continue;
        Vector<T> along[m_vectors] = {};
        const std::int64_t place = plan.place[plan.receiver[e]];
        for (std::size_t b = 0; b < moments.changes.size(); ++b)
          for_degree(layers_[0].moments[b].l, [&](auto l) EQUIPES_INLINE {
            constexpr int count = 2 * l + 1;
            const std::int64_t start = place * count * moments.width + moments.kind[e] * depth + v;
            unroll<count>([&](auto m) EQUIPES_INLINE {
              const std::int64_t at = (l * l + m) * stride + e;
              const T y = pass.harmonics[at], change = pass.harmonics_tangent[at];
              unroll<m_vectors>([&](auto k) EQUIPES_INLINE {
                const Vector<T> g = load(moments.cotangents[b] + start + m * moments.width + k * n);
                along[k] += g * y;
                if constexpr (l > 0) values[k] += g * change;
                values[k] += load(moments.changes[b] + start + m * moments.width + k * n) * y;
              });
            });
          });
        unroll<m_vectors>([&](auto k) EQUIPES_INLINE { slopes[k] += along[k] * pass.length_tangent[e]; });
      }
      unroll<m_vectors>([&](auto k) EQUIPES_INLINE {
        store<T>(target + v + k * n, values[k]);
        store<T>(target + depth + v + k * n, slopes[k]);
      });
    };
    int v = 0;
    for (; v + kChunk * n <= depth; v += kChunk * n) spread(std::integral_constant<int, kChunk>{}, v);
    for (; v < depth; v += n) spread(std::integral_constant<int, 1>{}, v);
  }
}

// ---- Sweeps, from y or its cotangents to z or back

// z += or = B V; or, in reverse, the cotangent of B from that of z.
template <class T>
void Engine<T>::map_moments(Team team, const Pass& pass, const std::vector<T*>& moments, T* z, bool reverse) const {
  const Layer& layer = layers_[0];
  const std::int64_t atoms = pass.plan.atoms, width = pass.moments.width;
  for (std::size_t b = 0; b < layer.moments.size(); ++b) {
    const Block<T>& out = layer.gate_in.blocks[layer.moments[b].map.to];
    const std::int64_t rows = atoms * out.components();
    const Matrix<T> map{pass.moments.maps[b], out.width()};
    count_operations(team, Routine::kMoments, 2.0 * rows * width * out.width());
    if (reverse)
      multiply<T>(team, rows, width, out.width(), {out.of(z, atoms), out.width()}, map.transposed(), moments[b], width,
                  false, T(1));
    else
      multiply<T>(team, rows, out.width(), width, {moments[b], width}, map, out.of(z, atoms), out.width(), false, T(1));
  }
  if (!reverse) clear_untouched(team, pass, layer, z);
}

template <class T>
void Engine<T>::moments_forward(Team team, Pass& pass) const {
  const Timer timer(team, Routine::kMoments);
  const Layer& layer = layers_[0];
  const Moments& moments = pass.moments;
  const Weight<T>& widening = layer.radial.weights.back();
  const T* weights = pass.values[layer.radial_weights.back()];
  const int channels = layer.in.blocks[0].width(), depth = moments.depth;
  const auto [first, last] = team.share(moments.width);
  for (std::size_t b = 0; b < layer.moments.size(); ++b)
    for (std::int64_t r = first; r < last; ++r) {
      const T* y = pass.layers[0].y + pass.plan.species[r / depth].first * channels;
      const T* w = weights + (r % depth) * widening.columns.width() + layer.moments[b].column;
      for (int c = 0; c < channels; c += kLanes<T>)
        store<T>(moments.joined[b] + r * channels + c, load(w + c) * load(y + c) * layer.radial.last_scale());
    }
  team.wait();
  for (std::size_t b = 0; b < layer.moments.size(); ++b) {
    const BlockWeight& entry = layer.moments[b].map;
    const int width = layer.gate_in.blocks[entry.to].width();
    count_operations(team, Routine::kMoments, 2.0 * moments.width * channels * width);
    multiply<T>(team, moments.width, width, channels, {moments.joined[b], channels}, {pass.values[entry.weight], width},
                moments.maps[b], width, false, factor_of_map(layer, entry));
  }
  sum_moments<false>(team, pass, moments.values);
  team.wait();
  map_moments(team, pass, moments.values, pass.layers[0].z, false);
}

template <class T>
void Engine<T>::moments_reverse(Team team, Pass& pass) const {
  const Timer timer(team, Routine::kMoments);
  map_moments(team, pass, pass.moments.cotangents, pass.layers[0].z_cotangent, true);
  team.wait();
  spread_moments(team, pass);
  team.wait();
}

template <class T>
void Engine<T>::moments_tangent(Team team, Pass& pass) const {
  const Timer timer(team, Routine::kMoments);
  sum_moments<true>(team, pass, pass.moments.tangents);
  team.wait();
  map_moments(team, pass, pass.moments.tangents, pass.layers[0].z_tangent, false);
}

// To the changes of the cotangents of h and of y, the latter at the first atom of each species, and the gradients of W and M.
template <class T>
void Engine<T>::moments_dual(Team team, Pass& pass, const std::vector<T*>& targets) const {
  const Timer timer(team, Routine::kMoments);
  const Layer& layer = layers_[0];
  const typename Pass::State& state = pass.layers[0];
  const Moments& moments = pass.moments;
  const std::int64_t atoms = pass.plan.atoms;
  const int channels = layer.in.blocks[0].width();
  map_moments(team, pass, moments.changes, state.z_change, true);
  for (std::size_t b = 0; b < layer.moments.size(); ++b) {
    const Block<T>& out = layer.gate_in.blocks[layer.moments[b].map.to];
    const std::int64_t rows = atoms * out.components();
    const auto transposed = [&](const T* data) { return Matrix<T>{data, moments.width}.transposed(); };
    count_operations(team, Routine::kMoments, 4.0 * rows * moments.width * out.width());
    multiply<T>(team, moments.width, out.width(), rows, transposed(moments.values[b]),
                {out.of(state.z_change, atoms), out.width()}, moments.map_changes[b], out.width(), false, T(1));
    multiply<T>(team, moments.width, out.width(), rows, transposed(moments.tangents[b]),
                {out.of(state.z_cotangent, atoms), out.width()}, moments.map_changes[b], out.width(), true, T(1));
  }
  team.wait();
  spread_moments_dual(team, pass);
  for (std::size_t b = 0; b < layer.moments.size(); ++b) {
    const BlockWeight& entry = layer.moments[b].map;
    const int width = layer.gate_in.blocks[entry.to].width();
    const T factor = factor_of_map(layer, entry);
    count_operations(team, Routine::kMoments, 4.0 * moments.width * channels * width);
    multiply<T>(team, channels, width, moments.width, Matrix<T>{moments.joined[b], channels}.transposed(),
                {moments.map_changes[b], width}, targets[entry.weight], width, false, factor);
    multiply<T>(team, moments.width, channels, width, {moments.map_changes[b], width},
                Matrix<T>{pass.values[entry.weight], width}.transposed(), moments.joined_changes[b], channels, false, factor);
  }
  team.wait();
  split_joined_change(team, pass, targets[layer.radial_weights.back()]);
  team.wait();
}

// From the changes of W y_s to those of W and y_s.
template <class T>
void Engine<T>::split_joined_change(Team team, Pass& pass, T* target) const {
  const Layer& layer = layers_[0];
  const typename Pass::State& state = pass.layers[0];
  const Moments& moments = pass.moments;
  const std::vector<SpeciesRange>& species = pass.plan.species;
  const T* weights = pass.values[layer.radial_weights.back()];
  const std::int64_t row = layer.radial.weights.back().columns.width();
  const int channels = layer.in.blocks[0].width(), depth = moments.depth;
  const T scale = layer.radial.last_scale();
  const auto [first_row, last_row] = team.share(depth);
  for (std::size_t b = 0; b < layer.moments.size(); ++b)
    for (std::int64_t k = first_row; k < last_row; ++k)
      for (int c = 0; c < channels; c += kLanes<T>) {
        Vector<T> sum{};
        for (std::size_t s = 0; s < species.size(); ++s)
          sum += load(state.y + species[s].first * channels + c) *
                 load(moments.joined_changes[b] + (std::int64_t(s) * depth + k) * channels + c);
        store<T>(target + k * row + layer.moments[b].column + c, sum * scale);
      }
  const auto [first, last] = team.share(channels / kLanes<T>);
  for (std::int64_t c = first * kLanes<T>; c < last * kLanes<T>; c += kLanes<T>) {
    for (std::int64_t i = 0; i < pass.plan.atoms; ++i) store<T>(state.y_change + i * channels + c, Vector<T>{});
    for (std::size_t s = 0; s < species.size(); ++s) {
      Vector<T> sum{};
      for (std::size_t b = 0; b < layer.moments.size(); ++b)
        for (int k = 0; k < depth; ++k)
          sum += load(weights + k * row + layer.moments[b].column + c) *
                 load(moments.joined_changes[b] + (std::int64_t(s) * depth + k) * channels + c);
      store<T>(state.y_change + species[s].first * channels + c, sum * scale);
    }
  }
}

using Real = EQUIPES_REAL;
using RealEngine = Engine<Real>;
template void RealEngine::add_moments(Layer&) const;
template void RealEngine::prepare_moments(Pass&) const;
template void RealEngine::prepare_moments_gradients(Pass&, Arena&) const;
template void RealEngine::moments_forward(Team, Pass&) const;
template void RealEngine::moments_reverse(Team, Pass&) const;
template void RealEngine::moments_tangent(Team, Pass&) const;
template void RealEngine::moments_dual(Team, Pass&, const std::vector<Real*>&) const;

}  // namespace equipes
