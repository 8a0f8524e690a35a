"""PhysNet: O. T. Unke and M. Meuwly, J. Chem. Theory Comput. 15, 3678 (2019), doi:10.1021/acs.jctc.9b00181."""

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

SCALAR = Irrep(0, 1)


class Residual(nn.Module):
    """x + W_2 σ(W_1 σ(x) + b_1) + b_2 (eq. 4)."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.dense_1 = nn.Linear(n_features, n_features)
        self.dense_2 = nn.Linear(n_features, n_features)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, F]` -> `[N, F]`."""
        return x + self.dense_2(shifted_softplus(self.dense_1(shifted_softplus(x))))


def _residuals(count: int, n_features: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(n_features) for _ in range(count)))


class Module(nn.Module):
    """One module: interaction (eqs. 5 and 6), atomwise refinement, and its part of the energy (eq. 9)."""

    def __init__(
        self, n_features: int, n_basis: int, n_interaction: int, n_atomic: int, n_output: int
    ) -> None:
        super().__init__()
        self.form = MessagePassingForm(Irreps([(n_features, SCALAR)]), 0, [SCALAR])
        self.attention = nn.Linear(n_basis, n_features, bias=False)
        self.dense_i = nn.Linear(n_features, n_features)
        self.dense_j = nn.Linear(n_features, n_features)
        self.interaction_residuals = _residuals(n_interaction, n_features)
        self.gate = nn.Parameter(torch.ones(n_features))
        self.dense_v = nn.Linear(n_features, n_features)
        self.atomic_residuals = _residuals(n_atomic, n_features)
        self.output_residuals = _residuals(n_output, n_features)
        self.output = nn.Linear(n_features, 1, bias=False)

    def forward(self, x: Tensor, basis: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """`[N, F]` -> `[N, F]` and the module's energies `[N]`; `basis` `[E, K]`."""
        activated = shifted_softplus(x)
        attention = self.attention(basis)  # [E, F]
        # Harmonics of degree 0 only: the message is the product of feature and mask, channel by channel.
        y0 = attention.new_ones(len(basis), 1)
        from_j = message_passing(
            self.form, shifted_softplus(self.dense_j(activated)), y0, attention, graph
        )  # [N, F]
        v = self.interaction_residuals(shifted_softplus(self.dense_i(activated)) + from_j)
        x = self.atomic_residuals(self.gate * x + self.dense_v(shifted_softplus(v)))
        return x, self.output(shifted_softplus(self.output_residuals(x))).squeeze(1)


class PhysNet(Architecture):
    """Energies of atoms from interactions that a mask of the distance attends to, refined by residual layers.

    This is the short-range part of PhysNet: without partial charges, electrostatics and dispersion, and without the
    penalty on energies that do not fall from module to module. An isolated atom has its shift plus what the network
    makes of its embedding.

    Args:
        species: chemical symbols that the model knows.
        r_max: cutoff, Å.
        num_features: channels.
        num_basis: radial basis functions.
        num_modules: modules, each with its own output.
        num_residual_interaction, num_residual_atomic, num_residual_output: residual layers in each module.
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
        num_features: int = 128,
        num_basis: int = 64,
        num_modules: int = 5,
        num_residual_interaction: int = 3,
        num_residual_atomic: int = 2,
        num_residual_output: int = 1,
        per_type_energy_scales: PerSpecies = 1.0,
        per_type_energy_shifts: PerSpecies = 0.0,
    ) -> None:
        super().__init__()
        require("r_max", r_max, r_max > 0 and math.isfinite(r_max), "a positive length in Å")
        for name, value in (
            ("num_features", num_features),
            ("num_basis", num_basis),
            ("num_modules", num_modules),
        ):
            require(name, value, value >= 1, "at least 1")
        residuals = (num_residual_interaction, num_residual_atomic, num_residual_output)
        require("num_residual_…", residuals, min(residuals) >= 0, "at least 0")
        self.r_max = float(r_max)
        # Equally spaced in exp(-r), so densely where atoms bond (eq. 7).
        nearest = math.exp(-self.r_max)
        self.width = (2 / num_basis * (1 - nearest)) ** -2
        centres = torch.linspace(nearest, 1.0, num_basis, dtype=torch.float64)
        self.register_buffer("centres", centres, persistent=False)
        self.centres: Tensor
        self.embedding = nn.Parameter(torch.empty(len(species), num_features).uniform_(-(3**0.5), 3**0.5))
        self.blocks = nn.ModuleList(Module(num_features, num_basis, *residuals) for _ in range(num_modules))
        self.scale_shift = ScaleShift(per_type_energy_scales, per_type_energy_shifts, species)

    def last_readout(self) -> nn.Module:
        """See `Architecture.last_readout`."""
        return self.blocks[-1].get_submodule("output_residuals")

    def forward(self, types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """Energies of the atoms, `[N]` float64, eV.

        Args:
            types: `[N]`, index of each atom's species.
            vectors: `[E, 3]` float64, from receiver to sender, Å.
            graph: the edges.
        """
        lengths = vectors.norm(dim=1)  # [E]
        basis = self.basis(lengths).to(self.embedding.dtype)  # [E, K]
        x = self.embedding.index_select(0, types)  # [N, F]
        y = x.new_zeros(len(types))
        for block in self.blocks:
            x, energies = block(x, basis, graph)
            y = y + energies
        return self.scale_shift(y, types)

    def basis(self, lengths: Tensor) -> Tensor:
        """φ(r) exp(-β (exp(-r) - μ_k)²), `[E, K]` (eqs. 7 and 8)."""
        u = lengths / self.r_max
        envelope = (1 - 6 * u**5 + 15 * u**4 - 10 * u**3) * (u < 1)
        gaussians = torch.exp(-self.width * (torch.exp(-lengths).unsqueeze(1) - self.centres) ** 2)
        return envelope.unsqueeze(1) * gaussians
