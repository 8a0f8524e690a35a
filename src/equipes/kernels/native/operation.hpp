// Message passing alone, on arrays laid out as in Python: features [N, Σ (2l+1) multiplicity], weights [E, n_weights].
#pragma once

#include <vector>

#include "convolution.hpp"
#include "plan.hpp"

namespace equipes {

// The derivatives of F(x, Y, w, g) by each of its arguments; see messages.hpp.
template <class T>
class MessagePassing {
 public:
  MessagePassing(std::vector<Irrep> irreps_in, const std::vector<PathSpec>& paths, std::vector<Irrep> irreps_out, int l_max)
      : irreps_in_(std::move(irreps_in)),
        irreps_out_(std::move(irreps_out)),
        convolution_(irreps_in_, paths, irreps_out_),
        n_harmonics_((l_max + 1) * (l_max + 1)) {
    if (l_max > kMaxL) throw std::invalid_argument("l_max is too large for the native kernels");
    for (const Irrep& irrep : irreps_in_) {
      in_.add(irrep, Channels<T>({irrep.multiplicity}));
      in_dim_ += irrep.components() * irrep.multiplicity;
    }
    for (std::size_t p = 0; p < paths.size(); ++p) {
      path_start_.push_back(n_weights_);
      n_weights_ += convolution_.input_of(int(p)).multiplicity;
    }
    for (const Irrep& irrep : irreps_out_) out_dim_ += irrep.components() * irrep.multiplicity;
  }

  struct Graph {
    std::int64_t atoms, edges;
    const std::int64_t *row, *sender;
  };

  void forward(int threads, const Graph& graph, const T* x, const T* harmonics, const T* w, T* out) const {
    Arena arena;
    const Inputs inputs(*this, graph, x, harmonics, w, arena);
    T* messages = arena.take<T>(graph.atoms * convolution_.messages().size);
    with_team(threads, [&](Team team) {
      MessageArrays<T> arrays;
      arrays.x = inputs.x;
      arrays.messages = rows(convolution_.messages(), messages, graph.atoms);
      convolution_.run(MessageSweep::kForward, team, inputs.edges, inputs.groups, inputs.tiles, arrays);
    });
    copy_out(convolution_.messages(), messages, out, out_dim_, graph.atoms);
  }

  // Each of the results may be nullptr.
  void reverse(int threads, const Graph& graph, const T* x, const T* harmonics, const T* w, const T* cotangent,
               T* x_result, T* harmonics_result, T* w_result) const {
    Arena arena;
    Inputs inputs(*this, graph, x, harmonics, w, arena);
    const Features<T>& messages = convolution_.messages();
    T* g = arena.take<T>(graph.atoms * messages.size);
    copy_in(messages, cotangent, out_dim_, g, graph.atoms);
    std::vector<T*> features, numbers;
    const std::int64_t n_features = graph.atoms * in_.size, n_numbers = n_harmonics_ * inputs.edges.stride;
    for (int r = 0; r < threads; ++r) {
      features.push_back(arena.take<T>(n_features));
      numbers.push_back(arena.take<T>(n_numbers));
    }
    T* w_cotangent = arena.take<T>(graph.edges * inputs.weight_width);
    for (WeightTile<T>& tile : inputs.tiles) tile.cotangent = w_cotangent + (tile.w - inputs.weights);
    with_team(threads, [&](Team team) {
      std::fill_n(features[team.rank], n_features, T(0));
      std::fill_n(numbers[team.rank], n_numbers, T(0));
      MessageArrays<T> arrays;
      arrays.x = inputs.x;
      arrays.x_cotangent = rows(in_, features[team.rank], graph.atoms);
      arrays.messages = rows(messages, g, graph.atoms);
      arrays.harmonics_cotangent = numbers[team.rank];
      convolution_.run(MessageSweep::kReverse, team, inputs.edges, inputs.groups, inputs.tiles, arrays);
      team.wait();
      for (int r = 1; r < team.size; ++r) {
        const auto [first, last] = team.share(n_features);
        for (std::int64_t i = first; i < last; ++i) features[0][i] += features[r][i];
        const auto [from, to] = team.share(n_numbers);
        for (std::int64_t i = from; i < to; ++i) numbers[0][i] += numbers[r][i];
      }
    });
    if (x_result != nullptr) copy_out(in_, features[0], x_result, in_dim_, graph.atoms);
    if (harmonics_result != nullptr)
      for (std::int64_t e = 0; e < graph.edges; ++e)
        for (int m = 0; m < n_harmonics_; ++m)
          harmonics_result[e * n_harmonics_ + m] = numbers[0][m * inputs.edges.stride + e];
    if (w_result != nullptr) {
      for (const WeightTile<T>& tile : inputs.tiles)
        for (std::int64_t e = 0; e < graph.edges; ++e)
          std::copy_n(tile.cotangent + e * tile.stride, real_channels(tile),
                      w_result + e * n_weights_ + path_start_[tile.path] + tile.channel);
    }
  }

 private:
  // The arguments in the kernels' layout.
  struct Inputs {
    Inputs(const MessagePassing& owner, const Graph& graph, const T* x_given, const T* harmonics_given, const T* w_given,
           Arena& arena)
        : tiles(owner.convolution_.tiles()), groups{{0, graph.atoms, 0, graph.edges}} {
      T* features = arena.take<T>(graph.atoms * owner.in_.size);
      owner.copy_in(owner.in_, x_given, owner.in_dim_, features, graph.atoms);
      x = rows(owner.in_, features, graph.atoms);
      edges.row = graph.row;
      edges.stride = (graph.edges + 63) / 64 * 64 + 64;
      T* harmonics = arena.take<T>(owner.n_harmonics_ * edges.stride);
      for (std::int64_t e = 0; e < graph.edges; ++e)
        for (int m = 0; m < owner.n_harmonics_; ++m)
          harmonics[m * edges.stride + e] = harmonics_given[e * owner.n_harmonics_ + m];
      edges.harmonics = harmonics;
      place.resize(graph.atoms);
      for (std::int64_t i = 0; i < graph.atoms; ++i) place[i] = std::int32_t(i);
      sender.assign(graph.sender, graph.sender + graph.edges);
      number.resize(graph.edges + kFetchAhead);
      for (std::int64_t e = 0; e < graph.edges; ++e) number[e] = std::int32_t(e);
      edges.place = place.data();
      edges.sender = sender.data();
      edges.weights = number.data();
      for (const WeightTile<T>& tile : tiles) weight_width += tile.vectors * kLanes<T>;
      T* w = arena.take<T>(graph.edges * weight_width);
      weights = w;
      for (WeightTile<T>& tile : tiles) {
        tile.stride = tile.vectors * kLanes<T>;
        tile.w = w;
        const int real = owner.real_channels(tile);
        for (std::int64_t e = 0; e < graph.edges; ++e) {
          const T* from = w_given + e * owner.n_weights_ + owner.path_start_[tile.path] + tile.channel;
          std::copy_n(from, real, w + e * tile.stride);
          std::fill_n(w + e * tile.stride + real, tile.stride - real, T(0));
        }
        w += graph.edges * tile.stride;
      }
    }

    std::vector<WeightTile<T>> tiles;
    std::vector<Group> groups;
    std::vector<Rows<T>> x;
    Neighbours<T> edges;
    std::vector<std::int32_t> place, sender, number;
    const T* weights = nullptr;
    std::int64_t weight_width = 0;
  };

  int real_channels(const WeightTile<T>& tile) const {
    return std::min(tile.vectors * kLanes<T>, convolution_.input_of(tile.path).multiplicity - tile.channel);
  }

  static std::vector<Rows<T>> rows(const Features<T>& features, T* data, std::int64_t atoms) {
    std::vector<Rows<T>> result;
    for (const Block<T>& block : features.blocks) result.push_back({block.of(data, atoms), block.size(), block.width()});
    return result;
  }

  // f(row of the caller, row here, number of channels) for each atom, component and group of channels.
  template <class F>
  static void for_runs(const Features<T>& features, std::int64_t dim, std::int64_t atoms, F&& f) {
    std::int64_t start = 0;
    for (const Block<T>& block : features.blocks) {
      const Channels<T>& channels = block.channels;
      for (std::int64_t n = 0; n < atoms; ++n)
        for (int m = 0; m < block.components(); ++m)
          for (int g = 0; g < channels.groups(); ++g)
            f(n * dim + start + m * channels.count() + channels.real_start(g),
              block.before * atoms + (n * block.components() + m) * channels.width() + channels.start(g),
              channels.size(g));
      start += block.components() * channels.count();
    }
  }

  static void copy_in(const Features<T>& features, const T* given, std::int64_t dim, T* data, std::int64_t atoms) {
    std::fill_n(data, atoms * features.size, T(0));
    for_runs(features, dim, atoms,
             [&](std::int64_t from, std::int64_t to, int n) { std::copy_n(given + from, n, data + to); });
  }

  static void copy_out(const Features<T>& features, const T* data, T* result, std::int64_t dim, std::int64_t atoms) {
    for_runs(features, dim, atoms,
             [&](std::int64_t to, std::int64_t from, int n) { std::copy_n(data + from, n, result + to); });
  }

  std::vector<Irrep> irreps_in_, irreps_out_;
  Convolution<T> convolution_;
  Features<T> in_;
  std::vector<int> path_start_;
  int n_weights_ = 0, n_harmonics_ = 1;
  std::int64_t in_dim_ = 0, out_dim_ = 0;
};

}  // namespace equipes
