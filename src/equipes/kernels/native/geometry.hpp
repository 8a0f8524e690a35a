// Harmonics, radial basis and nuclear repulsion of the edges, with derivatives; all float64.
#pragma once

#include <cmath>
#include <vector>

#include "couplings.hpp"
#include "memory.hpp"
#include "plan.hpp"
#include "team.hpp"
#include "vector.hpp"

namespace equipes {

constexpr double kPi = 3.14159265358979323846;

// Numbers of edges lie as [component][stride], so that vectors run over edges; the stride leaves room to read beyond.
inline std::int64_t edge_stride(std::int64_t edges) { return (edges + 63) / 64 * 64 + 64; }

struct Geometry {
  std::int64_t stride = 0;
  double* direction = nullptr;  // [3][stride]
  double* slopes = nullptr;  // [(l_max + 1)²][3][stride], dY/dr, 1/Å
};

namespace detail {

using Doubles = Vector<double>;

template <int L>
void raise(int l_max, const Doubles* u, const Doubles* y, const Doubles (*dy)[3], Doubles* next, Doubles (*dnext)[3]) {
  if constexpr (L < kMaxL) {
    if (l_max <= L) return;
    const double root = std::sqrt(3.0);
    for (int m = 0; m < 2 * L + 3; ++m) {
      next[m] = Doubles{};
      for (int c = 0; c < 3; ++c) dnext[m][c] = Doubles{};
    }
    for (const Term& term : Raising<L>::terms) {
      const double value = term.value * root;
      next[term.m3] += y[term.m1] * u[term.m2] * value;
      for (int c = 0; c < 3; ++c) dnext[term.m3][c] += dy[term.m1][c] * u[term.m2] * value;
      dnext[term.m3][term.m2] += y[term.m1] * value;
    }
    raise<L + 1>(l_max, u, next, dnext, next + 2 * L + 3, dnext + 2 * L + 3);
  }
}

}  // namespace detail

// Y of the unit vectors and dY/dr, for the team's edges; each Y_{l+1} is a polynomial made of Y_l and Y_1.
template <class T>
void harmonics_of_edges(Team team, const Plan& plan, const double* vectors, int l_max, Geometry& geometry, T* harmonics) {
  using detail::Doubles;
  constexpr int n = kLanes<double>;
  constexpr int kCount = (kMaxL + 1) * (kMaxL + 1);
  const std::int64_t stride = geometry.stride;
  const int count = (l_max + 1) * (l_max + 1);
  const auto [first, last] = team.share((plan.edges + n - 1) / n);
  for (std::int64_t start = first * n; start < last * n; start += n) {
    Doubles u[3] = {}, y[kCount], dy[kCount][3] = {}, inverse = {};
    for (int k = 0; k < n; ++k) {
      const std::int64_t e = start + k;
      if (e >= plan.edges) break;
      inverse[k] = 1.0 / plan.length[e];
      for (int c = 0; c < 3; ++c) u[c][k] = vectors[3 * plan.original[e] + c] * inverse[k];
    }
    y[0] = Doubles{} + 1.0;
    if (l_max > 0) {
      const double root = std::sqrt(3.0);
      for (int c = 0; c < 3; ++c) {
        y[1 + c] = u[c] * root;
        dy[1 + c][c] = Doubles{} + root;
      }
      detail::raise<1>(l_max, u, y + 1, dy + 1, y + 4, dy + 4);
    }
    for (int c = 0; c < 3; ++c) store<double>(geometry.direction + c * stride + start, u[c]);
    for (int m = 0; m < count; ++m) {
      for (int k = 0; k < n; ++k) harmonics[m * stride + start + k] = T(y[m][k]);
      // The polynomials hold off the unit sphere too; only the change of direction counts: (1 - u uᵀ) / r.
      const Doubles along = dy[m][0] * u[0] + dy[m][1] * u[1] + dy[m][2] * u[2];
      for (int c = 0; c < 3; ++c)
        store<double>(geometry.slopes + (3 * m + c) * stride + start, (dy[m][c] - along * u[c]) * inverse);
    }
  }
}

// u(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) below 1, and its derivative.
inline std::pair<double, double> polynomial_cutoff(double x, int p) {
  if (x >= 1.0) return {0.0, 0.0};
  const double a = 0.5 * (p + 1) * (p + 2), b = p * (p + 2.0), c = 0.5 * p * (p + 1);
  double power = 1.0;
  for (int k = 0; k < p - 1; ++k) power *= x;
  return {1.0 - power * x * (a - x * (b - c * x)), -power * (a * p - x * (b * (p + 1) - c * (p + 2) * x))};
}

// u(x) = (1 - x²)² (1 + 2 x² - 3 on²) / (1 - on²)³ from on to 1, and its derivative: the switching function of X-PLOR.
inline std::pair<double, double> xplor_cutoff(double x, double on) {
  if (x >= 1.0) return {0.0, 0.0};
  if (x < on) return {1.0, 0.0};
  const double left = 1.0 - x * x, width = 1.0 - on * on, scale = 1.0 / (width * width * width);
  return {left * left * (1.0 + 2.0 * x * x - 3.0 * on * on) * scale, 12.0 * x * left * (on * on - x * x) * scale};
}

// What a radial basis takes in the place of the distance r: Agnesi's 1 / (1 + a s^q / (1 + s^(q - p))) with s = r / r0, r0
// half the sum of two radii; or a soft step from 3/4 r0 on to r itself at 4/3 r0, r0 their sum (see nn/radial.py).
struct DistanceTransform {
  enum Kind { kNone, kAgnesi, kSoft } kind = kNone;
  double q = 0, p = 0, a = 0;  // of Agnesi's
  double alpha = 0;  // of the soft step
  std::vector<double> radii;  // by species, Å

  // Its value and derivative for a pair of species.
  std::pair<double, double> evaluate(int pair_of_species, double r) const {
    if (kind == kNone) return {r, 1.0};
    const double sum = radii[pair_of_species / radii.size()] + radii[pair_of_species % radii.size()];
    if (kind == kAgnesi) {
      const double r0 = 0.5 * sum, s = r / r0, power = std::pow(s, q), w = std::pow(s, q - p);
      const double x = 1.0 / (1.0 + a * power / (1.0 + w));
      return {x, -x * x * a * power / (s * r0) * (q * (1.0 + w) - (q - p) * w) / ((1.0 + w) * (1.0 + w))};
    }
    const double near = 0.75 * sum, far = 4.0 / 3.0 * sum, steepness = alpha / (far - near);
    const double t = std::tanh(steepness * (r - 0.5 * (near + far))), step = 0.5 * (1.0 + t);
    return {near + (r - near) * step, step + (r - near) * 0.5 * (1.0 - t * t) * steepness};
  }
};

// The radial basis e_n = 2π/r_max² sin(nπx)/(πx) u(r / cutoff), x = r / cutoff, as rows (e, de/dr) of each pair. With a
// transform X of the distance x is X / cutoff.
struct RadialBasis {
  double r_max = 0;
  int power = 0;
  double on = 0;  // where X-PLOR's function begins, of the cutoff; 0: the polynomial is the cutoff function
  double factor = 0;  // in the place of 2π/r_max², if it is not 0
  DistanceTransform transform;
  std::vector<double> roots;

  std::pair<double, double> envelope(double x) const {
    return on > 0 ? xplor_cutoff(x, on) : polynomial_cutoff(x, power);
  }
  double scale() const { return factor != 0 ? factor : 2 * kPi / (r_max * r_max); }

  template <class T>
  void evaluate(Team team, const Plan& plan, int width, T* rows) const {
    const auto [first, last] = team.share(plan.pairs);
    for (std::int64_t k = first; k < last; ++k) {
      const double inverse = 1.0 / plan.pair_cutoff[k];
      const auto [u, du] = envelope(plan.pair_length[k] * inverse);
      const auto [distance, change] = transform.evaluate(plan.pair_species[k], plan.pair_length[k]);
      const double x = distance * inverse;
      T* row = rows + 2 * k * width;
      std::fill_n(row, 2 * width, T(0));
      for (std::size_t n = 0; n < roots.size(); ++n) {
        const double sine = std::sin(roots[n] * kPi * x), cosine = std::cos(roots[n] * kPi * x);
        const double b = sine / (kPi * x), db = (roots[n] * cosine - b) / x;
        row[n] = T(scale() * b * u);
        row[width + n] = T(scale() * inverse * (db * change * u + b * du));
      }
    }
  }

  // d(cotangent · rows)/d(roots) of the team's pairs, added to `gradient`.
  template <class T>
  void roots_gradient(const Plan& plan, int width, const T* cotangent, double* gradient) const {
    for (std::int64_t k = 0; k < plan.pairs; ++k) {
      const double inverse = 1.0 / plan.pair_cutoff[k];
      const auto [u, du] = envelope(plan.pair_length[k] * inverse);
      const auto [distance, change] = transform.evaluate(plan.pair_species[k], plan.pair_length[k]);
      const double x = distance * inverse;
      const T* row = cotangent + 2 * k * width;
      for (std::size_t n = 0; n < roots.size(); ++n) {
        const double sine = std::sin(roots[n] * kPi * x), cosine = std::cos(roots[n] * kPi * x);
        gradient[n] += scale() * (row[n] * cosine * u +
                                  row[width + n] * inverse * (cosine * du - roots[n] * kPi * sine * change * u));
      }
    }
  }
};

// The Ziegler-Biersack-Littmark repulsion: E_i = Σ_j K/r φ(s) u(x), with K and s/r by species.
struct Repulsion {
  int power = 0;
  std::vector<double> charge_product, inverse_length;  // [n_species, n_species]; empty: there is none
  std::vector<double> cutoffs;  // [n_species, n_species] Å; empty: those of the model
  bool scaled = false;  // whether energies are multiplied by the scale of the receiver's species, as readouts are
  std::vector<double> screening = {0.02817, 0.20162, 0.28022, 0.40290, 0.50986, 0.94229, 0.18175, 3.19980};  // φ's terms

  // Energy and dE/dr of one edge.
  std::pair<double, double> evaluate(int pair_of_species, double r, double cutoff) const {
    if (!cutoffs.empty()) cutoff = cutoffs[pair_of_species];
    if (r >= cutoff) return {0.0, 0.0};
    const auto [u, du] = polynomial_cutoff(r / cutoff, power);
    const double inverse = inverse_length[pair_of_species];
    double phi = 0, dphi = 0;
    for (std::size_t i = 0; i < screening.size(); i += 2) {
      const double c = screening[i], k = screening[i + 1];
      const double term = c * std::exp(-k * inverse * r);
      phi += term;
      dphi -= k * inverse * term;
    }
    const double charge = charge_product[pair_of_species] / r;
    return {charge * phi * u, charge * (dphi * u + phi * du / cutoff - phi * u / r)};
  }
};

}  // namespace equipes
