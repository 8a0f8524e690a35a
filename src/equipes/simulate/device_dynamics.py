"""Dynamics on a GPU: steps that never wait for the host, with a list of neighbours that is never stale.

A step is half a kick, a drift, energies and forces, half a kick (velocity Verlet), and what a thermostat does before it
or in the middle. On a GPU it is recorded once and played again. The host looks in only after a block of steps: it then
learns how far the atoms have come from where their neighbours were collected. If any atom had left the skin's half in
any step of the block, the block is taken back, the neighbours are collected anew where it began, and it is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ase
import numpy as np
import torch
from ase import units
from torch import Tensor

from equipes.device_neighbors import neighbors_on_device
from equipes.errors import InputError
from equipes.graph import AtomGraph, lattice_box
from equipes.models.device_frozen import DevicePotential
from equipes.models.device_geometry import DeviceAtoms
from equipes.models.device_padding import PaddedAtoms, Replay, Room
from equipes.simulate.device_thermostats import DeviceThermostat
from equipes.simulate.errors import SimulationError

_BLOCK = 20
# How much more than in the last block atoms may move in the next one before neighbours are collected beforehand.
_GROWTH = 1.2


@dataclass(frozen=True)
class DynamicsResult:
    """Where dynamics are, on the host.

    Attributes:
        positions, velocities, forces: `[N, 3]` Å, ASE's unit of velocity, eV/Å.
        energy: eV.
        given: eV that the thermostat has given to the atoms so far.
        virial: `[3, 3]` eV; None where it was not asked for.
    """

    positions: np.ndarray
    velocities: np.ndarray
    forces: np.ndarray
    energy: float
    given: float
    virial: np.ndarray | None


class DeviceDynamics:
    """Dynamics in a constant cell, at constant energy or with a thermostat.

    L. Verlet, Phys. Rev. 159, 98 (1967); W. C. Swope et al., J. Chem. Phys. 76, 637 (1982).

    Args:
        atoms: positions, velocities, masses, cell; they are copied (see `update`).
        potential: what computes, and where.
        timestep: fs.
        skin: Å added to the cutoff when neighbours are collected.
        block: steps after which the host looks in, at most.
        virial: calculate the virial too.

    Attributes:
        thermostat: None at constant energy; set before the first step.
        steps: done so far.
        neighbor_list_builds: how often neighbours were collected.
        blocks_repeated: how often steps were taken back and done again.

    Raises:
        InputError: a structure without sense, elements that the potential does not know, a time step or skin that is
            not positive, constraints.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        potential: DevicePotential,
        *,
        timestep: float = 1.0,
        skin: float = 0.5,
        block: int = _BLOCK,
        virial: bool = False,
    ) -> None:
        for name, value in (("time step", timestep), ("skin", skin), ("block of steps", block)):
            if not (np.isfinite(value) and value > 0):
                raise InputError(f"the {name} must be positive, not {value}")
        if atoms.constraints:
            raise InputError("dynamics on a device move all atoms; remove the constraints of the structure")
        self.potential, self.skin = potential, float(skin)
        self._dt = timestep * units.fs
        self._block = self._at_once = int(block)
        self._n = len(atoms)
        self.steps = self.neighbor_list_builds = self.blocks_repeated = 0
        self.thermostat: DeviceThermostat | None = None
        device = potential.device
        # The first list by the way that says what is wrong with a structure.
        graph = AtomGraph.from_atoms(atoms, potential.cutoff + skin, device)
        types = potential.types(atoms.numbers)
        self._types = torch.tensor(types, device=device)
        self._groups = potential.groups(types)
        self._box = torch.tensor(lattice_box(atoms.cell.array, np.array(atoms.pbc))).to(device)
        self._pbc = torch.tensor(np.array(atoms.pbc, dtype=bool)).to(device)
        self._cell = graph.cell

        room = Room.for_(DeviceAtoms.of(graph, self._types, self._groups)).atoms

        def rows(values: np.ndarray) -> Tensor:
            buffer = torch.zeros(room, values.shape[1], dtype=torch.float64, device=device)
            buffer[: self._n].copy_(torch.tensor(values))
            return buffer

        self._positions = rows(atoms.positions)
        self._velocities = rows(atoms.get_velocities())
        self._masses = rows(atoms.get_masses()[:, None])
        self._push = rows(self._dt / 2 / atoms.get_masses()[:, None])  # half a time step over the mass
        self._reference = self._positions.clone()
        self._forces = torch.zeros_like(self._positions)
        self._energies = torch.zeros(room, dtype=torch.float64, device=device)
        self._virial = torch.zeros(3, 3, dtype=torch.float64, device=device) if virial else None
        # What the thermostat has given to the atoms; which step of those that numbers were drawn for is next.
        self._given = torch.zeros((), dtype=torch.float64, device=device)
        self._next = torch.zeros(1, dtype=torch.int64, device=device)
        self._numbers: Tensor | None = None
        # Squared, the farthest that any atom was from its place in the reference, in any step since then.
        self._farthest = torch.zeros((), dtype=torch.float64, device=device)
        self._saved = [torch.zeros_like(each) for each in self._state]
        self._padded: PaddedAtoms | None = None
        # Whether nothing moved since neighbours were collected; how far atoms had come at the end of the last block.
        self._fresh, self._reached = True, 0.0
        self._take(DeviceAtoms.of(graph, self._types, self._groups))
        self._evaluate()

    @property
    def _state(self) -> tuple[Tensor, ...]:
        virial = () if self._virial is None else (self._virial,)
        return (
            self._positions, self._velocities, self._forces, self._energies, self._given, self._next, *virial
        )  # fmt: skip

    def run(self, steps: int, before_step: Callable[[int], None] | None = None) -> None:
        """So many steps more.

        Args:
            steps: their number.
            before_step: called with the number of each step before random numbers are drawn for it, to set targets.

        Raises:
            SimulationError: positions that are no numbers any more, or an atom that leaves the skin in a single step.
        """
        wanted = self.steps + steps
        while self.steps < wanted:
            count = min(self._at_once, wanted - self.steps)
            self._draw(count, before_step)
            self._advance(count)

    def _draw(self, steps: int, before_step: Callable[[int], None] | None) -> None:
        """What is random in the next steps goes to the device."""
        if self.thermostat is None:
            return
        drawn = []
        for step in range(self.steps + 1, self.steps + steps + 1):
            if before_step is not None:
                before_step(step)
            drawn.append(self.thermostat.draw())
        if self._numbers is None:
            self._numbers = torch.zeros(
                self._at_once, *self.thermostat.shape, dtype=torch.float64, device=self.potential.device
            )
        self._numbers[:steps].copy_(torch.from_numpy(np.stack(drawn)))
        self._next.zero_()

    def _advance(self, steps: int) -> None:
        """Steps for which numbers are drawn, in blocks between which the host looks in."""
        wanted = self.steps + steps
        while self.steps < wanted:
            count = min(self._block, wanted - self.steps)
            before = self._reached
            self._save()
            for _ in range(count):
                self._replay()
            # The only moment at which the host waits for the device.
            reached = float(self._farthest.sqrt())
            if not np.isfinite(reached):
                self._restore()
                raise SimulationError(
                    f"after step {self.steps} positions are no numbers any more; look at the structure, or take a "
                    "shorter time step"
                )
            if reached <= self.skin / 2:
                self.steps += count
                self._fresh, self._reached = False, reached
                if reached + _GROWTH * (reached - before) > self.skin / 2:
                    self._collect()
                continue
            self._restore()
            self.blocks_repeated += 1
            if not self._fresh:
                self._collect()
            elif count > 1:
                self._farthest.zero_()
                self._block = count // 2
            else:
                raise SimulationError(
                    f"in step {self.steps + 1} an atom moves by {reached:.2f} Å, more than half of the skin of the "
                    f"neighbour list ({self.skin:g} Å); look at the structure, or take a shorter time step"
                )

    @property
    def potential_energy(self) -> float:
        """eV."""
        return float(self._energies.sum())

    @property
    def kinetic_energy(self) -> float:
        """eV."""
        moving = self._push[: self._n]
        return float((self._velocities[: self._n] ** 2 / moving).sum()) * self._dt / 4

    def results(self) -> DynamicsResult:
        """Everything on the host, in one copy."""
        parts = [self._positions, self._velocities, self._forces, self._energies.sum(), self._given]
        parts += [] if self._virial is None else [self._virial]
        values = torch.cat([part.flatten() for part in parts]).cpu().numpy()
        size = self._positions.numel()
        positions, velocities, forces = values[: 3 * size].reshape(3, -1, 3)[:, : self._n].copy()
        rest = values[3 * size :]
        virial = None if self._virial is None else rest[2:].reshape(3, 3).copy()
        return DynamicsResult(positions, velocities, forces, float(rest[0]), float(rest[1]), virial)

    def update(self, atoms: ase.Atoms) -> None:
        """Write positions and velocities into a structure of the same atoms."""
        atoms.positions = self._positions[: self._n].cpu().numpy()
        atoms.set_velocities(self._velocities[: self._n].cpu().numpy())

    def _step(self) -> None:
        numbers = None
        if self.thermostat is not None:
            assert self._numbers is not None
            numbers = self._numbers.index_select(0, self._next.remainder(self._at_once)).squeeze(0)
            self._next.add_(1)
            self._given.add_(self.thermostat.scale(self._velocities, self._masses, numbers))
        self._velocities.addcmul_(self._push, self._forces)
        if self.thermostat is None or numbers is None or not self.thermostat.divides:
            self._positions.add_(self._velocities, alpha=self._dt)
        else:
            self._positions.add_(self._velocities, alpha=self._dt / 2)
            self.thermostat.rub(self._velocities, self._masses, numbers)
            self._positions.add_(self._velocities, alpha=self._dt / 2)
        moved = (self._positions - self._reference).square().sum(1).max()
        # What is no number stays none in a maximum.
        torch.maximum(self._farthest, moved, out=self._farthest)
        self._evaluate()
        self._velocities.addcmul_(self._push, self._forces)

    def _evaluate(self) -> None:
        assert self._padded is not None
        result = self.potential.evaluate(self._padded.atoms, virial=self._virial is not None)
        assert result.forces is not None
        if self._virial is not None and result.virial is not None:
            torch.mul(result.virial.select(0, 0), 1.0, out=self._virial)
        # Into memory that stays where it is.
        torch.mul(result.forces, 1.0, out=self._forces)
        torch.mul(result.energies, 1.0, out=self._energies)

    def _collect(self) -> None:
        """Neighbours of the positions as they are."""
        found = neighbors_on_device(
            self._positions[: self._n], self._box, self._pbc, self.potential.cutoff + self.skin
        )
        self._reference.copy_(self._positions)
        self._take(
            DeviceAtoms(
                types=self._types,
                groups=self._groups,
                positions=self._positions[: self._n],
                cell=self._cell,
                receiver=found.receiver,
                sender=found.sender,
                shift=found.shift,
                row_pointer=found.row_pointer,
                sender_pointer=found.sender_pointer,
                sender_order=found.sender_order,
            )
        )

    def _take(self, given: DeviceAtoms) -> None:
        self.neighbor_list_builds += 1
        if self._padded is None or not self._padded.fits(given):
            self._padded = PaddedAtoms(Room.for_(given), self.potential.device, positions=self._positions)
            self._padded.fill(given)
            # Recording, at the next step, goes through steps that shall not count.
            touched = (*self._state, self._farthest)
            self._replay = Replay(self._step, self.potential.device, touched=touched)
        else:
            self._padded.fill(given)
        self._farthest.zero_()
        self._fresh, self._reached = True, 0.0

    def _save(self) -> None:
        for place, values in zip(self._saved, self._state, strict=True):
            place.copy_(values)

    def _restore(self) -> None:
        for place, values in zip(self._state, self._saved, strict=True):
            place.copy_(values)
