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

// Coefficients of one vector of channels, as the tree meets them, with a zero behind them; changes and sums where wanted.
template <class T>
struct Coefficients {
  const Vector<T>* values = nullptr;
  const Vector<T>* changes = nullptr;
  Vector<T>* sums = nullptr;
};

template <class T>
[[gnu::always_inline]] inline void multiply_add(Vector<T>& sum, Vector<T> x, Vector<T> y) {
  sum += x * y;
}

// Calls single(number of its coefficient, its factor) and pair(number of its coefficient, both factors) for what hangs from
// a node of the last level.
template <class S, class P>
[[gnu::always_inline]] inline void for_terms(const ContractionTable& table, const ContractionTable::Node& node, S&& single,
                                             P&& pair) {
  for (std::int32_t t = node.first_single; t < node.last_single; ++t)
    single(table.singles[t].coefficient, table.singles[t].factor);
  for (std::int32_t t = node.first_pair; t < node.last_pair; ++t)
    pair(table.pairs[t].coefficient, table.pairs[t].factor_1, table.pairs[t].factor_2);
}

// A coefficient for B atoms. Changing: whether coefficients change.
template <class T, int B, bool Dual, bool Changing>
[[gnu::always_inline]] inline Number<T, B, Dual> number_of(const Coefficients<T>& c, std::int32_t k) {
  Number<T, B, Dual> v;
  unroll<B>([&](auto b) EQUIPES_INLINE {
    v.value[b] = c.values[k];
    if constexpr (Dual) v.change[b] = Changing ? c.changes[k] : Vector<T>{};
  });
  return v;
}

// sum += c x for a coefficient.
template <class T, int B, bool Dual, bool Changing>
[[gnu::always_inline]] inline void add_scaled(Number<T, B, Dual>& sum, const Coefficients<T>& c, std::int32_t k,
                                              const Number<T, B, Dual>& x) {
  const Vector<T> value = c.values[k];
  unroll<B>([&](auto b) EQUIPES_INLINE {
    multiply_add<T>(sum.value[b], value, x.value[b]);
    if constexpr (Dual) multiply_add<T>(sum.change[b], value, x.change[b]);
    if constexpr (Changing) multiply_add<T>(sum.change[b], c.changes[k], x.value[b]);
  });
}

// sum += x y.
template <class T, int B, bool Dual>
[[gnu::always_inline]] inline void add_product(Number<T, B, Dual>& sum, const Number<T, B, Dual>& x,
                                               const Number<T, B, Dual>& y) {
  unroll<B>([&](auto b) EQUIPES_INLINE {
    multiply_add<T>(sum.value[b], x.value[b], y.value[b]);
    if constexpr (Dual) {
      multiply_add<T>(sum.change[b], x.value[b], y.change[b]);
      multiply_add<T>(sum.change[b], x.change[b], y.value[b]);
    }
  });
}

// sum += x y or, of dual numbers, its change.
template <class T, int B, bool Dual>
[[gnu::always_inline]] inline void add_cotangent(Number<T, B, false>& sum, const Number<T, B, Dual>& x,
                                                 const Number<T, B, Dual>& y) {
  unroll<B>([&](auto b) EQUIPES_INLINE {
    if constexpr (Dual) {
      multiply_add<T>(sum.value[b], x.value[b], y.change[b]);
      multiply_add<T>(sum.value[b], x.change[b], y.value[b]);
    } else {
      multiply_add<T>(sum.value[b], x.value[b], y.value[b]);
    }
  });
}

// V of a node of a level.
template <class T, int B, bool Dual, bool Changing, int Last, int Level>
[[gnu::always_inline]] inline Number<T, B, Dual> value_of(const ContractionTable& table, const ContractionTable::Node& node,
                                                          const Coefficients<T>& c, const Number<T, B, Dual>* a) {
  Number<T, B, Dual> v = number_of<T, B, Dual, Changing>(c, node.coefficient);
  if constexpr (Level < Last) {
    for (std::int32_t k = node.first; k < node.last; ++k) {
      const ContractionTable::Node& child = table.nodes[Level + 1][k];
      add_product<T, B, Dual>(v, value_of<T, B, Dual, Changing, Last, Level + 1>(table, child, c, a), a[child.factor]);
    }
  } else {
    for_terms(
        table, node,
        [&](std::int32_t k, std::int32_t factor)
            EQUIPES_INLINE { add_scaled<T, B, Dual, Changing>(v, c, k, a[factor]); },
        [&](std::int32_t k, std::int32_t factor_1, std::int32_t factor_2) EQUIPES_INLINE {
          add_scaled<T, B, Dual, Changing>(v, c, k, times<T, B, Dual>(a[factor_1], a[factor_2]));
        });
  }
  return v;
}

// The same, and from the cotangent w of V those of A and c, which are added to `result` and `c.sums`: with Dual their changes.
template <class T, int B, bool Dual, bool Changing, bool Sums, int Last, int Level>
[[gnu::always_inline]] inline Number<T, B, Dual> reverse_of(const ContractionTable& table,
                                                            const ContractionTable::Node& node, const Coefficients<T>& c,
                                                            const Number<T, B, Dual>* a, const Number<T, B, Dual>& w,
                                                            Number<T, B, false>* result) {
  Number<T, B, Dual> v = number_of<T, B, Dual, Changing>(c, node.coefficient);
  const auto w_times = [&](std::int32_t k) EQUIPES_INLINE {
    Number<T, B, Dual> u = {};
    add_scaled<T, B, Dual, Changing>(u, c, k, w);
    return u;
  };
  // The cotangent of a coefficient that is multiplied by w and x.
  const auto add_up = [&](std::int32_t k, const Number<T, B, Dual>& x) EQUIPES_INLINE {
    Number<T, B, false> sum = {};
    add_cotangent<T, B, Dual>(sum, w, x);
    unroll<B>([&](auto b) EQUIPES_INLINE { c.sums[k] += sum.value[b]; });
  };
  if constexpr (Sums && Level > 0)
    unroll<B>([&](auto b) EQUIPES_INLINE {
      if constexpr (Dual)
        c.sums[node.coefficient] += w.change[b];
      else
        c.sums[node.coefficient] += w.value[b];
    });
  if constexpr (Level < Last) {
    for (std::int32_t k = node.first; k < node.last; ++k) {
      const ContractionTable::Node& child = table.nodes[Level + 1][k];
      const Number<T, B, Dual> u = reverse_of<T, B, Dual, Changing, Sums, Last, Level + 1>(
          table, child, c, a, times<T, B, Dual>(w, a[child.factor]), result);
      add_product<T, B, Dual>(v, u, a[child.factor]);
      add_cotangent<T, B, Dual>(result[child.factor], w, u);
    }
  } else {
    for_terms(
        table, node,
        [&](std::int32_t k, std::int32_t factor) EQUIPES_INLINE {
          add_scaled<T, B, Dual, Changing>(v, c, k, a[factor]);
          const Number<T, B, Dual> u = w_times(k);
          unroll<B>([&](auto b) EQUIPES_INLINE {
            if constexpr (Dual)
              result[factor].value[b] += u.change[b];
            else
              result[factor].value[b] += u.value[b];
          });
          if constexpr (Sums) add_up(k, a[factor]);
        },
        [&](std::int32_t k, std::int32_t factor_1, std::int32_t factor_2) EQUIPES_INLINE {
          const Number<T, B, Dual> product = times<T, B, Dual>(a[factor_1], a[factor_2]), u = w_times(k);
          add_scaled<T, B, Dual, Changing>(v, c, k, product);
          add_cotangent<T, B, Dual>(result[factor_1], u, a[factor_2]);
          add_cotangent<T, B, Dual>(result[factor_2], u, a[factor_1]);
          if constexpr (Sums) add_up(k, product);
        });
  }
  return v;
}

// Calls f with the tree's last level as a number known to the compiler.
template <class F>
[[gnu::always_inline]] inline void for_last_level(const ContractionTable& table, F&& f) {
  unroll<kMaxDegree - 1>([&](auto level) EQUIPES_INLINE {
    if (level == table.last_level()) f(level);
  });
}

template <class T, int B, bool Dual, bool Changing>
void forward_atoms(const ContractionJob<T>& job, const Coefficients<T>& c, const std::int64_t* atoms, int channel) {
  const ContractionTable& table = *job.table;
  Number<T, B, Dual> a[kMaxComponents];
  gather<T, B, Dual>(job.a, job.a_tangent, table.inputs, atoms, channel, a);
  for_last_level(table, [&](auto last) {
    for (int k = 0; k < table.outputs; ++k) {
      const Number<T, B, Dual> m = value_of<T, B, Dual, Changing, last, 0>(table, table.nodes[0][k], c, a);
      for (int b = 0; b < B; ++b) {
        if (job.m != nullptr) store<T>(job.m[k].data + atoms[b] * job.m[k].stride + channel, m.value[b]);
        if constexpr (Dual)
          store<T>(job.m_tangent[k].data + atoms[b] * job.m_tangent[k].stride + channel, m.change[b]);
      }
    }
  });
}

template <class T, int B, bool Dual, bool Changing, bool Sums>
void reverse_atoms(const ContractionJob<T>& job, const Coefficients<T>& c, const std::int64_t* atoms, int channel) {
  const ContractionTable& table = *job.table;
  Number<T, B, Dual> a[kMaxComponents], g[kMaxComponents];
  Number<T, B, false> result[kMaxComponents];
  gather<T, B, Dual>(job.a, job.a_tangent, table.inputs, atoms, channel, a);
  gather<T, B, Dual>(job.m, job.m_tangent, table.outputs, atoms, channel, g);
  for (int k = 0; k < table.inputs; ++k) result[k] = Number<T, B, false>{};
  for_last_level(table, [&](auto last) {
    for (int k = 0; k < table.outputs; ++k)
      reverse_of<T, B, Dual, Changing, Sums, last, 0>(table, table.nodes[0][k], c, a, g[k], result);
  });
  for (int k = 0; k < table.inputs; ++k)
    for (int b = 0; b < B; ++b)
      store<T>(job.a_result[k].data + atoms[b] * job.a_result[k].stride + channel, result[k].value[b]);
}

// Coefficients of one vector of channels side by side: rows of all channels share too few sets of the cache.
template <class T>
class LocalCoefficients {
 public:
  explicit LocalCoefficients(const ContractionJob<T>& job) : job_(job), count_(job.table->coefficients() + 1) {
    const std::size_t vectors = std::size_t(count_) * (1 + (job.c_tangent != nullptr) + (job.c_result != nullptr)) + 1;
    if (memory().size() < vectors * kLanes<T>) memory().resize(vectors * kLanes<T>);
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(memory().data());
    values_ = reinterpret_cast<Vector<T>*>((address + kVectorBytes - 1) / kVectorBytes * kVectorBytes);
    changes_ = job.c_tangent != nullptr ? values_ + count_ : nullptr;
    sums_ = job.c_result != nullptr ? values_ + (changes_ != nullptr ? 2 : 1) * count_ : nullptr;
  }

  Coefficients<T> gather(int channel) {
    const std::vector<std::int32_t>& order = job_.table->order;
    const auto copy = [&](const T* from, Vector<T>* to) {
      for (std::size_t k = 0; k < order.size(); ++k) to[k] = load(from + std::int64_t(order[k]) * job_.width + channel);
      to[count_ - 1] = Vector<T>{};
    };
    copy(job_.c, values_);
    if (changes_ != nullptr) copy(job_.c_tangent, changes_);
    if (sums_ != nullptr) std::fill_n(sums_, count_, Vector<T>{});
    return {values_, changes_, sums_};
  }

  void scatter(int channel) const {
    if (sums_ == nullptr) return;
    const std::vector<std::int32_t>& order = job_.table->order;
    for (std::size_t k = 0; k < order.size(); ++k)
      add_to<T>(job_.c_result + std::int64_t(order[k]) * job_.width + channel, sums_[k]);
  }

 private:
  static std::vector<T>& memory() {
    thread_local std::vector<T> memory;
    return memory;
  }

  const ContractionJob<T>& job_;
  int count_;
  Vector<T>*values_, *changes_, *sums_;
};

// Calls work(a number of atoms known to the compiler, coefficients, atoms, channel).
template <class T, int B, class F>
void for_atoms(const ContractionJob<T>& job, F&& work) {
  LocalCoefficients<T> local(job);
  for (int channel = job.first_channel; channel < job.last_channel; channel += kLanes<T>) {
    const Coefficients<T> c = local.gather(channel);
    std::int64_t i = job.first;
    std::int64_t atoms[B];
    const auto take = [&](int count) {
      for (int b = 0; b < count; ++b, ++i) atoms[b] = job.order != nullptr ? job.order[i] : i;
    };
    while (i + B <= job.last) {
      take(B);
      work(std::integral_constant<int, B>{}, c, atoms, channel);
    }
    while (i < job.last) {
      take(1);
      work(std::integral_constant<int, 1>{}, c, atoms, channel);
    }
    local.scatter(channel);
  }
}

template <class T, bool Dual, bool Changing>
void forward(const ContractionJob<T>& job) {
  for_atoms<T, together(Dual)>(job, [&](auto count, const Coefficients<T>& c, const std::int64_t* atoms, int channel) {
    forward_atoms<T, count, Dual, Changing>(job, c, atoms, channel);
  });
}

template <class T, bool Dual, bool Changing, bool Sums>
void reverse(const ContractionJob<T>& job) {
  for_atoms<T, together(Dual)>(job, [&](auto count, const Coefficients<T>& c, const std::int64_t* atoms, int channel) {
    reverse_atoms<T, count, Dual, Changing, Sums>(job, c, atoms, channel);
  });
}

}  // namespace

template <class T>
void contraction_forward(const ContractionJob<T>& job) {
  if (job.m_tangent == nullptr)
    forward<T, false, false>(job);
  else if (job.c_tangent == nullptr)
    forward<T, true, false>(job);
  else
    forward<T, true, true>(job);
}

template <class T>
void contraction_reverse(const ContractionJob<T>& job) {
  const bool sums = job.c_result != nullptr;
  if (job.m_tangent == nullptr)
    sums ? reverse<T, false, false, true>(job) : reverse<T, false, false, false>(job);
  else if (job.c_tangent == nullptr)
    sums ? reverse<T, true, false, true>(job) : reverse<T, true, false, false>(job);
  else
    sums ? reverse<T, true, true, true>(job) : reverse<T, true, true, false>(job);
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
