#include "spline_messages.hpp"

#include <algorithm>

#include "patterns.hpp"

namespace equipes {
namespace {

struct Coupling {
  int l2, l3;
};

constexpr int kL = kMaxL + 1;

// The couplings of l1 in an order, cut into groups that one loop over edges does.
struct CouplingList {
  int n = 0, groups = 0;
  Coupling list[kL * kL] = {};
  int first[kL * kL + 1] = {};  // of each group

  constexpr void add(Coupling coupling, bool opens) {
    if (opens) first[groups++] = n;
    list[n++] = coupling;
    first[groups] = n;
  }
};

constexpr bool couples(int l1, int l2, int l3) {
  const int low = l1 < l2 ? l2 - l1 : l1 - l2;
  return low <= l3 && l3 <= l1 + l2;
}

// Forward: as many couplings as have their sums in registers, beside x and two temporaries. By the larger of l2 and l3,
// so that a model of low degree has few groups.
template <int L1>
constexpr CouplingList forward_couplings() {
  CouplingList result;
  constexpr int limit = std::max(2 * kMaxL + 1, kRegisters - (2 * L1 + 1) - 3);
  int sums = limit + 1;
  for (int top = 0; top < kL; ++top) {
    if (top > 2) sums = limit + 1;
    for (int l2 = 0; l2 <= top; ++l2)
      for (int l3 = 0; l3 <= top; ++l3) {
        if (std::max(l2, l3) != top || !couples(L1, l2, l3)) continue;
        sums += 2 * l3 + 1;
        const bool opens = sums > limit;
        if (opens) sums = 2 * l3 + 1;
        result.add({l2, l3}, opens);
      }
  }
  return result;
}

// Reverse: as many degrees l2 as have the cotangents of Y in registers, beside x, its cotangent and a third of its size.
template <int L1>
constexpr CouplingList reverse_couplings() {
  CouplingList result;
  constexpr int limit = std::max(2 * kMaxL + 2, kRegisters - 3 * (2 * L1 + 1) - 3);
  int sums = limit + 1;
  for (int l2 = 0; l2 < kL; ++l2) {
    sums += l2 == 0 ? 1 : 2 * l2 + 1;
    bool opens = sums > limit || l2 > 2;
    if (opens) sums = 1 + 2 * l2 + 1;
    for (int l3 = 0; l3 < kL; ++l3)
      if (couples(L1, l2, l3)) {
        result.add({l2, l3}, opens);
        opens = false;
      }
  }
  return result;
}

// By Horner's rule.
template <class T>
[[gnu::always_inline]] inline Vector<T> value_of(const T* c, T t) {
  constexpr int n = kLanes<T>;
  Vector<T> value = load(c + (kCoefficients - 1) * n);
  unroll<kCoefficients - 1>([&](auto k) EQUIPES_INLINE { value = value * t + load(c + (kCoefficients - 2 - k) * n); });
  return value;
}

// The value, and the derivative by t.
template <class T>
[[gnu::always_inline]] inline Vector<T> value_and_slope_of(const T* c, T t, Vector<T>& slope) {
  constexpr int n = kLanes<T>;
  Vector<T> value = load(c + (kCoefficients - 1) * n);
  slope = value;
  unroll<kCoefficients - 2>([&](auto k) EQUIPES_INLINE {
    value = value * t + load(c + (kCoefficients - 2 - k) * n);
    slope = slope * t + value;
  });
  return value * t + load(c);
}

// Where A and the sums of each coupling start.
template <int L1, const CouplingList& C>
struct ForwardPlaces {
  struct Starts {
    int a[kL * kL + 1] = {}, sums[kL * kL + 1] = {};
  };
  template <int... K>
  static constexpr Starts add_up(Numbers<K...>) {
    Starts starts;
    ((starts.a[K + 1] = starts.a[K] + Pattern<L1, C.list[K].l2, C.list[K].l3>::a.n,
      starts.sums[K + 1] = starts.sums[K] + 2 * C.list[K].l3 + 1),
     ...);
    return starts;
  }
  static constexpr Starts starts = add_up(NumbersBelow<C.n>{});
};

template <int L1>
struct Lists {
  static constexpr CouplingList forward = forward_couplings<L1>();
  static constexpr CouplingList reverse = reverse_couplings<L1>();
};

// Messages of one coupling: sums[m3] += W Σ_m1 A[m1,m3] x[m1] for edge e.
template <class T, class P, int L2, int... M1>
[[gnu::always_inline]] inline void couple(T (*a)[kEdges], int e, const Vector<T>* x, Vector<T> w, Vector<T>* sums,
                                          Numbers<M1...>) {
  if constexpr (L2 == 0) {
    ((sums[M1] += w * x[M1]), ...);
  } else if constexpr (P::d1 < P::d3) {
    const Vector<T> wx[P::d1] = {w * x[M1]...};
    unroll<P::d3>([&](auto m3) EQUIPES_INLINE {
      ((P::a.index[M1][m3] >= 0 ? void(sums[m3] += wx[M1] * a[P::a.index[M1][m3]][e]) : void()), ...);
    });
  } else {
    unroll<P::d3>([&](auto m3) EQUIPES_INLINE {
      Vector<T> q{};
      ((P::a.index[M1][m3] >= 0 ? void(q += x[M1] * a[P::a.index[M1][m3]][e]) : void()), ...);
      sums[m3] += w * q;
    });
  }
}

template <class T, int L1, int Group>
void forward_group(const SplineJob<T>& job) {
  static constexpr const CouplingList& list = Lists<L1>::forward;
  constexpr int first = list.first[Group], count = list.first[Group + 1] - first;
  constexpr int n = kLanes<T>, d1 = 2 * L1 + 1;
  using Places = ForwardPlaces<L1, Lists<L1>::forward>;
  constexpr int a_first = Places::starts.a[first], a_size = Places::starts.a[first + count] - a_first;
  constexpr int sums_first = Places::starts.sums[first], sums_size = Places::starts.sums[first + count] - sums_first;
  bool any = false;
  unroll<count>([&](auto k) EQUIPES_INLINE { any |= job.path(list.list[first + k].l2, list.list[first + k].l3).table >= 0; });
  if (!any) return;
  alignas(64) T a[a_size][kEdges];
  const SplineEdges<T>& edges = job.edges;
  std::int32_t tables[count];
  unroll<count>([&](auto k) EQUIPES_INLINE { tables[k] = job.path(list.list[first + k].l2, list.list[first + k].l3).table; });
  for (std::int64_t i = job.first; i < job.last; ++i) {
    const std::int64_t begin = edges.begin[i], end = edges.end[i];
    std::int64_t start = begin;
    do {
      const int m = int(std::min<std::int64_t>(kEdges, end - start));
      unroll<count>([&](auto k) EQUIPES_INLINE {
        constexpr Coupling c = list.list[first + k];
        if constexpr (c.l2 > 0)
          if (tables[k] >= 0)
            couple_with_harmonics<T, Pattern<L1, c.l2, c.l3>>(edges.harmonics + c.l2 * c.l2 * edges.stride + start,
                                                              edges.stride, m, a + Places::starts.a[first + k] - a_first);
      });
      for (int v = 0; v < job.vectors; ++v) {
        Vector<T> sums[sums_size];
        unroll<sums_size>([&](auto m3) EQUIPES_INLINE { sums[m3] = Vector<T>{}; });
        const T* x = job.x.data + v * n;
        const T* table = job.table + v * job.vector_stride;
        for (int e = 0; e < m; ++e) {
          const T* row = x + edges.sender[start + e] * job.x.stride;
          const T* coefficients = table + edges.interval[start + e] * job.interval_stride;
          const T t = edges.place[start + e];
          Vector<T> xs[d1];
          unroll<d1>([&](auto m1) EQUIPES_INLINE { xs[m1] = load(row + m1 * job.x.component); });
          unroll<count>([&](auto k) EQUIPES_INLINE {
            constexpr Coupling c = list.list[first + k];
            if (tables[k] < 0) return;
            couple<T, Pattern<L1, c.l2, c.l3>, c.l2>(a + Places::starts.a[first + k] - a_first, e, xs,
                                                     value_of(coefficients + tables[k], t), sums + Places::starts.sums[first + k] - sums_first,
                                                     NumbersBelow<d1>{});
          });
        }
        unroll<count>([&](auto k) EQUIPES_INLINE {
          constexpr Coupling c = list.list[first + k];
          if (tables[k] < 0) return;
          const SplinePath<T>& path = job.path(c.l2, c.l3);
          T* target = path.messages + (i - job.first) * path.stride + v * n;
          unroll<2 * c.l3 + 1>([&](auto m3) EQUIPES_INLINE {
            Vector<T> sum = sums[Places::starts.sums[first + k] - sums_first + m3];
            if (start > begin) sum += load(target + m3 * path.component);
            store<T>(target + m3 * path.component, sum);
          });
        });
      }
      start += kEdges;
    } while (start < end);
  }
}

// What one coupling gives back for one edge and one vector of channels.
template <class T, int L1, int L2, int L3>
struct Return {
  using P = Pattern<L1, L2, L3>;
  static constexpr int d1 = P::d1, d2 = P::d2, d3 = P::d3;
  // These need no H, only the cotangent itself.
  static constexpr bool plain = L1 == 0 || L2 == 0 || L3 == 0;
  static constexpr int kept = plain ? d3 : P::h.n;  // vectors that are prepared for a receiver

  static void prepare(const T* cotangent, std::int64_t component, Vector<T>* h) {
    if constexpr (plain)
      // The couplings to or from a scalar are multiples of the identity.
      unroll<d3>([&](auto m3) EQUIPES_INLINE { h[m3] = load(cotangent + m3 * component) * T(Couplings<L1, L2, L3>::terms[0].value); });
    else
      couple_with_cotangent<T, P, 1>(cotangent, component, h, NumbersBelow<P::n_terms>{});
  }

  // y[m2 * stride]; `slope_sum` gets dw/dt · ∂F/∂w.
  [[gnu::always_inline]] static void apply(const Vector<T>* h, const Vector<T>* x, Vector<T> w, Vector<T> slope,
                                           const T* y, std::int64_t stride, Vector<T>* x_cotangent,
                                           Vector<T>* y_cotangent, Vector<T>& slope_sum) {
    if constexpr (L2 == 0) {
      Vector<T> product{};
      unroll<d1>([&](auto m) EQUIPES_INLINE {
        product += x[m] * h[m];
        x_cotangent[m] += w * h[m];
      });
      slope_sum += slope * product;
    } else if constexpr (L3 == 0) {
      const Vector<T> wh = w * h[0];
      Vector<T> product{};
      unroll<d1>([&](auto m) EQUIPES_INLINE {
        product += x[m] * y[m * stride];
        x_cotangent[m] += wh * y[m * stride];
        y_cotangent[m] += wh * x[m];
      });
      slope_sum += slope * h[0] * product;
    } else if constexpr (L1 == 0) {
      const Vector<T> wx = w * x[0];
      Vector<T> product{};
      unroll<d2>([&](auto m) EQUIPES_INLINE {
        product += h[m] * y[m * stride];
        y_cotangent[m] += wx * h[m];
      });
      x_cotangent[0] += w * product;
      slope_sum += slope * (x[0] * product);
    } else {
      Vector<T> u[d1] = {};
      unroll<d2>([&](auto m2) EQUIPES_INLINE {
        Vector<T> b{};
        unroll<d1>([&](auto m1) EQUIPES_INLINE {
          constexpr int place = P::h.index[m1][m2];
          if constexpr (place >= 0) {
            b += x[m1] * h[place];
            u[m1] += h[place] * y[m2 * stride];
          }
        });
        y_cotangent[m2] += w * b;
      });
      Vector<T> product{};
      unroll<d1>([&](auto m1) EQUIPES_INLINE {
        product += x[m1] * u[m1];
        x_cotangent[m1] += w * u[m1];
      });
      slope_sum += slope * product;
    }
  }
};

// Where what is kept for each coupling starts.
template <class T, int L1, const CouplingList& C>
struct KeptPlaces {
  template <int... K>
  static constexpr std::array<int, kL * kL + 1> add_up(Numbers<K...>) {
    std::array<int, kL * kL + 1> starts{};
    ((starts[K + 1] = starts[K] + Return<T, L1, C.list[K].l2, C.list[K].l3>::kept), ...);
    return starts;
  }
  static constexpr std::array<int, kL * kL + 1> starts = add_up(NumbersBelow<C.n>{});
};

// Adds the sums over lanes of vectors[k] to target[k], `Count` of them at most as many as lanes: halves of pairs are
// added, then quarters of fours, until each lane holds one sum.
template <class T, int Step, int... I>
[[gnu::always_inline]] inline Vector<T> add_halves(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  return shuffle<T, ((I & Step) ? kLanes<T> + (I & ~Step) : I)...>(a, b) +
         shuffle<T, ((I & Step) ? kLanes<T> + I : I | Step)...>(a, b);
}

template <class T, int Count, int Step = 1>
[[gnu::always_inline]] inline void add_sums(Vector<T>* vectors, T* target) {
  constexpr int lanes = kLanes<T>;
  if constexpr (Step == lanes) {
    add_to<T>(target, vectors[0]);
  } else {
    // Sums of vector k come to lane k: bit Step of k chooses between the vectors of a pair.
    constexpr int pairs = (Count + 1) / 2;
    unroll<pairs>([&](auto p) EQUIPES_INLINE {
      if constexpr (2 * p + 1 < Count)
        vectors[p] = add_halves<T, Step>(vectors[2 * p], vectors[2 * p + 1], std::make_integer_sequence<int, lanes>{});
      else
        vectors[p] = add_halves<T, Step>(vectors[2 * p], Vector<T>{}, std::make_integer_sequence<int, lanes>{});
    });
    add_sums<T, pairs, 2 * Step>(vectors, target);
  }
}

template <class T, int Count>
[[gnu::always_inline]] inline void add_all_sums(Vector<T>* vectors, T* target) {
  constexpr int lanes = kLanes<T>;
  add_sums<T, std::min(Count, lanes)>(vectors, target);
  if constexpr (Count > lanes) add_all_sums<T, Count - lanes>(vectors + lanes, target + lanes);
}

template <class T, int L1, int Group>
void reverse_group(const SplineJob<T>& job) {
  static constexpr const CouplingList& list = Lists<L1>::reverse;
  constexpr int first = list.first[Group], count = list.first[Group + 1] - first;
  constexpr int n = kLanes<T>, d1 = 2 * L1 + 1;
  constexpr int low = list.list[first].l2, high = list.list[first + count - 1].l2;
  // Vector k of the totals goes to place k - start of the edge's cotangents, the spline's to the first place.
  constexpr int start = low * low, n_totals = (high + 1) * (high + 1) - start + (low > 0 ? 1 : 0);
  using Places = KeptPlaces<T, L1, Lists<L1>::reverse>;
  constexpr int kept_first = Places::starts[first], kept = Places::starts[first + count] - kept_first;
  bool any = false;
  unroll<count>([&](auto k) EQUIPES_INLINE { any |= job.path(list.list[first + k].l2, list.list[first + k].l3).table >= 0; });
  if (!any) return;
  const SplineEdges<T>& edges = job.edges;
  std::int32_t tables[count];
  unroll<count>([&](auto k) EQUIPES_INLINE { tables[k] = job.path(list.list[first + k].l2, list.list[first + k].l3).table; });
  const int vectors = job.vectors;
  Vector<T> h[kMaxSplineVectors][kept];
  for (std::int64_t i = job.first; i < job.last; ++i) {
    const std::int64_t begin = edges.begin[i], end = edges.end[i];
    if (begin == end) continue;
    unroll<count>([&](auto k) EQUIPES_INLINE {
      constexpr Coupling c = list.list[first + k];
      if (tables[k] < 0) return;
      const SplinePath<T>& path = job.path(c.l2, c.l3);
      for (int v = 0; v < vectors; ++v)
        Return<T, L1, c.l2, c.l3>::prepare(path.messages + (i - job.first) * path.stride + v * n, path.component,
                                           h[v] + Places::starts[first + k] - kept_first);
    });
    for (std::int64_t e = begin; e < end; ++e) {
      const T* x = job.x.at(edges.sender[e]);
      T* x_cotangent = job.x_cotangent.at(edges.sender[e]);
      const T* coefficients = job.table + edges.interval[e] * job.interval_stride;
      const T* harmonics = edges.harmonics + start * edges.stride + e;
      const T t = edges.place[e];
      // The first is the spline's; the others belong to Y, from degree max(low, 1) on.
      Vector<T> totals[n_totals] = {};
      for (int v = 0; v < vectors; ++v) {
        Vector<T> xs[d1], cotangents[d1];
        unroll<d1>([&](auto m1) EQUIPES_INLINE {
          xs[m1] = load(x + m1 * job.x.component + v * n);
          cotangents[m1] = load(x_cotangent + m1 * job.x_cotangent.component + v * n);
        });
        unroll<count>([&](auto k) EQUIPES_INLINE {
          constexpr Coupling c = list.list[first + k];
          if (tables[k] < 0) return;
          // Without this the numbers of the edge are made into vectors ahead of the loop, and there is no room for them.
          asm volatile("" ::: "memory");
          Vector<T> slope;
          const Vector<T> w = value_and_slope_of(coefficients + v * job.vector_stride + tables[k], t, slope);
          Return<T, L1, c.l2, c.l3>::apply(h[v] + Places::starts[first + k] - kept_first, xs, w, slope,
                                           harmonics + (c.l2 * c.l2 - start) * edges.stride, edges.stride, cotangents,
                                           totals + c.l2 * c.l2 - start + (low > 0 ? 1 : 0), totals[0]);
        });
        unroll<d1>([&](auto m1) EQUIPES_INLINE { store<T>(x_cotangent + m1 * job.x_cotangent.component + v * n, cotangents[m1]); });
      }
      T* target = edges.cotangent + e * edges.cotangent_width;
      if constexpr (low == 0) {
        add_all_sums<T, n_totals>(totals, target);
      } else {
        target[0] += sum<T>(totals[0]);
        unroll<n_totals - 1>([&](auto k) EQUIPES_INLINE { target[start + k] += sum<T>(totals[1 + k]); });
      }
    }
  }
}

template <class T, int L>
void species_forward(const SpeciesSplineJob<T>& job) {
  constexpr int n = kLanes<T>, d = 2 * L + 1;
  const auto& degree = job.degrees[L];
  const SplineEdges<T>& edges = job.edges;
  for (std::int64_t i = job.first; i < job.last; ++i)
    for (int v = 0; v < degree.vectors; ++v) {
      T* z = degree.z.at(i) + v * n;
      Vector<T> sums[d];
      unroll<d>([&](auto m) EQUIPES_INLINE { sums[m] = load(z + m * degree.z.component); });
      const T* table = job.table + degree.table + v * kCoefficients * n;
      for (std::int64_t e = edges.begin[i]; e < edges.end[i]; ++e) {
        const T* coefficients = table + edges.type[e] * job.type_stride + edges.interval[e] * job.interval_stride;
        const Vector<T> w = value_of(coefficients, edges.place[e]);
        if constexpr (L == 0)
          sums[0] += w;
        else
          unroll<d>([&](auto m) EQUIPES_INLINE { sums[m] += w * edges.harmonics[(L * L + m) * edges.stride + e]; });
      }
      unroll<d>([&](auto m) EQUIPES_INLINE { store<T>(z + m * degree.z.component, sums[m]); });
    }
}

template <class T, int L>
void species_reverse(const SpeciesSplineJob<T>& job) {
  constexpr int n = kLanes<T>, d = 2 * L + 1;
  const auto& degree = job.degrees[L];
  const SplineEdges<T>& edges = job.edges;
  for (std::int64_t i = job.first; i < job.last; ++i)
    for (std::int64_t e = edges.begin[i]; e < edges.end[i]; ++e) {
      const T* coefficients = job.table + degree.table + edges.type[e] * job.type_stride +
                              edges.interval[e] * job.interval_stride;
      const T t = edges.place[e];
      const T* y = edges.harmonics + L * L * edges.stride + e;
      Vector<T> total{}, totals[d] = {};
      for (int v = 0; v < degree.vectors; ++v) {
        const T* g = degree.z.at(i) + v * n;
        Vector<T> slope;
        const Vector<T> w = value_and_slope_of(coefficients + v * kCoefficients * n, t, slope);
        if constexpr (L == 0) {
          total += slope * load(g);
        } else {
          Vector<T> product{};
          unroll<d>([&](auto m) EQUIPES_INLINE {
            const Vector<T> cotangent = load(g + m * degree.z.component);
            product += cotangent * y[m * edges.stride];
            totals[m] += w * cotangent;
          });
          total += slope * product;
        }
      }
      T* target = edges.cotangent + e * edges.cotangent_width;
      target[0] += sum<T>(total);
      if constexpr (L > 0) unroll<d>([&](auto m) EQUIPES_INLINE { target[L * L + m] += sum<T>(totals[m]); });
    }
}

}  // namespace

template <class T>
void spline_forward(int l1, const SplineJob<T>& job) {
  unroll<kL>([&](auto l) {
    if (l != l1) return;
    unroll<Lists<l>::forward.groups>([&](auto group) { forward_group<T, l, group>(job); });
  });
}

template <class T>
void spline_reverse(int l1, const SplineJob<T>& job) {
  unroll<kL>([&](auto l) {
    if (l != l1) return;
    unroll<Lists<l>::reverse.groups>([&](auto group) { reverse_group<T, l, group>(job); });
  });
}

template <class T>
void species_spline_forward(const SpeciesSplineJob<T>& job) {
  unroll<kL>([&](auto l) {
    if (job.degrees[l].vectors > 0) species_forward<T, l>(job);
  });
}

template <class T>
void species_spline_reverse(const SpeciesSplineJob<T>& job) {
  unroll<kL>([&](auto l) {
    if (job.degrees[l].vectors > 0) species_reverse<T, l>(job);
  });
}

using Real = EQUIPES_REAL;
template void spline_forward(int, const SplineJob<Real>&);
template void spline_reverse(int, const SplineJob<Real>&);
template void species_spline_forward(const SpeciesSplineJob<Real>&);
template void species_spline_reverse(const SpeciesSplineJob<Real>&);

}  // namespace equipes
