"""The exponential moving average of the weights, which is what is validated and saved."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def average_of(model: Model) -> Model:
    """A copy of `model` that holds the average: in evaluation mode and without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def averaged_together(average: nn.Module, model: nn.Module) -> list[tuple[list[Tensor], list[Tensor]]]:
    """The averages with the trainable weights of `model`; those of one number type take one launch on a GPU."""
    pairs = zip(average.parameters(), model.parameters(), strict=True)
    trained = [(mean, weight) for mean, weight in pairs if weight.requires_grad]
    return [
        ([mean for mean, _ in trained if mean.dtype == dtype], [w for _, w in trained if w.dtype == dtype])
        for dtype in dict.fromkeys(mean.dtype for mean, _ in trained)
    ]


@torch.no_grad()
def update_average(average: Sequence[Tensor], weights: Sequence[Tensor], step: int, decay: float) -> None:
    """`average += (1 - d) (weights - average)` with d = min(decay, (1 + step) / (10 + step)).

    The decay grows with the step, so that the average forgets the random start instead of being biased by it. Tensors
    are given rather than models, whose lists of parameters take longer to collect than to average.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average), list(weights), 1 - decay)
