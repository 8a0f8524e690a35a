#include "contraction.hpp"

namespace equipes {
namespace {

// Atoms that go through the terms together: their products do not wait for each other, and share what is read of a term.
// Values with changes need twice the registers.
constexpr int together(bool dual) { return kRegisters == 32 && !dual ? 4 : 2; }

// A value and its change, for each of B atoms; without a change where none is asked for.
template <class T, int B, bool Dual>
struct Number {
  Vector<T> value[B];
};
template <class T, int B>
struct Number<T, B, true> {
  Vector<T> value[B];
  Vector<T> change[B];
};

template <class T, int B, bool Dual>
[[gnu::always_inline]] inline Number<T, B, Dual> times(const Number<T, B, Dual>& x, const Number<T, B, Dual>& y) {
  Number<T, B, Dual> result;
  unroll<B>([&](auto b) EQUIPES_INLINE {
    result.value[b] = x.value[b] * y.value[b];
    if constexpr (Dual) result.change[b] = x.change[b] * y.value[b] + x.value[b] * y.change[b];
  });
  return result;
}

template <class T, int B, bool Dual>
[[gnu::always_inline]] inline void gather(const Component<T>* components, const Component<T>* changes, int count,
                                          const std::int64_t* atoms, int channel, Number<T, B, Dual>* to) {
  for (int k = 0; k < count; ++k)
    unroll<B>([&](auto b) EQUIPES_INLINE {
      to[k].value[b] = load(components[k].data + atoms[b] * components[k].stride + channel);
      if constexpr (Dual)
        to[k].change[b] = changes != nullptr ? load(changes[k].data + atoms[b] * changes[k].stride + channel) : Vector<T>{};
    });
}

template <class T, int B, bool Dual, int Degree>
[[gnu::always_inline]] inline void forward_degree(const ContractionJob<T>& job, int channel,
                                                  const Number<T, B, Dual>* a, Number<T, B, Dual>* m) {
  const ContractionTable::Degree& degree = job.table->degrees[Degree - 1];
  const std::int64_t terms = std::int64_t(degree.begin.size()) - 1;
  const std::int32_t* factors = degree.factors.data();
  const std::int32_t* output = job.table->output.data();
  for (std::int64_t t = 0; t < terms; ++t, factors += Degree) {
    Number<T, B, Dual> product = a[factors[0]];
    unroll<Degree - 1>([&](auto k) EQUIPES_INLINE { product = times<T, B, Dual>(product, a[factors[k + 1]]); });
    for (std::int32_t e = degree.begin[t]; e < degree.begin[t + 1]; ++e) {
      const std::int64_t at = std::int64_t(e) * job.width + channel;
      const Vector<T> c = load(job.c + at);
      Number<T, B, Dual>& target = m[output[e]];
      unroll<B>([&](auto b) EQUIPES_INLINE {
        target.value[b] += c * product.value[b];
        if constexpr (Dual) target.change[b] += c * product.change[b];
      });
      if constexpr (Dual)
        if (job.c_tangent != nullptr) {
          const Vector<T> change = load(job.c_tangent + at);
          unroll<B>([&](auto b) EQUIPES_INLINE { target.change[b] += change * product.value[b]; });
        }
    }
  }
}

template <class T, int B, bool Dual>
void forward_atoms(const ContractionJob<T>& job, const std::int64_t* atoms, int channel) {
  const ContractionTable& table = *job.table;
  Number<T, B, Dual> a[kMaxComponents], m[kMaxComponents];
  gather<T, B, Dual>(job.a, job.a_tangent, table.inputs, atoms, channel, a);
  for (int k = 0; k < table.outputs; ++k) m[k] = Number<T, B, Dual>{};
  unroll<kMaxDegree>([&](auto d) EQUIPES_INLINE {
    if (d < int(table.degrees.size())) forward_degree<T, B, Dual, d + 1>(job, channel, a, m);
  });
  for (int k = 0; k < table.outputs; ++k)
    for (int b = 0; b < B; ++b) {
      if (job.m != nullptr) store<T>(job.m[k].data + atoms[b] * job.m[k].stride + channel, m[k].value[b]);
      if constexpr (Dual)
        store<T>(job.m_tangent[k].data + atoms[b] * job.m_tangent[k].stride + channel, m[k].change[b]);
    }
}

// g and the result of the sweep: values where there are no changes, otherwise changes.
template <class T, int B, bool Dual, int Degree>
[[gnu::always_inline]] inline void reverse_degree(const ContractionJob<T>& job, int channel,
                                                  const Number<T, B, Dual>* a, const Number<T, B, Dual>* g,
                                                  Number<T, B, false>* result) {
  const ContractionTable::Degree& degree = job.table->degrees[Degree - 1];
  const std::int64_t terms = std::int64_t(degree.begin.size()) - 1;
  const std::int32_t* factors = degree.factors.data();
  const std::int32_t* output = job.table->output.data();
  for (std::int64_t t = 0; t < terms; ++t, factors += Degree) {
    // Products of the factors before and from each one on.
    Number<T, B, Dual> before[Degree], after[Degree];
    before[0] = a[factors[0]];
    after[Degree - 1] = a[factors[Degree - 1]];
    unroll<Degree - 1>([&](auto k) EQUIPES_INLINE {
      before[k + 1] = times<T, B, Dual>(before[k], a[factors[k + 1]]);
      if constexpr (k + 2 < Degree)
        after[Degree - 2 - k] = times<T, B, Dual>(a[factors[Degree - 2 - k]], after[Degree - 1 - k]);
    });
    const Number<T, B, Dual>& product = before[Degree - 1];
    Number<T, B, Dual> cotangent = {};  // of the product
    for (std::int32_t e = degree.begin[t]; e < degree.begin[t + 1]; ++e) {
      const std::int64_t at = std::int64_t(e) * job.width + channel;
      const Vector<T> c = load(job.c + at);
      const Number<T, B, Dual>& given = g[output[e]];
      unroll<B>([&](auto b) EQUIPES_INLINE {
        cotangent.value[b] += c * given.value[b];
        if constexpr (Dual) cotangent.change[b] += c * given.change[b];
      });
      if constexpr (Dual)
        if (job.c_tangent != nullptr) {
          const Vector<T> change = load(job.c_tangent + at);
          unroll<B>([&](auto b) EQUIPES_INLINE { cotangent.change[b] += change * given.value[b]; });
        }
      if (job.c_result != nullptr) {
        Vector<T> sum{};
        unroll<B>([&](auto b) EQUIPES_INLINE {
          if constexpr (Dual)
            sum += given.change[b] * product.value[b] + given.value[b] * product.change[b];
          else
            sum += given.value[b] * product.value[b];
        });
        add_to<T>(job.c_result + at, sum);
      }
    }
    unroll<Degree>([&](auto k) EQUIPES_INLINE {
      Number<T, B, false>& target = result[factors[k]];
      if constexpr (Degree == 1) {
        unroll<B>([&](auto b) EQUIPES_INLINE {
          if constexpr (Dual)
            target.value[b] += cotangent.change[b];
          else
            target.value[b] += cotangent.value[b];
        });
      } else {
        Number<T, B, Dual> others;
        if constexpr (k == 0)
          others = after[1];
        else if constexpr (k == Degree - 1)
          others = before[Degree - 2];
        else
          others = times<T, B, Dual>(before[k - 1], after[k + 1]);
        unroll<B>([&](auto b) EQUIPES_INLINE {
          if constexpr (Dual)
            target.value[b] += cotangent.change[b] * others.value[b] + cotangent.value[b] * others.change[b];
          else
            target.value[b] += cotangent.value[b] * others.value[b];
        });
      }
    });
  }
}

template <class T, int B, bool Dual>
void reverse_atoms(const ContractionJob<T>& job, const std::int64_t* atoms, int channel) {
  const ContractionTable& table = *job.table;
  Number<T, B, Dual> a[kMaxComponents], g[kMaxComponents];
  Number<T, B, false> result[kMaxComponents];
  gather<T, B, Dual>(job.a, job.a_tangent, table.inputs, atoms, channel, a);
  gather<T, B, Dual>(job.m, job.m_tangent, table.outputs, atoms, channel, g);
  for (int k = 0; k < table.inputs; ++k) result[k] = Number<T, B, false>{};
  unroll<kMaxDegree>([&](auto d) EQUIPES_INLINE {
    if (d < int(table.degrees.size())) reverse_degree<T, B, Dual, d + 1>(job, channel, a, g, result);
  });
  for (int k = 0; k < table.inputs; ++k)
    for (int b = 0; b < B; ++b)
      store<T>(job.a_result[k].data + atoms[b] * job.a_result[k].stride + channel, result[k].value[b]);
}

// Calls work(a number of atoms known to the compiler, atoms, channel).
template <class T, int B, class F>
void for_atoms(const ContractionJob<T>& job, F&& work) {
  for (int channel = job.first_channel; channel < job.last_channel; channel += kLanes<T>) {
    std::int64_t i = job.first;
    std::int64_t atoms[B];
    const auto take = [&](int count) {
      for (int b = 0; b < count; ++b, ++i) atoms[b] = job.order != nullptr ? job.order[i] : i;
    };
    while (i + B <= job.last) {
      take(B);
      work(std::integral_constant<int, B>{}, atoms, channel);
    }
    while (i < job.last) {
      take(1);
      work(std::integral_constant<int, 1>{}, atoms, channel);
    }
  }
}

template <class T, bool Dual>
void forward(const ContractionJob<T>& job) {
  for_atoms<T, together(Dual)>(job, [&](auto count, const std::int64_t* atoms, int channel) {
    forward_atoms<T, count, Dual>(job, atoms, channel);
  });
}

template <class T, bool Dual>
void reverse(const ContractionJob<T>& job) {
  for_atoms<T, together(Dual)>(job, [&](auto count, const std::int64_t* atoms, int channel) {
    reverse_atoms<T, count, Dual>(job, atoms, channel);
  });
}

}  // namespace

template <class T>
void contraction_forward(const ContractionJob<T>& job) {
  job.m_tangent != nullptr ? forward<T, true>(job) : forward<T, false>(job);
}

template <class T>
void contraction_reverse(const ContractionJob<T>& job) {
  job.m_tangent != nullptr ? reverse<T, true>(job) : reverse<T, false>(job);
}

template <class T>
void contraction_coefficients(const ContractionJob<T>& job, const std::vector<const T*>& weights, T* c) {
  const ContractionTable& table = *job.table;
  for (int e = 0; e < table.coefficients(); ++e, c += job.width)
    for (int v = job.first_channel; v < job.last_channel; v += kLanes<T>) {
      Vector<T> sum{};
      for (std::int32_t r = table.row[e]; r < table.row[e + 1]; ++r)
        sum += load(weights[table.weight[r]] + v) * T(table.coupling[r]);
      store<T>(c + v, sum);
    }
}

template <class T>
void contraction_weights(const ContractionJob<T>& job, const T* c, const std::vector<T*>& weights) {
  const ContractionTable& table = *job.table;
  for (int e = 0; e < table.coefficients(); ++e, c += job.width)
    for (std::int32_t r = table.row[e]; r < table.row[e + 1]; ++r)
      for (int v = job.first_channel; v < job.last_channel; v += kLanes<T>)
        add_to<T>(weights[table.weight[r]] + v, load(c + v) * T(table.coupling[r]));
}

using Real = EQUIPES_REAL;
template void contraction_forward(const ContractionJob<Real>&);
template void contraction_reverse(const ContractionJob<Real>&);
template void contraction_coefficients(const ContractionJob<Real>&, const std::vector<const Real*>&, Real*);
template void contraction_weights(const ContractionJob<Real>&, const Real*, const std::vector<Real*>&);

}  // namespace equipes
