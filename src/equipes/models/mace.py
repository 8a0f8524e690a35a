"""MACE: I. Batatia et al., Advances in Neural Information Processing Systems 35 (2022), arXiv:2206.07697."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from ase.data import atomic_numbers as NUMBER_OF
from ase.data import covalent_radii
from torch import Tensor, nn

from equipes.errors import InputError
from equipes.graph import AtomGraph, SpeciesGroups
from equipes.harmonics import MAX_L, spherical_harmonics
from equipes.irreps import Irrep, Irreps
from equipes.kernels import MessagePassingForm, message_passing
from equipes.models.arguments import PerSpecies, per_species, require
from equipes.models.potential import Architecture
from equipes.nn import (
    AgnesiTransform,
    BesselBasis,
    CovalentZBL,
    Linear,
    ScalarMLP,
    SoftTransform,
    SpeciesLinear,
    SymmetricContraction,
    polynomial_cutoff,
)
from equipes.nn.gate import EVEN_SCALAR, ODD_SCALAR, SILU_SCALE

# Published names of the interaction blocks: (adds a self-connection to the product, divides by the density).
INTERACTIONS = {
    "RealAgnosticInteractionBlock": (False, False),
    "RealAgnosticResidualInteractionBlock": (True, False),
    "RealAgnosticDensityInteractionBlock": (False, True),
    "RealAgnosticDensityResidualInteractionBlock": (True, True),
}
DISTANCE_TRANSFORMS = {"None": None, "Agnesi": AgnesiTransform, "Soft": SoftTransform}


class InteractionBlock(nn.Module):
    """A_i = W Σ_j R(r_ij) Y(r_ij) ⊗ W_up h_j / n, the features of the atom's neighbourhood (eq. 8).

    n is the mean number of neighbours, or with `density` 1 + Σ_j tanh((w·b(r_ij))²), which knows how near they are.
    With `residual` the self-connection W_z h_i joins after the product; without, W_z acts on A.
    """

    def __init__(
        self,
        irreps_in: Irreps,
        irreps_out: Irreps,
        hidden: Irreps,
        max_ell: int,
        n_species: int,
        radial_layers: list[int],
        avg_num_neighbors: float,
        *,
        residual: bool,
        density: bool,
        num_elements: int,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.avg_num_neighbors = avg_num_neighbors
        self.form = MessagePassingForm(irreps_in, max_ell, irreps_out.irreps)
        self.linear_up = Linear(irreps_in, irreps_in)
        self.radial_network = ScalarMLP(
            radial_layers[0], radial_layers[1:], self.form.n_weights, activation_scale=SILU_SCALE
        )
        self.linear = Linear(self.form.irreps_out, irreps_out)
        self.skip = SpeciesLinear(
            irreps_in if residual else irreps_out,
            n_species,
            hidden if residual else irreps_out,
            fan_in=num_elements,
        )
        self.density = nn.Parameter(torch.randn(radial_layers[0])) if density else None

    def forward(
        self,
        h: Tensor,
        species_groups: SpeciesGroups,
        radial: Tensor,
        harmonics: Tensor,
        graph: AtomGraph,
    ) -> tuple[Tensor, Tensor | None]:
        """`[N, irreps_in.dim]` -> A `[N, irreps_out.dim]` and the self-connection `[N, hidden.dim]`, if any."""
        weights = self.radial_network(radial)  # [E, n_weights]
        messages = message_passing(self.form, self.linear_up(h), harmonics, weights, graph)
        A = self.linear(messages)  # [N, irreps_out.dim]
        if self.density is None:
            A = A / self.avg_num_neighbors
        else:
            nearness = torch.tanh((radial @ (self.density / math.sqrt(len(self.density)))) ** 2)  # [E]
            A = A / (1 + nearness.new_zeros(len(h)).index_add(0, graph.receiver, nearness)).unsqueeze(1)
        if self.residual:
            return A, self.skip(h, None, species_groups)
        return self.skip(A, None, species_groups), None


class ProductBlock(nn.Module):
    """h_i ← W m_i(A_i) + self-connection: the many-body message and the update (eqs. 10 to 12)."""

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps, correlation: int, n_species: int) -> None:
        super().__init__()
        self.symmetric_contraction = SymmetricContraction(irreps_in, irreps_out, correlation, n_species)
        self.linear = Linear(irreps_out, irreps_out)
        self.scalars = irreps_out.slices()[irreps_out.irreps.index(EVEN_SCALAR)]

    def forward(self, A: Tensor, self_connection: Tensor | None, types: Tensor) -> Tensor:
        """`[N, irreps_in.dim]` -> `[N, irreps_out.dim]`."""
        h = self.linear(self.symmetric_contraction(A, types))
        return h if self_connection is None else h + self_connection


class Readout(nn.Module):
    """The part of an atom's energy that one layer gives (eq. 13), for each head: linear, or a network in the last."""

    def __init__(self, channels: int, hidden: int | None, n_heads: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.randn(n_heads, channels))]
            if hidden is None
            else [
                nn.Parameter(torch.randn(n_heads, channels, hidden)),
                nn.Parameter(torch.randn(n_heads, hidden)),
            ]
        )

    def forward(self, h: Tensor, head: int) -> Tensor:
        """Scalars `[N, channels]` -> `[N]`."""
        for weight in self.weights[:-1]:
            h = SILU_SCALE * nn.functional.silu(h @ (weight[head] / math.sqrt(weight.shape[1])))
        last = self.weights[-1]
        # With several heads the reference counts all of their hidden units as fan-in.
        fan_in = last.shape[1] * (len(last) if len(self.weights) > 1 else 1)
        return h @ (last[head] / math.sqrt(fan_in))


class MACE(Architecture):
    """Energies of atoms from equivariant messages of many bodies.

    Names are those of the mace-torch package; weights trained with it give the same energies here
    (`equipes.foundation.read_mace_checkpoint`).

    Args:
        species: chemical symbols that the model knows.
        r_max: cutoff, Å.
        num_bessel: size of the radial basis.
        num_polynomial_cutoff: power of the cutoff function.
        max_ell: highest degree of the harmonics and of A.
        hidden_irreps: features between the layers, all irreps with one multiplicity; the last layer keeps the scalars.
        correlation: highest power of A, one number or one for each layer; messages know one body more.
        num_interactions: layers.
        interaction_cls_first, interaction_cls: the interaction block of the first layer and of the others. With a
            Residual first block the energy of an isolated atom is its `atomic_energies` plus a constant of its species.
        radial_MLP: widths of the hidden layers of the radial networks.
        MLP_irreps: hidden scalars of the last readout.
        avg_num_neighbors: mean number of neighbours.
        distance_transform: "None", "Agnesi" or "Soft".
        pair_repulsion: add the screened nuclear repulsion, cut off at the sum of the covalent radii.
        pair_repulsion_cutoff: power of its cutoff function; that of the radial basis by default.
        atomic_energies: eV, of the isolated atoms: one number, one for each species, or either for each head.
        atomic_inter_scale, atomic_inter_shift: eV, what the readouts are multiplied by, and what is added, atom by
            atom; one number or one for each head.
        heads: names of the readouts, when a model was trained on several levels of theory.
        head: the one to use; the only one, or the one named "Default".
        num_elements: how many elements the normalisation counts; the species, or more or fewer for a model that was
            made for so many and then cut or extended.

    Raises:
        InputError: a value out of its range, a species, head or name that is not known.
    """

    EXACT: ClassVar[tuple[str, ...]] = ("atomic_energies", "scale", "shift")
    PER_SPECIES: ClassVar = {
        "embedding": 0,
        "interactions.*.skip.weights.*": 1,
        "products.*.symmetric_contraction.weights.*": 0,
        "atomic_energies": 1,
        "*.covalent_radii": 0,
    }
    GROUPS_SPECIES = True

    def __init__(
        self,
        species: Sequence[str],
        r_max: float = 5.0,
        num_bessel: int = 8,
        num_polynomial_cutoff: int = 5,
        max_ell: int = 3,
        hidden_irreps: str = "64x0e + 64x1o",
        correlation: int | Sequence[int] = 3,
        num_interactions: int = 2,
        interaction_cls_first: str = "RealAgnosticInteractionBlock",
        interaction_cls: str = "RealAgnosticResidualInteractionBlock",
        radial_MLP: Sequence[int] = (64, 64, 64),
        MLP_irreps: str = "16x0e",
        avg_num_neighbors: float = 1.0,
        distance_transform: str = "None",
        pair_repulsion: bool = False,
        pair_repulsion_cutoff: int | None = None,
        atomic_energies: PerSpecies | Mapping[str, PerSpecies] = 0.0,
        atomic_inter_scale: float | Sequence[float] = 1.0,
        atomic_inter_shift: float | Sequence[float] = 0.0,
        heads: Sequence[str] = ("Default",),
        head: str | None = None,
        num_elements: int | None = None,
    ) -> None:
        super().__init__()
        require("r_max", r_max, r_max > 0 and math.isfinite(r_max), "a positive length in Å")
        require("max_ell", max_ell, 0 <= max_ell <= MAX_L, f"from 0 to {MAX_L}")
        require("num_bessel", num_bessel, num_bessel >= 1, "at least 1")
        require("num_interactions", num_interactions, num_interactions >= 1, "at least 1")
        require("num_polynomial_cutoff", num_polynomial_cutoff, num_polynomial_cutoff >= 2, "at least 2")
        require("radial_MLP", radial_MLP, all(width >= 1 for width in radial_MLP), "positive widths")
        require(
            "avg_num_neighbors",
            avg_num_neighbors,
            avg_num_neighbors > 0 and math.isfinite(avg_num_neighbors),
            "positive",
        )
        correlations = [correlation] * num_interactions if isinstance(correlation, int) else list(correlation)
        require("correlation", correlation, min(correlations, default=0) >= 1, "at least 1")
        require(
            "correlation",
            correlation,
            len(correlations) == num_interactions,
            f"one number, or {num_interactions} of them",
        )
        for name, value in (
            ("interaction_cls_first", interaction_cls_first),
            ("interaction_cls", interaction_cls),
        ):
            require(name, value, value in INTERACTIONS, f"one of {', '.join(INTERACTIONS)}")
        require(
            "distance_transform",
            distance_transform,
            distance_transform in DISTANCE_TRANSFORMS,
            f"one of {', '.join(DISTANCE_TRANSFORMS)}",
        )
        hidden, channels = _hidden(hidden_irreps)
        readout_width = _readout_width(MLP_irreps)
        self.r_max = float(r_max)
        self.max_ell = max_ell
        self.num_polynomial_cutoff = num_polynomial_cutoff
        self.heads = tuple(heads)
        self.head = _index_of_head(self.heads, head)

        numbers = [NUMBER_OF[symbol] for symbol in species]
        radii = torch.tensor(covalent_radii[numbers], dtype=torch.float64)
        n = len(species)
        self.num_elements = n if num_elements is None else num_elements
        require("num_elements", num_elements, self.num_elements >= 1, "at least 1")
        self.embedding = nn.Parameter(torch.randn(n, channels))
        self.basis = BesselBasis(num_bessel)
        transform = DISTANCE_TRANSFORMS[distance_transform]
        self.distance_transform = None if transform is None else transform(radii)

        self.interactions, self.products, self.readouts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        scalars = Irreps([(channels, EVEN_SCALAR)])
        irreps_in = scalars
        for layer in range(num_interactions):
            irreps_out = hidden if layer < num_interactions - 1 else scalars
            of_A = _neighbourhood_irreps(max_ell, channels, pseudo=layer > 0 and ODD_SCALAR in hidden.irreps)
            residual, density = INTERACTIONS[interaction_cls_first if layer == 0 else interaction_cls]
            self.interactions.append(
                InteractionBlock(
                    irreps_in,
                    of_A,
                    irreps_out,
                    max_ell,
                    n,
                    [num_bessel, *radial_MLP],
                    float(avg_num_neighbors),
                    residual=residual,
                    density=density,
                    num_elements=self.num_elements,
                )
            )
            self.products.append(ProductBlock(of_A, irreps_out, correlations[layer], n))
            network = layer > 0 and layer == num_interactions - 1
            self.readouts.append(Readout(channels, readout_width if network else None, len(self.heads)))
            irreps_in = irreps_out

        self.atomic_energies = _energies_of_atoms(atomic_energies, species, self.heads)
        self.scale = _per_head("atomic_inter_scale", atomic_inter_scale, self.heads)
        self.shift = _per_head("atomic_inter_shift", atomic_inter_shift, self.heads)
        self.repulsion: CovalentZBL | None = None
        if pair_repulsion:
            reach = 2 * float(radii.max())
            require("r_max", r_max, r_max >= reach, f"at least {reach:g} Å, the reach of pair_repulsion here")
            self.repulsion = CovalentZBL(numbers, radii, pair_repulsion_cutoff or num_polynomial_cutoff)

    def fixed_hyperparameters(self) -> dict[str, Any]:
        """See `Architecture.fixed_hyperparameters`."""
        return {"num_elements": self.num_elements}

    def last_readout(self) -> nn.Module:
        """See `Architecture.last_readout`."""
        return self.readouts[-1]

    def forward(self, types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """Energies of the atoms, `[N]` float64, eV.

        Args:
            types: `[N]`, index of each atom's species.
            vectors: `[E, 3]` float64, from receiver to sender, Å.
            graph: the edges.
        """
        dtype = self.embedding.dtype
        lengths = vectors.norm(dim=1)  # [E]
        # MACE's edges point from sender to receiver.
        harmonics = spherical_harmonics(self.max_ell, -vectors / lengths.unsqueeze(1)).to(
            dtype
        )  # [E, (l+1)²]
        radial = self._radial(types, lengths, graph).to(dtype)  # [E, num_bessel]
        species_groups = graph.species_groups(types, len(self.embedding))

        h = self.embedding.index_select(0, types) / math.sqrt(self.num_elements)  # [N, C]
        energies = lengths.new_zeros(len(types))  # [N]
        for interaction, product, readout in zip(
            self.interactions, self.products, self.readouts, strict=True
        ):
            A, self_connection = interaction(h, species_groups, radial, harmonics, graph)
            h = product(A, self_connection, types)  # [N, hidden.dim]
            scalars = h[:, product.scalars]
            energies = energies + readout(scalars, self.head).double()
        if self.repulsion is not None:
            energies = energies + self.repulsion(types, lengths, graph)
        return (
            self.atomic_energies[self.head, types] + self.scale[self.head] * energies + self.shift[self.head]
        )

    def _radial(self, types: Tensor, lengths: Tensor, graph: AtomGraph) -> Tensor:
        """b_n(x) u(r), `[E, num_bessel]` float64; x is the distance or its transform, u always has the distance."""
        x = lengths
        if self.distance_transform is not None:
            x = self.distance_transform(lengths, types[graph.receiver], types[graph.sender])
        envelope = polynomial_cutoff(lengths / self.r_max, self.num_polynomial_cutoff)  # [E]
        scale = math.sqrt(2 / self.r_max) * math.pi / self.r_max
        return self.basis(x / self.r_max) * (scale * envelope).unsqueeze(1)


def _hidden(text: str) -> tuple[Irreps, int]:
    """The hidden irreps, sorted, and their one multiplicity."""
    hidden = Irreps(text).merged()
    channels = hidden.multiplicity(EVEN_SCALAR)
    require(
        "hidden_irreps",
        text,
        channels > 0 and {mul for mul, _ in hidden} == {channels},
        "irreps with scalars (0e), all with the same multiplicity, such as 64x0e + 64x1o",
    )
    return hidden, channels


def _readout_width(text: str) -> int:
    irreps = Irreps(text).merged()
    require("MLP_irreps", text, irreps.irreps == [EVEN_SCALAR], "scalars, such as 16x0e")
    return irreps.multiplicity(EVEN_SCALAR)


def _neighbourhood_irreps(max_ell: int, channels: int, *, pseudo: bool) -> Irreps:
    """The parity of the harmonics; both parities where pseudoscalars (0o) are among the features."""
    terms = [(channels, Irrep(l, p)) for l in range(max_ell + 1) for p in (-1, 1) if pseudo or p == (-1) ** l]
    return Irreps(terms).merged()


def _index_of_head(heads: Sequence[str], head: str | None) -> int:
    require("heads", list(heads), len(heads) > 0 and len(set(heads)) == len(heads), "names, each once")
    if head is not None:
        require("head", head, head in heads, f"one of {', '.join(heads)}")
        return list(heads).index(head)
    default = [index for index, name in enumerate(heads) if len(heads) == 1 or name.lower() == "default"]
    if not default:
        raise InputError(f"the model has the heads {', '.join(heads)}; say which to use with model.head")
    return default[0]


def _energies_of_atoms(
    value: PerSpecies | Mapping[str, PerSpecies], species: Sequence[str], heads: Sequence[str]
) -> nn.Parameter:
    """`[heads, n_species]` float64."""
    rows: list[Tensor] = []
    for head in heads:
        own = value[head] if isinstance(value, Mapping) and set(value) == set(heads) else value
        rows.append(per_species("atomic_energies", own, species).data)  # type: ignore[arg-type]
    return nn.Parameter(torch.stack(rows), requires_grad=False)


def _per_head(name: str, value: float | Sequence[float], heads: Sequence[str]) -> nn.Parameter:
    """`[heads]` float64."""
    values = [float(value)] * len(heads) if isinstance(value, int | float) else [float(v) for v in value]
    require(name, value, len(values) == len(heads), f"one number, or {len(heads)} of them")
    return nn.Parameter(torch.tensor(values, dtype=torch.float64), requires_grad=False)
