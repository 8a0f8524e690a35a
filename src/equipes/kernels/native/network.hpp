// A network on scalars without bias, SiLU between linear layers, on pairs of rows: a value and its derivative.
#pragma once

#include <cmath>
#include <vector>

#include "layout.hpp"

namespace equipes {

// silu(x) = x s(x) with first and second derivative.
template <class T>
struct Silu {
  Vector<T> value, slope, curvature;

  explicit Silu(Vector<T> x) {
    const Vector<T> one = Vector<T>{} + T(1);
    const Vector<T> s = one / (one + exponential<T>(-x));
    value = x * s;
    slope = s * (one + x * (one - s));
    curvature = s * (one - s) * (T(2) + x * (one - s - s));
  }
};

// Rows come in pairs: (h, h') at rows 2i and 2i + 1. Reversing the network on both gives the exact gradient of anything
// that depends on values and derivatives.
template <class T>
struct Network {
  std::vector<Weight<T>> weights;
  double gain = 2.0;  // square of the activation's factor

  struct State {
    std::int64_t pairs = 0;
    std::vector<T*> inputs;  // of each layer, [pairs, 2, rows of its weight]
    std::vector<T*> slopes, curvatures;  // silu'(z) and silu''(z) z' of each hidden layer, [pairs, width]
    T* scratch = nullptr;
  };

  T scale(int layer, const Weight<T>& weight) const {
    return T(std::sqrt((layer == 0 ? 1.0 : gain) / weight.rows.count()));
  }

  int last() const { return int(weights.size()) - 1; }
  T last_scale() const { return scale(last(), weights.back()); }

  // Memory for `pairs` pairs. `input` holds the input rows, `scratch` takes `scratch_size(pairs)` elements that nobody
  // needs afterwards.
  State state(std::int64_t pairs, Arena& arena, T* input, T* scratch) const {
    State state;
    state.pairs = pairs;
    state.scratch = scratch;
    state.inputs.push_back(input);
    for (std::size_t k = 1; k < weights.size(); ++k) {
      const int width = weights[k].rows.width();
      state.inputs.push_back(arena.take<T>(2 * pairs * width));
      state.slopes.push_back(arena.take<T>(pairs * width));
      state.curvatures.push_back(arena.take<T>(pairs * width));
    }
    return state;
  }

  std::int64_t scratch_size(std::int64_t pairs) const { return 2 * pairs * widest(); }
  int widest() const {
    int width = 0;
    for (const Weight<T>& weight : weights) width = std::max(width, weight.rows.width());
    return width;
  }

  // Everything up to the last layer's input.
  void hidden(Team team, const State& state, const std::vector<const T*>& values) const {
    for (int k = 0; k < last(); ++k) {
      const Weight<T>& weight = weights[k];
      const int width = weight.columns.width();
      multiply<T>(team, 2 * state.pairs, width, weight.rows.width(), {state.inputs[k], weight.rows.width()},
                  {values[k], width}, state.scratch, width, false, scale(k, weight));
      team.wait();
      const auto [first, last] = team.share(state.pairs);
      for (std::int64_t i = first; i < last; ++i) {
        const T* z = state.scratch + 2 * i * width;
        T* h = state.inputs[k + 1] + 2 * i * width;
        for (int c = 0; c < width; c += kLanes<T>) {
          const Silu<T> silu(load(z + c));
          const Vector<T> slope = load(z + width + c);
          store<T>(h + c, silu.value);
          store<T>(h + width + c, silu.slope * slope);
          store<T>(state.slopes[k] + i * width + c, silu.slope);
          store<T>(state.curvatures[k] + i * width + c, silu.curvature * slope);
        }
      }
      team.wait();
    }
  }

  // From the cotangents of the last layer's input, which are overwritten, to gradients of the weights before it and,
  // where wanted, the cotangents of the network's input. `gradients` may be empty: then only the cotangents are made.
  void reverse_hidden(Team team, const State& state, const std::vector<const T*>& values, T* cotangent,
                      const std::vector<T*>& gradients, T* input_cotangent) const {
    for (int k = last() - 1; k >= 0; --k) {
      const Weight<T>& weight = weights[k];
      const int width = weight.columns.width(), depth = weight.rows.width();
      const auto [first, last] = team.share(state.pairs);
      for (std::int64_t i = first; i < last; ++i) {
        T* g = cotangent + 2 * i * width;
        for (int c = 0; c < width; c += kLanes<T>) {
          const Vector<T> slope = load(state.slopes[k] + i * width + c), change = load(g + width + c);
          store<T>(g + c, load(g + c) * slope + change * load(state.curvatures[k] + i * width + c));
          store<T>(g + width + c, change * slope);
        }
      }
      team.wait();
      const T factor = scale(k, weight);
      if (!gradients.empty())
        multiply<T>(team, depth, width, 2 * state.pairs, Matrix<T>{state.inputs[k], depth}.transposed(),
                    {cotangent, width}, gradients[k], width, false, factor);
      T* below = k > 0 ? state.scratch : input_cotangent;
      if (below != nullptr)
        multiply<T>(team, 2 * state.pairs, depth, width, {cotangent, width}, Matrix<T>{values[k], width}.transposed(),
                    below, depth, false, factor);
      team.wait();
      if (k > 0) {  // the scratch rows become the cotangents of the layer below
        const auto [from, to] = team.share(2 * state.pairs * depth);
        std::copy(state.scratch + from, state.scratch + to, cotangent + from);
        team.wait();
      }
    }
  }
};

}  // namespace equipes
