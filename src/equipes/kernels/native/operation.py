"""Message passing on native code, differentiable to any order."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from equipes.graph import AtomGraph
from equipes.kernels import native, reference
from equipes.kernels.form import MessagePassingForm


def message_passing(
    form: MessagePassingForm, x: Tensor, harmonics: Tensor, weights: Tensor, graph: AtomGraph
) -> Tensor:
    """Sum of the messages at every atom; see `equipes.kernels.message_passing`.

    What the native code was not made for (another device or number type, l > 4) the reference kernel does.
    """
    if not _supported(form, x):
        return reference.message_passing(form, x, harmonics, weights, graph)
    messages: Tensor = _Messages.apply(form, graph, x, harmonics, weights)
    return messages


def _supported(form: MessagePassingForm, x: Tensor) -> bool:
    extension = native.module()
    degrees = [
        form.l_max,
        *(irrep.l for irreps in (form.irreps_in, form.irreps_out) for irrep in irreps.irreps),
    ]
    return (
        extension is not None
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and max(degrees) <= extension.max_l
    )


@lru_cache(maxsize=256)
def _kernel(form: MessagePassingForm, dtype: torch.dtype) -> Any:
    extension = native.module()
    if extension is None:
        raise RuntimeError("the native code was not built")
    make = extension.MessagePassingFloat if dtype == torch.float32 else extension.MessagePassingDouble
    return make(
        [[mul, irrep.l, irrep.p] for mul, irrep in form.irreps_in],
        [[path.block, path.l2, path.out.l, path.out.p] for path in form.paths],
        [[mul, irrep.l, irrep.p] for mul, irrep in form.irreps_out],
        form.l_max,
    )


def _arguments(graph: AtomGraph) -> tuple[int, int, int, int, int]:
    return (
        torch.get_num_threads(),
        graph.n_atoms,
        graph.n_edges,
        graph.row_pointer.data_ptr(),
        graph.sender.data_ptr(),
    )


class _Messages(Function):
    """∂F/∂g of the form F(x, Y, w, g)."""

    @staticmethod
    def forward(ctx: Any, form: MessagePassingForm, graph: AtomGraph, *operands: Tensor) -> Tensor:
        ctx.form, ctx.graph = form, graph
        ctx.save_for_backward(*operands)
        operands = tuple(operand.contiguous() for operand in operands)
        result = operands[0].new_empty(graph.n_atoms, form.irreps_out.dim)
        _kernel(form, result.dtype).forward(
            *_arguments(graph), *(operand.data_ptr() for operand in operands), result.data_ptr()
        )
        return result

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        return None, None, *_Cotangents.apply(ctx.form, ctx.graph, *ctx.saved_tensors, cotangent)


class _Cotangents(Function):
    """∂F/∂x, ∂F/∂Y and ∂F/∂w. F is linear in each argument: its derivatives are itself with other arguments."""

    @staticmethod
    def forward(
        ctx: Any, form: MessagePassingForm, graph: AtomGraph, *operands: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.form, ctx.graph = form, graph
        ctx.save_for_backward(*operands)
        operands = tuple(operand.contiguous() for operand in operands)
        results = tuple(torch.empty_like(operand) for operand in operands[:3])
        _kernel(form, operands[0].dtype).reverse(
            *_arguments(graph),
            *(operand.data_ptr() for operand in operands),
            *(result.data_ptr() for result in results),
        )
        return results

    @staticmethod
    def backward(ctx: Any, cx: Tensor, cy: Tensor, cw: Tensor) -> tuple[Any, ...]:
        form, graph = ctx.form, ctx.graph
        x, y, w, g = ctx.saved_tensors
        _, dy, dw = _Cotangents.apply(form, graph, cx, y, w, g)
        dx, _, more_dw = _Cotangents.apply(form, graph, x, cy, w, g)
        more_dx, more_dy, _ = _Cotangents.apply(form, graph, x, y, cw, g)
        dg = sum(_Messages.apply(form, graph, *operands) for operands in ((cx, y, w), (x, cy, w), (x, y, cw)))
        return None, None, dx + more_dx, dy + more_dy, dw + more_dw, dg
