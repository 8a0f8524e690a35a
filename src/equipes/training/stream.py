"""The endless stream of training batches, a pure function of seed and step, so that a resumed run reads on exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from equipes.data import GraphDataset, LabelledGraph
from equipes.training.losses import label_counts


@dataclass(frozen=True)
class Batch:
    """What one process sees of a step.

    Attributes:
        labelled: its frames.
        counts: `[3]` float64 on the CPU, how many energy, force and stress numbers they are labelled with.
        joint_counts: the same for the frames of all processes together.
        replay: a batch of other frames that this step trains on too, or None.
    """

    labelled: LabelledGraph
    counts: Tensor
    joint_counts: Tensor
    replay: Batch | None = None

    def to(self, device: torch.device) -> Batch:
        """The same with the frames on another device."""
        replay = None if self.replay is None else self.replay.to(device)
        return replace(self, labelled=self.labelled.to(device), replay=replay)


class BatchStream:
    """Batches from shuffled passes over the frames, laid end to end and cut every `batch_size` frames.

    Every batch is full and every frame comes once a pass, whatever divides what. Of each batch the process `rank` of
    `world` takes every `world`-th frame, so the joint batch does not depend on the number of processes. As each process
    knows which frames the others have, nobody needs to send how many labels there are.
    """

    def __init__(
        self, dataset: GraphDataset, batch_size: int, seed: int, replay: BatchStream | None = None
    ) -> None:
        """With `replay` each batch has one of that stream beside it."""
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.replay = replay
        self.rank, self.world = 0, 1
        self.step = 0
        """Where iteration starts."""
        self._counts = torch.stack(
            [label_counts(item) for item in (dataset[index] for index in range(len(dataset)))]
        )
        self._pass: tuple[int, np.ndarray] | None = None

    def indices(self, step: int) -> list[int]:
        """The frames of the joint batch of `step`."""
        n = len(self.dataset)
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [int(self._order(position // n)[position % n]) for position in positions]

    def passes(self, step: int) -> float:
        """Epochs: how often each frame has been seen after `step` steps."""
        return step * self.batch_size / len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        step = self.step
        while True:
            yield self._batch(step, self.rank, self.world)
            step += 1

    def _batch(self, step: int, rank: int, world: int) -> Batch:
        joint = self.indices(step)
        mine = joint[rank::world]
        return Batch(
            labelled=LabelledGraph.batch([self.dataset[index] for index in mine]),
            counts=self._counts[mine].sum(0),
            joint_counts=self._counts[joint].sum(0),
            replay=None if self.replay is None else self.replay._batch(step, rank, world),
        )

    def _order(self, number: int) -> np.ndarray:
        if self._pass is None or self._pass[0] != number:
            rng = np.random.default_rng((self.seed % 2**64, number))
            self._pass = (number, rng.permutation(len(self.dataset)))
        return self._pass[1]
