"""What a model computes, with everything folded that can be: one description for all NequIP-type architectures.

All of them are lists of the same layers,

    x -> linear_1 -> h;  Σ_j w(r_ij) Y(r_ij) ⊗ h_j -> linear_2, + self-connection of x -> z -> gate -> x of the next,

and differ in what the matrices and radial weights depend on. Here normalisations and species are inside the matrices,
and what cannot reach the energy is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.irreps import Irrep, Irreps
from equipes.kernels.form import Path
from equipes.models import nequip, sevennet
from equipes.models.nequip import NequIP
from equipes.models.potential import Architecture
from equipes.models.sevennet import SevenNet
from equipes.nn import Linear, ScalarMLP, SpeciesLinear, polynomial_cutoff

EVEN = Irrep(0, 1)


@dataclass(frozen=True)
class Layer:
    """One layer; matrices are `[1 or n_species, in, out]`, float64.

    Attributes:
        irreps_in: of x.
        paths: couplings of blocks of h with harmonics.
        radial: reduced distances `[R]` -> weights `[R, channels of all paths]`.
        linear_1: by block of x.
        linear_2: `[1, channels of all paths to the irrep, out]` by irrep of z.
        self_connection: by irrep of x and z.
        scalars, gated: what the gate puts out; z has an even scalar for each channel of `gated`, after its own.
        constants: `[n_species, even scalars of z]`, added to z.
        hidden_constants: `[even scalars of h]`, added to h.
    """

    irreps_in: Irreps
    paths: tuple[Path, ...]
    radial: Callable[[Tensor], Tensor]
    linear_1: dict[Irrep, Tensor]
    linear_2: dict[Irrep, Tensor]
    self_connection: dict[Irrep, Tensor]
    scalars: Irreps
    gated: Irreps
    constants: Tensor
    hidden_constants: Tensor | None = None

    @property
    def gate_in(self) -> Irreps:
        """Of z."""
        gates = Irreps((mul, EVEN) for mul, _ in self.gated)
        return Irreps([*self.scalars, *gates, *self.gated]).merged()


@dataclass(frozen=True)
class Blueprint:
    """A model for some species.

    Attributes:
        l_max: of the harmonics.
        cutoffs: `[n_species, n_species]` Å by receiver and sender.
        kinks: reduced distances where radial functions are not smooth.
        features: `[n_species, channels]`, x of the first layer.
        layers: at least one.
        readout: matrices with SiLU between.
        scales, shifts: `[n_species]` eV.
        repulsion: power, charge products and inverse lengths of ZBL by species of receiver and sender.
    """

    l_max: int
    cutoffs: Tensor
    kinks: tuple[float, ...]
    features: Tensor
    layers: tuple[Layer, ...]
    readout: tuple[Tensor, ...]
    scales: Tensor
    shifts: Tensor
    repulsion: tuple[int, Tensor, Tensor] | None = None


def blueprint(model: Architecture, types: Sequence[int]) -> Blueprint:
    """The folded description of a model in float64.

    Args:
        model: an architecture that this module knows, in float64.
        types: indices of the species to describe.

    Raises:
        InputError: another architecture.
    """
    describe = _DESCRIPTIONS.get(type(model).__name__)
    if describe is None:
        raise InputError(
            f"a {type(model).__name__} cannot be frozen; use the exact model (exact=True or --exact)"
        )
    with torch.no_grad():
        return _prune(describe(model, list(types)))


def can_describe(model: Architecture) -> bool:
    """Whether `blueprint` knows the architecture."""
    return type(model).__name__ in _DESCRIPTIONS


def _nequip(model: NequIP, types: list[int]) -> Blueprint:
    embedding = model.embedding[types]
    norms = model.norms[types]
    same_norm = bool((norms == norms[0]).all())

    def radial_basis(x: Tensor) -> Tensor:
        envelope = polynomial_cutoff(x, model.polynomial_cutoff_p)
        return model.basis(x) * (2 * math.pi / model.r_max**2 * envelope).unsqueeze(1)

    layers = []
    for block in cast("list[nequip.InteractionBlock]", list(model.layers)):
        senders = (norms[:1] if same_norm else norms).view(-1, 1, 1)
        connection = block.self_connection
        layers.append(
            Layer(
                irreps_in=block.form.irreps_in,
                paths=block.form.paths,
                radial=_composed(block.radial_network, radial_basis),
                linear_1={irrep: matrix * senders for irrep, matrix in _matrices(block.linear_1).items()},
                linear_2=_matrices(block.linear_2),
                self_connection={} if connection is None else _species_matrices(connection, embedding),
                scalars=block.gate.scalars,
                gated=block.gate.gated,
                constants=embedding.new_zeros(len(types), block.gate.irreps_in.multiplicity(EVEN)),
            )
        )
    cutoffs = model.cutoffs
    if cutoffs is None:
        cutoffs = embedding.new_full((len(types), len(types)), model.r_max)
    else:
        cutoffs = cutoffs[types][:, types]
    zbl = model.zbl
    repulsion = None
    if zbl is not None:
        repulsion = (zbl.p, zbl.charge_product[types][:, types], zbl.inverse_length[types][:, types])
    return Blueprint(
        l_max=model.l_max,
        cutoffs=cutoffs,
        kinks=(),
        features=embedding,
        layers=tuple(layers),
        readout=tuple(_network_matrices(model.readout)),
        scales=model.scales[types],
        shifts=model.shifts[types],
        repulsion=repulsion,
    )


def _sevennet(model: SevenNet, types: list[int]) -> Blueprint:
    modality = model.chosen_modality()
    features = model.embedding[types] / math.sqrt(model.embedding_fan_in)

    def radial_basis(x: Tensor) -> Tensor:
        return model.basis(x) * model.envelope(x * model.r_max).unsqueeze(1)

    layers = []
    for block in cast("list[sevennet.InteractionBlock]", list(model.layers)):
        form = block.form
        radial = _composed(block.radial_network, radial_basis)
        if not model.normalize_harmonics:
            # Y_l grows as r^l: the weights of a path take this over, and the harmonics are those of directions.
            degrees = [path.l2 for path in form.paths for _ in range(form.irreps_in[path.block][0])]
            radial = _times_powers(radial, torch.tensor(degrees, dtype=torch.float64), model.r_max)
        constants = features.new_zeros(len(types), block.gate.irreps_in.multiplicity(EVEN))
        hidden_constants = None
        if block.linear_1.n_modalities and modality is not None:
            hidden_constants = block.linear_1.bias(modality)
            constants = constants + block.linear_2.bias(modality)
        layers.append(
            Layer(
                irreps_in=form.irreps_in,
                paths=form.paths,
                radial=radial,
                linear_1=_matrices(block.linear_1),
                linear_2={
                    irrep: matrix / block.denominator for irrep, matrix in _matrices(block.linear_2).items()
                },
                self_connection=_matrices(block.self_connection),
                scalars=block.gate.scalars,
                gated=block.gate.gated,
                constants=constants,
                hidden_constants=hidden_constants,
            )
        )
    first, second = cast("list[Linear]", list(model.readout))
    scales, shifts = (own if own.dim() == 1 else own[modality] for own in (model.scales, model.shifts))
    scales, shifts = scales[types], shifts[types]
    last = second.matrix(str(EVEN))  # [width, 1]
    if first.n_modalities and modality is not None:
        shifts = shifts + scales * (first.bias(modality) @ last)
    return Blueprint(
        l_max=model.l_max,
        cutoffs=features.new_full((len(types), len(types)), model.r_max),
        kinks=() if model.xplor_on is None else (model.xplor_on / model.r_max,),
        features=features,
        layers=tuple(layers),
        readout=(first.matrix(str(EVEN)) @ last,),
        scales=scales,
        shifts=shifts,
    )


_DESCRIPTIONS: dict[str, Callable[..., Blueprint]] = {"NequIP": _nequip, "SevenNet": _sevennet}


def _times_powers(
    function: Callable[[Tensor], Tensor], powers: Tensor, unit: float
) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x) * (x.unsqueeze(1) * unit) ** powers


def _composed(
    outer: Callable[[Tensor], Tensor], inner: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    return lambda x: outer(inner(x))


def _matrices(linear: Linear) -> dict[Irrep, Tensor]:
    """`[1, in, out]` by irrep, with the normalisation."""
    return {
        irrep: linear.matrix(str(irrep)).unsqueeze(0)
        for irrep in linear.irreps_out.irreps
        if str(irrep) in linear.weights
    }


def _species_matrices(linear: SpeciesLinear, embedding: Tensor) -> dict[Irrep, Tensor]:
    """`[n_species, in, out]` by irrep."""
    matrices = {}
    for irrep in linear.irreps_out.irreps:
        if str(irrep) in linear.weights:
            weight = linear.weights[str(irrep)]
            n_in, n_attributes, _ = weight.shape
            matrices[irrep] = torch.einsum("sv,uvw->suw", embedding, weight) / math.sqrt(n_in * n_attributes)
    return matrices


def _network_matrices(network: ScalarMLP) -> list[Tensor]:
    return [
        weight * ((network.activation_scale if k else 1.0) / math.sqrt(weight.shape[0]))
        for k, weight in enumerate(network.weights)
    ]


def _prune(whole: Blueprint) -> Blueprint:
    """The same function without blocks, paths and gates that cannot reach the energy.

    Of the last layer only even scalars are read; from there one layer's living input is what the one before it must
    give. In a NequIP with parity this takes nearly half of the last layers away.
    """
    layers: list[Layer] = []
    wanted = {EVEN}
    for layer in reversed(whole.layers):
        layers.append(_living(layer, wanted))
        wanted = set(layers[-1].irreps_in.irreps)
    return replace(whole, layers=tuple(reversed(layers)))


def _living(layer: Layer, wanted: set[Irrep]) -> Layer:
    scalars = Irreps(term for term in layer.scalars if term[1] in wanted)
    gated = Irreps(term for term in layer.gated if term[1] in wanted)
    needed = {EVEN, *scalars.irreps, *gated.irreps}
    # Of z's even scalars: its own, if they are wanted, and the gates of what is.
    columns: list[int] = []
    start = layer.scalars.multiplicity(EVEN)
    if EVEN in wanted:
        columns += range(start)
    for mul, irrep in layer.gated:
        if irrep in wanted:
            columns += range(start, start + mul)
        start += mul

    def columns_of(matrices: dict[Irrep, Tensor]) -> dict[Irrep, Tensor]:
        return {
            irrep: matrix[:, :, columns] if irrep == EVEN else matrix
            for irrep, matrix in matrices.items()
            if irrep in needed
        }

    self_connection = columns_of(layer.self_connection)
    living = [path.out in needed for path in layer.paths]
    sources = {
        layer.irreps_in.irreps[path.block] for path, lives in zip(layer.paths, living, strict=True) if lives
    }
    irreps_in = Irreps(term for term in layer.irreps_in if term[1] in sources | set(self_connection))
    weights: list[int] = []
    start = 0
    for path, lives in zip(layer.paths, living, strict=True):
        mul = layer.irreps_in[path.block][0]
        if lives:
            weights += range(start, start + mul)
        start += mul
    radial = layer.radial
    return replace(
        layer,
        irreps_in=irreps_in,
        paths=tuple(
            replace(path, block=irreps_in.irreps.index(layer.irreps_in.irreps[path.block]))
            for path, lives in zip(layer.paths, living, strict=True)
            if lives
        ),
        radial=radial if len(weights) == start else lambda x: radial(x)[:, weights],
        linear_1={irrep: matrix for irrep, matrix in layer.linear_1.items() if irrep in sources},
        linear_2=columns_of(layer.linear_2),
        self_connection=self_connection,
        scalars=scalars,
        gated=gated,
        constants=layer.constants[:, columns],
        hidden_constants=layer.hidden_constants if EVEN in sources else None,
    )
