// The symmetry functions of ANI with their derivatives, all float64: of each species of neighbours
//   Σ_j exp(-η (r_j - r_s)²) f(r_j),
// and of each pair of species, with the angle θ between two neighbours shrunk a little (see models/ani.py),
//   2^(1-ζ) Σ_jk (1 + cos(θ - θ_s))^ζ exp(-η ((r_j + r_k) / 2 - r_s)²) f(r_j) f(r_k),   f(r) = ½ (cos(π r / r_c) + 1).
// Vectors run over centres, so that an atom's neighbours need no order and no padding.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "frozen_parts.hpp"
#include "functions.hpp"
#include "geometry.hpp"

namespace equipes {

struct SymmetrySpec {
  double r_max = 0, angular_r_max = 0;  // Å
  double radial_eta = 0, angular_eta = 0, zeta = 0;  // 1/Å², 1/Å², 1
  double shrink = 0;  // of the cosine, below 1
  std::vector<double> radial_centres, shells, angles;  // Å, Å, rad
};

class SymmetryFunctions {
 public:
  using Doubles = Vector<double>;

  // A neighbour within the angular cutoff.
  struct Near {
    std::int64_t edge;
    int type;
    double length, unit[3];
    double cutoff, cutoff_slope;
    double along, across[3];  // derivatives by length and, as if its length were free, by the unit vector
  };

  // What one atom needs at a time.
  struct Room {
    double* row;  // its functions, or their cotangents
    double *shell, *shell_slope, *angle, *angle_slope, *sum;
    Near* near;
  };

  SymmetryFunctions() = default;
  SymmetryFunctions(const SymmetrySpec& spec, int n_species)
      : spec_(spec), n_species_(n_species), radial_(padded(spec.radial_centres)), shells_(padded(spec.shells)) {
    require(spec.r_max > 0 && spec.angular_r_max > 0 && spec.angular_r_max <= spec.r_max && spec.zeta > 0 &&
                spec.zeta < 1e6 && spec.shrink > 0 && spec.shrink < 1 && !spec.radial_centres.empty() &&
                !spec.shells.empty() && !spec.angles.empty(),
            "a symmetry function's constants are out of range");
    for (double angle : padded(spec.angles)) {
      cosines_.push_back(std::cos(angle));
      sines_.push_back(std::sin(angle));
    }
  }

  // Functions of an atom.
  int count() const {
    return n_species_ * int(spec_.radial_centres.size()) + pairs() * int(spec_.shells.size() * spec_.angles.size());
  }

  Room room(Arena& arena, std::int64_t neighbours) const {
    Room room;
    room.row = arena.take<double>(n_species_ * std::int64_t(radial_.size()) + pairs() * block());
    for (double** part : {&room.shell, &room.shell_slope}) *part = arena.take<double>(std::int64_t(shells_.size()));
    for (double** part : {&room.angle, &room.angle_slope, &room.sum})
      *part = arena.take<double>(std::int64_t(cosines_.size()));
    room.near = arena.take<Near>(neighbours);
    return room;
  }

  // The functions of an atom whose edges are begin .. end, `vectors` [3][stride].
  template <class T>
  void forward(std::int64_t begin, std::int64_t end, const double* vectors, std::int64_t stride, const std::int32_t* types,
               Room& room, T* values) const {
    std::fill_n(room.row, n_species_ * std::int64_t(radial_.size()) + pairs() * block(), 0.0);
    const int near = neighbours(begin, end, vectors, stride, types, room, [&](const Near& edge) {
      const auto [cutoff, slope] = cosine_cutoff(edge.length, spec_.r_max);
      double* row = room.row + edge.type * std::int64_t(radial_.size());
      for (std::size_t c = 0; c < radial_.size(); c += kLanes<double>) {
        const Doubles d = edge.length - load(&radial_[c]);
        add_to<double>(row + c, exponential<double>(-spec_.radial_eta * d * d) * cutoff);
      }
    });
    for (int j = 0; j < near; ++j)
      for (int k = j + 1; k < near; ++k) {
        const Near &a = room.near[j], &b = room.near[k];
        evaluate_pair(a, b, room);
        double* row = angular_row(room, a.type, b.type);
        for (std::size_t s = 0; s < spec_.shells.size(); ++s, row += cosines_.size()) {
          const double factor = room.shell[s] * a.cutoff * b.cutoff;
          for (std::size_t c = 0; c < cosines_.size(); c += kLanes<double>)
            add_to<double>(row + c, load(room.angle + c) * factor);
        }
      }
    walk(room.row, [&](double number) { *values++ = T(number); });
  }

  // From the functions' cotangents the derivatives by the edges' vectors, [3][stride], overwritten.
  template <class T>
  void reverse(std::int64_t begin, std::int64_t end, const double* vectors, std::int64_t stride, const std::int32_t* types,
               Room& room, const T* cotangents, double* gradient) const {
    std::fill_n(room.row, n_species_ * std::int64_t(radial_.size()) + pairs() * block(), 0.0);
    walk(room.row, [&](double& number) { number = double(*cotangents++); });
    const int near = neighbours(begin, end, vectors, stride, types, room, [&](const Near& edge) {
      const auto [cutoff, slope] = cosine_cutoff(edge.length, spec_.r_max);
      const double* row = room.row + edge.type * std::int64_t(radial_.size());
      Doubles sum{};
      for (std::size_t c = 0; c < radial_.size(); c += kLanes<double>) {
        const Doubles d = edge.length - load(&radial_[c]);
        sum += load(row + c) * exponential<double>(-spec_.radial_eta * d * d) *
               (slope - 2.0 * spec_.radial_eta * cutoff * d);
      }
      const double along = equipes::sum<double>(sum);
      for (int c = 0; c < 3; ++c) gradient[c * stride + edge.edge] = along * edge.unit[c];
    });
    for (int j = 0; j < near; ++j)
      for (int k = j + 1; k < near; ++k) reverse_pair(room.near[j], room.near[k], room);
    for (int j = 0; j < near; ++j) {
      const Near& edge = room.near[j];
      const double* u = edge.unit;
      const double radial = edge.across[0] * u[0] + edge.across[1] * u[1] + edge.across[2] * u[2];
      for (int c = 0; c < 3; ++c)
        gradient[c * stride + edge.edge] += edge.along * u[c] + (edge.across[c] - radial * u[c]) / edge.length;
    }
  }

 private:
  int pairs() const { return n_species_ * (n_species_ + 1) / 2; }
  std::int64_t block() const { return std::int64_t(spec_.shells.size() * cosines_.size()); }

  // Whole vectors of numbers; what is beyond the real ones serves nothing.
  static std::vector<double> padded(std::vector<double> numbers) {
    numbers.resize(std::size_t(Channels<double>::padded(int(numbers.size()))), 0.0);
    return numbers;
  }

  static std::pair<double, double> cosine_cutoff(double r, double end) {
    if (r >= end) return {0.0, 0.0};
    return {0.5 * (std::cos(kPi * r / end) + 1.0), -0.5 * kPi / end * std::sin(kPi * r / end)};
  }

  // Species low <= high: the upper triangle, row by row.
  double* angular_row(const Room& room, int type, int other) const {
    const int low = std::min(type, other), high = std::max(type, other);
    const int pair = low * n_species_ - low * (low - 1) / 2 + high - low;
    return room.row + n_species_ * std::int64_t(radial_.size()) + pair * block();
  }

  // Calls f with each number of a row that is no padding, in the order of the network's input.
  template <class F>
  void walk(double* row, F&& f) const {
    for (int t = 0; t < n_species_; ++t, row += radial_.size())
      for (std::size_t c = 0; c < spec_.radial_centres.size(); ++c) f(row[c]);
    for (std::size_t s = 0; s < pairs() * spec_.shells.size(); ++s, row += cosines_.size())
      for (std::size_t c = 0; c < spec_.angles.size(); ++c) f(row[c]);
  }

  // Calls f with each neighbour, and keeps the near ones; returns how many there are.
  template <class F>
  int neighbours(std::int64_t begin, std::int64_t end, const double* vectors, std::int64_t stride,
                 const std::int32_t* types, Room& room, F&& f) const {
    int count = 0;
    for (std::int64_t e = begin; e < end; ++e) {
      const double r[3] = {vectors[e], vectors[stride + e], vectors[2 * stride + e]};
      const double length = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
      Near edge{e, types[e], length, {r[0] / length, r[1] / length, r[2] / length}, 0.0, 0.0, 0.0, {}};
      f(edge);
      if (length >= spec_.angular_r_max) continue;
      std::tie(edge.cutoff, edge.cutoff_slope) = cosine_cutoff(length, spec_.angular_r_max);
      room.near[count++] = edge;
    }
    return count;
  }

  static double dot(const Near& a, const Near& b) {
    return a.unit[0] * b.unit[0] + a.unit[1] * b.unit[1] + a.unit[2] * b.unit[2];
  }

  // The factors of the angle and of the mean distance, with their derivatives by the shrunk cosine and by that distance.
  void evaluate_pair(const Near& a, const Near& b, Room& room) const {
    const double cosine = spec_.shrink * dot(a, b), sine = std::sqrt(1.0 - cosine * cosine);
    const double ratio = cosine / sine;
    for (std::size_t c = 0; c < cosines_.size(); c += kLanes<double>) {
      const Doubles its_cosine = load(&cosines_[c]), its_sine = load(&sines_[c]);
      const Doubles base = 0.5 * (1.0 + cosine * its_cosine + sine * its_sine);
      const Doubles power = power_of(base, spec_.zeta - 1.0);
      store<double>(room.angle + c, 2.0 * power * base);
      store<double>(room.angle_slope + c, spec_.zeta * power * (its_cosine - ratio * its_sine));
    }
    const double mean = 0.5 * (a.length + b.length);
    for (std::size_t s = 0; s < shells_.size(); s += kLanes<double>) {
      const Doubles d = mean - load(&shells_[s]);
      const Doubles value = exponential<double>(-spec_.angular_eta * d * d);
      store<double>(room.shell + s, value);
      store<double>(room.shell_slope + s, -2.0 * spec_.angular_eta * d * value);
    }
  }

  void reverse_pair(Near& a, Near& b, Room& room) const {
    evaluate_pair(a, b, room);
    const double* row = angular_row(room, a.type, b.type);
    std::fill_n(room.sum, cosines_.size(), 0.0);
    double total = 0, by_mean = 0;
    for (std::size_t s = 0; s < spec_.shells.size(); ++s, row += cosines_.size()) {
      Doubles of_shell{};
      for (std::size_t c = 0; c < cosines_.size(); c += kLanes<double>) {
        const Doubles g = load(row + c);
        of_shell += g * load(room.angle + c);
        add_to<double>(room.sum + c, g * room.shell[s]);
      }
      const double its = sum<double>(of_shell);
      total += room.shell[s] * its;
      by_mean += room.shell_slope[s] * its;
    }
    Doubles of_cosine{};
    for (std::size_t c = 0; c < cosines_.size(); c += kLanes<double>)
      of_cosine += load(room.sum + c) * load(room.angle_slope + c);
    const double both = a.cutoff * b.cutoff, by_cosine = spec_.shrink * both * sum<double>(of_cosine);
    a.along += 0.5 * both * by_mean + a.cutoff_slope * b.cutoff * total;
    b.along += 0.5 * both * by_mean + a.cutoff * b.cutoff_slope * total;
    for (int c = 0; c < 3; ++c) {
      a.across[c] += by_cosine * b.unit[c];
      b.across[c] += by_cosine * a.unit[c];
    }
  }

  SymmetrySpec spec_;
  int n_species_ = 0;
  std::vector<double> radial_, shells_, cosines_, sines_;
};

}  // namespace equipes
