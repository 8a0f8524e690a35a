"""Adam in the axes of Shampoo's preconditioner: N. Vyas et al., "SOAP", arXiv:2409.11321."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
        stacks = self.stacks()
        self.move(stacks, self.advance(stacks))
        self.turn(stacks)

    @torch.no_grad()
    def stacks(self) -> list[Stack]:
        """Parameters of one shape with their common state; those that have gradients, but for those that begin now."""
        found: list[Stack] = []
        for group in self.param_groups:
            stacks: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
            for parameter in group["params"]:
                stacks.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
            for parameters in stacks.values():
                if any(parameter.grad is not None for parameter in parameters):
                    stack = Stack(group, parameters, self.state[parameters[0]])
                    if stack.state or not stack.begin():
                        found.append(stack)
        return found

    def advance(self, stacks: Sequence[Stack]) -> list[tuple[float, float]]:
        """Count a step; of each stack the learning rate with Adam's corrections for its first steps, and the decay."""
        rates = []
        for stack in stacks:
            first, second = stack.group["betas"]
            stack.state["step"] += 1
            steps = int(stack.state["step"])
            scale = (1 - second**steps) ** 0.5 / (1 - first**steps)
            rates.append((stack.group["lr"] * scale, 1 - stack.group["lr"] * stack.group["weight_decay"]))
        return rates

    @torch.no_grad()
    def move(self, stacks: Sequence[Stack], rates: Sequence[tuple[float, float]] | Tensor) -> None:
        """Move the parameters along their gradients, without asking a GPU for anything.

        Args:
            stacks: what to move.
            rates: by `advance`; as a tensor, `[stacks, 2]`, they are read anew whenever a recorded move is played.
        """
        for stack, (rate, decay) in zip(stacks, rates, strict=True):
            stack.move(rate, decay)

    @torch.no_grad()
    def turn(self, stacks: Sequence[Stack]) -> None:
        """Every few steps let mean and eigenvectors follow the gradient, in the memory that they have."""
        for stack in stacks:
            if int(stack.state["step"]) % stack.group["every"] == 0:
                stack.turn()


@dataclass(frozen=True)
class Stack:
    """Parameters of one shape, whose state is common and stacked.

    Attributes:
        group: of the optimiser, with its settings.
        parameters: in order.
        state: `step` is counted on the CPU.
    """

    group: dict[str, Any]
    parameters: list[Tensor]
    state: dict[str, Tensor]

    def gradient(self) -> Tensor:
        """`[n, ...]`, zero for a parameter without."""
        return torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])

    def begin(self) -> bool:
        """Find the eigenvectors; whether there are axes to turn, so that nothing is to be moved yet."""
        gradient, state = self.gradient(), self.state
        lengths = enumerate(gradient.shape[1:], start=1) if gradient.dim() > 2 else ()
        axes = [k for k, n in lengths if 1 < n <= self.group["largest_axis"]]
        state["step"] = torch.zeros((), dtype=torch.float64)
        state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        for k in axes:
            state[f"covariance_{k}"] = _covariance(gradient, k)
            state[f"axes_{k}"] = _eigenvectors(state[f"covariance_{k}"])
        return bool(axes)

    def axes(self) -> list[int]:
        """Those that are turned."""
        return [k for k in range(1, self.state["mean"].dim()) if f"axes_{k}" in self.state]

    def move(self, rate: float | Tensor, decay: float | Tensor) -> None:
        """A step of Adam in the eigenvectors; see `SOAP.advance`."""
        group, state = self.group, self.state
        first, second = group["betas"]
        gradient = self.gradient()
        turned = _turned(gradient, [(k, state[f"axes_{k}"]) for k in self.axes()])
        state["mean"].lerp_(turned, 1 - first)
        state["square"].mul_(second).addcmul_(turned, turned, value=1 - second)
        update = state["mean"] / state["square"].sqrt().add_(group["eps"])
        update = _turned(update, [(k, state[f"axes_{k}"].mT) for k in self.axes()])
        if isinstance(rate, Tensor):
            update, rate = update.mul_(rate), 1.0
        if group["weight_decay"]:
            torch._foreach_mul_(self.parameters, decay)
        torch._foreach_add_(self.parameters, list(update), alpha=-rate)

    def turn(self) -> None:
        """Take the gradient into the mean, and follow it with the eigenvectors."""
        gradient, state, every = self.gradient(), self.state, self.group["every"]
        for k in self.axes():
            state[f"covariance_{k}"].lerp_(_covariance(gradient, k), 1 - self.group["betas"][1] ** every)
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
    state["square"].copy_(state["square"].gather(k, order.view(shape).expand_as(state["square"])))
    state["mean"].copy_(_turned(state["mean"], [(k, old.mT @ new)]))
    old.copy_(new)
