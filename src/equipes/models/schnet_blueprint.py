"""A SchNet as the frozen engine runs it: the filter networks become splines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from equipes.models.invariant import shifted_softplus
from equipes.models.invariant_blueprint import Network
from equipes.models.schnet import InteractionBlock, SchNet
from equipes.models.splines import Function
from equipes.nn import polynomial_cutoff


def describe(
    model: SchNet, types: Sequence[int], tolerance: float
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
    for block in cast("list[InteractionBlock]", list(model.interactions)):
        sent: int | Tensor = start @ block.atomwise_1.weight.T
        if x is not None:
            sent = network.node(width)
            network.dense(x, sent, block.atomwise_1)
        v = network.messages(_filter(model, block), sent)
        hidden, following = network.node(width), network.node(width)
        network.dense(v, hidden, block.atomwise_2)
        network.link(x, following, constants=start if x is None else None)
        network.dense(hidden, following, block.atomwise_3, "softplus")
        x = following
    assert x is not None
    hidden = network.node(model.readout_1.out_features)
    network.dense(x, hidden, model.readout_1)
    network.dense(hidden, network.energy, model.readout_2, "softplus")
    return network.describe(tolerance)


def _filter(model: SchNet, block: InteractionBlock) -> Function:
    """F(r) with the envelope, of reduced distances."""

    def function(x: Tensor) -> Tensor:
        gaussians = torch.exp(-model.gamma * (model.r_max * x.unsqueeze(1) - model.centres) ** 2)
        filters = shifted_softplus(block.filter_2(shifted_softplus(block.filter_1(gaussians))))
        return filters * polynomial_cutoff(x, 6).unsqueeze(1)

    return function
