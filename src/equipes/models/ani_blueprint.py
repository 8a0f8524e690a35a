"""An ANI as the frozen engine runs it: its symmetry functions as they are, networks of the species that will occur."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from equipes.models.ani import ANI, NOT_COLLINEAR
from equipes.models.invariant_blueprint import Network


def describe(
    model: ANI, types: Sequence[int], tolerance: float
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The structure and the arrays of a frozen potential; see `equipes.models.frozen.describe`.

    Args:
        model: in float64.
        types: indices of the species to describe.
        tolerance: of splines, of which there are none.
    """
    species = list(types)
    network = Network(model.r_max, model.scale_shift, species)
    kept = _functions_of(model, species)
    constants = {
        "r_max": model.r_max,
        "angular_r_max": model.angular_r_max,
        "radial_eta": float(model.radial_eta),
        "angular_eta": float(model.angular_eta),
        "zeta": float(model.zeta),
        "shrink": NOT_COLLINEAR,
    }
    h = network.symmetry_functions(
        len(kept),
        constants,
        radial_centres=model.radial_centres,
        shells=model.shells,
        angles=model.angles,
    )
    layers = list(zip(model.networks.weights, model.networks.biases, strict=True))
    for k, (weight, bias) in enumerate(layers):
        matrix = weight[species]  # [n_species, in, out]
        last = k == len(layers) - 1
        following = network.energy if last else network.node(matrix.shape[2])
        network.link(
            h,
            following,
            activation="none" if k == 0 else "silu",
            matrix=matrix[:, kept] if k == 0 else matrix,
            constants=bias[species],
        )
        h = following
    return network.describe(tolerance)


def _functions_of(model: ANI, species: list[int]) -> list[int]:
    """Which of the model's symmetry functions only see these species: of each, then of each pair."""
    n, n_radial = len(model.pair_index), len(model.radial_centres)
    n_angular = len(model.shells) * len(model.angles)
    kept = [t * n_radial + index for t in species for index in range(n_radial)]
    for low, high in combinations_with_replacement(species, 2):
        first = n * n_radial + int(model.pair_index[low, high]) * n_angular
        kept += range(first, first + n_angular)
    return kept
