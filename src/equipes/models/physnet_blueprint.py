"""A PhysNet as the frozen engine runs it: the attention masks become splines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from equipes.models.invariant import shifted_softplus
from equipes.models.invariant_blueprint import Network
from equipes.models.physnet import Module, PhysNet, Residual
from equipes.models.splines import Function


def describe(
    model: PhysNet, types: Sequence[int], tolerance: float
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The structure and the arrays of a frozen potential; see `equipes.models.frozen.describe`.

    Args:
        model: in float64.
        types: indices of the species to describe.
        tolerance: of the splines, see `choose_knots`.

    Raises:
        InputError: a tolerance out of reach.
    """
    network = Network(model.r_max, model.scale_shift, types)
    start = model.embedding[list(types)]  # [n_species, F]
    width = start.shape[1]
    x = None  # at first the features are those of the species
    for block in cast("list[Module]", list(model.blocks)):
        mask, following = _mask(model, block), network.node(width)
        if x is None:
            activated = shifted_softplus(start)
            v = network.messages(mask, shifted_softplus(block.dense_j(activated)))
            network.link(None, v, constants=shifted_softplus(block.dense_i(activated)))
        else:
            shared, from_i, from_j, sent = (network.node(width) for _ in range(4))
            network.link(x, shared, activation="softplus")
            network.dense(shared, from_j, block.dense_j)
            network.link(from_j, sent, activation="softplus")
            network.dense(shared, from_i, block.dense_i)
            v = network.messages(mask, sent)
            network.link(from_i, v, activation="softplus")
        v = _residuals(network, v, width, block.interaction_residuals)
        network.dense(v, following, block.dense_v, "softplus")
        if x is None:
            network.link(None, following, constants=block.gate * start)
        else:
            network.link(x, following, factors=block.gate)
        x = _residuals(network, following, width, block.atomic_residuals)
        refined = _residuals(network, x, width, block.output_residuals)
        network.dense(refined, network.energy, block.output, "softplus")
    return network.describe(tolerance)


def _residuals(network: Network, x: int, width: int, layers: Iterable[nn.Module]) -> int:
    """x + W_2 σ(W_1 σ(x) + b_1) + b_2, layer by layer."""
    for layer in cast("Iterable[Residual]", layers):
        hidden, following = network.node(width), network.node(width)
        network.dense(x, hidden, layer.dense_1, "softplus")
        network.link(x, following)
        network.dense(hidden, following, layer.dense_2, "softplus")
        x = following
    return x


def _mask(model: PhysNet, block: Module) -> Function:
    """What a module makes of the radial basis, of reduced distances."""

    def function(x: Tensor) -> Tensor:
        masks: Tensor = block.attention(model.basis(model.r_max * x))
        return masks

    return function
