"""A structure that moves, evaluated on a GPU: positions go there, energies and forces come back, nothing else."""

from __future__ import annotations

from dataclasses import replace

import ase
import numpy as np
import torch
from torch import Tensor

from equipes.calculators.neighbors import NeighborList, SkinnedNeighbors
from equipes.models.device_frozen import DevicePotential
from equipes.models.device_geometry import DeviceAtoms
from equipes.models.device_padding import PaddedAtoms, Replay, Room

# Up to this many atoms a step is recorded and its buffers are padded: there launches are what takes the time. Above it
# the padding would cost more than they do. (A guess: it was not measured yet.)
RECORDED_ATOMS = 20_000


class DeviceEvaluator:
    """Energies, forces and virial of one structure after the other by a frozen potential on a device.

    The list of neighbours stays on the device until it must be collected anew, and with it buffers of fixed size; what
    fits into them is computed by playing the step that was recorded for them.
    """

    def __init__(self, potential: DevicePotential, neighbors: SkinnedNeighbors) -> None:
        self.potential = potential
        self._neighbors = neighbors
        self._list: NeighborList | None = None
        self._given: DeviceAtoms | None = None
        self._padded: PaddedAtoms | None = None
        self._step: Replay[Tensor] | None = None
        self.recordings = 0

    def __call__(self, structure: ase.Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Energies `[N]`, forces `[N, 3]` and the virial `[3, 3]`, float64.

        Raises:
            InputError: an element that the potential does not know, a structure without sense.
        """
        neighbors = self._neighbors.list_of(structure)
        if neighbors is not self._list:
            self._list = None  # stays so when the structure is refused
            self._take(neighbors)
            self._list = neighbors
        assert self._given is not None
        n, device = len(structure), self.potential.device
        # Copies: the arrays of ASE are the user's.
        positions = torch.tensor(structure.positions, dtype=torch.float64, device=device)
        cell = torch.tensor(structure.cell.array[None], dtype=torch.float64, device=device)
        if self._padded is None or self._step is None:
            packed = self._packed(replace(self._given, positions=positions, cell=cell))
        else:
            self._padded.atoms.positions[:n].copy_(positions)
            self._padded.atoms.cell.copy_(cell)
            packed = self._step()
        # The one moment at which the host waits for the device.
        values = packed.cpu().numpy()
        room = (len(values) - 9) // 4
        energies, forces = values[9 : 9 + room], values[9 + room :].reshape(room, 3)
        return energies[:n], forces[:n], values[:9].reshape(3, 3)

    def _take(self, neighbors: NeighborList) -> None:
        types = self.potential.types(neighbors.numbers)
        device = self.potential.device
        graph = neighbors.graph.to(device)
        given = DeviceAtoms.of(graph, torch.tensor(types, device=device), self.potential.groups(types))
        self._given = given
        if given.n_atoms > RECORDED_ATOMS:
            self._padded = self._step = None
            return
        if self._padded is None or not self._padded.fits(given):
            padded = PaddedAtoms(Room.for_(given), device)
            self._padded, self._step = padded, Replay(lambda: self._packed(padded.atoms), device)
            self.recordings += 1
        self._padded.fill(given)

    def _packed(self, atoms: DeviceAtoms) -> Tensor:
        """Virial, energies and forces behind each other, so that one copy brings them to the host."""
        result = self.potential.evaluate(atoms)
        assert result.forces is not None and result.virial is not None
        return torch.cat([result.virial.flatten(), result.energies, result.forces.flatten()])
