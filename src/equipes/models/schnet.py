"""SchNet: K. T. Schütt et al., The Journal of Chemical Physics 148, 241722 (2018), doi:10.1063/1.5019779."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from equipes.graph import AtomGraph
from equipes.irreps import Irrep, Irreps
from equipes.kernels import MessagePassingForm, message_passing
from equipes.models.arguments import PerSpecies, require
from equipes.models.invariant import ScaleShift, shifted_softplus
from equipes.models.potential import Architecture
from equipes.nn import polynomial_cutoff

SCALAR = Irrep(0, 1)


class InteractionBlock(nn.Module):
    """x_i ← x_i + W_3 σ(W_2 Σ_j (W_1 x_j) ∘ F(r_ij)): continuous-filter convolution with a learnt filter F."""

    def __init__(self, n_features: int, n_gaussians: int) -> None:
        super().__init__()
        self.form = MessagePassingForm(Irreps([(n_features, SCALAR)]), 0, [SCALAR])
        self.filter_1 = nn.Linear(n_gaussians, n_features)
        self.filter_2 = nn.Linear(n_features, n_features)
        self.atomwise_1 = nn.Linear(n_features, n_features, bias=False)
        self.atomwise_2 = nn.Linear(n_features, n_features)
        self.atomwise_3 = nn.Linear(n_features, n_features)

    def forward(self, x: Tensor, gaussians: Tensor, envelope: Tensor, graph: AtomGraph) -> Tensor:
        """`[N, F]` -> `[N, F]`; `gaussians` `[E, n_gaussians]`, `envelope` `[E, 1]`."""
        filters = shifted_softplus(self.filter_1(gaussians))
        filters = shifted_softplus(self.filter_2(filters)) * envelope  # [E, F]
        # Harmonics of degree 0 only: the message is the product of feature and filter, channel by channel.
        y0 = torch.ones_like(envelope)
        v = message_passing(self.form, self.atomwise_1(x), y0, filters, graph)  # [N, F]
        return x + self.atomwise_3(shifted_softplus(self.atomwise_2(v)))


class SchNet(Architecture):
    """Energies of atoms from continuous-filter convolutions over distances.

    The paper's cutoff is so large that nothing happens there; ours takes the filters smoothly to zero. An isolated atom
    has its shift plus what the network makes of its embedding.

    Args:
        species: chemical symbols that the model knows.
        r_max: cutoff, Å.
        num_features: channels.
        num_interactions: interaction blocks.
        gaussian_spacing: distance between the centres of the Gaussians, from 0 to r_max, Å.
        gaussian_gamma: their exponent, 1/Å².
        per_type_energy_scales, per_type_energy_shifts: eV, one number or one for each species.

    Raises:
        InputError: a value out of its range, or a species that is not known.
    """

    EXACT: ClassVar[tuple[str, ...]] = ("scale_shift.scales", "scale_shift.shifts")
    PER_SPECIES: ClassVar = {"embedding": 0, "scale_shift.*": 0}

    def __init__(
        self,
        species: Sequence[str],
        r_max: float = 5.0,
        num_features: int = 64,
        num_interactions: int = 3,
        gaussian_spacing: float = 0.1,
        gaussian_gamma: float = 10.0,
        per_type_energy_scales: PerSpecies = 1.0,
        per_type_energy_shifts: PerSpecies = 0.0,
    ) -> None:
        super().__init__()
        require("r_max", r_max, r_max > 0 and math.isfinite(r_max), "a positive length in Å")
        for name, value in (("num_features", num_features), ("num_interactions", num_interactions)):
            require(name, value, value >= 1, "at least 1")
        require("gaussian_spacing", gaussian_spacing, 0 < gaussian_spacing <= r_max, "in (0, r_max]")
        require("gaussian_gamma", gaussian_gamma, gaussian_gamma > 0, "positive")
        self.r_max = float(r_max)
        self.gamma = float(gaussian_gamma)
        centres = torch.arange(0.0, r_max + 0.5 * gaussian_spacing, gaussian_spacing, dtype=torch.float64)
        self.register_buffer("centres", centres, persistent=False)
        self.centres: Tensor
        self.embedding = nn.Parameter(torch.randn(len(species), num_features))
        self.interactions = nn.ModuleList(
            InteractionBlock(num_features, len(centres)) for _ in range(num_interactions)
        )
        self.readout_1 = nn.Linear(num_features, max(1, num_features // 2))
        self.readout_2 = nn.Linear(max(1, num_features // 2), 1)
        self.scale_shift = ScaleShift(per_type_energy_scales, per_type_energy_shifts, species)

    def last_readout(self) -> nn.Module:
        """See `Architecture.last_readout`."""
        return self.readout_1

    def forward(self, types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """Energies of the atoms, `[N]` float64, eV.

        Args:
            types: `[N]`, index of each atom's species.
            vectors: `[E, 3]` float64, from receiver to sender, Å.
            graph: the edges.
        """
        dtype = self.embedding.dtype
        lengths = vectors.norm(dim=1)  # [E]
        gaussians = torch.exp(-self.gamma * (lengths.unsqueeze(1) - self.centres) ** 2).to(dtype)
        envelope = polynomial_cutoff(lengths / self.r_max, 6).unsqueeze(1).to(dtype)  # [E, 1]
        x = self.embedding.index_select(0, types)  # [N, F]
        for interaction in self.interactions:
            x = interaction(x, gaussians, envelope, graph)
        y = self.readout_2(shifted_softplus(self.readout_1(x))).squeeze(1)  # [N]
        return self.scale_shift(y, types)
