#include "messages.hpp"

#include <algorithm>

namespace equipes {
namespace {

// Which elements of A[m1,m3] and H[m1,m2] are not zero, and from which terms they come.
template <int L1, int L2, int L3>
struct Pattern {
  static constexpr int d1 = 2 * L1 + 1, d2 = 2 * L2 + 1, d3 = 2 * L3 + 1;
  static constexpr auto& terms = Couplings<L1, L2, L3>::terms;
  static constexpr int n_terms = int(sizeof(terms) / sizeof(Term));

  struct Table {
    int n = 0;
    int index[9][9] = {};  // place of the element, -1 where it is zero
  };

  static constexpr Table make(bool by_m3) {
    Table table;
    for (auto& line : table.index)
      for (int& place : line) place = -1;
    for (const Term& term : terms) {
      int& place = table.index[term.m1][by_m3 ? term.m3 : term.m2];
      if (place < 0) place = table.n++;
    }
    return table;
  }

  static constexpr Table with_harmonics = make(true);   // A[m1,m3]
  static constexpr Table with_cotangent = make(false);  // H[m1,m2]
};

// Edges whose A is made in one go, for vectors to run over edges.
constexpr int kEdges = 32;

// A[m1,m3] = Σ_m2 C[m1,m2,m3] Y[m2] of n edges, `[element][kEdges]`.
template <class T, int L1, int L2, int L3>
void couple_with_harmonics(const T* harmonics, std::int64_t stride, int n, T (*a)[kEdges]) {
  using P = Pattern<L1, L2, L3>;
  for (int e = 0; e < n; e += kLanes<T>) {
    Vector<T> y[P::d2];
    unroll<P::d2>([&](auto m2) { y[m2] = load(harmonics + m2 * stride + e); });
    Vector<T> sum{};
    unroll<P::n_terms>([&](auto t) {
      constexpr Term term = P::terms[t];
      constexpr Term next = P::terms[t + 1 < P::n_terms ? t + 1 : t];
      sum += y[term.m2] * T(term.value);
      // Terms of one element follow each other.
      if constexpr (t + 1 == P::n_terms || term.m1 != next.m1 || term.m3 != next.m3) {
        store<T>(&a[P::with_harmonics.index[term.m1][term.m3]][e], sum);
        sum = Vector<T>{};
      }
    });
  }
}

// H[m1,m2] = Σ_m3 C[m1,m2,m3] g[m3], every `Step`-th element of h.
template <class T, int L1, int L2, int L3, int Step>
void couple_with_cotangent(const T* cotangent, std::int64_t component, Vector<T>* h) {
  using P = Pattern<L1, L2, L3>;
  for (int place = 0; place < P::with_cotangent.n; ++place) h[place * Step] = Vector<T>{};
  Vector<T> g[P::d3];
  unroll<P::d3>([&](auto m3) { g[m3] = load(cotangent + m3 * component); });
  unroll<P::n_terms>([&](auto t) {
    constexpr Term term = P::terms[t];
    h[P::with_cotangent.index[term.m1][term.m2] * Step] += g[term.m3] * T(term.value);
  });
}

// Vectors of channels that a forward kernel takes at once, as far as registers go.
constexpr int channels_at_once(int l1, int l3) { return 2 * (2 * l1 + 2 * l3 + 2) + 4 <= kRegisters ? 2 : 1; }

template <class T, int L1, int L2, int L3, int N>
void forward_channels(const ForwardJob<T>& job, int channel) {
  using P = Pattern<L1, L2, L3>;
  constexpr int n = kLanes<T>;
  const Neighbours<T>& edges = job.edges;
  alignas(64) T a[P::with_harmonics.n][kEdges];
  const std::int64_t component = job.x.component;
  for (std::int64_t i = edges.first; i < edges.last; ++i) {
    Vector<T> sums[P::d3][N];
    unroll<P::d3 * N>([&](auto k) { sums[k / N][k % N] = Vector<T>{}; });
    const std::int64_t end = edges.row[i + 1];
    for (std::int64_t start = edges.row[i]; start < end; start += kEdges) {
      const int count = int(std::min<std::int64_t>(kEdges, end - start));
      couple_with_harmonics<T, L1, L2, L3>(edges.harmonics + start, edges.stride, count, a);
      for (int e = 0; e < count; ++e) {
        const T* x = job.x.at(edges.sender[start + e]) + channel;
        const T* w = job.w + edges.weights[start + e] * job.stride + channel;
        Vector<T> xs[P::d1][N];
        unroll<P::d1 * N>([&](auto k) { xs[k / N][k % N] = load(x + (k / N) * component + (k % N) * n); });
        unroll<P::d3>([&](auto m3) {
          Vector<T> products[N] = {};
          unroll<P::d1>([&](auto m1) {
            constexpr int place = P::with_harmonics.index[m1][m3];
            if constexpr (place >= 0)
              unroll<N>([&](auto v) { products[v] += xs[m1][v] * a[place][e]; });
          });
          unroll<N>([&](auto v) { sums[m3][v] += products[v] * load(w + v * n); });
        });
      }
    }
    T* target = job.messages.at(edges.place[i]) + channel;
    unroll<P::d3 * N>([&](auto k) {
      store<T>(target + (k / N) * job.messages.component + (k % N) * n, sums[k / N][k % N]);
    });
  }
}

template <class T, int L1, int L2, int L3>
void forward(const ForwardJob<T>& job) {
  constexpr int n = channels_at_once(L1, L3);
  int v = 0;
  if constexpr (n == 2)
    for (; v + 2 <= job.vectors; v += 2) forward_channels<T, L1, L2, L3, 2>(job, v * kLanes<T>);
  for (; v < job.vectors; ++v) forward_channels<T, L1, L2, L3, 1>(job, v * kLanes<T>);
}

// With r', Y', x' the changes of length, harmonics and features: w x Y changes by w (x' Y + x Y') + w' r' x Y, that is by
// A applied to w x' + w' r' x, plus A' (of Y') applied to w x.
template <class T, int L1, int L2, int L3>
void tangent(const ForwardJob<T>& job) {
  using P = Pattern<L1, L2, L3>;
  const Neighbours<T>& edges = job.edges;
  alignas(64) T a[P::with_harmonics.n][kEdges], a_tangent[P::with_harmonics.n][kEdges];
  const std::int64_t component = job.x.component;
  for (int channel = 0; channel < job.vectors * kLanes<T>; channel += kLanes<T>)
    for (std::int64_t i = edges.first; i < edges.last; ++i) {
      Vector<T> sums[P::d3];
      unroll<P::d3>([&](auto m3) { sums[m3] = Vector<T>{}; });
      const std::int64_t end = edges.row[i + 1];
      for (std::int64_t start = edges.row[i]; start < end; start += kEdges) {
        const int count = int(std::min<std::int64_t>(kEdges, end - start));
        couple_with_harmonics<T, L1, L2, L3>(edges.harmonics + start, edges.stride, count, a);
        couple_with_harmonics<T, L1, L2, L3>(edges.harmonics_tangent + start, edges.stride, count, a_tangent);
        for (int e = 0; e < count; ++e) {
          const T* x = job.x.at(edges.sender[start + e]) + channel;
          const T* x_tangent = job.x_tangent.at(edges.sender[start + e]) + channel;
          const T* w = job.w + edges.weights[start + e] * job.stride + channel;
          const Vector<T> value = load(w), change = load(w + job.derivative) * edges.length_tangent[start + e];
          Vector<T> xs[P::d1], changes[P::d1];
          unroll<P::d1>([&](auto m1) {
            const Vector<T> feature = load(x + m1 * component);
            xs[m1] = feature * value;
            changes[m1] = load(x_tangent + m1 * component) * value + feature * change;
          });
          unroll<P::d3>([&](auto m3) {
            unroll<P::d1>([&](auto m1) {
              constexpr int place = P::with_harmonics.index[m1][m3];
              if constexpr (place >= 0) {
                sums[m3] += changes[m1] * a[place][e];
                if constexpr (L2 > 0) sums[m3] += xs[m1] * a_tangent[place][e];
              }
            });
          });
        }
      }
      T* target = job.messages.at(edges.place[i]) + channel;
      unroll<P::d3>([&](auto m3) { store<T>(target + m3 * job.messages.component, sums[m3]); });
    }
}

// Where H of each l3 starts.
template <int L1, int L2>
struct Cotangents {
  static constexpr int low = L1 < L2 ? L2 - L1 : L1 - L2;
  static constexpr int count = degrees(L1, L2);

  template <int I>
  static constexpr int start() {
    if constexpr (I == 0)
      return 0;
    else
      return start<I - 1>() + Pattern<L1, L2, low + I - 1>::with_cotangent.n;
  }
  static constexpr int size = start<count>();
};

template <class T, int L1, int L2>
void reverse(const ReverseJob<T>& job) {
  using Places = Cotangents<L1, L2>;
  constexpr int n = kLanes<T>, d1 = 2 * L1 + 1, d2 = 2 * L2 + 1;
  const Neighbours<T>& edges = job.edges;
  const int vectors = job.vectors;
  Vector<T> h[2][Places::size];
  for (std::int64_t i = edges.first; i < edges.last; ++i) {
    unroll<Places::count>([&](auto k) {
      const PathRows<T>& path = job.paths[k];
      if (path.w != nullptr)
        for (int v = 0; v < vectors; ++v)
          couple_with_cotangent<T, L1, L2, Places::low + k, 1>(path.cotangent.at(edges.place[i]) + v * n,
                                                               path.cotangent.component,
                                                               h[v] + Places::template start<k>());
    });
    for (std::int64_t e = edges.row[i]; e < edges.row[i + 1]; ++e) {
      const T* x = job.x.at(edges.sender[e]);
      T* x_cotangent = job.x_cotangent.at(edges.sender[e]);
      const std::int64_t weights = edges.weights[e];
      const T* harmonics = edges.harmonics + e;
      Vector<T> length_cotangent{}, harmonics_cotangent[d2];
      unroll<d2>([&](auto m2) { harmonics_cotangent[m2] = Vector<T>{}; });
      for (int v = 0; v < vectors; ++v) {
        Vector<T> xs[d1], cotangents[d1];
        unroll<d1>([&](auto m1) {
          xs[m1] = load(x + m1 * job.x.component + v * n);
          cotangents[m1] = Vector<T>{};
        });
        unroll<Places::count>([&](auto k) {
          using P = Pattern<L1, L2, Places::low + k>;
          const PathRows<T>& path = job.paths[k];
          if (path.w == nullptr) return;
          const Vector<T>* hs = h[v] + Places::template start<k>();
          const T* w = path.w + weights * path.stride + v * n;
          const Vector<T> value = load(w);
          Vector<T> w_cotangent{};
          unroll<d2>([&](auto m2) {
            const T y = harmonics[m2 * edges.stride];
            const Vector<T> factor = value * y;
            Vector<T> product{};
            unroll<d1>([&](auto m1) {
              constexpr int place = P::with_cotangent.index[m1][m2];
              if constexpr (place >= 0) {
                product += hs[place] * xs[m1];
                cotangents[m1] += hs[place] * factor;
              }
            });
            w_cotangent += product * y;
            harmonics_cotangent[m2] += product * value;
          });
          if (job.length_cotangent != nullptr)
            length_cotangent += w_cotangent * load(w + path.derivative);
          else
            store<T>(path.w_cotangent + weights * path.stride + v * n, w_cotangent);
        });
        unroll<d1>([&](auto m1) { add_to<T>(x_cotangent + m1 * job.x_cotangent.component + v * n, cotangents[m1]); });
      }
      // Y_0 is constant.
      if (L2 > 0 || job.length_cotangent == nullptr)
        unroll<d2>([&](auto m2) { job.harmonics_cotangent[m2 * edges.stride + e] += sum<T>(harmonics_cotangent[m2]); });
      if (job.length_cotangent != nullptr) job.length_cotangent[e] += sum<T>(length_cotangent);
    }
  }
}

// With h of the cotangent and h' of its change, and q = h x:
//   change of ∂F/∂x: h' w Y + h (w Y' + w' r' Y); of ∂F/∂w: Y (h' x + h x') + Y' q; and ∂F/∂w' = r' Y q.
template <class T, int L1, int L2>
void dual_reverse(const ReverseJob<T>& job) {
  using Places = Cotangents<L1, L2>;
  constexpr int n = kLanes<T>, d1 = 2 * L1 + 1, d2 = 2 * L2 + 1;
  const Neighbours<T>& edges = job.edges;
  const int vectors = job.vectors;
  Vector<T> h[2][2 * Places::size];  // h and h' in turn
  for (std::int64_t i = edges.first; i < edges.last; ++i) {
    unroll<Places::count>([&](auto k) {
      const PathRows<T>& path = job.paths[k];
      if (path.w != nullptr)
        for (int v = 0; v < vectors; ++v) {
          Vector<T>* target = h[v] + 2 * Places::template start<k>();
          couple_with_cotangent<T, L1, L2, Places::low + k, 2>(path.cotangent.at(edges.place[i]) + v * n,
                                                               path.cotangent.component, target);
          couple_with_cotangent<T, L1, L2, Places::low + k, 2>(path.cotangent_tangent.at(edges.place[i]) + v * n,
                                                               path.cotangent_tangent.component, target + 1);
        }
    });
    for (std::int64_t e = edges.row[i]; e < edges.row[i + 1]; ++e) {
      const T* x = job.x.at(edges.sender[e]);
      const T* x_tangent = job.x_tangent.at(edges.sender[e]);
      T* x_cotangent = job.x_cotangent.at(edges.sender[e]);
      const std::int64_t weights = edges.weights[e];
      const T* harmonics = edges.harmonics + e;
      const T* harmonics_tangent = edges.harmonics_tangent + e;
      const T length_tangent = edges.length_tangent[e];
      const bool opens = edges.opens[e] != 0;
      for (int v = 0; v < vectors; ++v) {
        Vector<T> xs[d1], changes[d1], cotangents[d1];
        unroll<d1>([&](auto m1) {
          xs[m1] = load(x + m1 * job.x.component + v * n);
          changes[m1] = load(x_tangent + m1 * job.x_tangent.component + v * n);
          cotangents[m1] = Vector<T>{};
        });
        unroll<Places::count>([&](auto k) {
          using P = Pattern<L1, L2, Places::low + k>;
          const PathRows<T>& path = job.paths[k];
          if (path.w == nullptr) return;
          const Vector<T>* hs = h[v] + 2 * Places::template start<k>();
          const T* w = path.w + weights * path.stride + v * n;
          const Vector<T> value = load(w), change = load(w + path.derivative) * length_tangent;
          Vector<T> w_cotangent{}, slope_cotangent{};
          unroll<d2>([&](auto m2) {
            const T y = harmonics[m2 * edges.stride], y_tangent = harmonics_tangent[m2 * edges.stride];
            const Vector<T> factor = value * y, factor_tangent = value * y_tangent + change * y;
            Vector<T> product{}, product_tangent{};
            unroll<d1>([&](auto m1) {
              constexpr int place = P::with_cotangent.index[m1][m2];
              if constexpr (place >= 0) {
                const Vector<T> g = hs[2 * place], g_tangent = hs[2 * place + 1];
                product += g * xs[m1];
                product_tangent += g_tangent * xs[m1];
                product_tangent += g * changes[m1];
                cotangents[m1] += g_tangent * factor;
                cotangents[m1] += g * factor_tangent;
              }
            });
            w_cotangent += product_tangent * y + product * y_tangent;
            slope_cotangent += product * y;
          });
          slope_cotangent *= length_tangent;
          T* target = path.w_cotangent + weights * path.stride + v * n;
          if (opens) {
            store<T>(target, w_cotangent);
            store<T>(target + path.derivative, slope_cotangent);
          } else {
            add_to<T>(target, w_cotangent);
            add_to<T>(target + path.derivative, slope_cotangent);
          }
        });
        unroll<d1>([&](auto m1) { add_to<T>(x_cotangent + m1 * job.x_cotangent.component + v * n, cotangents[m1]); });
      }
    }
  }
}

constexpr int kL = kMaxL + 1;

template <class T>
struct Tables {
  Forward<T> forward[kL][kL][kL] = {}, tangent[kL][kL][kL] = {};
  Reverse<T> reverse[kL][kL] = {}, dual_reverse[kL][kL] = {};

  Tables() {
    unroll<kL * kL>([&](auto index) {
      constexpr int l1 = index / kL, l2 = index % kL;
      reverse[l1][l2] = equipes::reverse<T, l1, l2>;
      dual_reverse[l1][l2] = equipes::dual_reverse<T, l1, l2>;
      unroll<degrees(l1, l2)>([&](auto k) {
        constexpr int l3 = Cotangents<l1, l2>::low + k;
        forward[l1][l2][l3] = equipes::forward<T, l1, l2, l3>;
        tangent[l1][l2][l3] = equipes::tangent<T, l1, l2, l3>;
      });
    });
  }
};

template <class T>
const Tables<T> tables;

}  // namespace

template <class T>
Forward<T> MessageKernels<T>::forward(int l1, int l2, int l3) {
  return tables<T>.forward[l1][l2][l3];
}

template <class T>
Forward<T> MessageKernels<T>::tangent(int l1, int l2, int l3) {
  return tables<T>.tangent[l1][l2][l3];
}

template <class T>
Reverse<T> MessageKernels<T>::reverse(int l1, int l2) {
  return tables<T>.reverse[l1][l2];
}

template <class T>
Reverse<T> MessageKernels<T>::dual_reverse(int l1, int l2) {
  return tables<T>.dual_reverse[l1][l2];
}

template struct MessageKernels<EQUIPES_REAL>;

}  // namespace equipes
