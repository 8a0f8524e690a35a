"""Steps of training that a GPU plays again: of small batches, launching takes longer than computing.

Two recordings make a step. The gradient of a batch is recorded for each bucket of sizes: prediction, loss, derivative
by the parameters. The update is recorded once: norm and clipping of the gradient, and the optimiser. Between them lie
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
        factor: of this loss in that of the step.
    """

    batch: Batch
    weights: Tensor
    loss: Loss
    factor: float = 1.0

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
    """The recorded update.

    Attributes:
        mover: the optimiser.
        numbers: what it needs of a step.
        replay: gives the norm of the gradient.
        gradients: of what is moved, while `replay` is played: with adapters it makes them.
    """

    mover: Mover
    numbers: Tensor
    replay: Replay[Tensor]
    gradients: list[Tensor | None]


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
        self._cuda = self.device.type == "cuda"
        self.refused = False
        """Whether the device refused to record, so that there is no use in asking again."""

    def gradient(self, parts: Sequence[Part]) -> Tensor | None:
        """The loss, float64, the sum over some parts; its gradient is set in the parameters.

        None, and nothing done, where there is too much of it, or too many kinds, or where the device refuses.
        """
        if self.refused:
            return None
        recordings = [self._recording(number, part) for number, part in enumerate(parts)]
        found = [recording for recording in recordings if recording is not None]
        # All before the first is played: to record is to call, and that writes into the gradients.
        if len(found) < len(parts) or not all(self._prepared(recording.replay) for recording in found):
            return None
        for recording in found:
            recording.replay()
        self._set_gradients()
        return self._loss.clone()

    def update(self) -> Tensor | None:
        """Move the weights along the gradient that `gradient` has set; the norm of it, float64 or float32.

        None, and nothing done, where the plain update has to come first, to make the state of the optimiser, or where
        the device refuses.
        """
        key = tuple(self._reached)
        if key not in self._updates:
            self._updates[key] = None
            return None
        update = self._updates[key] or self._new_update()
        if self.refused or not self._prepared(update.replay):
            self._set_gradients()
            return None
        if self._updates[key] is None:
            update.gradients[:] = [tensor.grad for tensor in self._moved]
            self._updates[key] = update
        numbers = torch.tensor(update.mover.advance(), dtype=torch.float64, pin_memory=self._cuda)
        update.numbers.copy_(numbers, non_blocking=True)
        norm = update.replay().clone()
        for tensor, gradient in zip(self._moved, update.gradients, strict=True):
            if tensor.grad is not gradient:
                tensor.grad = gradient
        update.mover.follow()
        return norm

    def _recording(self, number: int, part: Part) -> _Recording | None:
        """The recording for one of the parts, with the part in its memory; None if it is not to be recorded."""
        graph, model = part.batch.labelled.graph, self.potential.model
        if graph.n_edges > RECORDED_EDGES:
            return None
        types, terms = self._types[graph.numbers], part.terms()
        need = room_for(part.batch, types, len(self.potential.species), grouped=model.GROUPS_SPECIES)
        fitting = [
            each
            for each in self._recordings
            if (each.number, each.terms) == (number, terms) and each.padded.room.holds(need)
        ]
        if not fitting and len(self._recordings) == MOST_RECORDINGS:
            return None
        if fitting:
            recording = min(fitting, key=lambda each: each.padded.room.edges)
        else:
            padded = PaddedBatch(need, graph.cutoff, self.device)
            loss, factor = part.loss, part.factor

            def function() -> None:
                self._compute(number, terms, padded, loss, factor)

            replay = Replay(function, self.device, pool=self._pool)
            recording = _Recording(number, terms, padded, replay)
            self._recordings.append(recording)
        recording.padded.fill(part.batch, types, part.weights)
        return recording

    def _compute(
        self, number: int, terms: tuple[bool, bool], padded: PaddedBatch, loss: Loss, factor: float
    ) -> None:
        """Write loss and gradients of the first part, and add those of others."""
        forces, stress = terms
        with torch.enable_grad():
            labelled = padded.labelled
            prediction = self.potential.evaluate(padded.types, labelled.graph, forces=forces, stress=stress)
            sums = loss.sums(prediction, labelled)
            share = factor * weighted_mean(sums, padded.joint_counts, padded.weights)
            # No gradients are accumulated in parameters: the streams that they belong to could not be recorded.
            found: tuple[Tensor | None, ...] = torch.autograd.grad(share, self._parameters, allow_unused=True)
        self._reached = [
            before or each is not None for before, each in zip(self._reached, found, strict=True)
        ]
        pairs = list(zip(self._gradients, found, strict=True))
        there = [gradient for gradient, each in pairs if each is not None]
        new = [each for each in found if each is not None]
        if number == 0:
            self._loss.copy_(share.detach())
            torch._foreach_copy_(there, new)
            for gradient, each in pairs:
                if each is None:
                    gradient.zero_()
        else:
            self._loss.add_(share.detach())
            torch._foreach_add_(there, new)

    def _new_update(self) -> _Update:
        mover = mover_of(self._optimizer)
        numbers = torch.zeros(mover.shape, dtype=torch.float64, device=self.device)

        def function() -> Tensor:
            self._set_gradients()
            if self._adapters is not None:
                self._adapters.pull_back()
            norm = self._clip()
            mover.move(numbers)
            if self._adapters is not None:
                self._adapters.merge()
            return norm

        state = [
            tensor
            for own in self._optimizer.state.values()
            for tensor in own.values()
            if isinstance(tensor, Tensor)
        ]
        touched = [*self._parameters, *self._moved, *self._gradients, *state]
        return _Update(mover, numbers, Replay(function, self.device, touched=touched, pool=self._pool), [])

    def _set_gradients(self) -> None:
        for parameter, gradient, reached in zip(
            self._parameters, self._gradients, self._reached, strict=True
        ):
            wanted = gradient if reached else None
            if parameter.grad is not wanted:
                parameter.grad = wanted

    def _prepared(self, replay: Replay[None] | Replay[Tensor]) -> bool:
        """Whether it is recorded now."""
        try:
            replay.prepare()
        except RuntimeError as error:
            # Whatever it is: the plain step does without it, or has it too and says so.
            self.refused = True
            self._recordings.clear()
            self._updates.clear()
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"steps of training are not recorded here, which is slower: {reason}", stacklevel=2)
        return not self.refused
