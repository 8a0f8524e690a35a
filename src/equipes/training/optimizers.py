"""The optimisers to choose from. All get decoupled weight decay on matrices only, and learning rates from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipes.nn.adapters import LowRankAdapters
from equipes.training.config import TrainConfig
from equipes.training.soap import SOAP

PEAK_LEARNING_RATE = 0.01
FINE_TUNING = 0.2
"""What a good learning rate is multiplied by where weights are trained already."""
AFTER_PRETRAINING = 0.2
"""The same after pre-training on cheap labels, which are farther from the true ones."""


# Their weights are all of order one, so one learning rate serves them. SOAP at that rate diverges for others.
_UNIT_WEIGHTS = ("nequip", "sevennet", "mace")


def default_optimizer(architecture: str) -> str:
    """The optimiser that a training takes if it is not told: `soap` from scratch where the architecture stands it."""
    return "soap" if architecture in _UNIT_WEIGHTS else "adamw"


def default_learning_rate(architecture: str) -> float:
    """The peak that a training from scratch takes if it is not told, by either optimiser."""
    return PEAK_LEARNING_RATE if architecture in _UNIT_WEIGHTS else 0.003


@dataclass(frozen=True)
class Moves:
    """What of a model an optimiser moves: its trainable parameters, or adapters in the place of some.

    Attributes:
        rates: multiples of the learning rate by the name of the parameter; 1 for others.
        adapters: move in place of the parameters that they adapt.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    adapters: LowRankAdapters | None = None

    def tensors(self, model: nn.Module) -> list[tuple[Tensor, float]]:
        """Each with its multiple of the learning rate."""
        factors = [] if self.adapters is None else self.adapters.factors()
        adapted = {name for name, _ in factors}
        whole = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name not in adapted
        ]
        return [(tensor, self.rates.get(name, 1.0)) for name, tensor in [*whole, *factors]]


def build_optimizer(model: nn.Module, config: TrainConfig, moves: Moves | None = None) -> Optimizer:
    """The optimiser of `model`'s trainable parameters, or of what `moves` says.

    Its parameter groups carry `peak_lr`; `set_learning_rate` scales them.
    """
    moved = (moves or Moves()).tensors(model)
    name = config.optimizer or "adamw"
    peak = config.learning_rate or PEAK_LEARNING_RATE
    groups = []
    for rate in dict.fromkeys(rate for _, rate in moved):
        tensors = [tensor for tensor, own in moved if own == rate]
        matrices = [tensor for tensor in tensors if tensor.ndim >= 2]
        others = [tensor for tensor in tensors if tensor.ndim < 2]
        groups += [
            {"params": matrices, "weight_decay": config.weight_decay, "peak_lr": rate * peak},
            {"params": others, "weight_decay": 0.0, "peak_lr": rate * peak},
        ]
    groups = [group for group in groups if group["params"]]
    return _BUILDERS[name](groups, peak)


def set_learning_rate(optimizer: Optimizer, factor: float) -> float:
    """Set every group to `factor` times its peak; returns the largest rate."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]
    return float(max(group["lr"] for group in optimizer.param_groups))


def _adamw(groups: list[dict[str, Any]], peak: float) -> Optimizer:
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99), fused=True)


def _soap(groups: list[dict[str, Any]], peak: float) -> Optimizer:
    return SOAP(groups, lr=peak)


_BUILDERS = {"adamw": _adamw, "soap": _soap}
