"""SevenNet: Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024), doi:10.1021/acs.jctc.4c00190."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equipes.errors import InputError
from equipes.graph import AtomGraph
from equipes.harmonics import MAX_L, spherical_harmonics
from equipes.irreps import Irrep, Irreps
from equipes.kernels import MessagePassingForm, message_passing
from equipes.models.arguments import PerSpecies, per_species, require
from equipes.models.potential import Architecture
from equipes.nn import SILU_SCALE, BesselBasis, Gate, Linear, ScalarMLP, polynomial_cutoff, xplor_cutoff

PerModality = PerSpecies | Mapping[str, PerSpecies]


class InteractionBlock(nn.Module):
    """One layer: x_i ← gate( S x_i  +  W_2 Σ_j R(r_ij) Y(r_ij) ⊗ W_1 x_j / d ).

    Unlike NequIP's, the self-connection S knows nothing of the species, and all irreps count as even.
    """

    def __init__(
        self,
        irreps_in: Irreps,
        hidden: Irreps,
        l_max: int,
        radial_layers: list[int],
        *,
        denominator: float,
        n_modalities: int = 0,
    ) -> None:
        super().__init__()
        self.gate = Gate(
            scalars=Irreps(term for term in hidden if term[1].l == 0),
            gated=Irreps(term for term in hidden if term[1].l > 0),
        )
        self.form = MessagePassingForm(irreps_in, l_max, self.gate.irreps_in.irreps, parity=1)
        self.linear_1 = Linear(irreps_in, irreps_in, n_modalities)
        self.radial_network = ScalarMLP(
            radial_layers[0], radial_layers[1:], self.form.n_weights, activation_scale=SILU_SCALE
        )
        self.denominator = denominator
        self.linear_2 = Linear(self.form.irreps_out, self.gate.irreps_in, n_modalities)
        self.self_connection = Linear(irreps_in, self.gate.irreps_in)
        self.irreps_out = self.gate.irreps_out

    def forward(
        self, x: Tensor, radial: Tensor, harmonics: Tensor, graph: AtomGraph, modality: int | None
    ) -> Tensor:
        """`[N, irreps_in.dim]` -> `[N, irreps_out.dim]`; `radial` `[E, n]`, `harmonics` `[E, (l_max+1)²]`."""
        y = self.linear_1(x, modality)  # [N, irreps_in.dim]
        weights = self.radial_network(radial)  # [E, n_weights]
        messages = message_passing(self.form, y, harmonics, weights, graph)  # [N, form.irreps_out.dim]
        z = self.linear_2(messages / self.denominator, modality)  # [N, gate.irreps_in.dim]
        return self.gate(z + self.self_connection(x))


class SevenNet(Architecture):
    """Energies of atoms from messages that turn with the atoms: NequIP made lean for many elements.

    Features and harmonics are all called even, so that products such as the cross product of two vectors take part. The
    energy is the same for a turned structure, but not exactly for its mirror image.

    Several modalities (kinds of reference calculation, PBE and r²SCAN say) may share the weights: scalars learn of the
    modality in every layer, and reference energies are its own (J. Kim et al., J. Am. Chem. Soc. 147, 1042 (2025),
    doi:10.1021/jacs.4c14455). A model speaks for one of them at a time.

    Args:
        species: chemical symbols that the model knows.
        r_max: cutoff, Å.
        num_layers: interaction blocks.
        l_max: highest degree of features and harmonics.
        num_features: channels, one number or one for each l = 0..l_max.
        num_bessels: size of the radial basis.
        bessel_trainable: train its roots.
        xplor_on: where the XPLOR cutoff function begins to decay, Å; without, the cutoff function is the polynomial.
        polynomial_cutoff_p: power of the polynomial cutoff function.
        normalize_harmonics: harmonics of directions; without, of edge vectors in Å, so that Y_l grows as r^l.
        radial_mlp_depth, radial_mlp_width: hidden layers of the radial networks.
        readout_width: channels between the two linear layers of the readout; half of the scalars by default.
        denominator: what sums over neighbours are divided by, one number or one for each layer.
        embedding_fan_in: the number F of species in the embedding's factor 1/√F; those that the model knows by default.
        modalities: names of the kinds of reference calculation, if there are several.
        modality: the one that the model speaks for.
        per_type_energy_scales, per_type_energy_shifts: eV, one number or one for each species; or that for each
            modality.
        per_type_energy_scales_trainable, per_type_energy_shifts_trainable: train them.

    Raises:
        InputError: a value out of its range, a species, modality or key that is not known.
    """

    EXACT = ("scales", "shifts", "basis.roots")
    PER_SPECIES: ClassVar = {"embedding": 0, "scales": -1, "shifts": -1}

    def __init__(
        self,
        species: Sequence[str],
        r_max: float = 5.0,
        num_layers: int = 5,
        l_max: int = 2,
        num_features: int | Sequence[int] = 32,
        num_bessels: int = 8,
        bessel_trainable: bool = True,
        xplor_on: float | None = None,
        polynomial_cutoff_p: int = 6,
        normalize_harmonics: bool = True,
        radial_mlp_depth: int = 2,
        radial_mlp_width: int = 64,
        readout_width: int | None = None,
        denominator: float | Sequence[float] = 1.0,
        embedding_fan_in: int | None = None,
        modalities: Sequence[str] = (),
        modality: str | None = None,
        per_type_energy_scales: PerModality = 1.0,
        per_type_energy_shifts: PerModality = 0.0,
        per_type_energy_scales_trainable: bool = False,
        per_type_energy_shifts_trainable: bool = False,
    ) -> None:
        super().__init__()
        channels = [num_features] * (l_max + 1) if isinstance(num_features, int) else list(num_features)
        require("r_max", r_max, r_max > 0 and math.isfinite(r_max), "a positive length in Å")
        require("l_max", l_max, 0 <= l_max <= MAX_L, f"from 0 to {MAX_L}")
        require(
            "num_features",
            num_features,
            len(channels) == l_max + 1,
            f"one number, or {l_max + 1} (l = 0..l_max)",
        )
        require("num_features", num_features, min(channels, default=0) > 0, "positive")
        width = readout_width or max(1, channels[0] // 2)
        fan_in = embedding_fan_in or len(species)
        for name, value, least in (
            ("num_layers", num_layers, 1),
            ("num_bessels", num_bessels, 1),
            ("radial_mlp_depth", radial_mlp_depth, 0),
            ("radial_mlp_width", radial_mlp_width, 1),
            ("readout_width", width, 1),
            ("embedding_fan_in", fan_in, 1),
            ("polynomial_cutoff_p", polynomial_cutoff_p, 2),
        ):
            require(name, value, value >= least, f"at least {least}")
        require(
            "xplor_on", xplor_on, xplor_on is None or 0 < xplor_on < r_max, f"between 0 and r_max = {r_max} Å"
        )
        denominators = (
            [denominator] * num_layers if isinstance(denominator, int | float) else list(denominator)
        )
        require("denominator", denominator, len(denominators) == num_layers, f"one number, or {num_layers}")
        require("denominator", denominator, min(denominators) > 0, "positive")
        require(
            "modalities",
            modalities,
            len(set(modalities)) == len(modalities) != 1,
            "two different names, or more",
        )
        if modality is not None and modality not in modalities:
            known = f"it knows {', '.join(modalities)}" if modalities else "it has only one"
            raise InputError(f"the model has no modality '{modality}'; {known}")
        self.r_max = float(r_max)
        self.l_max = l_max
        self.xplor_on = xplor_on
        self.polynomial_cutoff_p = polynomial_cutoff_p
        self.normalize_harmonics = normalize_harmonics
        self.embedding_fan_in = fan_in
        self.modalities = tuple(modalities)
        self.modality = None if modality is None else self.modalities.index(modality)

        n_modalities = len(self.modalities)
        self.embedding = nn.Parameter(torch.randn(len(species), channels[0]))
        self.basis = BesselBasis(num_bessels, trainable=bessel_trainable)
        scalars = Irreps([(channels[0], Irrep(0, 1))])
        hidden = Irreps((mul, Irrep(l, 1)) for l, mul in enumerate(channels))
        self.layers = nn.ModuleList()
        irreps = scalars
        for layer in range(num_layers):
            block = InteractionBlock(
                irreps,
                hidden if layer < num_layers - 1 else scalars,
                l_max,
                [num_bessels, *[radial_mlp_width] * radial_mlp_depth],
                denominator=float(denominators[layer]),
                n_modalities=n_modalities,
            )
            self.layers.append(block)
            irreps = block.irreps_out
        between = Irreps([(width, Irrep(0, 1))])
        self.readout = nn.ModuleList(
            [Linear(scalars, between, n_modalities), Linear(between, Irreps([(1, Irrep(0, 1))]))]
        )
        self.scales = _per_modality(
            "per_type_energy_scales", per_type_energy_scales, species, self.modalities
        )
        self.shifts = _per_modality(
            "per_type_energy_shifts", per_type_energy_shifts, species, self.modalities
        )
        self.scales.requires_grad_(per_type_energy_scales_trainable)
        self.shifts.requires_grad_(per_type_energy_shifts_trainable)

    def last_readout(self) -> nn.Module:
        """See `Architecture.last_readout`."""
        return self.readout[0]

    def forward(self, types: Tensor, vectors: Tensor, graph: AtomGraph) -> Tensor:
        """Energies of the atoms, `[N]` float64, eV.

        Args:
            types: `[N]`, index of each atom's species.
            vectors: `[E, 3]` float64, from receiver to sender, Å.
            graph: the edges.

        Raises:
            InputError: the model has modalities, and none was chosen.
        """
        modality = self.chosen_modality()
        dtype = self.embedding.dtype
        lengths = vectors.norm(dim=1)  # [E]
        directions = vectors / lengths.unsqueeze(1) if self.normalize_harmonics else vectors
        harmonics = spherical_harmonics(self.l_max, directions).to(dtype)  # [E, (l_max+1)²]
        radial = self.basis(lengths / self.r_max) * self.envelope(lengths).unsqueeze(1)
        radial = radial.to(dtype)  # [E, num_bessels]

        x = self.embedding.index_select(0, types) / math.sqrt(self.embedding_fan_in)  # [N, num_features[0]]
        for layer in self.layers:
            x = layer(x, radial, harmonics, graph, modality)
        first, second = self.readout
        energies = second(first(x, modality)).squeeze(1).double()  # [N]
        scales, shifts = (own if own.dim() == 1 else own[modality] for own in (self.scales, self.shifts))
        return energies * scales.index_select(0, types) + shifts.index_select(0, types)

    def envelope(self, lengths: Tensor) -> Tensor:
        """`[E]`: the cutoff function times 2π/r_max², the factor of the basis that the published weights carry."""
        if self.xplor_on is None:
            cutoff = polynomial_cutoff(lengths / self.r_max, self.polynomial_cutoff_p)
        else:
            cutoff = xplor_cutoff(lengths, self.xplor_on, self.r_max)
        return 2 * math.pi / self.r_max**2 * cutoff

    def chosen_modality(self) -> int | None:
        """Index of the modality that the model speaks for; None if it has but one.

        Raises:
            InputError: there are several, and none was chosen.
        """
        if self.modalities and self.modality is None:
            raise InputError(
                f"the model has the modalities {', '.join(self.modalities)}; choose one with --modal (modal=…)"
            )
        return self.modality

    def fixed_hyperparameters(self) -> dict[str, Any]:
        """See `Architecture.fixed_hyperparameters`."""
        return {"embedding_fan_in": self.embedding_fan_in}


def _per_modality(
    name: str, value: PerModality, species: Sequence[str], modalities: Sequence[str]
) -> nn.Parameter:
    """`[n_species]`, or `[n_modalities, n_species]` where each modality has its own; float64."""
    if isinstance(value, Mapping) and modalities and set(value) == set(modalities):
        rows = [per_species(f"{name}.{modality}", value[modality], species) for modality in modalities]
        return nn.Parameter(torch.stack([row.detach() for row in rows]))
    return per_species(name, value, species)  # type: ignore[arg-type]
