"""A whole model as one differentiable operation on native code: energies and their derivative by the edge vectors."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from equipes.graph import AtomGraph
from equipes.kernels import native
from equipes.kernels.native.recipes import Recipe, recipe_for


class Engine:
    """Runs a model natively: the same parameters, the same energies, forces and parameter gradients.

    The model's modules state what the layers are; the engine is made from them and reads the parameters anew in every
    call, so that optimisers, averages and checkpoints work on the model as always.

    Args:
        recipe: what the model's layers are and where its parameters are found.
        dtype: float32 or float64, that of its network.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        extension = native.module()
        if extension is None:
            raise RuntimeError("the native code was not built")
        self.dtype = dtype
        make = extension.EngineFloat if dtype == torch.float32 else extension.EngineDouble
        self._engine = make(recipe.description)
        self._sources = recipe.sources
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
        """The engine's parameters in its order; scales, shifts and roots of the basis last."""
        return [source() for source in self._sources]

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
    if not _can_run(model):
        return None
    recipe = recipe_for(model)
    if recipe is None:
        return None
    engine = _engines[model] = Engine(recipe, model.get_parameter("embedding").dtype)
    return engine


def _can_run(model: nn.Module) -> bool:
    """Whether the native code is there and the model's parameters are where and of the kind that it needs."""
    extension = native.module()
    embedding = getattr(model, "embedding", None)
    if extension is None or not isinstance(embedding, Tensor) or getattr(model, "l_max", 0) > extension.max_l:
        return False
    exact = set(getattr(model, "EXACT", ()))
    return (
        embedding.dtype in (torch.float32, torch.float64)
        and all(parameter.device.type == "cpu" for parameter in model.parameters())
        and all(p.dtype == embedding.dtype for name, p in model.named_parameters() if name not in exact)
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
