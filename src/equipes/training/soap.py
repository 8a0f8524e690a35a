"""Adam in the axes of Shampoo's preconditioner: N. Vyas et al., "SOAP", arXiv:2409.11321."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class SOAP(Optimizer):
    """Along each axis k of a parameter Adam runs in the eigenvectors of the mean of G_(k) G_(k)ᵀ, G unfolded along k.

    There the gradient's components are nearly uncorrelated, which is what Adam takes for granted. The mean is taken of
    every few steps only, and then the eigenvectors follow it by one step of orthogonal iteration. Axes of one element
    or of too many stay as they are; vectors, and parameters without any other axis, get Adam. The first step only finds
    the eigenvectors and moves nothing.

    A potential has dozens of small matrices of few shapes, so those of one shape are stacked and computed at once.
    Their common state is kept with the first of them.

    Args:
        groups: parameters, or groups of them with `lr` and `weight_decay` of their own.
        lr: learning rate.
        betas: of the mean gradient, and of the mean squares (of the preconditioner, too).
        eps: added to the root of the mean squares.
        weight_decay: decoupled.
        every: steps between two updates of mean and eigenvectors.
        largest_axis: longer axes are not turned: each costs its length times the size of the parameter in every step.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        every: int = 5,
        largest_axis: int = 128,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, {**defaults, "every": every, "largest_axis": largest_axis})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stacks: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
            for parameter in group["params"]:
                stacks.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
            for parameters in stacks.values():
                if any(parameter.grad is not None for parameter in parameters):
                    self._step(group, parameters)

    def _step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradient = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        lengths = enumerate(gradient.shape[1:], start=1) if gradient.dim() > 2 else ()
        axes = [k for k, n in lengths if 1 < n <= group["largest_axis"]]
        state = self.state[parameters[0]]
        first, second = group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float64)
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            for k in axes:
                state[f"covariance_{k}"] = _covariance(gradient, k)
                state[f"axes_{k}"] = _eigenvectors(state[f"covariance_{k}"])
            if axes:
                return
        state["step"] += 1
        steps = int(state["step"])
        turned = _turned(gradient, [(k, state[f"axes_{k}"]) for k in axes])
        state["mean"].lerp_(turned, 1 - first)
        state["square"].mul_(second).addcmul_(turned, turned, value=1 - second)
        scale = (1 - second**steps) ** 0.5 / (1 - first**steps)
        update = state["mean"] / state["square"].sqrt().add_(group["eps"])
        update = _turned(update, [(k, state[f"axes_{k}"].mT) for k in axes])
        decay = 1 - group["lr"] * group["weight_decay"]
        for parameter, change in zip(parameters, update, strict=True):
            parameter.mul_(decay).add_(change, alpha=-group["lr"] * scale)
        if steps % group["every"] == 0:
            for k in axes:
                state[f"covariance_{k}"].lerp_(_covariance(gradient, k), 1 - second ** group["every"])
                _follow(state, k)


def _turned(tensors: Tensor, turns: list[tuple[int, Tensor]]) -> Tensor:
    """`[n, ...]` with axis k of each multiplied by its Q `[n, d, d]` from the right, for the given axes."""
    shape = tensors.shape
    for k, matrices in turns:
        if k == len(shape) - 1:
            tensors = tensors.reshape(shape[0], -1, shape[k]) @ matrices
        else:
            unfolded = tensors.reshape(shape[0], math.prod(shape[1:k]), shape[k], -1)
            tensors = matrices.mT.unsqueeze(1) @ unfolded
    return tensors.view(shape)


def _covariance(gradients: Tensor, k: int) -> Tensor:
    """`[n, d, d]`: G_(k) G_(k)ᵀ of each."""
    unfolded = gradients.movedim(k, -1).flatten(1, -2)
    return unfolded.mT @ unfolded


def _eigenvectors(matrices: Tensor) -> Tensor:
    """In columns, of the largest eigenvalue first."""
    return torch.linalg.eigh(matrices.double())[1].flip(-1).to(matrices.dtype)


def _follow(state: dict[str, Tensor], k: int) -> None:
    """One step of orthogonal iteration from the old axes; Adam's averages come along."""
    covariance, old = state[f"covariance_{k}"], state[f"axes_{k}"]
    image = covariance @ old
    order = (old * image).sum(-2).argsort(dim=-1, descending=True)  # by Rayleigh quotients
    columns = order.unsqueeze(-2).expand_as(image)
    new = torch.linalg.qr(image.gather(-1, columns))[0]
    # Mean squares cannot be turned: they go with the columns. The mean gradient is turned exactly.
    shape = [len(order), *(order.shape[-1] if axis == k else 1 for axis in range(1, state["square"].dim()))]
    state["square"] = state["square"].gather(k, order.view(shape).expand_as(state["square"]))
    state["mean"] = _turned(state["mean"], [(k, old.mT @ new)])
    state[f"axes_{k}"] = new
