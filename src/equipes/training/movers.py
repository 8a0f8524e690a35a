"""Optimisers taken apart for recorded steps: what the host decides, what the device does, what cannot be recorded."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.optim import AdamW, Optimizer

from equipes.training.soap import SOAP


class Mover(Protocol):
    """An optimiser whose state is there already, for parameters whose gradients are set.

    Attributes:
        shape: of the numbers that `move` needs of a step.
    """

    shape: tuple[int, int]

    def advance(self) -> list[list[float]]:
        """Count a step on the host; its numbers."""

    def move(self, numbers: Tensor) -> None:
        """Move the parameters, on the device alone; `numbers` is what `advance` gave, there."""

    def follow(self) -> None:
        """What comes after and is not recorded, in the memory that is there."""


def mover_of(optimizer: Optimizer) -> Mover:
    """Of one of our optimisers, after its first step with the gradients that there are now."""
    if isinstance(optimizer, SOAP):
        return _SOAPMover(optimizer)
    if isinstance(optimizer, AdamW):
        return _AdamWMover(optimizer)
    raise RuntimeError(f"steps of {type(optimizer).__name__} cannot be recorded")


class _AdamWMover:
    """Its learning rates are read from tensors while it is recorded, and are plain numbers at any other time."""

    def __init__(self, optimizer: AdamW) -> None:
        self._optimizer = optimizer
        self.shape = len(optimizer.param_groups), 1

    def advance(self) -> list[list[float]]:
        return [[group["lr"]] for group in self._optimizer.param_groups]

    def move(self, numbers: Tensor) -> None:
        groups = self._optimizer.param_groups
        kept = [{key: group[key] for key in ("lr", "capturable")} for group in groups]
        # The fused kernel of GPUs reads float32.
        rates = numbers.float() if numbers.is_cuda else numbers
        try:
            for group, (rate,) in zip(groups, rates, strict=True):
                group.update(lr=rate, capturable=True)
            self._optimizer.step()
        finally:
            for group, values in zip(groups, kept, strict=True):
                group.update(values)

    def follow(self) -> None:
        pass


class _SOAPMover:
    def __init__(self, optimizer: SOAP) -> None:
        self._optimizer, self._stacks = optimizer, optimizer.stacks()
        self.shape = len(self._stacks), 2

    def advance(self) -> list[list[float]]:
        return [list(pair) for pair in self._optimizer.advance(self._stacks)]

    def move(self, numbers: Tensor) -> None:
        self._optimizer.move(self._stacks, numbers)

    def follow(self) -> None:
        self._optimizer.turn(self._stacks)
