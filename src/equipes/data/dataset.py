"""Graphs with labels, built once and kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from equipes.data.frames import Frame
from equipes.errors import InputError
from equipes.graph import AtomGraph


@dataclass(frozen=True)
class LabelledGraph:
    """One frame or a batch of them: N atoms in S structures, labels in float64, NaN where there is none.

    Attributes:
        graph: the structures.
        energy: `[S]`, eV.
        forces: `[N, 3]`, eV/Å.
        stress: `[S, 3, 3]`, eV/Å³, tensile positive.
        frame: `[S]` int64, the position of each structure in its dataset.
    """

    graph: AtomGraph
    energy: Tensor
    forces: Tensor
    stress: Tensor
    frame: Tensor

    @staticmethod
    def batch(items: Sequence[LabelledGraph]) -> LabelledGraph:
        """Several frames side by side; raises `InputError` for an empty list."""
        return LabelledGraph(
            graph=AtomGraph.batch([item.graph for item in items]),
            energy=torch.cat([item.energy for item in items]),
            forces=torch.cat([item.forces for item in items]),
            stress=torch.cat([item.stress for item in items]),
            frame=torch.cat([item.frame for item in items]),
        )

    def to(self, device: torch.device | str) -> LabelledGraph:
        """The same on another device."""
        return LabelledGraph(
            graph=self.graph.to(device),
            energy=self.energy.to(device),
            forces=self.forces.to(device),
            stress=self.stress.to(device),
            frame=self.frame.to(device),
        )


class GraphDataset(Dataset[LabelledGraph]):
    """Frames as labelled graphs, built at once with one cutoff.

    Attributes:
        frames: the frames, in order.
        cutoff: Å.
    """

    def __init__(self, frames: Sequence[Frame], cutoff: float) -> None:
        """Build all graphs.

        Raises:
            InputError: no frames, or a structure of which no graph can be made (the message names the frame).
        """
        if len(frames) == 0:
            raise InputError("there are no frames to build graphs of; give at least one")
        self.frames = list(frames)
        self.cutoff = float(cutoff)
        self._items = [
            _labelled_graph(frame, position, self.cutoff) for position, frame in enumerate(self.frames)
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> LabelledGraph:
        return self._items[index]

    @property
    def graphs(self) -> list[AtomGraph]:
        """The graphs without labels, in order."""
        return [item.graph for item in self._items]


def _labelled_graph(frame: Frame, position: int, cutoff: float) -> LabelledGraph:
    try:
        graph = AtomGraph.from_atoms(frame.atoms, cutoff)
    except InputError as error:
        raise InputError(f"{frame.label}: {error}") from None
    energy = np.nan if frame.energy is None else frame.energy
    forces = np.full((graph.n_atoms, 3), np.nan) if frame.forces is None else frame.forces
    stress = np.full((3, 3), np.nan) if frame.stress is None else frame.stress
    return LabelledGraph(
        graph=graph,
        energy=torch.tensor([energy], dtype=torch.float64),
        forces=torch.tensor(forces, dtype=torch.float64),
        stress=torch.tensor(stress, dtype=torch.float64).unsqueeze(0),
        frame=torch.tensor([position], dtype=torch.int64),
    )
