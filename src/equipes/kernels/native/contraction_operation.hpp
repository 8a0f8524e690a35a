// The symmetric contraction alone, on arrays laid out as in Python: features [N, components, width], coefficients
// [ranges, coefficients, width], width a multiple of the vector width.
#pragma once

#include <vector>

#include "contraction.hpp"
#include "team.hpp"

namespace equipes {

template <class T>
class ContractionOperation {
 public:
  explicit ContractionOperation(ContractionTable table) : table_(std::move(table)) { table_.check(1 << 30); }

  // Atoms order[starts[s]] .. order[starts[s + 1] - 1] have the coefficients of range s.
  struct Atoms {
    int width;
    const std::int64_t* order;
    std::vector<std::int64_t> starts;
  };

  // See contraction.hpp; whatever may be nullptr there may be it here.
  void forward(int threads, const Atoms& atoms, const T* a, const T* a_tangent, const T* c, const T* c_tangent, T* m,
               T* m_tangent) const {
    const auto as = rows(a, table_.inputs, atoms), as_tangent = rows(a_tangent, table_.inputs, atoms);
    const auto ms = rows(m, table_.outputs, atoms), ms_tangent = rows(m_tangent, table_.outputs, atoms);
    run(threads, atoms, c, c_tangent, [&](ContractionJob<T>& job) {
      set(job.a, as);
      set(job.a_tangent, as_tangent);
      set(job.m, ms);
      set(job.m_tangent, ms_tangent);
      contraction_forward(job);
    });
  }

  // c_result must be zero.
  void reverse(int threads, const Atoms& atoms, const T* a, const T* a_tangent, const T* c, const T* c_tangent, const T* g,
               const T* g_tangent, T* a_result, T* c_result) const {
    const auto as = rows(a, table_.inputs, atoms), as_tangent = rows(a_tangent, table_.inputs, atoms);
    const auto gs = rows(g, table_.outputs, atoms), gs_tangent = rows(g_tangent, table_.outputs, atoms);
    const auto results = rows(a_result, table_.inputs, atoms);
    run(threads, atoms, c, c_tangent, [&](ContractionJob<T>& job) {
      set(job.a, as);
      set(job.a_tangent, as_tangent);
      set(job.m, gs);
      set(job.m_tangent, gs_tangent);
      set(job.a_result, results);
      if (c_result != nullptr) job.c_result = c_result + (job.c - c);
      contraction_reverse(job);
    });
  }

 private:
  std::vector<Component<T>> rows(const T* data, int components, const Atoms& atoms) const {
    std::vector<Component<T>> result;
    if (data != nullptr)
      for (int k = 0; k < components; ++k)
        result.push_back({const_cast<T*>(data) + std::int64_t(k) * atoms.width, std::int64_t(components) * atoms.width});
    return result;
  }

  static void set(const Component<T>*& target, const std::vector<Component<T>>& components) {
    target = components.empty() ? nullptr : components.data();
  }

  template <class F>
  void run(int threads, const Atoms& atoms, const T* c, const T* c_tangent, F&& work) const {
    const std::int64_t size = std::int64_t(table_.coefficients()) * atoms.width;
    with_team(threads, [&](Team team) {
      // Threads share the channels: all sums over atoms stay in one hand.
      const auto [first, last] = team.share(atoms.width / kLanes<T>);
      for (std::size_t s = 0; s + 1 < atoms.starts.size(); ++s) {
        ContractionJob<T> job;
        job.table = &table_;
        job.first = atoms.starts[s];
        job.last = atoms.starts[s + 1];
        job.first_channel = int(first) * kLanes<T>;
        job.last_channel = int(last) * kLanes<T>;
        job.order = atoms.order;
        job.width = atoms.width;
        job.c = c + std::int64_t(s) * size;
        job.c_tangent = c_tangent != nullptr ? c_tangent + std::int64_t(s) * size : nullptr;
        work(job);
      }
    });
  }

  ContractionTable table_;
};

}  // namespace equipes
