// Message passing of a whole layer: its paths, cut into jobs for the kernels and shared by the threads.
#pragma once

#include <cstdlib>
#include <vector>

#include "layout.hpp"
#include "messages.hpp"
#include "plan.hpp"

namespace equipes {

struct PathSpec {
  int block = 0, l2 = 0, l3 = 0, p3 = 0;
  bool idle = false;  // what it makes cannot reach the energy
};

// What message passing of one layer reads and writes. Every vector has one entry for each block of features or messages.
template <class T>
struct MessageArrays {
  std::vector<Rows<T>> x, x_tangent, x_cotangent;  // of the input blocks
  std::vector<Rows<T>> messages;  // forward and tangent write them, the reverse sweeps read their cotangents
  std::vector<Rows<T>> messages_tangent;  // changes of the cotangents
  T* harmonics_cotangent = nullptr;  // [(l_max + 1)²][stride], added to
  T* length_cotangent = nullptr;  // [stride], added to
};

// Radial weights of some channels of one path.
template <class T>
struct WeightTile {
  int path = 0;
  int channel = 0;  // of the path
  int vectors = 0;
  const T* w = nullptr;
  T* cotangent = nullptr;
  std::int64_t stride = 0, derivative = 0;
};

template <class T>
class Convolution {
 public:
  Convolution() = default;

  // `irreps_out` has one block for each kind of irrep, with the results of its paths one after the other.
  Convolution(const std::vector<Irrep>& irreps_in, const std::vector<PathSpec>& paths,
              const std::vector<Irrep>& irreps_out)
      : irreps_in_(irreps_in), paths_(paths) {
    std::vector<std::vector<int>> groups(irreps_out.size());
    for (const PathSpec& path : paths)
      for (std::size_t s = 0; s < irreps_out.size(); ++s)
        if (irreps_out[s].l == path.l3 && irreps_out[s].p == path.p3) {
          section_.push_back(int(s));
          group_.push_back(int(groups[s].size()));
          groups[s].push_back(irreps_in[path.block].multiplicity);
        }
    for (std::size_t s = 0; s < irreps_out.size(); ++s) messages_.add(irreps_out[s], Channels<T>(groups[s]));
    for (std::size_t p = 0; p < paths.size(); ++p)
      for (int c = 0; c < width(int(p)); c += kTile<T>)
        tiles_.push_back({int(p), c, std::min(kTile<T>, width(int(p)) - c) / kLanes<T>});
    for (std::size_t t = 0; t < tiles_.size(); ++t) add_to_job(int(t));
  }

  const Features<T>& messages() const { return messages_; }
  const std::vector<WeightTile<T>>& tiles() const { return tiles_; }
  const std::vector<PathSpec>& paths() const { return paths_; }
  const Irrep& input_of(int path) const { return irreps_in_[paths_[path].block]; }

  // Channels of a block with one degree of the harmonics, and the tiles of its paths by l3 (-1: no such path).
  struct Job {
    int block, l2, channel, vectors;
    std::array<int, kMaxL + 1> tile;
    double cost;  // about the number of vector operations for each edge in the forward sweep
  };

  const std::vector<Job>& jobs() const { return jobs_; }

  // Cotangents of features, harmonics and lengths are added to; each thread needs arrays of its own for them. All else is
  // written by one thread only, so nothing is atomic, and the result depends on the number of threads alone.
  void run(MessageSweep sweep, Team team, const Neighbours<T>& edges, const std::vector<Group>& groups,
           const std::vector<WeightTile<T>>& tiles, const MessageArrays<T>& arrays) const {
    const auto nothing = [](const Job&, const Group&) {};
    run(sweep, team, edges, groups, tiles, arrays, 0.0, nothing, nothing);
  }

  // The same, with before(job, group) and after(job, group) around each job on a group of structures, by the thread that
  // does the job: to make radial weights, or to use their cotangents, while they are in the cache. `tile_cost` is about
  // the number of vector operations of this for each tile of radial weights and edge.
  template <class Before, class After>
  void run(MessageSweep sweep, Team team, const Neighbours<T>& edges, const std::vector<Group>& groups,
           const std::vector<WeightTile<T>>& tiles, const MessageArrays<T>& arrays, double tile_cost, Before&& before,
           After&& after) const {
    constexpr double kSweepCost[] = {1, 2, 2, 5};
    std::vector<double> costs;
    double work = 0;
    for (const Job& job : jobs_) {
      costs.push_back(job.cost * kSweepCost[int(sweep)]);
      for (int tile : job.tile)
        if (tile >= 0) costs.back() += tile_cost * job.vectors;
      work += costs.back();
    }
    work *= double(edges.row[groups.back().last] - edges.row[0]);
    double done = 0;
    for (const Group& group : groups) {
      const double n = double(edges.row[group.last] - edges.row[group.first]);
      for (std::size_t j = 0; j < jobs_.size(); ++j) {
        // A job belongs to the thread in whose share of the work its middle lies.
        const double middle = done + 0.5 * costs[j] * n;
        done += costs[j] * n;
        const int owner = work > 0 ? std::min(team.size - 1, int(middle / work * team.size)) : 0;
        if (owner != team.rank) continue;
        before(jobs_[j], group);
        run(sweep, jobs_[j], edges, group, tiles, arrays);
        after(jobs_[j], group);
      }
    }
  }

 private:
  int width(int path) const { return Channels<T>::padded(input_of(path).multiplicity); }
  int column(int path) const { return messages_.blocks[section_[path]].channels.start(group_[path]); }

  double cost(int path) const {
    const int l1 = input_of(path).l, l2 = paths_[path].l2, l3 = paths_[path].l3;
    return (2 * l1 + 1) * (2 * l3 + 1) * (l2 == 0 ? 1.0 / (2 * l1 + 1) : 0.8) + 2 * l1 + 2 * l3 + 4;
  }

  void add_to_job(int index) {
    const WeightTile<T>& tile = tiles_[index];
    const PathSpec& path = paths_[tile.path];
    const int l1 = input_of(tile.path).l;
    const int k = path.l3 - std::abs(l1 - path.l2);
    const double work = cost(tile.path) * tile.vectors;
    for (Job& job : jobs_)
      if (job.block == path.block && job.l2 == path.l2 && job.channel == tile.channel) {
        job.tile[k] = index;
        job.cost += work;
        return;
      }
    Job job{path.block, path.l2, tile.channel, tile.vectors, {}, work};
    job.tile.fill(-1);
    job.tile[k] = index;
    jobs_.push_back(job);
  }

  void run(MessageSweep sweep, const Job& job, const Neighbours<T>& edges, const Group& group,
           const std::vector<WeightTile<T>>& tiles, const MessageArrays<T>& arrays) const {
    const auto rows = [](const std::vector<Rows<T>>& blocks, int block, int channel) {
      return blocks.empty() ? Rows<T>{} : blocks[block].from_channel(channel);
    };
    MessageJob<T> task;
    task.edges = edges;
    task.edges.first = group.first;
    task.edges.last = group.last;
    task.edges.harmonics += job.l2 * job.l2 * edges.stride;
    if (edges.harmonics_tangent != nullptr) task.edges.harmonics_tangent += job.l2 * job.l2 * edges.stride;
    task.vectors = job.vectors;
    task.x = rows(arrays.x, job.block, job.channel);
    task.x_tangent = rows(arrays.x_tangent, job.block, job.channel);
    task.x_cotangent = rows(arrays.x_cotangent, job.block, job.channel);
    for (int k = 0; k <= kMaxL; ++k) {
      if (job.tile[k] < 0) continue;
      const WeightTile<T>& tile = tiles[job.tile[k]];
      const int section = section_[tile.path], channel = column(tile.path) + tile.channel;
      PathRows<T>& path = task.paths[k];
      path.w = tile.w;
      path.stride = tile.stride;
      path.derivative = tile.derivative;
      path.w_cotangent = tile.cotangent;
      path.messages = rows(arrays.messages, section, channel);
      path.messages_tangent = rows(arrays.messages_tangent, section, channel);
    }
    if (arrays.harmonics_cotangent != nullptr)
      task.harmonics_cotangent = arrays.harmonics_cotangent + job.l2 * job.l2 * edges.stride;
    task.length_cotangent = arrays.length_cotangent;
    message_kernel<T>(sweep, irreps_in_[job.block].l, job.l2)(task);
  }

  std::vector<Irrep> irreps_in_;
  std::vector<PathSpec> paths_;
  std::vector<int> section_, group_;  // of each path: block of messages, and which group of its channels
  Features<T> messages_;
  std::vector<WeightTile<T>> tiles_;  // without arrays
  std::vector<Job> jobs_;
};

}  // namespace equipes
