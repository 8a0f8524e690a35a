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

// V of a node, whose children are on `Level`; the root's are on the first. Changing: whether coefficients change.
template <class T, int B, bool Dual, bool Changing, int Degree, int Level>
[[gnu::always_inline]] inline Number<T, B, Dual> value_of(const ContractionTable& table, const ContractionTable::Node& node,
                                                          const Coefficients<T>& c, const Number<T, B, Dual>* a) {
  using Node = ContractionTable::Node;
  Number<T, B, Dual> v;
  unroll<B>([&](auto b) EQUIPES_INLINE {
    v.value[b] = c.values[node.coefficient];
    if constexpr (Dual) v.change[b] = Changing ? c.changes[node.coefficient] : Vector<T>{};
  });
  const Node* nodes = table.nodes[Level].data();
  for (const Node* child = nodes + node.first; child != nodes + node.last; ++child) {
    const Number<T, B, Dual>& factor = a[child->factor];
    if constexpr (Level == Degree - 1) {
      const Vector<T> leaf = c.values[child->coefficient];
      unroll<B>([&](auto b) EQUIPES_INLINE {
        multiply_add<T>(v.value[b], leaf, factor.value[b]);
        if constexpr (Dual) multiply_add<T>(v.change[b], leaf, factor.change[b]);
        if constexpr (Changing) multiply_add<T>(v.change[b], c.changes[child->coefficient], factor.value[b]);
      });
    } else {
      const Number<T, B, Dual> u = value_of<T, B, Dual, Changing, Degree, Level + 1>(table, *child, c, a);
      unroll<B>([&](auto b) EQUIPES_INLINE {
        multiply_add<T>(v.value[b], u.value[b], factor.value[b]);
        if constexpr (Dual) {
          multiply_add<T>(v.change[b], u.value[b], factor.change[b]);
          multiply_add<T>(v.change[b], u.change[b], factor.value[b]);
        }
      });
    }
  }
  return v;
}

// The same, and from the cotangent w of V those of A and c, which are added to `result` and `c.sums`: with Dual their changes.
template <class T, int B, bool Dual, bool Changing, bool Sums, int Degree, int Level>
[[gnu::always_inline]] inline Number<T, B, Dual> reverse_of(const ContractionTable& table,
                                                            const ContractionTable::Node& node, const Coefficients<T>& c,
                                                            const Number<T, B, Dual>* a, const Number<T, B, Dual>& w,
                                                            Number<T, B, false>* result) {
  using Node = ContractionTable::Node;
  Number<T, B, Dual> v;
  unroll<B>([&](auto b) EQUIPES_INLINE {
    v.value[b] = c.values[node.coefficient];
    if constexpr (Dual) v.change[b] = Changing ? c.changes[node.coefficient] : Vector<T>{};
  });
  const auto add_up = [&](const Number<T, B, Dual>& cotangent, std::int32_t coefficient) EQUIPES_INLINE {
    Vector<T> sum = c.sums[coefficient];
    unroll<B>([&](auto b) EQUIPES_INLINE {
      if constexpr (Dual)
        sum += cotangent.change[b];
      else
        sum += cotangent.value[b];
    });
    c.sums[coefficient] = sum;
  };
  if constexpr (Sums && Level > 0) add_up(w, node.coefficient);
  const Node* nodes = table.nodes[Level].data();
  for (const Node* child = nodes + node.first; child != nodes + node.last; ++child) {
    const Number<T, B, Dual>& factor = a[child->factor];
    Number<T, B, false>& target = result[child->factor];
    if constexpr (Level == Degree - 1) {
      const Vector<T> leaf = c.values[child->coefficient];
      unroll<B>([&](auto b) EQUIPES_INLINE {
        multiply_add<T>(v.value[b], leaf, factor.value[b]);
        if constexpr (Dual) multiply_add<T>(v.change[b], leaf, factor.change[b]);
        if constexpr (Changing) multiply_add<T>(v.change[b], c.changes[child->coefficient], factor.value[b]);
        if constexpr (Dual)
          multiply_add<T>(target.value[b], leaf, w.change[b]);
        else
          multiply_add<T>(target.value[b], leaf, w.value[b]);
        if constexpr (Changing) multiply_add<T>(target.value[b], c.changes[child->coefficient], w.value[b]);
      });
      if constexpr (Sums) add_up(times<T, B, Dual>(w, factor), child->coefficient);
    } else {
      const Number<T, B, Dual> u = reverse_of<T, B, Dual, Changing, Sums, Degree, Level + 1>(
          table, *child, c, a, times<T, B, Dual>(w, factor), result);
      unroll<B>([&](auto b) EQUIPES_INLINE {
        multiply_add<T>(v.value[b], u.value[b], factor.value[b]);
        if constexpr (Dual) {
          multiply_add<T>(v.change[b], u.value[b], factor.change[b]);
          multiply_add<T>(v.change[b], u.change[b], factor.value[b]);
          multiply_add<T>(target.value[b], u.value[b], w.change[b]);
          multiply_add<T>(target.value[b], u.change[b], w.value[b]);
        } else {
          multiply_add<T>(target.value[b], u.value[b], w.value[b]);
        }
      });
    }
  }
  return v;
}

// The root of the terms of a component of m.
inline ContractionTable::Node root_of(const ContractionTable& table, int output) {
  return {0, table.coefficients(), table.roots[output], table.roots[output + 1]};
}

// Calls f with the highest degree as a number known to the compiler.
template <class F>
[[gnu::always_inline]] inline void for_highest_degree(const ContractionTable& table, F&& f) {
  unroll<kMaxDegree>([&](auto d) EQUIPES_INLINE {
    if (d + 1 == int(table.degrees.size())) f(std::integral_constant<int, d + 1>{});
  });
}

template <class T, int B, bool Dual, bool Changing>
void forward_atoms(const ContractionJob<T>& job, const Coefficients<T>& c, const std::int64_t* atoms, int channel) {
  const ContractionTable& table = *job.table;
  Number<T, B, Dual> a[kMaxComponents];
  gather<T, B, Dual>(job.a, job.a_tangent, table.inputs, atoms, channel, a);
  for_highest_degree(table, [&](auto degree) {
    for (int k = 0; k < table.outputs; ++k) {
      const Number<T, B, Dual> m = value_of<T, B, Dual, Changing, degree, 0>(table, root_of(table, k), c, a);
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
  for_highest_degree(table, [&](auto degree) {
    for (int k = 0; k < table.outputs; ++k)
      reverse_of<T, B, Dual, Changing, Sums, degree, 0>(table, root_of(table, k), c, a, g[k], result);
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
