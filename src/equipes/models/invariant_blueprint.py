"""What a frozen SchNet, PhysNet or ANI computes: a network on the numbers of each atom, which hear of their neighbours.

Nodes are rows of numbers, `[N, width]`, and links add to them,

    to += W a(from) + b        or, number by number,        to += s ∘ a(from) + b

with an activation a. A node may receive what the neighbours say instead, before links follow: messages
Σ_j F(r_ij) ∘ sent_j, where F becomes splines, or the symmetry functions of ANI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipes.models.invariant import ScaleShift
from equipes.models.splines import Function, choose_knots, polynomials


class Network:
    """Nodes and links, put together in the order in which they are computed; all float64.

    Args:
        r_max: cutoff, Å.
        scale_shift: of the energies.
        types: indices of the species to describe.

    Attributes:
        energy: the node of the energies, `[N, 1]`, before scales and shifts.
    """

    def __init__(self, r_max: float, scale_shift: ScaleShift, types: Sequence[int]) -> None:
        self.energy = 0
        self._r_max = r_max
        self._widths = [1]
        self._stages: list[dict[str, Any]] = []
        self._radial: list[
            tuple[int, Function, Tensor | None]
        ] = []  # stage, function, what is sent by species
        self._symmetry: dict[str, float] | None = None
        self._arrays: dict[str, Tensor] = {
            "scales": scale_shift.scales[list(types)],
            "shifts": scale_shift.shifts[list(types)],
        }

    def messages(self, radial: Function, sent: int | Tensor) -> int:
        """A new node with Σ_j F(r_ij) ∘ sent_j.

        Args:
            radial: F, reduced distances `[R]` -> `[R, width]`.
            sent: a node; or what the atoms of each species send, `[n_species, width]`.
        """
        by_species = isinstance(sent, Tensor)
        width = sent.shape[1] if isinstance(sent, Tensor) else self._widths[sent]
        self._radial.append((len(self._stages), radial, sent if isinstance(sent, Tensor) else None))
        return self._receive(width, -1 if by_species else int(sent), splines=True)

    def symmetry_functions(self, count: int, constants: Mapping[str, float], **centres: Tensor) -> int:
        """A new node with the symmetry functions of ANI, in the first stage."""
        self._symmetry = dict(constants)
        self._arrays |= centres
        return self._receive(count, -1, splines=False)

    def node(self, width: int) -> int:
        """A new node, which links must go to."""
        self._widths.append(width)
        return len(self._widths) - 1

    def link(
        self,
        source: int | None,
        target: int,
        *,
        activation: str = "none",
        matrix: Tensor | None = None,
        factors: Tensor | None = None,
        constants: Tensor | None = None,
    ) -> None:
        """Add to a node.

        Args:
            source: another node; None: constants alone.
            target: the node.
            activation: of the source's numbers: "none", "softplus" (shifted) or "silu".
            matrix: `[1 or n_species, width of the source, width of the target]`; None: number by number.
            factors: `[width]`, number by number; None: 1.
            constants: `[1 or n_species, width of the target]`; None: 0.
        """
        links = self._stages[-1]["links"]
        given = {"matrix": matrix, "factors": factors, "constants": constants}
        named = {what: array for what, array in given.items() if array is not None}
        prefix = f"stages.{len(self._stages) - 1}.links.{len(links)}"
        self._arrays |= {f"{prefix}.{what}": array for what, array in named.items()}
        links.append(
            {
                "from": -1 if source is None else source,
                "to": target,
                "activation": activation,
                "arrays": list(named),
            }
        )

    def dense(self, source: int, target: int, layer: nn.Linear, activation: str = "none") -> None:
        """Add what a dense layer makes of the activated source."""
        bias = None if layer.bias is None else layer.bias.unsqueeze(0)
        self.link(source, target, activation=activation, matrix=layer.weight.T.unsqueeze(0), constants=bias)

    def describe(self, tolerance: float) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The structure and the arrays of a frozen potential; see `equipes.models.frozen.FrozenPotential`.

        Args:
            tolerance: of the splines, see `choose_knots`.

        Raises:
            InputError: a tolerance out of reach.
        """
        knots = torch.zeros(0, dtype=torch.float64)
        if self._radial:
            knots = choose_knots([radial for _, radial, _ in self._radial], (), tolerance)
        for stage, radial, sent in self._radial:
            splines = polynomials(radial, knots[:-1], knots[1:])  # [intervals, coefficients, width]
            if sent is not None:
                splines = torch.einsum("kcw,sw->skcw", splines, sent)
            self._arrays[f"stages.{stage}.splines"] = splines
        structure: dict[str, Any] = {
            "kind": "invariant",
            "r_max": self._r_max,
            "widths": self._widths,
            "stages": self._stages,
        }
        if self._symmetry is not None:
            structure["symmetry_functions"] = self._symmetry
        arrays = {"knots": knots, **self._arrays}
        return structure, {
            name: tensor.detach().double().contiguous().numpy() for name, tensor in arrays.items()
        }

    def _receive(self, width: int, sent: int, *, splines: bool) -> int:
        received = self.node(width)
        self._stages.append({"sent": sent, "received": received, "splines": splines, "links": []})
        return received
