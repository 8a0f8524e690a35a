"""The optimisers to choose from. All get decoupled weight decay on matrices only, and learning rates from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from equipes.nn.adapters import LowRankAdapters
from equipes.training.config import TrainConfig

PEAK_LEARNING_RATE = {"adamw": 0.01, "soap": 0.01, "muon": 0.02}
FINE_TUNING = 0.1
"""What a good learning rate is multiplied by where weights are trained already."""


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
    peak = config.learning_rate or PEAK_LEARNING_RATE[config.optimizer]
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
    return _BUILDERS[config.optimizer](groups, peak)


def set_learning_rate(optimizer: Optimizer, factor: float) -> float:
    """Set every group to `factor` times its peak; returns the largest rate."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]
    return float(max(group["lr"] for group in optimizer.param_groups))


def _adamw(groups: list[dict[str, Any]], peak: float) -> Optimizer:
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99), fused=True)


def _soap(groups: list[dict[str, Any]], peak: float) -> Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(groups, lr=peak, betas=(0.95, 0.95), precondition_frequency=10, max_precondition_dim=512)


def _muon(groups: list[dict[str, Any]], peak: float) -> Optimizer:
    return MuonWithAdamW(groups, peak)


class MuonWithAdamW(Optimizer):
    """Muon (Jordan et al. 2024; torch's) for matrices, AdamW for everything else, as one optimiser.

    A tensor with more than two axes counts as a matrix of its first axis by all others. Muon's update is scaled to the
    rms of AdamW's (Liu et al., arXiv:2502.16982), so that one learning rate serves both.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        groups = [{**group, "params": list(group["params"])} for group in groups]
        self._flat: list[tuple[nn.Parameter, nn.Parameter]] = []
        for group in groups:
            group["params"] = [self._as_matrix(parameter) for parameter in group["params"]]
        super().__init__(groups, {"lr": lr})
        matrices = [group for group in self.param_groups if group["params"][0].ndim == 2]
        others = [group for group in self.param_groups if group["params"][0].ndim != 2]
        self._parts: list[Optimizer] = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw"))
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), fused=True))
        # One list of groups and one dictionary of states, so that saving, loading and learning rates need no more code.
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        self._connect()

    def _as_matrix(self, parameter: nn.Parameter) -> nn.Parameter:
        """The parameter, or one that shares its memory and has two axes."""
        if parameter.ndim <= 2:
            return parameter
        flat = nn.Parameter(parameter.detach().view(parameter.shape[0], -1))
        self._flat.append((flat, parameter))
        return flat

    def _connect(self) -> None:
        start = 0
        for part in self._parts:
            part.param_groups = self.param_groups[start : start + len(part.param_groups)]
            start += len(part.param_groups)
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._connect()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for flat, parameter in self._flat:
            flat.grad = None if parameter.grad is None else parameter.grad.view_as(flat)
        for part in self._parts:
            part.step(closure)


_BUILDERS = {"adamw": _adamw, "soap": _soap, "muon": _muon}
