#include "messages.hpp"

#include <algorithm>

#include "patterns.hpp"

namespace equipes {
namespace {

template <class T, class P, int Step>
void couple_at_atom(Rows<T> cotangent, std::int64_t atom, int channel, Vector<T>* h) {
  couple_with_cotangent<T, P, Step>(cotangent.at(atom) + channel, cotangent.component, h, NumbersBelow<P::n_terms>{});
}

// Σ_m1 A[m1,M3] x[m1] of edge e.
template <class T, class P, int M3, int... M1>
[[gnu::always_inline]] inline Vector<T> apply(T (*a)[kEdges], int e, const Vector<T>* x, Vector<T> sum,
                                              Numbers<M1...>) {
  ((P::a.index[M1][M3] >= 0 ? void(sum += x[M1] * a[P::a.index[M1][M3]][e]) : void()), ...);
  return sum;
}

// The degrees l3 that l1 and l2 couple to, and where A, H and messages of each of them start.
template <int L1, int L2>
struct Degrees {
  static constexpr int low = L1 < L2 ? L2 - L1 : L1 - L2;
  static constexpr int count = degrees(L1, L2);
  template <int K>
  using At = Pattern<L1, L2, low + K>;

  struct Starts {
    int a[count + 1] = {}, h[count + 1] = {}, m[count + 1] = {};
  };
  template <int... K>
  static constexpr Starts add_up(Numbers<K...>) {
    Starts starts;
    ((starts.a[K + 1] = starts.a[K] + At<K>::a.n, starts.h[K + 1] = starts.h[K] + At<K>::h.n,
      starts.m[K + 1] = starts.m[K] + At<K>::d3),
     ...);
    return starts;
  }
  static constexpr Starts starts = add_up(NumbersBelow<count>{});
  static constexpr int a_size = starts.a[count], h_size = starts.h[count], m_size = starts.m[count];
};

// Radial weights come from the third-level cache or memory, and their rows in no order that the processor foresees: ask
// for them some edges ahead. `kFetchAhead` further entries of the edges' lists of weights may be read (messages.hpp).
template <class T, int Write = 0>
[[gnu::always_inline]] inline void fetch(const T* row, int n) {
  for (int i = 0; i < n; i += 64 / int(sizeof(T))) __builtin_prefetch(row + i, Write);
}

// N vectors of channels of one job.
template <class T, int L1, int L2, int N>
void forward_channels(const MessageJob<T>& job, int channel) {
  using D = Degrees<L1, L2>;
  constexpr int n = kLanes<T>, d1 = 2 * L1 + 1;
  const Neighbours<T>& edges = job.edges;
  alignas(64) T a[D::a_size][kEdges];
  const std::int64_t component = job.x.component;
  for (std::int64_t i = edges.first; i < edges.last; ++i) {
    Vector<T> sums[N][D::m_size] = {};
    const std::int64_t end = edges.row[i + 1];
    for (std::int64_t start = edges.row[i]; start < end; start += kEdges) {
      const int count = int(std::min<std::int64_t>(kEdges, end - start));
      unroll<D::count>([&](auto k) {
        if (job.paths[k].w != nullptr)
          couple_with_harmonics<T, typename D::template At<k>>(edges.harmonics + start, edges.stride, count,
                                                               a + D::starts.a[k]);
      });
      for (int e = 0; e < count; ++e) {
        const T* x = job.x.at(edges.sender[start + e]) + channel;
        const std::int64_t weights = edges.weights[start + e];
        Vector<T> xs[N][d1];
        unroll<d1>([&](auto m1) {
          for (int v = 0; v < N; ++v) xs[v][m1] = load(x + m1 * component + v * n);
        });
        unroll<D::count>([&](auto k) {
          using P = typename D::template At<k>;
          const PathRows<T>& path = job.paths[k];
          if (path.w == nullptr) return;
          const T* w = path.w + weights * path.stride + channel;
          fetch(path.w + edges.weights[start + e + kFetchAhead] * path.stride + channel, N * n);
          unroll<P::d3>([&](auto m3) {
            for (int v = 0; v < N; ++v)
              sums[v][D::starts.m[k] + m3] += apply<T, P, m3>(a + D::starts.a[k], e, xs[v], Vector<T>{},
                                                              NumbersBelow<d1>{}) * load(w + v * n);
          });
        });
      }
    }
    unroll<D::count>([&](auto k) {
      const PathRows<T>& path = job.paths[k];
      if (path.w == nullptr) return;
      T* target = path.messages.at(edges.place[i]) + channel;
      unroll<D::template At<k>::d3>([&](auto m3) {
        for (int v = 0; v < N; ++v)
          store<T>(target + m3 * path.messages.component + v * n, sums[v][D::starts.m[k] + m3]);
      });
    });
  }
}

template <class T, int L1, int L2>
void forward(const MessageJob<T>& job) {
  // Two vectors of channels at once share A, where the registers suffice.
  constexpr bool two = 2 * (Degrees<L1, L2>::m_size + 2 * L1 + 1) + 3 <= kRegisters;
  if constexpr (two) {
    if (job.vectors == 2) {
      forward_channels<T, L1, L2, 2>(job, 0);
      return;
    }
  }
  for (int v = 0; v < job.vectors; ++v) forward_channels<T, L1, L2, 1>(job, v * kLanes<T>);
}

// With r', Y', x' the changes of length, harmonics and features: w x Y changes by w (x' Y + x Y') + w' r' x Y, that is by
// A applied to w x' + w' r' x, plus A' (of Y') applied to w x.
template <class T, int L1, int L2>
void tangent(const MessageJob<T>& job) {
  using D = Degrees<L1, L2>;
  constexpr int n = kLanes<T>, d1 = 2 * L1 + 1;
  const Neighbours<T>& edges = job.edges;
  alignas(64) T a[D::a_size][kEdges], a_tangent[D::a_size][kEdges];
  const std::int64_t component = job.x.component;
  for (std::int64_t i = edges.first; i < edges.last; ++i) {
    Vector<T> sums[2][D::m_size];
    for (int v = 0; v < job.vectors; ++v)
      for (Vector<T>& sum : sums[v]) sum = Vector<T>{};
    const std::int64_t end = edges.row[i + 1];
    for (std::int64_t start = edges.row[i]; start < end; start += kEdges) {
      const int count = int(std::min<std::int64_t>(kEdges, end - start));
      unroll<D::count>([&](auto k) {
        using P = typename D::template At<k>;
        if (job.paths[k].w == nullptr) return;
        couple_with_harmonics<T, P>(edges.harmonics + start, edges.stride, count, a + D::starts.a[k]);
        couple_with_harmonics<T, P>(edges.harmonics_tangent + start, edges.stride, count, a_tangent + D::starts.a[k]);
      });
      for (int v = 0; v < job.vectors; ++v) {
        Vector<T> partial[D::m_size];
        unroll<D::m_size>([&](auto m) { partial[m] = sums[v][m]; });
        for (int e = 0; e < count; ++e) {
          const T* x = job.x.at(edges.sender[start + e]) + v * n;
          const T* x_tangent = job.x_tangent.at(edges.sender[start + e]) + v * n;
          const std::int64_t weights = edges.weights[start + e];
          const T length_tangent = edges.length_tangent[start + e];
          Vector<T> features[d1], features_tangent[d1];
          unroll<d1>([&](auto m1) {
            features[m1] = load(x + m1 * component);
            features_tangent[m1] = load(x_tangent + m1 * component);
          });
          unroll<D::count>([&](auto k) {
            using P = typename D::template At<k>;
            const PathRows<T>& path = job.paths[k];
            if (path.w == nullptr) return;
            const T* w = path.w + weights * path.stride + v * n;
            const T* ahead = path.w + edges.weights[start + e + kFetchAhead] * path.stride + v * n;
            fetch(ahead, n);
            fetch(ahead + path.derivative, n);
            const Vector<T> value = load(w), change = load(w + path.derivative) * length_tangent;
            Vector<T> xs[d1], changes[d1];
            unroll<d1>([&](auto m1) {
              xs[m1] = features[m1] * value;
              changes[m1] = features_tangent[m1] * value + features[m1] * change;
            });
            unroll<P::d3>([&](auto m3) {
              Vector<T>& sum = partial[D::starts.m[k] + m3];
              sum = apply<T, P, m3>(a + D::starts.a[k], e, changes, sum, NumbersBelow<d1>{});
              // Y_0 does not change.
              if constexpr (L2 > 0) sum = apply<T, P, m3>(a_tangent + D::starts.a[k], e, xs, sum, NumbersBelow<d1>{});
            });
          });
        }
        unroll<D::m_size>([&](auto m) { sums[v][m] = partial[m]; });
      }
    }
    unroll<D::count>([&](auto k) {
      const PathRows<T>& path = job.paths[k];
      if (path.w == nullptr) return;
      T* target = path.messages.at(edges.place[i]);
      unroll<D::template At<k>::d3>([&](auto m3) {
        for (int v = 0; v < job.vectors; ++v)
          store<T>(target + m3 * path.messages.component + v * n, sums[v][D::starts.m[k] + m3]);
      });
    });
  }
}

// With the column H[:,M2]: product = Σ_m1 H[m1,M2] x[m1], and cotangents[m1] += H[m1,M2] factor.
template <class T, class P, int M2, int... M1>
[[gnu::always_inline]] inline Vector<T> spread(const Vector<T>* h, const Vector<T>* x, Vector<T> factor,
                                               Vector<T>* cotangents, Numbers<M1...>) {
  Vector<T> product{};
  ((P::h.index[M1][M2] >= 0 ? void((product += h[P::h.index[M1][M2]] * x[M1],
                                    cotangents[M1] += h[P::h.index[M1][M2]] * factor))
                            : void()),
   ...);
  return product;
}

template <class T, int L1, int L2>
void reverse(const MessageJob<T>& job) {
  using D = Degrees<L1, L2>;
  constexpr int n = kLanes<T>, d1 = 2 * L1 + 1, d2 = 2 * L2 + 1;
  const Neighbours<T>& edges = job.edges;
  const int vectors = job.vectors;
  Vector<T> h[2][D::h_size];
  for (std::int64_t i = edges.first; i < edges.last; ++i) {
    unroll<D::count>([&](auto k) {
      const PathRows<T>& path = job.paths[k];
      if (path.w != nullptr)
        for (int v = 0; v < vectors; ++v)
          couple_at_atom<T, typename D::template At<k>, 1>(path.messages, edges.place[i], v * n,
                                                                  h[v] + D::starts.h[k]);
    });
    for (std::int64_t e = edges.row[i]; e < edges.row[i + 1]; ++e) {
      const T* x = job.x.at(edges.sender[e]);
      T* x_cotangent = job.x_cotangent.at(edges.sender[e]);
      const std::int64_t weights = edges.weights[e];
      const T* harmonics = edges.harmonics + e;
      Vector<T> length_cotangent{}, harmonics_cotangent[d2] = {};
      for (int v = 0; v < vectors; ++v) {
        Vector<T> xs[d1], cotangents[d1] = {};
        unroll<d1>([&](auto m1) { xs[m1] = load(x + m1 * job.x.component + v * n); });
        unroll<D::count>([&](auto k) {
          using P = typename D::template At<k>;
          const PathRows<T>& path = job.paths[k];
          if (path.w == nullptr) return;
          const T* w = path.w + weights * path.stride + v * n;
          const T* ahead = path.w + edges.weights[e + kFetchAhead] * path.stride + v * n;
          fetch(ahead, n);
          fetch(ahead + path.derivative, n);
          const Vector<T> value = load(w);
          Vector<T> w_cotangent{};
          unroll<d2>([&](auto m2) {
            const T y = harmonics[m2 * edges.stride];
            const Vector<T> product = spread<T, P, m2>(h[v] + D::starts.h[k], xs, value * y, cotangents,
                                                       NumbersBelow<d1>{});
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
      // Y_0 is constant, so that the force pass does not ask for its cotangent.
      if (L2 > 0 || job.length_cotangent == nullptr)
        unroll<d2>([&](auto m2) { job.harmonics_cotangent[m2 * edges.stride + e] += sum<T>(harmonics_cotangent[m2]); });
      if (job.length_cotangent != nullptr) job.length_cotangent[e] += sum<T>(length_cotangent);
    }
  }
}

// The same with changes h' of H and x' of x (h and h' in turn):
// product = h x, product' = h' x + h x', and cotangents += h' factor + h factor'.
template <class T, class P, int M2, int... M1>
[[gnu::always_inline]] inline void spread_dual(const Vector<T>* h, const Vector<T>* x, const Vector<T>* changes,
                                               Vector<T> factor, Vector<T> factor_tangent, Vector<T>* cotangents,
                                               Vector<T>& product, Vector<T>& product_tangent, Numbers<M1...>) {
  ((P::h.index[M1][M2] >= 0
        ? void((product += h[2 * P::h.index[M1][M2]] * x[M1],
                product_tangent += h[2 * P::h.index[M1][M2] + 1] * x[M1],
                product_tangent += h[2 * P::h.index[M1][M2]] * changes[M1],
                cotangents[M1] += h[2 * P::h.index[M1][M2] + 1] * factor,
                cotangents[M1] += h[2 * P::h.index[M1][M2]] * factor_tangent))
        : void()),
   ...);
}

// With q = h x:
//   change of ∂F/∂x: h' w Y + h (w Y' + w' r' Y); of ∂F/∂w: Y (h' x + h x') + Y' q; and ∂F/∂w' = r' Y q.
template <class T, int L1, int L2>
void dual_reverse(const MessageJob<T>& job) {
  using D = Degrees<L1, L2>;
  constexpr int n = kLanes<T>, d1 = 2 * L1 + 1, d2 = 2 * L2 + 1;
  const Neighbours<T>& edges = job.edges;
  const int vectors = job.vectors;
  Vector<T> h[2][2 * D::h_size];
  for (std::int64_t i = edges.first; i < edges.last; ++i) {
    unroll<D::count>([&](auto k) {
      using P = typename D::template At<k>;
      const PathRows<T>& path = job.paths[k];
      if (path.w != nullptr)
        for (int v = 0; v < vectors; ++v) {
          Vector<T>* target = h[v] + 2 * D::starts.h[k];
          couple_at_atom<T, P, 2>(path.messages, edges.place[i], v * n, target);
          couple_at_atom<T, P, 2>(path.messages_tangent, edges.place[i], v * n, target + 1);
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
        Vector<T> xs[d1], changes[d1], cotangents[d1] = {};
        unroll<d1>([&](auto m1) {
          xs[m1] = load(x + m1 * job.x.component + v * n);
          changes[m1] = load(x_tangent + m1 * job.x_tangent.component + v * n);
        });
        unroll<D::count>([&](auto k) {
          using P = typename D::template At<k>;
          const PathRows<T>& path = job.paths[k];
          if (path.w == nullptr) return;
          const T* w = path.w + weights * path.stride + v * n;
          const std::int64_t ahead = edges.weights[e + kFetchAhead] * path.stride + v * n;
          fetch(path.w + ahead, n);
          fetch(path.w + ahead + path.derivative, n);
          fetch<T, 1>(path.w_cotangent + ahead, n);
          fetch<T, 1>(path.w_cotangent + ahead + path.derivative, n);
          const Vector<T> value = load(w), change = load(w + path.derivative) * length_tangent;
          Vector<T> w_cotangent{}, slope_cotangent{};
          unroll<d2>([&](auto m2) {
            const T y = harmonics[m2 * edges.stride], y_tangent = harmonics_tangent[m2 * edges.stride];
            Vector<T> product{}, product_tangent{};
            spread_dual<T, P, m2>(h[v] + 2 * D::starts.h[k], xs, changes, value * y,
                                  value * y_tangent + change * y, cotangents, product, product_tangent,
                                  NumbersBelow<d1>{});
            w_cotangent += product_tangent * y;
            w_cotangent += product * y_tangent;
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
struct Kernels {
  MessageKernel<T> at[4][kL * kL];

  Kernels() {
    unroll<kL * kL>([&](auto index) {
      constexpr int l1 = index / kL, l2 = index % kL;
      at[int(MessageSweep::kForward)][index] = forward<T, l1, l2>;
      at[int(MessageSweep::kTangent)][index] = tangent<T, l1, l2>;
      at[int(MessageSweep::kReverse)][index] = reverse<T, l1, l2>;
      at[int(MessageSweep::kDualReverse)][index] = dual_reverse<T, l1, l2>;
    });
  }
};

}  // namespace

template <class T>
MessageKernel<T> message_kernel(MessageSweep sweep, int l1, int l2) {
  static const Kernels<T> kernels;
  return kernels.at[int(sweep)][l1 * kL + l2];
}

template MessageKernel<EQUIPES_REAL> message_kernel(MessageSweep, int, int);

}  // namespace equipes
