"""What the native engine is told of a MACE model.

MACE has the harmonics at the opposite vectors, the engine and the frozen form have not: that is the inverted structure,
and its energy is the same.
"""

from __future__ import annotations

import math
from typing import Any, cast

from torch import Tensor

from equipes.kernels import native
from equipes.kernels.native.recipes import Recipe, Source, _held, _hidden, _linear, _scaled, _terms
from equipes.models.mace import MACE, InteractionBlock, ProductBlock, Readout
from equipes.nn import SILU_SCALE, AgnesiTransform, CovalentZBL, ScalarMLP, SoftTransform


def recipe(model: MACE) -> Recipe | None:
    """None for a model with several mean numbers of neighbours, or a degree that the native code was not built for."""
    extension = native.module()
    interactions = cast("list[InteractionBlock]", list(model.interactions))
    products = cast("list[ProductBlock]", list(model.products))
    readouts = cast("list[Readout]", list(model.readouts))
    tables = [product.symmetric_contraction.table for product in products]
    if (
        extension is None
        or model.max_ell > extension.max_l
        or len({interaction.avg_num_neighbors for interaction in interactions}) > 1
        or any(len(table.degrees) > extension.max_degree for table in tables)
        or any(max(table.inputs, table.outputs) > extension.max_components for table in tables)
    ):
        return None
    n_species, channels = model.embedding.shape
    description = {
        "n_species": n_species,
        "n_features": channels,
        "species_aware": False,
        "l_max": model.max_ell,
        "r_max": model.r_max,
        "cutoff_power": model.num_polynomial_cutoff,
        "cutoff_on": 0.0,
        "cutoffs": [model.r_max] * n_species**2,
        "n_roots": len(model.basis.roots),
        "basis_factor": math.sqrt(2 / model.r_max) * math.pi / model.r_max,
        "distance_transform": _transform(model.distance_transform),
        "norms": [1 / interactions[0].avg_num_neighbors] * n_species,
        "gain": SILU_SCALE**2,
        "species_fan_in": float(model.num_elements),
        "layers": [_layer(*blocks) for blocks in zip(interactions, products, strict=True)],
        "readout_widths": [weight.shape[2] for weight in readouts[-1].weights if weight.dim() == 3],
        **_repulsion(model.repulsion),
    }
    sources = [_scaled(_held(model._parameters, "embedding"), 1 / math.sqrt(model.num_elements))]
    for k, (interaction, product) in enumerate(zip(interactions, products, strict=True)):
        contraction = product.symmetric_contraction
        sources += _linear(interaction.linear_up) + _network(interaction.radial_network)
        if interaction.density is not None:
            sources += [_held(interaction._parameters, "density")]
        sources += _linear(interaction.linear) + _linear(interaction.skip)
        sources += [_held(contraction.weights._parameters, name) for name in contraction.weight_names()]
        sources += _linear(product.linear)
        if k < len(interactions) - 1:
            sources += _readout(readouts[k], model.head)
    sources += _readout(readouts[-1], model.head)
    return Recipe(description, sources + _exact(model))


def _layer(interaction: InteractionBlock, product: ProductBlock) -> dict[str, Any]:
    form, contraction = interaction.form, product.symmetric_contraction
    names = contraction.weight_names()
    return {
        "irreps_in": _terms(form.irreps_in),
        "radial_widths": _hidden(interaction.radial_network),
        "paths": [[path.block, path.l2, path.out.l, path.out.p] for path in form.paths],
        "messages": _terms(form.irreps_out),
        "gate_in": _terms(contraction.irreps_in),
        "out": _terms(contraction.irreps_out),
        "contraction": contraction.table.native(),
        "contraction_rows": [contraction.weights[name].shape[1] for name in names],
        "residual": interaction.residual,
        # The senders were divided by this number, which a density stands in the place of.
        "density": 0.0 if interaction.density is None else interaction.avg_num_neighbors,
    }


def _transform(transform: Any) -> tuple[int, list[float], list[float]]:
    """Its kind, its constants q, p, a and alpha, and the radii."""
    if isinstance(transform, AgnesiTransform):
        constants = [transform.q.item(), transform.p.item(), transform.a.item(), 0.0]
        return 1, constants, transform.covalent_radii.tolist()
    if isinstance(transform, SoftTransform):
        return 2, [0.0, 0.0, 0.0, transform.alpha.item()], transform.covalent_radii.tolist()
    return 0, [0.0] * 4, []


def _repulsion(repulsion: CovalentZBL | None) -> dict[str, Any]:
    if repulsion is None:
        return {
            "repulsion_power": 0,
            "repulsion_charges": [],
            "repulsion_inverse_lengths": [],
            "repulsion_cutoffs": [],
            "repulsion_screening": [],
        }
    pairs = repulsion.pairs()
    return {
        "repulsion_power": repulsion.p,
        "repulsion_charges": pairs.charge_product.flatten().tolist(),
        "repulsion_inverse_lengths": pairs.inverse_length.flatten().tolist(),
        "repulsion_cutoffs": pairs.cutoffs.flatten().tolist(),
        "repulsion_screening": pairs.screening.flatten().tolist(),
    }


def _network(network: ScalarMLP) -> list[Source]:
    return [_held(network.weights._parameters, name) for name in network.weights._parameters]


def _readout(readout: Readout, head: int) -> list[Source]:
    """The matrices of one head."""
    parameters = readout.weights._parameters
    sources = [_of_head(_held(parameters, name), head) for name in parameters]
    if len(sources) > 1:
        # With several heads all of their hidden units count as fan-in.
        sources[-1] = _scaled(sources[-1], 1 / math.sqrt(len(readout.weights[-1])))
    return sources


def _of_head(source: Source, head: int) -> Source:
    return lambda: source()[head]


def _exact(model: MACE) -> list[Source]:
    scale, shift, alone = (_held(model._parameters, name) for name in ("scale", "shift", "atomic_energies"))
    head, n_species = model.head, len(model.embedding)

    def shifts() -> Tensor:
        return alone()[head] + shift()[head]

    return [lambda: scale()[head].expand(n_species), shifts, _held(model.basis._buffers, "roots")]
