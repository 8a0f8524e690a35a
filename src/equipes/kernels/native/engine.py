"""A whole model as one differentiable operation on native code: energies and their derivative by the edge vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from equipes.graph import AtomGraph
from equipes.irreps import Irreps
from equipes.kernels import native

if TYPE_CHECKING:
    from equipes.models.nequip import InteractionBlock, NequIP
    from equipes.nn import Linear, SpeciesLinear


class Engine:
    """Runs a NequIP model natively: the same parameters, the same energies, forces and parameter gradients.

    The model's modules state what the layers are; the engine is made from them and reads the parameters anew in every
    call, so that optimisers, averages and checkpoints work on the model as always.

    Args:
        model: a model that `supports` finds no reason against.
    """

    def __init__(self, model: NequIP) -> None:
        extension = native.module()
        if extension is None:
            raise RuntimeError("the native code was not built")
        self.dtype = model.embedding.dtype
        make = extension.EngineFloat if self.dtype == torch.float32 else extension.EngineDouble
        self._engine = make(_describe(model))
        self._slots = _parameter_slots(model)
        shapes = [tensor.shape for tensor in self.parameters()]
        sizes = [shape.numel() for shape in shapes]
        if sizes != self._engine.parameter_sizes:
            raise ValueError("the model's parameters are not those that its layers state")
        self._shapes, self._sizes = shapes, sizes

    def fits(self, model: nn.Module) -> bool:
        """Whether the model still is what the engine was made from: a model may move to another device or dtype."""
        embedding = model.get_parameter("embedding")
        return embedding.dtype == self.dtype and embedding.device.type == "cpu"

    def parameters(self) -> list[Tensor]:
        """The model's parameters in the engine's order; scales, shifts and roots of the basis last."""
        return [holder[name] for holder, name in self._slots]

    def __call__(
        self, types: Tensor, vectors: Tensor, graph: AtomGraph, *, gradient: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Energies of the atoms and the derivative of their sum by the edge vectors.

        Both can be differentiated once by the parameters, not by the vectors.

        Args:
            types: `[N]` int64, index of each atom's species.
            vectors: `[E, 3]` float64, Å.
            graph: the edges.
            gradient: without, only the energies are computed.

        Returns:
            `[N]` float64 eV and `[E, 3]` float64 eV/Å (None without `gradient`).
        """
        parameters = self.parameters()
        if torch.is_grad_enabled():
            energies, derivative = _Operation.apply(self, types, vectors, graph, *parameters)
            return energies, derivative if gradient else None
        energies, derivative, _ = self._forward(types, vectors, graph, parameters, gradient)
        return energies, derivative

    def _forward(
        self, types: Tensor, vectors: Tensor, graph: AtomGraph, parameters: list[Tensor], gradient: bool
    ) -> tuple[Tensor, Tensor | None, Any]:
        parameters = [parameter.detach().contiguous() for parameter in parameters]
        parameters[-3:] = [parameter.double() for parameter in parameters[-3:]]
        arrays = [
            types.contiguous(),
            graph.structure.contiguous(),
            graph.receiver.contiguous(),
            graph.sender.contiguous(),
            graph.shift.contiguous(),
            vectors.detach().contiguous(),
        ]
        energies = torch.empty(graph.n_atoms, dtype=torch.float64)
        derivative = torch.zeros(graph.n_edges, 3, dtype=torch.float64) if gradient else None
        state = self._engine.forward(
            torch.get_num_threads(),
            graph.n_atoms,
            graph.n_edges,
            [array.data_ptr() for array in arrays],
            [parameter.data_ptr() for parameter in parameters],
            energies.data_ptr(),
            derivative.data_ptr() if derivative is not None else 0,
            gradient,
        )
        # Copies that were made to be contiguous must live as long as the state that points to them.
        return energies, derivative, (state, parameters)

    def _backward(
        self, state: Any, energies: Tensor | None, derivative: Tensor | None, wanted: tuple[bool, ...]
    ) -> list[Tensor | None]:
        kept, _ = state
        flat = torch.empty(sum(self._sizes[:-3]), dtype=self.dtype)
        gradients: list[Tensor] = list(flat.split(self._sizes[:-3]))
        gradients += [torch.empty(size, dtype=torch.float64) for size in self._sizes[-3:]]
        addresses = [gradient.data_ptr() for gradient in gradients]
        for index in range(len(addresses) - 3, len(addresses)):
            if not wanted[index]:
                addresses[index] = 0
        if energies is not None:
            energies = energies.contiguous()
        if derivative is not None:
            derivative = derivative.contiguous()
        self._engine.backward(
            torch.get_num_threads(),
            kept,
            energies.data_ptr() if energies is not None else 0,
            derivative.data_ptr() if derivative is not None else 0,
            addresses,
        )
        return [
            gradient.view(shape) if want else None
            for gradient, shape, want in zip(gradients, self._shapes, wanted, strict=True)
        ]


_engines: WeakKeyDictionary[nn.Module, Engine] = WeakKeyDictionary()


def engine_for(model: nn.Module) -> Engine | None:
    """The engine of a model, made when it is first asked for; None if the native code does not know such a model."""
    engine = _engines.get(model)
    if engine is not None and engine.fits(model):
        return engine
    if not supports(model):
        return None
    engine = _engines[model] = Engine(cast("NequIP", model))
    return engine


def supports(model: nn.Module) -> bool:
    """Whether the native code runs a model: a NequIP (not a class derived from it) on the CPU with l up to 4."""
    from equipes.models.nequip import NequIP

    extension = native.module()
    if extension is None or type(model) is not NequIP or model.l_max > extension.max_l:
        return False
    dtype = model.embedding.dtype
    exact = {id(getattr(model, name, None)) for name in ("scales", "shifts")} | {id(model.basis.roots)}
    return (
        dtype in (torch.float32, torch.float64)
        and all(parameter.device.type == "cpu" for parameter in model.parameters())
        and all(parameter.dtype == dtype for parameter in model.parameters() if id(parameter) not in exact)
    )


class _Operation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, engine: Engine, types: Tensor, vectors: Tensor, graph: AtomGraph, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        energies, derivative, ctx.state = engine._forward(types, vectors, graph, list(parameters), True)
        assert derivative is not None
        ctx.engine = engine
        ctx.save_for_backward(*parameters)  # notices when they are changed before the backward pass
        ctx.set_materialize_grads(False)
        return energies, derivative

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, energies: Tensor | None, derivative: Tensor | None) -> tuple[Any, ...]:
        parameters = ctx.saved_tensors
        gradients = ctx.engine._backward(ctx.state, energies, derivative, ctx.needs_input_grad[4:])
        gradients[-3:] = [
            None if gradient is None else gradient.to(parameter.dtype)
            for gradient, parameter in zip(gradients[-3:], parameters[-3:], strict=True)
        ]
        return (None, None, None, None, *gradients)


def _terms(irreps: Irreps) -> list[list[int]]:
    return [[mul, irrep.l, irrep.p] for mul, irrep in irreps]


def _describe_layer(layer: InteractionBlock) -> dict[str, Any]:
    form, gate = layer.form, layer.gate
    return {
        "irreps_in": _terms(form.irreps_in),
        "radial_widths": [weight.shape[0] for weight in layer.radial_network.weights][1:],
        "paths": [[path.block, path.l2, path.out.l, path.out.p] for path in form.paths],
        "messages": _terms(form.irreps_out),
        "gate_in": _terms(gate.irreps_in),
        "scalars": _terms(gate.scalars),
        "gated": _terms(gate.gated),
        "self_connection": layer.self_connection is not None,
    }


def _layers(model: NequIP) -> list[InteractionBlock]:
    return cast("list[InteractionBlock]", list(model.layers))


def _describe(model: NequIP) -> dict[str, Any]:
    """The model as the native side wants to know it."""
    n_species, n_attributes = model.embedding.shape
    cutoffs = model.cutoffs
    if cutoffs is None:
        cutoffs = torch.full((n_species, n_species), model.r_max, dtype=torch.float64)
    zbl = model.zbl
    return {
        "n_species": n_species,
        "n_attributes": n_attributes,
        "l_max": model.l_max,
        "r_max": model.r_max,
        "cutoff_power": model.polynomial_cutoff_p,
        "n_roots": len(model.basis.roots),
        "cutoffs": cutoffs.flatten().tolist(),
        "norms": model.norms.tolist(),
        "layers": [_describe_layer(layer) for layer in _layers(model)],
        "readout_widths": [weight.shape[0] for weight in model.readout.weights][1:],
        "repulsion_power": zbl.p if zbl is not None else 0,
        "repulsion_charges": zbl.charge_product.flatten().tolist() if zbl is not None else [],
        "repulsion_inverse_lengths": zbl.inverse_length.flatten().tolist() if zbl is not None else [],
    }


def _parameter_slots(model: NequIP) -> list[tuple[dict[str, Any], str]]:
    """Where each parameter of the engine is found in the model's modules, whatever tensor it is at the time."""

    slots: list[tuple[dict[str, Any], str]] = [(model._parameters, "embedding")]
    for layer in _layers(model):
        slots += _linear_slots(layer.linear_1)
        slots += [
            (layer.radial_network.weights._parameters, name)
            for name in layer.radial_network.weights._parameters
        ]
        slots += _linear_slots(layer.linear_2)
        if layer.self_connection is not None:
            slots += _linear_slots(layer.self_connection)
    slots += [(model.readout.weights._parameters, name) for name in model.readout.weights._parameters]
    slots += [(model._parameters, "scales"), (model._parameters, "shifts")]
    basis = model.basis
    slots.append((basis._parameters if "roots" in basis._parameters else basis._buffers, "roots"))
    return slots


def _linear_slots(layer: Linear | SpeciesLinear) -> list[tuple[dict[str, Any], str]]:
    """In the order of the output's irreps; a ParameterDict has its own."""
    names = [str(irrep) for irrep in layer.irreps_out.irreps]
    return [(layer.weights._parameters, name) for name in names if name in layer.weights]
