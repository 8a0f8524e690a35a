// Which elements a coupling has, and making the matrices A and H of it: what all kernels of message passing share.
#pragma once

#include "couplings.hpp"
#include "vector.hpp"

namespace equipes {

template <int... I>
using Numbers = std::integer_sequence<int, I...>;
template <int N>
using NumbersBelow = std::make_integer_sequence<int, N>;

// Which elements of A[m1,m3] or H[m1,m2] are not zero, where they are stored, and the terms of each, one after the other.
template <int N>
struct Table {
  int n = 0;
  int index[9][9] = {};  // place of the element, -1 where it is zero
  Term terms[N] = {};
  bool begins[N] = {}, ends[N] = {};  // whether a term is the first or last of its element

  constexpr Table(const Term (&given)[N], bool by_m3) {
    for (auto& line : index)
      for (int& place : line) place = -1;
    for (int t = 0; t < N; ++t) {
      int& place = index[given[t].m1][by_m3 ? given[t].m3 : given[t].m2];
      if (place < 0) place = n++;
    }
    int filled = 0;
    for (int place = 0; place < n; ++place) {
      begins[filled] = true;
      for (int t = 0; t < N; ++t)
        if (index[given[t].m1][by_m3 ? given[t].m3 : given[t].m2] == place) terms[filled++] = given[t];
      ends[filled - 1] = true;
    }
  }
};

template <int L1, int L2, int L3>
struct Pattern {
  static constexpr int d1 = 2 * L1 + 1, d2 = 2 * L2 + 1, d3 = 2 * L3 + 1;
  static constexpr int n_terms = int(sizeof(Couplings<L1, L2, L3>::terms) / sizeof(Term));
  static constexpr Table<n_terms> a{Couplings<L1, L2, L3>::terms, true};   // A[m1,m3]
  static constexpr Table<n_terms> h{Couplings<L1, L2, L3>::terms, false};  // H[m1,m2]
};

// Edges whose A is made in one go, for vectors to run over edges.
constexpr int kEdges = 32;

// A[m1,m3] = Σ_m2 C[m1,m2,m3] Y[m2] of n edges, `[element][kEdges]`.
template <class T, class P, int... I>
void couple_with_harmonics(const T* harmonics, std::int64_t stride, int n, T (*a)[kEdges], Numbers<I...>) {
  constexpr auto& table = P::a;
  for (int e = 0; e < n; e += kLanes<T>) {
    Vector<T> y[P::d2], sum{};
    for (int m2 = 0; m2 < P::d2; ++m2) y[m2] = load(harmonics + m2 * stride + e);
    ((sum = table.begins[I] ? y[table.terms[I].m2] * T(table.terms[I].value)
                            : sum + y[table.terms[I].m2] * T(table.terms[I].value),
      table.ends[I] ? store<T>(&a[table.index[table.terms[I].m1][table.terms[I].m3]][e], sum) : void()),
     ...);
  }
}

template <class T, class P>
void couple_with_harmonics(const T* harmonics, std::int64_t stride, int n, T (*a)[kEdges]) {
  couple_with_harmonics<T, P>(harmonics, stride, n, a, NumbersBelow<P::n_terms>{});
}

// H[m1,m2] = Σ_m3 C[m1,m2,m3] g[m3], every `Step`-th element of h.
template <class T, class P, int Step, int... I>
void couple_with_cotangent(const T* cotangent, std::int64_t component, Vector<T>* h, Numbers<I...>) {
  constexpr auto& table = P::h;
  Vector<T> g[P::d3], sum{};
  for (int m3 = 0; m3 < P::d3; ++m3) g[m3] = load(cotangent + m3 * component);
  ((sum = table.begins[I] ? g[table.terms[I].m3] * T(table.terms[I].value)
                          : sum + g[table.terms[I].m3] * T(table.terms[I].value),
    table.ends[I] ? void(h[table.index[table.terms[I].m1][table.terms[I].m2] * Step] = sum) : void()),
   ...);
}

}  // namespace equipes
