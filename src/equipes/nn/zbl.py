"""The screened nuclear repulsion of Ziegler, Biersack and Littmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipes.graph import AtomGraph
from equipes.nn.radial import polynomial_cutoff

COULOMB = 14.399645  # e²/(4πε0), eV Å
_LENGTH = 0.46850  # Å
_ROUNDED_COULOMB, _BOHR = 14.3996, 0.529  # as MACE has them
SCREENING = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))


class ZBL(nn.Module):
    """E_i = Σ_j ½ K Z_i Z_j / r φ(r (Z_i^0.23 + Z_j^0.23) / 0.4685 Å) u(r / r_c).

    The power of the cutoff function u is its own, since a repulsion needs another than a basis does.

    J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter (1985).
    """

    def __init__(self, numbers: Sequence[int], p: int = 6) -> None:
        super().__init__()
        self.p = p
        z = torch.tensor(list(numbers), dtype=torch.float64)
        self.register_buffer("charge_product", 0.5 * COULOMB * z.unsqueeze(1) * z, persistent=False)
        self.register_buffer("inverse_length", (z.unsqueeze(1) ** 0.23 + z**0.23) / _LENGTH, persistent=False)
        self.charge_product: Tensor
        self.inverse_length: Tensor

    def forward(self, types: Tensor, lengths: Tensor, reduced: Tensor, graph: AtomGraph) -> Tensor:
        """Energies of the atoms, `[N]` eV.

        Args:
            types: `[N]`, index of each atom's species.
            lengths: `[E]` Å.
            reduced: `[E]`, lengths in units of the cutoff.
            graph: the edges.
        """
        receiver, sender = types[graph.receiver], types[graph.sender]
        s = lengths * self.inverse_length[receiver, sender]
        screening = sum((c * torch.exp(-k * s) for c, k in SCREENING), start=torch.zeros_like(s))
        energies = (
            self.charge_product[receiver, sender] / lengths * screening * polynomial_cutoff(reduced, self.p)
        )
        return lengths.new_zeros(graph.n_atoms).index_add(0, graph.receiver, energies)


@dataclass(frozen=True)
class ScreenedPairs:
    """½ K Z_i Z_j, 1/a and R of `CovalentZBL`, `[n_species, n_species]` each, and the terms (c, k) of φ, `[4, 2]`."""

    charge_product: Tensor
    inverse_length: Tensor
    cutoffs: Tensor
    screening: Tensor


class CovalentZBL(nn.Module):
    """MACE's variant, cut off where atoms begin to bond:

    E_i = Σ_j ½ K Z_i Z_j / r φ(r/a) u(r / R), a = a0 · 0.529 Å / (Z_i^e + Z_j^e), R the sum of the covalent radii.

    Its constants are rounded otherwise than those of `ZBL`. They are weights, so that published models keep theirs.
    """

    _EXPONENTS = (3.2, 0.9423, 0.4028, 0.2016)

    def __init__(self, numbers: Sequence[int], radii: Tensor, p: int) -> None:
        super().__init__()
        self.p = p
        values = {
            "c": [0.1818, 0.5099, 0.2802, 0.02817],
            "a_exp": 0.300,
            "a_prefactor": 0.4543,
        }
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.register_buffer("covalent_radii", radii.clone())
        charges = torch.tensor(list(numbers), dtype=torch.float64)
        self.register_buffer("charges", charges, persistent=False)
        self.register_buffer("exponents", charges.new_tensor(self._EXPONENTS), persistent=False)
        self.c: Tensor
        self.a_exp: Tensor
        self.a_prefactor: Tensor
        self.covalent_radii: Tensor
        self.charges: Tensor
        self.exponents: Tensor

    def pairs(self) -> ScreenedPairs:
        """Its constants by pairs of species."""
        z, radii = self.charges, self.covalent_radii
        powers = z**self.a_exp
        return ScreenedPairs(
            0.5 * _ROUNDED_COULOMB * z.unsqueeze(1) * z,
            (powers.unsqueeze(1) + powers) / (self.a_prefactor * _BOHR),
            radii.unsqueeze(1) + radii,
            torch.stack([self.c, self.exponents], dim=1),
        )

    def forward(self, types: Tensor, lengths: Tensor, graph: AtomGraph) -> Tensor:
        """Energies of the atoms, `[N]` eV; `types` `[N]` are species, `lengths` `[E]` Å."""
        receiver, sender = types[graph.receiver], types[graph.sender]
        z, radii = self.charges, self.covalent_radii
        powers = z**self.a_exp
        s = lengths * (powers[receiver] + powers[sender]) / (self.a_prefactor * _BOHR)  # [E]
        screening = (self.c * torch.exp(-s.unsqueeze(1) * self.exponents)).sum(1)
        reduced = lengths / (radii[receiver] + radii[sender])
        energies = 0.5 * _ROUNDED_COULOMB * z[receiver] * z[sender] / lengths * screening
        energies = energies * polynomial_cutoff(reduced, self.p)
        return lengths.new_zeros(graph.n_atoms).index_add(0, graph.receiver, energies)
