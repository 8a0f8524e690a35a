"""The screened nuclear repulsion of Ziegler, Biersack and Littmark."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipes.graph import AtomGraph
from equipes.nn.radial import polynomial_cutoff

COULOMB = 14.399645  # e²/(4πε0), eV Å
_LENGTH = 0.46850  # Å
_SCREENING = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))


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
        screening = sum((c * torch.exp(-k * s) for c, k in _SCREENING), start=torch.zeros_like(s))
        energies = (
            self.charge_product[receiver, sender] / lengths * screening * polynomial_cutoff(reduced, self.p)
        )
        return lengths.new_zeros(graph.n_atoms).index_add(0, graph.receiver, energies)
