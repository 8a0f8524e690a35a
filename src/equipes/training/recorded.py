"""Steps of training that a GPU plays again: of small batches, launching takes longer than computing.

Two recordings make a step. The gradient of a batch is recorded for each bucket of sizes: prediction, loss, derivative by
the parameters. The update is recorded once: norm and clipping of the gradient, and the optimiser. Between them lie
tensors that stay where they are. What changes from step to step (structures, labels, weights of the loss, learning
rates) is copied into such tensors before, and the host waits for nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from equipes.models import Potential
from equipes.models.device_padding import RECORDERS, Replay
from equipes.nn.adapters import LowRankAdapters
from equipes.training.losses import Loss, weighted_mean
from equipes.training.movers import Mover, mover_of
from equipes.training.padding import PaddedBatch, room_for
from equipes.training.stream import Batch

# Up to this many edges launches are what takes the time. (A guess: it was not measured yet.)
RECORDED_EDGES = 100_000
# Batches that fit into none of so many buckets are computed without recording.
MOST_RECORDINGS = 16


@dataclass(frozen=True)
class Part:
    """Frames that a step trains on, all with one loss.

    Attributes:
        batch: on the CPU.
        weights: `[3]` float64 on the CPU, of the terms of the loss.
        loss: the loss.
    """

    batch: Batch
    weights: Tensor
    loss: Loss

    def terms(self) -> tuple[bool, bool]:
        """Whether forces and stress count."""
        _, forces, stress = (self.batch.counts * self.weights > 0).tolist()
        return forces, stress


@dataclass(frozen=True)
class _Recording:
    """The gradient of one part of a step, for one bucket of sizes."""

    number: int
    terms: tuple[bool, bool]
    padded: PaddedBatch
    replay: Replay[None]


@dataclass(frozen=True)
class _Update:
    """The recorded update, and the gradients that it reads (of adapters: that it makes)."""

    mover: Mover
    rates: Tensor
    replay: Replay[Tensor]


def can_record(potential: Potential, device: torch.device) -> bool:
    """Whether steps of training this potential on this device can be recorded."""
    return device.type in RECORDERS and potential.model.FIXED_SHAPES


class RecordedStep:
    """The steps of one training that are recorded.

    Args:
        potential: in training mode, where it is trained.
        parameters: of it, those that have gradients.
        moved: what the optimiser moves: the parameters, or adapters in the place of some.
        optimizer: the optimiser.
        clip: gives the norm of the gradient of what is moved, and cuts it.
        adapters: in the place of some parameters.
    """

    def __init__(
        self,
        potential: Potential,
        parameters: Sequence[Tensor],
        moved: Sequence[Tensor],
        optimizer: Optimizer,
        clip: Callable[[], Tensor],
        adapters: LowRankAdapters | None = None,
    ) -> None:
        self.potential, self.device = potential, potential.device
        self._parameters, self._moved = list(parameters), list(moved)
        self._optimizer, self._clip, self._adapters = optimizer, clip, adapters
        self._gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self._reached = [False] * len(self._parameters)
        self._loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self._recordings: list[_Recording] = []
        self._updates: dict[tuple[bool, ...], _Update | None] = {}
        self._types = potential.type_of_number.cpu()
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self.refused = False
        """Whether the device refused to record, so that there is no use in asking again."""

    def gradient(self, parts: Sequence[Part]) -> Tensor | None:
        """The loss, float64, the sum over some parts; its gradient is set in the parameters.

        None, and nothing done, where there is too much of it, or too many kinds, or where the device refuses.
        """
        if self.refused:
            return None
        recordings = [self._recording(number, part) for number, part in enumerate(parts)]
        if any(recording is None for recording in recordings):
            return None
        found = [recording for recording in recordings if recording is not None]
        for recording, part in zip(found, parts, strict=True):
            recording.padded.fill(part.batch, self._types_of(part), part.weights)
        # All before the first is played: to record is to call, and that writes into the gradients.
        if not all(self._prepared(recording.replay) for recording in found):
            return None
        for recording in found:
            recording.replay()
        for parameter, gradient, reached in zip(
            self._parameters, self._gradients, self._reached, strict=True
        ):
            if parameter.grad is not gradient:
                parameter.grad = gradient if reached else None
        return self._loss.clone()

    def update(self) -> Tensor | None:
        """Move the weights along the gradient that `gradient` has set; its norm.

        None, and nothing done, where the plain update has to come first, to make the state of the optimiser, or where
        the device refuses.
        """
        key = tuple(self._reached)
        if key not in self._updates:
            self._updates[key] = None
            return None
        update = self._updates[key]
        if update is None:
            update = self._updates[key] = self._new_update()
        if self.refused or not self._prepared(update.replay):
            self._set_gradients()
            return None
        ...
