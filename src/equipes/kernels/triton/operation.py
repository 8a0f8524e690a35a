"""Message passing on Triton kernels, differentiable to any order.

The first and second derivatives, all that training on forces needs, are fused: the second is the derivative of the
first along the given cotangents, so that each kernel with tangents does in one launch what takes several calls of
those without. Derivatives beyond are made of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from equipes.graph import AtomGraph
from equipes.kernels import reference
from equipes.kernels.form import MessagePassingForm
from equipes.kernels.splines import Edges
from equipes.kernels.triton.launch import launch
from equipes.kernels.triton.writer import NUMBER_TYPES, Variant

Operands = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]
_BOTH = ("value", "tangent")


def message_passing(
    form: MessagePassingForm, x: Tensor, harmonics: Tensor, weights: Tensor, graph: AtomGraph
) -> Tensor:
    """Sum of the messages at every atom; see `equipes.kernels.message_passing`.

    Number types other than float32 and float64, and devices that Triton does not know, the reference kernel serves.

    Raises:
        ValueError: operands that do not fit the form and the graph; the kernels would read beyond them.
    """
    if x.dtype not in NUMBER_TYPES or x.device.type not in ("cpu", "cuda") or not form.paths:
        return reference.message_passing(form, x, harmonics, weights, graph)
    check_shapes(form, graph, x, harmonics, weights.shape)
    messages: Tensor = _Messages.apply(form, graph, x, harmonics, weights)
    return messages


def check_shapes(
    form: MessagePassingForm, graph: Edges, x: Tensor | None, harmonics: Tensor, weights: tuple[int, ...]
) -> None:
    """Raises `ValueError` where a kernel would read beyond its operands."""
    n, e = graph.n_atoms, graph.n_edges
    expected = [(n, form.irreps_in.dim), (e, (form.l_max + 1) ** 2), (e, form.n_weights)]
    given = [expected[0] if x is None else tuple(x.shape), tuple(harmonics.shape), tuple(weights)]
    if given != expected:
        raise ValueError(
            f"features, harmonics and weights of {n} atoms and {e} edges have the shapes {expected}, not {given}"
        )


def by_receiver(graph: Edges) -> Operands:
    """The geometry of the kernels of messages and edges; copied where it is not contiguous."""
    return {"row_pointer": graph.row_pointer.contiguous(), "sender": graph.sender.contiguous()}


def by_sender(graph: Edges) -> Operands:
    """The geometry of the kernel of senders."""
    return {
        "sender_pointer": graph.sender_pointer.contiguous(),
        "sender_order": graph.sender_order.contiguous(),
        "receiver": graph.receiver.contiguous(),
    }


def dual_messages(form: MessagePassingForm, x: Pair, harmonics: Pair, weights: Pair, graph: Edges) -> Pair:
    """Messages and their derivative along the tangents, `[N, form.irreps_out.dim]` both, in one launch.

    Args:
        x, harmonics, weights: (value, tangent), each as in `message_passing`.
    """
    values, tangents = _split({"x": x, "y": harmonics, "w": weights})
    value, tangent = _run_messages(form, graph, values, tangents, _BOTH)
    return value, tangent


def dual_cotangents(
    form: MessagePassingForm, x: Pair, harmonics: Pair, weights: Pair, cotangent: Pair, graph: Edges
) -> tuple[Pair, Pair, Pair]:
    """Cotangents of x, harmonics and weights and their derivatives along the tangents, in two launches.

    Args:
        x, harmonics, weights, cotangent: (value, tangent); the last is of the messages.
    """
    values, tangents = _split({"x": x, "y": harmonics, "w": weights, "g": cotangent})
    dx, dx_t = _run_senders(form, graph, values, tangents, _BOTH)
    edges = _run_edges(form, graph, values, tangents, _BOTH, "yw")
    return (dx, dx_t), (edges["dy"], edges["dy_t"]), (edges["dw"], edges["dw_t"])


def _split(pairs: dict[str, Pair]) -> tuple[Operands, Operands]:
    values = {name: value.detach().contiguous() for name, (value, _) in pairs.items()}
    return values, {name: tangent.detach().contiguous() for name, (_, tangent) in pairs.items()}


def _variant(
    kind: str,
    values: Operands,
    tangents: Operands,
    operands: str,
    results: tuple[str, ...],
    wanted: str = "yw",
) -> tuple[Variant, dict[str, Any]]:
    """The kernel, and its operands by the names of its arguments."""
    given = {name: tensor for name, tensor in tangents.items() if name in operands}
    double = next(iter(values.values())).dtype == torch.float64
    arguments = {name: values[name] for name in operands} | {f"{n}_t": t for n, t in given.items()}
    return Variant(kind, double, "".join(sorted(given)), results, wanted), arguments


def _suffixes(results: tuple[str, ...]) -> list[str]:
    return ["" if part == "value" else "_t" for part in results]


def _run_messages(
    form: MessagePassingForm, graph: Edges, values: Operands, tangents: Operands, results: tuple[str, ...]
) -> list[Tensor]:
    variant, given = _variant("messages", values, tangents, "xyw", results)
    out = [values["x"].new_empty(graph.n_atoms, form.irreps_out.dim) for _ in results]
    given |= {f"out{suffix}": o for suffix, o in zip(_suffixes(results), out, strict=True)}
    launch(form, variant, graph.n_atoms, given | by_receiver(graph))
    return out


def _run_senders(
    form: MessagePassingForm, graph: Edges, values: Operands, tangents: Operands, results: tuple[str, ...]
) -> list[Tensor]:
    variant, given = _variant("senders", values, tangents, "ywg", results)
    dx = [new_features(form, values["g"], graph.n_atoms) for _ in results]
    given |= {f"dx{suffix}": d for suffix, d in zip(_suffixes(results), dx, strict=True)}
    launch(form, variant, graph.n_atoms, given | by_sender(graph))
    return dx


def new_features(form: MessagePassingForm, like: Tensor, n_atoms: int) -> Tensor:
    """`[N, form.irreps_in.dim]` for the kernel of senders, which writes the blocks that have paths."""
    all_coupled = len({path.block for path in form.paths}) == len(form.irreps_in)
    new = like.new_empty if all_coupled else like.new_zeros
    return new(n_atoms, form.irreps_in.dim)


def _run_edges(
    form: MessagePassingForm,
    graph: Edges,
    values: Operands,
    tangents: Operands,
    results: tuple[str, ...],
    wanted: str,
) -> dict[str, Tensor]:
    variant, given = _variant("edges", values, tangents, "xywg", results, wanted)
    out = {
        f"d{name}{suffix}": torch.empty_like(values[name]) for name in wanted for suffix in _suffixes(results)
    }
    launch(form, variant, graph.n_atoms, given | out | by_receiver(graph))
    return out


def _contiguous(names: str, tensors: tuple[Tensor | None, ...]) -> Operands:
    return {n: t.contiguous() for n, t in zip(names, tensors, strict=True) if t is not None}


def _needed(names: str, flags: tuple[bool, ...]) -> str:
    return "".join(name for name, flag in zip(names, flags, strict=True) if flag)


class _Messages(Function):
    """∂F/∂g of the form F(x, Y, w, g)."""

    @staticmethod
    def forward(ctx: Any, form: MessagePassingForm, graph: AtomGraph, *operands: Tensor) -> Tensor:
        ctx.form, ctx.graph = form, graph
        ctx.save_for_backward(*operands)
        return _run_messages(form, graph, _contiguous("xyw", operands), {}, ("value",))[0]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        needed = _needed("xyw", ctx.needs_input_grad[2:])
        return None, None, *_Cotangents.apply(ctx.form, ctx.graph, needed, *ctx.saved_tensors, cotangent)


class _Cotangents(Function):
    """∂F/∂x, ∂F/∂Y and ∂F/∂w, as far as they are needed."""

    @staticmethod
    def forward(
        ctx: Any, form: MessagePassingForm, graph: AtomGraph, needed: str, *operands: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.form, ctx.graph = form, graph
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)
        values = _contiguous("xywg", operands)
        dx = _run_senders(form, graph, values, {}, ("value",))[0] if "x" in needed else None
        wanted = "".join(name for name in "yw" if name in needed)
        edges = _run_edges(form, graph, values, {}, ("value",), wanted) if wanted else {}
        return dx, edges.get("dy"), edges.get("dw")

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        needed = _needed("xywg", ctx.needs_input_grad[3:])
        nothing = (None,) * 3
        if not any(cotangent is not None for cotangent in cotangents):
            return *nothing, None, None, None, None
        return *nothing, *_Tangents.apply(ctx.form, ctx.graph, needed, *ctx.saved_tensors, *cotangents)


class _Tangents(Function):
    """Derivatives of ∂F/∂(x, Y, w, g) along a direction (x', Y', w', 0): the backward pass of `_Cotangents`."""

    @staticmethod
    def forward(
        ctx: Any, form: MessagePassingForm, graph: AtomGraph, needed: str, *operands: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.form, ctx.graph, ctx.needed = form, graph, needed
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)
        values = _contiguous("xywg", operands[:4])
        tangents = _contiguous("xyw", operands[4:])
        results = ("tangent",)
        dx = dg = None
        if "x" in needed and tangents.keys() & {"y", "w"}:
            (dx,) = _run_senders(form, graph, values, tangents, results)
        if "g" in needed:
            (dg,) = _run_messages(form, graph, values, tangents, results)
        # Each is linear in its own operand, so that a tangent of that alone does not move it.
        wanted = "".join(name for name in "yw" if name in needed and tangents.keys() - {name})
        edges = _run_edges(form, graph, values, tangents, results, wanted) if wanted else {}
        return dx, edges.get("dy_t"), edges.get("dw_t"), dg

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """The same sums term by term, each of which knows its derivatives."""
        form, graph = ctx.form, ctx.graph
        operands = ctx.saved_tensors
        flags = ctx.needs_input_grad[3:]
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Copies cut off from where they come from, unless their derivatives are to be differentiated.
            inputs = [
                t if t is None or create_graph else t.detach().requires_grad_(flag)
                for t, flag in zip(operands, flags, strict=True)
            ]
            results = _term_by_term(form, graph, ctx.needed, *inputs)
            pairs = [
                (r, c) for r, c in zip(results, cotangents, strict=True) if r is not None and c is not None
            ]
            wanted = [t for t, flag in zip(inputs, flags, strict=True) if flag]
            found = torch.autograd.grad(
                [r for r, _ in pairs],
                wanted,
                [c for _, c in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        rest = iter(found)
        return None, None, None, *(next(rest) if flag else None for flag in flags)


def _term_by_term(
    form: MessagePassingForm,
    graph: AtomGraph,
    needed: str,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    g: Tensor,
    *tangents: Tensor | None,
) -> list[Tensor | None]:
    """What `_Tangents` computes: F is linear in each argument, so its derivatives are itself with other arguments."""
    totals: dict[str, Tensor] = {}
    for name, tangent in zip("xyw", tangents, strict=True):
        if tangent is None:
            continue
        moved = {"x": x, "y": y, "w": w} | {name: tangent}
        others = "".join(other for other in "xyw" if other != name and other in needed)
        terms = dict(
            zip("xyw", _Cotangents.apply(form, graph, others, *moved.values(), g), strict=True)
            if others
            else ()
        )
        if "g" in needed:
            terms["g"] = _Messages.apply(form, graph, *moved.values())
        for key, term in terms.items():
            if term is not None:
                totals[key] = totals[key] + term if key in totals else term
    return [totals.get(key) for key in "xywg"]
