"""ANI: J. S. Smith, O. Isayev, A. E. Roitberg, Chemical Science 8, 3192 (2017), doi:10.1039/C6SC05720A."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from equipes.graph import AtomGraph
from equipes.models.arguments import PerSpecies, require
from equipes.models.invariant import ScaleShift, cosine_cutoff
from equipes.models.potential import Architecture

# Keeps the angle's derivative finite where three atoms stand in a line (as in the authors' TorchANI).
NOT_COLLINEAR = 0.95


class ElementNetworks(nn.Module):
    """One network for each element, with SiLU between its layers."""

    def __init__(self, n_species: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_species, a, b) / math.sqrt(a)) for a, b in pairwise(widths)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n_species, b)) for b in widths[1:])

    def forward(self, x: Tensor, types: Tensor) -> Tensor:
        """`[N, widths[0]]` -> `[N]`."""
        counts = torch.bincount(types, minlength=len(self.weights[0])).tolist()
        groups = torch.argsort(types, stable=True).split(counts)
        y = x.new_zeros(len(x))
        for species, atoms in enumerate(groups):
            if len(atoms) == 0:
                continue
            h = x.index_select(0, atoms)
            for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                h = h if k == 0 else nn.functional.silu(h)
                h = torch.addmm(bias[species], h, weight[species])
            y = y.index_add(0, atoms, h.squeeze(1))
        return y


class ANI(Architecture):
    """Energies of atoms from symmetry functions of their surroundings, by one network for each element.

    The functions are the paper's modified ones, sorted by the elements of one neighbour (radial) or two (angular). The
    networks have SiLU in place of the Gaussian (and of the CELU of later models, whose second derivative jumps). An
    isolated atom has its shift plus what its
    network makes of nothing.

    Args:
        species: chemical symbols that the model knows.
        r_max: cutoff of the radial functions, Å.
        angular_r_max: cutoff of the angular functions, Å.
        radial_eta: exponent of the radial functions, 1/Å².
        num_radial: radial functions for each element, centred from 0.9 Å to r_max.
        angular_eta, angular_zeta: exponents of the angular functions in distance (1/Å²) and angle.
        num_angular_shells, num_angles: centres in distance and in angle of the functions for each pair of elements.
        hidden: widths of the hidden layers.
        per_type_energy_scales, per_type_energy_shifts: eV, one number or one for each species.

    Raises:
        InputError: a value out of its range, or a species that is not known.
    """

    EXACT: ClassVar[tuple[str, ...]] = ("scale_shift.scales", "scale_shift.shifts")
    FIXED_SHAPES = False  # nobody knows how many angles there are before they are counted

    def __init__(
        self,
        species: Sequence[str],
        r_max: float = 5.2,
        angular_r_max: float = 3.5,
        radial_eta: float = 16.0,
        num_radial: int = 16,
        angular_eta: float = 8.0,
        angular_zeta: float = 32.0,
        num_angular_shells: int = 4,
        num_angles: int = 8,
        hidden: Sequence[int] = (128, 128, 64),
        per_type_energy_scales: PerSpecies = 1.0,
        per_type_energy_shifts: PerSpecies = 0.0,
    ) -> None:
        super().__init__()
        require("r_max", r_max, r_max > 0 and math.isfinite(r_max), "a positive length in Å")
        require("angular_r_max", angular_r_max, 0 < angular_r_max <= r_max, "in (0, r_max]")
        for name, value in (
            ("radial_eta", radial_eta),
            ("angular_eta", angular_eta),
            ("angular_zeta", angular_zeta),
        ):
            require(name, value, value > 0, "positive")
        for name, count in (
            ("num_radial", num_radial),
            ("num_angular_shells", num_angular_shells),
            ("num_angles", num_angles),
        ):
            require(name, count, count >= 1, "at least 1")
        require("hidden", list(hidden), all(width >= 1 for width in hidden), "positive widths")
        self.r_max, self.angular_r_max = float(r_max), float(angular_r_max)
        self.radial_eta, self.angular_eta, self.zeta = radial_eta, angular_eta, angular_zeta
        first = min(0.9, 0.5 * angular_r_max)
        for name, centres in (
            ("radial_centres", torch.linspace(first, r_max, num_radial + 1, dtype=torch.float64)[:-1]),
            (
                "shells",
                torch.linspace(first, angular_r_max, num_angular_shells + 1, dtype=torch.float64)[:-1],
            ),
            ("angles", (torch.arange(num_angles, dtype=torch.float64) + 0.5) * math.pi / num_angles),
        ):
            self.register_buffer(name, centres, persistent=False)
        self.radial_centres: Tensor
        self.shells: Tensor
        self.angles: Tensor
        n = len(species)
        self.n_pairs = n * (n + 1) // 2
        low, high = torch.triu_indices(n, n)
        pair_index = torch.zeros(n, n, dtype=torch.int64)
        pair_index[low, high] = pair_index[high, low] = torch.arange(self.n_pairs)
        self.register_buffer("pair_index", pair_index, persistent=False)
        self.pair_index: Tensor
        n_functions = n * num_radial + self.n_pairs * num_angular_shells * num_angles
        self.networks = ElementNetworks(n, [n_functions, *hidden, 1])
        self.scale_shift = ScaleShift(per_type_energy_scales, per_type_energy_shifts, species)

    def last_readout(self) -> nn.Module:
        """See `Architecture.last_readout`."""
        return self.networks

    def forward(self, types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """Energies of the atoms, `[N]` float64, eV.

        Args:
            types: `[N]`, index of each atom's species.
            vectors: `[E, 3]` float64, from receiver to sender, Å.
            graph: the edges.
        """
        lengths = vectors.norm(dim=1)  # [E]
        radial = self._radial(types, lengths, graph)
        angular = self._angular(types, vectors, lengths, graph)
        y = self.networks(torch.cat([radial, angular], dim=1), types)  # [N]
        return self.scale_shift(y, types)

    def _radial(self, types: Tensor, lengths: Tensor, graph: AtomGraph) -> Tensor:
        """Σ_j exp(-η (r_ij - r_s)²) f_c(r_ij) for each element of j, `[N, elements · n_s]` (eq. 3)."""
        values = torch.exp(-self.radial_eta * (lengths.unsqueeze(1) - self.radial_centres) ** 2)
        values = values * cosine_cutoff(lengths, self.r_max).unsqueeze(1)  # [E, n_s]
        n = len(self.pair_index)
        place = graph.receiver * n + types[graph.sender]
        return self._summed(values, place, graph.n_atoms * n, graph.n_atoms)

    def _angular(self, types: Tensor, vectors: Tensor, lengths: Tensor, graph: AtomGraph) -> Tensor:
        """2^(1-ζ) Σ_jk (1 + cos(θ - θ_s))^ζ exp(-η (mean r - r_s)²) f_c(r_ij) f_c(r_ik), `[N, pairs · …]` (eq. 4)."""
        j, k = self._pairs_of_edges(lengths, graph)
        r_j, r_k = lengths[j], lengths[k]  # [T]
        cosine = NOT_COLLINEAR * (vectors[j] * vectors[k]).sum(1) / (r_j * r_k)
        sine = torch.sqrt(1 - cosine**2)
        # cos(θ - θ_s), without the inverse cosine
        difference = cosine.unsqueeze(1) * torch.cos(self.angles) + sine.unsqueeze(1) * torch.sin(self.angles)
        angular = 2 * ((1 + difference) / 2) ** self.zeta  # [T, n_angles]
        shells = torch.exp(-self.angular_eta * ((r_j + r_k).unsqueeze(1) / 2 - self.shells) ** 2)
        envelope = cosine_cutoff(r_j, self.angular_r_max) * cosine_cutoff(r_k, self.angular_r_max)
        values = (shells * envelope.unsqueeze(1)).unsqueeze(2) * angular.unsqueeze(
            1
        )  # [T, n_shells, n_angles]
        pair = self.pair_index[types[graph.sender[j]], types[graph.sender[k]]]
        place = graph.receiver[j] * self.n_pairs + pair
        return self._summed(values.flatten(1), place, graph.n_atoms * self.n_pairs, graph.n_atoms)

    def _pairs_of_edges(self, lengths: Tensor, graph: AtomGraph) -> tuple[Tensor, Tensor]:
        """Edges j < k to the same receiver within the angular cutoff, `[T]` each."""
        near = (lengths < self.angular_r_max).nonzero().squeeze(1)  # sorted by receiver, as all edges are
        counts = torch.bincount(graph.receiver[near], minlength=graph.n_atoms)
        starts = counts.cumsum(0) - counts
        repeats = counts[graph.receiver[near]]  # partners of each near edge, itself among them
        first = torch.repeat_interleave(torch.arange(len(near), device=near.device), repeats)
        begin = torch.repeat_interleave(repeats.cumsum(0) - repeats, repeats)
        second = starts[graph.receiver[near][first]] + torch.arange(len(first), device=near.device) - begin
        once = first < second
        return near[first[once]], near[second[once]]

    def _summed(self, values: Tensor, place: Tensor, size: int, n_atoms: int) -> Tensor:
        """Rows added up where they belong, in the network's number type, `[N, …]`."""
        values = values.to(self.networks.weights[0].dtype)
        sums = values.new_zeros(size, values.shape[1]).index_add(0, place, values)
        return sums.view(n_atoms, -1)
