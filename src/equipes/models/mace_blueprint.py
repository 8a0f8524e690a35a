"""A MACE model as the frozen engine runs it: matrices folded, radial functions as splines, couplings as polynomials.

x -> linear_1 -> h;  Σ_j w(r_ij) Y(r_ij) ⊗ h_j -> linear_2 -> z;  z / density -> mixing -> A;
A -> symmetric contraction -> linear_3, + self-connection of x -> x of the next, which is read out
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from equipes.errors import InputError
from equipes.irreps import Irrep
from equipes.kernels import native
from equipes.models.mace import MACE, InteractionBlock, ProductBlock, Readout
from equipes.models.splines import choose_knots, polynomials
from equipes.nn import SILU_SCALE, CovalentZBL, Linear, SpeciesLinear, polynomial_cutoff

EVEN = Irrep(0, 1)
# Splines of a model with a distance transform are tables of pairs of species: more than this is too much, bytes.
MAX_TABLES = 8e9

Radial = Callable[[Tensor], Tensor]


def can_describe(model: MACE) -> bool:
    """Whether the native code was built for the model's degrees."""
    extension = native.module()
    return extension is not None and all(
        max(table.inputs, table.outputs) <= extension.max_components
        and len(table.degrees) <= extension.max_degree
        for table in (product.symmetric_contraction.table for product in _products(model))
    )


def describe(
    model: MACE, types: Sequence[int], tolerance: float
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The structure and the arrays of a frozen potential; see `equipes.models.frozen.describe`.

    Args:
        model: in float64.
        types: indices of the species to describe.
        tolerance: of the splines, see `choose_knots`.

    Raises:
        InputError: a tolerance out of reach, or tables of more pairs of species than fit into memory.
    """
    species = list(types)
    n = len(species)
    by_pair = model.distance_transform is not None
    pairs = [(i, j) for i in range(n) for j in range(n)] if by_pair else [(0, 0)]
    layers = list(zip(_interactions(model), _products(model), _readouts(model), strict=True))
    functions: dict[tuple[int, int, int], Radial] = {}
    densities: dict[tuple[int, int, int], Radial] = {}
    for i, j in pairs:
        basis = _radial_basis(model, species[i], species[j])
        for k, (interaction, _, _) in enumerate(layers):
            functions[k, i, j] = _radial(interaction, basis)
            if interaction.density is not None:
                densities[k, i, j] = _density(interaction.density, basis)
    # Both orders of a pair have the same functions.
    distinct = [f for group in (functions, densities) for (_, i, j), f in group.items() if i <= j]
    knots = choose_knots(distinct, (), tolerance)
    _check_size(model, len(pairs) * (len(knots) - 1), n)

    with torch.no_grad():
        features = model.embedding[species] / math.sqrt(model.num_elements)  # [n, C]
        head = model.head
        arrays: dict[str, Tensor] = {
            "knots": knots,
            "cutoffs": torch.full((n, n), model.r_max, dtype=torch.float64),
            "scales": model.scale[head].expand(n),
            "shifts": model.atomic_energies[head, species] + model.shift[head],
        }
        power = 0
        if model.repulsion is not None:
            power = model.repulsion.p
            arrays |= _repulsion(model.repulsion, species, model.scale[head])
        described = []
        for k, (interaction, product, readout) in enumerate(layers):
            splines = torch.stack([polynomials(functions[k, i, j], knots[:-1], knots[1:]) for i, j in pairs])
            structure, own = _layer(k, interaction, product, features, species, splines, by_pair=by_pair)
            if interaction.density is not None:
                own["density"] = torch.cat(
                    [polynomials(densities[k, i, j], knots[:-1], knots[1:])[..., 0] for i, j in pairs]
                )
            if k < len(layers) - 1:
                own["readout"] = readout.weights[0][head] / math.sqrt(readout.weights[0].shape[1])
            arrays |= {f"layers.{k}.{name}": array for name, array in own.items()}
            described.append(structure)
        for k, matrix in enumerate(_last_readout(layers[-1][2], head)):
            arrays[f"readout.{k}.{k + 1}"] = matrix.unsqueeze(0)
    whole = {"l_max": model.max_ell, "repulsion_power": power, "by_pair": by_pair, "layers": described}
    return whole, {name: tensor.detach().double().contiguous().numpy() for name, tensor in arrays.items()}


def _layer(
    k: int,
    interaction: InteractionBlock,
    product: ProductBlock,
    features: Tensor,
    species: list[int],
    splines: Tensor,
    *,
    by_pair: bool,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Splines are `[pairs, intervals, coefficients, weights]`."""
    form, contraction = interaction.form, product.symmetric_contraction
    of_A, out = contraction.irreps_in, contraction.irreps_out
    n, channels = features.shape
    neighbours = 1.0 if interaction.density is not None else interaction.avg_num_neighbors
    linear_2 = {irrep: matrix / neighbours for irrep, matrix in _matrices(interaction.linear).items()}
    skip = {irrep: matrices[species] for irrep, matrices in _species_matrices(interaction.skip).items()}
    arrays: dict[str, Tensor] = {}
    constants = features.new_zeros(n, channels)
    reached: list[int] = []
    if k == 0:
        h = features @ interaction.linear_up.matrix(str(EVEN))  # [n, C]
        degrees = {path.l2: index for index, path in enumerate(form.paths)}
        reached = [-1] * (form.l_max + 1)
        parts = []
        for l2 in sorted(degrees):
            path = form.paths[degrees[l2]]
            reached[l2] = of_A.irreps.index(path.out)
            part = splines[..., degrees[l2] * channels : (degrees[l2] + 1) * channels]
            folded = h.unsqueeze(2) * linear_2[path.out]  # [n, u, w]
            if by_pair:
                own = part.view(n, n, *part.shape[1:])
                parts.append(torch.einsum("ijkcu,juw->ijkcw", own, folded).flatten(0, 2))
            else:
                parts.append(torch.einsum("kcu,suw->skcw", part[0], folded).flatten(0, 1))
        arrays["splines"] = torch.cat(parts, dim=2)
        if interaction.residual:
            constants = torch.einsum("su,suw->sw", features, skip[EVEN])
    else:
        blocks = form.irreps_in.irreps
        arrays["splines"] = splines.flatten(0, 1)
        for irrep, matrix in _matrices(interaction.linear_up).items():
            arrays[f"linear_1.{blocks.index(irrep)}.{blocks.index(irrep)}"] = matrix.unsqueeze(0)
        for irrep, matrix in linear_2.items():
            arrays[f"linear_2.0.{of_A.irreps.index(irrep)}"] = matrix.unsqueeze(0)
        if interaction.residual:
            for irrep, matrices in skip.items():
                arrays[f"self_connection.{blocks.index(irrep)}.{out.irreps.index(irrep)}"] = matrices
    if not interaction.residual:
        for b, irrep in enumerate(of_A.irreps):
            arrays[f"mixing.{b}.{b}"] = skip[irrep]
    for b, irrep in enumerate(out.irreps):
        arrays[f"linear_3.{b}.{b}"] = product.linear.matrix(str(irrep)).unsqueeze(0)
    table = contraction.table
    couplings = torch.as_tensor(table.couplings, dtype=torch.float64)
    arrays["constants"] = constants
    arrays["coefficients"] = couplings @ contraction.weight_rows()[species]  # [n, coefficients, C]
    structure = {
        "irreps_in": str(form.irreps_in),
        "gate_in": str(of_A),
        "scalars": "",
        "gated": "",
        "out": str(out),
        "paths": [[path.block, path.l2, path.out.l, path.out.p] for path in form.paths],
        "reached": reached,
        "contraction": {
            "inputs": table.inputs,
            "outputs": table.outputs,
            "degrees": [[factors.ravel().tolist(), begin.tolist()] for factors, begin in table.degrees],
            "output": table.output.tolist(),
        },
    }
    return structure, arrays


def _radial_basis(model: MACE, receiver: int, sender: int) -> Radial:
    """Reduced distances `[R]` -> `[R, num_bessel]`."""

    def basis(t: Tensor) -> Tensor:
        lengths = t * model.r_max
        x = lengths
        if model.distance_transform is not None:
            ends = [torch.full(t.shape, end, dtype=torch.int64) for end in (receiver, sender)]
            x = model.distance_transform(lengths, *ends)
        envelope = polynomial_cutoff(t, model.num_polynomial_cutoff)
        scale = math.sqrt(2 / model.r_max) * math.pi / model.r_max
        result: Tensor = model.basis(x / model.r_max) * (scale * envelope).unsqueeze(1)
        return result

    return basis


def _radial(interaction: InteractionBlock, basis: Radial) -> Radial:
    return lambda t: cast("Tensor", interaction.radial_network(basis(t)))


def _density(weights: Tensor, basis: Radial) -> Radial:
    return lambda t: torch.tanh((basis(t) @ (weights / math.sqrt(len(weights)))) ** 2).unsqueeze(1)


def _repulsion(repulsion: CovalentZBL, species: list[int], scale: Tensor) -> dict[str, Tensor]:
    pairs = repulsion.pairs()
    return {
        "repulsion_charges": scale * pairs.charge_product[species][:, species],
        "repulsion_inverse_lengths": pairs.inverse_length[species][:, species],
        "repulsion_cutoffs": pairs.cutoffs[species][:, species],
        "repulsion_screening": pairs.screening,
    }


def _last_readout(readout: Readout, head: int) -> list[Tensor]:
    """Matrices with SiLU between."""
    matrices = [weight[head] / math.sqrt(weight.shape[1]) for weight in readout.weights]
    if len(matrices) > 1:
        matrices[-1] = SILU_SCALE * matrices[-1] / math.sqrt(len(readout.weights[-1]))
    matrices[-1] = matrices[-1].unsqueeze(1)
    return matrices


def _matrices(linear: Linear) -> dict[Irrep, Tensor]:
    return {
        irrep: linear.matrix(str(irrep)) for irrep in linear.irreps_out.irreps if str(irrep) in linear.weights
    }


def _species_matrices(linear: SpeciesLinear) -> dict[Irrep, Tensor]:
    """`[all species, in, out]` by irrep."""
    return {
        irrep: linear.weights[str(irrep)].transpose(0, 1)
        / math.sqrt(linear.weights[str(irrep)].shape[0] * linear.fan_in)
        for irrep in linear.irreps_out.irreps
        if str(irrep) in linear.weights
    }


def _check_size(model: MACE, rows: int, n_species: int) -> None:
    weights = sum(interaction.form.n_weights for interaction in _interactions(model))
    if rows * weights * 6 * 8 > MAX_TABLES:
        raise InputError(
            f"the radial functions of this model differ from pair to pair, and those of {n_species} species do not fit "
            "into memory; freeze it for the species that will occur (species=... or --species)"
        )


def _interactions(model: MACE) -> list[InteractionBlock]:
    return cast("list[InteractionBlock]", list(model.interactions))


def _products(model: MACE) -> list[ProductBlock]:
    return cast("list[ProductBlock]", list(model.products))


def _readouts(model: MACE) -> list[Readout]:
    return cast("list[Readout]", list(model.readouts))
