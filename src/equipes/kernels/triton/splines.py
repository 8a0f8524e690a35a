"""Message passing with radial splines on Triton kernels; see `equipes.kernels.splines`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from equipes.kernels.form import MessagePassingForm
from equipes.kernels.splines import Edges, Places, RadialSplines
from equipes.kernels.triton.launch import launch
from equipes.kernels.triton.operation import by_receiver, by_sender, check_shapes, new_features
from equipes.kernels.triton.writer import Variant


def spline_message_passing(
    form: MessagePassingForm,
    x: Tensor | None,
    harmonics: Tensor,
    splines: RadialSplines,
    places: Places,
    graph: Edges,
) -> Tensor:
    """See `equipes.kernels.splines.spline_message_passing`."""
    check_shapes(form, graph, x, harmonics, (len(places.t), splines.n_weights))
    messages: Tensor = _SplineMessages.apply(form, splines, places, graph, x, harmonics, places.t)
    return messages


def spline_forward(
    form: MessagePassingForm,
    x: Tensor | None,
    harmonics: Tensor,
    splines: RadialSplines,
    places: Places,
    graph: Edges,
) -> Tensor:
    """The messages, without autograd."""
    variant = _variant("messages", harmonics, x, places)
    out = harmonics.new_empty(graph.n_atoms, form.irreps_out.dim)
    launch(form, variant, graph.n_atoms, _operands(x, harmonics, splines, places, graph) | {"out": out})
    return out


def spline_reverse(
    form: MessagePassingForm,
    x: Tensor | None,
    harmonics: Tensor,
    splines: RadialSplines,
    places: Places,
    graph: Edges,
    cotangent: Tensor,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """See `equipes.kernels.splines.spline_reverse`."""
    check_shapes(form, graph, x, harmonics, (len(places.t), splines.n_weights))
    given = _operands(x, harmonics, splines, places, graph) | {"g": cotangent.detach().contiguous()}
    dx = None
    if x is not None:
        dx = new_features(form, cotangent, graph.n_atoms)
        launch(form, _variant("senders", harmonics, x, places), graph.n_atoms, given | {"dx": dx})
    # Zeros, because edges that do not count are passed over.
    dy = torch.zeros_like(given["y"])
    dt = torch.zeros_like(given["place"])
    launch(form, _variant("edges", harmonics, x, places), graph.n_atoms, given | {"dy": dy, "dt": dt})
    return dx, dy, dt


def _variant(kind: str, harmonics: Tensor, x: Tensor | None, places: Places) -> Variant:
    return Variant(
        kind,
        harmonics.dtype == torch.float64,
        wanted="yt",
        splines=True,
        unit=x is None,
        kinds=places.kind is not None,
    )


def _operands(
    x: Tensor | None, harmonics: Tensor, splines: RadialSplines, places: Places, graph: Edges
) -> dict[str, Any]:
    features: dict[str, Any] = {} if x is None else {"x": x.detach().contiguous()}
    if places.kind is not None:
        features |= {"table_kind": places.kind.contiguous(), "n_intervals": splines.coefficients.shape[1]}
    features |= by_receiver(graph) | ({} if x is None else by_sender(graph))
    return features | {
        "y": harmonics.detach().contiguous(),
        "table": splines.coefficients.contiguous(),
        "interval": places.interval.contiguous(),
        "place": places.t.detach().contiguous(),
    }


class _SplineMessages(Function):
    @staticmethod
    def forward(
        ctx: Any,
        form: MessagePassingForm,
        splines: RadialSplines,
        places: Places,
        graph: Edges,
        x: Tensor | None,
        harmonics: Tensor,
        t: Tensor,
    ) -> Tensor:
        ctx.given = form, splines, places, graph
        ctx.save_for_backward(x, harmonics, t)
        return spline_forward(form, x, harmonics, splines, places, graph)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        form, splines, places, graph = ctx.given
        x, harmonics, _ = ctx.saved_tensors
        return (None,) * 4 + spline_reverse(form, x, harmonics, splines, places, graph, cotangent)
