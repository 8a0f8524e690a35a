"""The symmetric contraction on native code, differentiable twice."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from equipes.kernels import native
from equipes.kernels.polynomials import PolynomialTable


def supports(table: PolynomialTable, features: Tensor) -> bool:
    """Whether the native code computes these polynomials: of degree up to 4, on the CPU, float32 or float64."""
    extension = native.module()
    return (
        extension is not None
        and len(table.degrees) <= extension.max_degree
        and max(table.inputs, table.outputs) <= extension.max_components
        and features.device.type == "cpu"
        and features.dtype in (torch.float32, torch.float64)
    )


def symmetric_contraction(table: PolynomialTable, A: Tensor, types: Tensor, weights: Tensor) -> Tensor:
    """m = Σ_t c[species] Π A.

    Values and their first and second derivatives by A and the weights; further ones raise autograd's error.

    Args:
        table: the polynomials.
        A: `[N, inputs · C]`, channels last.
        types: `[N]`, species.
        weights: `[n_species, rows of weights, C]`.

    Returns:
        `[N, outputs · C]`.
    """
    counts = torch.bincount(types, minlength=len(weights))
    present = counts.nonzero().squeeze(1)
    matrix = torch.as_tensor(table.couplings, dtype=A.dtype)
    coefficients = matrix @ weights.index_select(0, present)  # [present species, coefficients, C]
    starts = [0, *counts[present].cumsum(0).tolist()]
    order = torch.argsort(types, stable=True)
    messages: Tensor = _Contraction.apply(_Atoms(table, order, starts, A), A, coefficients)
    return messages


class _Atoms:
    """Calls the native code for atoms grouped by species; pads channels to whole vectors where they are not."""

    def __init__(self, table: PolynomialTable, order: Tensor, starts: list[int], A: Tensor) -> None:
        extension = native.module()
        assert extension is not None
        self.table, self.order, self.starts = table, order, starts
        self.kernel = _kernel(table, A.dtype)
        self.channels = A.shape[1] // table.inputs
        lanes = extension.vector_bytes // A.element_size()
        self.width = -(-self.channels // lanes) * lanes

    def padded(self, x: Tensor) -> Tensor:
        """`[rows, components · C]` or `[.., C]` -> `[.., width]`."""
        x = x.reshape(x.shape[0], x.shape[1:].numel() // self.channels, self.channels)
        if self.width != self.channels:
            x = torch.nn.functional.pad(x, (0, self.width - self.channels))
        return x.contiguous()

    def cut(self, x: Tensor, like: Tensor) -> Tensor:
        return x[..., : self.channels].reshape(like.shape)

    def result(self, like: Tensor, components: int, *, zero: bool = False) -> Tensor:
        make = torch.zeros if zero else torch.empty
        return make(like.shape[0], components, self.width, dtype=like.dtype)

    def call(self, sweep: str, *arrays: Tensor | None) -> None:
        getattr(self.kernel, sweep)(
            torch.get_num_threads(),
            self.width,
            self.order.data_ptr(),
            self.starts,
            [0 if array is None else array.data_ptr() for array in arrays],
        )


_kernels: WeakKeyDictionary[PolynomialTable, dict[torch.dtype, Any]] = WeakKeyDictionary()


def _kernel(table: PolynomialTable, dtype: torch.dtype) -> Any:
    own = _kernels.setdefault(table, {})
    if dtype not in own:
        extension = native.module()
        assert extension is not None
        make = extension.ContractionFloat if dtype == torch.float32 else extension.ContractionDouble
        own[dtype] = make(table.native())
    return own[dtype]


class _Contraction(Function):
    """m(A, c)."""

    @staticmethod
    def forward(ctx: Any, atoms: _Atoms, A: Tensor, c: Tensor) -> Tensor:
        ctx.atoms = atoms
        ctx.save_for_backward(A, c)
        m = atoms.result(A, atoms.table.outputs)
        atoms.call("forward", atoms.padded(A), None, atoms.padded(c), None, m, None)
        return m[..., : atoms.channels].flatten(1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        A, c = ctx.saved_tensors
        return None, *_Cotangents.apply(ctx.atoms, A, c, g)


class _Cotangents(Function):
    """∂(g·m)/∂A and ∂(g·m)/∂c.

    Their products with cotangents (A', c') are the derivative of g·m(A + εA', c + εc') by ε; so their own derivatives
    are changes of m and of these results in that direction.
    """

    @staticmethod
    def forward(ctx: Any, atoms: _Atoms, A: Tensor, c: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        ctx.atoms = atoms
        ctx.save_for_backward(A, c, g)
        ctx.set_materialize_grads(False)
        dA, dc = atoms.result(A, atoms.table.inputs), atoms.result(c, atoms.table.n_coefficients, zero=True)
        atoms.call("reverse", atoms.padded(A), None, atoms.padded(c), None, atoms.padded(g), None, dA, dc)
        return atoms.cut(dA, A), atoms.cut(dc, c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, A_direction: Tensor | None, c_direction: Tensor | None) -> tuple[Any, ...]:
        if A_direction is None and c_direction is None:
            return None, None, None, None
        atoms: _Atoms = ctx.atoms
        A, c, g = ctx.saved_tensors
        along = [None if x is None else atoms.padded(x) for x in (A_direction, c_direction)]
        rows = [atoms.padded(A), along[0], atoms.padded(c), along[1]]
        m, dg = atoms.result(A, atoms.table.outputs), atoms.result(A, atoms.table.outputs)
        atoms.call("forward", *rows, m, dg)
        dA, dc = atoms.result(A, atoms.table.inputs), atoms.result(c, atoms.table.n_coefficients, zero=True)
        atoms.call("reverse", *rows, atoms.padded(g), torch.zeros_like(m), dA, dc)
        return None, atoms.cut(dA, A), atoms.cut(dc, c), atoms.cut(dg, g)
