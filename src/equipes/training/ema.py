"""The exponential moving average of the weights, which is what is validated and saved."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def average_of(model: Model) -> Model:
    """A copy of `model` that holds the average: in evaluation mode and without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """`average += (1 - d) (model - average)` with d = min(decay, (1 + step) / (10 + step)).

    The decay grows with the step, so that the average forgets the random start instead of being biased by it.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
