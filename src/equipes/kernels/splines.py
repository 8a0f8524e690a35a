"""Message passing whose radial weights are quintic splines of the distance: the form that frozen models run.

The weights of an edge are evaluated where they are used, so that nothing wider than the geometry is kept for an edge.
Tensors on a GPU go to Triton, all others to plain torch (to Triton's interpreter with `EQUIPES_KERNEL=triton`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from equipes.graph import AtomGraph
from equipes.kernels import kernel_name, reference
from equipes.kernels.form import MessagePassingForm

# c0 + c1 t + .. + c5 t⁵.
N_COEFFICIENTS = 6


class Edges(Protocol):
    """What the kernels read of a graph; an `AtomGraph` has it all. N atoms, E edges sorted by receiver."""

    @property
    def n_atoms(self) -> int: ...
    @property
    def n_edges(self) -> int: ...
    @property
    def receiver(self) -> Tensor: ...
    @property
    def sender(self) -> Tensor: ...
    @property
    def row_pointer(self) -> Tensor: ...
    @property
    def sender_order(self) -> Tensor: ...
    @property
    def sender_pointer(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Places:
    """Where the edges lie on the splines: the same for all layers of a model.

    Attributes:
        interval: `[E]` int32, between which knots; negative for edges that do not count (beyond the cutoff, padding).
        t: `[E]`, 0 at one knot and 1 at the next; differentiable in the distance.
        kind: `[E]` int32, which table; None where there is one.
    """

    interval: Tensor
    t: Tensor
    kind: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RadialSplines:
    """Radial weights as splines over common knots.

    Attributes:
        knots: `[K + 1]` float64, ascending reduced distances from 0 to 1.
        coefficients: `[kinds, K, 6, n_weights]` of the powers of t (see `equipes.models.splines.polynomials`), in the
            number type of the network.
    """

    knots: Tensor
    coefficients: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.coefficients.shape)
        if len(shape) != 4 or shape[1:3] != (len(self.knots) - 1, N_COEFFICIENTS):
            raise ValueError(
                f"splines on {len(self.knots)} knots have coefficients "
                f"[kinds, {len(self.knots) - 1}, {N_COEFFICIENTS}, n_weights], not {list(shape)}"
            )

    @property
    def n_weights(self) -> int:
        """Weights of an edge."""
        return self.coefficients.shape[3]

    def places(self, reduced: Tensor, kind: Tensor | None = None) -> Places:
        """Of reduced distances r / r_c, `[E]` float64; from 1 on edges do not count.

        Args:
            reduced: `[E]`; t is differentiable in it.
            kind: `[E]`, which table each edge uses: of the sender's species, or of the pair.
        """
        if len(self.coefficients) > 1 and kind is None:
            raise ValueError("there are several tables: say of which kind each edge is")
        last = len(self.knots) - 2
        with torch.no_grad():
            index = torch.searchsorted(self.knots, reduced.detach().contiguous(), right=True) - 1
            index = index.clamp(0, last)
            interval = torch.where(reduced < 1, index, -1).to(torch.int32)
        left = self.knots.index_select(0, index)
        width = self.knots.index_select(0, index + 1) - left
        t = ((reduced - left) / width).to(self.coefficients.dtype)
        return Places(interval, t, None if kind is None else kind.to(torch.int32))

    def weights(self, places: Places) -> Tensor:
        """`[E, n_weights]`: what the kernels never write down. Zero for edges that do not count."""
        counts = places.interval >= 0
        interval = places.interval.clamp(min=0).long()
        if places.kind is not None:
            kind = torch.where(counts, places.kind, 0).long()
            interval = kind * self.coefficients.shape[1] + interval
        coefficients = self.coefficients.flatten(0, 1).index_select(0, interval)  # [E, 6, n_weights]
        t = torch.where(counts, places.t, 0.0).unsqueeze(1)
        value = coefficients[:, N_COEFFICIENTS - 1]
        for k in reversed(range(N_COEFFICIENTS - 1)):
            value = value * t + coefficients[:, k]
        return value * counts.unsqueeze(1)


def spline_message_passing(
    form: MessagePassingForm,
    x: Tensor | None,
    harmonics: Tensor,
    splines: RadialSplines,
    places: Places,
    graph: AtomGraph | Edges,
) -> Tensor:
    """Sum of messages at every atom, differentiable in x, harmonics and `places.t`; see `message_passing`.

    Args:
        form: the couplings.
        x: `[N, form.irreps_in.dim]` features of the senders; None where all of them are 1, as in a first layer whose
            features went into the splines (only scalars can be that).
        harmonics: `[E, (form.l_max+1)²]`.
        splines: of `form.n_weights` weights, in the number type of x.
        places: of the edges.
        graph: N atoms, E edges. Edges from `row_pointer[-1]` on are not looked at (padding).

    Returns:
        `[N, form.irreps_out.dim]`.
    """
    if _by_triton(form, harmonics):
        from equipes.kernels.triton import splines as on_triton

        return on_triton.spline_message_passing(form, x, harmonics, splines, places, graph)
    return reference_spline_message_passing(form, x, harmonics, splines, places, graph)


def _by_triton(form: MessagePassingForm, harmonics: Tensor) -> bool:
    known = harmonics.dtype in (torch.float32, torch.float64) and bool(form.paths)
    return known and kernel_name(harmonics.device.type) == "triton"


def spline_reverse(
    form: MessagePassingForm,
    x: Tensor | None,
    harmonics: Tensor,
    splines: RadialSplines,
    places: Places,
    graph: AtomGraph | Edges,
    cotangent: Tensor,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Cotangents of `spline_message_passing` without autograd.

    Args:
        cotangent: `[N, form.irreps_out.dim]`, of the messages; the others see `spline_message_passing`.

    Returns:
        `(dx, dY, dt)`: by x (None where x is), by the harmonics `[E, (form.l_max+1)²]` and by `places.t` `[E]`.
    """
    if _by_triton(form, harmonics):
        from equipes.kernels.triton import splines as on_triton

        return on_triton.spline_reverse(form, x, harmonics, splines, places, graph, cotangent)
    return reference_spline_reverse(form, x, harmonics, splines, places, graph, cotangent)


def reference_spline_message_passing(
    form: MessagePassingForm,
    x: Tensor | None,
    harmonics: Tensor,
    splines: RadialSplines,
    places: Places,
    graph: AtomGraph | Edges,
) -> Tensor:
    """The truth in plain torch, with all weights written down."""
    if x is None:
        x = harmonics.new_ones(graph.n_atoms, form.irreps_in.dim)
    weights = splines.weights(places)
    return reference.message_passing(form, x, harmonics, weights, graph)  # type: ignore[arg-type]


def reference_spline_reverse(
    form: MessagePassingForm,
    x: Tensor | None,
    harmonics: Tensor,
    splines: RadialSplines,
    places: Places,
    graph: AtomGraph | Edges,
    cotangent: Tensor,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """See `spline_reverse`."""
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (x, harmonics, places.t) if t is not None]
        features = None if x is None else inputs[0]
        moved = Places(places.interval, inputs[-1], places.kind)
        messages = reference_spline_message_passing(form, features, inputs[-2], splines, moved, graph)
        results = torch.autograd.grad(messages, inputs, cotangent, allow_unused=True)
    filled = [torch.zeros_like(i) if r is None else r for i, r in zip(inputs, results, strict=True)]
    return (None if x is None else filled[0]), filled[-2], filled[-1]
