"""A run of `run_md` on a GPU: between two moments at which the host has something to do, nothing waits for it."""

from __future__ import annotations

import ase
import numpy as np
from ase.calculators.calculator import BaseCalculator
from ase.md.bussi import Bussi
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics

from equipes.calculators.ase import Calculator
from equipes.models.device_frozen import DevicePotential
from equipes.simulate.device_dynamics import DeviceDynamics
from equipes.simulate.device_thermostats import Friction, Rescaling
from equipes.simulate.ensembles import Kind, set_target
from equipes.simulate.held import Held, hold
from equipes.simulate.safety import STEPS_BETWEEN_DISTANCES
from equipes.simulate.settings import MDSettings

# Where the calculator has none; dynamics on a device need one.
SKIN = 0.5
KINDS: tuple[Kind, ...] = ("nve", "nvt", "nvt-langevin")


def device_mover(atoms: ase.Atoms, calculator: BaseCalculator, settings: MDSettings) -> DeviceMover | None:
    """What moves a structure on the device of its calculator; None where ASE has to.

    That is on the CPU, with a potential that cannot be frozen for the device, at constant pressure, with Nosé-Hoover
    chains or constraints, and where uncertainty is watched.
    """
    if (
        not isinstance(calculator, Calculator)
        or settings.kind not in KINDS
        or atoms.constraints
        or settings.max_forces_std is not None
        or settings.max_feature_distance is not None
    ):
        return None
    frozen = calculator.freeze_for(set(atoms.symbols))
    if not isinstance(frozen, DevicePotential):
        return None
    return DeviceMover(atoms, frozen, settings, calculator.skin or SKIN)


class DeviceMover:
    """Moves a structure on the device; its calculator, `Held`, tells what was calculated last.

    Args:
        atoms: with velocities; gets a calculator of its own.
        potential: what computes, and where.
        settings: of the run.
        skin: Å.
    """

    def __init__(
        self, atoms: ase.Atoms, potential: DevicePotential, settings: MDSettings, skin: float
    ) -> None:
        self.atoms = atoms
        self.settings = settings
        periodic = bool(atoms.pbc.all() and atoms.cell.rank == 3)
        self.dynamics = DeviceDynamics(
            atoms, potential, timestep=settings.timestep, skin=skin, virial=periodic
        )
        atoms.calc = Held()
        self._bring_back()

    def couple(self, integrator: MolecularDynamics, step: int) -> None:
        """Take over the thermostat of ASE's integrator, at a step."""
        self.integrator = integrator
        self.dynamics.steps = step
        if isinstance(integrator, Bussi):
            self.dynamics.thermostat = Rescaling(integrator)
        elif isinstance(integrator, LangevinBAOAB):
            self.dynamics.thermostat = Friction(integrator, len(self.atoms))

    def advance(self, end: int) -> int:
        """Move on until something is to be done, or to the step `end`; returns the step reached."""
        step = self.dynamics.steps
        due = (self.settings.interval, STEPS_BETWEEN_DISTANCES)
        stop = min(end, *((step // every + 1) * every for every in due))
        given = self._given
        self.dynamics.run(stop - step, self._aim if self.settings.ramps else None)
        self._bring_back()
        if isinstance(self.integrator, Bussi):
            self.integrator.transferred_energy += self._given - given
        return stop

    def _aim(self, step: int) -> None:
        set_target(self.integrator, *self.settings.targets(step))

    def _bring_back(self) -> None:
        now = self.dynamics.results()
        self.atoms.set_positions(now.positions)
        self.atoms.set_velocities(now.velocities)
        stress = None
        if now.virial is not None:
            stress = -now.virial / abs(float(np.linalg.det(self.atoms.cell.array)))
        hold(self.atoms.calc, now.energy, now.forces, stress)
        self._given = now.given
