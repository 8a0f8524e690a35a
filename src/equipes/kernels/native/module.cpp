// The Python module: engine and message passing in both number types. Arrays come as addresses; the Python side has
// checked their type, shape and order.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "contraction_operation.hpp"
#include "engine.hpp"
#include "frozen.hpp"
#include "invariant.hpp"
#include "operation.hpp"

namespace nb = nanobind;

namespace equipes {
namespace {

using Address = std::uintptr_t;

template <class P>
P* pointer(Address address) {
  return reinterpret_cast<P*>(address);
}

std::vector<Irrep> irreps(nb::handle list) {
  std::vector<Irrep> result;
  for (const auto& [mul, l, p] : nb::cast<std::vector<std::array<int, 3>>>(list)) result.push_back({mul, l, p});
  return result;
}

std::vector<PathSpec> paths(nb::handle list) {
  std::vector<PathSpec> result;
  for (const auto& [block, l2, l3, p3] : nb::cast<std::vector<std::array<int, 4>>>(list))
    result.push_back({block, l2, l3, p3});
  return result;
}

ContractionTable contraction(nb::handle given) {
  const auto [inputs, outputs, degrees, output, row, weight, coupling] =
      nb::cast<std::tuple<int, int, nb::list, std::vector<std::int32_t>, std::vector<std::int32_t>,
                          std::vector<std::int32_t>, std::vector<double>>>(given);
  ContractionTable table{inputs, outputs, {}, output, row, weight, coupling};
  for (nb::handle item : degrees) {
    const auto [factors, begin] = nb::cast<std::pair<std::vector<std::int32_t>, std::vector<std::int32_t>>>(item);
    table.degrees.push_back({factors, begin});
  }
  return table;
}

ModelSpec model(nb::dict given) {
  ModelSpec spec;
  spec.n_species = nb::cast<int>(given["n_species"]);
  spec.n_features = nb::cast<int>(given["n_features"]);
  spec.species_aware = nb::cast<bool>(given["species_aware"]);
  spec.l_max = nb::cast<int>(given["l_max"]);
  spec.cutoffs = nb::cast<std::vector<double>>(given["cutoffs"]);
  spec.norms = nb::cast<std::vector<double>>(given["norms"]);
  spec.basis.r_max = nb::cast<double>(given["r_max"]);
  spec.basis.power = nb::cast<int>(given["cutoff_power"]);
  spec.basis.on = nb::cast<double>(given["cutoff_on"]);
  spec.n_roots = nb::cast<int>(given["n_roots"]);
  spec.readout_widths = nb::cast<std::vector<int>>(given["readout_widths"]);
  spec.repulsion.power = nb::cast<int>(given["repulsion_power"]);
  spec.repulsion.charge_product = nb::cast<std::vector<double>>(given["repulsion_charges"]);
  spec.repulsion.inverse_length = nb::cast<std::vector<double>>(given["repulsion_inverse_lengths"]);
  for (nb::handle item : given["layers"]) {
    nb::dict layer = nb::cast<nb::dict>(item);
    LayerSpec result;
    result.irreps_in = irreps(layer["irreps_in"]);
    result.radial_widths = nb::cast<std::vector<int>>(layer["radial_widths"]);
    result.paths = paths(layer["paths"]);
    result.messages = irreps(layer["messages"]);
    result.gate_in = irreps(layer["gate_in"]);
    if (layer.contains("out")) {
      result.out = irreps(layer["out"]);
      result.contraction = contraction(layer["contraction"]);
      result.contraction_rows = nb::cast<std::vector<int>>(layer["contraction_rows"]);
      result.residual = nb::cast<bool>(layer["residual"]);
      result.density = nb::cast<double>(layer["density"]);
    } else {
      result.scalars = irreps(layer["scalars"]);
      result.gated = irreps(layer["gated"]);
      result.self_connection = nb::cast<bool>(layer["self_connection"]);
    }
    spec.layers.push_back(std::move(result));
  }
  if (given.contains("moments")) spec.moments = nb::cast<int>(given["moments"]);
  if (given.contains("species_fan_in")) {  // what MACE has differently
    spec.gain = nb::cast<double>(given["gain"]);
    spec.species_fan_in = nb::cast<double>(given["species_fan_in"]);
    spec.basis.factor = nb::cast<double>(given["basis_factor"]);
    spec.repulsion.scaled = true;
    spec.repulsion.cutoffs = nb::cast<std::vector<double>>(given["repulsion_cutoffs"]);
    if (spec.repulsion.power > 0) spec.repulsion.screening = nb::cast<std::vector<double>>(given["repulsion_screening"]);
    const auto [kind, constants, radii] =
        nb::cast<std::tuple<int, std::array<double, 4>, std::vector<double>>>(given["distance_transform"]);
    spec.basis.transform = {DistanceTransform::Kind(kind), constants[0], constants[1], constants[2], constants[3], radii};
  }
  return spec;
}

template <class T>
void bind_engine(nb::module_& module, const char* name, const char* pass_name) {
  using E = Engine<T>;
  nb::class_<typename E::Pass>(module, pass_name);
  nb::class_<E>(module, name)
      .def("__init__", [](E* self, nb::dict spec) { new (self) E(model(spec)); })
      .def_prop_ro("parameter_sizes", &E::parameter_sizes)
      .def("forward",
           [](const E& self, int threads, std::int64_t atoms, std::int64_t edges, const std::array<Address, 6>& graph,
              const std::vector<Address>& parameters, Address energies, Address gradient, bool differentiate) {
             const GraphArrays arrays{atoms,
                                      edges,
                                      pointer<const std::int64_t>(graph[0]),
                                      pointer<const std::int64_t>(graph[1]),
                                      pointer<const std::int64_t>(graph[2]),
                                      pointer<const std::int64_t>(graph[3]),
                                      pointer<const double>(graph[4]),
                                      pointer<const double>(graph[5])};
             std::vector<const void*> values;
             for (Address address : parameters) values.push_back(pointer<const void>(address));
             nb::gil_scoped_release release;
             return self.forward(threads, arrays, values, pointer<double>(energies), pointer<double>(gradient),
                                differentiate);
           })
      .def("backward", [](const E& self, int threads, typename E::Pass& pass, Address energy_cotangent,
                          Address gradient_cotangent, const std::vector<Address>& gradients) {
        std::vector<void*> targets;
        for (Address address : gradients) targets.push_back(pointer<void>(address));
        nb::gil_scoped_release release;
        self.backward(threads, pass, pointer<const double>(energy_cotangent), pointer<const double>(gradient_cotangent),
                      targets);
      });
}

std::vector<double> numbers(nb::handle array) {
  const auto view = nb::cast<nb::ndarray<const double, nb::c_contig, nb::device::cpu>>(array);
  return std::vector<double>(view.data(), view.data() + view.size());
}

std::vector<FrozenMatrix> matrices(nb::handle list) {
  std::vector<FrozenMatrix> result;
  for (nb::handle item : list) {
    const auto [from, to, values] = nb::cast<std::tuple<int, int, nb::object>>(item);
    const auto view = nb::cast<nb::ndarray<const double, nb::c_contig, nb::ndim<3>, nb::device::cpu>>(values);
    result.push_back({from, to, int(view.shape(0)), int(view.shape(1)), int(view.shape(2)), numbers(values)});
  }
  return result;
}

FrozenSpec frozen(nb::dict given) {
  FrozenSpec spec;
  spec.n_species = nb::cast<int>(given["n_species"]);
  spec.l_max = nb::cast<int>(given["l_max"]);
  spec.cutoffs = numbers(given["cutoffs"]);
  spec.knots = numbers(given["knots"]);
  spec.scales = numbers(given["scales"]);
  spec.shifts = numbers(given["shifts"]);
  spec.repulsion.power = nb::cast<int>(given["repulsion_power"]);
  if (spec.repulsion.power > 0) {
    spec.repulsion.charge_product = numbers(given["repulsion_charges"]);
    spec.repulsion.inverse_length = numbers(given["repulsion_inverse_lengths"]);
    if (given.contains("repulsion_cutoffs")) {
      spec.repulsion.cutoffs = numbers(given["repulsion_cutoffs"]);
      spec.repulsion.screening = numbers(given["repulsion_screening"]);
    }
  }
  spec.by_pair = nb::cast<bool>(given["by_pair"]);
  spec.readout = matrices(given["readout"]);
  for (nb::handle item : given["layers"]) {
    nb::dict layer = nb::cast<nb::dict>(item);
    FrozenLayerSpec result;
    result.gate_in = irreps(layer["gate_in"]);
    result.scalars = irreps(layer["scalars"]);
    result.gated = irreps(layer["gated"]);
    if (layer.contains("out")) {
      result.out = irreps(layer["out"]);
      result.contraction = contraction(layer["contraction"]);
      result.coefficients = numbers(layer["coefficients"]);
      result.mixing = matrices(layer["mixing"]);
      result.linear_3 = matrices(layer["linear_3"]);
      result.readout = numbers(layer["readout"]);
      result.density = numbers(layer["density"]);
    }
    result.splines = numbers(layer["splines"]);
    result.constants = numbers(layer["constants"]);
    if (spec.layers.empty()) {
      result.reached = nb::cast<std::vector<int>>(layer["reached"]);
    } else {
      result.hidden_constants = numbers(layer["hidden_constants"]);
      result.in = irreps(layer["irreps_in"]);
      result.paths = paths(layer["paths"]);
      result.linear_1 = matrices(layer["linear_1"]);
      result.linear_2 = matrices(layer["linear_2"]);
      result.self_connection = matrices(layer["self_connection"]);
    }
    spec.layers.push_back(std::move(result));
  }
  return spec;
}

InvariantSpec invariant(nb::dict given) {
  InvariantSpec spec;
  spec.n_species = nb::cast<int>(given["n_species"]);
  spec.r_max = nb::cast<double>(given["r_max"]);
  spec.widths = nb::cast<std::vector<int>>(given["widths"]);
  spec.knots = numbers(given["knots"]);
  spec.scales = numbers(given["scales"]);
  spec.shifts = numbers(given["shifts"]);
  for (nb::handle item : given["stages"]) {
    nb::dict stage = nb::cast<nb::dict>(item);
    InvariantStageSpec result;
    result.sent = nb::cast<int>(stage["sent"]);
    result.received = nb::cast<int>(stage["received"]);
    result.splines = numbers(stage["splines"]);
    for (nb::handle link : stage["links"]) {
      const auto [from, to, activation, matrix, factors, constants] =
          nb::cast<std::tuple<int, int, int, nb::object, nb::object, nb::object>>(link);
      if (activation < 0 || activation > int(Activation::kSilu)) throw std::invalid_argument("an unknown activation");
      InvariantLinkSpec& its = result.links.emplace_back();
      its.from = from;
      its.to = to;
      its.activation = Activation(activation);
      for (FrozenMatrix& only : matrices(matrix)) its.matrix = std::move(only);
      its.factors = numbers(factors);
      its.constants = numbers(constants);
    }
    spec.stages.push_back(std::move(result));
  }
  spec.symmetric = given.contains("symmetry_functions");
  if (spec.symmetric) {
    nb::dict symmetry = nb::cast<nb::dict>(given["symmetry_functions"]);
    const auto number = [&](const char* name) { return nb::cast<double>(symmetry[name]); };
    spec.symmetry = {number("r_max"),        number("angular_r_max"), number("radial_eta"),
                     number("angular_eta"),  number("zeta"),          number("shrink"),
                     numbers(given["radial_centres"]), numbers(given["shells"]), numbers(given["angles"])};
  }
  return spec;
}

// F: Frozen or Invariant, made of what `spec` reads.
template <class F, class Spec>
void bind_frozen(nb::module_& module, const char* name, Spec spec) {
  nb::class_<F>(module, name)
      .def("__init__", [spec](F* self, nb::dict given) { new (self) F(spec(given)); })
      .def_prop_ro("table_bytes", &F::table_bytes)
      // types, structure, positions, cell, row, sender, shift; energies, forces, virial. A structure or shift of 0: there is
      // one structure, no edge crosses a boundary. Forces of 0: energies only.
      .def("evaluate", [](const F& self, int threads, std::int64_t atoms, std::int64_t structures,
                          const std::array<Address, 7>& input, const std::array<Address, 3>& output) {
        const FrozenInput in{atoms,
                             structures,
                             pointer<const std::int64_t>(input[0]),
                             pointer<const std::int64_t>(input[1]),
                             pointer<const double>(input[2]),
                             pointer<const double>(input[3]),
                             pointer<const std::int64_t>(input[4]),
                             pointer<const std::int64_t>(input[5]),
                             pointer<const double>(input[6])};
        const FrozenOutput out{pointer<double>(output[0]), pointer<double>(output[1]), pointer<double>(output[2])};
        nb::gil_scoped_release release;
        self.evaluate(threads, in, out);
      });
}

template <class T>
void bind_message_passing(nb::module_& module, const char* name) {
  using M = MessagePassing<T>;
  nb::class_<M>(module, name)
      .def("__init__", [](M* self, nb::handle irreps_in, nb::handle path_list, nb::handle irreps_out,
                          int l_max) { new (self) M(irreps(irreps_in), paths(path_list), irreps(irreps_out), l_max); })
      .def("forward",
           [](const M& self, int threads, std::int64_t atoms, std::int64_t edges, Address row, Address sender, Address x,
              Address harmonics, Address w, Address out) {
             nb::gil_scoped_release release;
             self.forward(threads, {atoms, edges, pointer<const std::int64_t>(row), pointer<const std::int64_t>(sender)},
                          pointer<const T>(x), pointer<const T>(harmonics), pointer<const T>(w), pointer<T>(out));
           })
      .def("reverse", [](const M& self, int threads, std::int64_t atoms, std::int64_t edges, Address row, Address sender,
                         Address x, Address harmonics, Address w, Address cotangent, Address x_result,
                         Address harmonics_result, Address w_result) {
        nb::gil_scoped_release release;
        self.reverse(threads, {atoms, edges, pointer<const std::int64_t>(row), pointer<const std::int64_t>(sender)},
                     pointer<const T>(x), pointer<const T>(harmonics), pointer<const T>(w), pointer<const T>(cotangent),
                     pointer<T>(x_result), pointer<T>(harmonics_result), pointer<T>(w_result));
      });
}

template <class T>
void bind_contraction(nb::module_& module, const char* name) {
  using C = ContractionOperation<T>;
  nb::class_<C>(module, name)
      .def("__init__", [](C* self, nb::handle table) { new (self) C(contraction(table)); })
      // a, its tangent, c, its tangent, m, its tangent
      .def("forward",
           [](const C& self, int threads, int width, Address order, const std::vector<std::int64_t>& starts,
              const std::array<Address, 6>& arrays) {
             nb::gil_scoped_release release;
             self.forward(threads, {width, pointer<const std::int64_t>(order), starts}, pointer<const T>(arrays[0]),
                          pointer<const T>(arrays[1]), pointer<const T>(arrays[2]), pointer<const T>(arrays[3]),
                          pointer<T>(arrays[4]), pointer<T>(arrays[5]));
           })
      // a, its tangent, c, its tangent, g, its tangent, results for a and c
      .def("reverse", [](const C& self, int threads, int width, Address order, const std::vector<std::int64_t>& starts,
                         const std::array<Address, 8>& arrays) {
        nb::gil_scoped_release release;
        self.reverse(threads, {width, pointer<const std::int64_t>(order), starts}, pointer<const T>(arrays[0]),
                     pointer<const T>(arrays[1]), pointer<const T>(arrays[2]), pointer<const T>(arrays[3]),
                     pointer<const T>(arrays[4]), pointer<const T>(arrays[5]), pointer<T>(arrays[6]),
                     pointer<T>(arrays[7]));
      });
}

}  // namespace
}  // namespace equipes

NB_MODULE(EQUIPES_MODULE, module) {
  using namespace equipes;
  nb::set_leak_warnings(false);  // objects that live until the interpreter ends are no mistake
  module.attr("instruction_set") = kInstructionSet;
  module.attr("max_l") = kMaxL;
#ifdef _OPENMP
  module.attr("openmp") = true;
#else
  module.attr("openmp") = false;
#endif
  // Profiling: switch it on or off (and start from zero), and read seconds and operations of each routine.
  module.def("profile", [](bool on) {
    Profile::instance() = Profile{};
    Profile::instance().on = on;
  });
  module.def("profiled", [] {
    nb::dict result;
    for (std::size_t i = 0; i < kRoutineNames.size(); ++i)
      result[kRoutineNames[i]] = nb::make_tuple(Profile::instance().seconds[i], Profile::instance().operations[i]);
    return result;
  });
  bind_engine<float>(module, "EngineFloat", "PassFloat");
  bind_engine<double>(module, "EngineDouble", "PassDouble");
  bind_frozen<Frozen<float>>(module, "FrozenFloat", frozen);
  bind_frozen<Frozen<double>>(module, "FrozenDouble", frozen);
  bind_frozen<Invariant<float>>(module, "InvariantFloat", invariant);
  bind_frozen<Invariant<double>>(module, "InvariantDouble", invariant);
  bind_message_passing<float>(module, "MessagePassingFloat");
  bind_message_passing<double>(module, "MessagePassingDouble");
  module.attr("vector_bytes") = kVectorBytes;
  module.attr("max_degree") = kMaxDegree;
  module.attr("max_components") = kMaxComponents;
  bind_contraction<float>(module, "ContractionFloat");
  bind_contraction<double>(module, "ContractionDouble");
}
