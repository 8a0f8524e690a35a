// MACE's density blocks in the training engine: z is divided by how dense the atom's neighbourhood is,
//
//   z_i <- s_i z_i,   s_i = n / D_i,   D_i = 1 + Σ_j t(r_ij),   t = tanh(q²),   q = e(r)·b / √(basis functions)
//
// with e the radial basis, b the block's weights and n what the senders were divided by before. z and its cotangent are
// scaled where they lie; what they were before is s times less and is never needed by itself.
#include <cmath>

#include "engine.hpp"

namespace equipes {
namespace {

// Σ a b over all features of one atom.
template <class T>
double product_of(const Features<T>& features, const T* a, const T* b, std::int64_t atoms, std::int64_t place) {
  double total = 0;
  for (const Block<T>& block : features.blocks) {
    const T *own = block.of(a, atoms) + place * block.size(), *other = block.of(b, atoms) + place * block.size();
    Vector<T> sums{};
    for (int i = 0; i < block.size(); i += kLanes<T>) sums += load(own + i) * load(other + i);
    total += double(sum<T>(sums));
  }
  return total;
}

// a = factor a + other b of one atom; no b: a = factor a.
template <class T>
void combine(const Features<T>& features, T* a, double factor, const T* b, double other, std::int64_t atoms,
             std::int64_t place) {
  for (const Block<T>& block : features.blocks) {
    T* own = block.of(a, atoms) + place * block.size();
    const T* addend = b != nullptr ? block.of(b, atoms) + place * block.size() : nullptr;
    for (int i = 0; i < block.size(); i += kLanes<T>) {
      Vector<T> value = load(own + i) * T(factor);
      if (addend != nullptr) value += load(addend + i) * T(other);
      store<T>(own + i, value);
    }
  }
}

}  // namespace

// ---- Memory

template <class T>
void Engine<T>::prepare_density(const Pass& pass, Density& density) const {
  Arena& arena = *pass.arena;
  for (double** numbers : {&density.value, &density.by_q, &density.by_q_twice, &density.q_slope})
    *numbers = arena.take<double>(pass.plan.pairs);
  for (double** numbers : {&density.scale, &density.cotangent}) *numbers = arena.take<double>(pass.plan.atoms);
}

template <class T>
void Engine<T>::prepare_density_gradients(const Pass& pass, Density& density, Arena& arena) const {
  for (double** numbers : {&density.change, &density.scale_tangent}) *numbers = arena.take<double>(pass.plan.atoms);
}

// ---- Sweeps

template <class T>
void Engine<T>::density_forward(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  if (layer.density < 0) return;
  const Timer timer(team, Routine::kGate);
  const Plan& plan = pass.plan;
  typename Pass::State& state = pass.layers[k];
  Density& density = state.density;
  const T* weights = pass.values[layer.density];
  const int width = Channels<T>::padded(spec_.n_roots);
  const double norm = 1.0 / std::sqrt(double(spec_.n_roots));
  const auto [first_pair, last_pair] = team.share(plan.pairs);
  for (std::int64_t p = first_pair; p < last_pair; ++p) {
    const T* row = pass.basis_rows + 2 * p * width;
    double q = 0, slope = 0;
    for (int n = 0; n < spec_.n_roots; ++n) {
      q += double(row[n]) * double(weights[n]);
      slope += double(row[width + n]) * double(weights[n]);
    }
    q *= norm;
    const double value = std::tanh(q * q), rest = 1.0 - value * value;
    density.value[p] = value;
    density.by_q[p] = 2.0 * q * rest;
    density.by_q_twice[p] = 2.0 * rest * (1.0 - 4.0 * q * q * value);
    density.q_slope[p] = slope * norm;
  }
  team.wait();
  const auto [first, last] = team.share(plan.atoms);
  for (std::int64_t i = first; i < last; ++i) {
    double total = 1;
    for (std::int64_t e = plan.row[i]; e < plan.row[i + 1]; ++e) total += density.value[plan.pair[e]];
    density.scale[i] = layer.density_numerator / total;
    combine<T>(layer.gate_in, state.z, density.scale[i], nullptr, 0, plan.atoms, plan.place[i]);
  }
  team.wait();
}

// Also from the cotangent of D to those of the lengths.
template <class T>
void Engine<T>::density_reverse(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  if (layer.density < 0) return;
  const Timer timer(team, Routine::kGate);
  const Plan& plan = pass.plan;
  typename Pass::State& state = pass.layers[k];
  Density& density = state.density;
  const auto [first, last] = team.share(plan.atoms);
  for (std::int64_t i = first; i < last; ++i) {
    const std::int64_t place = plan.place[i];
    combine<T>(layer.gate_in, state.z_cotangent, density.scale[i], nullptr, 0, plan.atoms, place);
    density.cotangent[i] =
        -product_of<T>(layer.gate_in, state.z_cotangent, state.z, plan.atoms, place) / layer.density_numerator;
    for (std::int64_t e = plan.row[i]; e < plan.row[i + 1]; ++e)
      pass.length_cotangent[e] += T(density.cotangent[i] * density.by_q[plan.pair[e]] * density.q_slope[plan.pair[e]]);
  }
  team.wait();
}

template <class T>
void Engine<T>::density_tangent(Team team, Pass& pass, int k) const {
  const Layer& layer = layers_[k];
  if (layer.density < 0) return;
  const Timer timer(team, Routine::kGate);
  const Plan& plan = pass.plan;
  typename Pass::State& state = pass.layers[k];
  Density& density = state.density;
  const auto [first, last] = team.share(plan.atoms);
  for (std::int64_t i = first; i < last; ++i) {
    double tangent = 0;
    for (std::int64_t e = plan.row[i]; e < plan.row[i + 1]; ++e)
      tangent += density.by_q[plan.pair[e]] * density.q_slope[plan.pair[e]] * double(pass.length_tangent[e]);
    const double scale = density.scale[i];
    density.scale_tangent[i] = -scale * scale * tangent / layer.density_numerator;
    combine<T>(layer.gate_in, state.z_tangent, scale, state.z, density.scale_tangent[i] / scale, plan.atoms, plan.place[i]);
  }
  team.wait();
}

// Also the gradient of b. (The roots of MACE's basis are not trained.)
template <class T>
void Engine<T>::density_dual(Team team, Pass& pass, int k, const std::vector<T*>& targets) const {
  const Layer& layer = layers_[k];
  if (layer.density < 0) return;
  const Timer timer(team, Routine::kGate);
  const Plan& plan = pass.plan;
  typename Pass::State& state = pass.layers[k];
  Density& density = state.density;
  const auto [first, last] = team.share(plan.atoms);
  for (std::int64_t i = first; i < last; ++i) {
    const std::int64_t place = plan.place[i];
    const double scale = density.scale[i], relative = density.scale_tangent[i] / scale;
    const auto with = [&](const T* a, const T* b) { return product_of<T>(layer.gate_in, a, b, plan.atoms, place); };
    density.change[i] = -(scale * with(state.z_change, state.z) + with(state.z_cotangent, state.z_tangent) +
                          relative * with(state.z_cotangent, state.z)) / layer.density_numerator;
    combine<T>(layer.gate_in, state.z_change, scale, state.z_cotangent, relative, plan.atoms, place);
  }
  team.wait();
  if (team.rank == 0) density_gradient(pass, k, targets[layer.density]);
  team.wait();
}

// From the cotangents of q and dq/dr of the edges to that of b.
template <class T>
void Engine<T>::density_gradient(const Pass& pass, int k, T* target) const {
  const Plan& plan = pass.plan;
  const Density& density = pass.layers[k].density;
  const int width = Channels<T>::padded(spec_.n_roots);
  const T norm = T(1.0 / std::sqrt(double(spec_.n_roots)));
  std::fill_n(target, width, T(0));
  for (std::int64_t i = 0; i < plan.atoms; ++i)
    for (std::int64_t e = plan.row[i]; e < plan.row[i + 1]; ++e) {
      const std::int64_t p = plan.pair[e];
      const double along = density.cotangent[i] * double(pass.length_tangent[e]);
      const T by_value = norm * T(density.change[i] * density.by_q[p] + along * density.by_q_twice[p] * density.q_slope[p]);
      const T by_slope = norm * T(along * density.by_q[p]);
      const T* row = pass.basis_rows + 2 * p * width;
      for (int n = 0; n < width; n += kLanes<T>)
        add_to<T>(target + n, load(row + n) * by_value + load(row + width + n) * by_slope);
    }
}

using Real = EQUIPES_REAL;
using RealEngine = Engine<Real>;
template void RealEngine::prepare_density(const Pass&, Density&) const;
template void RealEngine::prepare_density_gradients(const Pass&, Density&, Arena&) const;
template void RealEngine::density_forward(Team, Pass&, int) const;
template void RealEngine::density_reverse(Team, Pass&, int) const;
template void RealEngine::density_tangent(Team, Pass&, int) const;
template void RealEngine::density_dual(Team, Pass&, int, const std::vector<Real*>&) const;

}  // namespace equipes
