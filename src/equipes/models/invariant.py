"""What the invariant architectures (SchNet, PhysNet, ANI) share: scales and shifts, cutoffs, softplus through zero."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipes.models.arguments import PerSpecies, per_species


class ScaleShift(nn.Module):
    """E_i = scale_z y_i + shift_z, in float64."""

    def __init__(self, scales: PerSpecies, shifts: PerSpecies, species: Sequence[str]) -> None:
        super().__init__()
        self.scales = per_species("per_type_energy_scales", scales, species).requires_grad_(False)
        self.shifts = per_species("per_type_energy_shifts", shifts, species).requires_grad_(False)

    def forward(self, y: Tensor, types: Tensor) -> Tensor:
        """`[N]` -> `[N]` float64, eV."""
        return y.double() * self.scales[types] + self.shifts[types]


def cosine_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """½ (cos(π r / r_c) + 1), 0 from r_c on (Behler and Parrinello 2007)."""
    return 0.5 * (torch.cos(math.pi * r / cutoff) + 1) * (r < cutoff)


def shifted_softplus(x: Tensor) -> Tensor:
    """ln(½ e^x + ½): softplus through the origin."""
    return nn.functional.softplus(x) - math.log(2)
