"""NequIP: S. Batzner et al., Nature Communications 13, 2453 (2022), doi:10.1038/s41467-022-29939-5."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from ase.data import atomic_numbers
from torch import Tensor, nn

from equipes.graph import AtomGraph, SpeciesGroups
from equipes.harmonics import MAX_L, spherical_harmonics
from equipes.irreps import Irrep, Irreps
from equipes.kernels import MessagePassingForm, message_passing
from equipes.models.arguments import PerSpecies
from equipes.models.arguments import per_species as _per_species
from equipes.models.arguments import refuse_unknown as _refuse_unknown
from equipes.models.arguments import require as _require
from equipes.models.potential import Architecture
from equipes.nn import ZBL, BesselBasis, Gate, Linear, ScalarMLP, SpeciesLinear, polynomial_cutoff

PerEdgeType = Mapping[str, float | Mapping[str, float]]


class InteractionBlock(nn.Module):
    """One layer: x_i ← gate( Σ_v x_i a_v W_v  +  W_2 Σ_j R(r_ij) Y(r_ij) ⊗ W_1 x_j / √n )."""

    def __init__(
        self,
        irreps_in: Irreps,
        hidden: Irreps,
        l_max: int,
        n_attributes: int,
        radial_layers: list[int],
        *,
        self_connection: bool,
    ) -> None:
        super().__init__()
        reachable = {
            out
            for irrep in irreps_in.irreps
            for l2 in range(l_max + 1)
            for out in irrep * Irrep(l2, (-1) ** l2)
        }
        kept = [(mul, irrep) for mul, irrep in hidden if irrep in reachable]
        self.gate = Gate(
            scalars=Irreps(term for term in kept if term[1].l == 0),
            gated=Irreps(term for term in kept if term[1].l > 0),
        )
        self.form = MessagePassingForm(irreps_in, l_max, self.gate.irreps_in.irreps)
        self.linear_1 = Linear(irreps_in, irreps_in)
        self.radial_network = ScalarMLP(radial_layers[0], radial_layers[1:], self.form.n_weights)
        self.linear_2 = Linear(self.form.irreps_out, self.gate.irreps_in)
        self.self_connection = (
            SpeciesLinear(irreps_in, n_attributes, self.gate.irreps_in) if self_connection else None
        )
        self.irreps_out = self.gate.irreps_out

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        species_groups: SpeciesGroups,
        radial: Tensor,
        harmonics: Tensor,
        sender_norm: Tensor,
        graph: AtomGraph,
    ) -> Tensor:
        """`[N, irreps_in.dim]` -> `[N, irreps_out.dim]`; `radial` `[E, n]`, `harmonics` `[E, (l_max+1)²]`."""
        y = self.linear_1(x) * sender_norm  # [N, irreps_in.dim]
        weights = self.radial_network(radial)  # [E, n_weights]
        messages = message_passing(self.form, y, harmonics, weights, graph)  # [N, form.irreps_out.dim]
        z = self.linear_2(messages)  # [N, gate.irreps_in.dim]
        if self.self_connection is not None:
            z = z + self.self_connection(x, embedding, species_groups)
        return self.gate(z)


class NequIP(Architecture):
    """Energies of atoms from E(3)-equivariant messages.

    Parameter names are the reference package's. Weights trained with it give the same energies here
    (`equipes.foundation.from_nequip`).

    Args:
        species: chemical symbols that the model knows.
        r_max: cutoff, Å.
        num_layers: interaction blocks.
        l_max: highest degree of features and harmonics.
        num_features: channels, one number or one for each l = 0..l_max.
        parity: features of both parities for each l; without, only (-1)^l.
        num_bessels: size of the radial basis.
        bessel_trainable: train its roots.
        polynomial_cutoff_p: power of the cutoff function.
        radial_mlp_depth, radial_mlp_width: hidden layers of the radial networks.
        readout_mlp_hidden_layers_depth, readout_mlp_hidden_layers_width: hidden layers of the readout.
        type_embed_num_features: channels of the species embedding; `num_features[0]` by default.
        avg_num_neighbors: mean number of neighbours, one number or one for each species (that of the sender counts).
        per_type_energy_scales, per_type_energy_shifts: eV, one number or one for each species.
        per_type_energy_scales_trainable, per_type_energy_shifts_trainable: train them.
        per_edge_type_cutoff: shorter cutoffs by species of centre and neighbour, `{"Cu": {"O": 4.0}, "O": 3.5}`.
        zbl: add the screened nuclear repulsion.
        zbl_polynomial_cutoff_p: power of its cutoff function.

    Raises:
        InputError: a value out of its range, a species or key that is not known.
    """

    EXACT = ("scales", "shifts", "basis.roots")
    PER_SPECIES: ClassVar = {"embedding": 0, "scales": 0, "shifts": 0}
    GROUPS_SPECIES = True

    def __init__(
        self,
        species: Sequence[str],
        r_max: float = 5.0,
        num_layers: int = 4,
        l_max: int = 2,
        num_features: int | Sequence[int] = 32,
        parity: bool = True,
        num_bessels: int = 8,
        bessel_trainable: bool = False,
        polynomial_cutoff_p: int = 6,
        radial_mlp_depth: int = 2,
        radial_mlp_width: int = 64,
        readout_mlp_hidden_layers_depth: int = 0,
        readout_mlp_hidden_layers_width: int | None = None,
        type_embed_num_features: int | None = None,
        avg_num_neighbors: PerSpecies = 1.0,
        per_type_energy_scales: PerSpecies = 1.0,
        per_type_energy_shifts: PerSpecies = 0.0,
        per_type_energy_scales_trainable: bool = False,
        per_type_energy_shifts_trainable: bool = False,
        per_edge_type_cutoff: PerEdgeType | None = None,
        zbl: bool = False,
        zbl_polynomial_cutoff_p: int = 6,
    ) -> None:
        super().__init__()
        channels = [num_features] * (l_max + 1) if isinstance(num_features, int) else list(num_features)
        _require("r_max", r_max, r_max > 0 and math.isfinite(r_max), "a positive length in Å")
        _require("l_max", l_max, 0 <= l_max <= MAX_L, f"from 0 to {MAX_L}")
        _require(
            "num_features",
            num_features,
            len(channels) == l_max + 1,
            f"one number, or {l_max + 1} (l = 0..l_max)",
        )
        _require("num_features", num_features, min(channels, default=0) > 0, "positive")
        for name, value in (
            ("num_layers", num_layers),
            ("num_bessels", num_bessels),
            ("radial_mlp_width", radial_mlp_width),
        ):
            _require(name, value, value >= 1, "at least 1")
        for name, value in (
            ("radial_mlp_depth", radial_mlp_depth),
            ("readout_mlp_hidden_layers_depth", readout_mlp_hidden_layers_depth),
        ):
            _require(name, value, value >= 0, "at least 0")
        _require("polynomial_cutoff_p", polynomial_cutoff_p, polynomial_cutoff_p >= 2, "at least 2")
        self.r_max = float(r_max)
        self.l_max = l_max
        self.polynomial_cutoff_p = polynomial_cutoff_p

        n_attributes = type_embed_num_features or channels[0]
        self.embedding = nn.Parameter(torch.randn(len(species), n_attributes))
        self.basis = BesselBasis(num_bessels, trainable=bessel_trainable)
        hidden = _hidden_irreps(channels, parity=parity)
        last = Irreps([(channels[0], Irrep(0, 1))])
        self.layers = nn.ModuleList()
        irreps = Irreps([(n_attributes, Irrep(0, 1))])
        for layer in range(num_layers):
            block = InteractionBlock(
                irreps,
                hidden if layer < num_layers - 1 else last,
                l_max,
                n_attributes,
                [num_bessels, *[radial_mlp_width] * radial_mlp_depth],
                self_connection=layer > 0,
            )
            self.layers.append(block)
            irreps = block.irreps_out
        width = readout_mlp_hidden_layers_width or channels[0]
        self.readout = ScalarMLP(channels[0], [width] * readout_mlp_hidden_layers_depth, 1)

        self.scales = _per_species("per_type_energy_scales", per_type_energy_scales, species)
        self.shifts = _per_species("per_type_energy_shifts", per_type_energy_shifts, species)
        self.scales.requires_grad_(per_type_energy_scales_trainable)
        self.shifts.requires_grad_(per_type_energy_shifts_trainable)
        neighbors = _per_species("avg_num_neighbors", avg_num_neighbors, species).detach()
        _require("avg_num_neighbors", avg_num_neighbors, bool((neighbors > 0).all()), "positive")
        self.register_buffer("norms", neighbors.rsqrt(), persistent=False)
        self.register_buffer(
            "cutoffs", _edge_cutoffs(per_edge_type_cutoff, species, self.r_max), persistent=False
        )
        self.norms: Tensor
        self.cutoffs: Tensor | None
        self.zbl = (
            ZBL([atomic_numbers[symbol] for symbol in species], zbl_polynomial_cutoff_p) if zbl else None
        )

    def last_readout(self) -> nn.Module:
        """See `Architecture.last_readout`."""
        return self.readout

    def forward(self, types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """Energies of the atoms, `[N]` float64, eV.

        Args:
            types: `[N]`, index of each atom's species.
            vectors: `[E, 3]` float64, from receiver to sender, Å.
            graph: the edges.
        """
        dtype = self.embedding.dtype
        lengths = vectors.norm(dim=1)  # [E]
        harmonics = spherical_harmonics(self.l_max, vectors / lengths.unsqueeze(1)).to(
            dtype
        )  # [E, (l_max+1)²]
        cutoffs = (
            self.r_max if self.cutoffs is None else self.cutoffs[types[graph.receiver], types[graph.sender]]
        )
        reduced = lengths / cutoffs  # [E]
        envelope = polynomial_cutoff(reduced, self.polynomial_cutoff_p)  # [E]
        # The prefactor belongs to the reference's weights: it always has the global cutoff, even with cutoffs per pair.
        radial = self.basis(reduced) * (2 * math.pi / self.r_max**2 * envelope).unsqueeze(1)
        radial = radial.to(dtype)  # [E, num_bessels]
        sender_norm = self.norms[types].to(dtype).unsqueeze(1)  # [N, 1]
        species_groups = graph.species_groups(types, len(self.embedding))

        x = self.embedding.index_select(0, types)  # [N, A]
        for layer in self.layers:
            x = layer(x, self.embedding, species_groups, radial, harmonics, sender_norm, graph)
        energies = self.readout(x).squeeze(1).double()  # [N]
        energies = energies * self.scales[types] + self.shifts[types]
        if self.zbl is not None:
            energies = energies + self.zbl(types, lengths, reduced, graph)
        return energies


def _hidden_irreps(channels: Sequence[int], *, parity: bool) -> Irreps:
    """For each l the even, then the odd irrep; without parity only (-1)^l."""
    terms: list[tuple[int, Irrep]] = []
    for l, mul in enumerate(channels):
        terms += [(mul, Irrep(l, p)) for p in ((1, -1) if parity else ((-1) ** l,))]
    return Irreps(terms)


def _edge_cutoffs(given: PerEdgeType | None, species: Sequence[str], r_max: float) -> Tensor | None:
    """`[n_species, n_species]` float64 by centre and neighbour; what is not given is r_max."""
    if given is None:
        return None
    _refuse_unknown("per_edge_type_cutoff", given, species)
    cutoffs = torch.full((len(species), len(species)), r_max, dtype=torch.float64)
    for centre, value in given.items():
        row = cutoffs[species.index(centre)]
        if isinstance(value, Mapping):
            _refuse_unknown(f"per_edge_type_cutoff.{centre}", value, species)
            for neighbour, cutoff in value.items():
                row[species.index(neighbour)] = float(cutoff)
        else:
            row[:] = float(value)
    _require(
        "per_edge_type_cutoff", dict(given), bool(((cutoffs > 0) & (cutoffs <= r_max)).all()), "in (0, r_max]"
    )
    return cutoffs
