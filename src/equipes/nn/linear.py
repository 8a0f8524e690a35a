"""Linear maps on features, and the self-connection that depends on the species."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from equipes.graph import SpeciesGroups
from equipes.irreps import Irrep, Irreps

EVEN_SCALAR = Irrep(0, 1)
ODD_SCALAR = Irrep(0, -1)


class Linear(nn.Module):
    """Mixes the channels of equal irreps: y = x W / √(multiplicity of x), block by block, no bias.

    Irreps of the output that the input does not have are zero. Each irrep may occur once on either side.

    With `n_modalities` M the even scalars also see which of M kinds of reference calculation is wanted, as M more input
    channels of which one is 1 and the others 0: y gains row m of `modal`, and √(multiplicity + M) divides both.
    """

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, n_modalities: int = 0) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.weights = nn.ParameterDict(
            {
                str(irrep): nn.Parameter(torch.randn(irreps_in.multiplicity(irrep), mul))
                for mul, irrep in shared(irreps_in, irreps_out)
            }
        )
        self.n_modalities = n_modalities
        if n_modalities:
            self.modal = nn.Parameter(torch.randn(n_modalities, irreps_out.multiplicity(EVEN_SCALAR)))

    def matrix(self, name: str) -> Tensor:
        """`[multiplicity in, multiplicity out]` of the irrep `name`, scaled as it is applied."""
        return self.weights[name] / math.sqrt(self._fan_in(name))

    def bias(self, modality: int) -> Tensor:
        """`[multiplicity of 0e out]`: what a modality adds to the even scalars."""
        bias: Tensor = self.modal[modality] / math.sqrt(self._fan_in(str(EVEN_SCALAR)))
        return bias

    def forward(self, x: Tensor, modality: int | None = None) -> Tensor:
        """`[N, irreps_in.dim]` -> `[N, irreps_out.dim]`; `modality` is needed with modalities and ignored without."""
        blocks = split_blocks(x, self.irreps_in)
        parts = []
        for mul, irrep in self.irreps_out:
            if str(irrep) in self.weights:
                part = (blocks[str(irrep)] @ self.matrix(str(irrep))).flatten(1)
                if self.n_modalities and modality is not None and irrep == EVEN_SCALAR:
                    part = part + self.bias(modality)
                parts.append(part)
            else:
                parts.append(x.new_zeros(x.shape[0], mul * irrep.dim))
        return torch.cat(parts, dim=1)

    def _fan_in(self, name: str) -> int:
        return self.weights[name].shape[0] + (self.n_modalities if name == str(EVEN_SCALAR) else 0)


class SpeciesLinear(nn.Module):
    """The self-connection: x ⊗ a, of features with the embedding a of the atom's own species, to each equal irrep.

    `s[w] = Σ_uv x[u] a[v] W[u,v,w] / √(F·A)` with F channels of that irrep and A embedding channels. Since a depends on
    the species only, W contracted with it is one matrix per species, and atoms of a species share one product. With
    `fan_in` another number takes the place of A in the root.
    """

    def __init__(
        self, irreps_in: Irreps, n_attributes: int, irreps_out: Irreps, fan_in: int | None = None
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.fan_in = n_attributes if fan_in is None else fan_in
        self.weights = nn.ParameterDict(
            {
                str(irrep): nn.Parameter(torch.randn(irreps_in.multiplicity(irrep), n_attributes, mul))
                for mul, irrep in shared(irreps_in, irreps_out)
            }
        )

    def forward(self, x: Tensor, embedding: Tensor | None, groups: SpeciesGroups) -> Tensor:
        """`[N, irreps_in.dim]` -> `[N, irreps_out.dim]`.

        Args:
            x: features.
            embedding: `[n_species, A]`; None is one-hot, A = n_species.
            groups: the atoms of each species.
        """
        matrices = {}
        for name, weight in self.weights.items():
            scale = math.sqrt(weight.shape[0] * self.fan_in)
            if embedding is None:
                matrices[name] = weight.transpose(0, 1) / scale
            else:
                matrices[name] = torch.einsum("sv,uvw->suw", embedding / scale, weight)
        rows = [x.new_zeros(0, self.irreps_out.dim)]
        for species, atoms in enumerate(groups.atoms):
            if len(atoms) == 0:
                continue
            blocks = split_blocks(x.index_select(0, atoms), self.irreps_in)
            parts = []
            for mul, irrep in self.irreps_out:
                if str(irrep) in matrices:
                    parts.append((blocks[str(irrep)] @ matrices[str(irrep)][species]).flatten(1))
                else:
                    parts.append(x.new_zeros(len(atoms), mul * irrep.dim))
            rows.append(torch.cat(parts, dim=1))
        return torch.cat(rows).index_select(0, groups.slot)


def shared(irreps_in: Irreps, irreps_out: Irreps) -> list[tuple[int, Irrep]]:
    """The terms of `irreps_out` whose irrep `irreps_in` has too.

    Raises `ValueError` when an irrep stands twice on one side: united irreps have one matrix each.
    """
    for irreps in (irreps_in, irreps_out):
        if len(set(irreps.irreps)) != len(irreps):
            raise ValueError(f"{irreps}: an irrep occurs twice; unite equal irreps first")
    return [(mul, irrep) for mul, irrep in irreps_out if irreps_in.multiplicity(irrep)]


def split_blocks(x: Tensor, irreps: Irreps) -> dict[str, Tensor]:
    """The blocks of feature rows by the name of their irrep, `[N, 2l+1, multiplicity]` each."""
    parts = x.split([mul * irrep.dim for mul, irrep in irreps], dim=1)
    return {
        str(irrep): part.unflatten(1, (irrep.dim, mul))
        for (mul, irrep), part in zip(irreps, parts, strict=True)
    }
