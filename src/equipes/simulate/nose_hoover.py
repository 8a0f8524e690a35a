"""Velocity Verlet with a chain of Nosé-Hoover thermostats, whose state is public, so that a run can go on exactly.

G. J. Martyna, M. L. Klein, M. Tuckerman, J. Chem. Phys. 97, 2635 (1992); G. J. Martyna, M. E. Tuckerman, D. J. Tobias,
M. L. Klein, Mol. Phys. 87, 1117 (1996). ASE's own counts three degrees of freedom for every atom, also where the centre
of mass rests.
"""

from __future__ import annotations

import ase
import numpy as np
from ase import units
from ase.md.verlet import VelocityVerlet

_LENGTH = 3
# Suzuki-Yoshida weights of the fourth order.
_OUTER = 1 / (2 - 2 ** (1 / 3))
_WEIGHTS = (_OUTER, 1 - 2 * _OUTER, _OUTER)


class NoseHooverChain(VelocityVerlet):
    """Deterministic, canonical for systems that are not too harmonic; `degrees` momenta share the kinetic energy.

    Args:
        atoms: with velocities.
        timestep: ASE's unit.
        temperature_K: target.
        relaxation: time of the thermostat, ASE's unit.
        degrees: of freedom.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        *,
        temperature_K: float,
        relaxation: float,
        degrees: int,
    ) -> None:
        super().__init__(atoms, timestep)
        self.relaxation = relaxation
        self.degrees = degrees
        self.thermal_energy = units.kB * temperature_K
        self.chain = np.zeros(_LENGTH)  # velocities of the thermostats
        self.transferred_energy = 0.0

    def step(self, forces: np.ndarray | None = None) -> np.ndarray:
        """One time step: thermostat by half, atoms, thermostat by half."""
        self._thermostat()
        forces = super().step(forces)
        self._thermostat()
        return forces

    def _thermostat(self) -> None:
        before = kinetic = float(self.atoms.get_kinetic_energy())
        inertia = self.thermal_energy * self.relaxation**2 * np.array([self.degrees] + [1] * (_LENGTH - 1))
        velocity = self.chain
        scale = 1.0

        def push(i: int) -> float:
            surplus = (
                2 * kinetic - self.degrees * self.thermal_energy
                if i == 0
                else inertia[i - 1] * velocity[i - 1] ** 2 - self.thermal_energy
            )
            return float(surplus / inertia[i])

        for weight in _WEIGHTS:
            dt = weight * self.dt / 2
            velocity[-1] += push(_LENGTH - 1) * dt / 2
            for i in range(_LENGTH - 2, -1, -1):
                drag = np.exp(-velocity[i + 1] * dt / 4)
                velocity[i] = (velocity[i] * drag + push(i) * dt / 2) * drag
            factor = float(np.exp(-velocity[0] * dt))
            scale *= factor
            kinetic *= factor**2
            for i in range(_LENGTH - 1):
                drag = np.exp(-velocity[i + 1] * dt / 4)
                velocity[i] = (velocity[i] * drag + push(i) * dt / 2) * drag
            velocity[-1] += push(_LENGTH - 1) * dt / 2
        self.atoms.set_momenta(scale * self.atoms.get_momenta(), apply_constraint=False)
        self.transferred_energy += kinetic - before
